"""The score networks of galaxies that the package galaxygrad 0.2.1 carries, as denoisers.

Astronomers trained them on single galaxies of four surveys (Sampson, Melchior, Ward and Birmingham 2024,
arXiv:2401.07313); the deblender scarlet2 uses them as its prior. They are MLP-Mixers of 0.6 to 5 million parameters.
The weights are read from the installed package, which is neither imported (that would need jax) nor copied here.
"""

import importlib.util
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from entropic._check import check_finite, integer
from entropic.adapters import from_score
from entropic.files import file_sha256
from entropic.images.data import check_states
from entropic.images.networks.weights import plain_torch, reading
from entropic.noise import vp_constant

__all__ = ["GALAXIES", "GalaxyDenoiser", "MixerScore", "load_galaxies", "to_uint8_galaxies"]

INSTALL = "pip install --no-deps galaxygrad==0.2.1"
_PIECE = 16  # images at once on a CPU: what lies between two layers then stays in the processor's cache, 3 times faster


class Source(NamedTuple):
    """One network of the package: its file, the sha256 of that file, and what it was trained on."""

    file: str
    sha256: str
    data: str


GALAXIES = {
    "hsc-32": Source(
        "eqx_hsc_ScoreNet32.eqx",
        "cb926562fcdfcbd33952fea8b2394074e75cb652fb7824c4c809a5f89a0a6532",
        "galaxies of the HSC survey, separated from their neighbours by the deblender scarlet",
    ),
    "hsc-64": Source(
        "eqx_hsc_ScoreNet64.eqx",
        "4758114b1b77e4640ca7b834a976202aeb126fd7332ec07842af46d72c6b2e01",
        "galaxies of the HSC survey, separated from their neighbours by the deblender scarlet",
    ),
    "hsc-log-32": Source(
        "eqx_hsc_LogNet32.eqx",
        "49873516d95c02506fb21c386419bc3915cc88b90c92d90adc718dd3b7950169",
        "galaxies of the HSC survey, separated from their neighbours by the deblender scarlet",
    ),
    "hsc-log-64": Source(
        "eqx_hsc_LogNet64.eqx",
        "6d1e7387ff54a4142e68844acee1a37f42f0d3ec9ad1f1938d5f47c2ee25ee40",
        "galaxies of the HSC survey, separated from their neighbours by the deblender scarlet",
    ),
    "ztf-32": Source(
        "eqx_ZTF_ScoreNet32.eqx",
        "60b29e6b9b7b4baa4ddc84132d083991c9e1e2910f55f3e9ae16e65bf0df8f47",
        "simulated galaxies as the ZTF survey sees them",
    ),
    "ztf-64": Source(
        "eqx_ZTF_ScoreNet64.eqx",
        "806cb83de98d8aff924dd13b267bcb157d72ddb819804a541134a06adb391065",
        "simulated galaxies as the ZTF survey sees them",
    ),
    "lsst-60": Source(
        "eqx_lsst_ScoreNet60.eqx",
        "93ef40f17a6e7e87e6527c90d5c1d4f2b17c77bbedfc14b08d014c53aa2db0e0",
        "simulated lensed galaxies as the LSST survey will see them",
    ),
    "quasar-72": Source(
        "eqx_quasar_lens72.eqx",
        "b1574b390d2e450521f6234ff3f3288937c53237a76189883d61342c9d293c2f",
        "simulated lensed galaxies around quasars",
    ),
    "roman-120": Source(
        "eqx_roman_Scorenet120.eqx",
        "68a1d78410c877b7b50f466b505cb75d073f1f44e904420ed0fd9fb678201b03",
        "simulated lensed galaxies as the Roman telescope will see them",
    ),
}


class GalaxyDenoiser(nn.Module):
    """D(x; sigma) = x + sigma^2 s score(s x, t), the mean of the clean galaxies, t = log(1 + sigma^2), s = exp(-t/2).

    x (N, 1, side, side), of which a pixel is log(1 + flux) / 0.1, so that x is not bounded; sigma a number or (N,).
    Returns E[x_0 | x] in x's dtype, float32 at least; the network runs in the type of its weights. `score` is the
    `MixerScore`, `process` the forward process that it was trained on, `sigma_max` = 148.4 its highest noise level.
    ValueError: x that is not finite floats of this shape, noise levels outside 0 to `sigma_max`, a label.
    Source: Song et al. 2021, the VP SDE with beta = 1; Sampson et al. 2024, section 2.
    """

    num_classes = 0
    noise_dtype = torch.float64
    nonnegative = True  # a logarithm of a flux may be above 0 in all pixels

    def __init__(self, side, patch=4, hidden=64, patch_width=512, hidden_width=512, blocks=4, t_max=10.0):
        super().__init__()
        self.score = MixerScore(side, patch, hidden, patch_width, hidden_width, blocks, t_max)
        self.shape, self.config = (1, side, side), dict(self.score.config)
        self.process = vp_constant(t_max)
        self._denoiser = from_score(self.score, self.process)
        self.sigma_min, self.sigma_max = self._denoiser.sigma_min, self._denoiser.sigma_max

    def forward(self, x, sigma, label=None):
        if label is not None:
            raise ValueError(f"label = {label!r} was passed to an unconditional network; leave it out")
        return self._denoiser(check_states(x, self.shape), sigma)


