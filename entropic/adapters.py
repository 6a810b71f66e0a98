"""Other people's networks as denoisers, and grids of ours in other people's samplers.

A network predicts noise, v, a velocity, a score or the clean data, from a scaled state s x at a time t of its own. In
the frame s = 1, where x = x0 + sigma noise, each prediction F is an affine map away from the denoised data:
D(x; sigma) = skip(sigma) x + out(sigma) F(s x, t). The `from_...` functions return that D as a `NetworkDenoiser`,
which `estimate` and the samplers take as it is. The `to_...` functions hand sigmas (n + 1,), which descend to 0, to
diffusers, k-diffusion, skrample, ComfyUI and flow matching code.
"""

import copy
import functools
import inspect
import math
from collections.abc import Mapping

import numpy as np
import torch

from entropic import _check, noise

__all__ = [
    "NetworkDenoiser",
    "from_diffusers",
    "from_edm",
    "from_epsilon",
    "from_flow",
    "from_score",
    "from_v",
    "labels_of",
    "rows_of",
    "tensors_of",
    "to_comfy",
    "to_diffusers",
    "to_flow",
    "to_k_diffusion",
    "to_skrample",
]

# skip(sigma) and out(sigma) of D = skip x + out F, for float64 sigma and the scale s of the network's state.
_RULES = {
    "epsilon": lambda sigma, s: (torch.ones_like(sigma), -sigma),
    "v": lambda sigma, s: (s * s, -s * sigma),
    "sample": lambda sigma, s: (torch.zeros_like(sigma), torch.ones_like(sigma)),
    "score": lambda sigma, s: (torch.ones_like(sigma), sigma * sigma * s),
    "velocity": lambda sigma, s: (s, -s * sigma),
    "velocity to data": lambda sigma, s: (s, s * sigma),
}


class _Table:
    """Training times 0, 1, ... of a discrete VP process: sigma = sqrt((1 - a) / a), a one of alphas_cumprod."""

    def __init__(self, table):
        alphas = getattr(table, "alphas_cumprod", table)
        alphas = _check.as_float64("alphas_cumprod", alphas).cpu()
        if alphas.ndim != 1 or len(alphas) < 2 or not ((alphas >= 0) & (alphas <= 1)).all():
            raise ValueError(
                f"alphas_cumprod of shape {tuple(alphas.shape)} runs from {alphas.min().item()} to "
                f"{alphas.max().item()}; pass one dimension, each between 0 and 1 (a scheduler's .alphas_cumprod)"
            )
        sigma = ((1 - alphas) / alphas).sqrt()
        inside = (sigma > 0) & torch.isfinite(sigma)  # a table of zero terminal SNR ends at infinity
        self._log_sigma, self._times = sigma[inside].log(), inside.nonzero()[:, 0].double()
        if len(self._times) < 2 or not (self._log_sigma.diff() > 0).all():
            raise ValueError(
                "alphas_cumprod does not fall from one training time to the next; is it reversed?"
            )
        self.low, self.high = self._log_sigma[[0, -1]].exp().tolist()

    def s(self, sigma):
        return (1 + sigma.square()).rsqrt()

    def t(self, sigma):
        """The time at which log sigma, linear between the training times, is that of sigma."""
        at, known = sigma.log().clamp(*self._log_sigma[[0, -1]].tolist()), self._log_sigma
        right = torch.searchsorted(known, at.detach()).clamp_min(1)
        low, high = known[right - 1], known[right]
        return torch.lerp(self._times[right - 1], self._times[right], (at - low) / (high - low))


class _Timed:
    """An `entropic.noise.Process` as networks hear it: its time, or 1 less its time, multiplied by a factor."""

    def __init__(self, process, factor=1.0, backwards=False):
        self._process, self._factor, self._backwards = process, factor, backwards
        self.low = float(process.sigma(process.t_min))
        self.high = math.inf if math.isinf(process.t_max) else float(process.sigma(process.t_max))

    def s(self, sigma):
        return self._process.s(self._process.t(sigma))

    def t(self, sigma):
        t = self._process.t(sigma)
        return self._factor * (1 - t if self._backwards else t)


