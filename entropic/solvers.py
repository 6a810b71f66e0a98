"""Every solver once: a step, its order and its calls, and the samplers that walk any descending sigmas to 0.

A `Solver` is one rule for a step from sigma to sigma_next in the frame s = 1 (x = x0 + sigma noise). Sampling, the
exact law of Gaussian data (`entropic.gaussian`), the searches for a grid (`entropic.placement`) and the exact laws in
one dimension (`entropic.exact`) all run this rule, so that a new solver is one `Solver` and nothing else.

A denoiser is any callable `denoiser(x, sigma)` with sigma a float that returns E[x0 | x], shaped like x; or
`denoiser(x, sigma, labels)` where the caller passes `labels`, a condition in whatever form the denoiser takes it. All
samplers share one signature: `(denoiser, x, sigmas, *, labels=None, generator=None, callback=None)`, where x is the
state at sigmas[0] and the result is the state at sigma 0. They work in x's dtype and on its device; pass float64 to
reproduce exact laws. They record a graph for autograd only where x requires a gradient. The denoiser gets a copy of
the state, and what it returns is copied: it may write into its argument and reuse its own memory.
"""

from __future__ import annotations

import cmath
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from entropic import _check
from entropic.types import Denoiser, Generators, Numbers

__all__ = [
    "DDIM",
    "DPMPP_2M",
    "HEUN",
    "SOLVERS",
    "STOCHASTIC_DDIM",
    "Move",
    "Solver",
    "Step",
    "find_solver",
    "sample_ddim",
    "sample_ddim_stochastic",
    "sample_dpmpp_2m",
    "sample_heun",
]


class Move(NamedTuple):
    """What one step gives: the law N(mean, std^2) of the next state, the denoised state, and the past of the next step.

    std is 0 for a deterministic solver. past: pairs (denoised, sigma), the newest first, as many as the solver uses.
    """

    mean: Any
    std: Any
    denoised: Any
    past: tuple[Any, ...]


class Step(NamedTuple):
    """What a callback receives after a step: the state `x` it left at `sigma`, `denoised` there, calls so far."""

    index: int
    sigma: float
    sigma_next: float
    x: torch.Tensor
    denoised: torch.Tensor
    nfe: int


@dataclasses.dataclass(frozen=True)
class Solver:
    """A numerical scheme for the reverse process, defined by one step.

    rule(denoise, x, sigma, sigma_next, denoised, past) -> (mean, std) of the next state, for sigma_next > 0; the step
    to 0 returns the denoised state, in every solver. `denoised` = denoise(x, sigma); `denoise` may be called again;
    `past` holds up to `memory` pairs (denoised, sigma) of the steps before, the newest first. The rule uses only
    + - * / of states with functions of the sigmas, and `log` and `sqrt` of this module for these functions. So it
    works for tensors (with gradients), NumPy arrays, complex numbers and plain floats, and it is linear in x and in
    what the denoiser returns. std is the standard deviation of the noise to add, 0 for a deterministic solver.

    name: as in the `solver` arguments. order: the relative error of a step of length h is C h^(order + 1).
    evaluations: denoiser calls of a step above 0. stochastic: whether noise is added. memory: past steps used.
    """

    name: str
    order: int
    rule: Callable[..., tuple[Any, Any]]
    stochastic: bool = False
    evaluations: int = 1
    memory: int = 0

    def calls(self, n: int) -> int:
        """Denoiser calls of a schedule of n levels above 0: the step to 0 takes one."""
        return self.evaluations * (_check.integer("n", n, 1) - 1) + 1

    def levels(self, calls: int) -> int:
        """The largest number of levels whose cost is at most `calls` denoiser calls."""
        return (_check.integer("calls", calls, 1) - 1) // self.evaluations + 1

    def step(
        self, denoise: Callable[..., Any], x: Any, sigma: Any, sigma_next: Any, past: tuple[Any, ...] = ()
    ) -> Move:
        """One step from sigma to sigma_next, a `Move`; pure: no argument is changed."""
        denoised = denoise(x, sigma)
        if isinstance(sigma_next, (int, float)) and sigma_next == 0:
            return Move(denoised, 0.0, denoised, past)
        mean, std = self.rule(denoise, x, sigma, sigma_next, denoised, past)
        return Move(mean, std, denoised, ((denoised, sigma), *past)[: self.memory])

    def sample(
        self,
        denoiser: Denoiser,
        x: torch.Tensor,
        sigmas: Numbers,
        *,
        labels: Any = None,
        generator: Generators = None,
        callback: Callable[[Step], object] | None = None,
    ) -> torch.Tensor:
        """The state at sigma 0 that this solver reaches from x at sigmas[0].

        denoiser(x, sigma), or denoiser(x, sigma, labels) where `labels` are given; x (N, ...) floating, sigmas (n + 1,)
        descending to 0. `generator`: one torch.Generator, or
        one for each row of x (then no sample depends on the rest of its batch); needed by stochastic solvers only.
        `callback` receives a `Step` after each step. ValueError: x not floating or not finite; sigmas that do not
        descend to 0; a denoiser that returns another shape, no floating tensor, or NaN or infinity (the message names
        the step, counted from 0, and sigma); a generator that is needed and missing.
        """
        return _walk(self, denoiser, x, sigmas, labels, generator, callback)

    def leading_error(self, u: Numbers) -> torch.Tensor:
        """k(u) = C sigma^(order + 1), where C h^(order + 1) is the relative error of one short step on Gaussian data.

        u (...) = c^2 / (c^2 + sigma^2) in [0, 1], c the data's standard deviation; float64. The error is that of the
        standard deviation, s_next / sqrt(c^2 + sigma_next^2) - 1, after one step of length h from the exact law, with
        an exact past of steps as long in log sigma. It is read off the step itself: the error is an analytic function
        of h / sigma, and its Taylor coefficient is a mean over a circle in the complex plane (Cauchy's formula), to
        rounding. It is a polynomial in u of degree order + 1, so that a few values give all. Where a solver is exact
        for Gaussian data, the result is 0 to rounding.
        """
        u = _check.as_float64("u", u)
        found = torch.zeros_like(u)
        for coefficient in _leading_polynomial(self):
            found = found * u + coefficient
        return torch.where((u == 0) | (u == 1), 0.0, found)


