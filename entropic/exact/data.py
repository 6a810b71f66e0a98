"""The data in one dimension, the law that a sampler starts from, and what every exact law answers."""

from __future__ import annotations

import math

import numpy as np
import torch

from entropic import _check
from entropic.exact.panels import BULK, LOG_SQRT_2PI, REACH
from entropic.mixtures import GaussianMixture
from entropic.types import Numbers


class Data:
    """A one-dimensional mixture: denoiser and its slope together, without checks, components along axis 0.

    The exact laws work in NumPy: they make very many operations on a few numbers each.
    """

    def __init__(self, mixture):
        if mixture.dim != 1:
            raise ValueError(f"mixture has {mixture.dim} dimensions; exact laws need 1")
        along = (mixture.basis[:, 0, :].square() * mixture.eigenvalues).sum(1)
        of_mixture = mixture.means[:, :1], (mixture.noise + along)[:, None], mixture.weights.log()[:, None]
        self._set(*(one.numpy(force=True).copy() for one in of_mixture))

    def _set(self, means, variances, log_weights):
        self.means, self.variances, self.log_weights = means, variances, log_weights
        self.hull = float(self.means.min()), float(self.means.max())
        self.least_variance = float(self.variances.min())
        self._levels = {}

    def _at(self, sigma):
        """What depends on sigma alone: total variances, log weights, curvatures, the least of these, the excess."""
        if sigma not in self._levels:
            total = self.variances + sigma**2
            curvature = 0.5 / total
            least = float(curvature.min())
            excess = curvature - least if float(curvature.max()) > least else None
            self._levels[sigma] = total, self.log_weights - 0.5 * np.log(total), curvature, least, excess
        return self._levels[sigma]

    def _logits(self, x, sigma):
        """log of the terms of the density at x (n,), (K, n), less a term common to all that is returned too.

        Far outside the means the squares are huge and nearly equal: with e the distance from their hull and p the
        nearest point of it, (x - mean)^2 = (p - mean) (p - mean + 2 e) + e^2, whose e^2 is set apart.
        """
        _, log_scale, curvature, least, excess = self._at(sigma)
        hull = x.clip(*self.hull)
        outside = x - hull
        offset = hull - self.means
        logits = offset + 2 * outside
        logits *= offset
        logits *= curvature
        np.subtract(log_scale, logits, out=logits)
        square = outside * outside
        if excess is not None:
            logits -= excess * square
        return logits, -least * square

    def denoise(self, x, sigma):
        """E[x0 | x] and its derivative Var[x0 | x] / sigma^2, shaped like x."""
        shape, x = x.shape, x.reshape(-1)
        gain = self.variances / self._at(sigma)[0]
        posterior = self._logits(x, sigma)[0]
        posterior -= posterior.max(0)
        np.exp(posterior, out=posterior)
        posterior /= posterior.sum(0)
        centre = self.means + gain * (x - self.means)
        denoised = (posterior * centre).sum(0)
        centre -= denoised
        centre *= centre
        centre /= sigma**2
        centre += gain
        centre *= posterior
        return denoised.reshape(shape), centre.sum(0).reshape(shape)

    def log_density(self, x, sigma):
        logits, common = self._logits(x.reshape(-1), sigma)
        top = logits.max(0)
        logits -= top
        found = np.log(np.exp(logits, out=logits).sum(0))
        return (found + top + (common - LOG_SQRT_2PI)).reshape(x.shape)

    def log_interval(self, low, high, sigma):
        """log P(low < x < high) at noise sigma."""
        std = np.sqrt(self.variances + sigma**2)
        terms = self.log_weights + _log_normal_interval((low - self.means) / std, (high - self.means) / std)
        return np.logaddexp.reduce(terms, 0)

    def reach(self, sigma, reach=REACH):
        std = np.sqrt(self.variances + sigma**2) * reach
        return float((self.means - std).min()), float((self.means + std).max())

    def continuous(self):
        return self.least_variance > 0


def _log_normal_interval(a, b):
    """log(Phi(b) - Phi(a)) for a <= b, without cancellation in either tail."""
    from scipy.special import log_ndtr

    flip = a + b > 0
    low, high = np.where(flip, -b, a), np.where(flip, -a, b)  # now low is the deeper in the left tail
    top, bottom = log_ndtr(high), log_ndtr(low)
    return top + np.log(-np.expm1((bottom - top).clip(max=0)))


