"""What is an extra is asked for only where it is used, and then by the name to install."""

import json

import pytest

from tests.conftest import run_python

EXTRAS = ("PIL", "safetensors", "torchvision", "torch_fidelity", "diffusers", "efficientnet_lite_pytorch")
BLOCK = f"import sys\nfor name in {EXTRAS}: sys.modules[name] = None\n"
CALLS = {
    "from entropic.images.networks.weights import save_weights as f; f('a.safetensors', {}, {})": "images",
    "from entropic.images.networks.small import load_network as f; f('fashion-mnist')": "images",
    "from entropic.images.networks.dinov2 import load_dinov2 as f; f('w.safetensors')": "images",
    "from entropic.images.networks.vae import load_vae as f; f()": "vae",
    "from entropic.images.cost import vae_decoder as f; f()": "vae",
    "from entropic.images.metrics import fidelity as f; f()": "metrics",
}


def test_imports_without_any_extra():
    modules = ["entropic", "entropic.images"]
    modules += [f"entropic.images.{name}" for name in ("metrics", "cost", "networks")]
    names = ("weights", "snapshot", "edm", "edm2", "vae", "dinov2", "published", "galaxies")
    modules += [f"entropic.images.networks.{name}" for name in names]
    found = run_python("-c", BLOCK + "".join(f"import {module}\n" for module in modules))
    assert found.returncode == 0, found.stderr


@pytest.fixture(name="errors", scope="module")
def _errors(tmp_path_factory):
    """What each call says in a process that has none of the extras."""
    folder = tmp_path_factory.mktemp("calls")
    (folder / "w.safetensors").write_bytes(b"{}")
    code = f"import json, traceback\nerrors = {{}}\nfor call in {list(CALLS)}:\n"
    code += "    try: exec(call, {})\n    except Exception: errors[call] = traceback.format_exc()\n"
    found = run_python("-c", f"{BLOCK}{code}print(json.dumps(errors))", cwd=folder)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.parametrize("call", CALLS)
def test_what_is_missing_is_named(errors, call):
    assert f"is not installed; pip install 'entropic-time[{CALLS[call]}]'" in errors[call]
    assert "ModuleNotFoundError" in errors[call]
