"""Where the denoiser of a command comes from: a module of the user's, this package, or a pipeline of diffusers."""

import importlib
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = ["Source", "check_device", "pipeline", "say", "shipped", "users"]


class Source(NamedTuple):
    """A denoiser, states x (N, ...) and labels (N, ...) for it, None where they are not known; about: what they are."""

    denoiser: Callable[..., torch.Tensor]
    x: torch.Tensor | None
    labels: Any
    about: dict[str, str]


def say(text):
    """Tell the user something; what is printed is the result alone."""
    print(text, file=sys.stderr, flush=True)


def check_device(device):
    """ValueError where torch has no such device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device = {device!r} cannot be had ({error}); pass cpu, or cuda") from error


def users(arguments):
    """A callable of the user's, MODULE:NAME, and the states of a file, where there is one."""
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
    about = {"network": arguments.denoiser}
    if arguments.data is None:
        return Source(found, None, None, about)
    x, labels = _states(Path(arguments.data))
    return Source(found, x, labels, about | {"data": Path(arguments.data).name})


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


def shipped(arguments):
    """The network and the images that are in the package."""
    from entropic.images.data import load_images, to_pixels
    from entropic.images.networks import load_network

    network = load_network(arguments.network).to(arguments.device)
    data = load_images("fashion-mnist", "train", "embedded")
    about = {"network": arguments.network, "data": "Fashion-MNIST (embedded subset)"}
    return Source(network, to_pixels(data.images), torch.as_tensor(data.labels), about)


def pipeline(arguments):
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
    say(f"{len(prompts)} samples took {made.calls:,} calls of the network")
    about = {"network": str(arguments.pipeline), "data": f"{len(prompts)} samples of its own"}
    return Source(made.denoiser, made.x, made.labels, about)


def _prompts(path):
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); save it in this encoding") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if len(prompts) < 2:
        raise ValueError(f"{path} holds {len(prompts)} prompts; a curve needs 2 or more, one a line")
    return prompts