class NetworkDenoiser:
    """denoiser(x, sigma, labels=None) = E[x0 | x], from a network of another kind; the `from_...` functions make one.

    x (N, ...) floating; sigma a number, (N,) or a tensor of no dimension; the answer is shaped like x, in its dtype (at
    least float32) and on its device. The network gets its own dtype and device, the time as float32 (N,) (float64 for
    a float64 network), and the labels: a tensor as third argument, a tuple as further arguments, a mapping as named
    arguments, each of them nested as the network has it. It may answer a tensor, a tuple that begins with one, or an
    object with `.sample`; twice as many channels are a prediction and its variance, which is left out.

    sigma_min, sigma_max: the noise levels that the network was trained on; ValueError outside them.
    """

    def __init__(
        self, network, process, prediction, *, guidance=None, unconditional=None, scale=1.0, shift=0.0
    ):
        if not callable(network):
            raise ValueError(f"network = {network!r}; pass a callable (x, t, labels), say a torch module")
        self.network, self.prediction, self._process = network, prediction, process
        self.guidance = None if guidance is None else float(_check.as_float64("guidance", guidance))
        if (guidance is None) != (unconditional is None):
            raise ValueError(
                f"guidance = {guidance}, unconditional = {unconditional!r}; pass both: the strength, and the labels "
                "that stand for no condition (one row, or one for each row of x)"
            )
        self.unconditional = unconditional
        self.scale = _check.positive("scale", scale)
        self.shift = _check.as_float64("shift", shift)
        self.sigma_min, self.sigma_max = process.low / self.scale, process.high / self.scale

    def __repr__(self):
        guided = "" if self.guidance is None else f", guidance {self.guidance:g}"
        return (
            f"NetworkDenoiser({type(self.network).__name__}, {self.prediction}, "
            f"sigma in [{self.sigma_min:.6g}, {self.sigma_max:.6g}]{guided})"
        )

    def __call__(self, x, sigma, labels=None):
        if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.ndim < 1:
            raise ValueError(f"x = {x!r}; pass a floating tensor (N, ...)")
        sigma = self._levels(x, sigma)
        work = x.to(torch.promote_types(x.dtype, torch.float32))
        shift = self.shift.to(work)
        y = (work - shift) * self.scale
        s = self._process.s(sigma)
        skip, out = _RULES[self.prediction](sigma, s)
        predicted = self._predict(_per_row(s, y) * y, self._process.t(sigma), labels).to(y)
        return (_per_row(skip, y) * y + _per_row(out, y) * predicted) / self.scale + shift

    def _levels(self, x, sigma):
        """sigma of the network's own frame, (N,) float64 on the CPU."""
        sigma = _check.as_float64("sigma", sigma).cpu()
        if sigma.shape not in ((), (len(x),)):
            raise ValueError(
                f"sigma has shape {tuple(sigma.shape)}; pass a number, or one for each of {len(x)} rows"
            )
        said = (
            f"; this network knows noise levels from {self.sigma_min:.6g} to {self.sigma_max:.6g}: "
            "pass these as sigma_min and sigma_max"
        )
        inside = _check.inside("sigma", sigma, self.sigma_min, self.sigma_max, said, _check.SLACK)
        return (inside * self.scale).expand(len(x))

    def _predict(self, y, t, labels):
        if self.guidance is None:
            return self._call(y, t, labels)
        count = len(y)
        both = _joined(_rows(self.unconditional, count), _rows(labels, count))
        without, with_labels = self._call(torch.cat([y, y]), torch.cat([t, t]), both).chunk(2)
        return without + self.guidance * (with_labels - without)

    def _call(self, y, t, labels):
        device, dtype = _home(self.network, y)
        clock = torch.float64 if dtype == torch.float64 else torch.float32
        words, named = _arguments(labels)
        answer = self.network(y.to(device, dtype), t.to(device, clock), *words, **named)
        return _tensor(answer, y)