@functools.lru_cache
def _leading_polynomial(solver):
    """The coefficients of `Solver.leading_error`, the highest first.

    A power h^k of a short step comes with at most k factors u, in the exact standard deviation as in a rule.
    """
    power = solver.order + 1
    u = (1 - np.cos(np.pi * (np.arange(power + 1) + 0.5) / (power + 1))) / 2
    scale = (u / (1 - u))[:, None]  # c^2 at sigma = 1
    # The nearest singularity is at least 1 away: what 32 points alias is below 0.3^32.
    step = 0.3 * np.exp(2j * np.pi * np.arange(32) / 32)

    def exact(sigma):
        return np.sqrt(scale + sigma**2)

    def denoise(x, sigma):
        return scale / (scale + sigma**2) * x

    past, before = [], 1.0 + 0 * step
    for _ in range(solver.memory):
        before = before / (1 - step)
        past.append((denoise(exact(before), before), before))
    move = solver.step(denoise, exact(1.0 + 0 * step), 1.0 + 0 * step, 1 - step, tuple(past))
    error = np.sqrt(move.mean**2 + move.std**2) / exact(1 - step) - 1
    found = (error * step ** -float(power)).mean(-1).real
    coefficients = np.linalg.solve(np.vander(u), found).tolist()
    # A rule of rational numbers has rational coefficients: a small fraction within the rounding is the exact one.
    exact_ones = [float(Fraction(one).limit_denominator(1000)) for one in coefficients]
    return tuple(
        whole if abs(whole - one) < 1e-13 else one
        for whole, one in zip(exact_ones, coefficients, strict=True)
    )


def log(value):
    """The logarithm of a float, a complex number, an array or a tensor."""
    return _apply(value, math.log, cmath.log, np.log, torch.log)


def sqrt(value):
    """The square root of a float, a complex number, an array or a tensor."""
    return _apply(value, math.sqrt, cmath.sqrt, np.sqrt, torch.sqrt)


def _apply(value, real, complex_, array, tensor):
    if isinstance(value, torch.Tensor):
        return tensor(value)
    if isinstance(value, np.ndarray):
        return array(value)
    return complex_(value) if isinstance(value, complex) else real(value)


# The rules


def _ddim(denoise, x, sigma, sigma_next, denoised, past):
    return denoised + (sigma_next / sigma) * (x - denoised), 0.0


def _stochastic_ddim(denoise, x, sigma, sigma_next, denoised, past):
    ratio = (sigma_next / sigma) ** 2
    return denoised + ratio * (x - denoised), sigma_next * sqrt(1 - ratio)


