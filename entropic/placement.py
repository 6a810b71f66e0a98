"""Solver-aware time: grids that know which solver will walk them, and in what distance its law is measured.

An orthonormal direction of the data has the uncertainty u = eps2_i / sigma^2, the mean gain of the denoiser there.
Everything is worked out for Gaussian data, where u = c^2 / (c^2 + sigma^2) with c^2 the variance along the direction:
each solver multiplies each direction by a known factor a step. A step h in sigma (downwards) errs by C h^(p+1)
relative to the standard deviation; C sigma^(p+1) = k(u) is a polynomial in u, so that in log sigma nothing but u is
needed. What is kept of the n steps' errors at sigma = 0 sums up to E_i, and a grid minimises sum_i w_i E_i^2.

Two ways lead to a grid. The density is the limit of many steps: minimising over the points g per log sigma gives
g^(p+1) proportional to sum_i w_i E_i |k(u_i)|, with E_i the integral of |k(u_i)| / g^p over log sigma. The recursion
is exact for any n: the solver's final variances in closed form, minimised over all grids. Its robust form is for data
that are not Gaussian: scales are known to within a factor only, and errors of 2M, of either sign, may not cancel.

What is measured. metric "kl": KL(generated || data) = sum_i m_i (r_i - 1 - log r_i) / 2, r_i the ratio of the
variances, m_i the multiplicity, in nats. metric "w2": the squared Wasserstein (Frechet) distance,
sum_i m_i (s_i - c_i)^2, s_i the generated standard deviation. alpha, where given, replaces both:
sum_i m_i c_i^(2 alpha) (s_i / c_i - 1)^2, which is "w2" at alpha = 1 and, to second order, "kl" at alpha = 0.

On a long power law c_k^2 = k^-a the best density is g proportional to sigma^(1 / rho) with
rho = (2 p + 1) / (2 alpha - 2 / a): EDM's family (rho = infinity: uniform in log sigma). The paper's rescaled time has
g proportional to sigma^(1 - 2 / a) there, if a > 1: the best for a first-order solver at alpha = 3/2 - 2/a.
"""

import numpy as np
import torch

from entropic import _check
from entropic.curve import ErrorCurve
from entropic.schedules import arctan_sigmas, edm_sigmas, ending_in_zero, log_sigmas, time_sigmas
from entropic.times import Time, cumulative, spline_increments

__all__ = [
    "gaussian_deviation",
    "gaussian_optimal_sigmas",
    "implied_spectrum",
    "local_error",
    "misfit",
    "order",
    "solver_aware_sigmas",
]

# p, and k(u) = C sigma^(p+1), below 0 where the solver leaves too small a standard deviation.
_LOCAL = {
    "ddim": (1, lambda u: -u * (1 - u) / 2),
    "ddim_stochastic": (1, lambda u: -2 * u * (1 - u)),
    "heun": (2, lambda u: u * (1 - u).square() / 2),
    "dpmpp_2m": (2, lambda u: -u * (1 - u) * (2 - 5 * u) / 4),
}
_ALIAS = {"sddim": "ddim_stochastic"}
_ALPHA = {"kl": 0.0, "w2": 1.0}
FEATURE_ALPHA = 0.75
SPREAD = 5.0  # of log c, a root of the misfit; by trial, of which the book tells
_FEWEST = 4  # below, spreading widths costs more than it saves
_FEW = 64  # beyond, a density is as good as the best grid of a first-order solver, and a search is slow
_MISFIT = 0.01  # times the order: a curve further from every Gaussian spectrum is not taken for one
_LEAST_GAP = 1e-3  # of the mean step in log sigma: levels that all but meet make one step the less


# ------------------------------------------------------------------------------------------------- one step


def order(solver):
    """Order p of a solver: its relative error in one step h is C h^(p+1).

    "ddim" 1, "ddim_stochastic" (or "sddim") 1, "heun" 2, "dpmpp_2m" 2. ValueError: another.
    """
    return _LOCAL[_solver(solver)][0]