def _home(network, y):
    """Device and dtype of the network's weights; those of the state where it has none."""
    for weight in network.parameters() if isinstance(network, torch.nn.Module) else ():
        if weight.is_floating_point() and weight.itemsize > 1:  # weights may be kept in 8 bits; no state may
            return weight.device, weight.dtype
    return y.device, y.dtype


def _arguments(labels):
    """The arguments after x and t: (positional, named)."""
    if labels is None:
        return (), {}
    if isinstance(labels, Mapping):
        return (), labels
    return (labels if isinstance(labels, tuple) else (labels,)), {}


def _tensor(answer, y):
    """The prediction in what a network answered for y."""
    answer = getattr(answer, "sample", answer)
    answer = answer[0] if isinstance(answer, (tuple, list)) and answer else answer
    if not isinstance(answer, torch.Tensor) or not answer.is_floating_point():
        raise ValueError(
            f"network answered {type(answer).__name__}; it must answer a tensor of real numbers, a tuple that "
            "begins with one, or an object with .sample"
        )
    if y.ndim > 1 and answer.shape == (y.shape[0], 2 * y.shape[1], *y.shape[2:]):
        answer = answer[:, : y.shape[1]]
    if answer.shape != y.shape:
        raise ValueError(
            f"network answered shape {tuple(answer.shape)} for a state of shape {tuple(y.shape)}"
        )
    return answer


def _per_row(values, y):
    """values (N,) float64 as factors of the rows of y."""
    return values.to(y.device, y.dtype).reshape(-1, *[1] * (y.ndim - 1))


# Labels: a tensor or array (N, ...), or mappings, tuples and lists of such tensors, None and other constants


def _mapped(function, *labels):
    labels = [_plain(one) for one in labels]
    first, *others = labels
    kind = next(
        (one for one in (Mapping, (tuple, list), torch.Tensor) if isinstance(first, one)), type(first)
    )
    if not all(isinstance(one, kind) for one in others):
        raise TypeError(f"{type(first).__name__} beside {', '.join(type(one).__name__ for one in others)}")
    if kind is Mapping:
        if any(one.keys() != first.keys() for one in others):
            raise KeyError(", ".join(sorted(map(str, set(first).symmetric_difference(*others)))))
        return {key: _mapped(function, *(one[key] for one in labels)) for key in first}
    if isinstance(first, (tuple, list)):
        parts = [_mapped(function, *ones) for ones in zip(*labels, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    if isinstance(first, torch.Tensor):
        return function(*labels)
    if any(one != first for one in others):
        raise ValueError(f"{first!r} beside {', '.join(map(repr, others))}, of which no batch can be made")
    return first


def _plain(value):
    """An array as a tensor; anything else as it is."""
    try:
        return torch.as_tensor(value) if isinstance(value, np.ndarray) else value
    except (TypeError, ValueError) as error:
        raise ValueError(f"labels hold an array of {value.dtype}; pass tensors of numbers") from error


def rows_of(labels, rows):
    """`labels` of the given rows alone, nested as they were; rows is an index of the first dimension of each tensor."""
    return _mapped(lambda tensor: tensor[rows.to(tensor.device) if torch.is_tensor(rows) else rows], labels)


def labels_of(labels, x):
    """`labels` of the rows of x, numbers in a list or array as a tensor. ValueError: not a row for each row of x."""
    if isinstance(labels, np.ndarray) or (isinstance(labels, list) and not tensors_of(labels, "labels")):
        try:
            labels = torch.as_tensor(labels, device=x.device)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"labels are not numbers ({error}); pass a tensor with a row for each of x"
            ) from error
    for name, tensor in tensors_of(labels, "labels").items():
        if tensor.shape[:1] != x.shape[:1]:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; x has {len(x)} rows")
    return labels


def tensors_of(labels, name):
    """{name: tensor} of the tensors in `labels`, named by their places."""
    labels = _plain(labels)
    if isinstance(labels, torch.Tensor):
        return {name: labels}
    if not isinstance(labels, (Mapping, tuple, list)):
        return {}
    inner = labels.items() if isinstance(labels, Mapping) else enumerate(labels)
    return {at: found for key, one in inner for at, found in tensors_of(one, f"{name}[{key!r}]").items()}


def _rows(labels, count):
    """`labels` with `count` rows: one row stands for all."""

    def expand(tensor):
        if tensor.ndim == 0 or len(tensor) not in (1, count):
            raise ValueError(f"labels hold a tensor of shape {tuple(tensor.shape)}; x has {count} rows")
        return tensor.expand(count, *tensor.shape[1:])

    return _mapped(expand, labels)


def _joined(first, second):
    """Two labels of the same structure one after the other."""
    try:
        return _mapped(lambda a, b: torch.cat([a.to(b.device, b.dtype), b]), first, second)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"unconditional and labels differ in structure ({type(error).__name__}: {error}); nest them alike"
        ) from error