class Start:
    """The initial law: N(0, sigma_max^2) as in the paper, or the exact marginal at sigma_max."""

    def __init__(self, data, start, sigma):
        if start not in ("normal", "exact"):
            raise ValueError(
                f"start = {start!r}; pass 'normal' for N(0, sigma_max^2) or 'exact' for the marginal"
            )
        if start == "normal":
            data, zero = Data.__new__(Data), np.zeros((1, 1))
            data._set(zero, zero, zero)
        self.data, self.sigma = data, sigma

    def log_density(self, z):
        return self.data.log_density(z, self.sigma)

    def log_interval(self, low, high):
        return self.data.log_interval(low, high, self.sigma)

    def reach(self, reach=BULK):
        return self.data.reach(self.sigma, reach)


def inputs(mixture, sigmas, start, resolution):
    data, sigmas = Data(mixture), _check.schedule(sigmas).detach().tolist()
    resolution = float(_check.as_float64("resolution", resolution))
    if not resolution >= 0.5:
        raise ValueError(
            f"resolution = {resolution}; 1 is accurate, 2 halves the panels, below 0.5 is too coarse"
        )
    return data, sigmas, Start(data, start, sigmas[0]), resolution


def quiet():
    """No warnings of NumPy: a density of 0 has the logarithm -inf, and what weighs nothing may overflow.

    For `with`, not as a decorator: a decorator's one object would hold the settings of several threads in NumPy 1.26.
    """
    return np.errstate(all="ignore")


class Law:
    """What both kinds of law share. Subclasses give _log_density, _log_intervals, of NumPy arrays, _moments, _kl."""

    def log_density(self, y: Numbers) -> torch.Tensor:
        """log density of the generated value at `y`, nats, shaped like y; -inf where nothing is generated."""
        y = _check.as_float64("y", y)
        with quiet():
            found = self._log_density(y.reshape(-1).numpy(force=True))
        return torch.from_numpy(found).reshape(y.shape)

    def bin_probabilities(self, centres: Numbers, halfwidth: Numbers) -> torch.Tensor:
        """P(|y - centre| <= halfwidth) for each of `centres` (B,); `halfwidth` a number or (B,), data units."""
        return self.log_bin_probabilities(centres, halfwidth).exp()

    def log_bin_probabilities(self, centres: Numbers, halfwidth: Numbers) -> torch.Tensor:
        """log of `bin_probabilities`, nats; finite where the probability is below the smallest float.

        ValueError: halfwidth not above 0.
        """
        centres, halfwidth = _check.as_float64("centres", centres), _check.as_float64("halfwidth", halfwidth)
        if centres.ndim != 1 or halfwidth.shape not in {(), centres.shape}:
            raise ValueError(
                f"centres {tuple(centres.shape)} and halfwidth {tuple(halfwidth.shape)}: pass (B,) and () or (B,)"
            )
        if not (halfwidth > 0).all():
            raise ValueError(f"halfwidth = {halfwidth.min().item()}; a bin needs a width above 0")
        return self._interval(centres - halfwidth, centres + halfwidth)

    def cdf(self, y: Numbers) -> torch.Tensor:
        """P(generated <= y), shaped like `y`."""
        y = _check.as_float64("y", y)
        flat = y.reshape(-1)
        return self._interval(torch.full_like(flat, -math.inf), flat).exp().reshape(y.shape)

    def _interval(self, low, high):
        with quiet():
            found = self._log_intervals(low.numpy(force=True), high.numpy(force=True))
        return torch.from_numpy(found)

    def moments(self) -> tuple[float, float, float]:
        """Total mass, mean and variance of the generated value, as floats; the mass is 1 up to the error."""
        with quiet():
            return self._moments()

    def kl_bins(self, mixture: GaussianMixture, halfwidth: Numbers) -> float:
        """KL(data || generated) in nats for point masses, the generated law seen in bins around the points.

        sum_k w_k log(w_k / P(|y - a_k| <= halfwidth)); generated mass outside all bins counts as lost.
        ValueError: a component with variance; bins that overlap. Source: section 6.1 and App. H.2.
        """
        data = Data(mixture)
        if (data.variances > 0).any():
            raise ValueError("mixture has components with variance; kl_bins needs point masses, use kl")
        order = data.means[:, 0].argsort()
        points, weights = data.means[order, 0], torch.from_numpy(data.log_weights[order, 0])
        halfwidth = _check.positive("halfwidth", halfwidth)
        if len(points) > 1 and np.diff(points).min() < 2 * halfwidth:
            raise ValueError(
                f"halfwidth = {halfwidth} makes bins overlap; use at most {np.diff(points).min() / 2}"
            )
        found = self.log_bin_probabilities(points, halfwidth)
        return float((weights.exp() * (weights - found)).sum())

    def kl(self, mixture: GaussianMixture) -> float:
        """KL(data || generated) in nats, for data with a density; infinite where the law misses the data.

        ValueError: point masses (use kl_bins).
        """
        data = Data(mixture)
        if not data.continuous():
            raise ValueError("mixture has point masses, whose KL to a density is infinite; use kl_bins")
        with quiet():
            return self._kl(data)
