"""What is an extra is asked for only where it is used, and then by the name to install."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = ("PIL", "safetensors", "torchvision", "torch_fidelity", "diffusers", "efficientnet_lite_pytorch")
BLOCK = f"import sys\nfor name in {EXTRAS}: sys.modules[name] = None\n"


def run(code):
    return subprocess.run([sys.executable, "-c", BLOCK + code], capture_output=True, text=True, cwd=ROOT)


def test_imports_without_any_extra():
    modules = ["entropic", "entropic.images"]
    modules += [f"entropic.images.{name}" for name in ("metrics", "cost", "networks")]
    names = ("weights", "snapshot", "edm", "edm2", "vae", "dinov2", "published")
    modules += [f"entropic.images.networks.{name}" for name in names]
    found = run("".join(f"import {module}\n" for module in modules))
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        (
            "from entropic.images.networks.weights import save_weights as f; f('a.safetensors', {}, {})",
            "images",
        ),
        ("from entropic.images.networks.small import load_network as f; f('fashion-mnist')", "images"),
        ("from entropic.images.networks.dinov2 import load_dinov2 as f; f(__FILE__)", "images"),
        ("from entropic.images.networks.vae import load_vae as f; f()", "vae"),
        ("from entropic.images.cost import vae_decoder as f; f()", "vae"),
        ("from entropic.images.metrics import fidelity as f; f()", "metrics"),
    ],
)
def test_what_is_missing_is_named(code, extra, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"{}")
    found = run(code.replace("__FILE__", repr(str(tmp_path / "w.safetensors"))))
    assert f"is not installed; pip install 'entropic[{extra}]'" in found.stderr
    assert "ModuleNotFoundError" in found.stderr
