"""DINOv2's vision transformer (Oquab et al. 2024), which turns images into the features of FD-DINOv2.

Written to load the public file dinov2_vitl14_pretrain.pth (Apache License 2.0) under its own parameter names.
"""

import math
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from entropic._check import check_finite
from entropic.images.networks.weights import plain_torch, safe_tensors

__all__ = ["DINOv2", "load_dinov2", "preprocess", "resize_positions"]

SIDE, PATCH = 224, 14  # pixels; the network was trained at 518, its positions are resized to 224
_HEAD = 64  # features of an attention head, at every published size
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DINOv2(nn.Module):
    """Features (N, width) float32 of images uint8 (N, 3, H, W): the layer-normed class token. Defaults: ViT-L/14.

    `grid`: patches along a side at which the positions were learnt. ValueError: images of another type or shape,
    or a width that is no multiple of 64.
    """

    def __init__(self, width=1024, depth=24, grid=37):
        super().__init__()
        if width < _HEAD or width % _HEAD:
            raise ValueError(f"width = {width}; it must be a multiple of {_HEAD}, the features of a head")
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # in the file, for training only
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images):
        x = self.patch_embed["proj"](preprocess(images)).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        x = x + resize_positions(self.pos_embed, SIDE // PATCH)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0])


class _Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn, self.ls1, self.ls2 = _Attention(width), _Scale(width), _Scale(width)
        layers = {"fc1": nn.Linear(width, 4 * width), "gelu": nn.GELU(), "fc2": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, _HEAD)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.gamma * x


def preprocess(images):
    """Images uint8 (N, 3, H, W) as the network takes them: float32 (N, 3, 224, 224), about zero mean and unit spread.

    Bicubic with antialias, overshoots kept, then ImageNet's mean and standard deviation: as in EDM2's reference
    statistics. torch-fidelity's own DINOv2 resizes bilinearly, which gives other distances.
    ValueError: images of another type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images are {images.dtype} {tuple(images.shape)}; pass uint8 (N, 3, H, W), 0 to 255"
        )
    x = F.interpolate(images.float(), size=(SIDE, SIDE), mode="bicubic", antialias=True)
    mean, std = (x.new_tensor(values).reshape(3, 1, 1) for values in (_MEAN, _STD))
    return (x / 255 - mean) / std


def resize_positions(positions, grid):
    """Position embeddings (1, 1 + g^2, F) of class token and patches, for grid^2 patches: (1, 1 + grid^2, F) float32.

    Bicubic without antialias, at the scale (grid + 0.1) / g: the 0.1 is historic, and the published features have it.
    """
    positions = positions.float()
    learnt = math.isqrt(positions.shape[1] - 1)
    if learnt == grid:
        return positions
    patches = positions[:, 1:].mT.unflatten(2, (learnt, learnt))
    scale = (grid + 0.1) / learnt
    patches = F.interpolate(patches, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    return torch.cat([positions[:, :1], patches.flatten(2).mT], 1)


def load_dinov2(path):
    """The network of a weight file (.pth, read without running code, or .safetensors), in evaluation mode, float32.

    Width, depth and grid are the file's. FileNotFoundError: no such file. ValueError: another kind of file, or
    tensors of other names or shapes, or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; name DINOv2's weights, dinov2_vitl14_pretrain.pth")
    load = safe_tensors().torch.load_file if path.suffix == ".safetensors" else _load_pickle
    with plain_torch():
        try:
            state = load(path)
        except Exception as error:  # torch and zipfile raise some ten kinds
            said = f"{type(error).__name__}: {error}"
            raise ValueError(f"path = {path} is no file of weights ({said}); fetch it again") from error
        try:
            state = {name: check_finite(name, value.float()) for name, value in state.items()}
            width, positions = state["cls_token"].shape[-1], state["pos_embed"].shape[1]
            depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
            with torch.device("meta"):
                network = DINOv2(width, depth, math.isqrt(positions - 1))
            network.load_state_dict(state, assign=True)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise ValueError(f"path = {path} holds no weights of DINOv2 without registers; {said}") from error
    return network.requires_grad_(False).eval()


def _load_pickle(path):
    return torch.load(path, map_location="cpu", weights_only=True)