# Networks to denoisers


def from_epsilon(network, table, **options):
    """The `NetworkDenoiser` of a network (s x, t) that predicts the noise: D = x - sigma F.

    table: alphas_cumprod (T,), or anything that has them (a scheduler of diffusers): s^2 = alphas_cumprod, t counts
    from 0, and between training times log sigma is linear in t. Or an `entropic.noise.Process`.

    options, for all of these functions: guidance (a number w) with unconditional (labels without a condition):
    D_0 + w (D - D_0), D_0 that of `unconditional`, both in one call; scale and shift: the network sees
    (x - shift) scale, as with the latents of an autoencoder; sigma is then in units of x.
    ValueError: a table that does not fall within [0, 1], options that do not fit. Source: Ho et al. (2020), eq. 9.
    """
    return NetworkDenoiser(network, _clock(table), "epsilon", **options)


def from_v(network, table, **options):
    """The `NetworkDenoiser` of a network (s x, t) that predicts v = s (noise - sigma x0): D = s^2 x - s sigma F.

    Arguments and errors as `from_epsilon`; s^2 = 1 / (1 + sigma^2). Source: Salimans and Ho (2022), section 4.
    """
    return NetworkDenoiser(network, _clock(table), "v", **options)


def from_flow(network, *, data_at=0, time_scale=1.0, **options):
    """The `NetworkDenoiser` of a flow matching network (y, t), whose velocity is dy/dt on straight lines.

    data_at = 0 (Stable Diffusion 3, FLUX): y = (1 - t) x0 + t noise, F = noise - x0, D = y - t F.
    data_at = 1 (rectified flow, SiT, torchcfm): y = t x0 + (1 - t) noise, F = x0 - noise, D = y + (1 - t) F.
    sigma is noise over data in y. time_scale: the network hears time_scale t, 1000 for SD3's transformer in diffusers.
    options as in `from_epsilon`. ValueError: data_at neither 0 nor 1. Source: Lipman et al. (2023).
    """
    if data_at not in (0, 1):
        raise ValueError(
            f"data_at = {data_at!r}; pass the time of the data, 0 (SD3, FLUX) or 1 (rectified flow, SiT)"
        )
    clock = _Timed(noise.flow_matching(), _check.positive("time_scale", time_scale), backwards=data_at == 1)
    return NetworkDenoiser(network, clock, "velocity to data" if data_at else "velocity", **options)


def from_score(network, process, **options):
    """The `NetworkDenoiser` of a score: D = x + sigma^2 s F, F = network(s x, t) the score of the state s x at time t.

    process: the `entropic.noise.Process` whose s and t these are; `noise.edm()` for a score of x at sigma itself.
    options as in `from_epsilon`. Source: Tweedie's formula; Song et al. (2021).
    """
    return NetworkDenoiser(network, _clock(process), "score", **options)


def from_edm(network, **options):
    """The `NetworkDenoiser` of an official EDM or EDM2 network (x, sigma, class_labels), which denoises by itself.

    labels: one-hot (N, label_dim), which these networks want, or classes (N,) as whole numbers. Its range is
    sigma_min to sigma_max of the network where it has them. options as in `from_epsilon`; `unconditional` is
    zeros (1, label_dim), beside labels that are one-hot.
    Source: Karras et al. (2022), table 1.
    """
    clock = _Timed(noise.edm())
    clock.low = float(getattr(network, "sigma_min", clock.low))
    clock.high = float(getattr(network, "sigma_max", clock.high))
    return NetworkDenoiser(_OneHot(network), clock, "sample", **options)


