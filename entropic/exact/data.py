"""The data in one dimension, the law that a sampler starts from, and what every exact law answers."""

import math

import torch

from entropic import _check
from entropic.exact.panels import BULK, LOG_SQRT_2PI, REACH


class Data:
    """A one-dimensional mixture: denoiser and its slope together, without checks, components along axis 0."""

    def __init__(self, mixture):
        if mixture.dim != 1:
            raise ValueError(f"mixture has {mixture.dim} dimensions; exact laws need 1")
        along = (mixture.basis[:, 0, :].square() * mixture.eigenvalues).sum(1)
        self.means = mixture.means[:, :1]
        self.variances = (mixture.noise + along)[:, None]
        self.log_weights = mixture.weights.log()[:, None]

    def _logits(self, x, total):
        """log of the terms of the density at x (n,), (K, n), less a term common to all that is returned too.

        Far outside the means the squares are huge and nearly equal: with e the distance from their hull and p the
        nearest point of it, (x - mean)^2 = (p - mean) (p - mean + 2 e) + e^2, whose e^2 is set apart.
        """
        hull = x.clamp(float(self.means.min()), float(self.means.max()))
        outside = x - hull
        offset = hull - self.means
        logits = (self.log_weights - 0.5 * total.log()) - offset * (offset + 2 * outside) * (0.5 / total)
        curvature = 0.5 / total
        least = float(curvature.min())
        if float(curvature.max()) > least:
            logits = logits - (curvature - least) * outside.square()
        return logits, -least * outside.square()

    def denoise(self, x, sigma):
        """E[x0 | x] and its derivative Var[x0 | x] / sigma^2, shaped like x."""
        shape, x = x.shape, x.reshape(-1)
        total = self.variances + sigma**2
        gain = self.variances / total
        posterior = self._logits(x, total)[0].softmax(0)
        centre = self.means + gain * (x - self.means)
        denoised = (posterior * centre).sum(0)
        slope = (posterior * ((centre - denoised).square() / sigma**2 + gain)).sum(0)
        return denoised.reshape(shape), slope.reshape(shape)

    def log_density(self, x, sigma):
        logits, common = self._logits(x.reshape(-1), self.variances + sigma**2)
        return (logits.logsumexp(0) + (common - LOG_SQRT_2PI)).reshape(x.shape)

    def log_interval(self, low, high, sigma):
        """log P(low < x < high) at noise sigma."""
        std = (self.variances + sigma**2).sqrt()
        return (
            self.log_weights + _log_normal_interval((low - self.means) / std, (high - self.means) / std)
        ).logsumexp(0)

    def reach(self, sigma, reach=REACH):
        std = (self.variances + sigma**2).sqrt() * reach
        return float((self.means - std).min()), float((self.means + std).max())

    def continuous(self):
        return bool((self.variances > 0).all())


def _log_normal_interval(a, b):
    """log(Phi(b) - Phi(a)) for a <= b, without cancellation in either tail."""
    flip = a + b > 0
    low, high = torch.where(flip, -b, a), torch.where(flip, -a, b)  # now low is the deeper in the left tail
    top, bottom = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return top + torch.log(-torch.expm1((bottom - top).clamp_max(0)))


class Start:
    """The initial law: N(0, sigma_max^2) as in the paper, or the exact marginal at sigma_max."""

    def __init__(self, data, start, sigma):
        if start not in ("normal", "exact"):
            raise ValueError(
                f"start = {start!r}; pass 'normal' for N(0, sigma_max^2) or 'exact' for the marginal"
            )
        if start == "normal":
            data = Data.__new__(Data)
            data.means = data.variances = data.log_weights = torch.zeros(1, 1, dtype=torch.float64)
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


class Law:
    """What both kinds of law share. Subclasses give log_density, log_bin_probabilities, moments and _kl."""

    def bin_probabilities(self, centres, halfwidth):
        """P(|y - centre| <= halfwidth) for each of `centres` (B,); `halfwidth` a number or (B,), data units."""
        return self.log_bin_probabilities(centres, halfwidth).exp()

    def log_bin_probabilities(self, centres, halfwidth):
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
        return self._log_intervals(centres - halfwidth, centres + halfwidth)

    def cdf(self, y):
        """P(generated <= y), shaped like `y`."""
        y = _check.as_float64("y", y)
        flat = y.reshape(-1)
        return self._log_intervals(torch.full_like(flat, -math.inf), flat).exp().reshape(y.shape)

    def kl_bins(self, mixture, halfwidth):
        """KL(data || generated) in nats for point masses, the generated law seen in bins around the points.

        sum_k w_k log(w_k / P(|y - a_k| <= halfwidth)); generated mass outside all bins counts as lost.
        ValueError: a component with variance; bins that overlap. Source: section 6.1 and App. H.2.
        """
        data = Data(mixture)
        if bool((data.variances > 0).any()):
            raise ValueError("mixture has components with variance; kl_bins needs point masses, use kl")
        points, order = data.means[:, 0].sort()
        weights = data.log_weights[:, 0][order]
        halfwidth = _check.positive("halfwidth", halfwidth)
        if len(points) > 1 and float(points.diff().min()) < 2 * halfwidth:
            raise ValueError(
                f"halfwidth = {halfwidth} makes bins overlap; use at most {float(points.diff().min()) / 2}"
            )
        found = self.log_bin_probabilities(points, halfwidth)
        return float((weights.exp() * (weights - found)).sum())

    def kl(self, mixture):
        """KL(data || generated) in nats, for data with a density; infinite where the law misses the data.

        ValueError: point masses (use kl_bins).
        """
        data = Data(mixture)
        if not data.continuous():
            raise ValueError("mixture has point masses, whose KL to a density is infinite; use kl_bins")
        return self._kl(data)