def _heun(denoise, x, sigma, sigma_next, denoised, past):
    euler = denoised + (sigma_next / sigma) * (x - denoised)
    slope = (x - denoised) / sigma + (euler - denoise(euler, sigma_next)) / sigma_next
    return x + (sigma_next - sigma) / 2 * slope, 0.0


def _dpmpp_2m(denoise, x, sigma, sigma_next, denoised, past):
    direction = denoised
    if past:
        before, sigma_before = past[0]
        weight = log(sigma / sigma_next) / (2 * log(sigma_before / sigma))
        direction = (1 + weight) * denoised - weight * before
    return (sigma_next / sigma) * x + (1 - sigma_next / sigma) * direction, 0.0


DDIM = Solver("ddim", 1, _ddim)
STOCHASTIC_DDIM = Solver("ddim_stochastic", 1, _stochastic_ddim, stochastic=True)
HEUN = Solver("heun", 2, _heun, evaluations=2)
DPMPP_2M = Solver("dpmpp_2m", 2, _dpmpp_2m, memory=1)

SOLVERS = {one.name: one for one in (DDIM, STOCHASTIC_DDIM, HEUN, DPMPP_2M)}
# Names of the same schemes elsewhere, without case, spaces, signs and the word "scheduler": diffusers, k-diffusion,
# ComfyUI, A1111. Euler's ancestral sampler adds the noise of stochastic DDIM.
_ALIASES = {
    "sddim": "ddim_stochastic",
    "ddimstochastic": "ddim_stochastic",
    "euler": "ddim",
    "eulerdiscrete": "ddim",
    "eulera": "ddim_stochastic",
    "eulerancestral": "ddim_stochastic",
    "eulerancestraldiscrete": "ddim_stochastic",
    "heundiscrete": "heun",
    "edmeuler": "ddim",
    "flowmatcheulerdiscrete": "ddim",
    "edmdpmsolvermultistep": "dpmpp_2m",
    "dpm2m": "dpmpp_2m",
    "dpmpp2m": "dpmpp_2m",
    "dpmsolver2m": "dpmpp_2m",
    "dpmsolvermultistep": "dpmpp_2m",
}


def find_solver(solver: str | Solver) -> Solver:
    """The `Solver` of a name, or a `Solver` itself.

    Names: "ddim", "ddim_stochastic", "heun", "dpmpp_2m", and those that diffusers, k-diffusion, ComfyUI and A1111 have
    for them, as "Euler", "euler_ancestral", "DPM++ 2M" or "DPMSolverMultistepScheduler". ValueError: an unknown name.
    """
    if isinstance(solver, Solver):
        return solver
    found = None
    if isinstance(solver, str):
        plain = re.sub(r"[^a-z0-9]", "", solver.lower().removeprefix("sample_")).removesuffix("scheduler")
        found = SOLVERS.get(solver) or SOLVERS.get(_ALIASES.get(plain, plain))
    if found is None:
        names = [*SOLVERS, "euler", "euler_ancestral", "DPM++ 2M"]
        raise ValueError(f"solver = {solver!r}; pass one of {', '.join(names)} or a Solver")
    return found


# The samplers


def sample_ddim(
    denoiser: Denoiser,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    labels: Any = None,
    generator: Generators = None,
    callback: Callable[[Step], object] | None = None,
) -> torch.Tensor:
    """Deterministic DDIM, the Euler scheme in sigma: order 1, len(sigmas) - 1 denoiser calls.

    x_next = x0_hat + (sigma_next / sigma) (x - x0_hat). `generator` is accepted and not used.
    Arguments and errors as `Solver.sample`. Song et al. 2021, eq. 12 with eta = 0; Karras et al. 2022, section 3.
    """
    return DDIM.sample(denoiser, x, sigmas, labels=labels, generator=generator, callback=callback)


def sample_ddim_stochastic(
    denoiser: Denoiser,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    labels: Any = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    callback: Callable[[Step], object] | None = None,
) -> torch.Tensor:
    """Stochastic DDIM (eta = 1, ancestral): weak order 1, len(sigmas) - 1 denoiser calls.

    With r = sigma_next / sigma: x_next ~ N(x0_hat + r^2 (x - x0_hat), sigma_next^2 (1 - r^2)).
    Arguments and errors as `Solver.sample`. Song et al. 2021, eqs 12 and 16 with eta = 1.
    """
    return STOCHASTIC_DDIM.sample(denoiser, x, sigmas, labels=labels, generator=generator, callback=callback)


