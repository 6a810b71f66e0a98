"""A small class-conditional U-Net under EDM preconditioning: the network that this repository trains itself."""

import functools
import math
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from entropic import _check
from entropic._check import integer
from entropic.images.data import check_labels, check_states, has_values, wide
from entropic.images.networks.edm import positive
from entropic.images.networks.weights import load_module, save_weights

# Parameters are float32, whatever torch's default is.
_Conv2d = functools.partial(nn.Conv2d, dtype=torch.float32)
_Linear = functools.partial(nn.Linear, dtype=torch.float32)


class SmallUNet(nn.Module):
    """D(x; sigma, label), EDM's preconditioned denoiser over a U-Net of residual blocks.

    x (N, image_channels, resolution, resolution), sigma a number or (N,), label (N,) int64; returns E[x_0 | x]
    in x's dtype. The preconditioning runs in float32 or wider, the U-Net in the type of its weights, float32 unless
    they are moved. `patch` folds squares of pixels into channels before the first convolution; `channels` and
    `blocks` give width and depth of each resolution, halved from one to the next; `attention` lists the levels
    (0 the finest) whose blocks attend. ValueError: x that is not finite floats of this shape, noise levels that are
    not finite or not above 0, labels that are not classes from 0 to num_classes - 1, one for each row. Under
    torch.compile, types and shapes alone are looked at.
    `noise_dtype` is the type in which `generate` draws the noise of a seed for this network: float64, as in the
    results that the book records.
    Karras et al. 2022, section 5 and table 1; the U-Net is that of Ho et al. 2020 with adaptive group norm.
    """

    noise_dtype = torch.float64

    def __init__(
        self,
        resolution,
        image_channels,
        num_classes,
        sigma_data=0.5,
        patch=1,
        channels=(64, 96),
        blocks=2,
        attention=(1,),
        dropout=0.0,
    ):
        super().__init__()
        self.config = {
            "resolution": integer("resolution", resolution, 1),
            "image_channels": integer("image_channels", image_channels, 1),
            "num_classes": integer("num_classes", num_classes, 1),
            "sigma_data": positive("sigma_data", sigma_data),
            "patch": integer("patch", patch, 1),
            "channels": [integer("channels", width, 8) for width in channels],
            "blocks": integer("blocks", blocks, 1),
            "attention": [integer("attention", level, 0) for level in attention],
            "dropout": float(dropout),
        }
        self.shape = (image_channels, resolution, resolution)
        self.num_classes, self.sigma_data, self.patch = num_classes, sigma_data, patch
        coarsest = patch * 2 ** (len(channels) - 1)
        if resolution % coarsest:
            raise ValueError(
                f"resolution = {resolution} is not a multiple of {coarsest}, patch = {patch} times a halving for "
                f"each of the {len(channels)} channels but the first; take fewer channels or another patch"
            )
        folded = image_channels * patch**2
        width = 4 * channels[0]
        half = channels[0] // 2
        powers = -math.log(1e4) * torch.arange(half, dtype=torch.float32) / half
        self.register_buffer("frequencies", powers.exp())
        self.embed_noise = _Linear(2 * len(self.frequencies), width)
        self.embed_label = _Linear(num_classes, width, bias=False)
        self.embed = _Linear(width, width)

        def block(wide_in, wide_out, level):
            return _Block(wide_in, wide_out, width, dropout, level in attention)

        self.conv_in = _Conv2d(folded, channels[0], 3, padding=1)
        self.down, skips, wide = nn.ModuleList(), [channels[0]], channels[0]
        for level, wide_out in enumerate(channels):
            if level > 0:
                self.down.append(_Conv2d(wide, wide, 3, stride=2, padding=1))
                skips.append(wide)
            for _ in range(blocks):
                self.down.append(block(wide, wide_out, level))
                wide = wide_out
                skips.append(wide)
        self.middle = nn.ModuleList([_Block(wide, wide, width, dropout, True), block(wide, wide, None)])
        self.up = nn.ModuleList()
        for level, wide_out in reversed(list(enumerate(channels))):
            for _ in range(blocks + 1):
                self.up.append(block(wide + skips.pop(), wide_out, level))
                wide = wide_out
            if level > 0:
                self.up.append(_Conv2d(wide, wide, 3, padding=1))
        self.norm_out = _norm(wide)
        self.conv_out = _zero(_Conv2d(wide, folded, 3, padding=1))

    def forward(self, x, sigma, label):
        sigma, label = self._checked(x, sigma, label)
        given, x = x.dtype, x.to(wide(x.dtype))
        scale = (sigma.square() + self.sigma_data**2).sqrt().to(x.dtype)[:, None, None, None]
        column = sigma.to(x.dtype)[:, None, None, None]
        network = self.raw((x / scale).to(self.conv_in.weight.dtype), sigma.log() / 4, label)
        denoised = x * (self.sigma_data / scale) ** 2 + network.to(x.dtype) * (
            column * self.sigma_data / scale
        )
        return denoised.to(given)

    def raw(self, x, noise, label):
        """The U-Net itself, F of Karras et al. 2022, eq. 7: `x` scaled to unit variance, noise = log(sigma)/4."""
        angle = (1000 * noise.to(self.frequencies.dtype))[:, None] * self.frequencies
        one_hot = F.one_hot(label, self.num_classes).to(x.dtype) * math.sqrt(self.num_classes)
        emb = self.embed_noise(torch.cat([angle.cos(), angle.sin()], 1).to(x.dtype)) + self.embed_label(
            one_hot
        )
        emb = F.silu(self.embed(F.silu(emb)))
        x = self.conv_in(F.pixel_unshuffle(x, self.patch))
        skips = [x]
        for layer in self.down:
            x = layer(x, emb) if isinstance(layer, _Block) else layer(x)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, emb)
        for layer in self.up:
            if isinstance(layer, _Block):
                x = layer(torch.cat([x, skips.pop()], 1), emb)
            else:
                x = layer(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.patch)

    def _checked(self, x, sigma, label):
        check_states(x, self.shape)
        label = check_labels(label, len(x), self.num_classes, "label").to(x.device)
        if not isinstance(sigma, torch.Tensor) or has_values(sigma):
            with torch.device("cpu"):
                checked = _check.levels(sigma)
            sigma = sigma if isinstance(sigma, torch.Tensor) else checked
        if tuple(sigma.shape) not in ((), (1,), (len(x),)):
            raise ValueError(
                f"sigma has shape {tuple(sigma.shape)}; pass a number or one level for each of {len(x)} rows"
            )
        return sigma.to(x.device, torch.float64).expand(len(x)), label