def local_error(u, sigma, solver="ddim"):
    """C of the relative local error C h^(p+1): the first term of s_next / sqrt(c^2 + (sigma - h)^2) - 1.

    u in [0, 1] and sigma > 0 broadcast; s_next is the standard deviation after one step of length h from the exact
    law. DDIM -u (1 - u) / (2 sigma^2); stochastic DDIM -2 u (1 - u) / sigma^2, of which the share u is left at
    sigma = 0; Heun u (1 - u)^2 / (2 sigma^3); DPM-Solver++(2M) -u (1 - u) (2 - 5 u) / (4 sigma^3), where the step
    before was as long in log sigma. ValueError: u or sigma out of range, an unknown solver.
    """
    p, k = _LOCAL[_solver(solver)]
    u, sigma = _check.as_float64("u", u), _check.as_float64("sigma", sigma)
    if not ((u >= 0) & (u <= 1)).all():
        raise ValueError(f"u runs from {u.min().item()} to {u.max().item()}; pass eps2 / sigma^2, in [0, 1]")
    if not (sigma > 0).all():
        raise ValueError(f"sigma = {sigma.min().item()}; a step starts above 0")
    return k(u) / sigma ** (p + 1)


# ------------------------------------------------------------------------------------------------- Gaussian data


def gaussian_deviation(
    variances, sigmas, solver="ddim", metric="kl", *, alpha=None, multiplicity=None
) -> torch.Tensor:
    """Distance of the law that a solver gives Gaussian data from the data, exact, by `metric` or `alpha`.

    variances (K,) >= 0, each of `multiplicity` (K,) > 0 directions (1 unless given), sigmas (N + 1,) descending to
    0. The start is the exact law at sigma_max, of variances c^2 + sigma_max^2. A direction without variance is made
    exactly by every solver and adds nothing. Returns a scalar, differentiable in `sigmas`. ValueError: bad input.
    """
    variances, multiplicity = _spectrum(variances, multiplicity)
    measure = _measure(variances, multiplicity, metric, alpha)
    return measure(_ratio(variances, _check.schedule(sigmas), _solver(solver)))


def gaussian_optimal_sigmas(
    variances,
    n,
    solver="ddim",
    metric="kl",
    sigma_min=0.002,
    sigma_max=80.0,
    *,
    alpha=None,
    multiplicity=None,
    free_end=False,
):
    """The n levels, then 0, that minimise `gaussian_deviation`, its ends fixed at sigma_max and sigma_min.

    variances (K,) >= 0 of the data along its principal directions, multiplicity (K,) > 0 or one each. With `free_end`
    the last level is free, too, at sigma_min or above: at few steps a level far below all variances is wasted.
    L-BFGS on the gaps of log sigma, which a softmax keeps positive, from the density's, log, EDM and arctan grids;
    deterministic. The result is never worse than any of the starts, and with `free_end` never worse than without.
    ValueError: n < 2, no variance above 0, a bad range, an unknown solver or metric.
    """
    n, solver = _check.integer("n", n, 2), _solver(solver)
    low, high = _check.sigma_range(sigma_min, sigma_max)
    variances, multiplicity = _spectrum(variances, multiplicity)
    weights = multiplicity * variances ** _exponent(metric, alpha)
    measure = _measure(variances, multiplicity, metric, alpha)

    def deviation(sigmas):
        return measure(_ratio(variances, sigmas, solver))

    return _search(deviation, variances, weights, n, solver, low, high, free_end)


def _search(deviation, variances, weights, n, solver, low, high, free_end, least=0.0):
    """The best grid that descents from several starts find; where they start depends on `variances` and `weights`."""
    middle = (variances.log().mean() / 2).exp()

    def starts(low):
        sigma = log_sigmas(257, low, high)[:-1].flip(0)
        u = 1 / (1 + sigma[:, None].square() / variances)
        yield time_sigmas(n, _density_time(sigma, u, weights, solver, low, high), low, high)
        yield log_sigmas(n, low, high)
        yield edm_sigmas(n, low, high)
        yield arctan_sigmas(n, low, high, c=middle.clamp(low, high))

    if n == 2:
        found = [(torch.inf, ending_in_zero(torch.tensor([high, low], dtype=torch.float64)))]
        found[0] = deviation(found[0][1]).item(), found[0][1]
    else:
        found = [_descend(deviation, start, least=least) for start in starts(low)]
    if free_end:
        for c in (variances.sqrt().min(), middle):  # the last level belongs somewhat below the data's scales
            above = (c / 4).clamp(low * 1.5, high / 4).item()
            if above > low:
                found += [_descend(deviation, start, low, least) for start in starts(above)]
    return min(found, key=lambda pair: pair[0])[1]