class _OneHot(torch.nn.Module):
    """An EDM network that takes classes as whole numbers, too."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, sigma, labels=None):
        dim = getattr(self.network, "label_dim", 0)
        if labels is not None and dim and not labels.is_floating_point() and labels.ndim == 1:
            labels = torch.nn.functional.one_hot(labels.long().to(x.device), dim).to(torch.float32)
        return self.network(x, sigma, labels)


def from_diffusers(network, scheduler, *, time_scale=None, **options):
    """The `NetworkDenoiser` of a network of diffusers, by the prediction type and the table of its scheduler.

    labels: the named arguments of the network's forward, {"encoder_hidden_states": ..., "added_cond_kwargs": {...}}, or
    a tensor of classes; `unconditional` likewise. time_scale: of flow matching networks, the scheduler's
    num_train_timesteps unless given; 1 for those whose pipelines divide the time by 1000, as FLUX's and QwenImage's do.
    options as in `from_epsilon`. ValueError: a scheduler whose networks are not known here.
    """
    config, network = scheduler.config, _ByName(network)
    kind = config.get("prediction_type", "epsilon")
    if _is_flow(scheduler) and config.get("prediction_type", "flow_prediction") == "flow_prediction":
        scale = config.num_train_timesteps if time_scale is None else time_scale
        return from_flow(network, time_scale=scale, **options)
    if time_scale is not None:
        raise ValueError(
            f"time_scale = {time_scale}; {type(scheduler).__name__} is none of flow matching, leave it out"
        )
    known = hasattr(scheduler, "alphas_cumprod") and kind in ("epsilon", "v_prediction", "sample")
    if not known or _is_flow(scheduler) or _is_continuous(scheduler):
        times = " and continuous times" if _is_continuous(scheduler) else ""
        times += " and use_flow_sigmas" if _is_flow(scheduler) else ""
        raise ValueError(
            f"{type(scheduler).__name__} with prediction_type = {kind!r}{times} is not known here; pass the network to "
            "from_epsilon, from_v, from_flow, from_score or from_edm"
        )
    kind = "v" if kind == "v_prediction" else kind
    return NetworkDenoiser(network, _Table(scheduler), kind, **options)


class _ByName(torch.nn.Module):
    """A network of diffusers, which has its time in a place of its own, but always under one name."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, y, t, *words, **named):
        return self.network(y, t, *words) if words else self.network(y, timestep=t, **named)


def _clock(table):
    return _Timed(table) if isinstance(table, noise.Process) else _Table(table)


# Grids to other samplers


def to_flow(sigmas):
    """t = sigma / (1 + sigma) (n + 1,) float64 of flow matching, data at t = 0; it descends to 0.

    The state is (1 - t) x: a sampler that starts from pure noise z at t[0] starts from t[0] z.
    """
    sigmas = _check.schedule(sigmas)
    return sigmas / (1 + sigmas)


def to_k_diffusion(sigmas, dtype=torch.float32, device=None):
    """The tensor (n + 1,) that every `sample_...` of k-diffusion takes, in the dtype of the states.

    sigmas of float64 make a float32 state float64 there, and a float32 network fails on it.
    ValueError: levels that are equal in this dtype.
    """
    return _narrowed(sigmas, dtype).to(device)


def to_comfy(sigmas):
    """One line of text for ComfyUI's node ManualSigmas: decimals without an exponent, which it reads as two numbers."""
    return ", ".join(np.format_float_positional(one, trim="0") for one in _check.schedule(sigmas).tolist())


