"""Gaussian data: the exact law of every solver, how far it is from the data, and the spectrum that a curve implies.

A direction of the data with variance c^2 has the denoiser D(x; sigma) = u x, u = c^2 / (c^2 + sigma^2). A solver's step
is linear in x and in D, so it multiplies each direction by a number, and the law after all steps is known in closed
form. Distances are summed over the directions, each of `multiplicity` m_i: with r_i = s_i / c_i the generated over the
true standard deviation,

    KL           KL(generated || data) = sum_i m_i (r_i^2 - 1 - log r_i^2) / 2, in nats
    W2           the squared Wasserstein (Frechet) distance sum_i m_i (s_i - c_i)^2
    Weighted(a)  sum_i m_i c_i^(2 a) (r_i - 1)^2: W2 at a = 1 and, to second order, KL at a = 0
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from entropic import _check
from entropic.curve import ErrorCurve
from entropic.solvers import Solver, find_solver
from entropic.types import Numbers

__all__ = [
    "KL",
    "W2",
    "Goal",
    "Spectrum",
    "Weighted",
    "gaussian_deviation",
    "gaussian_kl",
    "gaussian_law",
    "gaussian_w2",
    "goal_of",
    "implied_spectrum",
    "local_error",
    "misfit",
    "order",
    "spectrum",
]


# What is measured


@dataclasses.dataclass(frozen=True)
class Weighted:
    """The distance sum_i m_i c_i^(2 alpha) (s_i / c_i - 1)^2; its exponent `alpha` is a finite number."""

    alpha: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", float(_check.as_float64("alpha", self.alpha)))

    def of_ratios(self, ratio: torch.Tensor, variances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The term of each direction, and its derivative in the ratio s_i / c_i."""
        weight = variances**self.alpha
        return weight * (ratio - 1) ** 2, 2 * weight * (ratio - 1)