def _robust_sigmas(variances, multiplicity, spread, n, solver, metric, alpha, low, high, free_end):
    """The best grid for data whose log c has this standard deviation about those of a spectrum."""
    nodes, shares = (torch.as_tensor(values) for values in np.polynomial.hermite_e.hermegauss(5))
    multiplicity = (multiplicity[:, None] * shares / shares.sum()).flatten()
    scattered = (variances[:, None] * (2 * spread * nodes).exp()).flatten()
    variances = variances.repeat_interleave(len(nodes))  # what an error weighs is a matter of the spectrum
    weights = multiplicity * variances ** _exponent(metric, alpha)
    measure = _measure(variances, multiplicity, metric, alpha)

    def deviation(sigmas):
        found = measure(_ratio(scattered, sigmas, solver))
        if solver == "dpmpp_2m":
            found = found + 2 * spread**2 * (weights @ _multistep_errors(scattered, sigmas).square().sum(0))
        return found

    # 2M divides by the step before: a pair of close levels makes it another rule, which no real denoiser bears
    least = min(spread, 0.5) if solver == "dpmpp_2m" else 0.0
    return _search(deviation, scattered, weights, n, solver, low, high, free_end, least)


def _descend(deviation, sigmas, low=None, least=0.0):
    """The smallest deviation that L-BFGS meets from a grid, and its grid; its last level free above `low` if given.

    A step in log sigma is at least `least` times the mean, that from a free last level to `low` among them, but for the
    steps of the grid that it starts from.
    """
    logs = sigmas[:-1].log()
    if low is not None:
        logs = torch.cat([logs, torch.tensor([low], dtype=torch.float64).log()])
    share = logs.diff() / (logs[-1] - logs[0])
    free = (share - least / len(share)).clamp_min(_LEAST_GAP / len(share)).log().requires_grad_()
    last = sigmas[-2:] if low is None else sigmas[-1:]
    scale = deviation(sigmas).item()
    best = [scale, sigmas]

    def closure():
        free.grad = None
        steps = least / len(free) + (1 - least) * free.softmax(0)
        inner = logs[0] - (logs[0] - logs[-1]) * steps.cumsum(0)[:-1]
        grid = torch.cat([sigmas[:1], inner.exp(), last])
        value = deviation(grid)
        loss = value / scale
        loss.backward()
        gaps = -grid[:-1].log().diff()
        if value.item() < best[0] and gaps.min() > _LEAST_GAP * gaps.mean():
            best[:] = value.item(), grid.detach()
        return loss

    torch.optim.LBFGS(
        [free],
        max_iter=300,
        history_size=20,
        tolerance_grad=1e-9,
        tolerance_change=1e-13,
        line_search_fn="strong_wolfe",
    ).step(closure)
    return best


def _ratio(variances, sigmas, solver):
    """s_i / c_i (K,) after all steps, from the exact law at sigmas[0]."""
    start = 1 + sigmas[0].square() / variances
    now, ratio = sigmas[:-1, None], (sigmas[1:] / sigmas[:-1])[:, None]
    u = 1 / (1 + now.square() / variances)
    if solver == "ddim_stochastic":
        square = ratio.square()
        gain = (square + (1 - square) * u).square()
        noise = sigmas[1:, None].square() * (1 - square) / variances
        for a, b in zip(gain.unbind(), noise.unbind(), strict=True):
            start = torch.addcmul(b, a, start)
        return start.sqrt()
    euler = ratio + (1 - ratio) * u
    if solver == "ddim":
        factor = euler.prod(0)
    elif solver == "heun":
        slopes = (1 - u[:-1]) / now[:-1] + (1 - u[1:]) * euler[:-1] / now[1:]
        factor = (1 + (now[1:] - now[:-1]) / 2 * slopes).prod(0) * u[-1]
    else:
        both, back = _multistep(sigmas, ratio, euler, u)
        before, factor = torch.ones_like(variances), euler[0]
        for a, b in zip(both[1:].unbind(), back.unbind(), strict=True):
            before, factor = factor, a * factor + b * before
        factor = factor.abs()
    return factor * start.sqrt()


