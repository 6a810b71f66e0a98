"""DMN: the grid that keeps the weights of a multistep solver small. It needs the solver alone, no denoiser.

Source: Xue et al. (2024), Accelerating Diffusion Sampling with Optimized Time Steps, and its public code, StepOptim.
"""

import warnings

import numpy as np
import torch

from entropic import _check
from entropic.progress import progress_bar
from entropic.rivals.model import between
from entropic.schedules import log_sigmas

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)
_FEW_CALLS, _TRUNCATED = 7, 3  # the source cuts the first 3 steps off the sum where there are at most 7 calls


def dmn_objective(sigmas, p=1.0, order=3, truncate=0):
    """The quantity that `dmn_sigmas` minimises: sum_i sigma_i^p / alpha_i |sum of the multistep weights of level i|.

    A multistep solver integrates exp(lambda) D over a step of lambda = -ln sigma, where D is replaced by the
    polynomial through its last values. The weight of a level is the integral of exp(lambda) times its Lagrange
    polynomial. The polynomial has `order` nodes, but 1, 2, ... in the first steps and ..., 2, 1 in the last ones.
    sigma_i and alpha_i are those of the variance-preserving frame. As in the source, the weights of the first step,
    and of the first `truncate` ones, do not add up with the others: each of these steps adds the root of its summed
    squares. The step to 0 is left out. Returns a scalar tensor, float64. ValueError: fewer than two levels above 0, or
    bad options. Source: StepOptim, the public code of Xue et al. (2024).
    """
    sigma = _check.schedule(sigmas)[:-1]
    if len(sigma) < 2:
        raise ValueError(f"sigmas = {sigmas}; the objective needs two levels above 0")
    value = _objective(-sigma.detach().log().numpy(), *_options(p, order, truncate))
    return torch.tensor(value, dtype=torch.float64)


def dmn_sigmas(n, sigma_min=0.002, sigma_max=80.0, p=1.0, order=3, truncate=None):
    """DMN: the local minimum of `dmn_objective` that its authors' optimiser reaches, with both ends fixed.

    It is meant for DPM-Solver++ and UniPC. The optimiser is scipy's trust-region method, with its own finite
    differences and options, from uniform log sigma, under the condition that the levels descend. As the source
    recommends, p = 1 in pixel space (2 for latents), and `truncate`, unless given, is 3 for up to 7 levels and 0 for
    more. The method is this local minimum: a deeper one, which other searches find, samples far worse (the page on the
    leaderboard has figures). It calls no denoiser.
    Source: Xue et al. (2024), Accelerating Diffusion Sampling with Optimized Time Steps, and its public code.
    """
    from scipy.optimize import LinearConstraint, minimize

    n = _check.integer("n", n, 2)
    options = _options(p, order, (_TRUNCATED if n <= _FEW_CALLS else 0) if truncate is None else truncate)
    start = -log_sigmas(n, sigma_min, sigma_max)[:-1].log().numpy()
    if n == 2:
        return between(torch.as_tensor(np.exp(-start)), sigma_min, sigma_max)
    # Row i of the condition: a step, as far as it moves with the levels inside, is at least the rest of it.
    steps = np.eye(n - 1, n - 2) - np.eye(n - 1, n - 2, -1)
    least = np.zeros(n - 1)
    least[0], least[-1] = start[0], -start[-1]

    with progress_bar(f"search of {n} levels", "grid") as bar, warnings.catch_warnings():
        # scipy warns where a gradient did not change between two steps, which is harmless here
        warnings.simplefilter("ignore", UserWarning)

        def value(inside):
            bar.update()
            return _objective(np.concatenate([start[:1], inside, start[-1:]]), *options)

        found = minimize(
            value, start[1:-1], method="trust-constr", constraints=[LinearConstraint(steps, least, np.inf)]
        )
    return between(
        torch.as_tensor(np.exp(-np.concatenate([start[:1], found.x, start[-1:]]))), sigma_min, sigma_max
    )


def _options(p, order, truncate):
    order, truncate = _check.integer("order", order, 1), _check.integer("truncate", truncate, 0)
    return float(_check.as_float64("p", p)), order, truncate


def _objective(x, p, order, truncate):
    """`dmn_objective` at x (n,) = -ln sigma, ascending.

    Row s is the step from x[s] to x[s + 1]; its nodes are x[s], x[s - 1], ... Steps of fewer nodes are padded.
    """
    step = np.arange(len(x) - 1)
    count = np.minimum(np.minimum(step + 1, len(step) - step), order)
    slot = np.arange(count.max())
    used = slot < count[:, None]
    index = np.where(used, step[:, None] - slot, 0)
    nodes, high = x[index], x[step + 1]
    # Lagrange polynomials L_j at Gauss-Legendre nodes: (step, j, node).
    half = (high - x[step])[:, None] / 2
    at = x[step, None] + half * (1 + _NODES)
    others = used[:, None, :] & used[:, :, None] & ~np.eye(len(slot), dtype=bool)
    gap = np.where(others, nodes[:, :, None] - nodes[:, None, :], 1.0)
    ratio = (at[:, None, None, :] - nodes[:, None, :, None]) / gap[..., None]
    basis = np.where(others[..., None], ratio, 1.0).prod(2)
    weight = (basis @ (half * _WEIGHTS * np.exp(at))[..., None])[..., 0]
    noise = np.exp(-2 * x)
    factor = (noise / (1 + noise)) ** (p / 2) * np.sqrt(1 + noise)
    term = np.where(used, weight * factor[index], 0.0)
    apart = (step < max(truncate, 1))[:, None]
    shared = np.bincount(index.ravel(), np.where(apart, 0.0, term).ravel(), len(x))
    return np.sqrt(np.where(apart, term**2, 0.0).sum(1)).sum() + np.abs(shared).sum()
