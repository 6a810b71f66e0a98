"""Latents to images: the conversions bit for bit; a tiny autoencoder of diffusers' own class in place of the VAE."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from entropic.images import metrics
from entropic.images.data import to_uint8
from entropic.images.networks import vae
from entropic.images.networks.vae import StabilityVAE, latents_to_vae, load_vae, to_uint8_vae
from tests.conftest import start_process

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(name="oracle", scope="module")
def _oracle():
    folder = os.environ.get("ENTROPIC_ORACLE")
    if not folder:
        pytest.skip("no reference arrays")
    with np.load(Path(folder) / "encoder.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _latents(count, seed=0, size=8):
    return torch.randn(count, 4, size, size, generator=torch.Generator().manual_seed(seed)) / 2


# Conversions


def test_latents_and_pixels_are_the_references_bit_for_bit(oracle):
    x = torch.cat([_latents(3), 5 * _latents(3, seed=1)])
    scale, bias = (oracle[name][:, None, None] for name in ("scale", "bias"))
    assert torch.equal(latents_to_vae(x), (x - bias) / scale)
    assert torch.equal(latents_to_vae(x.double()), latents_to_vae(x))
    assert torch.equal(to_uint8_vae(oracle["vae_in"]), oracle["vae_out"])


def test_rgb_pixels_are_the_reference_s(oracle):
    assert torch.equal(to_uint8(oracle["rgb_in"]), oracle["rgb_out"])


def test_latents_of_the_vae_s_own_mean_and_deviation():
    """EDM2's latents have mean 0 and deviation 1/2 where the VAE's have the published ones."""
    mean, std = torch.tensor([5.81, 3.25, 0.12, -2.15]), torch.tensor([4.17, 4.62, 3.71, 3.28])
    zero, half = latents_to_vae(torch.zeros(1, 4, 1, 1)), latents_to_vae(torch.full((1, 4, 1, 1), 0.5))
    # Three roundings of numbers up to 6 / 0.1, each of half an ulp.
    torch.testing.assert_close(zero.flatten(), mean, rtol=3 * 2**-24, atol=0)
    torch.testing.assert_close((half - zero).flatten(), std, rtol=0, atol=4 * 2**-24 * 10)


def test_pixels_are_clamped_and_truncated():
    x = torch.tensor([-1.0, 0.0, 0.999 / 255, 1.001 / 255, 254.99 / 255, 1.0, 7.0])
    assert to_uint8_vae(x).tolist() == [0, 0, 0, 1, 254, 255, 255]
    half = torch.rand(1000, generator=torch.Generator().manual_seed(0)).half()
    assert torch.equal(to_uint8_vae(half), to_uint8_vae(half.float()))  # 255 x would round in float16
    with pytest.raises(ValueError, match=r"x\[1\] = nan"):
        to_uint8_vae(torch.tensor([0.0, torch.nan]))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(1, 3, 8, 8), r"\(1, 3, 8, 8\); pass floating latents"),
        (torch.zeros(4, 8, 8), "pass floating latents"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.int64), "int64"),
        (torch.full((1, 4, 1, 1), torch.inf), "inf; every entry must be finite"),
    ],
)
def test_other_latents_are_refused(x, words):
    with pytest.raises(ValueError, match=words):
        latents_to_vae(x)


# The class, with a tiny autoencoder of random weights


@pytest.fixture(name="tiny", scope="module")
def _tiny(tmp_path_factory):
    """Folder of an autoencoder with two levels, so that images have twice the latents' size."""
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("tiny")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = vae.autoencoder_class()(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
        )
    network.save_pretrained(folder)
    return folder


@pytest.fixture(name="copy")
def _copy(tiny, tmp_path):
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def test_decode_is_the_autoencoder_between_the_two_conversions(tiny):
    loaded, x = load_vae(tiny), _latents(5)
    images = loaded.decode(x)
    assert images.shape == (5, 3, 16, 16) and images.dtype == torch.uint8
    assert images.unique().numel() > 20  # neither black nor white all over
    network = vae.autoencoder_class().from_pretrained(tiny, low_cpu_mem_usage=False)
    with torch.no_grad():
        wanted = network.decode(latents_to_vae(x)).sample  # its factor 0.18215 is not applied
    assert torch.equal(images, (wanted.clamp(0, 1) * 255).to(torch.uint8))
    for batch in (1, 2, 64):  # the order of a sum moves the last bits, and truncation a pixel by 1
        assert (loaded.decode(x, batch=batch).int() - images.int()).abs().max() <= 1
    assert loaded.decode(x[:0]).shape == (0, 3, 16, 16)
    assert torch.equal(loaded.decode(x.double()), images)
    assert not any(weight.requires_grad for weight in loaded._autoencoder.parameters())


