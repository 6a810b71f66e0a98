"""What an error curve needs of a pipeline of diffusers: its network as a denoiser, samples, and their conditions."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from entropic import _check
from entropic.adapters import NetworkDenoiser, from_diffusers, rows_of
from entropic.images.wheels import mend_torchvision

__all__ = ["Sampled", "load_pipeline", "sample_pipeline"]


def load_pipeline(folder, device="cpu"):
    """The pipeline of diffusers in a folder (or of a name on its hub), on a device; half precision on CUDA.

    ModuleNotFoundError: the extra "pipelines" is not installed.
    """
    try:
        mend_torchvision()
        import transformers  # noqa: F401
        from diffusers import DiffusionPipeline
    except ModuleNotFoundError as error:
        raise _check.not_installed(error, "pipelines") from error

    dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Sampled(NamedTuple):
    """What `estimate(denoiser, x, sigmas, labels=labels)` takes, and the network calls that it took to make it.

    x (N, ...): latents as the network has them, float32 on the CPU. labels: its named arguments, (N, ...) each.
    """

    denoiser: NetworkDenoiser
    x: torch.Tensor
    labels: dict
    calls: int


def sample_pipeline(pipe, arguments, *, guided=False, seed=0):
    """`Sampled` of a pipeline of diffusers (Stable Diffusion 1.5, XL, 3, FLUX and others with `unet` or `transformer`).

    arguments: one mapping for each sample, what the pipeline is called with, {"prompt": ...,
    "num_inference_steps": 30}, say. The network's own arguments are overheard in the first step of each sample, so that
    text encoders, pooled embeddings, sizes and packing are the pipeline's own. The samples are those of the network,
    from seeds seed, seed + 1, ...; the error curve is then the network's on its own law.
    guided: the denoiser with the classifier-free guidance of the pipeline (its `guidance_scale`); else that of the
    conditioned network alone, without a second call; the samples are guided as the arguments say, in both cases.
    ValueError: a pipeline without such a network, no arguments, guided without guidance.
    """
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if network is None:
        raise ValueError(f"{type(pipe).__name__} has neither `unet` nor `transformer`; use entropic.adapters")
    arguments = [dict(one) for one in arguments]
    if not arguments:
        raise ValueError("arguments = []; pass one mapping for each sample, say [{'prompt': 'a cat'}]")
    calls, latents, fixed, labels, without = 0, [], [], [], []
    for index, one in enumerate(arguments):
        heard = []
        hook = network.register_forward_pre_hook(
            lambda _, words, named, heard=heard: heard.append(_call(words, named)), with_kwargs=True
        )
        try:
            generator = torch.Generator().manual_seed(seed + index)
            made = pipe(**{"generator": generator, **one, "output_type": "latent"})[0].float().cpu()
        finally:
            hook.remove()
        first, count = heard[0], len(made)
        calls += sum(len(call.state) for call in heard)
        both = len(first.state) == 2 * count  # of guidance: without the condition first
        constant, varying = _parts(first.named, len(first.state))
        latents.append(made)
        fixed.append(constant)
        labels.append(rows_of(varying, slice(-count, None)))
        without.append(rows_of(varying, slice(0, count)) if both else None)
    if not all(_same(fixed[0], other) for other in fixed[1:]) or len({one.shape[1:] for one in latents}) > 1:
        raise ValueError(
            "the samples differ in more than their conditions; ask for one size and one set of options"
        )
    options = {}
    if guided:
        if without[0] is None:
            raise ValueError(
                "guided = True, but the pipeline calls its network once, without guidance; raise guidance_scale"
            )
        if not all(_same(without[0], other) for other in without[1:]):
            raise ValueError("the samples have different negative prompts; ask for one")
        options = {"guidance": float(pipe.guidance_scale), "unconditional": rows_of(without[0], slice(0, 1))}
    bound = _Bound(network, fixed[0])
    denoiser = from_diffusers(bound, pipe.scheduler, **options)
    if denoiser.prediction == "velocity":
        # The network heard its first time in its own precision: two digits of the scale are sure, and they are all.
        told = first.time / float(pipe.scheduler.timesteps[0])
        options["time_scale"] = float(f"{told * pipe.scheduler.config.num_train_timesteps:.2g}")
        denoiser = from_diffusers(bound, pipe.scheduler, **options)
    return Sampled(denoiser, torch.cat(latents), _joined(labels), calls)


class _Call(NamedTuple):
    state: torch.Tensor
    time: float
    named: dict


def _call(words, named):
    """A call of the network, apart: its state is its first argument, its time the second or the one of that name."""
    named = dict(named)
    words = list(words)
    state = words.pop(0) if words else named.pop("hidden_states", None)
    state = named.pop("sample") if state is None else state
    time = words.pop(0) if words else named.pop("timestep")
    named.pop("return_dict", None)
    return _Call(state, float(torch.as_tensor(time).flatten()[0]), named)


def _parts(value, batch):
    """`value` in two: what does not hang on the sample, and the tensors with one row for each."""
    if isinstance(value, Mapping):
        both = {key: _parts(one, batch) for key, one in value.items()}
        return {key: one[0] for key, one in both.items()}, {
            key: one[1] for key, one in both.items() if one[1] is not None
        } or None
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == batch:
        return None, value.detach().cpu()
    return value, None


def _joined(labels):
    if isinstance(labels[0], Mapping):
        return {key: _joined([one[key] for one in labels]) for key in labels[0]}
    return None if labels[0] is None else torch.cat(labels)


def _same(a, b):
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return (
        torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a is b or a == b
    )


class _Bound(torch.nn.Module):
    """A network with the arguments that do not hang on the sample; labels go to its device and dtype."""

    def __init__(self, network, fixed):
        super().__init__()
        self.network, self._fixed = network, fixed

    def forward(self, y, *, timestep, **labels):
        return self.network(y, timestep=timestep, **self._filled(self._fixed, labels, y))

    def _filled(self, fixed, labels, y):
        if isinstance(labels, Mapping):
            fixed = fixed or {}
            return {key: self._filled(fixed.get(key), labels.get(key), y) for key in {**fixed, **labels}}
        if labels is None:
            return fixed
        return labels.to(y.device, y.dtype) if labels.is_floating_point() else labels.to(y.device)
