"""The networks of EDM: the DDPM++ U-Net under EDM's and under the variance-preserving preconditioning, for inference.

Parameters and buffers bear the names of the published states. Source: Karras et al. 2022 (arXiv:2206.00364),
table 1 and appendix F; the U-Net is the DDPM++ of Song et al. 2021 (arXiv:2011.13456).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from entropic import _check
from entropic._check import integer

__all__ = ["Denoiser", "EDMPrecond", "SongUNet", "Unsupported", "VPPrecond"]


class Unsupported(ValueError):
    """An architecture that the classes here do not build; the message says which one they build."""


class Denoiser(nn.Module):
    """What the published denoisers share: D(x; sigma, label) = c_skip x + c_out F(c_in x; c_noise, label).

    x (N, C, H, W) floating, sigma a number, (N,) or (N, 1, 1, 1), label (N,) int64 or None, the embedding of no
    class. Returns E[x_0 | x] in x's dtype; the preconditioning runs in float32, and F in float16 where `use_fp16`
    is set and x is on a CUDA device. ValueError: x, sigma or label of a wrong shape or dtype; sigma not finite or
    not above 0; a label outside the classes. Values are not looked at under torch.compile, nor on the meta device.
    Subclasses define `coefficients` and `raw`. `noise_dtype` is the type in which `generate` draws the noise of a
    seed, float32, and `step_noise_dtype` the one in which a sampler then draws, float64 (EDM2: float32), as the
    official samplers do. Source: Karras et al. 2022, eq. 7.
    """

    noise_dtype, step_noise_dtype = torch.float32, torch.float64

    def __init__(self, img_resolution, img_channels, label_dim, use_fp16, sigma_data):
        super().__init__()
        side, colours = integer("img_resolution", img_resolution, 1), integer("img_channels", img_channels, 1)
        self.shape = (colours, side, side)
        self.num_classes = integer("label_dim", label_dim, 0)
        self.use_fp16, self.sigma_data = bool(use_fp16), positive("sigma_data", sigma_data)
        self.config = {
            "img_resolution": side,
            "img_channels": colours,
            "label_dim": self.num_classes,
            "use_fp16": self.use_fp16,
        }

    def coefficients(self, sigma):
        """c_skip, c_out, c_in and c_noise of noise levels (N,) float32, each (N,)."""
        total = sigma.square() + self.sigma_data**2
        return (
            self.sigma_data**2 / total,
            sigma * self.sigma_data / total.sqrt(),
            total.rsqrt(),
            sigma.log() / 4,
        )

    def raw(self, x, noise, classes):
        """F itself: x (N, C, H, W) scaled, noise (N,) is c_noise, classes (N, num_classes) one-hot or zeros."""
        raise NotImplementedError

    def forward(self, x, sigma, label=None):
        if not x.is_floating_point() or x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"x is {x.dtype} of shape {tuple(x.shape)}; this network takes floats of shape "
                f"(N, {', '.join(map(str, self.shape))})"
            )
        sigma = noise_levels(sigma, len(x)).to(x.device).expand(len(x))
        classes = self._classes(x, label)
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        c_skip, c_out, c_in = (c[:, None, None, None] for c in (c_skip, c_out, c_in))
        x32, half = x.float(), self.use_fp16 and x.is_cuda
        raw = self.raw((c_in * x32).to(torch.float16 if half else torch.float32), c_noise, classes)
        return (c_skip * x32 + c_out * raw.float()).to(x.dtype)

    def _classes(self, x, label):
        if label is None:
            return x.new_zeros((len(x), self.num_classes), dtype=torch.float32)
        if self.num_classes == 0:
            raise ValueError("label was passed to an unconditional network; leave it out")
        if not isinstance(label, torch.Tensor) or label.dtype != torch.int64 or label.shape != (len(x),):
            raise ValueError(
                f"label is {_described(label)}; pass one int64 class for each of {len(x)} rows, or None"
            )
        if _has_values(label) and ((label < 0) | (label >= self.num_classes)).any():
            raise ValueError(
                f"label runs from {label.min()} to {label.max()}; classes are 0 to {self.num_classes - 1}"
            )
        return (label.to(x.device)[:, None] == torch.arange(self.num_classes, device=x.device)).float()


class _SongDenoiser(Denoiser):
    def __init__(self, img_resolution, img_channels, label_dim, use_fp16, sigma_data, model_type, unet):
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, sigma_data)
        if model_type != "SongUNet":
            raise Unsupported(f"model_type = {model_type!r}; 'SongUNet' is the one supported")
        self.model = SongUNet(
            img_resolution=img_resolution,
            in_channels=img_channels,
            out_channels=img_channels,
            label_dim=label_dim,
            **unet,
        )
        self.config |= {"model_type": model_type, **self.model.config}

    def raw(self, x, noise, classes):
        return self.model(x, noise, classes)


class EDMPrecond(_SongDenoiser):
    """EDM's preconditioning of a DDPM++ U-Net; keyword arguments beyond those named are `SongUNet`'s.

    Call, result and errors as `Denoiser`. `sigma_min` and `sigma_max` bound the levels a sampler may ask for.
    Source: Karras et al. 2022, table 1, last column.
    """

    def __init__(
        self,
        img_resolution,
        img_channels,
        label_dim=0,
        use_fp16=False,
        sigma_min=0,
        sigma_max=math.inf,
        sigma_data=0.5,
        model_type="SongUNet",
        **unet,
    ):
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, sigma_data, model_type, unet)
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        if not 0 <= self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min = {sigma_min}, sigma_max = {sigma_max}; pass 0 <= sigma_min < sigma_max"
            )
        self.config |= {"sigma_min": self.sigma_min, "sigma_data": self.sigma_data}
        if math.isfinite(self.sigma_max):  # JSON has no infinity
            self.config["sigma_max"] = self.sigma_max


class VPPrecond(_SongDenoiser):
    """The variance-preserving preconditioning: D = x - sigma F(x / sqrt(sigma^2 + 1); (M - 1) t(sigma)).

    sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1; `sigma_min` = sigma(epsilon_t), `sigma_max` = sigma(1).
    Call, result and errors as `Denoiser`; further keyword arguments are `SongUNet`'s. `sigma_data` is that of
    images in [-1, 1], and the network does not use it. Source: Karras et al. 2022, table 1, first column.

    The formulas are written so that float32 keeps all its digits. The official float32 code takes exp(...) - 1 and
    log(1 + sigma^2) and loses digits at small sigma: its `sigma_min` is 9.766e-4 where the formula gives 1.0005e-3
    (2.4 % less), and its c_noise differs from ours by up to 6 % below sigma = 0.002, 1.5 % up to 0.01, 0.06 % up to
    0.03, and 0.005 % above: by less than 0.001 of a c_noise that runs from 0.01 to 999.
    """

    def __init__(
        self,
        img_resolution,
        img_channels,
        label_dim=0,
        use_fp16=False,
        beta_d=19.9,
        beta_min=0.1,
        M=1000,
        epsilon_t=1e-5,
        model_type="SongUNet",
        **unet,
    ):
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, 0.5, model_type, unet)
        self.beta_d, self.beta_min = positive("beta_d", beta_d), positive("beta_min", beta_min)
        self.M, self.epsilon_t = integer("M", M, 2), positive("epsilon_t", epsilon_t)
        if self.epsilon_t >= 1:
            raise ValueError(f"epsilon_t = {epsilon_t}; it lies below 1, the end of the process")
        self.sigma_min, self.sigma_max = (
            math.sqrt(math.expm1(self.beta_d * t**2 / 2 + self.beta_min * t)) for t in (self.epsilon_t, 1.0)
        )
        self.config |= {
            "beta_d": self.beta_d,
            "beta_min": self.beta_min,
            "M": self.M,
            "epsilon_t": self.epsilon_t,
        }

    def sigma(self, t):
        """Noise levels at times t, a tensor: shaped like it, in its dtype."""
        return torch.expm1(t * (self.beta_d * t / 2 + self.beta_min)).sqrt()

    def sigma_inv(self, sigma):
        """Times at noise levels, a tensor: the inverse of `sigma`."""
        growth = torch.log1p(sigma.square())
        # The root written without a difference of near-equal numbers, for small sigma.
        return 2 * growth / (self.beta_min + (self.beta_min**2 + 2 * self.beta_d * growth).sqrt())

    def coefficients(self, sigma):
        noise = (self.M - 1) * self.sigma_inv(sigma)
        return torch.ones_like(sigma), -sigma, (sigma.square() + 1).rsqrt(), noise


class SongUNet(nn.Module):
    """The DDPM++ U-Net: F(x (N, in_channels, side, side), noise (N,), classes (N, label_dim)), shaped like x.

    Level i has side img_resolution / 2^i and model_channels * channel_mult[i] channels; blocks attend where the
    side is one of `attn_resolutions` (in the decoder only the last). `augment_dim` keeps the weights of augmentation
    labels, which sampling leaves at 0; `dropout` is kept with the configuration and not applied. ValueError: an
    architecture that is not supported, or sizes that do not fit.
    """

    def __init__(
        self,
        img_resolution,
        in_channels,
        out_channels,
        label_dim=0,
        augment_dim=0,
        model_channels=128,
        channel_mult=(1, 2, 2, 2),
        channel_mult_emb=4,
        num_blocks=4,
        attn_resolutions=(16,),
        dropout=0.10,
        label_dropout=0,
        embedding_type="positional",
        channel_mult_noise=1,
        encoder_type="standard",
        decoder_type="standard",
        resample_filter=(1, 1),
    ):
        super().__init__()
        given = {
            "embedding_type": embedding_type,
            "encoder_type": encoder_type,
            "decoder_type": decoder_type,
            "resample_filter": list(resample_filter),
        }
        supported = {
            "embedding_type": "positional",
            "encoder_type": "standard",
            "decoder_type": "standard",
            "resample_filter": [1, 1],
        }
        for name, value in given.items():
            if value != supported[name]:
                raise Unsupported(f"{name} = {value!r}; {supported[name]!r} is the one supported")
        self.config = {
            "augment_dim": integer("augment_dim", augment_dim, 0),
            "model_channels": integer("model_channels", model_channels, 4),
            "channel_mult": [integer("channel_mult", mult, 1) for mult in channel_mult],
            "channel_mult_emb": integer("channel_mult_emb", channel_mult_emb, 1),
            "num_blocks": integer("num_blocks", num_blocks, 1),
            "attn_resolutions": [integer("attn_resolutions", side, 1) for side in attn_resolutions],
            "dropout": float(dropout),
            "label_dropout": float(label_dropout),
            "channel_mult_noise": integer("channel_mult_noise", channel_mult_noise, 1),
            **given,
        }
        check_sides(img_resolution, channel_mult)
        if model_channels * channel_mult_noise % 2:
            raise ValueError(
                f"model_channels = {model_channels}; sines and cosines of the noise need an even one"
            )
        for mult in channel_mult:
            _groups(model_channels * mult)  # a ValueError now
        emb, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        self.noise_channels = noise
        self.map_label = _Linear(label_dim, noise) if label_dim else None
        self.map_augment = _Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = _Linear(noise, emb), _Linear(emb, emb)

        self.enc, skips, wide = nn.ModuleDict(), [], in_channels
        for level, mult in enumerate(channel_mult):
            side, out = img_resolution >> level, model_channels * mult
            name = f"{side}x{side}"
            if level == 0:
                self.enc[f"{name}_conv"] = _Conv2d(wide, model_channels, 3)
                wide = model_channels
            else:
                self.enc[f"{name}_down"] = _Block(wide, wide, emb, resample="down")
            skips.append(wide)
            for index in range(num_blocks):
                block = _Block(wide, out, emb, attention=side in attn_resolutions)
                self.enc[f"{name}_block{index}"] = block
                wide = out
                skips.append(wide)
        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            side, out = img_resolution >> level, model_channels * mult
            name = f"{side}x{side}"
            if level == len(channel_mult) - 1:
                self.dec[f"{name}_in0"] = _Block(wide, wide, emb, attention=True)
                self.dec[f"{name}_in1"] = _Block(wide, wide, emb)
            else:
                self.dec[f"{name}_up"] = _Block(wide, wide, emb, resample="up")
            for index in range(num_blocks + 1):
                attention = index == num_blocks and side in attn_resolutions
                block = _Block(wide + skips.pop(), out, emb, attention=attention)
                self.dec[f"{name}_block{index}"] = block
                wide = out
        self.dec[f"{name}_aux_norm"] = _GroupNorm(wide)
        self.dec[f"{name}_aux_conv"] = _Conv2d(wide, out_channels, 3)

    def forward(self, x, noise, classes):
        half = self.noise_channels // 2
        power = torch.arange(half, device=x.device, dtype=torch.float32) / max(half - 1, 1)
        angle = noise[:, None] * (1 / 10_000) ** power
        emb = torch.cat([angle.sin(), angle.cos()], 1)
        if self.map_label is not None:
            emb = emb + self.map_label(classes * math.sqrt(classes.shape[1]))
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        skips = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, _Block) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if "block" in name:
                x = torch.cat([x, skips.pop()], 1)
            if isinstance(layer, _Block):
                x = layer(x, emb)
            else:
                x = F.silu(layer(x)) if isinstance(layer, _GroupNorm) else layer(x)
        return x


class _Block(nn.Module):
    """Two 3x3 convolutions around an added embedding, and attention of one head where wanted."""

    def __init__(self, wide_in, wide_out, emb, resample=None, attention=False):
        super().__init__()
        self.norm0, self.conv0 = _GroupNorm(wide_in), _Conv2d(wide_in, wide_out, 3, resample)
        self.affine = _Linear(emb, wide_out)
        self.norm1, self.conv1 = _GroupNorm(wide_out), _Conv2d(wide_out, wide_out, 3)
        self.skip = _Conv2d(wide_in, wide_out, 1, resample) if resample or wide_in != wide_out else None
        self.attention = attention
        if attention:
            self.norm2 = _GroupNorm(wide_out)
            self.qkv, self.proj = _Conv2d(wide_out, 3 * wide_out, 1), _Conv2d(wide_out, wide_out, 1)

    def forward(self, x, emb):
        y = self.conv0(F.silu(self.norm0(x)))
        y = y + self.affine(emb)[:, :, None, None].to(y.dtype)
        y = self.conv1(F.silu(self.norm1(y)))
        x = ((x if self.skip is None else self.skip(x)) + y) * math.sqrt(0.5)
        if self.attention:
            x = (x + self.proj(attend(split_heads(self.qkv(self.norm2(x)), 1), x))) * math.sqrt(0.5)
        return x


def split_heads(qkv, heads):
    """(N, 3 C, H, W) -> (N, heads, C / heads, 3, H W): q, k and v lie innermost among the channels."""
    return qkv.reshape(len(qkv), heads, -1, 3, qkv.shape[2] * qkv.shape[3])


def attend(qkv, like):
    """Softmax attention between pixels of what `split_heads` returned; shaped (N, C, H, W), as `like`."""
    q, k, v = (part.transpose(2, 3).contiguous() for part in qkv.unbind(3))
    return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(like.shape)


def check_sides(img_resolution, channel_mult):
    """ValueError unless the side can be halved from each level to the next."""
    if not len(channel_mult) or img_resolution % 2 ** (len(channel_mult) - 1):
        raise ValueError(
            f"img_resolution = {img_resolution} does not fit channel_mult = {list(channel_mult)}; it is halved "
            f"from each level to the next"
        )


def drawn(how, *shape, scale=1.0):
    """`scale` times random numbers, drawn by the method `how` ("normal_", "uniform_"); empty on the meta device.

    There is nothing to fill on the meta device, and torch imports its compiler (1.5 s of CPU time) to find that out.
    """
    empty = torch.empty(shape)
    return empty if empty.is_meta else getattr(empty, how)() * scale


# Parameters are cast to the dtype of what comes in: float16 activations, float32 weights.


class _Linear(nn.Linear):
    def reset_parameters(self):
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class _Conv2d(nn.Conv2d):
    """Half the side by means of 2x2 squares ("down") or twice it by repetition ("up"), then a convolution."""

    def __init__(self, wide_in, wide_out, kernel, resample=None):
        super().__init__(wide_in, wide_out, kernel, padding=kernel // 2)
        self.resample = resample
        if resample:  # part of a published state; the filter itself is fixed
            self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25))

    def reset_parameters(self):
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x):
        x = resampled(x, self.resample)
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), padding=self.padding)


class _GroupNorm(nn.GroupNorm):
    def __init__(self, channels):
        super().__init__(_groups(channels), channels, eps=1e-6)

    def forward(self, x):
        return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), eps=self.eps)


def positive(name, value):
    """`_check.positive`, which looks at values, also while a network is built on the meta device."""
    with torch.device("cpu"):
        return _check.positive(name, value)


def resampled(x, how):
    """x at half its side ("down"), at twice it ("up"), or as it is (None): the filter [1, 1]."""
    if how == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2.0, mode="nearest") if how == "up" else x


def _groups(channels):
    groups = max(1, min(32, channels // 4))
    if channels % groups:
        raise ValueError(f"{channels} channels do not split into {groups} groups; take a multiple of 32")
    return groups


def noise_levels(sigma, rows=None):
    """Levels as float32, (1,) or (rows,), any number where None; ValueError unless finite and above 0."""
    try:
        levels = torch.as_tensor(sigma, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"sigma = {sigma!r} is not numeric; pass a number or a tensor") from error
    count = levels.numel()
    if count not in (levels.shape[:1] or (1,)) or (rows is not None and count not in (1, rows)):
        wanted = "one dimension" if rows is None else f"one for each of {rows} rows"
        raise ValueError(f"sigma has shape {tuple(levels.shape)}; pass a number or {wanted}")
    levels = levels.flatten()
    if _has_values(levels):
        bad = ~((levels > 0) & levels.isfinite())
        if bad.any():
            raise ValueError(f"sigma = {levels[bad][0].item()}; noise levels are finite and above 0")
    return levels


def _described(value):
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return repr(value)


def _has_values(tensor):
    return not (torch.compiler.is_compiling() or tensor.is_meta)