def _multistep(sigmas, ratio, euler, u):
    """What DPM-Solver++(2M) multiplies the last state (N, K) and the one before it (N - 1, K) by, a step."""
    h = -sigmas[:-1].log().diff()
    weight = torch.nn.functional.pad(h[1:] / (2 * h[:-1]), (1, 1))[: len(u), None]
    return euler + (1 - ratio) * weight * u, -((1 - ratio) * weight)[1:] * u[:-1]


def _multistep_errors(variances, sigmas):
    """Relative error (N, K) of the standard deviation in each step of DPM-Solver++(2M), its past exact."""
    exact = (variances + sigmas[:, None].square()).sqrt()
    ratio, u = (sigmas[1:] / sigmas[:-1])[:, None], variances / exact[:-1].square()
    both, back = _multistep(sigmas, ratio, ratio + (1 - ratio) * u, u)
    made = both * exact[:-1]
    made = made + torch.nn.functional.pad(back * exact[:-2], (0, 0, 1, 0))
    return made / exact[1:] - 1


def _measure(variances, multiplicity, metric, alpha):
    """The deviation as a function of the ratios s_i / c_i."""
    exponent = _exponent(metric, alpha)
    if alpha is None and metric == "kl":

        def measure(ratio):
            excess = ratio.square() - 1
            return multiplicity @ (excess - torch.log1p(excess)) / 2

    else:
        weights = multiplicity * variances**exponent

        def measure(ratio):
            return weights @ (ratio - 1).square()

    return measure


# ------------------------------------------------------------------------------------------------- error curves


def solver_aware_sigmas(
    curve,
    n,
    solver="ddim",
    metric=None,
    sigma_min=0.002,
    sigma_max=80.0,
    *,
    alpha=None,
    multiplicity=None,
    method="auto",
    spread=None,
    free_end=False,
):
    """The n levels, then 0, that suit a solver and a metric, from an `ErrorCurve` that covers their range.

    Without `metric` and `alpha`, alpha = 0.75: what the features of an ImageNet network weigh, by measurement (see the
    book's page on feature distances), and a good compromise between "kl" and "w2" elsewhere.

    method "recursion": `gaussian_optimal_sigmas` of `implied_spectrum`, in a second or so; of the total error only.
    "robust": the same search, for data that are not Gaussian. The scale of a direction differs from place to place
    there: each implied c becomes a log-normal one, exp(s N(0, 1)) times as large, s the `spread`. And 2M's errors,
    which change sign, are not trusted to cancel: the sum over steps of their squares is added, 2 s^2 times; nor is a
    step much shorter than others, by which 2M divides: in log sigma each is at least min(s, 1/2) of a mean step from
    sigma_max to sigma_min. Unless given, s = 5 sqrt(m), with m the `misfit` of the implied spectrum: next to 0 for
    Gaussian data. "density": the best density for many steps, in milliseconds. Where the curve has `directions`, each
    bin is one of variance V_i / m_i, its `multiplicity` (m,) the number of its dimensions (see `Basis`; 1 unless
    given); noise in u_i counts at low sigma, where 1 - u_i is small. Else the directions are the implied spectrum's,
    but for data of one dimension (curve.dim = 1), whose direction is known. "auto": for solvers of first order, or
    n < 4, the recursion, else the robust search. But the density for n > 64, and where no spectrum fits (m above 0.01
    at first order, 0.02 at second), with one exception: for Heun with 4 levels the robust search is ahead even there.

    On power laws with n <= 8 the recursion takes off up to 4% of the density's deviation for DDIM, 3 to 25% for
    stochastic DDIM, half or more for Heun, and for DPM-Solver++(2M), where the best grids let its errors cancel, a
    quarter to nearly all. On separate modes, which no Gaussian spectrum has, the density is the better. `free_end` is
    as there; a density always ends at sigma_min. ValueError: as `gaussian_optimal_sigmas`; a curve that lacks what is
    needed.
    """
    n, solver = _check.integer("n", n, 2), _solver(solver)
    if method not in ("auto", "density", "recursion", "robust"):
        raise ValueError(f'method = {method!r}; use "density", "recursion", "robust" or "auto"')
    if spread is not None:
        if method != "robust":
            raise ValueError(f'spread = {spread}, but method = {method!r}; only "robust" has one')
        spread = _check.positive("spread", spread)
    low, high = _check.sigma_range(sigma_min, sigma_max)
    if metric is None:
        metric, alpha = "w2", FEATURE_ALPHA if alpha is None else alpha
    exponent = _exponent(metric, alpha)
    parts, counts = _bins(curve, multiplicity)
    implied = curve.directions is None and curve.dim != 1
    if implied or method in ("recursion", "robust") or (method == "auto" and n <= _FEW):
        variances, masses = implied_spectrum(curve)
        if method == "auto" and n <= _FEW:
            fewest = solver == "heun" and n == _FEWEST  # they cannot afford the density's last, at sigma_min
            if fewest or misfit(curve, variances, masses) <= _MISFIT * order(solver):
                method = "recursion" if order(solver) == 1 or n < _FEWEST else "robust"
        if method in ("recursion", "robust"):
            _covered(curve, low, high)
        if method == "robust":
            spread = SPREAD * misfit(curve, variances, masses) ** 0.5 if spread is None else spread
            return _robust_sigmas(variances, masses, spread, n, solver, metric, alpha, low, high, free_end)
        if method == "recursion":
            return gaussian_optimal_sigmas(
                variances, n, solver, metric, low, high, alpha=alpha, multiplicity=masses, free_end=free_end
            )
    if implied:
        u, counts = 1 / (1 + curve.sigma[:, None].square() / variances), masses
    else:
        u = (parts / (counts * curve.sigma[:, None].square())).clamp(0, 1)
        # The variance of a Gaussian that has the error of the last level; a bin without error has no weight.
        last = u[-1].clamp_max(1 - 1e-9)
        variances = curve.sigma[-1].square() * last / (1 - last)
    weights = torch.where(variances > 0, counts * variances.clamp_min(1e-300) ** exponent, 0.0)
    return time_sigmas(n, _density_time(curve.sigma, u, weights, solver, low, high), low, high)


