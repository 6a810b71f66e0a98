"""DMN: the grid that keeps the weights of a multistep solver small. It needs the solver alone, no denoiser.

Source: Xue et al. (2024), Accelerating Diffusion Sampling with Optimized Time Steps, and its public code, StepOptim.
"""

import numpy as np
import torch

from entropic import _check
from entropic.progress import progress_bar
from entropic.rivals.model import between
from entropic.schedules import edm_sigmas, log_sigmas

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)
# The kinks of |u| are rounded to sqrt(u^2 + width^2); the widths, in units of the first value, shrink.
_WIDTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8)


def dmn_objective(sigmas, p=2.0, order=3, truncate=3):
    """The quantity that `dmn_sigmas` minimises: sum_i sigma_i^p / alpha_i |sum of the multistep weights of level i|.

    A multistep solver integrates exp(lambda) D over a step of lambda = -ln sigma, where D is replaced by the
    polynomial through its last values. The weight of a level is the integral of exp(lambda) times its Lagrange
    polynomial. The polynomial has `order` nodes, but 1, 2, ... in the first steps and ..., 2, 1 in the last ones.
    sigma_i and alpha_i are those of the variance-preserving frame. As in the source, the weights of the first
    `truncate` steps do not add up with the others: each of these steps adds the root of its summed squares. The step
    to 0 is left out. Returns a scalar tensor, float64. ValueError: fewer than two levels above 0, or bad options.
    Source: StepOptim, the public code of Xue et al. (2024).
    """
    sigma = _check.schedule(sigmas)[:-1]
    if len(sigma) < 2:
        raise ValueError(f"sigmas = {sigmas}; the objective needs two levels above 0")
    value, _ = _objective(-sigma.detach().log().numpy(), 0.0, *_options(p, order, truncate))
    return torch.tensor(value, dtype=torch.float64)


def dmn_sigmas(n, sigma_min=0.002, sigma_max=80.0, p=2.0, order=3, truncate=3):
    """DMN: the grid of the least `dmn_objective` with both ends fixed. It is meant for DPM-Solver++ and UniPC.

    L-BFGS (scipy's) moves the logarithms of the steps of ln sigma, from uniform log sigma (the start of the source)
    and from EDM's grid. The objective has kinks, where a weight is 0: they are rounded, ever less. The result is the
    better of two local minima; the source finds one by a trust-region method. It calls no denoiser.
    Source: Xue et al. (2024), Accelerating Diffusion Sampling with Optimized Time Steps.
    """
    n, options = _check.integer("n", n, 2), _options(p, order, truncate)
    starts = [place(n, sigma_min, sigma_max)[:-1] for place in (log_sigmas, edm_sigmas)]
    with progress_bar(f"search of {n} levels", "grid") as bar:
        found = [_search(-start.log().numpy(), options, bar) for start in starts]
    x, _ = min(found, key=lambda pair: pair[1])
    return between(torch.as_tensor(np.exp(-x)), sigma_min, sigma_max)


def _options(p, order, truncate):
    order, truncate = _check.integer("order", order, 1), _check.integer("truncate", truncate, 0)
    return float(_check.as_float64("p", p)), order, truncate


def _search(start, options, bar):
    """A local minimum of the objective near `start` (n,) = -ln sigma, ascending, and its value; never a worse one."""
    from scipy.optimize import minimize

    span = start[-1] - start[0]
    best, least = start, _objective(start, 0.0, *options)[0]
    scale, z = least, np.log(np.diff(start) / span)
    z = np.clip(z, -16.0, 4.0)

    def levels(z):
        share = np.exp(z)
        share /= share.sum()
        return start[0] + span * np.concatenate([[0.0], share.cumsum()]), share

    def rounded(z, width):
        bar.update()
        x, share = levels(z)
        value, slope = _objective(x, width, *options)
        # A step moves all the levels after it; the shares of the steps sum to 1.
        slope = span * slope[:0:-1].cumsum()[::-1]
        return value, share * (slope - share @ slope)

    for width in _WIDTHS if len(start) > 2 else ():
        z = minimize(
            rounded,
            z,
            (width * scale,),
            method="L-BFGS-B",
            jac=True,
            bounds=[(-16.0, 4.0)] * len(z),
            options={"maxiter": 200, "maxcor": 20, "ftol": 1e-14, "gtol": 0.0},
        ).x
        x, _ = levels(z)
        x[-1] = start[-1]
        value, _ = _objective(x, 0.0, *options)
        if value < least and (np.diff(x) > 0).all():
            best, least = x, value
    return best, least


def _objective(x, width, p, order, truncate):
    """`dmn_objective` at x (n,) = -ln sigma, ascending, with |u| rounded to sqrt(u^2 + width^2); and its gradient.

    Row s is the step from x[s] to x[s + 1]; its nodes are x[s], x[s - 1], ... Steps of fewer nodes are padded.
    """
    step = np.arange(len(x) - 1)
    count = np.minimum(np.minimum(step + 1, len(step) - step), order)
    slot = np.arange(count.max())
    used = slot < count[:, None]
    index = np.where(used, step[:, None] - slot, 0)
    nodes, high = x[index], x[step + 1]
    # Lagrange polynomials L_j at Gauss-Legendre nodes and, last, at the end of the step: (step, j, node).
    half = (high - x[step])[:, None] / 2
    at = np.concatenate([x[step, None] + half * (1 + _NODES), high[:, None]], 1)
    others = used[:, None, :] & used[:, :, None] & ~np.eye(len(slot), dtype=bool)
    gap = np.where(others, nodes[:, :, None] - nodes[:, None, :], 1.0)
    ratio = (at[:, None, None, :] - nodes[:, None, :, None]) / gap[..., None]
    basis = np.where(others[..., None], ratio, 1.0).prod(2)
    weight = basis[..., :-1] @ (half * _WEIGHTS * np.exp(at[:, :-1]))[..., None]
    weight = np.where(used, weight[..., 0], 0.0)
    noise = np.exp(-2 * x)
    factor = (noise / (1 + noise)) ** (p / 2) * np.sqrt(1 + noise)
    term = weight * factor[index]

    apart = (step < truncate)[:, None]
    norm = np.sqrt(np.where(apart, term**2, 0.0).sum(1, keepdims=True))
    shared = np.bincount(index.ravel(), np.where(apart, 0.0, term).ravel(), len(x))
    size = np.sqrt(shared**2 + width**2) if width else np.abs(shared)
    by_term = np.where(
        apart, term / np.where(norm > 0, norm, 1.0), (shared / np.where(size > 0, size, 1.0))[index]
    )

    # Moving a node x_m changes L_j by -L_j'(x_m) L_m; moving an end of the step adds the integrand there.
    product = gap.prod(2)
    bend = np.where(others, product[:, None, :] / product[:, :, None] / -gap, 0.0)
    bend += np.eye(len(slot)) * np.where(others, 1 / gap, 0.0).sum(2)[:, None, :]
    by_weight = by_term * factor[index]
    by_node = by_term * weight * (factor * -(p + noise) / (1 + noise))[index]
    by_node -= (by_weight[:, None, :] @ bend)[:, 0] * weight
    slope = np.bincount(index.ravel(), np.where(used, by_node, 0.0).ravel(), len(x))
    slope[1:] += np.exp(high) * np.where(used, by_weight * basis[..., -1], 0.0).sum(1)
    slope[:-1] -= np.exp(x[:-1]) * by_weight[:, 0]
    return norm.sum() + size.sum(), slope