def to_skrample(sigmas, table=None):
    """The skrample schedule of these n levels, for samplers that take n steps.

    table: as in `from_epsilon`, for a network of a discrete VP process; None for flow matching, times 0 to 1000.
    ValueError: levels outside the table. ModuleNotFoundError: skrample is missing (it needs Python 3.12).
    """
    try:
        from skrample.common import Point
        from skrample.scheduling import FixedSchedule, FlowMatching, VariancePreserving
    except ModuleNotFoundError as error:
        raise _check.not_installed(error, "skrample") from error

    if table is None:
        t, space = to_flow(sigmas)[:-1], FlowMatching()
        fixed = FixedSchedule.from_regular(1000 * t.numpy(), t.numpy(), space)
    else:
        known, space = _clock(table), VariancePreserving()
        inside = _within(known, _check.schedule(sigmas)[:-1], "its table")
        fixed = FixedSchedule.from_regular(known.t(inside).numpy(), inside.numpy(), space)
    # skrample keeps schedules by their hash, which an array has not
    return FixedSchedule(tuple(Point(*point) for point in fixed.fixed_schedule.tolist()), space)


def to_diffusers(scheduler, sigmas):
    """A copy of a scheduler of diffusers that walks these sigmas (n + 1,), whatever its options say of spacing.

    Put it in a pipeline: `pipe.scheduler = to_diffusers(pipe.scheduler, sigmas)`, then call it with
    num_inference_steps = n; in a loop of your own, its timesteps are set already. Networks hear fractional training
    times, log sigma being linear between them. The start is `init_noise_sigma` times standard noise; schedulers of flow
    matching get this attribute, t[0] (see `to_flow`), and their pipelines need it of you: latents = t[0] noise.

    Takes EulerDiscrete, EulerAncestralDiscrete, HeunDiscrete, LMSDiscrete, DPMSolverMultistep (of type dpmsolver++),
    UniPC, DEIS, EDMEuler, EDMDPMSolverMultistep, FlowMatchEulerDiscrete and FlowMatchHeunDiscrete.
    ValueError: another scheduler, with the reason; levels outside its training table, or equal in float32.
    """
    name = type(scheduler).__name__.removesuffix("Scheduler")
    why = _refusal(name, scheduler)
    if why:
        raise ValueError(f"{type(scheduler).__name__} takes no grid of one's own: {why}")
    levels = _check.schedule(sigmas).cpu()
    flow = _is_flow(scheduler)
    if flow:
        levels = to_flow(levels)
        times = levels[:-1] * scheduler.config.num_train_timesteps
    elif name.startswith("EDM"):
        times = scheduler.precondition_noise(levels[:-1])
    elif _is_continuous(scheduler):
        times = levels[:-1].log() / 4
    else:
        table = _Table(scheduler)
        times = table.t(_within(table, levels[:-1], "its training table"))
    levels, times = _narrowed(levels, torch.float32), times.float()
    if name.endswith("HeunDiscrete"):  # each level but the first and the last is visited twice
        levels = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
        times = torch.cat([times[:1], times[1:].repeat_interleave(2)])
    if name == "DEISMultistep":
        levels[-1] = levels[-2] * 1e-6  # at 0 its formula is 0 times infinity
    scheduler = copy.deepcopy(scheduler)
    forced = {"final_sigmas_type": "zero", "lower_order_final": True} if name in _MULTISTEP else {}
    scheduler.register_to_config(**{key: value for key, value in forced.items() if key in scheduler.config})
    scheduler.set_timesteps = functools.partial(_set_timesteps, scheduler, levels, times)
    if flow:
        scheduler.init_noise_sigma = float(levels[0])
    scheduler.set_timesteps()
    return scheduler