class MixerScore(nn.Module):
    """The score of the scaled state y = s x at time t: y (N, 1, side, side), t (N,) -> shaped like y.

    A patch of `patch` squared pixels and the time become `hidden` channels; each block mixes the patches of a channel
    and then the channels of a patch, by a layer of `patch_width` and of `hidden_width` neurons with ReLU.
    Source: Tolstikhin et al. 2021 (arXiv:2105.01601), with the layer norms over patches and channels together.
    """

    def __init__(self, side, patch, hidden, patch_width, hidden_width, blocks, t_max):
        super().__init__()
        self.config = {
            "side": integer("side", side, 1),
            "patch": integer("patch", patch, 1),
            "hidden": integer("hidden", hidden, 1),
            "patch_width": integer("patch_width", patch_width, 1),
            "hidden_width": integer("hidden_width", hidden_width, 1),
            "blocks": integer("blocks", blocks, 0),
            "t_max": float(t_max),
        }
        if side % patch:
            raise ValueError(f"side = {side} is not a multiple of patch = {patch}")
        self.t_max, patches = float(t_max), (side // patch) ** 2
        self.conv_in = nn.Conv2d(2, hidden, patch, patch)
        self.conv_out = nn.ConvTranspose2d(hidden, 1, patch, patch)
        self.blocks = nn.ModuleList(_Block(patches, hidden, patch_width, hidden_width) for _ in range(blocks))
        self.norm = nn.LayerNorm((hidden, patches))

    def forward(self, y, t):
        if y.device.type != "cpu" or len(y) <= _PIECE:
            return self._mixed(y, t)
        pieces = zip(y.split(_PIECE), t.split(_PIECE), strict=True)
        return torch.cat([self._mixed(*piece) for piece in pieces])

    def _mixed(self, y, t):
        # The time is a second channel, alike in all pixels, and so adds the same to all patches.
        weight, bias = self.conv_in.weight, self.conv_in.bias
        channels = (t / self.t_max).to(y.dtype)[:, None] * weight[:, 1].sum((1, 2))
        h = F.conv2d(y, weight[:, :1], bias, self.conv_in.stride) + channels[:, :, None, None]
        grid, h = h.shape[2:], h.flatten(2)
        for block in self.blocks:
            h = block(h)
        return self.conv_out(self.norm(h).unflatten(2, grid))


class _Block(nn.Module):
    def __init__(self, patches, hidden, patch_width, hidden_width):
        super().__init__()
        self.patch_mixer = _layers(patches, patch_width)
        self.hidden_mixer = _layers(hidden, hidden_width)
        self.norm1, self.norm2 = nn.LayerNorm((hidden, patches)), nn.LayerNorm((patches, hidden))

    def forward(self, h):
        h = h + self.patch_mixer(self.norm1(h))
        h = h.mT.contiguous()  # a norm of what lies in another order in memory takes 3 times as long
        return (h + self.hidden_mixer(self.norm2(h))).mT.contiguous()


def _layers(size, width):
    return nn.Sequential(nn.Linear(size, width), nn.ReLU(inplace=True), nn.Linear(width, size))


def load_galaxies(name, device="cpu"):
    """The `GalaxyDenoiser` called `name`, one of `GALAXIES`, or that of a file (a path), in evaluation mode, float32.

    A name is looked for in the installed package galaxygrad and held to the sha256 that is recorded here. A path names
    a file of the same kind, say one that a newer release has fetched. `network.info` has name (None for weights that
    are not recorded), sha256, and data, what it was trained on.
    ModuleNotFoundError: the package is missing. FileNotFoundError: no such file, or a release without weights.
    ValueError: another name, an altered or damaged file, a file of something else; it names the file.
    """
    path, expected = _located(name)
    found = file_sha256(path)
    if expected is not None and found != expected:
        raise ValueError(
            f"{path} is truncated or altered: expected sha256 {expected}, found {found}; install it again: {INSTALL}"
        )
    known = next((one for one, source in GALAXIES.items() if source.sha256 == found), None)
    remedy = "it is not a file of weights as galaxygrad 0.2.1 has them, or it is damaged; fetch it again"
    with plain_torch():
        with reading(path, remedy):
            network = _built(_records(path))
        data = None if known is None else GALAXIES[known].data
        network.info = {"name": known, "sha256": found, "data": data}
        return network.eval().requires_grad_(False).to(device)


def to_uint8_galaxies(x, top=20.0):
    """Pictures of galaxies: uint8 (N, 1, H, W) of states, black at 0 and below, white at `top` and above.

    A state is logarithmic in the flux, as astronomers' pictures are, so that it is shown as it is.
    ValueError: states that are not finite floats (N, C, H, W).
    """
    return (check_states(x) / top).clamp(0, 1).mul(255).round().to(torch.uint8)


def _located(name):
    """The path of a network's file, and the sha256 that it must have, None for a path of the user's."""
    if str(name) not in GALAXIES:
        path = Path(name)
        if path.is_file():
            return path, None
        if path.suffix == "" and path.parent == Path():
            raise ValueError(f"name = {str(name)!r}; use one of {', '.join(GALAXIES)}, or a path to a file")
        raise FileNotFoundError(f"there is no file {path}; name weights of galaxygrad (*.eqx)")
    source = GALAXIES[str(name)]
    spec = importlib.util.find_spec("galaxygrad")  # finds the package and runs nothing of it
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"galaxygrad is not installed; {INSTALL} (the extra 'galaxies'; without --no-deps it brings jax along, "
            f"which is not needed), or pass the path of {source.file}",
            name="galaxygrad",
        )
    path = Path(next(iter(spec.submodule_search_locations)), source.file)
    if not path.is_file():
        try:
            version = metadata.version("galaxygrad")
        except metadata.PackageNotFoundError:
            version = "of an unknown version"
        raise FileNotFoundError(
            f"{path} is missing: galaxygrad {version} does not bring it; {INSTALL}, or pass the path of a file"
        )
    return path, source.sha256


