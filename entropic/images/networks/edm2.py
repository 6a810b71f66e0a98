"""The networks of EDM2, all sizes: a magnitude-preserving U-Net under EDM's preconditioning, for inference.

Parameters and buffers bear the names of the published states, which are float16. Kept so, the learned gains act as
published: gain / sqrt(fan-in) is rounded to float16. After `.float()` it is not, and D moves by some 1e-4.
Source: Karras et al. 2024 (arXiv:2312.02696), appendices A and B.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from entropic._check import integer
from entropic.images.networks.edm import (
    Denoiser,
    Unsupported,
    attend,
    check_sides,
    drawn,
    noise_levels,
    positive,
    resampled,
    split_heads,
)

__all__ = ["SIZES", "Precond", "UNet", "mp_cat", "mp_silu", "mp_sum", "normalize"]

# model_channels of the sizes; all else is the default of `UNet`.
SIZES = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}


class Precond(Denoiser):
    """EDM2's denoiser D(x; sigma, label); keyword arguments beyond those named are `UNet`'s.

    Call, result and errors as `Denoiser`. Its float16 needs a CUDA device; parameters may be float16 or float32.
    `sigma_data` is the data's standard deviation. Sources: Karras et al. 2024, figure 21; Karras et al. 2022, table 1.
    """

    step_noise_dtype = torch.float32

    def __init__(
        self,
        img_resolution,
        img_channels,
        label_dim,
        use_fp16=True,
        sigma_data=0.5,
        logvar_channels=128,
        **unet,
    ):
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, sigma_data)
        logvar_channels = integer("logvar_channels", logvar_channels, 1)
        self.unet = UNet(img_resolution, img_channels, label_dim, **unet)
        self.logvar_fourier = MPFourier(logvar_channels)
        self.logvar_linear = MPConv(logvar_channels, 1)
        self.config |= {
            "sigma_data": self.sigma_data,
            "logvar_channels": logvar_channels,
            **self.unet.config,
        }

    def raw(self, x, noise, classes):
        return self.unet(x, noise, classes)

    def logvar(self, sigma):
        """u(sigma) (N,): the learned logarithm of the weighted loss a dimension, at levels (N,) or a number (N = 1).

        exp(u) estimates (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 E|D - x_0|^2 / (C H W).
        ValueError: levels not finite or not above 0. Source: Karras et al. 2024, eqs 14 to 16.
        """
        sigma = noise_levels(sigma).to(self.logvar_linear.weight.device)
        *_, noise = self.coefficients(sigma)
        return self.logvar_linear(self.logvar_fourier(noise)).flatten()


class UNet(nn.Module):
    """F(x (N, img_channels, side, side), noise (N,), classes (N, label_dim)), shaped like x: configuration G.

    Level i has side img_resolution / 2^i and model_channels * channel_mult[i] channels; blocks attend where the
    side is one of `attn_resolutions` and the channels make at least one head. `dropout` is kept with the
    configuration and not applied. ValueError: sizes, balances or filters that do not fit.
    """

    def __init__(
        self,
        img_resolution,
        img_channels,
        label_dim,
        model_channels=192,
        channel_mult=(1, 2, 3, 4),
        channel_mult_noise=None,
        channel_mult_emb=None,
        num_blocks=3,
        attn_resolutions=(16, 8),
        label_balance=0.5,
        concat_balance=0.5,
        resample_filter=(1, 1),
        channels_per_head=64,
        dropout=0.0,
        res_balance=0.3,
        attn_balance=0.3,
        clip_act=256,
    ):
        super().__init__()
        if list(resample_filter) != [1, 1]:
            raise Unsupported(f"resample_filter = {list(resample_filter)}; [1, 1] is the one supported")
        self.config = {
            "model_channels": integer("model_channels", model_channels, 1),
            "channel_mult": [integer("channel_mult", mult, 1) for mult in channel_mult],
            "channel_mult_noise": channel_mult_noise,
            "channel_mult_emb": channel_mult_emb,
            "num_blocks": integer("num_blocks", num_blocks, 1),
            "attn_resolutions": [integer("attn_resolutions", side, 1) for side in attn_resolutions],
            "label_balance": _share("label_balance", label_balance),
            "concat_balance": _share("concat_balance", concat_balance),
            "resample_filter": [1, 1],
            "channels_per_head": integer("channels_per_head", channels_per_head, 1),
            "dropout": float(dropout),
            "res_balance": _share("res_balance", res_balance),
            "attn_balance": _share("attn_balance", attn_balance),
            "clip_act": None if clip_act is None else positive("clip_act", clip_act),
        }
        check_sides(img_resolution, channel_mult)
        widths = [model_channels * mult for mult in channel_mult]
        noise = widths[0] if channel_mult_noise is None else int(model_channels * channel_mult_noise)
        emb = max(widths) if channel_mult_emb is None else int(model_channels * channel_mult_emb)
        self.label_balance, self.concat_balance = label_balance, concat_balance
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier, self.emb_noise = MPFourier(noise), MPConv(noise, emb)
        self.emb_label = MPConv(label_dim, emb) if label_dim else None

        def block(wide_in, wide_out, flavor, attention=False, resample=None):
            heads = wide_out // channels_per_head if attention else 0
            balances = res_balance, attn_balance, self.config["clip_act"]
            return _Block(wide_in, wide_out, emb, flavor, resample, heads, *balances)

        self.enc, skips, wide = nn.ModuleDict(), [], img_channels + 1
        for level, out in enumerate(widths):
            side = img_resolution >> level
            name = f"{side}x{side}"
            if level == 0:
                self.enc[f"{name}_conv"] = MPConv(wide, out, (3, 3))
                wide = out
            else:
                self.enc[f"{name}_down"] = block(wide, wide, "enc", resample="down")
            skips.append(wide)
            for index in range(num_blocks):
                self.enc[f"{name}_block{index}"] = block(wide, out, "enc", side in attn_resolutions)
                wide = out
                skips.append(wide)
        self.dec = nn.ModuleDict()
        for level, out in reversed(list(enumerate(widths))):
            side = img_resolution >> level
            name = f"{side}x{side}"
            if level == len(widths) - 1:
                self.dec[f"{name}_in0"] = block(wide, wide, "dec", attention=True)
                self.dec[f"{name}_in1"] = block(wide, wide, "dec")
            else:
                self.dec[f"{name}_up"] = block(wide, wide, "dec", resample="up")
            for index in range(num_blocks + 1):
                merged = wide + skips.pop()
                self.dec[f"{name}_block{index}"] = block(merged, out, "dec", side in attn_resolutions)
                wide = out
        self.out_conv = MPConv(wide, img_channels, (3, 3))

    def forward(self, x, noise, classes):
        emb = self.emb_noise(self.emb_fourier(noise))
        if self.emb_label is not None:
            label = self.emb_label(classes * math.sqrt(classes.shape[1]))
            emb = mp_sum(emb, label, self.label_balance)
        emb = mp_silu(emb)
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        skips = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, _Block) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop(), self.concat_balance)
            x = layer(x, emb)
        return self.out_conv(x, self.out_gain)


class MPConv(nn.Module):
    """A convolution (a matrix where kernel is ()) whose weights have unit length per output channel; no bias.

    Source: Karras et al. 2024, eq. 66.
    """

    def __init__(self, wide_in, wide_out, kernel=()):
        super().__init__()
        self.weight = nn.Parameter(drawn("normal_", wide_out, wide_in, *kernel))

    def forward(self, x, gain=1.0):
        fan_in = self.weight[0].numel()
        # A float16 gain stays float16 here: the networks were published with that rounding.
        weight = normalize(self.weight.float()) * (gain / math.sqrt(fan_in))
        weight = weight.to(x.dtype)
        return F.linear(x, weight) if weight.ndim == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class MPFourier(nn.Module):
    """Random Fourier features (N, channels) of x (N,), float32, of unit variance (Karras et al. 2024, eq. 75)."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("freqs", drawn("normal_", channels, scale=2 * math.pi))
        self.register_buffer("phases", drawn("uniform_", channels, scale=2 * math.pi))

    def forward(self, x):
        angle = x.float()[:, None] * self.freqs.float() + self.phases.float()
        return angle.cos() * math.sqrt(2)


class _Block(nn.Module):
    """Two 3x3 convolutions, the second modulated by the embedding, and attention where there are heads."""

    def __init__(self, wide_in, wide_out, emb, flavor, resample, heads, res_balance, attn_balance, clip_act):
        super().__init__()
        self.flavor, self.resample, self.heads = flavor, resample, heads
        self.res_balance, self.attn_balance, self.clip_act = res_balance, attn_balance, clip_act
        if heads and wide_out % heads:
            raise ValueError(
                f"{wide_out} channels do not split into {heads} heads; take multiples of channels_per_head"
            )
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(wide_out if flavor == "enc" else wide_in, wide_out, (3, 3))
        self.emb_linear = MPConv(emb, wide_out)
        self.conv_res1 = MPConv(wide_out, wide_out, (3, 3))
        self.conv_skip = MPConv(wide_in, wide_out, (1, 1)) if wide_in != wide_out else None
        self.attn_qkv = MPConv(wide_out, 3 * wide_out, (1, 1)) if heads else None
        self.attn_proj = MPConv(wide_out, wide_out, (1, 1)) if heads else None

    def forward(self, x, emb):
        x = resampled(x, self.resample)
        if self.flavor == "enc":
            x = normalize(x if self.conv_skip is None else self.conv_skip(x), dim=1)
        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, self.emb_gain) + 1
        y = self.conv_res1(mp_silu(y * scale[:, :, None, None].to(y.dtype)))
        if self.flavor == "dec" and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, self.res_balance)
        if self.heads:
            y = attend(normalize(split_heads(self.attn_qkv(x), self.heads), dim=2), x)
            x = mp_sum(x, self.attn_proj(y), self.attn_balance)
        return x if self.clip_act is None else x.clip(-self.clip_act, self.clip_act)


def normalize(x, dim=None):
    """x over 1e-4 plus its root mean square along `dim` (all but the first where None); the norm in float32."""
    dim = list(range(1, x.ndim)) if dim is None else dim
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
    return x / (1e-4 + norm * math.sqrt(norm.numel() / x.numel())).to(x.dtype)


def mp_silu(x):
    """SiLU over 0.596: the second moment of standard normal entries is kept (Karras et al. 2024, eq. 81)."""
    return F.silu(x) / 0.596


def mp_sum(a, b, t):
    """Weighted sum, share t of b, of independent a and b: unit variance is kept (Karras et al. 2024, eq. 88)."""
    return a.lerp(b, t) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a, b, t=0.5):
    """Channels of a and b, share t of b: unit magnitude is kept, whatever their numbers.

    Source: Karras et al. 2024, eq. 103.
    """
    a_channels, b_channels = a.shape[1], b.shape[1]
    scale = math.sqrt((a_channels + b_channels) / ((1 - t) ** 2 + t**2))
    return torch.cat(
        [a * (scale * (1 - t) / math.sqrt(a_channels)), b * (scale * t / math.sqrt(b_channels))], 1
    )


def _share(name, value):
    value = float(value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} = {value}; it lies in [0, 1]")
    return value
