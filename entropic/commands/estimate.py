"""`entropic estimate ... --out curve.npz`: the error curve of a network, from calls of it or from its training log."""

import os
import sys
from pathlib import Path

import torch

from entropic import _check
from entropic.commands import SOURCES, sources
from entropic.estimate import curve_from_training_log, estimate
from entropic.paths import range_of
from entropic.saved import save_curve
from entropic.schedules import edm_sigmas


def run(arguments):
    """Measure a curve and save it, with its provenance. ValueError, OSError: bad input."""
    given = [name for name in SOURCES if getattr(arguments, name) is not None]
    if len(given) != 1:
        raise ValueError(f"pass one of {', '.join('--' + name for name in SOURCES)}, not {len(given)}")
    _check_early(arguments)
    for option, source in (("data", "denoiser"), ("prompts", "pipeline"), ("guidance", "pipeline")):
        if getattr(arguments, option) is not None and given != [source]:
            raise ValueError(f"--{option} belongs to --{source}, which is not given")
    if arguments.log is not None:
        curve = curve_from_training_log(arguments.log)
        save_curve(arguments.out, curve, source=f"training log {Path(arguments.log).name}")
        return sources.say(f"{len(curve.sigma)} levels from the log, no network call: {arguments.out}")
    if arguments.denoiser is not None and arguments.data is None:
        raise ValueError(
            "--denoiser needs --data FILE: states as it expects them, .npy, or .npz with x and labels"
        )
    denoiser, x, labels, about = _SOURCES[given[0]](arguments)
    low, high = range_of(denoiser, arguments.sigma_min, arguments.sigma_max)
    count, samples = arguments.levels, min(arguments.samples, len(x))
    sources.say(f"{count} levels, {samples} samples each: {count * samples:,} calls of the network")
    found = estimate(
        denoiser,
        x.to(arguments.device),
        edm_sigmas(count, low, high)[:-1].flip(0),
        labels=labels.to(arguments.device) if torch.is_tensor(labels) else labels,  # a pipeline moves its own
        samples=samples,
        seed=arguments.seed,
        batch=arguments.batch,
        common_noise=False,
        progress=sys.stderr.isatty(),
    )
    save_curve(arguments.out, found.curve(), **about, levels=count, samples=samples, seed=arguments.seed)
    sources.say(f"kept in {arguments.out}; next: entropic place -n 10 --curve {arguments.out} --solver heun")


def _check_early(arguments):
    """ValueError for what would else be found out after hours of calls."""
    out = Path(arguments.out)
    if out.suffix != ".npz":
        raise ValueError(f"out = {out}; a curve is kept in a file that ends in .npz")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(
            f"out = {out}; its folder does not exist or cannot be written: make it, or pass another"
        )
    for name, least in (("levels", 4), ("samples", 2), ("seed", 0), ("batch", 1), ("steps", 1)):
        _check.integer(name, getattr(arguments, name), least)
    ends = [getattr(arguments, name) for name in ("sigma_min", "sigma_max")]
    if None not in ends:
        _check.sigma_range(*ends)
    sources.check_device(arguments.device)


_SOURCES = {"denoiser": sources.users, "network": sources.shipped, "pipeline": sources.pipeline}
