"""Argument checks shared by the core: every message names the argument, its value and the remedy."""

import numbers

import numpy as np
import torch

SLACK = 2.0**-22  # relative: a range's end may have been rounded to float32, which is off by 2^-24


def as_float64(name, value):
    """Return `value` as a float64 tensor; ValueError where it cannot be one, is complex or is not finite."""
    if _complex(value):
        raise ValueError(f"{name} is complex; pass real numbers, say its .real")
    if isinstance(value, np.ndarray) and not (value.flags.writeable and min(value.strides, default=0) >= 0):
        value = value.copy()  # torch warns of an array that is not writable and refuses a reversed one
    try:
        device = value.device if torch.is_tensor(value) else "cpu"  # whatever torch's default device is
        tensor = torch.as_tensor(value, dtype=torch.float64, device=device)
    except OverflowError as error:
        raise ValueError(f"{name} = {_short(value)} is too large; the largest number is 1.8e308") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} = {_short(value)} is not numeric; pass numbers, an array or a tensor"
        ) from error
    return check_finite(name, tensor)


def _complex(value):
    """Whether there is a complex number in `value`, of which a cast would drop the imaginary part."""
    if isinstance(value, (list, tuple)):
        return any(map(_complex, value))
    return value.is_complex() if torch.is_tensor(value) else np.iscomplexobj(value)


def _short(value):
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ... ({len(text)} characters)"


def check_finite(name, tensor):
    """Return `tensor`; ValueError if it holds NaN or infinity."""
    bad = ~torch.isfinite(tensor)
    if bad.any():
        index = tuple(bad.nonzero()[0].tolist())
        raise ValueError(f"{name}{list(index)} = {tensor[index].item()}; every entry must be finite")
    return tensor


def positive(name, value):
    """Return `value` as a float; ValueError unless it is finite and above 0."""
    number = _number(name, value, "above 0")
    if not number > 0:
        raise ValueError(f"{name} = {number}; it must be above 0")
    return number


def between(name, value, low, high):
    """Return `value` as a float; ValueError unless it is from `low` to `high`."""
    number = _number(name, value, f"from {low:g} to {high:g}")
    if not low <= number <= high:
        raise ValueError(f"{name} = {number}; it must be from {low:g} to {high:g}")
    return number


def _number(name, value, wanted):
    number = as_float64(name, value)
    if isinstance(value, bool | np.bool_) or number.numel() != 1:
        raise ValueError(f"{name} = {_short(value)}; pass one number {wanted}")
    return number.item()


def flag(name, value):
    """Return `value` as a bool; ValueError unless it is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} = {_short(value)}; pass True or False")
    return bool(value)


def integer(name, value, minimum):
    """Return `value` as an int; ValueError unless it is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(f"{name} = {value!r}; it must be a whole number of at least {minimum}")
    return int(value)


def sigma_range(sigma_min, sigma_max, sigma=None):
    """Return both ends as floats; ValueError unless 0 < sigma_min < sigma_max.

    An end that is None is that of the ascending levels `sigma` of a curve.
    """
    if sigma is not None:
        sigma_min = sigma[0] if sigma_min is None else sigma_min
        sigma_max = sigma[-1] if sigma_max is None else sigma_max
    low, high = positive("sigma_min", sigma_min), positive("sigma_max", sigma_max)
    if low >= high:
        raise ValueError(f"sigma_min = {low} is not below sigma_max = {high}; swap or widen them")
    return low, high


def schedule(sigmas):
    """Return `sigmas` as float64; ValueError unless it descends strictly, has two or more entries and ends in 0."""
    sigmas = as_float64("sigmas", sigmas)
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(
            f"sigmas has shape {tuple(sigmas.shape)}; pass one dimension, at least [sigma_max, 0]"
        )
    if sigmas[-1] != 0:
        raise ValueError(f"sigmas[-1] = {sigmas[-1].item()}; append 0, a sampler ends at the data")
    if not (sigmas.diff() < 0).all():
        index = int((sigmas.diff() >= 0).nonzero()[0])
        pair = f"sigmas[{index}:{index + 2}] = {sigmas[index : index + 2].tolist()}"
        raise ValueError(f"{pair} does not descend; sort it and drop duplicates")
    return sigmas


