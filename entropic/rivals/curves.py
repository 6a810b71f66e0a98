"""Align Your Steps: the schedule of a bound on the KL that an error curve gives. It calls no denoiser.

Source: Sabour et al. (2024), Align Your Steps.
"""

import torch

from entropic import _check
from entropic.curve import ErrorCurve
from entropic.rivals.model import between, interpolate
from entropic.schedules import edm_sigmas


def klub(curve, sigmas):
    """The bound KLUB of stochastic DDIM over `sigmas`, in nats, from an `ErrorCurve` alone.

    It is an upper bound of KL(data || samples). It is the sum over the steps from sigma_i down to sigma_j of
    1/2 eps2(sigma_i) (sigma_j^-2 - sigma_i^-2) - (H(sigma_i) - H(sigma_j)), because a denoiser that is frozen over the
    step errs by E||D_i - D||^2 = eps2(sigma_i) - eps2(sigma): D is a martingale. The step to 0 has an infinite bound
    and is left out. H is that of eq. 13 (of 2504.13612).

    For data N(0, c^2 I) the bound is least where 1/c^2 + 1/sigma^2 is geometric, which is uniform in the entropic time.
    It is not least where arctan(sigma / c) is uniform; that is the optimum of the KL of the deterministic sampler
    (theorem 3.1 of Sabour et al.). For small steps the best density is sqrt(eps2'(sigma) / sigma^3).
    ValueError: fewer than two levels above 0, or levels outside the curve. Source: Sabour et al. (2024).
    """
    sigma = _check.schedule(sigmas)[:-1]
    if len(sigma) < 2:
        raise ValueError(f"sigmas = {sigmas}; a bound needs two levels above 0")
    time = _entropic(curve)
    phi, square = time.phi_at(sigma), sigma.square()
    frozen = _eps2(time, sigma[:-1]) / 2 * (1 / square[1:] - 1 / square[:-1])
    return (frozen - phi[:-1] + phi[1:]).sum()


def ays_sigmas(n, curve, sigma_min=None, sigma_max=None, *, candidates=11, stages=3, max_sweeps=1000):
    """Align Your Steps: the `klub` of a curve, lowered level by level. It is meant for stochastic DDIM.

    The search starts from eleven levels (ten steps) of EDM. Each level in turn moves to the best of `candidates`
    levels spread evenly in log sigma between its neighbours, until none moves. Then every step is split at its log
    midpoint and the search goes on, for `stages` grids in all (11, 21 and 41 levels). Another n is read off the
    smallest grid that has n levels (else off the largest) by linear interpolation of log sigma over the index. The
    search stops a few percent above the least bound; more candidates come nearer. The range is the curve's own unless
    given. ValueError: a curve that does not cover the range. Source: Sabour et al. (2024), who estimate each bound from
    8192 samples.
    """
    n, count = _check.integer("n", n, 2), _check.integer("candidates", candidates, 1)
    stages, max_sweeps = _check.integer("stages", stages, 1), _check.integer("max_sweeps", max_sweeps, 1)
    time = _entropic(curve)
    low, high = _check.sigma_range(sigma_min, sigma_max, curve.sigma)
    x = edm_sigmas(11, low, high)[:-1].log()
    share = torch.arange(1, count + 1, dtype=torch.float64) / (count + 1)
    for stage in range(stages):
        if stage:
            x = torch.cat([x, (x[1:] + x[:-1]) / 2]).sort(descending=True).values
        eps2, phi, snr = _eps2(time, x.exp()), time.phi_at(x.exp()), (-2 * x).exp()
        for _ in range(max_sweeps):
            moved = False
            # No two levels of one parity share a step, so they move at once.
            for first in (1, 2):
                inside = torch.arange(first, len(x) - 1, 2)
                above, below = x[inside - 1, None], x[inside + 1, None]
                tried = torch.cat([x[inside, None], above + share * (below - above)], 1)
                tried_eps2, tried_snr = _eps2(time, tried.exp()), (-2 * tried).exp()
                # The bound of both steps, less H below - H above, which no move changes.
                cost = eps2[inside - 1, None] / 2 * (tried_snr - snr[inside - 1, None])
                cost = cost + tried_eps2 / 2 * (snr[inside + 1, None] - tried_snr)
                least, best = cost.min(1)
                # A gain within rounding is none, or the search would not end.
                rounding = 1e-12 * (cost[:, 0] + phi[inside + 1] - phi[inside - 1])
                best = torch.where(least < cost[:, 0] - rounding, best, 0)
                if not best.any():
                    continue
                moved = True
                for level, of_tried in ((x, tried), (eps2, tried_eps2), (snr, tried_snr)):
                    level[inside] = of_tried.gather(1, best[:, None])[:, 0]
                phi[inside] = time.phi_at(x[inside].exp())
            if not moved:
                break
        if len(x) >= n:
            break
    place = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
    at = torch.linspace(0.0, 1.0, len(x), dtype=torch.float64)
    return between(interpolate(place, at, x).exp(), low, high)


def _entropic(curve):
    if not isinstance(curve, ErrorCurve):
        raise ValueError(f"curve is a {type(curve).__name__}; pass an ErrorCurve")
    return curve.entropic()


def _eps2(time, sigma):
    """eps2 from the interpolant of the entropy, so that it and H belong together."""
    return time.rate_at(sigma) * sigma**3
