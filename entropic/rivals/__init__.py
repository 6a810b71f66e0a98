"""Rival schedules, placed from the same denoiser and data: `n` levels above 0, float64, descending, then 0.

Four families, told apart by what they need. A formula: `function(n, ...)`. A table of training sigmas:
`function(n, table)`. An error curve: `function(curve, n, ...)`. A denoiser: `function(denoiser, x, n, *, ...)`
with x (N, ...) the states to start from at sigma_max, or `function(denoiser, x0, n, generator, *, ...)` with x0
(N, ...) data; these return `Placed(sigmas, calls)`, the others the sigmas alone, since they call nothing.
One call is one evaluation of the denoiser on one sample, so that a batch of N counts N. `batch` bounds the rows
the denoiser sees at once and changes no result. Frames: s = 1 unless a `process` is named.
All raise ValueError for n < 2, for a range that is not 0 < sigma_min < sigma_max, for x that is not floating,
finite and of two or more dimensions, and for a denoiser that changes the shape or returns NaN.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from entropic import _check
from entropic._check import as_float64, integer, positive, sigma_range
from entropic.noise import edm, flow_matching
from entropic.schedules import edm_sigmas, ending_in_zero, log_sigmas, uniform_in

Denoiser = Callable[[torch.Tensor, float], torch.Tensor]


class Placed(NamedTuple):
    """A schedule `sigmas` (n + 1,) and the denoiser `calls` it took: evaluations of one sample each."""

    sigmas: torch.Tensor
    calls: int


# A formula


def polyexponential_sigmas(n, sigma_min=0.002, sigma_max=80.0, rho=1.0):
    """ln sigma follows a ramp to the power rho; rho = 1 is `log_sigmas`. Any solver; no calls.

    Source: k-diffusion (Crowson 2022), get_sigmas_polyexponential.
    """
    rho = positive("rho", rho)
    low, high = sigma_range(sigma_min, sigma_max)
    span = math.log(high / low)
    return uniform_in(
        n,
        low,
        high,
        lambda sigma: ((sigma / low).log() / span).clamp(0, 1) ** (1 / rho),
        lambda ramp: low * (span * ramp.clamp_min(0) ** rho).exp(),
    )


def laplace_sigmas(n, sigma_min=0.002, sigma_max=80.0, mu=0.0, b=0.5):
    """ln sigma at uniform quantiles of the Laplace law (mu, b), clamped to the range. Any solver; no calls.

    ln sigma = mu - b sgn(1/2 - x) ln(1 - 2|1/2 - x| + 1e-5), x uniform from 0 to 1. The 1e-5 keeps the ends
    finite at exp(mu +- 11.5 b), 316 and 0.0032 by default: the last level is that or sigma_min, the higher.
    ValueError where clamping makes levels equal. Source: Hang et al. (2024), as in ComfyUI's LaplaceScheduler.
    """
    n, b, mu = integer("n", n, 2), positive("b", b), float(as_float64("mu", mu))
    low, high = sigma_range(sigma_min, sigma_max)
    off = 0.5 - torch.linspace(0.0, 1.0, n, dtype=torch.float64)
    sigma = (mu - b * off.sign() * (1 - 2 * off.abs() + 1e-5).log()).exp().clamp(low, high)
    if not (sigma.diff() < 0).all():
        raise ValueError(
            f"mu = {mu}, b = {b}: several of n = {n} levels fall outside [{low:g}, {high:g}]; widen the range or "
            "take a smaller b"
        )
    return ending_in_zero(sigma)


# A table of the training sigmas


def vp_table(steps=1000, beta_min=1e-4, beta_max=0.02):
    """The training sigmas (steps,) of DDPM, ascending: betas linear, sigma^2 = 1 / prod(1 - beta) - 1.

    0.0100 to 157.4 by default. Source: Ho et al. (2020), section 4.
    """
    steps = integer("steps", steps, 2)
    low, high = positive("beta_min", beta_min), positive("beta_max", beta_max)
    if not low <= high < 1:
        raise ValueError(f"beta_min = {low}, beta_max = {high}; they are ordered and below 1")
    growth = -torch.log1p(-torch.linspace(low, high, steps, dtype=torch.float64)).cumsum(0)
    return torch.expm1(growth).sqrt()


def simple_sigmas(n, table=None):
    """Every (T / n)-th of the T training sigmas, from the noisiest: entries -(1 + floor(i T / n)). No calls.

    `table` (T,) ascends; `vp_table()` unless given. The last level is the entry at 1 + T / n or so from the
    bottom, not the least. ValueError for n > T. Source: ComfyUI, the scheduler "simple".
    """
    n, table = integer("n", n, 2), _table(table)
    if n > len(table):
        raise ValueError(f"n = {n} exceeds the {len(table)} entries of the table; take fewer")
    index = torch.arange(n) * len(table) // n
    return ending_in_zero(table.flip(0)[index])


def beta_sigmas(n, table=None, alpha=0.6, beta=0.6):
    """Training sigmas at the quantiles of Beta(alpha, beta): entries rint((T - 1) ppf(1 - i / n)). No calls.

    `table` (T,) ascends; `vp_table()` unless given. As in the source, entries that come twice are kept once, so
    that for large n (139 and more by default) there are fewer than n levels: the length of the result, less
    one, is the number of steps. Source: Lee et al. (2024), as in ComfyUI's scheduler "beta".
    """
    n, table = integer("n", n, 2), _table(table)
    share = 1 - torch.arange(n, dtype=torch.float64) / n
    place = _beta_quantile(share, positive("alpha", alpha), positive("beta", beta))
    # A median lies halfway between two entries: its rounding must not hang on the last bit.
    place = (1e9 * (len(table) - 1) * place).round() / 1e9
    index = place.round().long().unique_consecutive()
    return ending_in_zero(table[index])


# An error curve


def klub(curve, sigmas):
    """The bound KLUB of Align Your Steps for stochastic DDIM over `sigmas`, in nats, from an `ErrorCurve` alone.

    Sum over steps from sigma_i down to sigma_j of 1/2 eps2(sigma_i) (sigma_j^-2 - sigma_i^-2) less
    H(sigma_i) - H(sigma_j): freezing the denoiser over the step leaves E||D_i - D||^2 = eps2(sigma_i) - eps2,
    as D is a martingale. The step to 0 has an infinite bound and is left out. For N(0, c^2 I) it is least where
    1/c^2 + 1/sigma^2 is geometric: exactly uniform in the entropic time, not in arctan(sigma / c), which is
    optimal for the KL of the deterministic sampler (theorem 3.1 of the same paper). With small steps the best
    density is sqrt(eps2'(sigma) / sigma^3). Source: Sabour et al. (2024), Align Your Steps; eq. 13 for H.
    """
    sigma = _check.schedule(sigmas)[:-1]
    if len(sigma) < 2:
        raise ValueError(f"sigmas = {sigmas}; a bound needs two levels above 0")
    return _Klub(curve)(sigma[:-1], sigma[1:]).sum()


def ays_sigmas(curve, n, sigma_min=0.002, sigma_max=80.0, *, candidates=11, stages=3, max_sweeps=1000):
    """Align Your Steps: the KLUB of a curve by hierarchical coordinate descent. Aims at stochastic DDIM.

    Eleven levels (ten steps) of EDM are improved one at a time, each moving to the best of `candidates` levels
    spread evenly in log sigma between its neighbours, until none moves; then every step is split at its log
    midpoint and the descent goes on, `stages` grids in all (11, 21, 41). Another n is read off the smallest grid
    that has n levels (else the largest) by linear interpolation of log sigma over the index. The descent stalls a few
    percent above the least bound, `klub_sigmas`; more candidates come nearer. Calls: none beyond the curve's own.
    Source: Sabour et al. (2024), Align Your Steps, who estimate each bound from 8192 samples.
    """
    n, count = integer("n", n, 2), integer("candidates", candidates, 1)
    stages, max_sweeps = integer("stages", stages, 1), integer("max_sweeps", max_sweeps, 1)
    bound, x = _Klub(curve), edm_sigmas(11, sigma_min, sigma_max)[:-1].log()
    share = torch.arange(1, count + 1, dtype=torch.float64) / (count + 1)
    for stage in range(stages):
        if stage:
            x = torch.cat([x, (x[1:] + x[:-1]) / 2]).sort(descending=True).values
        for _ in range(max_sweeps):
            moved = False
            # Levels of one parity do not meet in any step, so they move at once.
            for first in (1, 2):
                inside = torch.arange(first, len(x) - 1, 2)
                above, below = x[inside - 1, None], x[inside + 1, None]
                tried = torch.cat([x[inside, None], above + share * (below - above)], 1)
                cost = bound(above.exp(), tried.exp()) + bound(tried.exp(), below.exp())
                least, best = cost.min(1)
                # A gain within rounding is none, or the descent would not end.
                best = torch.where(least < cost[:, 0] * (1 - 1e-12), best, 0)
                moved |= bool(best.any())
                x[inside] = tried.gather(1, best[:, None])[:, 0]
            if not moved:
                break
        if len(x) >= n:
            break
    place = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
    at = torch.linspace(0.0, 1.0, len(x), dtype=torch.float64)
    return _between(_interpolate(place, at, x).exp(), sigma_min, sigma_max)


def klub_sigmas(curve, n, sigma_min=0.002, sigma_max=80.0, *, levels=400):
    """The least KLUB of a curve, for comparison with `ays_sigmas`; a dynamic programme, no calls beyond the curve's.

    Exact over `levels` candidates even in log sigma, then refined in shrinking windows to 1e-8 in log sigma.
    """
    n = integer("n", n, 2)
    bound, levels = _Klub(curve), integer("levels", levels, n)
    grid = log_sigmas(levels, sigma_min, sigma_max)[:-1]

    def cost(before, after):
        before, after = before[..., :, None], after[..., None, :]
        return torch.where(before > after, bound(before, after), math.inf)

    inside = cost(grid, grid)
    sigma = grid[_cheapest([inside] * (n - 1))]
    width, window = math.log(grid[0] / grid[1]), torch.linspace(-1.0, 1.0, 9, dtype=torch.float64)
    value = math.inf
    while n > 2 and width > 1e-8:
        tried = (sigma[:, None].log() + width * window).exp().clamp(grid[-1], grid[0])
        tried[0], tried[-1] = grid[0], grid[-1]
        best = _cheapest(cost(tried[:-1], tried[1:]))
        sigma = tried[torch.arange(n), best]
        before, value = value, bound(sigma[:-1], sigma[1:]).sum().item()
        # The window shrinks once no level leaves it for a gain above rounding.
        if ((best > 0) & (best < 8))[1:-1].all() or not value < before * (1 - 1e-12):
            width /= 3
    return ending_in_zero(sigma)


# The solver alone


def dmn_objective(sigmas, p=2.0, order=3, truncate=3):
    """What `dmn_sigmas` minimises: sum_i sigma_i^p / alpha_i |sum of the multistep weights of the level i|.

    With lambda = -ln sigma, the step from lambda_s gives the levels s, s - 1, ... the integrals of exp(lambda) times
    their Lagrange polynomials, `order` levels but 1, 2, ... in the first steps and ..., 2, 1 in the last ones;
    sigma_i and alpha_i are those of the VP frame. As in the source, the first `truncate` steps do
    not add up with the others: each enters by the root of its summed squares. The step to 0 is left out.
    Source: Xue et al. (2024) and its public code, StepOptim.
    """
    sigma = _check.schedule(sigmas)[:-1]
    if len(sigma) < 2:
        raise ValueError(f"sigmas = {sigmas}; the objective needs two levels above 0")
    return _dmn(-sigma.log(), float(as_float64("p", p)), *_dmn_orders(order, truncate))


def dmn_sigmas(n, sigma_min=0.002, sigma_max=80.0, p=2.0, order=3, truncate=3):
    """DMN: the least `dmn_objective` at fixed ends. Aims at DPM-Solver++ and UniPC; no calls.

    L-BFGS over the shares of ln sigma, from uniform log sigma (the source's start) and from EDM, each followed
    by a search along single levels, since the objective has kinks; the better of the two, a local minimum.
    The source uses a trust-region method. Source: Xue et al. (2024), Accelerating Diffusion Sampling with
    Optimized Time Steps.
    """
    n, orders, p = integer("n", n, 2), _dmn_orders(order, truncate), float(as_float64("p", p))
    starts = [log_sigmas(n, sigma_min, sigma_max)[:-1], edm_sigmas(n, sigma_min, sigma_max)[:-1]]
    found = [_dmn_search(-start.log(), p, orders) for start in starts]
    x = min(found, key=lambda x: _dmn(x, p, *orders).item())
    return _between((-x).exp(), sigma_min, sigma_max)


# A denoiser and starting states


def gits_sigmas(
    denoiser: Denoiser,
    x: torch.Tensor,
    n: int,
    *,
    sigma_min=0.002,
    sigma_max=80.0,
    levels=61,
    rho=7.0,
    discount=1.15,
    batch=None,
) -> Placed:
    """GITS: levels of a fine grid by a dynamic programme on the curvature of trajectories. Aims at Euler and iPNDM.

    x (N, ...), 256 in the source, are states at sigma_max. Teacher: Euler over `levels` EDM levels, (levels - 1) N
    calls. A jump i -> j along the teacher's slope at i costs the distance from the chord (first, last state) of
    where it lands, less the teacher's own distance at j, averaged over x; V[j, k] = min_i C_ji + discount V[i, k-1]
    chooses n levels, both ends among them. Source: Chen et al. (2024), On the Trajectory Regularity of
    ODE-based Diffusion Sampling, and its public code, whose teacher is iPNDM.
    """
    n, discount = integer("n", n, 2), positive("discount", discount)
    levels = integer("levels", levels, n)
    grid = edm_sigmas(levels, sigma_min, sigma_max, rho)[:-1]
    model = _Model(denoiser, _states("x", x), batch)
    states, slopes = _euler(model, model.x, grid.tolist())
    states = states.flatten(2)
    end = states[-1]
    chord = end - states[0]
    chord = chord / chord.norm(dim=1, keepdim=True).clamp_min(torch.finfo(chord.dtype).tiny)

    def across(vector):
        return vector - (vector * chord).sum(-1, keepdim=True) * chord

    own = across(end - states)
    distance = own.norm(dim=2).double().mean(1).cpu()
    cost = torch.full((levels, levels), math.inf, dtype=torch.float64)
    for i in range(levels - 1):
        slope = across(slopes[i].flatten(1))
        for j in range(i + 1, levels):
            missed = own[i] - (grid[j] - grid[i]).item() * slope
            cost[i, j] = missed.norm(dim=1).double().mean() - distance[j]
    _check.check_finite("the denoiser's cost", cost[cost < math.inf])
    path = _cheapest(discount**step * cost for step in range(n - 1))
    return Placed(ending_in_zero(grid[path]), model.calls)


def oss_sigmas(
    denoiser: Denoiser,
    x: torch.Tensor,
    n: int,
    *,
    sigma_min=0.002,
    sigma_max=80.0,
    levels=200,
    rho=7.0,
    batch=None,
) -> Placed:
    """OSS: the levels whose n Euler steps end nearest to a fine Euler teacher, by a dynamic programme. Aims at Euler.

    x (N, ...) are states at sigma_max. Teacher: `levels` EDM levels and 0, whose states are all kept. The student
    reaches every teacher level in k steps from the state that k - 1 steps left at some level above; of these the one
    nearest to the teacher, by the squared error averaged over x, is kept. That is greedy in between (a state that is
    not the nearest may end better), so only n = 2 is the best of all choices. The last level is chosen as the others
    are: it is sigma_min or above. Calls: N (levels + (n - 1)(levels - n + 1)).
    Source: Pei et al. (2025), Optimal Stepsize for Diffusion Sampling; its code searches for one sample at a
    time and takes medians over samples, also lets fewer steps win, and starts from 200 uniform flow times.
    """
    n = integer("n", n, 2)
    levels = integer("levels", levels, n)
    grid = edm_sigmas(levels, sigma_min, sigma_max, rho)
    sigmas = grid.tolist()
    model = _Model(denoiser, _states("x", x), batch)
    teacher, slopes = _euler(model, model.x, sigmas)
    reached, slopes, choices = {0: model.x}, {0: slopes[0]}, []
    for step in range(n):
        remaining = n - step - 1
        targets = torch.arange(step + 1 if remaining else levels, levels - remaining + 1)
        least = torch.full((len(targets),), math.inf, dtype=torch.float64)
        choice = torch.full((len(targets),), -1)
        for i, state in reached.items():
            if step:
                slopes[i] = (state - model(state, sigmas[i])) / sigmas[i]
            later = targets > i
            jump = (grid[targets[later]] - sigmas[i]).to(state).reshape(-1, *[1] * state.ndim)
            missed = teacher[targets[later].to(state.device)] - state - jump * slopes[i]
            error = missed.flatten(1).square().double().mean(1).cpu()
            nearer = later.clone()
            nearer[later] = error < least[later]
            least[nearer] = error[nearer[later]]
            choice[nearer] = i
        _check.check_finite("the denoiser's error", least)
        choice = dict(zip(targets.tolist(), choice.tolist(), strict=True))
        choices.append(choice)
        reached = {j: reached[i] + (sigmas[j] - sigmas[i]) * slopes[i] for j, i in choice.items()}
        slopes = {}
    path = [levels]
    for choice in reversed(choices):
        path.append(choice[path[-1]])
    return Placed(grid[path[::-1]], model.calls)


def sharpeuler_sigmas(
    denoiser: Denoiser,
    x: torch.Tensor,
    n: int,
    *,
    sigma_min=0.002,
    sigma_max=80.0,
    process=None,
    levels=128,
    window=5,
    power=0.5,
    batch=None,
) -> Placed:
    """SharpEuler: density in t the `power` of the smoothed mean ||dv/dt|| along a pilot run. Aims at Euler in t.

    x (N, ...) are states at sigma_max, in the frame s = 1; v is the probability-flow velocity dx_t/dt of `process`
    (flow matching unless given: where Euler in t is deterministic DDIM too, yet the density differs from that in
    sigma, as absolute errors do). Pilot: Euler over `levels` EDM levels; differences of v, averaged over x, then
    over `window` (odd) intervals. Calls: N levels. Source: Gupta et al. (2026), Sharpen Your Flow.
    """
    n, levels = integer("n", n, 2), integer("levels", levels, 3)
    power = positive("power", power)
    window = integer("window", window, 1)
    if window % 2 == 0:
        raise ValueError(f"window = {window}; an average centred on an interval takes an odd number of them")
    process = flow_matching() if process is None else process
    grid = edm_sigmas(levels, sigma_min, sigma_max)[:-1]
    time = process.t(grid)
    model = _Model(denoiser, _states("x", x), batch)
    states, slopes = _euler(model, model.x, grid.tolist(), last=True)
    s, drift, scale = process.s(time), process.drift(time), process.s(time) * process.sigma_rate(time)
    sharpness, before = [], None
    for i in range(levels):
        velocity = (drift[i] * s[i]).item() * states[i] + scale[i].item() * slopes[i]
        if i:
            change = (velocity - before).flatten(1).norm(dim=1).double().mean().cpu()
            sharpness.append(change / (time[i - 1] - time[i]))
        before = velocity
    half = window // 2
    total = torch.cat([torch.zeros(1, dtype=torch.float64), torch.stack(sharpness).cumsum(0)])
    at = torch.arange(levels - 1)
    left, right = (at - half).clamp_min(0), (at + half + 1).clamp_max(levels - 1)
    smoothed = (total[right] - total[left]).clamp_min(0) / (right - left)
    return Placed(_place(grid, -time.diff() * smoothed**power, n), model.calls)


# A denoiser and data


def cos_sigmas(
    denoiser: Denoiser,
    x0: torch.Tensor,
    n: int,
    generator: torch.Generator,
    *,
    sigma_min=0.002,
    sigma_max=80.0,
    process=None,
    levels=64,
    rounds=3,
    batch=None,
) -> Placed:
    """Corrector-optimised: every step asks the same work of a Langevin corrector. Aims at predictor-corrector samplers.

    The step t -> t' costs L = (s' sigma')^2 E||score_t'(x) - score_t(x)||^2 with x ~ p_t, the Fisher divergence that a
    corrector at t' meets; levels are uniform in the sum of sqrt(L). That is measured over `levels` levels, from EDM
    on, which are themselves placed so `rounds` - 1 times: only small steps add up, since L falls to 0 with sigma'.
    `process` sets the frame of the scores (s = 1 unless given); x0 (N, ...) with one draw of noise serves all levels.
    Calls: 2 N (levels - 1) rounds. Source: Williams et al. (2024), Score-Optimal Diffusion Schedules, as described
    second-hand, not checked at the source: neither its frame nor which end of a step gives x and the factor.
    """
    n, rounds, levels = integer("n", n, 2), integer("rounds", rounds, 1), integer("levels", levels, 3)
    process = edm() if process is None else process
    grid = edm_sigmas(levels, sigma_min, sigma_max)[:-1]
    model = _Model(denoiser, _states("x0", x0), batch)
    noise = _noise(model.x, generator)
    for left in reversed(range(rounds)):
        scale, work = process.s(process.t(grid)).tolist(), []
        for (before, s), (after, s_after) in pairwise(zip(grid.tolist(), scale, strict=True)):
            x = model.x + before * noise
            score = (model(x, before) - x) / (s * before**2)
            x = x * (s / s_after)
            score_after = (model(x, after) - x) / (s_after * after**2)
            work.append(s_after * after * _root_mean_square(score_after - score))
        grid = _place(grid, torch.stack(work), levels if left else n)[:-1]
    return Placed(ending_in_zero(grid), model.calls)


def crs_sigmas(
    denoiser: Denoiser,
    x0: torch.Tensor,
    n: int,
    generator: torch.Generator,
    *,
    sigma_min=0.002,
    sigma_max=80.0,
    xi=1.0,
    levels=128,
    batch=None,
) -> Placed:
    """Constant rate: d alpha / dt ~ v(alpha)^-xi, v the rate at which the denoised data change. Any solver.

    alpha = 1 / (1 + sigma^2), the share of signal of the VP frame; v is the root mean square of dD(x0 + sigma z) /
    d alpha at fixed x0 and z (the variant for x-prediction), by differences over `levels` EDM levels. With xi = 1
    equal steps in t change the denoised data equally, whatever measures alpha; for N(0, c^2 I) that is uniform in
    arctan(sigma / c), the rescaled entropic time. Calls: N levels. Source: Okada et al. (2026), Constant Rate
    Scheduling, as described second-hand; the measure of alpha and of the distance are not checked at the source.
    """
    n, levels = integer("n", n, 2), integer("levels", levels, 3)
    xi = float(as_float64("xi", xi))
    if xi < 0:
        raise ValueError(f"xi = {xi}; it is at least 0, 1 for a constant rate")
    grid = edm_sigmas(levels, sigma_min, sigma_max)[:-1]
    model = _Model(denoiser, _states("x0", x0), batch)
    noise = _noise(model.x, generator)
    change, before = [], None
    for sigma in grid.tolist():
        denoised = model(model.x + sigma * noise, sigma)
        if before is not None:
            change.append(_root_mean_square(denoised - before))
        before = denoised
    alpha = grid.square() / (1 + grid.square())  # 1 - alpha, exact for small sigma
    step = -alpha.diff()
    return Placed(_place(grid, step * (torch.stack(change) / step) ** xi, n), model.calls)


def marginal_entropy_rate(
    denoiser: Denoiser,
    x0: torch.Tensor,
    sigma,
    generator: torch.Generator,
    *,
    process=None,
    divergence="hutchinson",
    batch=None,
) -> torch.Tensor:
    """dH[x_t]/dt = E[div v] of the MARGINAL entropy at levels `sigma`, in nats per unit of the process's time.

    v is the probability-flow velocity; in terms of the denoiser D the rate is dim s'/s + sigma'/sigma (dim -
    E[div D]). The rate of H[x_0 | x_t] is dim (s'/s + sigma'/sigma) less this one (eq. 8): the sign and the shape
    differ. t grows with sigma; `process` is flow matching unless given. divergence "hutchinson" takes one Rademacher
    probe a sample, "exact" every unit vector (D of them). x0 (N, ...) and one draw of noise serve all levels; the
    denoiser must be differentiable by autograd and treat its rows independently.
    """
    model = _Model(denoiser, _states("x0", x0), batch)
    return _marginal_rates(model, as_float64("sigma", sigma), generator, process, divergence)


def marginal_entropy_sigmas(
    denoiser: Denoiser,
    x0: torch.Tensor,
    n: int,
    generator: torch.Generator,
    *,
    sigma_min=0.002,
    sigma_max=80.0,
    process=None,
    levels=100,
    divergence="hutchinson",
    batch=None,
) -> Placed:
    """Uniform in the growth of the MARGINAL entropy towards the data, clamped at 0. A variant in use, not the paper's.

    The rate is -E[div v] in a time that falls to the data, see `marginal_entropy_rate`; where it is negative, which
    for flow matching and N(0, c^2 I) is everywhere above sigma = c^2, it counts as 0 and gets no level but sigma_max.
    It depends on the frame: with s = 1 it is negative everywhere (ValueError). Measured at `levels` times uniform in
    t, by the trapezoid rule. Calls: N levels (1 + probes), the probes being derivative passes: 1, or D with
    divergence="exact". Source: BioNeMo MoCo's EntropicInferenceSchedule (128 samples, 100 times, left sum).
    """
    n, levels = integer("n", n, 2), integer("levels", levels, 3)
    low, high = sigma_range(sigma_min, sigma_max)
    process = flow_matching() if process is None else process
    ends = process.t([high, low])
    time = ends[0] + torch.linspace(0.0, 1.0, levels, dtype=torch.float64) * (ends[1] - ends[0])
    grid = process.sigma(time)
    grid[0], grid[-1] = high, low
    model = _Model(denoiser, _states("x0", x0), batch)
    rate = (-_marginal_rates(model, grid, generator, process, divergence)).clamp_min(0)
    if not rate.any():
        raise ValueError(
            f"process = {process!r}: the marginal entropy falls towards the data from sigma = {high:g} to {low:g}; "
            "clamped, it has no time. Use flow_matching(), or rescaled_sigmas"
        )
    return Placed(_place(grid, -time.diff() * (rate[1:] + rate[:-1]) / 2, n), model.calls)


# Shared pieces


class _Model:
    """A denoiser that counts its calls, checks what it returns and sees at most `batch` rows at once."""

    def __init__(self, denoiser, x, batch):
        self.denoiser, self.x, self.calls = denoiser, x, 0
        self.batch = len(x) if batch is None else integer("batch", batch, 1)

    def __call__(self, x, sigma):
        with torch.no_grad():
            return torch.cat([self.one(rows, sigma) for rows in x.split(self.batch)])

    def one(self, x, sigma):
        self.calls += len(x)
        denoised = self.denoiser(x, sigma)
        if denoised.shape != x.shape:
            raise ValueError(
                f"denoiser returned shape {tuple(denoised.shape)} for x of shape {tuple(x.shape)}"
            )
        if not torch.isfinite(denoised).all():
            raise ValueError(f"denoiser returned a value that is not finite at sigma = {sigma}")
        return denoised.to(x.dtype)


class _Klub:
    """The bound of a step from `high` to `low`, both tensors; eps2 and H come from one interpolant of the curve."""

    def __init__(self, curve):
        self.time = curve.entropic()

    def __call__(self, high, low):
        eps2 = self.time.rate_at(high) * high**3
        return (
            eps2 / 2 * (1 / low.square() - 1 / high.square()) - self.time.phi_at(high) + self.time.phi_at(low)
        )


def _states(name, x):
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.ndim < 2 or x.numel() == 0:
        what = f"a {x.dtype} tensor of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else repr(x)
        raise ValueError(f"{name} = {what}; pass a floating tensor (N, ...), at least one row of one entry")
    return _check.check_finite(name, x.detach())


def _noise(x, generator):
    if not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator = {generator!r}; noise is drawn: pass torch.Generator().manual_seed(...)"
        )
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)


def _table(table):
    if table is None:
        return vp_table()
    table = as_float64("table", table)
    if table.ndim != 1 or len(table) < 2 or not (table > 0).all() or not (table.diff() > 0).all():
        raise ValueError(f"table = {table}; pass the training sigmas (T,), above 0 and ascending")
    return table


def _euler(model, x, sigmas, last=False):
    """States of deterministic DDIM at `sigmas` and the slopes dx / dsigma there (with `last`, at the last one too)."""
    states, slopes = [x], []
    for sigma, following in pairwise(sigmas):
        slopes.append((x - model(x, sigma)) / sigma)
        x = x + (following - sigma) * slopes[-1]
        states.append(x)
    if last:
        slopes.append((x - model(x, sigmas[-1])) / sigmas[-1])
    return torch.stack(states), slopes


def _root_mean_square(change):
    return change.flatten(1).square().sum(1).double().mean().sqrt().cpu()


def _interpolate(at, knots, values):
    return torch.as_tensor(np.interp(at.numpy(), knots.numpy(), values.numpy()))


def _between(sigma, sigma_min, sigma_max):
    """`sigma` with its ends exact, then 0."""
    low, high = sigma_range(sigma_min, sigma_max)
    sigma[0], sigma[-1] = high, low
    return ending_in_zero(sigma)


def _place(grid, increments, n):
    """`n` levels uniform in the sum of `increments` over the descending grid, log sigma linear within a step."""
    _check.check_finite("the measured change", increments)
    total = torch.cat([torch.zeros(1, dtype=torch.float64), increments.cumsum(0)])
    if not total[-1] > 0:
        raise ValueError(
            f"the denoiser does not change between sigma = {grid[0].item():g} and {grid[-1].item():g}; widen the range"
        )
    share = torch.linspace(0.0, 1.0, n, dtype=torch.float64) * total[-1]
    sigma = _interpolate(share, total, grid.log()).exp()
    sigma[0], sigma[-1] = grid[0], grid[-1]
    return ending_in_zero(sigma)


def _cheapest(costs):
    """The path, one index a level, of least total cost; costs[step] (before, after) is infinite where not allowed.

    It starts at index 0 and ends at the last one.
    """
    value, choices = torch.zeros(1, dtype=torch.float64), []
    for step, cost in enumerate(costs):
        value, choice = (value[:, None] + (cost if step else cost[:1])).min(0)
        choices.append(choice)
    path = [len(value) - 1]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return torch.tensor(path[::-1])


def _marginal_rates(model, sigma, generator, process, divergence):
    process = flow_matching() if process is None else process
    if divergence not in {"hutchinson", "exact"}:
        raise ValueError(f'divergence = {divergence!r}; use "hutchinson" or "exact"')
    noise = _noise(model.x, generator)
    dim = model.x[0].numel()
    if divergence == "hutchinson":
        bits = torch.randint(0, 2, model.x.shape, generator=generator, device=generator.device)
        probes = (2 * bits - 1).to(model.x)[None]
    else:
        unit = torch.eye(dim).to(model.x).reshape(dim, 1, *model.x.shape[1:])
        probes = unit.expand(dim, *model.x.shape)
    means = []
    for level in sigma.flatten().tolist():
        total = 0.0
        for rows in torch.arange(len(noise)).split(model.batch):
            x = (model.x[rows] + level * noise[rows]).requires_grad_()
            with torch.enable_grad():
                denoised = model.one(x, level)
            if not denoised.requires_grad:
                raise ValueError(
                    "denoiser returned a tensor without gradient; call the network outside no_grad"
                )
            for probe in probes[:, rows]:
                (back,) = torch.autograd.grad(denoised, x, probe, retain_graph=True)
                total += (back * probe).double().sum().item()
                model.calls += len(rows)
        means.append(total / len(noise))
    time = process.t(sigma)
    spread = dim - torch.tensor(means, dtype=torch.float64).reshape(sigma.shape)
    return dim * process.drift(time) + process.sigma_rate(time) / sigma * spread


def _beta_quantile(share, a, b):
    """Quantiles of Beta(a, b), by bisection of its distribution function."""

    def tail(x, a, b):
        # x^a / a 2F1(a, 1 - b; a + 1; x): the terms fall like 2^-k where x <= 1/2.
        term, total = torch.ones_like(x), torch.ones_like(x) / a
        for k in range(1, 80):
            term = term * x * (k - b) / k
            total = total + term / (a + k)
        return x**a * total

    half = torch.tensor(0.5, dtype=torch.float64)
    left, right = tail(half, a, b), tail(half, b, a)

    def solve(target, a, b):
        low, high = torch.zeros_like(target), torch.full_like(target, 0.5)
        for _ in range(80):
            middle = (low + high) / 2
            under = tail(middle, a, b) < target
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return high

    target = share * (left + right)
    from_left = solve(torch.minimum(target, left), a, b)
    from_right = solve(torch.minimum(left + right - target, right).clamp_min(0), b, a)
    return torch.where(target <= left, from_left, 1 - from_right)


_NODES, _WEIGHTS = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(20))


def _dmn_orders(order, truncate):
    return integer("order", order, 1), integer("truncate", truncate, 0)


def _dmn(x, p, order, truncate, smooth=0.0):
    """`dmn_objective` at each row of x (..., n) = -ln sigma, ascending; |u| as sqrt(u^2 + smooth^2)."""
    steps = x.shape[-1] - 1
    noise = torch.exp(-2 * x)
    error = (noise / (1 + noise)) ** (p / 2) * (1 + noise).sqrt()
    step = torch.arange(steps)
    orders = torch.minimum(torch.minimum(step + 1, steps - step), torch.tensor(order))
    alone, shared = 0.0, torch.zeros_like(x)
    for k in orders.unique().tolist():
        some = step[orders == k]
        index = some[:, None] - torch.arange(k)
        nodes, half = x[..., index], (x[..., some + 1] - x[..., some])[..., None] / 2
        at = x[..., some, None] + half * (1 + _NODES)
        mass, terms = half * _WEIGHTS * at.exp(), []
        for j in range(k):
            basis = mass
            for m in range(k):
                if m != j:
                    basis = basis * (at - nodes[..., m, None]) / (nodes[..., j] - nodes[..., m])[..., None]
            terms.append(basis.sum(-1))
        terms = torch.stack(terms, -1) * error[..., index]
        apart = some < truncate
        alone = alone + terms[..., apart, :].norm(dim=-1).sum(-1)
        shared = shared.index_add(-1, index[~apart].flatten(), terms[..., ~apart, :].flatten(-2))
    return alone + ((shared.square() + smooth**2).sqrt() if smooth else shared.abs()).sum(-1)


def _dmn_search(x, p, orders):
    """A local minimum of `_dmn` near x, with the ends of x; never above the value at x."""
    start, span = x[0], x[-1] - x[0]

    def levels(share):
        return torch.cat([start[None], start + span * share.softmax(0).cumsum(0)])

    best, value = x, _dmn(x, p, *orders)
    share = (x.diff() / span).log().requires_grad_()
    # The kinks are sharpened step by step, or a line search would stop at the first one.
    scale = value.item()
    for smooth in (1e-1 * scale, 1e-2 * scale, 1e-3 * scale, 1e-4 * scale, 1e-6 * scale):
        optimiser = torch.optim.LBFGS([share], max_iter=100, history_size=20, line_search_fn="strong_wolfe")

        def closure(optimiser=optimiser, smooth=smooth):
            optimiser.zero_grad()
            loss = _dmn(levels(share), p, *orders, smooth)
            loss.backward()
            return loss

        optimiser.step(closure)
        with torch.no_grad():
            reached = levels(share)
            reached[-1] = x[-1]
            if (reached.diff() > 0).all() and _dmn(reached, p, *orders) < value:
                best, value = reached, _dmn(reached, p, *orders)
    inside = torch.arange(1, len(x) - 1)
    size = 0.25 ** torch.arange(1, 13)
    while len(inside):
        # Every level tried alone, towards either neighbour.
        towards = torch.stack([best[inside - 1] - best[inside], best[inside + 1] - best[inside]], 1).flatten()
        move = size[:, None] * towards
        tried = best.expand(len(size), 2 * len(inside), len(x)).clone()
        tried.scatter_add_(-1, inside.repeat_interleave(2).expand(len(size), -1)[..., None], move[..., None])
        tried = tried.reshape(-1, len(x))
        values = _dmn(tried, p, *orders)
        if not values.min() < value * (1 - 1e-6):
            break
        best, value = tried[values.argmin()], values.min()
    return best
