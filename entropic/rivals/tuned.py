"""EDM's family with its constants tuned to the data's spectrum, the solver and the goal: what solver-aware grids know.

It calls no denoiser. Source of the family: Karras et al. (2022), eq. 5.
"""

import math

import numpy as np

from entropic import _check
from entropic.gaussian import gaussian_deviation, spectrum
from entropic.progress import progress_bar
from entropic.schedules import edm_sigmas

_ENDS, _CURVES = 31, 8  # levels of the last sigma, and of 1 / rho, from which the search starts
_FINALISTS = 2  # finer lattices and more finalists found the same minima, to rounding
_LEAST_SHARE = 0.02  # of log(sigma_max / sigma_min) that is left between the last level and sigma_max


def tuned_edm_sigmas(
    n,
    variances,
    solver="ddim",
    metric="kl",
    sigma_min=0.002,
    sigma_max=80.0,
    *,
    alpha=None,
    multiplicity=None,
    rho=7.0,
):
    """EDM's grid with the last level, and with rho=None also rho, that minimise `gaussian_deviation`.

    variances (K,) >= 0 of the data along its principal directions, multiplicity (K,) > 0 or one each; those of
    `implied_spectrum` for an error curve. The last level is sigma_min or above; rho is between 1/2 and 200, which is
    nearly uniform log sigma. Every pair on a lattice is tried, and the best few are refined by Nelder and Mead's
    method: deterministic, and never worse than EDM's own grid. ValueError: n < 2, no variance above 0, a bad range, an
    unknown solver or metric. Source of the family: Karras et al. (2022), eq. 5; of the tuning: here.
    """
    from scipy.optimize import minimize

    n = _check.integer("n", n, 2)
    low, high = _check.sigma_range(sigma_min, sigma_max)
    data = spectrum(variances, multiplicity)
    rho = None if rho is None else _check.positive("rho", rho)
    top = high * (low / high) ** _LEAST_SHARE
    ends = np.linspace(math.log(low), math.log(top), _ENDS)
    bends = np.linspace(0.005, 2.0, _CURVES) if rho is None else np.array([1 / rho])
    bends = np.unique(np.append(bends, 1 / 7.0)) if rho is None else bends

    def grid(point):
        end = math.exp(min(max(point[0], ends[0]), ends[-1]))
        bend = min(max(point[1], bends[0]), bends[-1])
        # Neither is moved by the rounding of a logarithm where it is at the end of its range.
        return edm_sigmas(n, low if point[0] <= ends[0] else end, high, 1 / bend)

    with progress_bar(f"search of {n} levels", "grid") as bar:

        def deviation(point):
            bar.update()
            value = gaussian_deviation(
                data.variances, grid(point), solver, metric, alpha=alpha, multiplicity=data.multiplicity
            )
            return float(value)

        tried = sorted((deviation(point), point) for point in ((end, bend) for end in ends for bend in bends))
        # The finalists are the best points of the lattice that are not neighbours of one another.
        apart, kept = 2.5 * (ends[1] - ends[0]), []
        for value, point in tried:
            if all(abs(point[0] - other[0]) > apart for _, other in kept):
                kept.append((value, point))
            if len(kept) == _FINALISTS:
                break
        step = np.array([[ends[1] - ends[0], 0.0], [0.0, bends[-1] - bends[0]]]) / [1, _CURVES]
        free = 2 if rho is None else 1
        for _, point in list(kept):
            first = np.array(point)[:free]
            found = minimize(
                lambda moved, point=point: deviation((*moved, *point[free:])),
                first,
                method="Nelder-Mead",
                options={
                    "initial_simplex": np.vstack([first, first + step[:free, :free]]),
                    "xatol": 1e-5,
                    "fatol": 0.0,
                    "maxfev": 150,
                },
            )
            kept.append((found.fun, (*found.x, *point[free:])))
    return grid(min(kept)[1])
