"""Times phi(sigma), made from an error curve or a rate: their value at a noise level, and n levels at equal distances.

Entropies are in nats, sigma is in data units. ValueError: levels outside the range of a time, and other bad arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from entropic._check import SLACK, as_float64, ascending, inside, integer, levels, sigma_range
from entropic.types import Numbers

# dphi / dsigma = eps2 / sigma^power
POWER = {"entropic": 3, "rescaled": 2}


class Time:
    """A time phi(sigma), increasing, known at the knots `sigma` (n,) and monotone between them.

    `phi` (n,) is in nats, or in nats times data units for a rescaled time. With `slope` = dphi / dlog sigma (n,) it is
    a monotone cubic Hermite interpolant in log sigma, whose slopes are limited as by Fritsch and Carlson (1980).
    Without a slope it is linear in sigma. `stderr` (n,) is the standard error of phi less its first value, or None.
    Where the denoiser makes no error phi is flat, and `sigma_at` gives the upper end of the flat part.
    `_linear`: the matrices that make phi and slope out of eps2; `_combine`: standard errors of rows w @ eps2.
    """

    def __init__(
        self,
        sigma: Numbers,
        phi: Numbers,
        slope: Numbers | None = None,
        *,
        _linear: Any = None,
        _combine: Any = None,
    ) -> None:
        self.sigma, self.phi = ascending(sigma), as_float64("phi", phi)
        if self.phi.shape != self.sigma.shape:
            shapes = tuple(self.sigma.shape), tuple(self.phi.shape)
            raise ValueError(f"sigma {shapes[0]} and phi {shapes[1]}: pass one phi a level")
        if not (self.phi.diff() >= 0).all():
            raise ValueError("sigma and phi must ascend together; sort them")
        if not self.phi[-1] > self.phi[0]:
            raise ValueError(
                f"phi = {self.phi[0].item()} at every level; an error curve of zeros has no time"
            )
        self._log = slope is not None
        self._x = self.sigma.log() if self._log else self.sigma
        self._h, self._rise = self._x.diff(), self.phi.diff()
        secant = self._rise / self._h
        if self._log:
            slope = as_float64("slope", slope)
            if slope.shape != self.phi.shape:
                raise ValueError(f"slope has shape {tuple(slope.shape)}; sigma needs {tuple(self.phi.shape)}")
            if not (slope >= 0).all():
                raise ValueError(f"slope = {slope.min().item()} at its lowest; a time never runs backwards")
            # A cubic is monotone where its slopes are at most three times the secant's.
            before = torch.cat([secant[:1], secant])
            after = torch.cat([secant, secant[-1:]])
            limit = 3 * torch.minimum(before, after)
            limited = slope > limit
            slope = torch.where(limited, limit, slope)
            self._start, self._end = slope[:-1], slope[1:]
        else:
            self._start = self._end = secant
        self.stderr, self._weights = None, None
        if _linear is not None:
            weights, slopes = _linear
            step = weights.diff(dim=0) / self._h[:, None]
            if self._log:
                steepest = torch.where(
                    (before <= after)[:, None], torch.cat([step[:1], step]), torch.cat([step, step[-1:]])
                )
                slopes = torch.where(limited[:, None], 3 * steepest, slopes)
                step = (slopes[:-1], slopes[1:])
            else:
                step = (step, step)
            self._weights, self._slope_weights, self._combine = weights, step, _combine
            self.stderr = _combine(weights)

    def __repr__(self):
        said = [
            f"{len(self.sigma)} levels from {self.sigma[0]:.4g} to {self.sigma[-1]:.4g}",
            f"phi {self.phi[0]:.4g} to {self.phi[-1]:.4g}",
            "cubic in log sigma" if self._log else "linear in sigma",
        ]
        if self.stderr is not None:
            said.append("stderr")
        return f"Time({', '.join(said)})"

    def phi_at(self, sigma: Numbers) -> torch.Tensor:
        """phi at noise levels within the range of the knots, shaped like `sigma`."""
        index, u = self._locate(sigma)
        return self.phi[index] + self._risen(index, u)

    def rate_at(self, sigma: Numbers) -> torch.Tensor:
        """dphi / dsigma at noise levels within the range of the knots, shaped like `sigma`."""
        index, u = self._locate(sigma)
        rate = self._rate(index, u) / self._h[index]
        return rate / as_float64("sigma", sigma) if self._log else rate

    def stderr_at(self, sigma: Numbers) -> torch.Tensor:
        """Standard error of phi(sigma) - phi(lowest knot) at noise levels, (m,) for m levels."""
        return self._combine(self._functional(sigma))

    def sigma_at(self, phi: Numbers) -> torch.Tensor:
        """The noise level at which time phi is reached: the inverse of `phi_at`, shaped like `phi`."""
        phi = as_float64("phi", phi)
        low, high = self.phi[0].item(), self.phi[-1].item()
        slack = 1e-12 * (high - low)
        bad = ~((phi >= low - slack) & (phi <= high + slack))
        if bad.any():
            raise ValueError(f"phi = {phi[bad].flatten()[0].item()}; this time runs from {low} to {high}")
        phi = phi.clamp(low, high)
        index = (torch.searchsorted(self.phi, phi.contiguous(), right=True) - 1).clamp(0, len(self._h) - 1)
        target, rise = phi - self.phi[index], self._rise[index]
        u = torch.where(rise > 0, target / rise.clamp_min(1e-300), 0.0).clamp(0, 1)
        bottom, top = torch.zeros_like(u), torch.ones_like(u)
        # Newton's method inside a shrinking bracket. The cubic is monotone, so the bracket always holds the root.
        for _ in range(100):
            error = self._risen(index, u) - target
            bottom, top = torch.where(error <= 0, u, bottom), torch.where(error >= 0, u, top)
            step = u - error / self._rate(index, u)
            inside = (step >= bottom) & (step <= top)
            following = torch.where(error == 0, u, torch.where(inside, step, (bottom + top) / 2))
            moved = (following - u).abs().max() if u.numel() else u.sum()
            u = following
            if moved <= 1e-16:
                break
        ends = self.sigma[index], self.sigma[index + 1]
        value = ends[0] * (self._h[index] * u).exp() if self._log else ends[0] + self._h[index] * u
        return torch.minimum(torch.maximum(value, ends[0]), ends[1])

    def place(self, n: int, sigma_min: float | None = None, sigma_max: float | None = None) -> torch.Tensor:
        """`n` noise levels at equal distances in phi, descending from sigma_max to sigma_min, (n,).

        This is Algorithm 1 without the 0 that it ends in. The range is that of the knots unless given. ValueError: a
        range that is not inside that of the knots, or over which phi does not rise.
        """
        sigma, _ = self._placed(n, sigma_min, sigma_max)
        return sigma

    def place_stderr(
        self, n: int, sigma_min: float | None = None, sigma_max: float | None = None
    ) -> torch.Tensor:
        """Standard errors of the levels that `place` returns, (n,), by the delta method; 0 at both ends."""
        sigma, share = self._placed(n, sigma_min, sigma_max)
        weights = self._functional(sigma)
        wanted = weights[-1] + share[:, None] * (weights[0] - weights[-1])
        error = self._combine(wanted - weights) / self.rate_at(sigma)
        error[0] = error[-1] = 0.0
        return error

    def _placed(self, n, sigma_min, sigma_max):
        n = integer("n", n, 2)
        low, high = sigma_range(sigma_min, sigma_max, self.sigma)
        ends = self.phi_at([high, low])
        if not ends[0] > ends[1]:
            raise ValueError(
                f"phi = {ends[0].item()} at both sigma_min = {low} and sigma_max = {high}; widen them: "
                "no information is lost between"
            )
        share = torch.linspace(1.0, 0.0, n, dtype=torch.float64)
        sigma = self.sigma_at(ends[1] + share * (ends[0] - ends[1])).clamp(low, high)
        sigma[0], sigma[-1] = high, low
        return sigma, share

    def _locate(self, sigma):
        low, high = self.sigma[0].item(), self.sigma[-1].item()
        said = f" is outside the curve, which covers [{low:g}, {high:g}]"
        sigma = inside("sigma", levels(sigma), low, high, said, SLACK)
        index = (torch.searchsorted(self.sigma, sigma.contiguous(), right=True) - 1).clamp(
            0, len(self._h) - 1
        )
        x = sigma.log() if self._log else sigma
        return index, ((x - self._x[index]) / self._h[index]).clamp(0, 1)

    def _risen(self, index, u):
        """phi less its value at the knot `index`, at the fraction u of the interval."""
        h, rise = self._h[index], self._rise[index]
        start, end = h * self._start[index], h * self._end[index]
        # Horner form: no cancellation near u = 0.
        return u * (start + u * (3 * rise - 2 * start - end + u * (start + end - 2 * rise)))

    def _rate(self, index, u):
        h, rise = self._h[index], self._rise[index]
        start, end = h * self._start[index], h * self._end[index]
        return start + u * (2 * (3 * rise - 2 * start - end) + 3 * u * (start + end - 2 * rise))

    def _functional(self, sigma):
        """The rows w with phi_at(sigma) = w @ eps2, (m, n)."""
        if self._weights is None:
            raise ValueError("stderr = None in this curve; pass ErrorCurve the standard error of eps2")
        index, u = self._locate(as_float64("sigma", sigma).reshape(-1))
        u, h = u[:, None], self._h[index][:, None]
        start, end = self._slope_weights
        w = self._weights
        rise = w[index + 1] - w[index]
        return (
            w[index]
            + rise * u * u * (3 - 2 * u)
            + h * start[index] * u * (1 - u) ** 2
            + h * end[index] * u * u * (u - 1)
        )


def time_from_rate(process, rate, sigma, kind="entropic", order=12):
    """phi = the integral of rate(t) dt, at noise levels `sigma` (n,), as a `Time`: integrated in a process's own t.

    `rate` maps times (m,) to dH/dt (m,), in nats per unit of t, as eq. 10 gives it; for kind "rescaled" it is
    multiplied by sigma(t). Gauss-Legendre quadrature takes `order` nodes between consecutive levels, which are split
    at the knots of the process. `sigma` ascends within the range of the process. By Theorem 5.2 the result does not
    depend on the process.
    """
    sigma = ascending(sigma)
    power_of(kind)
    node, weight = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(integer("order", order, 1)))

    def weighted(t):
        value = as_float64("rate(t)", rate(t))
        return value * process.sigma(t) if kind == "rescaled" else value

    t = process.t(sigma)
    inside = process.knots[(process.knots > t[0]) & (process.knots < t[-1])]
    edges = torch.cat([t, inside]).sort().values
    half, middle = edges.diff() / 2, (edges[1:] + edges[:-1]) / 2
    value = weighted((middle[:, None] + half[:, None] * node).reshape(-1)).reshape(len(half), -1)
    total = cumulative((half * (value @ weight))[:, None])[:, 0]
    phi = total[torch.searchsorted(edges, t)]
    slope = weighted(t) * sigma / process.sigma_rate(t)
    return Time(sigma, phi, slope)


def power_of(kind):
    """The power of sigma that eps2 is divided by in a kind of time; ValueError for another kind."""
    if kind not in POWER:
        raise ValueError(f'kind = {kind!r}; use "entropic" or "rescaled"')
    return POWER[kind]


def cumulative(increments):
    """Running sums along the first axis, from 0: one row more than `increments`."""
    return torch.cat([torch.zeros_like(increments[:1]), increments.cumsum(0)])


def spline_increments(x, y):
    """Integrals over each interval of the not-a-knot cubic splines through the columns of y (n, m) at x (n,)."""
    from scipy.interpolate import CubicSpline

    h = x.diff()[:, None]
    d = torch.as_tensor(CubicSpline(x.numpy(), y.numpy())(x.numpy(), 1))
    return h / 2 * (y[1:] + y[:-1]) + h.square() / 12 * (d[:-1] - d[1:])