def test_name_tells_weights_and_dtype(tiny, copy):
    first = load_vae(tiny)
    assert repr(first) == first.name == f"StabilityVAE(sha256={first.sha256}, dtype=float32)"
    assert repr(load_vae(copy)) == repr(first)  # wherever they lie
    weights = safetensors.torch.load_file(copy / WEIGHTS)
    weights["decoder.conv_out.bias"][0] += 1e-3
    safetensors.torch.save_file(weights, copy / WEIGHTS, {"format": "pt"})
    assert load_vae(copy).sha256 != first.sha256


def test_folder_comes_from_the_environment(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("ENTROPIC_VAE", str(tiny))
    assert repr(load_vae()) == repr(load_vae(tiny))
    with pytest.raises(FileNotFoundError, match=r"elsewhere lacks config\.json"):
        load_vae(tmp_path / "elsewhere")


def test_pickled_or_torn_or_unfit_weights_are_refused(copy):
    content = (copy / WEIGHTS).read_bytes()
    weights = safetensors.torch.load(content)
    torch.save(weights, copy / "diffusion_pytorch_model.bin")  # not to be fallen back upon
    (copy / WEIGHTS).write_bytes(content[:-100])
    with pytest.raises(ValueError, match="cannot be read"):
        load_vae(copy)
    del weights["decoder.conv_in.bias"]
    safetensors.torch.save_file(weights, copy / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing_keys.*decoder\.conv_in\.bias.*again"):
        load_vae(copy)
    (copy / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=rf"copy lacks {WEIGHTS}; get config\.json and"):
        load_vae(copy)


def test_offline_says_what_to_get_and_where_to_put_it(tiny, monkeypatch, capsys):
    def absent(*words, **options):
        assert options["use_safetensors"] is True  # else a pickle would do
        raise OSError("no such host")

    monkeypatch.delenv("ENTROPIC_VAE", raising=False)
    monkeypatch.setattr(vae.autoencoder_class(), "from_pretrained", absent)
    with pytest.raises(FileNotFoundError) as caught:
        load_vae()
    for word in ("no such host", WEIGHTS, "huggingface.co/stabilityai/sd-vae-ft-mse", "$ENTROPIC_VAE"):
        assert word in str(caught.value)
    assert "335 MB, licence MIT" in capsys.readouterr().err


def test_arguments_that_do_not_fit(tiny):
    with pytest.raises(ValueError, match=r"dtype = torch\.float16 on cpu"):
        load_vae(tiny, dtype=torch.float16)
    with pytest.raises(ValueError, match="batch = 0"):
        load_vae(tiny).decode(_latents(1), batch=0)
    bad = _latents(3)
    bad[2, 1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="nan"):
        load_vae(tiny).decode(bad)
    network = vae.autoencoder_class()(block_out_channels=(8,), norm_num_groups=4, latent_channels=3)
    with pytest.raises(ValueError, match="3 latent channels"):
        StabilityVAE(network)
    broken = load_vae(tiny)
    broken._autoencoder.decoder.conv_out.bias.data[0] = torch.inf
    with pytest.raises(ValueError, match=r"latents\[0:2\] is not finite in torch\.float32"):
        broken.decode(_latents(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_float16_on_cuda_is_near(tiny):
    """Rounding to 2^-11 at some 30 layers, all one way, is 4 grey levels of 255; outputs reach 2."""
    wanted = load_vae(tiny).decode(_latents(4)).int()
    assert (load_vae(tiny, device="cuda").decode(_latents(4)).int() - wanted).abs().max() <= 1
    half = load_vae(tiny, device="cuda", dtype=torch.float16)
    assert half.name.endswith("dtype=float16)") and half.sha256 == load_vae(tiny).sha256
    assert (half.decode(_latents(4)).int() - wanted).abs().max() <= 8


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setitem(sys.modules, "diffusers.utils", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'entropic-time\[vae\]'"):
        load_vae()


@pytest.mark.parametrize("first", [True, False])
def test_goes_together_with_torch_fidelity(tiny, first):
    """Both work around a torchvision that does not load."""
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("no torch-fidelity")
    process = start_process(_load_both, tiny, first)
    process.join(120)
    assert process.exitcode == 0


def _load_both(folder, first):
    assert not {"diffusers", "torchvision", "torch_fidelity"} & set(sys.modules)
    calls = [lambda: load_vae(folder), metrics.fidelity]
    for call in calls if first else calls[::-1]:
        call()
