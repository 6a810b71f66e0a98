"""Stability AI's VAE, which turns the latents of EDM2's ImageNet-512 networks into images; through diffusers."""

import sys
import warnings
from pathlib import Path

import torch

from entropic import _check
from entropic.files import environment_path
from entropic.images.networks.weights import fingerprint, plain_torch, reading
from entropic.images.wheels import mend_torchvision

__all__ = ["StabilityVAE", "latents_to_vae", "load_vae", "to_uint8_vae"]

_NAME = "stabilityai/sd-vae-ft-mse"
_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
_ABOUT = "335 MB, licence MIT"
# Mean and standard deviation of the VAE's latents over ImageNet, channel by channel; EDM2's latents have 0 and 1/2.
_MEAN = (5.81, 3.25, 0.12, -2.15)
_STD = (4.17, 4.62, 3.71, 3.28)


def latents_to_vae(x):
    """EDM2's latents (N, 4, H, W) as the VAE's, float32: (x - bias) / scale, channel by channel.

    scale = 0.5 / std and bias = -mean scale, in float32; the VAE's usual factor 0.18215 has no part in it.
    ValueError: another shape, NaN or infinity. Source: Karras et al. 2024 (EDM2).
    """
    if not isinstance(x, torch.Tensor):
        raise ValueError(f"x is a {type(x).__name__}; pass a tensor of floating latents (N, 4, H, W)")
    if x.ndim != 4 or x.shape[1] != 4 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}; pass floating latents (N, 4, H, W)")
    x = _check.check_finite("x", x).float()
    std, mean = (x.new_tensor(values)[:, None, None] for values in (_STD, _MEAN))  # float32, as x is
    scale = 0.5 / std
    bias = -mean * scale
    return (x - bias) / scale


def to_uint8_vae(x):
    """The VAE's output as uint8: x clamped to [0, 1], times 255, truncated; in float32 or better.

    EDM2 trained on latents of images in [0, 1], not in [-1, 1]. ValueError: x is not floating, or not finite.
    """
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise ValueError(f"x is {getattr(x, 'dtype', type(x).__name__)}; pass a floating output of the VAE")
    x = _check.check_finite("x", x).to(torch.promote_types(x.dtype, torch.float32))
    return (x.clamp(0, 1) * 255).to(torch.uint8)


class StabilityVAE:
    """Decoder of latents; `load_vae` makes one of the published weights.

    `autoencoder` is diffusers' AutoencoderKL with 4 latent channels; it is moved to `device` where one is given, and
    to `dtype`: float32, or on CUDA float16. `sha256` is that of its weights as they came, and `name`, also the
    repr, tells them and the dtype, so that a manifest can hold it. ValueError: arguments that do not fit.
    """

    def __init__(self, autoencoder, *, device=None, dtype=torch.float32):
        channels = autoencoder.config.latent_channels
        if channels != 4:
            raise ValueError(f"autoencoder has {channels} latent channels; pass one with 4, as {_NAME}")
        self.device = torch.device(autoencoder.device if device is None else device)
        if dtype not in (torch.float32, torch.float16) or (
            dtype == torch.float16 and self.device.type != "cuda"
        ):
            raise ValueError(
                f"dtype = {dtype} on {self.device}; pass torch.float32, or on CUDA torch.float16"
            )
        self.dtype = dtype
        self.factor = 2 ** (len(autoencoder.config.block_out_channels) - 1)
        self.sha256 = fingerprint(autoencoder)
        self.name = f"StabilityVAE(sha256={self.sha256}, dtype={str(dtype).removeprefix('torch.')})"
        self._autoencoder = autoencoder.to(self.device, dtype).eval().requires_grad_(False)

    def __repr__(self):
        return self.name

    def decode(self, latents, batch=8):
        """EDM2's latents (N, 4, H, W), on any device, as images uint8 (N, 3, 8 H, 8 W) on its own, `batch` at a time.

        Another `batch` moves the last bits of the arithmetic, and so a pixel by 1 here and there. ValueError: latents
        of another shape or not finite; an output that is not (float16 overflows: use float32).
        """
        batch = _check.integer("batch", batch, 1)
        _, _, height, width = latents_to_vae(latents[:1]).shape
        shape = (0, 3, self.factor * height, self.factor * width)
        images = [torch.empty(shape, dtype=torch.uint8, device=self.device)]
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            self.device,
            torch.autocast(self.device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            for start in range(0, len(latents), batch):
                z = latents_to_vae(latents[start : start + batch].to(self.device))
                pixels = self._autoencoder.decode(z.to(self.dtype)).sample
                if not torch.isfinite(pixels).all():
                    raise ValueError(
                        f"the VAE's output for latents[{start}:{start + len(z)}] is not finite in {self.dtype}; "
                        "look at the latents' size, and use torch.float32"
                    )
                images.append(to_uint8_vae(pixels))
        return torch.cat(images)


def load_vae(path=None, *, device=None, dtype=torch.float32):
    """Stability AI's published VAE, stabilityai/sd-vae-ft-mse, as a `StabilityVAE`.

    Read from the folder `path`, else from $ENTROPIC_VAE, else from Hugging Face's cache, into which it is downloaded
    where it is absent, telling size and licence. A folder holds config.json and
    diffusion_pytorch_model.safetensors; pickles are not read. ModuleNotFoundError: no diffusers.
    FileNotFoundError: no such files and no server, with where to get them and where to put them. ValueError:
    files that are torn or do not fit each other.
    """
    autoencoder = autoencoder_class()
    path = path or environment_path("ENTROPIC_VAE") or _NAME
    files = f"{' and '.join(_FILES)} ({_ABOUT}) from https://huggingface.co/{_NAME}"

    def read(**options):
        with plain_torch():
            return autoencoder.from_pretrained(
                str(path),
                use_safetensors=True,
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,
                output_loading_info=True,
                **options,
            )

    again = f"get {files} again"
    if str(path) == _NAME and not Path(path).is_dir():
        try:
            network, info = read(local_files_only=True)
        except OSError:
            print(f"Downloading {_NAME}, {_ABOUT}.", file=sys.stderr, flush=True)
            try:
                network, info = read()
            except OSError as error:
                raise FileNotFoundError(
                    f"{_NAME} is not in Hugging Face's cache and cannot be had ({error}); get {files}, and put them "
                    "into a folder that is passed as path, or named by $ENTROPIC_VAE"
                ) from error
        except Exception as error:
            raise ValueError(f"{_NAME} in Hugging Face's cache cannot be read ({error}); {again}") from error
    else:
        missing = [name for name in _FILES if not (Path(path) / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{path} lacks {' and '.join(missing)}; get {files}, and put them there")
        with reading(path, again):
            network, info = read(local_files_only=True)
    unfit = {kind: names for kind, names in info.items() if names}
    if unfit:  # what is missing would be random
        raise ValueError(f"{path}: weights do not fit the configuration ({unfit}); {again}")
    return StabilityVAE(network, device=device, dtype=dtype)


def autoencoder_class():
    """Diffusers' AutoencoderKL; ModuleNotFoundError says what to install."""
    try:
        mend_torchvision()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tqdm's advice on widgets, in a notebook
            from diffusers import AutoencoderKL
    except ModuleNotFoundError as error:
        raise _check.not_installed(error, "vae") from error
    return AutoencoderKL