def implied_spectrum(curve, size=96):
    """A spectrum (variances (K,), multiplicities (K,)) of Gaussian data whose error is that of an `ErrorCurve`.

    Nonnegative least squares for masses m_k on `size` variances, c_k uniform in log c over the curve's range:
    sum_k m_k c_k^2 sigma^2 / (c_k^2 + sigma^2) = eps2, weighted by 1 / sigma^2 + D / V. One direction alone makes no
    larger error than all: c^2 <= 1 / (1 / eps2 - 1 / sigma^2), at the last level. A few atoms come out, however many
    variances the data have: by the smoothness of the kernel they have the same error, and nearly the same best grids.
    `curve.directions` is not used: bin by bin, noise would tell more. ValueError: a curve of zeros.
    """
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
    masses = torch.as_tensor(_nonnegative(scaled / norms, (rows * curve.eps2).numpy()) / norms)
    return variances[masses > 0], masses[masses > 0]


def misfit(curve, variances, multiplicity=None):
    """How far an `ErrorCurve` is from that of Gaussian data with a spectrum, as `implied_spectrum` returns it.

    Root mean square over log sigma of the difference in u = eps2 / sigma^2, in units of the largest u: 0 for the
    curve of the spectrum. Noise in the curve is misfit, too. variances (K,), multiplicity (K,) or one each.
    ValueError: bad input.
    """
    _error_curve(curve)
    variances, multiplicity = _spectrum(variances, multiplicity)
    square, x = curve.sigma.square(), curve.sigma.log()
    u = curve.eps2 / square
    fitted = (multiplicity / (1 + square[:, None] / variances)).sum(1)
    mean = torch.trapezoid((fitted - u).square(), x) / (x[-1] - x[0])
    return float(mean.sqrt() / u.max())


def _nonnegative(a, b):
    """argmin |a x - b| over x >= 0. Lawson and Hanson (1974), chapter 23."""
    x, active = np.zeros(a.shape[1]), np.zeros(a.shape[1], bool)
    floor = 1e-12 * np.linalg.norm(b)
    for _ in range(3 * a.shape[1]):
        gain = a.T @ (b - a @ x)
        gain[active] = -np.inf
        if not gain.max() > floor:
            break
        active[gain.argmax()] = True
        while active.any():
            trial = np.zeros_like(x)
            trial[active] = np.linalg.lstsq(a[:, active], b, rcond=None)[0]
            if trial[active].min() > 0:
                x = trial
                break
            falling = active & (trial <= 0)
            x = x + (x[falling] / (x[falling] - trial[falling])).min() * (trial - x)
            active &= x > 1e-15 * x.max()
            x[~active] = 0.0
    return x


