"""DINOv2's transformer against torch's own, its size, its input and its positions; the files it is loaded from."""

import math

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from entropic.images.networks.dinov2 import DINOv2, load_dinov2, preprocess, resize_positions

MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)


def _network(width=128, depth=2, grid=5, seed=0):
    network, g = DINOv2(width, depth, grid).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=g) / parameter.shape[-1] ** 0.25)
    return network.requires_grad_(False)


def _images(n, height=224, width=224, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), generator=g, dtype=torch.uint8)


def _layer(block, width):
    """torch's own encoder layer with the block's weights, the scales folded into the projections."""
    heads, shape = width // 64, {"norm_first": True, "activation": "gelu", "batch_first": True}
    layer = (
        nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, layer_norm_eps=1e-6, **shape).double().eval()
    )
    own = {name: value.double() for name, value in block.state_dict().items()}
    pairs = {"norm1": "norm1", "norm2": "norm2", "linear1": "mlp.fc1", "linear2": "mlp.fc2"}
    pairs["self_attn.out_proj"] = "attn.proj"
    state = {f"{a}.{kind}": own[f"{b}.{kind}"] for a, b in pairs.items() for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        state[f"self_attn.in_proj_{kind}"] = own[f"attn.qkv.{kind}"]
    for name, gamma in (("self_attn.out_proj", "ls1.gamma"), ("linear2", "ls2.gamma")):
        state[f"{name}.weight"] = own[gamma][:, None] * state[f"{name}.weight"]
        state[f"{name}.bias"] = own[gamma] * state[f"{name}.bias"]
    layer.load_state_dict(state)
    return layer


@torch.no_grad()
def test_is_torchs_transformer_with_the_scales_folded_in():
    network, images = _network().double(), _images(2, 40, 50)
    x = preprocess(images).double()
    patches = x.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).reshape(2, 256, 588)
    proj = network.patch_embed["proj"]
    patches = patches @ proj.weight.reshape(128, 588).T + proj.bias
    x = torch.cat([network.cls_token.expand(2, -1, -1), patches], 1)
    x = x + resize_positions(network.pos_embed, 16)
    for block in network.blocks:
        x = _layer(block, 128)(x)
    expected = nn.functional.layer_norm(x[:, 0], (128,), network.norm.weight, network.norm.bias, 1e-6)
    assert expected.std() > 0.05
    # float32, on either side of a float64 reference: some 2 x 10 operations of 6e-8 on values of some tens.
    found = _network()(images)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "entropic.images.networks.dinov2.preprocess", lambda images: preprocess(images).double()
        )
        found = network(images)
    # float64 throughout: the same at 1e-16 an operation.
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()