def save_network(path, network, info, dtype=torch.float32):
    """Write a `SmallUNet` to PATH (*.safetensors) with its config and `info` beside it; returns the sha256."""
    trained = dict(network.named_parameters())
    # Buffers stay exact: a rounded frequency would shift the phase of the noise embedding.
    tensors = {n: value.to(dtype) if n in trained else value for n, value in network.state_dict().items()}
    return save_weights(path, tensors, {"config": network.config, **info})


def load_network(path, device="cpu"):
    """The `SmallUNet` at `path` (*.safetensors), or the embedded one called "fashion-mnist", in evaluation mode.

    `network.info` is what was saved with it, sha256 included. ValueError: damaged weights or another network's,
    with the path. FileNotFoundError: one of the two files is missing.
    """
    network = load_module(_embedded(path), _built, "a SmallUNet")
    with torch.inference_mode(False):
        return network.eval().requires_grad_(False).to(device)


def _built(tensors, info):
    """The network of a configuration with these tensors; its memory is taken only once all shapes agree."""
    config = info["config"]
    if integer("blocks", config["blocks"], 1) * len(config["channels"]) > len(tensors):
        raise ValueError(f"{config['blocks']} blocks for each of {config['channels']} need more tensors")
    with torch.device("meta"):
        network = SmallUNet(**config)
    network.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    network.info = info
    return network.to(memory_format=torch.channels_last)  # convolutions are faster so, on a CPU and a GPU


def training_log(path):
    """Path of the training log of weights, NAME.log.jsonl beside them; `path` as in `load_network`."""
    return _embedded(path).with_suffix(".log.jsonl")


def _embedded(path):
    """A name without a folder or suffix is that of weights in the package."""
    path = Path(path)
    inside = path.suffix == "" and path.parent == Path()
    return (
        Path(str(resources.files("entropic.images") / "assets" / f"{path}.safetensors")) if inside else path
    )


class _Block(nn.Module):
    """Two 3x3 convolutions, the second modulated by the embedding, and attention where wanted."""

    def __init__(self, wide_in, wide_out, width, dropout, attention):
        super().__init__()
        self.norm0, self.conv0 = _norm(wide_in), _Conv2d(wide_in, wide_out, 3, padding=1)
        self.modulate = _Linear(width, 2 * wide_out)
        self.norm1, self.conv1 = _norm(wide_out), _zero(_Conv2d(wide_out, wide_out, 3, padding=1))
        self.dropout = dropout
        self.skip = _Conv2d(wide_in, wide_out, 1) if wide_in != wide_out else nn.Identity()
        self.heads = max(1, wide_out // 64) if attention else 0
        if attention:
            self.norm2, self.qkv = _norm(wide_out), _Conv2d(wide_out, 3 * wide_out, 1)
            self.proj = _zero(_Conv2d(wide_out, wide_out, 1))

    def forward(self, x, emb):
        y = self.conv0(F.silu(self.norm0(x)))
        scale, shift = self.modulate(emb)[:, :, None, None].chunk(2, 1)
        y = F.silu(torch.addcmul(shift, self.norm1(y), scale + 1))
        y = self.conv1(F.dropout(y, self.dropout, self.training))
        x = (self.skip(x) + y) * math.sqrt(0.5)
        if self.heads:
            q, k, v = (
                part.unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3).contiguous()
                for part in self.qkv(self.norm2(x)).chunk(3, 1)
            )
            y = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
            x = (x + self.proj(y)) * math.sqrt(0.5)
        return x


def _norm(channels):
    return nn.GroupNorm(math.gcd(channels, 8), channels, dtype=torch.float32)


def _zero(layer):
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