def sample_heun(
    denoiser: Denoiser,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    labels: Any = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    callback: Callable[[Step], object] | None = None,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
) -> torch.Tensor:
    """Heun's scheme of EDM, with churn: order 2, 2 len(sigmas) - 3 denoiser calls; the step to 0 is Euler's.

    With s_churn > 0, noise of standard deviation `s_noise` is added before each step whose sigma lies in
    [s_min, s_max]: sigma grows by the share min(s_churn / steps, sqrt(2) - 1), and a callback sees the noised
    state and its sigma. ValueError: churn without a generator or out of range, and as `Solver.sample`.
    Karras et al. 2022, algorithms 1 (s_churn = 0) and 2.
    """
    for name, value in (("s_churn", s_churn), ("s_min", s_min), ("s_noise", s_noise), ("s_max", s_max)):
        if not value >= 0 or (name != "s_max" and math.isinf(value)):
            raise ValueError(f"{name} = {value}; it must be a number of at least 0")
    churn = None
    if s_churn > 0:

        def churn(sigma, steps):
            gain = min(s_churn / steps, math.sqrt(2) - 1) if s_min <= sigma <= s_max else 0.0
            return sigma * (1 + gain), s_noise

    return _walk(HEUN, denoiser, x, sigmas, labels, generator, callback, churn)


def sample_dpmpp_2m(
    denoiser: Denoiser,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    labels: Any = None,
    generator: Generators = None,
    callback: Callable[[Step], object] | None = None,
) -> torch.Tensor:
    """DPM-Solver++(2M), multistep in lambda = -log(sigma): order 2, len(sigmas) - 1 denoiser calls.

    The first step is of first order, and the step to 0 returns x0_hat. `generator` is accepted and not used.
    Arguments and errors as `Solver.sample`. Lu et al. 2022 (arXiv:2211.01095), algorithm 2, in k-diffusion's form.
    """
    return DPMPP_2M.sample(denoiser, x, sigmas, labels=labels, generator=generator, callback=callback)


def _walk(solver, denoiser, x, sigmas, labels, generator, callback, churn=None):
    """`Solver.sample`; with churn(sigma, steps) -> (raised sigma, scale of the noise) before each step."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.ndim == 0:
        raise ValueError(f"x = {_describe(x)}; pass a floating tensor (N, ...), the noisy state at sigmas[0]")
    _check.check_finite("x", x)
    sigmas, past, calls = _check.schedule(sigmas).tolist(), (), 0
    noise = _noise_source(x, generator) if solver.stochastic or churn else None
    given = () if labels is None else (labels,)

    def denoise(x, sigma):
        nonlocal calls
        calls += 1
        return _check.denoised(denoiser(x.clone(), sigma, *given), x, sigma, f"step {index}, ")

    with torch.set_grad_enabled(x.requires_grad and torch.is_grad_enabled()):
        x = x.clone()
        for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            if churn:
                raised, scale = churn(sigma, len(sigmas) - 1)
                if raised > sigma:
                    x, sigma = x + math.sqrt(raised**2 - sigma**2) * scale * noise(), raised
            move = solver.step(denoise, x, sigma, sigma_next, past)
            after, past = move.mean, move.past
            if solver.stochastic and sigma_next > 0:
                after = after + move.std * noise()
            if callback is not None:
                callback(Step(index, sigma, sigma_next, x, move.denoised.clone(), calls))
            x = after
    return x  # finite: the step to 0 returned what the denoiser answered


def _noise_source(x, generator):
    """A function that draws standard normal noise like x, from one generator or from one for each row.

    It is drawn where the generator lives: a generator on the CPU gives the same noise to x on any device. It is drawn
    in x's type, or in `generator.noise_dtype` where the generator has that attribute: another type is another stream.
    """

    def draw(shape, one):
        kind = getattr(one, "noise_dtype", x.dtype)
        return torch.randn(shape, generator=one, dtype=kind, device=one.device)

    if isinstance(generator, torch.Generator):
        return lambda: draw(x.shape, generator).to(x)
    rows = list(generator) if isinstance(generator, Sequence) and not isinstance(generator, str) else None
    if rows is None or not all(isinstance(one, torch.Generator) for one in rows):
        raise ValueError(
            f"generator = {generator!r}; this sampler draws noise: pass torch.Generator().manual_seed(...), "
            "or a list of one for each row of x"
        )
    if len(rows) != len(x):
        raise ValueError(f"generator holds {len(rows)} generators for {len(x)} rows of x; pass one for each")
    return lambda: torch.stack([draw(x.shape[1:], one) for one in rows]).to(x)


def _describe(x):
    return f"a {x.dtype} tensor of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else repr(x)