def _density_time(sigma, u, weights, solver, low, high):
    """The `Time` of the best density between two levels, for u (n, K) at sigma (n,) and weights (K,)."""
    p, k = _LOCAL[solver]
    k = k(u).abs()
    if solver == "ddim_stochastic":
        k = k * u
    h = sigma.clamp(low, high).log().diff()
    share = (torch.nn.functional.pad(h, (1, 0)) + torch.nn.functional.pad(h, (0, 1))) / 2
    errors = torch.ones_like(weights)
    # The map is antitone and homogeneous of degree -p / (p + 1): it contracts Hilbert's metric by that much a round.
    for _ in range(100):
        g = (k @ (weights * errors)) ** (1 / (p + 1))
        following = (share * torch.where(g > 0, g, torch.inf) ** -p) @ k
        following = following / following.max()
        moved, errors = (following - errors).abs().max(), following
        if not moved > 1e-12:
            break
    slope = (k @ (weights * errors)) ** (1 / (p + 1))
    if not slope.max() > 0:
        raise ValueError(
            f"u between {low} and {high} is 0 or 1 throughout; the solver makes no error to spread"
        )
    x = sigma.log()
    rise = spline_increments(x, slope[:, None])[:, 0]
    trapezoid = x.diff() * (slope[1:] + slope[:-1]) / 2
    phi = cumulative(torch.where(rise > 0, rise, trapezoid)[:, None])[:, 0]
    return Time(sigma, phi, slope)


def _covered(curve, low, high):
    ends = curve.sigma[0].item(), curve.sigma[-1].item()
    if low < ends[0] * (1 - 1e-9) or high > ends[1] * (1 + 1e-9):
        raise ValueError(f"sigma from {low} to {high} is outside the curve, which covers {list(ends)}")


# ------------------------------------------------------------------------------------------------- arguments


def _solver(solver):
    name = _ALIAS.get(solver, solver) if isinstance(solver, str) else solver
    if name not in _LOCAL:
        raise ValueError(f"solver = {solver!r}; pass one of {sorted([*_LOCAL, *_ALIAS])}")
    return name


def _exponent(metric, alpha):
    if metric not in _ALPHA:
        raise ValueError(f'metric = {metric!r}; use "kl" or "w2", or pass alpha')
    return _ALPHA[metric] if alpha is None else float(_check.as_float64("alpha", alpha))


def _spectrum(variances, multiplicity):
    """Distinct variances above 0 and their multiplicities."""
    variances = _check.as_float64("variances", variances).detach()
    if variances.ndim != 1 or not (variances >= 0).all() or not (variances > 0).any():
        raise ValueError(f"variances = {variances}; pass (K,) of at least 0, one of them above 0")
    multiplicity = _multiplicity(multiplicity, len(variances))
    some = variances > 0
    values, index = variances[some].unique(return_inverse=True)
    return values, torch.zeros_like(values).index_add(0, index, multiplicity[some])


def _multiplicity(multiplicity, m):
    if multiplicity is None:
        return torch.ones(m, dtype=torch.float64)
    multiplicity = _check.as_float64("multiplicity", multiplicity)
    if multiplicity.shape != (m,) or not (multiplicity > 0).all():
        raise ValueError(f"multiplicity = {multiplicity}; pass one above 0 for each of the {m} directions")
    return multiplicity


def _error_curve(curve):
    if not isinstance(curve, ErrorCurve):
        raise ValueError(f"curve is a {type(curve).__name__}; pass an ErrorCurve")


def _bins(curve, multiplicity):
    """Errors by bin (n, m) and the number of dimensions in each (m,)."""
    _error_curve(curve)
    if curve.directions is None:
        if multiplicity is not None:
            raise ValueError(
                f"multiplicity = {multiplicity}, but curve.directions = None; pass both or neither"
            )
        return curve.eps2[:, None], torch.ones(1, dtype=torch.float64)
    m = curve.directions.shape[1]
    if multiplicity is None and curve.dim not in (None, m):
        raise ValueError(
            f"multiplicity = None, but the {m} bins hold {curve.dim} dimensions; pass that of the basis"
        )
    return curve.directions, _multiplicity(multiplicity, m)