def test_the_default_is_vit_l_14():
    with torch.device("meta"):
        network = DINOv2()
    w = 1024
    block = 2 * 2 * w + (w * 3 * w + 3 * w) + (w * w + w) + (w * 4 * w + 4 * w) + (4 * w * w + w) + 2 * w
    outside = w + w + (1 + (518 // 14) ** 2) * w + (3 * 14 * 14 * w + w) + 2 * w
    assert sum(p.numel() for p in network.parameters()) == 24 * block + outside == 304_368_640
    words = "norm1.weight norm1.bias attn.qkv.weight attn.qkv.bias attn.proj.weight attn.proj.bias ls1.gamma"
    words += " norm2.weight norm2.bias mlp.fc1.weight mlp.fc1.bias mlp.fc2.weight mlp.fc2.bias ls2.gamma"
    names = {f"blocks.{i}.{word}" for i in range(24) for word in words.split()}
    names |= {"cls_token", "pos_embed", "mask_token", "norm.weight", "norm.bias"}
    assert set(network.state_dict()) == names | {"patch_embed.proj.weight", "patch_embed.proj.bias"}


def _cubic(t):
    """The cubic convolution kernel at a = -3/4 (Keys 1981)."""
    a, t = -0.75, abs(t)
    if t < 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def test_positions_are_resized_at_the_historic_scale():
    g = torch.Generator().manual_seed(0)
    positions = torch.randn(1, 1 + 37**2, 3, generator=g)
    found = resize_positions(positions, 16)
    assert found.shape == (1, 1 + 16**2, 3)
    assert torch.equal(found[:, 0], positions[:, 0])
    matrix = torch.zeros(16, 37, dtype=torch.float64)
    for i in range(16):
        at = (i + 0.5) * 37 / 16.1 - 0.5
        for j in range(math.floor(at) - 1, math.floor(at) + 3):
            matrix[i, min(max(j, 0), 36)] += _cubic(at - j)
    square = positions[0, 1:].double().reshape(37, 37, 3)
    expected = torch.einsum("ia,jb,abf->ijf", matrix, matrix, square).reshape(256, 3)
    # float32 places of up to 37 err by 4e-6, the kernel's slope is below 2, and values are below 5.
    assert (found[0, 1:] - expected).abs().max() < 1e-4
    other = torch.einsum("ia,jb,abf->ijf", matrix.roll(1, 0), matrix, square).reshape(256, 3)
    assert (found[0, 1:] - other).abs().max() > 1  # so that the bound says something


def test_a_constant_grid_stays_and_a_fitting_one_is_unchanged():
    constant = torch.full((1, 1 + 37**2, 2), 0.7)
    assert (resize_positions(constant, 16) - 0.7).abs().max() < 1e-6  # 16 float32 weights that sum to 1
    fitting = torch.randn(1, 257, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize_positions(fitting, 16), fitting)


def test_an_image_of_224_px_is_only_normalised():
    images = _images(2)
    assert torch.equal(preprocess(images), (images.float() / 255 - MEAN) / STD)


@pytest.mark.parametrize("side", [32, 64, 300, 512])
def test_a_flat_image_stays_flat(side):
    colours = torch.tensor([0, 255, 93], dtype=torch.uint8).reshape(3, 1, 1)
    found = preprocess(colours.expand(1, 3, side, side))
    # Weights sum to 1 within some 1e-7, of values up to 1/0.224.
    assert (found - (colours / 255 - MEAN) / STD).abs().max() < 1e-5


@pytest.mark.parametrize(("height", "width"), [(64, 64), (512, 512), (300, 97)])
def test_resizes_as_pillow_does_and_keeps_overshoots(height, width):
    tiles = _images(1, 64, 64) // 128 * 255  # black and white, of 8 px
    images = tiles.repeat_interleave(8, 2).repeat_interleave(8, 3)[..., :height, :width]
    layers = [
        Image.fromarray(layer.numpy()) for layer in images[0].float()
    ]  # mode F: not rounded, not clipped
    expected = torch.stack(
        [torch.from_numpy(np.array(x.resize((224, 224), Image.Resampling.BICUBIC))) for x in layers]
    )
    found = 255 * (preprocess(images)[0] * STD + MEAN)
    # Levels of up to 400, in float32 with places of up to 512: some 1e-7 of either, slope below 255 a pixel.
    assert (found - expected).abs().max() < 0.01
    assert found.min() < -1 and found.max() > 256


@pytest.mark.parametrize(("height", "width"), [(64, 64), (512, 512), (300, 97)])
def test_resizes_smooth_images_as_pillow_does_in_whole_levels(height, width):
    rows, columns = torch.arange(height)[:, None] / height, torch.arange(width) / width
    g = torch.Generator().manual_seed(0)
    waves = [
        sum(
            torch.sin(2 * math.pi * (a * rows + b * columns) + c)
            for a, b, c in (6 * torch.rand(4, 3, generator=g) - 3).tolist()
        )
        for _ in range(3)
    ]
    images = (torch.stack(waves) * 25 + 128).round().to(torch.uint8)
    pillow = Image.fromarray(images.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
    found = preprocess(images[None])[0] * STD + MEAN
    expected = torch.from_numpy(np.array(pillow)).permute(2, 0, 1) / 255
    # Pillow rounds after each of its two passes, the first halved levels going through weights of absolute sum
    # below 1.3, and keeps 8 bits fewer of the weights: 1/2 + 1.3/2 + some hundredths of a level.
    assert (found - expected).abs().max() < (0.5 + 0.65 + 0.05) / 255
    assert (found - expected).abs().mean() < 0.5 / 255


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_gives_back_the_network(tmp_path, suffix):
    network, path = _network(grid=7), tmp_path / f"w{suffix}"
    save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(network.state_dict(), path)
    loaded = load_dinov2(path)
    assert not loaded.training
    assert torch.equal(loaded(_images(1, 32, 32)), network(_images(1, 32, 32)))


class _Other:
    pass


def _altered(**changes):
    state = _network(64, 1).state_dict()
    state.update(changes)
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<html>404</html>", "is no file of weights"),
        (_Other(), "is no file of weights"),
        ([torch.zeros(2)], "holds no weights of DINOv2"),
        ({"model": {"a": torch.zeros(1)}}, "holds no weights of DINOv2"),
        (_altered(cls_token=None), "cls_token"),
        (_altered(mask_token=None), "mask_token"),
        (_altered(register_tokens=torch.zeros(1, 4, 64)), "register_tokens"),
        (_altered(cls_token=torch.zeros(1, 1, 65)), "width = 65"),
        (_altered(pos_embed=torch.zeros(1, 27, 64)), "pos_embed"),
        (_altered(**{"norm.weight": torch.zeros(1)}), "norm.weight"),
        (_altered(**{"norm.weight": torch.full((64,), torch.nan)}), r"norm.weight\[0\] = nan"),
    ],
)
def test_another_file_is_refused(tmp_path, content, words):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=words):
        load_dinov2(path)


def test_an_absent_or_damaged_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        load_dinov2(tmp_path / "absent.pth")
    (tmp_path / "w.safetensors").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"w\.safetensors is no file of weights"):
        load_dinov2(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8).byte(), torch.zeros(3, 8, 8).byte()]
)
def test_images_of_another_kind_are_refused(images):
    with pytest.raises(ValueError, match="pass uint8"):
        preprocess(images)
