"""The conditional entropy H[x_0 | x_t], its rate, and the times phi(sigma) that follow from a denoiser's squared error.

eps2 = E||x_0 - D(x; sigma)||^2 is summed over dimensions, in squared data units. Entropies are in nats. sigma is in
data units. Functions raise ValueError for arguments that are not finite, negative where they may not be, or of other
shapes.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch

from entropic._check import SLACK, as_float64, ascending, integer, levels, mean_square, positive
from entropic.times import POWER, Time, cumulative, power_of, spline_increments
from entropic.types import Numbers

# The rate


def rate_from_scores(process, t, conditional, marginal):
    """dH/dt = (g^2 / 2) (E||grad log p(x_t | x_0)||^2 - E||grad log p_t||^2), nats per unit of t; eq. 10.

    `conditional` and `marginal` are the two mean squared norms at the times `t`, in this order, all of one shape; the
    first is D / (s sigma)^2 in D dimensions.
    """
    gap = as_float64("conditional", conditional) - as_float64("marginal", marginal)
    return process.diffusion(t).square() / 2 * gap


def rate_from_marginal_score(process, t, marginal, dim):
    """dH/dt = (sigma'/sigma) (dim - s^2 sigma^2 E||grad log p_t||^2), nats per unit of t; eq. 11.

    `marginal` is the mean squared norm of the score at the times `t`, shaped like them; `dim` is D.
    """
    sigma = process.sigma(t)
    norm = as_float64("marginal", marginal)
    variance = (process.s(t) * sigma).square()
    return process.sigma_rate(t) / sigma * (integer("dim", dim, 1) - variance * norm)


def rate_from_eps2(sigma, eps2):
    """dH/dsigma = eps2 / sigma^3, nats per unit of sigma; eq. 13. Times sigma'(t) it is dH/dt."""
    sigma, eps2 = levels(sigma), mean_square("eps2", eps2)
    return eps2 / sigma**3


def score_norms(process, mixture, t):
    """E||grad log p(x_t | x_0)||^2 and E||grad log p_t||^2 of eq. 10 for a one-dimensional mixture, at times t (n,).

    Both are tensors (n,), made by quadrature. The mixture knows the score of x_t / s; that of x_t is 1 / s times it.
    """
    t = as_float64("t", t).reshape(-1)
    s, sigma = process.s(t), process.sigma(t)
    norms = []
    for some in sigma.split(512):
        nodes, weights = zip(*(mixture.quadrature(level) for level in some), strict=True)
        level = some.repeat_interleave(torch.tensor([len(w) for w in weights]))
        row = torch.arange(len(some)).repeat_interleave(torch.tensor([len(w) for w in weights]))
        x = torch.cat(nodes)
        mass = torch.cat(weights) * mixture.log_density(x, level).exp()
        norm = mass * mixture.score(x, level)[:, 0].square()
        norms.append(torch.zeros_like(some).index_add(0, row, norm))
    return 1 / (s * sigma).square(), torch.cat(norms) / s.square()


# The squared error behind a training loss (appendix F). Every loss is summed over dimensions.


def eps2_from_edm_loss(loss, sigma, sigma_data=0.5):
    """eps2 = loss / lambda, lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2: EDM's weighted loss.

    `loss` is lambda E||D - x_0||^2 at `sigma`, before EDM2 divides it by its learned uncertainty. Source: appendix F.
    """
    sigma, data = levels(sigma), positive("sigma_data", sigma_data)
    return mean_square("loss", loss) * (sigma * data).square() / (sigma.square() + data**2)


def eps2_from_epsilon_loss(loss, sigma):
    """eps2 = sigma^2 loss, loss = E||eps - eps_hat||^2 (DDPM): x_0 - x_0_hat = -sigma (eps - eps_hat)."""
    return mean_square("loss", loss) * levels(sigma).square()


def eps2_from_v_loss(loss, sigma):
    """eps2 = loss sigma^2 / (1 + sigma^2), loss = E||v - v_hat||^2 with v = alpha eps - beta x_0 (VP).

    alpha = s = 1 / sqrt(1 + sigma^2), beta = s sigma, x_0_hat = alpha x_t - beta v_hat.
    Source: Salimans and Ho (2022), section 4.
    """
    square = levels(sigma).square()
    return mean_square("loss", loss) * square / (1 + square)


# From errors to time

_BEYOND = 4.0  # standard errors: chance alone exceeds them at one level in 30,000


class Tails(NamedTuple):
    """Bounds (lower, upper) of the part of phi below sigma[0] and of the part above sigma[-1]."""

    below: tuple[float, float]
    above: tuple[float, float]


class ErrorCurve:
    """The squared error eps2 of a denoiser at noise levels `sigma`, with its standard error.

    sigma (n,) ascends and is above 0, n >= 4. eps2 (n,) is at least 0, as is stderr (n,) where it is given.
    `directions` (n, m) are the parts of eps2 along directions of the data space; `spectral` needs them. `dim` (D) and
    `total_variance` (V, the trace of the data's covariance) give the bounds of `tails`.

    The best denoiser errs by no more than a constant, the mean of the data, and by no more than the identity:
    eps2 <= min(V, D sigma^2), as far as V and D are given. A network may be worse, and everything that is derived from
    the curve takes it for the best. So where eps2 exceeds that bound by more than 4 standard errors (by more than
    rounding, 2.4e-7, where it has none), the bound is taken for it, and a UserWarning names the levels. The standard
    error, the covariance and the directions of such a level are scaled by the same factor as its eps2.

    All that is derived from the curve, except `spectral`, is linear in eps2, so that a standard error of w @ eps2 is
    exact. There are three cases. The errors of the levels are independent: pass `stderr`. They are correlated: pass
    their `covariance` (n, n) in place of stderr. They come from the same samples and their correlation is not known:
    pass `stderr` and `common_samples=True`; the standard error is then the bound sum |w| stderr, which holds for any
    correlation. ValueError: other shapes or signs, levels that do not ascend, parts that do not sum to eps2.
    """

    def __init__(
        self,
        sigma: Numbers,
        eps2: Numbers,
        stderr: Numbers | None = None,
        dim: int | None = None,
        total_variance: float | None = None,
        common_samples: bool = False,
        *,
        covariance: Numbers | None = None,
        directions: Numbers | None = None,
    ) -> None:
        self.sigma = ascending(sigma, 4)
        self.eps2 = mean_square("eps2", eps2)
        self.covariance = None
        if covariance is not None:
            if stderr is not None or common_samples:
                raise ValueError(
                    f"covariance given beside stderr = {stderr} and common_samples = {common_samples}; "
                    "it replaces both"
                )
            self.covariance = _covariance(covariance, len(self.sigma))
            stderr = self.covariance.diagonal().sqrt()
        self.stderr = None if stderr is None else mean_square("stderr", stderr)
        for name, value in (("eps2", self.eps2), ("stderr", self.stderr)):
            if value is not None and value.shape != self.sigma.shape:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}; pass one a level, {tuple(self.sigma.shape)}"
                )
        self.dim = None if dim is None else integer("dim", dim, 1)
        self.total_variance = None if total_variance is None else positive("total_variance", total_variance)
        self.common_samples = bool(common_samples)
        self.directions = None if directions is None else self._split(directions)
        self._cap()

    def __repr__(self):
        said = [
            f"{len(self.sigma)} levels from {self.sigma[0]:.4g} to {self.sigma[-1]:.4g}",
            f"eps2 {self.eps2[0]:.4g} to {self.eps2[-1]:.4g}",
        ]
        if self.dim is not None:
            said.append(f"dim {self.dim}")
        if self.total_variance is not None:
            said.append(f"total_variance {self.total_variance:.4g}")
        if self.covariance is not None:
            said.append("covariance")
        elif self.stderr is not None:
            said.append("stderr of common samples" if self.common_samples else "stderr")
        if self.directions is not None:
            said.append(f"{self.directions.shape[1]} directions")
        return f"ErrorCurve({', '.join(said)})"

    def entropic(self, rule: str = "spline") -> Time:
        """Entropic time: phi(sigma) = H[x_0 | x] less its value at sigma[0], nats; eq. 14. See `time`."""
        return self.time("entropic", rule)

    def rescaled(self, rule: str = "spline") -> Time:
        """Rescaled entropic time: the integral of sigma dH = eps2 / sigma^2 dsigma; section 5.3."""
        return self.time("rescaled", rule)

    def time(self, kind: str, rule: str = "spline") -> Time:
        """The `Time` of a kind ("entropic" or "rescaled"), by one of two rules of integration.

        "spline", of order 4: the not-a-knot cubic spline of the integrand in log sigma is integrated. An interval on
        which noise would make phi fall, or on which the integrand is 0 at both ends, is integrated by the trapezoid.
        "left", of order 1: the left Riemann sum over sigma of Algorithm 2; phi is linear between levels (Algorithm 1).
        """
        phi, slope, increments, slopes = self._integrated(power_of(kind), rule, self.eps2[:, None])
        linear = None
        if self.stderr is not None:
            identity = torch.eye(len(self.sigma), dtype=torch.float64)
            linear = (cumulative(increments(identity)), None if slopes is None else slopes(identity))
        slope = None if slope is None else slope[:, 0]
        return Time(self.sigma, phi[:, 0], slope, _linear=linear, _combine=self._combine)

    def spectral(self, amplitudes: Numbers, rule: str = "spline") -> Time:
        """Spectral rescaled entropic time: every direction's rescaled entropy normalised, then weighted.

        phi = sum_d amplitudes[d] phi_d(sigma) / phi_d(sigma[-1]), where phi_d is the rescaled time of
        `directions[:, d]`, and amplitudes (m,) >= 0 are those of the data. A direction without error at any level has
        no time of its own and is left out. Ratios are not linear in eps2, so this time has no standard error.
        ValueError: a curve without directions, amplitudes that do not fit them. Source: section 5.4.
        """
        if self.directions is None:
            raise ValueError("directions = None in this curve; pass ErrorCurve the error by direction (n, m)")
        amplitudes = as_float64("amplitudes", amplitudes)
        if amplitudes.shape != self.directions.shape[1:] or not (amplitudes >= 0).all():
            raise ValueError(
                f"amplitudes = {amplitudes}; pass one of at least 0 for each of the "
                f"{self.directions.shape[1]} directions"
            )
        phi, slope, _, _ = self._integrated(POWER["rescaled"], rule, self.directions)
        if not (amplitudes[phi[-1] > 0] > 0).any():
            raise ValueError(f"amplitudes = {amplitudes} are all 0 where there is an error; no time is left")
        weight = torch.where(phi[-1] > 0, amplitudes / phi[-1].clamp_min(1e-300), 0.0)
        return Time(self.sigma, phi @ weight, None if slope is None else slope @ weight)

    def _integrated(self, power, rule, eps2):
        """phi and dphi / dlog sigma of each column of eps2 (n, m), and the linear maps that gave them."""
        sigma = self.sigma
        if rule == "left":
            weight = sigma.diff() / sigma[:-1] ** power

            def increments(values):
                return weight[:, None] * values[:-1]

            slope, slopes = None, None
        elif rule == "spline":
            x = sigma.log()

            def slopes(values):
                return values / sigma[:, None] ** (power - 1)

            slope = slopes(eps2)
            rough = (spline_increments(x, slope) <= 0) | (slope[1:] + slope[:-1] == 0)

            def increments(values):
                y = slopes(values)
                trapezoid = x.diff()[:, None] / 2 * (y[1:] + y[:-1])
                return torch.where(rough, trapezoid, spline_increments(x, y))
        else:
            raise ValueError(f'rule = {rule!r}; use "spline", or "left" for the sum of Algorithm 2')
        return cumulative(increments(eps2)), slope, increments, slopes

    def tails(self, kind: str, entropy: float | None = None) -> Tails:
        """Bounds of what phi lacks outside [sigma[0], sigma[-1]]: `Tails(below, above)`, each (lower, upper).

        Let snr = 1 / sigma^2 and m(snr) = eps2. Then m' = -E||Cov[x_0 | x]||_F^2 <= -m^2 / D, because a covariance C
        has ||C||_F^2 >= (tr C)^2 / D, and E (tr C)^2 >= m^2. Hence (1 / m)' >= 1 / D. One known value
        m_0 = m(snr_0) and a = D / m_0 - snr_0 therefore give m <= D / (a + snr) at every snr above snr_0, and
        m >= D / (a + snr) at every snr below it. At snr = 0, m is the total variance V: m <= D / (D / V + snr).
        These are integrated with dphi = m d(1 / sigma) for the rescaled time and m d(snr) / 2 for the entropic one.
        They are exact for Gaussian data N(., c^2 I).

        `below` of the rescaled time runs from 0, which point masses reach, to D / sqrt(a) arctan(sqrt(a) sigma[0]).
        `below` of the entropic time has no upper bound, as a differential entropy falls to -infinity, unless the data
        are discrete and their `entropy`, in nats, is given. Without `dim` the upper bounds below are infinite, and
        those above use m_0 <= m <= V. Without `total_variance` the upper bound above is infinite.
        The bounds take eps2 as exact; its standard error is left out.
        """
        power = power_of(kind)
        low, high = self.sigma[0].item(), self.sigma[-1].item()
        first, last = self.eps2[0].item(), self.eps2[-1].item()
        dim = math.inf if self.dim is None else self.dim
        floor = 0.0 if self.total_variance is None else dim / self.total_variance

        if first == 0:
            below = 0.0
        elif math.isinf(dim) or kind == "entropic":
            below = math.inf
        else:
            # A negative a is impossible for an exact error; noise or a poor denoiser can cause one.
            root = math.sqrt(max(dim / first - 1 / low**2, floor))
            below = dim * (math.atan(root * low) / root if root else low)

        def above(value, dim, a):
            # The integral of D / (a + snr) from snr = 0 to 1 / high^2; value = D / a when D is infinite.
            if math.isinf(dim):
                return value / high if power == 2 else value / (2 * high**2)
            if power == 2:
                return dim / math.sqrt(a) * math.atan(1 / (math.sqrt(a) * high))
            return dim / 2 * math.log1p(1 / (a * high**2))

        if last == 0:
            lower = 0.0
        else:
            a = dim / last - 1 / high**2
            lower = above(last, dim if a > 0 else math.inf, a)
        upper = math.inf
        if self.total_variance is not None:
            upper = max(lower, above(self.total_variance, dim, floor))
        if entropy is not None and kind == "entropic":
            measured = self.entropic().phi[-1].item()
            below = min(below, max(0.0, positive("entropy", entropy) - measured - lower))
        return Tails((0.0, below), (lower, upper))

    def _split(self, directions):
        directions = mean_square("directions", directions)
        if directions.ndim != 2 or len(directions) != len(self.sigma) or not directions.shape[1]:
            raise ValueError(
                f"directions has shape {tuple(directions.shape)}; pass (levels, directions), "
                f"({len(self.sigma)}, m)"
            )
        off = (directions.sum(1) - self.eps2).abs() - 1e-9 * self.eps2
        if (off > 0).any():
            i = int(off.argmax())
            raise ValueError(
                f"directions[{i}] sum to {directions[i].sum().item()}, but eps2[{i}] = {self.eps2[i].item()}; "
                "pass the parts of the same error in an orthonormal basis"
            )
        return directions

    def _cap(self):
        """Scale the levels at which eps2 is beyond its bound to the bound, and warn of them."""
        variance = math.inf if self.total_variance is None else self.total_variance
        identity = (math.inf if self.dim is None else self.dim) * self.sigma.square()
        bound = identity.clamp_max(variance)
        allowed = SLACK * bound
        if self.stderr is not None:
            allowed = allowed.maximum(_BEYOND * self.stderr)
        above = self.eps2 > bound + allowed
        if not above.any():
            return
        told, times = [], self.eps2 / bound
        for which, words in (
            (
                above & (identity >= variance),
                f"total_variance = {variance:g}, so that the network is worse there than a constant, the data's mean",
            ),
            (
                above & (identity < variance),
                "dim * sigma^2, so that the network is worse there than one that returns its input",
            ),
        ):
            if which.any():
                told.append(
                    f"at sigma = {_listed(self.sigma[which])} it is up to {times[which].max():.3g} times {words}"
                )
        warnings.warn(
            f"eps2 is above what any good denoiser has: {'; '.join(told)}. The bound is taken for it at these levels, "
            "since the best denoiser has no larger error; train the network longer there, or lower the range",
            stacklevel=3,
        )
        factor = torch.where(above, bound / self.eps2, 1.0)
        self.eps2 = torch.where(above, bound, self.eps2)
        self.stderr = None if self.stderr is None else factor * self.stderr
        self.covariance = None if self.covariance is None else factor * self.covariance * factor[:, None]
        self.directions = None if self.directions is None else factor[:, None] * self.directions

    def _combine(self, weights):
        """Standard error of each row of weights @ eps2."""
        if self.covariance is not None:
            # Rounding may leave the variance of a nearly noiseless combination below 0.
            return ((weights @ self.covariance) * weights).sum(-1).clamp_min(0).sqrt()
        if self.common_samples:
            return weights.abs() @ self.stderr
        return (weights.square() @ self.stderr.square()).sqrt()


def _listed(sigma):
    """Noise levels in words: all of a few, else the ends and the number."""
    if len(sigma) <= 4:
        return ", ".join(f"{one:.3g}" for one in sigma.tolist())
    return f"{sigma[0]:.3g} to {sigma[-1]:.3g} ({len(sigma)} levels)"


def _covariance(value, n):
    value = as_float64("covariance", value)
    if value.shape != (n, n):
        raise ValueError(f"covariance has shape {tuple(value.shape)}; {n} levels need ({n}, {n})")
    scale = value.diagonal().clamp_min(0).sqrt()
    # Each level by its own error: they differ by many orders of magnitude along a curve.
    scale = torch.where(scale > 0, scale, 1.0)
    relative = value / scale / scale[:, None]
    if (relative - relative.T).abs().max() > 1e-9:
        raise ValueError("covariance differs from its transpose; symmetrise it")
    lowest = torch.linalg.eigvalsh(relative)[0].item()
    if lowest < -1e-9 * n:
        raise ValueError(f"covariance has the eigenvalue {lowest}, levels scaled to 1; none may be below 0")
    return (value + value.T) / 2