class _KL:
    """KL(generated || data), the generated law first; in nats."""

    alpha = 0.0  # of the weighted distance that it equals to second order

    def __repr__(self) -> str:
        return "KL"

    def of_ratios(self, ratio: torch.Tensor, variances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Weighted.of_ratios`."""
        of = torch if isinstance(ratio, torch.Tensor) else np
        off = ratio - 1
        # Near 1 the logarithm of 1 + off keeps its digits, near 0 that of the ratio.
        log = of.where(off < -0.5, of.log(ratio), of.log1p(of.where(off < -0.5, 0.0 * off, off)))
        return off**2 / 2 + off - log, ratio - 1 / ratio


KL = _KL()
W2 = Weighted(1.0)
Goal: TypeAlias = Weighted | _KL


def goal_of(metric, alpha=None):
    """The goal of a metric, "kl" or "w2", which `alpha` replaces where it is given. ValueError: another metric."""
    if metric not in ("kl", "w2"):
        raise ValueError(f'metric = {metric!r}; use "kl" or "w2", or pass alpha')
    if alpha is not None:
        return Weighted(alpha)
    return KL if metric == "kl" else W2


# The data


class Spectrum(NamedTuple):
    """Distinct variances (K,) above 0, ascending, and the number of directions (K,) of each."""

    variances: torch.Tensor
    multiplicity: torch.Tensor


def spectrum(variances, multiplicity=None):
    """The `Spectrum` of variances (K,) >= 0 with their `multiplicity` (K,) > 0, one each unless given.

    A direction without variance is left out: every solver makes it exactly. ValueError: bad input, no variance above 0.
    """
    variances = _check.as_float64("variances", variances).detach()
    if variances.ndim != 1 or not (variances >= 0).all() or not (variances > 0).any():
        raise ValueError(f"variances = {variances}; pass (K,) of at least 0, one of them above 0")
    multiplicity = _check.multiplicity(multiplicity, len(variances))
    some = variances > 0
    values, index = variances[some].unique(return_inverse=True)
    return Spectrum(values, torch.zeros_like(values).index_add(0, index, multiplicity[some]))


# The law of a solver


def gaussian_law(
    variances: Numbers, sigmas: Numbers, solver: str | Solver = "ddim", start: str = "exact"
) -> torch.Tensor:
    """Variances that a solver gives Gaussian data N(0, diag(variances)), in closed form.

    variances (D,) of the data along its principal directions, sigmas (N + 1,) descending to 0, solver a name or a
    `Solver`, start "exact" (variances + sigma_max^2) or "normal" (sigma_max^2). Returns (D,), differentiable in
    `sigmas` and `variances`. ValueError: negative variances, bad sigmas, unknown solver or start.
    """
    variances = _check.as_float64("variances", variances)
    if variances.ndim != 1 or not (variances >= 0).all():
        raise ValueError(
            f"variances has shape {tuple(variances.shape)} and minimum {variances.min().item()}; pass (D,) >= 0"
        )
    if start not in ("normal", "exact"):
        raise ValueError(
            f"start = {start!r}; pass 'exact' for the marginal at sigma_max or 'normal' for N(0, sigma_max^2)"
        )
    solver, sigmas = find_solver(solver), _check.schedule(sigmas)
    first = sigmas[0] ** 2 + (variances if start == "exact" else torch.zeros_like(variances))
    # Rows of x are independent noises of variance 1: the start, then one for each step of a stochastic solver.
    x, past, last = torch.ones_like(variances)[None] * first.sqrt(), (), len(sigmas) - 2
    for index in range(last + 1):
        following = sigmas[index + 1] if index < last else 0.0
        move = solver.step(
            lambda x, sigma: variances / (variances + sigma**2) * x, x, sigmas[index], following, past
        )
        x, past = move.mean, move.past
        if solver.stochastic and index < last:
            noise = (move.std * torch.ones_like(variances))[None]
            x = torch.cat([x, noise])
            past = tuple((torch.cat([before, torch.zeros_like(noise)]), sigma) for before, sigma in past)
    return x.square().sum(0)


def gaussian_kl(variances: Numbers, generated: Numbers) -> torch.Tensor:
    """KL(N(0, diag(variances)) || N(0, diag(generated))) in nats: the data first. ValueError: variances not above 0."""
    variances, generated = _two_spectra(variances, generated)
    if not ((variances > 0).all() and (generated > 0).all()):
        raise ValueError("variances and generated must be above 0: the KL to a degenerate law is infinite")
    excess = variances / generated - 1
    return 0.5 * (excess - torch.log1p(excess)).sum()


def gaussian_w2(variances: Numbers, generated: Numbers) -> torch.Tensor:
    """Squared 2-Wasserstein distance of the two Gaussians, which is their Frechet distance as FID counts it."""
    variances, generated = _two_spectra(variances, generated)
    if not ((variances >= 0).all() and (generated >= 0).all()):
        raise ValueError("variances and generated must be at least 0")
    return (variances.sqrt() - generated.sqrt()).square().sum()


def gaussian_deviation(variances, sigmas, solver="ddim", metric="kl", *, alpha=None, multiplicity=None):
    """Distance of the law that a solver gives Gaussian data from the data, exact, by `metric` or `alpha`.

    variances (K,) >= 0, each of `multiplicity` (K,) > 0 directions (1 unless given), sigmas (N + 1,) descending to
    0. metric "kl" is KL(generated || data). The start is the exact law at sigma_max, of variances c^2 + sigma_max^2. A
    direction without variance is made exactly by every solver and adds nothing. Returns a scalar, differentiable in
    `sigmas`. ValueError: bad input.
    """
    data = spectrum(variances, multiplicity)
    ratio = (gaussian_law(data.variances, sigmas, solver) / data.variances).sqrt()
    return data.multiplicity @ goal_of(metric, alpha).of_ratios(ratio, data.variances)[0]


# One step


def order(solver):
    """Order p of a solver: its relative error in one step h is C h^(p + 1). ValueError: an unknown solver."""
    return find_solver(solver).order


def local_error(u, sigma, solver="ddim"):
    """C of the relative local error C h^(p + 1): the first term of s_next / sqrt(c^2 + (sigma - h)^2) - 1.

    u in [0, 1] and sigma > 0 broadcast; s_next is the standard deviation after one step of length h from the exact
    law. DDIM -u (1 - u) / (2 sigma^2); stochastic DDIM -2 u (1 - u) / sigma^2, of which the share u is left at
    sigma = 0; Heun u (1 - u)^2 / (2 sigma^3); DPM-Solver++(2M) -u (1 - u) (2 - 5 u) / (4 sigma^3), where the step
    before was as long in log sigma. ValueError: u or sigma out of range, an unknown solver.
    """
    solver = find_solver(solver)
    u, sigma = _check.as_float64("u", u), _check.as_float64("sigma", sigma)
    if not ((u >= 0) & (u <= 1)).all():
        raise ValueError(f"u runs from {u.min().item()} to {u.max().item()}; pass eps2 / sigma^2, in [0, 1]")
    if not (sigma > 0).all():
        raise ValueError(f"sigma = {sigma.min().item()}; a step starts above 0")
    return solver.leading_error(u) / sigma ** (solver.order + 1)


# The spectrum behind a curve


def implied_spectrum(curve, size=96):
    """A `Spectrum` of Gaussian data whose error is that of an `ErrorCurve`.

    Nonnegative least squares for masses m_k on `size` variances, c_k uniform in log c over the curve's range:
    sum_k m_k c_k^2 sigma^2 / (c_k^2 + sigma^2) = eps2, weighted by 1 / sigma^2 + D / V. One direction alone makes no
    larger error than all: c^2 <= 1 / (1 / eps2 - 1 / sigma^2), at the last level. Only a few masses are above 0,
    however many variances the data have: the kernel is smooth, so these few have the same error and nearly the same
    best grids. `curve.directions` is not used: the noise of each bin would be fitted, too.
    ValueError: a curve of zeros.
    """
    from scipy.optimize import nnls

    _error_curve(curve)
    square, total = curve.sigma.square(), curve.eps2.max()
    if not total > 0:
        raise ValueError("eps2 = 0 at every level; a curve without error implies no spectrum")
    most = 1 / (1 / curve.eps2[-1] - 1 / square[-1]).clamp_min(1 / square[-1])
    ends = square[0].log(), most.maximum(4 * square[0]).log()
    variances = torch.linspace(*ends, _check.integer("size", size, 2), dtype=torch.float64).exp()
    rows = 1 / square + (curve.eps2 / square).max() / total
    scaled = (rows[:, None] / (1 / variances + 1 / square[:, None])).numpy()
    norms = np.linalg.norm(scaled, axis=0)
    shares = nnls(scaled / norms, (rows * curve.eps2).numpy(), maxiter=30 * size)[0]
    shares[shares < 1e-12 * shares.max()] = 0.0  # what rounding leaves
    masses = torch.as_tensor(shares / norms)
    return Spectrum(variances[masses > 0], masses[masses > 0])


def misfit(curve, variances, multiplicity=None):
    """How far an `ErrorCurve` is from that of Gaussian data with a spectrum, as `implied_spectrum` returns it.

    Root mean square over log sigma of the difference in u = eps2 / sigma^2, in units of the largest u: 0 for the
    curve of the spectrum. Noise in the curve is misfit, too. variances (K,), multiplicity (K,) or one each.
    ValueError: bad input.
    """
    _error_curve(curve)
    data = spectrum(variances, multiplicity)
    square, x = curve.sigma.square(), curve.sigma.log()
    u = curve.eps2 / square
    fitted = (data.multiplicity / (1 + square[:, None] / data.variances)).sum(1)
    mean = torch.trapezoid((fitted - u).square(), x) / (x[-1] - x[0])
    return float(mean.sqrt() / u.max())


def _error_curve(curve):
    if not isinstance(curve, ErrorCurve):
        raise ValueError(f"curve is a {type(curve).__name__}; pass an ErrorCurve")


def _two_spectra(variances, generated):
    variances = _check.as_float64("variances", variances)
    generated = _check.as_float64("generated", generated)
    if variances.shape != generated.shape or variances.ndim != 1:
        raise ValueError(
            f"variances {tuple(variances.shape)} and generated {tuple(generated.shape)}: pass two spectra (D,)"
        )
    return variances, generated