def _records(path):
    """The arrays of a file that holds one .npy after the other, read as data alone."""
    arrays, size = [], path.stat().st_size
    with open(path, "rb") as file:
        while file.tell() < size:
            arrays.append(np.load(file, allow_pickle=False))
    return arrays


def _built(arrays):
    """The network of the arrays of a file, in the order in which equinox writes the parts of a ScoreNet."""
    arrays = [check_finite(f"array {i}", torch.from_numpy(np.asarray(a, "f4"))) for i, a in enumerate(arrays)]
    blocks, rest = divmod(len(arrays) - 7, 12)
    if blocks < 0 or rest:
        raise ValueError(f"it holds {len(arrays)} arrays; a network has 7, and 12 for each of its blocks")
    (hidden, channels, patch, _), t_max = _shape(arrays[0], 4), arrays[-1]
    if channels != 2 or t_max.numel() != 1:
        raise ValueError(f"its first array has shape {tuple(arrays[0].shape)}, its last {tuple(t_max.shape)}")
    _, patches = _shape(arrays[-3], 2)
    widths = [_shape(arrays[4 + skip], 2)[0] if blocks else 1 for skip in (0, 4)]
    side = patch * round(patches**0.5)
    with torch.device("meta"):
        network = GalaxyDenoiser(side, patch, hidden, *widths, blocks, t_max.item())
    state = dict(zip(_names(blocks), arrays[:-1], strict=True))
    for name in ("conv_in.bias", "conv_out.bias"):
        state[name] = state[name].flatten()
    # A transposed convolution of equinox keeps its kernel as the convolution of the spread-out input has it.
    state["conv_out.weight"] = state["conv_out.weight"].flip(2, 3).transpose(0, 1).contiguous()
    network.score.load_state_dict(state, assign=True)
    return network


def _shape(array, dimensions):
    if array.ndim != dimensions:
        raise ValueError(f"an array has shape {tuple(array.shape)}; {dimensions} dimensions were expected")
    return array.shape


def _names(blocks):
    """The names of a network's parameters in the order of a file."""
    mixers = [f"{mixer}_mixer.{layer}" for mixer in ("patch", "hidden") for layer in (0, 2)]
    parts = [f"blocks.{k}.{part}" for k in range(blocks) for part in (*mixers, "norm1", "norm2")]
    return [
        f"{part}.{kind}" for part in ("conv_in", "conv_out", *parts, "norm") for kind in ("weight", "bias")
    ]
