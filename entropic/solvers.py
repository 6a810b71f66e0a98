"""Every solver of the paper, over any descending sigmas that end in 0, in the frame s = 1.

A denoiser is any callable `denoiser(x, sigma)` with sigma a float that returns E[x0 | x], shaped like x.
All samplers share one signature: `(denoiser, x, sigmas, *, generator=None, callback=None)`, where x = x0 +
sigmas[0] noise is the state to start from and the result is the state at sigma 0.
They work in x's dtype and on its device; pass float64 to reproduce exact laws.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from entropic import _check

__all__ = ["Step", "sample_ddim", "sample_ddim_stochastic", "sample_dpmpp_2m", "sample_heun"]

Denoiser = Callable[[torch.Tensor, float], torch.Tensor]


class Step(NamedTuple):
    """What a callback receives after a step: the state `x` it left at `sigma`, `denoised` there, calls so far."""

    index: int
    sigma: float
    sigma_next: float
    x: torch.Tensor
    denoised: torch.Tensor
    nfe: int


def sample_ddim(
    denoiser: Denoiser,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    generator=None,
    callback: Callable[[Step], object] | None = None,
) -> torch.Tensor:
    """Deterministic DDIM, the Euler scheme in sigma: order 1, len(sigmas) - 1 denoiser calls.

    x_next = x0_hat + (sigma_next / sigma) (x - x0_hat). `generator` is accepted and not used.
    ValueError: x not floating or not finite; sigmas not descending to 0; a denoiser that changes the shape.
    Song et al. 2021, eq. 12 with eta = 0; Karras et al. 2022, section 3.
    """
    state = _Run(denoiser, x, sigmas, callback)
    for index, sigma, sigma_next in state.steps():
        x, denoised = state.x, state.denoise(state.x, sigma)
        state.advance(index, sigma, sigma_next, denoised, denoised + (sigma_next / sigma) * (x - denoised))
    return state.x


def sample_ddim_stochastic(
    denoiser: Denoiser,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    callback: Callable[[Step], object] | None = None,
) -> torch.Tensor:
    """Stochastic DDIM (eta = 1, ancestral): weak order 1, len(sigmas) - 1 denoiser calls.

    With r = sigma_next / sigma: x_next ~ N(x0_hat + r^2 (x - x0_hat), sigma_next^2 (1 - r^2)). `generator` is
    one torch.Generator, or one for each row of x (then no sample depends on the rest of its batch).
    ValueError: no generator, and as `sample_ddim`. Song et al. 2021, eqs 12 and 16 with eta = 1.
    """
    state = _Run(denoiser, x, sigmas, callback)
    noise = _noise_source(state.x, generator)
    for index, sigma, sigma_next in state.steps():
        x, denoised = state.x, state.denoise(state.x, sigma)
        ratio = (sigma_next / sigma) ** 2
        after = denoised + ratio * (x - denoised)
        if sigma_next > 0:
            after = after + sigma_next * math.sqrt(1 - ratio) * noise()
        state.advance(index, sigma, sigma_next, denoised, after)
    return state.x


def sample_heun(
    denoiser: Denoiser,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
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
    state and its sigma. ValueError: churn without a generator or out of range, and as `sample_ddim`.
    Karras et al. 2022, algorithms 1 (s_churn = 0) and 2.
    """
    for name, value in (("s_churn", s_churn), ("s_min", s_min), ("s_noise", s_noise), ("s_max", s_max)):
        if not value >= 0 or (name != "s_max" and math.isinf(value)):
            raise ValueError(f"{name} = {value}; it must be a number of at least 0")
    state = _Run(denoiser, x, sigmas, callback)
    noise = _noise_source(state.x, generator) if s_churn > 0 else None
    gain = min(s_churn / state.n, math.sqrt(2) - 1)
    for index, sigma, sigma_next in state.steps():
        if noise is not None and s_min <= sigma <= s_max:
            noisier = sigma * (1 + gain)
            state.x = state.x + math.sqrt(noisier**2 - sigma**2) * s_noise * noise()
            sigma = noisier
        x, denoised = state.x, state.denoise(state.x, sigma)
        slope = (x - denoised) / sigma
        after = denoised + (sigma_next / sigma) * (x - denoised)
        if sigma_next > 0:
            slope_next = (after - state.denoise(after, sigma_next)) / sigma_next
            after = x + (sigma_next - sigma) * (slope + slope_next) / 2
        state.advance(index, sigma, sigma_next, denoised, after)
    return state.x