_MULTISTEP = ("DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "EDMDPMSolverMultistep")
_TAKEN = (
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "HeunDiscrete",
    "LMSDiscrete",
    "EDMEuler",
    "FlowMatchEulerDiscrete",
    "FlowMatchHeunDiscrete",
    *_MULTISTEP,
)
_INSTEAD = {
    "DDIM": "it steps by whole training times; EulerDiscreteScheduler takes the same steps",
    "DDPM": "it steps by whole training times; EulerAncestralDiscreteScheduler takes the same steps",
    "PNDM": "it steps by equal training times; DPMSolverMultistepScheduler.from_config(scheduler.config) takes a grid",
    "DPMSolverSinglestep": "the order of each step hangs on their number; DPMSolverMultistepScheduler takes a grid",
    "KDPM2Discrete": "it adds levels of its own in between; HeunDiscreteScheduler takes a grid",
    "KDPM2AncestralDiscrete": "it adds levels of its own in between; EulerAncestralDiscreteScheduler takes a grid",
    "DPMSolverSDE": "it adds levels of its own in between; EulerAncestralDiscreteScheduler takes a grid",
}


def _refusal(name, scheduler):
    """Why a scheduler cannot take a grid; "" if it can."""
    if name not in _TAKEN:
        return _INSTEAD.get(
            name, "it is not known here; EulerDiscreteScheduler takes one, for the same networks"
        )
    config = scheduler.config
    if name == "DPMSolverMultistep" and not config.algorithm_type.endswith("++"):
        return f"algorithm_type = {config.algorithm_type!r} cannot end at sigma 0; make it 'dpmsolver++'"
    if config.get("solver_type") == "bh1":
        return "solver_type = 'bh1' is not a number at sigma 0; make it 'bh2'"
    if not config.get("predict_x0", True):
        return "predict_x0 = False is not a number at sigma 0; make it True"
    if config.get("use_flow_sigmas") is False and config.get("prediction_type") == "flow_prediction":
        return "prediction_type = 'flow_prediction' needs use_flow_sigmas = True"
    if config.get("invert_sigmas"):
        return "invert_sigmas = True: its times run from the data"
    return ""


def _set_timesteps(
    scheduler, levels, times, num_inference_steps=None, device=None, timesteps=None, sigmas=None, mu=None
):
    """In place of a scheduler's `set_timesteps`: the pipeline's own spacing and shift are left out."""
    n = len(times) if "Heun" not in type(scheduler).__name__ else (len(times) + 1) // 2
    for what in (num_inference_steps, *(len(one) for one in (timesteps, sigmas) if one is not None)):
        if what not in (None, n):
            raise ValueError(
                f"num_inference_steps = {what}; this scheduler walks a grid of {n} levels: pass {n}"
            )
    own = type(scheduler).set_timesteps
    more = {"mu": 1.0} if "mu" in inspect.signature(own).parameters and _shifts(scheduler) else {}
    own(scheduler, n, device=device, **more)  # resets what it remembers of earlier steps
    scheduler.sigmas, scheduler.timesteps = levels.clone(), times.to(device)
    scheduler.set_begin_index(0)


def _shifts(scheduler):
    return bool(scheduler.config.get("use_dynamic_shifting"))


def _is_flow(scheduler):
    config = scheduler.config
    named = type(scheduler).__name__.startswith("FlowMatch")
    return named or bool(config.get("use_flow_sigmas")) or config.get("prediction_type") == "flow_prediction"


def _is_continuous(scheduler):
    """Whether networks hear log(sigma) / 4; diffusers does so for this one prediction type."""
    config = scheduler.config
    return config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"


def _within(clock, sigmas, what):
    said = f" lies outside {what}, {clock.low:.6g} to {clock.high:.6g}; make the grid with these as its ends"
    return _check.inside("sigma", sigmas, clock.low, clock.high, said, _check.SLACK)


def _narrowed(sigmas, dtype):
    """sigmas in a dtype in which they still descend."""
    sigmas = _check.schedule(sigmas)
    narrow = sigmas.to(dtype)
    if not torch.isfinite(narrow[0]):
        raise ValueError(f"sigmas[0] = {sigmas[0].item()} is infinite in {dtype}; pass dtype=torch.float32")
    if not (narrow.diff() < 0).all():
        index = int((narrow.diff() >= 0).nonzero()[0])
        pair = sigmas[index : index + 2].tolist()
        raise ValueError(f"sigmas[{index}:{index + 2}] = {pair} are the same in {dtype}; use fewer levels")
    return narrow
