"""`entropic schedule NAME -n 16 ...`: the sigmas of a schedule, for use anywhere."""

import io
import math
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from entropic import _check, placement, schedules
from entropic.commands import CLOSED_FORMS, OF_A_SOLVER, OF_DATA
from entropic.commands.convert import formatted
from entropic.curve import ErrorCurve
from entropic.gaussian import goal_of
from entropic.saved import load_curve, save_schedule

_MOST = 100_000
_LARGEST_ALPHA = 100
_EDM_RANGE = (0.002, 80.0)
_LEVELS_PER_E_FOLD = 32  # of the curve of a given spectrum: its spline is good to 1e-8


class Data(NamedTuple):
    """What a schedule is made from: a curve, or the spectrum of Gaussian data; and where it came from."""

    curve: ErrorCurve
    multiplicity: torch.Tensor | None
    amplitudes: torch.Tensor | None
    variances: torch.Tensor | None
    told: dict


def run(arguments):
    """Print the sigmas, and save them where --out says so. ValueError, OSError: bad input."""
    sigmas, told = _made(arguments)
    if arguments.out:
        save_schedule(arguments.out, sigmas, **told)
    print(formatted(sigmas, told, arguments.format), flush=True)


def check_n(n):
    """n; ValueError where it is no number of levels."""
    if _check.integer("n", n, 2) > _MOST:
        raise ValueError(f"n = {n}; no sampler takes more than {_MOST} steps")
    return n


def _made(arguments):
    """(sigmas, provenance) of the command line."""
    name, n = arguments.name, check_n(arguments.n)
    low, high = arguments.sigma_min, arguments.sigma_max
    if arguments.curve is None:
        low, high = _check.sigma_range(low, high, _EDM_RANGE)
    given = [option for option in ("curve", "variances", "preset") if getattr(arguments, option) is not None]
    if len(given) > 1:
        raise ValueError(f"--{given[0]} and --{given[1]} are both given; the data is one of them")
    if name not in OF_A_SOLVER:
        _refuse(arguments, ("solver", "metric", "alpha", "free-end"), " or ".join(OF_A_SOLVER))
    if name in CLOSED_FORMS:
        _refuse(arguments, given, ", ".join(OF_DATA))
    if name != "solver-aware":
        _refuse(arguments, ("explain",), "solver-aware, whose choice it tells")
    if name in OF_A_SOLVER and arguments.solver is None:
        raise ValueError(f"{name} needs --solver: the grid is made for one")
    elif arguments.alpha is not None and not abs(arguments.alpha) <= _LARGEST_ALPHA:
        raise ValueError(
            f"alpha = {arguments.alpha}; variance^alpha leaves the range of numbers: pass one between "
            f"-{_LARGEST_ALPHA} and {_LARGEST_ALPHA} (0.75 suits features of images, 1 squared distances)"
        )
    told = {"schedule": name}
    if name in CLOSED_FORMS:
        return getattr(schedules, f"{name}_sigmas")(n, low, high), told
    if name == "arctan":
        if given not in ([], ["preset"]):
            raise ValueError(f"arctan is made for one scale; pass --preset C, not --{given[0]}")
        c = 1.0 if arguments.preset is None else arguments.preset
        return schedules.arctan_sigmas(n, low, high, c), told | {"c": c}
    data = _data(arguments, name, low, high)
    told |= data.told
    if name in OF_A_SOLVER:
        return _solver_aware(arguments, data, low, high, told)
    if name == "spectral":
        if data.amplitudes is None:
            raise ValueError(
                f"{arguments.curve} holds no amplitudes; save the curve with directions and amplitudes"
            )
        return schedules.spectral_sigmas(n, data.curve, data.amplitudes, low, high), told
    place = {"entropic": schedules.entropic_sigmas, "rescaled": schedules.rescaled_sigmas}[name]
    return place(n, data.curve, low, high), told


def _refuse(arguments, options, others):
    """ValueError where one of the options is given; `others`: the schedules that take them."""
    for option in options:
        if getattr(arguments, option.replace("-", "_")) not in (None, False):
            raise ValueError(f"--{option} has no effect on {arguments.name}; leave it out, or use {others}")


def _solver_aware(arguments, data, low, high, told):
    if None not in (arguments.metric, arguments.alpha):
        raise ValueError(
            f"--metric and --alpha are both given; alpha = {arguments.alpha} replaces the metric"
        )
    alpha = arguments.alpha
    if arguments.metric is None and alpha is None:
        alpha = placement.DEFAULT.alpha
    n, solver, metric = arguments.n, arguments.solver, arguments.metric or "w2"
    aware = arguments.name == "solver-aware"
    # As in the functions: a solver-aware grid's last level is free unless it is given.
    free_end = arguments.free_end or (aware and arguments.sigma_min is None)
    options = {"multiplicity": data.multiplicity, "free_end": free_end}
    told |= {"solver": solver, "metric": arguments.metric, "alpha": alpha, "free_end": free_end}
    if aware:
        chosen = placement.plan(n, data.curve, solver, goal_of(metric, alpha), low, high, **options)
        if arguments.explain:
            print(chosen.explain(), file=sys.stderr)
        told["method"], found = chosen.method, chosen.sigmas
    elif data.variances is None:
        raise ValueError(
            "gaussian-optimal is made for a spectrum; pass --variances or --preset, or use solver-aware"
        )
    else:
        found = placement.gaussian_optimal_sigmas(
            data.variances, n, solver, metric, low, high, alpha=alpha, **options
        )
    return found, told