def sample_dpmpp_2m(
    denoiser: Denoiser,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    generator=None,
    callback: Callable[[Step], object] | None = None,
) -> torch.Tensor:
    """DPM-Solver++(2M), multistep in lambda = -log(sigma): order 2, len(sigmas) - 1 denoiser calls.

    The first step is of first order, and the step to 0 returns x0_hat. `generator` is accepted and not used.
    ValueError: as `sample_ddim`. Lu et al. 2022 (arXiv:2211.01095), algorithm 2, in k-diffusion's form.
    """
    state = _Run(denoiser, x, sigmas, callback)
    previous = None
    for index, sigma, sigma_next in state.steps():
        x, denoised = state.x, state.denoise(state.x, sigma)
        direction = denoised
        if previous is not None and sigma_next > 0:
            before, sigma_before = previous
            weight = math.log(sigma / sigma_next) / (2 * math.log(sigma_before / sigma))
            direction = (1 + weight) * denoised - weight * before
        previous = denoised, sigma
        ratio = sigma_next / sigma
        state.advance(index, sigma, sigma_next, denoised, ratio * x + (1 - ratio) * direction)
    return state.x


class _Run:
    """The state, the count of denoiser calls and the checks that all samplers share."""

    def __init__(self, denoiser, x, sigmas, callback):
        if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.ndim == 0:
            raise ValueError(
                f"x = {_describe(x)}; pass a floating tensor (N, ...), the noisy state at sigmas[0]"
            )
        _check.check_finite("x", x)
        self.denoiser, self.x, self.callback, self.nfe = denoiser, x, callback, 0
        self.sigmas = _check.schedule(sigmas).tolist()
        self.n = len(self.sigmas) - 1

    def steps(self):
        return zip(range(self.n), self.sigmas[:-1], self.sigmas[1:], strict=True)

    def denoise(self, x, sigma):
        self.nfe += 1
        denoised = self.denoiser(x, sigma)
        if denoised.shape != x.shape:
            raise ValueError(
                f"denoiser returned shape {tuple(denoised.shape)} for x of shape {tuple(x.shape)}"
            )
        return denoised.to(x.dtype)

    def advance(self, index, sigma, sigma_next, denoised, after):
        x, self.x = self.x, after
        if self.callback is not None:
            self.callback(Step(index, sigma, sigma_next, x, denoised, self.nfe))


def _noise_source(x, generator):
    """A function that draws standard normal noise like x, from one generator or from one for each row.

    It is drawn where the generator lives: a generator on the CPU gives the same noise to x on any device.
    """

    def draw(shape, one):
        return torch.randn(shape, generator=one, dtype=x.dtype, device=one.device)

    if isinstance(generator, torch.Generator):
        return lambda: draw(x.shape, generator).to(x.device)
    if generator is None or isinstance(generator, str) or not isinstance(generator, Sequence):
        raise ValueError(
            f"generator = {generator!r}; this sampler draws noise: pass torch.Generator().manual_seed(...)"
        )
    if len(generator) != len(x):
        raise ValueError(
            f"generator holds {len(generator)} generators for {len(x)} rows of x; pass one for each"
        )
    return lambda: torch.stack([draw(x.shape[1:], one) for one in generator]).to(x.device)


def _describe(x):
    return f"a {x.dtype} tensor of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else repr(x)