def levels(sigma):
    """Return `sigma` as float64; ValueError unless every entry is finite and above 0."""
    sigma = as_float64("sigma", sigma)
    if not (sigma > 0).all():
        raise ValueError(f"sigma = {sigma.min().item()}; a noise level of an error curve is above 0")
    return sigma


def ascending(sigma, least=2):
    """Return `sigma` (n,) as float64; ValueError unless it ascends strictly, above 0, and n >= `least`."""
    sigma = levels(sigma)
    if sigma.ndim != 1 or len(sigma) < least:
        raise ValueError(f"sigma has shape {tuple(sigma.shape)}; pass one dimension, {least} levels or more")
    if not (sigma.diff() > 0).all():
        index = int((sigma.diff() <= 0).nonzero()[0])
        pair = sigma[index : index + 2].tolist()
        raise ValueError(f"sigma[{index}:{index + 2}] = {pair} does not ascend; sort it, drop duplicates")
    return sigma


def inside(name, value, low, high, said, slack=0.0):
    """Return `value` cut to [low, high]; ValueError, which ends in `said`, where it is outside by a share > `slack`."""
    bad = ~((value >= low * (1 - slack)) & (value <= high * (1 + slack)))
    if bad.any():
        raise ValueError(f"{name} = {value[bad].flatten()[0].item()}{said}")
    return value.clamp(low, high)


def mean_square(name, value):
    """Return `value` as float64; ValueError unless every entry is finite and at least 0."""
    value = as_float64(name, value)
    if not (value >= 0).all():
        raise ValueError(f"{name} = {value.min().item()}; it is a mean of squares, at least 0")
    return value


def denoised(answer, x, sigma, where=""):
    """Return a copy of what a denoiser answered for x, in x's dtype; ValueError unless real, finite, shaped like x.

    `where`: words before the level in the message, such as the step of a sampler. The last check costs one pass over
    the answer and, on a GPU, a wait for it: the next step is queued only when this one is done.
    """
    if not isinstance(answer, torch.Tensor):
        raise ValueError(
            f"denoiser returned a {type(answer).__name__} at {where}sigma = {sigma}; it must return a tensor"
        )
    if answer.shape != x.shape:
        raise ValueError(
            f"denoiser returned shape {tuple(answer.shape)} for x of shape {tuple(x.shape)}; they must agree"
        )
    if not answer.is_floating_point():
        raise ValueError(
            f"denoiser returned {answer.dtype} at {where}sigma = {sigma}; it must return real numbers"
        )
    answer = answer.to(dtype=x.dtype, device=x.device, copy=True)
    finite = torch.isfinite(answer)
    if not finite.all():
        bad = int((~finite).flatten(1).any(1).sum()) if x.ndim > 1 else int((~finite).sum())
        raise ValueError(
            f"denoiser returned NaN or infinity at {where}sigma = {sigma}, in {bad} of {len(x)} rows; look at its "
            f"argument there, of type {x.dtype}, and at its weights"
        )
    return answer


def multiplicity(value, count):
    """Return `value` (count,) as float64, ones where it is None; ValueError unless each is above 0."""
    if value is None:
        return torch.ones(count, dtype=torch.float64)
    value = as_float64("multiplicity", value)
    if value.shape != (count,) or not (value > 0).all():
        raise ValueError(f"multiplicity = {value}; pass one above 0 for each of the {count} directions")
    return value


def check_scale(x, name="x"):
    """Return a whole set of states or pixels; ValueError if it is empty or no value in it is below 0.

    Numbers alone cannot tell pixels in [0, 1] from bright ones in [-1, 1]. But in a whole set of pixels in [-1, 1]
    black is -1, and latents are centred near 0: both have negative values. Pixels in [0, 1] or from 0 to 255
    have none, and a network would denoise them without a warning.
    """
    if not x.numel():
        raise ValueError(f"{name} has shape {tuple(x.shape)}, so it is empty; pass one state or more")
    if not (x < 0).any():
        raise ValueError(
            f"{name} runs from {x.min().item():g} to {x.max().item():g}, as pixels in [0, 1] or from 0 to 255 do; "
            "pass pixels in [-1, 1] (2 x - 1, or to_pixels of uint8) or latents"
        )
    return x


def not_installed(error, extra):
    """The ModuleNotFoundError that says, in place of `error`, what to install: the package with one of its extras."""
    return ModuleNotFoundError(
        f"{error.name} is not installed; pip install 'entropic-time[{extra}]'", name=error.name
    )
