"""`entropic estimate ... --out curve.npz`: the error curve of a network, from calls of it or from its training log."""

import importlib
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

from entropic import _check
from entropic.commands import SOURCES
from entropic.estimate import curve_from_training_log, estimate
from entropic.saved import save_curve
from entropic.schedules import edm_sigmas

_RANGE = 0.002, 80.0  # of a denoiser that does not tell its own


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
        return _say(f"{len(curve.sigma)} levels from the log, no network call: {arguments.out}")
    denoiser, x, labels, about = _SOURCES[given[0]](arguments)
    low = _end(arguments.sigma_min, denoiser, "sigma_min", _RANGE[0])
    high = _end(arguments.sigma_max, denoiser, "sigma_max", _RANGE[1])
    count, samples = arguments.levels, min(arguments.samples, len(x))
    _say(f"{count} levels, {samples} samples each: {count * samples:,} calls of the network")
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
    _say(f"kept in {arguments.out}; next: entropic place -n 10 --curve {arguments.out} --solver heun")


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
    try:
        torch.empty(0, device=arguments.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device = {arguments.device!r} cannot be had ({error}); pass cpu, or cuda"
        ) from error


def _say(text):
    print(text, file=sys.stderr, flush=True)


def _end(given, denoiser, name, default):
    """An end of the range: as given, or the denoiser's own, or the default where its own is 0 or infinite."""
    own = getattr(denoiser, name, None)
    own = float(own) if own is not None and 0 < float(own) < float("inf") else default
    return own if given is None else _check.positive(name, given)


def _denoiser(arguments):
    """A callable of the user's, MODULE:NAME, and states of a file."""
    if arguments.data is None:
        raise ValueError(
            "--denoiser needs --data FILE: states as it expects them, .npy, or .npz with x and labels"
        )
    module, _, name = arguments.denoiser.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        if not all(word.isidentifier() for word in module.split(".")):
            raise ValueError(f"{module!r} is no name of a module, which has neither folder nor .py")
        found = getattr(importlib.import_module(module), name)
        if not callable(found):
            raise ValueError(f"{name} is {found!r}")
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"denoiser = {arguments.denoiser!r} cannot be had ({error}); pass MODULE:NAME, a module of this folder and "
            "a callable (x, sigma) or (x, sigma, labels) in it"
        ) from error
    x, labels = _states(Path(arguments.data))
    return found, x, labels, {"network": arguments.denoiser, "data": Path(arguments.data).name}


def _states(path):
    try:
        arrays = np.load(path, allow_pickle=False)
        arrays = (
            {"x": arrays} if isinstance(arrays, np.ndarray) else {name: arrays[name] for name in arrays.files}
        )
        states = [torch.from_numpy(arrays[name]) if name in arrays else None for name in ("x", "labels")]
    except (ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no whole .npy or .npz of numbers ({error})") from error
    if states[0] is None or states[0].ndim == 0:
        raise ValueError(
            f"{path} holds {sorted(arrays)}; it must hold x (N, ...), and may hold labels (N, ...)"
        )
    return states


def _shipped(arguments):
    """The network and the images that are in the package."""
    from entropic.images.data import load_images, to_pixels
    from entropic.images.networks import load_network

    network = load_network(arguments.network).to(arguments.device)
    data = load_images("fashion-mnist", "train", "embedded")
    about = {"network": arguments.network, "data": "Fashion-MNIST (embedded subset)"}
    return network, to_pixels(data.images), torch.as_tensor(data.labels), about


def _pipeline(arguments):
    """A pipeline of diffusers and samples of its own, one for each prompt."""
    from entropic.images.pipelines import load_pipeline, sample_pipeline

    if arguments.prompts is None:
        raise ValueError("--pipeline needs --prompts FILE: one prompt a line, a sample each")
    prompts = _prompts(arguments.prompts)
    pipe = load_pipeline(arguments.pipeline, arguments.device)
    options = {"num_inference_steps": arguments.steps}
    if arguments.guidance is not None:
        options["guidance_scale"] = arguments.guidance
    prompts = prompts[: arguments.samples]
    made = sample_pipeline(pipe, [{"prompt": prompt} | options for prompt in prompts], seed=arguments.seed)
    _say(f"{len(prompts)} samples took {made.calls:,} calls of the network")
    about = {"network": str(arguments.pipeline), "data": f"{len(prompts)} samples of its own"}
    return made.denoiser, made.x, made.labels, about


def _prompts(path):
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); save it in this encoding") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if len(prompts) < 2:
        raise ValueError(f"{path} holds {len(prompts)} prompts; a curve needs 2 or more, one a line")
    return prompts


_SOURCES = {"denoiser": _denoiser, "network": _shipped, "pipeline": _pipeline}
