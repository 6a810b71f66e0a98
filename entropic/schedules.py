"""Schedules: `n` noise levels above 0, float64, descending from sigma_max to sigma_min, then 0: (n + 1,).

The range is EDM's, 0.002 to 80, unless given; where a curve or a time is given, it is all that this covers.
Every function raises ValueError for n < 2, for a range that is not 0 < sigma_min < sigma_max, and where a
curve or process does not cover the range.
"""

from __future__ import annotations

import torch

from entropic._check import as_float64, integer, positive, sigma_range
from entropic.curve import ErrorCurve
from entropic.noise import Process, edm, vp_cosine, vp_linear
from entropic.types import Numbers


def edm_sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> torch.Tensor:
    """EDM: the levels are uniform in sigma^(1 / rho). Source: Karras et al. (2022), eq. 5."""
    rho = positive("rho", rho)
    return uniform_in(n, sigma_min, sigma_max, lambda sigma: sigma ** (1 / rho), lambda tau: tau**rho)


def linear_sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> torch.Tensor:
    """The levels are uniform in sigma, which is the standard time of the EDM process."""
    return uniform_sigmas(n, edm(), sigma_min, sigma_max)


def log_sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> torch.Tensor:
    """The levels are uniform in log sigma: they form a geometric sequence."""
    return uniform_in(n, sigma_min, sigma_max, torch.log, torch.exp)


def cosine_sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> torch.Tensor:
    """The levels are uniform in the time of the cosine process (Nichol and Dhariwal 2021)."""
    return uniform_sigmas(n, vp_cosine(), sigma_min, sigma_max)


def vp_sigmas(
    n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, beta_d: float = 19.9, beta_min: float = 0.1
) -> torch.Tensor:
    """The levels are uniform in the time of the linear VP process (Song et al. 2021)."""
    return uniform_sigmas(n, vp_linear(beta_d, beta_min), sigma_min, sigma_max)


def arctan_sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, c: float = 1.0) -> torch.Tensor:
    """The levels are uniform in arctan(sigma / c), optimal for data N(0, c^2 I). Source: eq. 6, Theorem C.1."""
    c = positive("c", c)
    return uniform_in(n, sigma_min, sigma_max, lambda sigma: (sigma / c).atan(), lambda tau: c * tau.tan())


def entropic_sigmas(
    n: int, curve: ErrorCurve, sigma_min: float | None = None, sigma_max: float | None = None
) -> torch.Tensor:
    """The levels are uniform in the conditional entropy of an `ErrorCurve`. Source: section 5.3."""
    return time_sigmas(n, curve.entropic(), sigma_min, sigma_max)


def rescaled_sigmas(
    n: int, curve: ErrorCurve, sigma_min: float | None = None, sigma_max: float | None = None
) -> torch.Tensor:
    """The levels are uniform in the rescaled entropy of an `ErrorCurve`. Source: section 5.3."""
    return time_sigmas(n, curve.rescaled(), sigma_min, sigma_max)


def spectral_sigmas(
    n: int,
    curve: ErrorCurve,
    amplitudes: Numbers,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> torch.Tensor:
    """The levels are uniform in the spectral rescaled entropy of a curve with directions. Source: section 5.4."""
    return time_sigmas(n, curve.spectral(amplitudes), sigma_min, sigma_max)


def time_sigmas(n, time, sigma_min=None, sigma_max=None):
    """The levels are uniform in any `Time`. Source: Algorithm 1."""
    return ending_in_zero(time.place(n, sigma_min, sigma_max))


def uniform_sigmas(
    n: int, process: Process, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> torch.Tensor:
    """The levels are uniform in the own t of a process, the "standard time" of the paper."""
    return uniform_in(n, sigma_min, sigma_max, process.t, process.sigma)


def uniform_in(n, sigma_min, sigma_max, forward, backward):
    """The schedule uniform in tau = forward(sigma); `backward` is the inverse. Both map float64 tensors."""
    n = integer("n", n, 2)
    low, high = sigma_range(sigma_min, sigma_max)
    start, end = forward(as_float64("sigma", [high, low])).tolist()
    share = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
    sigma = backward(start + share * (end - start))
    # Rounding must not move the ends.
    sigma[0], sigma[-1] = high, low
    return ending_in_zero(sigma)


def ending_in_zero(sigma):
    """The schedule of the levels `sigma` (n,), above 0: they, then 0. ValueError unless they descend strictly."""
    if not (sigma.diff() < 0).all():
        low, high, n = sigma[-1].item(), sigma[0].item(), len(sigma)
        raise ValueError(
            f"n = {n} levels between {low} and {high} are closer than float64 resolves; take fewer"
        )
    return torch.cat([sigma, torch.zeros(1, dtype=torch.float64)])