def _data(arguments, name, low, high):
    """The `Data` that --curve, --variances or --preset names."""
    if arguments.curve is not None:
        saved = load_curve(arguments.curve)
        told = {"data": f"curve {Path(arguments.curve).name}", "curve": saved.curve}
        return Data(saved.curve, saved.multiplicity, saved.amplitudes, None, told)
    if arguments.variances is not None:
        variances = _numbers(Path(arguments.variances))
        told = {"data": f"variances {Path(arguments.variances).name}"}
    elif arguments.preset is not None:
        c = _check.positive("preset", arguments.preset)
        variances, told = _check.as_float64("variances", [c * c]), {"data": f"Gaussian of deviation {c}"}
    else:
        raise ValueError(f"{name} needs data: pass --curve, --variances or --preset")
    curve, multiplicity, variances = _gaussian(variances, low, high)
    return Data(curve, multiplicity, variances.sqrt() * multiplicity, variances, told | {"curve": curve})


def _gaussian(variances, low, high):
    """(curve, multiplicity (m,), variances (m,)) of Gaussian data, equal variances taken together."""
    if variances.ndim != 1 or not (variances >= 0).all() or not (variances > 0).any():
        raise ValueError(
            f"variances of shape {tuple(variances.shape)} run from {variances.min().item()} to "
            f"{variances.max().item()}; pass one dimension, none below 0 and one above"
        )
    dim, total = len(variances), variances.sum().item()
    # A direction without variance is known from the start: no grid matters to it.
    variances, multiplicity = variances[variances > 0].unique(return_counts=True)
    levels = 4 + math.ceil(_LEVELS_PER_E_FOLD * (math.log(high) - math.log(low)))
    sigma = torch.linspace(math.log(low), math.log(high), levels, dtype=torch.float64).exp()
    sigma[0], sigma[-1] = low, high
    square = sigma.square()[:, None]
    parts = multiplicity * variances * square / (variances + square)
    curve = ErrorCurve(sigma, parts.sum(1), dim=dim, total_variance=total, directions=parts)
    return curve, multiplicity.double(), variances


def _numbers(path):
    """The variances of a file, (m,) float64: *.npy of one dimension, or text of one number a line or of one line."""
    content = path.read_bytes()
    if path.suffix == ".npy":
        stream = io.BytesIO(content)
        try:
            found = np.lib.format.read_array(stream, allow_pickle=False)
        except Exception as error:  # a damaged header fails in a dozen ways
            raise ValueError(f"{path} is no whole npy ({error or type(error).__name__})") from error
        if stream.tell() != len(content):
            raise ValueError(f"{path} is no whole npy (bytes are left after its {found.size} numbers)")
        if found.dtype.kind not in "fiu":
            raise ValueError(f"{path} holds {found.dtype}; pass real numbers")
        if found.ndim != 1:
            raise ValueError(f"{path} holds an array of shape {found.shape}; pass one dimension")
        return _filled(path, torch.from_numpy(found.astype(np.float64)))
    try:
        words = _words(content.decode("utf-8-sig"))
        return _filled(path, _check.as_float64("variances", [_number(word) for word in words]))
    except ValueError as error:
        raise ValueError(
            f"{path}: {error}; pass numbers only, without a heading, one a line or all in one line"
        ) from error


def _words(text):
    """The numbers of a text, as written. ValueError: rows and columns, or separators of more than one kind."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    split = [re.split(r"\s*[,;]\s*|\s+", line) for line in lines]
    if len(lines) > 1:
        for number, (line, words) in enumerate(zip(lines, split, strict=True), 1):
            if len(words) > 1:
                raise ValueError(
                    f"line {number} of {len(lines)} is {line[:60]!r}, with {len(words)} numbers or a decimal comma"
                )
        return lines
    separators = re.findall(r"\s*[,;]\s*|\s+", lines[0]) if lines else []
    found = {re.sub(r"\s+", " ", each) for each in separators}  # "," and ", " are not the same
    whole = all(word.isdecimal() for words in split for word in words)
    if len(found) > 1 or (found == {","} and whole and len(split[0]) == 2):
        raise ValueError(
            f"{lines[0][:60]!r} may be read in two ways: a comma may part two numbers or a number's decimals"
        )
    return split[0] if split else []


def _number(word):
    if "_" in word:
        raise ValueError(f"could not convert string to float: {word!r}")
    return float(word)


def _filled(path, numbers):
    if not numbers.numel():
        raise ValueError(f"{path} holds no number")
    return _check.check_finite("variances", numbers)
