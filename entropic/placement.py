"""Solver-aware grids: which n levels suit this solver, this distance and this error curve, and why.

An orthonormal direction of the data has the uncertainty u = eps2_i / sigma^2, the mean gain of the denoiser there.
Everything is worked out for Gaussian data, where u = c^2 / (c^2 + sigma^2) with c^2 the variance along the direction. A
solver's step of length h in sigma errs by C h^(p + 1) relative to the standard deviation, and C sigma^(p + 1) = k(u)
depends on u alone (`Solver.leading_error`). The errors of the n steps, each weighed by the share of it that is left
at sigma = 0, add up to E_i, and a grid minimises sum_i w_i E_i^2.

A denoiser at hand gives a grid measured on its own paths (`entropic.paths`). Two ways lead from a curve to a grid.

    recursion  the exact deviation after n steps (`gaussian_deviation`), minimised over all grids. Data are not
               Gaussian, so each scale of the spectrum is spread, by more the worse a spectrum fits the curve
    density    the limit of many steps: the points g per log sigma satisfy g^(p + 1) proportional to
               sum_i w_i E_i |k(u_i)|, where E_i is the integral of |k(u_i)| / g^p over log sigma

On a long power law c_k^2 = k^-a the best density is g proportional to sigma^(1 / rho) with
rho = (2 p + 1) / (2 alpha - 2 / a), as long as -2 < (p + 1) (2 alpha - 2 / a) / (2 p + 1) < 2: EDM's family
(rho = infinity: uniform in log sigma). Beyond that the exponent stays where the condition ends (DDIM: 1 / rho = 1).
The paper's rescaled time has g proportional to sigma^(1 - 2 / a) there, if a > 1: the best for a first-order solver at
alpha = 3/2 - 2/a.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from entropic import _check, paths
from entropic.adapters import labels_of, rows_of
from entropic.curve import ErrorCurve
from entropic.estimate import estimate, told_by
from entropic.gaussian import W2, Goal, Weighted, goal_of, implied_spectrum, misfit, spectrum
from entropic.identity import content_sha256
from entropic.progress import progress_bar
from entropic.schedules import arctan_sigmas, edm_sigmas, ending_in_zero, log_sigmas, time_sigmas
from entropic.solvers import Solver, find_solver
from entropic.times import Time, cumulative, spline_increments
from entropic.types import Denoiser, Numbers

__all__ = ["DEFAULT", "METHODS", "Plan", "Policy", "gaussian_optimal_sigmas", "plan", "solver_aware_sigmas"]

METHODS = ("measured", "recursion", "density")


@dataclasses.dataclass(frozen=True)
class Policy:
    """The constants of `plan` that were tuned; the book's page *Tuning record* says on what each was chosen.

    alpha: the goal where none is given, Weighted(alpha); the exponent that the features of an ImageNet network weigh
    (page *What a feature distance weighs*).
    spread: the scales c of a spectrum are spread by `spread` * sqrt(misfit) in log c (page *Every schedule side by
    side*, table `spread`, has other values).
    own_errors: the weight of the steps' own squared errors, in units of the squared spread, where a solver remembers
    earlier steps. Chosen on the leaderboard's models of varying scale; the trials are not kept.
    """

    alpha: float = 0.75
    spread: float = 5.0
    own_errors: float = 8.0


DEFAULT = Policy()


@dataclasses.dataclass(frozen=True)
class Plan:
    """A grid and how it was chosen.

    sigmas (n + 1,) descend to 0. method: "measured", "recursion" or "density". goal: the distance that the grid
    minimises, None for a measured one. solver: its name. misfit, spread: of a recursion, that of the curve to the
    nearest Gaussian spectrum, and the deviation of log c that it allows for; else None. evidence: what the choice rests
    on, in words. errors: of a measured grid, by name ("EDM", "recursion", ..., "measured"), how far each pilot ended
    from its converged end, (P,); else empty. calls: of the denoiser, one for each row, that the choice took.
    """

    sigmas: torch.Tensor
    method: str
    goal: Goal | None
    solver: str
    misfit: float | None
    spread: float | None
    evidence: str
    errors: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    calls: int = 0

    def __repr__(self):
        goal = "" if self.goal is None else f", goal {self.goal}"
        return (
            f"Plan({len(self.sigmas) - 1} levels from {self.sigmas[0]:.4g} to {self.sigmas[-2]:.4g}, then 0; "
            f"method {self.method}, solver {self.solver}{goal}; explain() says why)"
        )

    def explain(self) -> str:
        """The choice in a few lines of text."""
        goal = "" if self.goal is None else f", goal {self.goal}"
        lines = [
            f"{len(self.sigmas) - 1} levels for {self.solver}, method {self.method}{goal}.",
            self.evidence,
        ]
        for name, misses in self.errors.items():
            mean, edm = misses.mean().item(), self.errors["EDM"].mean().item()
            share = f", {mean / edm:.3g} times EDM's" if name != "EDM" and edm > 0 else ""
            lines.append(f"{name}: mean distance {mean:.3g}{share}.")
        if self.misfit is not None:
            lines.append(f"Misfit to the nearest Gaussian spectrum: {self.misfit:.3g}.")
        if self.spread is not None:
            lines.append(f"Spread of log c: {self.spread:.3g}.")
        return "\n".join(lines)


def plan(
    n: int,
    source: ErrorCurve | Denoiser,
    solver: str | Solver = "ddim",
    goal: Goal | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    *,
    method: str | None = None,
    free_start: bool | None = None,
    free_end: bool | None = None,
    multiplicity: Numbers | None = None,
    spread: float | None = None,
    x: torch.Tensor | None = None,
    labels: Any = None,
    curve: ErrorCurve | None = None,
    calls: int | None = None,
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    batch: int | None = None,
    store: str | os.PathLike[str] | None = None,
    tag: str = "",
) -> Plan:
    """The `Plan` of n levels, then 0, that suit a solver: from measured paths of a denoiser, or from an `ErrorCurve`.

    source: a denoiser(x, sigma), or (x, sigma, labels), gives a grid measured on its own paths; a curve gives one by
    calculation, without a call. solver: a name or a `Solver`. sigma_min, sigma_max: the source's own ends unless given
    (0.002 and 80 where a denoiser has none). free_end: whether the last level is free, at sigma_min or above; it is,
    unless sigma_min is given. A density always ends at sigma_min. free_start: whether the first level is free, at
    sigma_max or below; on measured paths it is, unless sigma_max is given. From a curve, and for a stochastic solver,
    whose grid comes from one, it is not unless asked for: a curve does not know the mean of the data, which must be 0
    then. The sampler then starts from noise of that level, sigmas[0] *
    torch.randn(...), as samplers do.

    **A denoiser** (method "measured", see `entropic.paths`): x (P, ...) are pilot noises, states at sigma_max in the
    sampler's dtype, sigma_max * torch.randn(32, ...); 16 to 32 do. labels: of the pilots, a row for each. The grid has
    the least mean distance between where the pilots end and where they converge, and neither that nor the root mean
    square is larger than with EDM's grid. `Plan.errors` holds these distances for each grid that the search began at,
    and its own. On other noises the gain is smaller, and may be a loss where a few of them end far off. calls: the
    most calls of the denoiser, each row one call; 512 n, or 8192 for n <= 16, unless given. As many rows of x are used
    as leave calls for the search. curve: of the denoiser; measured from the pilots' own ends unless given. transform,
    batch, store, tag: see `entropic.paths.measure`. The goal of a path is its end, so that no `goal` is taken. A
    stochastic solver has no path to converge to, and gets the recursion of the measured curve, for the `goal`.

    **A curve**: goal is `KL`, `W2` or `Weighted(alpha)`; Weighted(0.75) unless given. Method "recursion", which is
    taken unless another is named: the best grid for Gaussian data with the implied spectrum, where each implied c is
    log-normal, exp(s N(0, 1)) times as large. s is the `spread`, 5 sqrt(misfit) unless given, at most 10; 0 means the
    Gaussian optimum. For a multistep solver, whose errors may cancel, the sum over steps of its squared errors is
    added, 8 s^2 times. The search takes about a second for 16 levels and tens of seconds for 200. Method "density": the
    best density for many steps, in milliseconds. Where the curve has `directions`, it takes each bin for a direction of
    variance V_i / m_i, its `multiplicity` (m,) the number of its dimensions (see `Basis`; 1 unless given); noise in u_i
    counts at low sigma, where 1 - u_i is small. Else the directions are those of the implied spectrum, but for data of
    one dimension (curve.dim = 1), whose direction is known.

    ValueError: n < 2, a bad range, one that the curve does not cover, an unknown solver, goal or method, a curve that
    lacks what is needed, options of the other kind of source, pilots that are no states at sigma_max, too few calls,
    a denoiser that returns NaN or another shape.
    """
    n, solver = _check.integer("n", n, 2), find_solver(solver)
    free_start = None if free_start is None else _check.flag("free_start", free_start)
    free_end = None if free_end is None else _check.flag("free_end", free_end)
    goal_given, goal = goal is not None, Weighted(DEFAULT.alpha) if goal is None else goal
    if not hasattr(goal, "of_ratios"):
        raise ValueError(f"goal = {goal!r}; pass KL, W2 or Weighted(alpha)")
    if method is not None and method not in METHODS:
        raise ValueError(f"method = {method!r}; use one of {', '.join(METHODS)}")
    if not isinstance(source, ErrorCurve):
        if not callable(source):
            raise ValueError(f"source is a {type(source).__name__}; pass an ErrorCurve or a denoiser")
        if method not in (None, "measured") or spread is not None or multiplicity is not None:
            raise ValueError(
                f"method = {method!r}, spread = {spread}, multiplicity = {multiplicity} with a denoiser, whose paths "
                'are measured; pass an ErrorCurve as the source, or method "measured" alone'
            )
        if goal_given and not solver.stochastic:
            raise ValueError(
                f"goal = {goal!r} with a denoiser; where its paths end is measured by distance, or by that of a "
                "`transform`: leave the goal out, or pass an ErrorCurve"
            )
        low, high = _range_of(source, curve, sigma_min, sigma_max)
        # A stochastic solver gets a grid from a curve, which does not tell where it is safe to start.
        unasked = sigma_max is None and not solver.stochastic, sigma_min is None
        free = [
            given if one is None else one for one, given in zip((free_start, free_end), unasked, strict=True)
        ]
        measuring = {"labels": labels, "transform": transform, "batch": batch, "store": store, "tag": tag}
        return _measured(n, source, solver, goal, low, high, free, x, curve, calls, measuring)
    given = {"x": x, "labels": labels, "curve": curve, "calls": calls, "transform": transform, "batch": batch}
    given |= {
        "store": store,
        "tag": tag or None,
        "method": method if method == "measured" else None,
    }
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name} is given, but the source is an ErrorCurve, which has no paths; pass a denoiser"
            )
    curve, free_end = source, sigma_min is None if free_end is None else free_end
    if spread is not None:
        if method == "density":
            raise ValueError(f'spread = {spread}, but method = "density"; only "recursion" spreads scales')
        spread = _check.between("spread", spread, 0, _WIDEST)
    low, high = _check.sigma_range(sigma_min, sigma_max, curve.sigma)
    if method == "density":
        if free_start:
            raise ValueError(
                'free_start = True, but method = "density"; only "recursion" moves the first level'
            )
        parts, counts = _bins(curve, multiplicity)
        implied = curve.directions is None and curve.dim != 1
        data = implied_spectrum(curve) if implied else None
        time = _curve_density(curve, parts, counts, data, solver, goal, low, high)
        why = "The best density of levels for many steps; the method was named by the caller."
        return Plan(time_sigmas(n, time, low, high), method, goal, solver.name, None, None, why)
    if multiplicity is not None:
        _bins(curve, multiplicity)
    _covered(curve, low, high)
    data = implied_spectrum(curve)
    found = misfit(curve, *data)
    spread, told = (
        (DEFAULT.spread * found**0.5, "by the misfit") if spread is None else (spread, "by the caller")
    )
    sigmas = _recursion(data, n, solver, goal, low, high, free_end, spread, bool(free_start))
    why = (
        f"The best grid for Gaussian data with this error curve, their scales spread by {spread:.3g} in log c, "
        f"{told}."
    )
    return Plan(sigmas, "recursion", goal, solver.name, found, spread, why)


_WIDEST = 10.0  # a spread; a misfit is a share of u, so that the spread of a curve is about 5 at most
_LEVELS = 24  # of the curve that is measured from the pilots' own ends
_PILOTS = 8  # with fewer, cross-validation says nothing


def _range_of(denoiser, curve, sigma_min, sigma_max):
    """`entropic.paths.range_of` the denoiser, inside the curve."""
    low, high = paths.range_of(denoiser, sigma_min, sigma_max)
    if curve is not None:
        if not isinstance(curve, ErrorCurve):
            raise ValueError(f"curve is a {type(curve).__name__}; pass an ErrorCurve, or leave it out")
        low = max(low, curve.sigma[0].item()) if sigma_min is None else low
        _covered(curve, low, high)
    return low, high


def _measured(n, denoiser, solver, goal, low, high, free, x, curve, calls, measuring):
    """`plan` of a denoiser; `free`: the first and the last level."""
    free_start, free_end = free
    calls = 512 * max(n, 16) if calls is None else _check.integer("calls", calls, 1)
    x, labels = _pilots(x, measuring["labels"], high)
    fine = paths.SEARCH.reference if solver.stochastic else max(paths.SEARCH.reference, 4 * n)
    each = fine + (_LEVELS if curve is None else 0)
    least = each if solver.stochastic else each + (4 if free_start else 3) * solver.calls(n)
    # Beside targets, curve and starts: one J, which takes half a walk for each of its moves, and four steps.
    search = 0 if solver.stochastic else (min(n - 1, paths.SEARCH.hats) / 2 + 4) * solver.calls(n)
    rows = min(len(x), max(_PILOTS, int(calls / (least + search))))
    if rows * least > calls:
        raise ValueError(
            f"calls = {calls}; the converged ends, the curve and the starts of {rows} pilots take {rows * least:,}, "
            f"and a search some more: pass {math.ceil(_PILOTS * (least + search)):,} or more"
        )
    x, labels = x[:rows], None if labels is None else rows_of(labels, slice(0, rows))
    measuring |= {"labels": labels}

    def own_curve(ends):
        if curve is not None:
            return curve, 0
        store = measuring["store"]
        if store is not None:
            about = [told_by(denoiser, measuring["tag"], store), ends, labels, low, high]
            store = Path(store) / f"{content_sha256(about, 'the pilots')[:32]}.npz"
        found = estimate(
            denoiser,
            ends,
            log_sigmas(_LEVELS, low, high)[:-1].flip(0),
            labels=labels,
            samples=len(ends),
            batch=measuring["batch"] or len(ends),
            common_noise=False,
            store=store,
            tag=measuring["tag"],
        )
        with warnings.catch_warnings():  # of an error above the data's variance: the curve takes the bound
            warnings.simplefilter("ignore")
            return found.curve(), _LEVELS * len(ends)

    if solver.stochastic:
        if measuring.pop("transform") is not None:
            raise ValueError(
                "transform is given, but a stochastic solver has no paths that end somewhere; leave it out"
            )
        ends, spent = paths.converged(denoiser, x, edm_sigmas(fine, low, high), **measuring)
        found, more = own_curve(ends)
        by_curve = plan(n, found, solver, goal, low, high, free_start=free_start, free_end=free_end)
        return dataclasses.replace(by_curve, evidence=_LAW, calls=spent + more)

    def starts(ends):
        found, spent = own_curve(ends)
        by_curve = {"recursion": {}, "recursion, no spread": {"spread": 0}}
        if free_start:
            by_curve["recursion, free start"] = {"free_start": True}
        grids = {
            name: plan(n, found, solver, W2, low, high, free_end=free_end, **options).sigmas
            for name, options in by_curve.items()
        }
        return {"EDM": edm_sigmas(n, low, high)} | grids, spent

    measuring |= {"fixed_start": not free_start, "fixed_end": not free_end}
    found = paths.measure(denoiser, solver, x, starts, low, high, calls, n=n, **measuring)
    mean = {name: misses.mean().item() for name, misses in found.errors.items()}
    why = (
        f"Measured on {len(x)} pilots with {found.calls:,} calls of the denoiser: the mean distance from where they "
        f"converge is {mean['measured']:.3g}, with EDM's levels {mean['EDM']:.3g}."
    )
    return Plan(found.sigmas, "measured", None, solver.name, None, None, why, found.errors, found.calls)


_LAW = (
    "A stochastic solver has no path to converge to: this is the recursion for the error curve measured from the "
    "pilots' own ends."
)


def _pilots(x, labels, high):
    """The pilots and their labels, checked."""
    if not isinstance(x, torch.Tensor) or x.dtype not in (torch.float32, torch.float64) or x.ndim < 2:
        found = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, torch.Tensor) else repr(x)
        raise ValueError(
            f"x = {found}; pass pilot noises, a float32 or float64 tensor (P, ...): sigma_max * torch.randn(32, ...)"
        )
    _check.check_finite("x", x)
    if len(x) < _PILOTS:
        raise ValueError(f"x has {len(x)} rows; pass {_PILOTS} pilots or more, say 32")
    scale = x.detach().double().square().mean().sqrt().item()
    if not high / 2 <= scale <= 2 * high:
        raise ValueError(
            f"x has root mean square {scale:.3g}, but sigma_max = {high:.4g}; pass states at sigma_max, sigma_max "
            "times standard normal noise"
        )
    return x.detach(), labels_of(labels, x)


def solver_aware_sigmas(
    curve: ErrorCurve,
    n: int,
    solver: str | Solver = "ddim",
    metric: str | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    *,
    alpha: float | None = None,
    multiplicity: Numbers | None = None,
    method: str | None = None,
    spread: float | None = None,
    free_start: bool = False,
    free_end: bool | None = None,
) -> torch.Tensor:
    """The levels of `plan`, (n + 1,): the short form, with the goal as a metric.

    metric "kl" or "w2", or `alpha` for Weighted(alpha); Weighted(0.75) where neither is given: what the features of an
    ImageNet network weigh, by measurement, and a good compromise between "kl" and "w2" elsewhere. Everything else,
    and errors, as in `plan`.
    """
    goal = None if metric is None and alpha is None else goal_of(metric or "w2", alpha)
    options = {"multiplicity": multiplicity, "method": method, "spread": spread}
    options |= {"free_start": free_start, "free_end": free_end}
    return plan(n, curve, solver, goal, sigma_min, sigma_max, **options).sigmas


def gaussian_optimal_sigmas(
    variances: Numbers,
    n: int,
    solver: str | Solver = "ddim",
    metric: str = "kl",
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    *,
    alpha: float | None = None,
    multiplicity: Numbers | None = None,
    free_end: bool = False,
) -> torch.Tensor:
    """The n levels, then 0, that minimise `gaussian_deviation`, its ends fixed at sigma_max and sigma_min.

    variances (K,) >= 0 of the data along its principal directions, multiplicity (K,) > 0 or one each. With `free_end`
    the last level is free, too, at sigma_min or above: at few steps a level far below all variances is wasted.
    L-BFGS on the gaps of log sigma, which a softmax keeps positive, from the density's, log, EDM and arctan grids;
    deterministic. The result is never worse than any of the starts, and with `free_end` never worse than without.
    ValueError: n < 2, no variance above 0, a bad range, an unknown solver or metric.
    """
    n, solver = _check.integer("n", n, 2), find_solver(solver)
    low, high = _check.sigma_range(sigma_min, sigma_max)
    free_end = _check.flag("free_end", free_end)
    data, goal = spectrum(variances, multiplicity), goal_of(metric, alpha)
    return _search(data, _Deviation(data, solver, goal), n, solver, goal, low, high, free_end)


# The search


class _Deviation:
    """The deviation of a solver on a `Spectrum` as a function of the levels, with its gradient in log sigma.

    weighed: variances (K,) that the goal weighs, those of the data unless given (`_recursion` spreads the scales of
    the data, not what an error weighs). penalty: times the weighted sum over steps of squared errors, each step from
    the exact law with an exact past. normal: the start is noise of the first level's deviation, as samplers draw it,
    and not the exact law there. NumPy, so that torch's modes do not matter.
    """

    _H = 1e-30  # complex step: the imaginary part of f(x + i h) / h is f'(x) to rounding

    def __init__(self, data, solver, goal, weighed=None, penalty=0.0, normal=False):
        self.solver, self.goal, self.penalty, self.normal = solver, goal, penalty, normal
        self.variances, self.multiplicity = (each.numpy() for each in data)
        self.weighed = self.variances if weighed is None else weighed.numpy()

    def __call__(self, logs):
        """(value, gradient (n,)) for the logarithms (n,) of the levels above 0, descending."""
        n, memory, c2 = len(logs), self.solver.memory, self.variances
        # Transfer of each step on (state, denoised of the `memory` steps before), with its derivatives in the levels.
        transfers = np.zeros((n - 1, memory + 1, memory + 1, len(c2)))
        noises = np.zeros((n - 1, len(c2)))
        slopes, errors = [], []
        for steps, depth in self._groups(n):
            made, noise, error = self._steps(logs, steps, depth)
            transfers[steps, 0, : depth + 1] = made[0].real.transpose(1, 0, 2)
            noises[steps] = noise[0].real
            slopes.append((steps, depth, made.imag / self._H, noise.imag / self._H))
            errors.append((steps, depth, error))
        sigma2 = np.exp(2 * logs)
        gains = c2 / (c2 + sigma2[:, None])
        if memory:
            transfers[:, 1, 0] = gains[:-1]
            for one in range(2, memory + 1):
                transfers[:, one, one - 1] = 1.0
        start = sigma2[0] / c2
        ratio, back = self._chain(transfers, noises, gains[-1], start if self.normal else 1 + start)
        terms, slope = self.goal.of_ratios(ratio, self.weighed)
        value, slope = self.multiplicity @ terms, self.multiplicity * slope
        to_transfers, to_noises, to_last, to_start = back(slope)
        gradient = np.zeros(n)
        gradient[0] += to_start @ (2 * start)
        gain_slope = -2 * gains * (1 - gains)  # in log sigma
        gradient[-1] += to_last @ gain_slope[-1]
        if memory:
            gradient[:-1] += (to_transfers[:, 1, 0] * gain_slope[:-1]).sum(1)
        for steps, depth, made, noise in slopes:
            which = np.arange(n - 1)[steps]
            for slot in range(depth + 2):
                part = (to_transfers[steps, 0, : depth + 1] * made[slot].transpose(1, 0, 2)).sum((1, 2))
                part = part + (to_noises[steps] * noise[slot]).sum(1)
                np.add.at(gradient, which + 1 - slot, part)
        if self.penalty:
            value = value + self._penalised(logs, errors, gradient)
        return value, gradient

    def _groups(self, n):
        """Steps that have the same number of steps before them, up to the solver's memory: they are made at once."""
        for index in range(min(self.solver.memory, n - 1)):
            yield slice(index, index + 1), index
        if n - 1 > self.solver.memory:
            yield slice(self.solver.memory, n - 1), self.solver.memory

    def _steps(self, logs, steps, depth):
        """Steps with `depth` steps before them, as functions of their levels perturbed one after the other.

        Slots: the level after the step, that before it, then the earlier ones. Returns the transfer of (state, past)
        to the next state (slots, depth + 1, steps, K), the variance of its noise (slots, steps, K), and with a penalty
        the relative error of the step from the exact law (slots, steps, K), complex all.
        """
        which = np.arange(len(logs) - 1)[steps]
        levels = np.exp(logs)[which[:, None] + 1 - np.arange(depth + 2)].T  # (slots, steps)
        levels = levels[None] * (1 + 1j * self._H * np.eye(depth + 2)[:, :, None])
        sigmas = [levels[:, k, :, None] for k in range(depth + 2)]  # each (perturbed slot, steps, 1)
        c2 = self.variances

        def gain(sigma):
            return c2 / (c2 + sigma**2)

        # Rows: a unit state, a unit of each denoised state of the past, and the exact state with its exact past.
        rows = depth + 1 + bool(self.penalty)
        shape = (rows, depth + 2, len(which), len(c2))
        units = np.zeros((depth + 1, *shape), complex)
        for k in range(depth + 1):
            units[k, k] = 1.0
        if self.penalty:
            exact = [np.sqrt(c2 + sigma**2) for sigma in sigmas]
            units[0, -1] = exact[1]
            for k in range(1, depth + 1):
                units[k, -1] = gain(sigmas[k + 1]) * exact[k + 1]
        past = tuple((units[k], sigmas[k + 1]) for k in range(1, depth + 1))
        move = self.solver.step(lambda x, sigma: gain(sigma) * x, units[0], sigmas[1], sigmas[0], past)
        noise = np.broadcast_to(move.std**2 + 0j, shape[1:])
        made = move.mean[: depth + 1].transpose(1, 0, 2, 3)
        if not self.penalty:
            return made, noise, None
        return made, noise, np.sqrt(move.mean[-1] ** 2 + noise) / exact[0] - 1

    def _chain(self, transfers, noises, last, start):
        """The ratio s / c (K,) after all steps, and what carries a slope in it back to the steps.

        start (K,): the variance at sigma_max in units of c^2. A stochastic solver moves the variance; only one without
        memory has a noise here, so that its variance is a scalar in each direction.
        """
        count = len(transfers)
        if self.solver.stochastic:
            squares = transfers[:, 0, 0] ** 2
            added = noises / self.variances
            states = [start]
            for k in range(count):
                states.append(squares[k] * states[-1] + added[k])
            ratio = last * np.sqrt(states[-1])

            def back(slope):
                weight = slope * last**2 / (2 * ratio)
                to_squares, to_added = np.empty_like(squares), np.empty_like(squares)
                for k in range(count - 1, -1, -1):
                    to_squares[k], to_added[k] = weight * states[k], weight
                    weight = weight * squares[k]
                to_transfers = np.zeros_like(transfers)
                to_transfers[:, 0, 0] = 2 * transfers[:, 0, 0] * to_squares
                return to_transfers, to_added / self.variances, slope * ratio / last, weight

            return ratio, back
        vectors = [np.zeros(transfers.shape[2:])]
        vectors[0][0] = np.sqrt(start)
        for k in range(count):
            vectors.append((transfers[k] * vectors[-1]).sum(1))
        signed = last * vectors[-1][0]

        def back(slope):
            slope = slope * np.sign(signed)
            weight = np.zeros(transfers.shape[2:])
            weight[0] = slope * last
            to_transfers = np.empty_like(transfers)
            for k in range(count - 1, -1, -1):
                to_transfers[k] = weight[:, None] * vectors[k]
                weight = (transfers[k] * weight[:, None]).sum(0)
            to_start = weight[0] / (2 * vectors[0][0])
            return to_transfers, np.zeros_like(noises), slope * vectors[-1][0], to_start

        return np.abs(signed), back

    def _penalised(self, logs, errors, gradient):
        """The penalty on the steps' own errors; its gradient is added to `gradient`."""
        n, weights = len(logs), self.penalty * self.multiplicity * self.weighed**self.goal.alpha
        value = 0.0
        for steps, depth, error in errors:
            which = np.arange(n - 1)[steps]
            value += weights @ (error[0].real ** 2).sum(0)
            for slot in range(depth + 2):
                part = (2 * error[0].real * error[slot].imag / self._H) @ weights
                np.add.at(gradient, which + 1 - slot, part)
        exact = np.sqrt(1 + np.exp(2 * logs[-1]) / self.variances)  # the step to 0 returns u x
        own = 1 / exact - 1
        gradient[-1] += weights @ (2 * own * -(exact**2 - 1) / exact**3)
        return value + weights @ own**2


_ROUGH = {"maxiter": 40, "ftol": 1e-9, "gtol": 1e-7}
_FINE = {"maxiter": 300, "ftol": 1e-14, "gtol": 1e-12}
_FINALISTS = 2
_LEAST_GAP = 1e-3  # of the mean step in log sigma: two levels closer than that are one level


def _search(data, deviation, n, solver, goal, low, high, free_end):
    """The best grid that descents from several starts find. The starts depend on the spectrum and the goal.

    The first level is free, below `high`, where the deviation starts from noise.
    """
    variances = data.variances
    weights = data.multiplicity * torch.as_tensor(deviation.weighed) ** goal.alpha
    middle = (variances.log().mean() / 2).exp()

    def starts(low, high):
        sigma = log_sigmas(257, low, high)[:-1].flip(0)
        u = 1 / (1 + sigma[:, None].square() / variances)
        yield time_sigmas(n, _density_time(sigma, u, weights, solver, low, high), low, high)
        yield log_sigmas(n, low, high)
        yield edm_sigmas(n, low, high)
        yield arctan_sigmas(n, low, high, c=middle.clamp(low, high))

    # A free end belongs somewhat outside the data's scales.
    ends = [(low, None)]
    if free_end:
        inside = [(c / 4).clamp(low * 1.5, high / 4).item() for c in (variances.sqrt().min(), middle)]
        ends += [(end, low) for end in inside if end > low]
    tops = [(high, None)]
    if deviation.normal:
        above, most = 2 * max(end for end, _ in ends), high / 1.5
        if above < most:
            tops.append(((4 * variances.sqrt().max()).clamp(above, most).item(), high))
    with progress_bar(f"search of {n} levels", "grid") as bar:

        def counted(logs):
            bar.update()
            return deviation(logs)

        found = []
        for (end, least), (top, most) in itertools.product(ends, tops):
            if n == 2 and least is None and most is None:
                only = ending_in_zero(torch.tensor([high, low], dtype=torch.float64))
                found.append((deviation(only[:-1].log().numpy())[0], only))
            else:
                found += [_descend(counted, start, least, most, _ROUGH) for start in starts(end, top)]
        # The descents that came lowest go on; the others have ended in worse places.
        found = sorted(found, key=lambda pair: pair[0])[:_FINALISTS]
        if n > 2:
            free = low if free_end else None, high if deviation.normal else None
            found = [_descend(counted, grid, *free, _FINE) for _, grid in found] + found
    return min(found, key=lambda pair: pair[0])[1]


def _recursion(data, n, solver, goal, low, high, free_end, spread, free_start=False):
    """The best grid for data whose log c has this standard deviation about those of a spectrum."""
    if spread < 1e-6:  # the misfit of a spectrum that fits to rounding
        deviation = _Deviation(data, solver, goal, normal=free_start)
        return _search(data, deviation, n, solver, goal, low, high, free_end)
    # With coarser nodes a search finds the gaps between them.
    count = max(5, math.ceil(16 * spread))
    nodes, shares = (torch.as_tensor(values) for values in np.polynomial.hermite_e.hermegauss(count))
    counts = (data.multiplicity[:, None] * shares / shares.sum()).flatten()
    scattered = (data.variances[:, None] * (2 * spread * nodes).exp()).flatten()
    weighed = data.variances.repeat_interleave(len(nodes))  # what an error weighs is a matter of the spectrum
    wide = type(data)(scattered, counts)
    own_errors = DEFAULT.own_errors * spread**2 if solver.memory else 0.0
    deviation = _Deviation(wide, solver, goal, weighed, own_errors, free_start)
    return _search(wide, deviation, n, solver, goal, low, high, free_end)


def _descend(deviation, sigmas, low=None, high=None, effort=_FINE):
    """The smallest deviation that L-BFGS meets on its way from a grid, and the grid that has it.

    With `low` the last level is free, above `low`, and with `high` the first one, below `high`; otherwise they stay. A
    step in log sigma is at least _LEAST_GAP times the mean step, and so is the distance from a free level to its bound:
    two levels never meet, since a solver may divide by the step.
    """
    from scipy.optimize import minimize

    logs = sigmas[:-1].log().numpy()
    ends = np.concatenate([*([[math.log(high)]] if high else []), logs, *([[math.log(low)]] if low else [])])
    span, count = ends[0] - ends[-1], len(ends) - 1
    moving = slice(0 if high else 1, len(logs) if low else -1)
    share = -np.diff(ends) / span
    start = np.log(np.maximum(share - _LEAST_GAP / count, _LEAST_GAP / count) / (1 - _LEAST_GAP))
    scale = deviation(logs)[0]
    best, tie = [scale, None], [0.0]

    def loss(free):
        weight = np.exp(free - free.max())
        weight /= weight.sum()
        grid = logs.copy()
        grid[moving] = ends[0] - span * np.cumsum(_LEAST_GAP / count + (1 - _LEAST_GAP) * weight)[:-1]
        value, gradient = deviation(grid)
        if value < best[0] * (1 + tie[0]):
            best[:] = value, grid
        # A level hangs on all gaps above it.
        to_gaps = -span * (1 - _LEAST_GAP) * np.append(np.cumsum(gradient[moving][::-1])[::-1], 0.0)
        return value / scale, weight * (to_gaps - weight @ to_gaps) / scale

    if scale > 0:
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxcor": 20, **effort})
        tie[0] = 1e-14  # where values agree to rounding, the least gradient tells the minimum, to more digits
        loss(found.x)
    if best[1] is None:
        return scale, sigmas
    grid = torch.from_numpy(best[1]).exp()
    if high is None:
        grid[0] = sigmas[0]  # not to rounding
    if low is None:
        grid[-1] = sigmas[-2]
    return best[0], ending_in_zero(grid)


# The density


def _density_time(sigma, u, weights, solver, low, high):
    """The `Time` of the best density between two levels, for u (n, K) at sigma (n,) and weights (K,)."""
    p, k = solver.order, solver.leading_error(u).abs()
    if solver.stochastic:
        k = k * u  # the share of a step's error that is left at sigma = 0
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


def _curve_density(curve, parts, counts, data, solver, goal, low, high):
    """The density's `Time` of a curve: by its bins (n, m) of `counts` dimensions, or by a spectrum."""
    if data is not None:
        u, variances = 1 / (1 + curve.sigma[:, None].square() / data.variances), data.variances
        counts = data.multiplicity
    else:
        u = (parts / (counts * curve.sigma[:, None].square())).clamp(0, 1)
        # The variance of a Gaussian that has the error of the last level; a bin without error has no weight.
        last = u[-1].clamp_max(1 - 1e-9)
        variances = curve.sigma[-1].square() * last / (1 - last)
    weights = torch.where(variances > 0, counts * variances.clamp_min(1e-300) ** goal.alpha, 0.0)
    return _density_time(curve.sigma, u, weights, solver, low, high)


def _covered(curve, low, high):
    ends = curve.sigma[0].item(), curve.sigma[-1].item()
    if low < ends[0] * (1 - _check.SLACK) or high > ends[1] * (1 + _check.SLACK):
        raise ValueError(f"sigma from {low} to {high} is outside the curve, which covers {list(ends)}")


def _bins(curve, multiplicity):
    """Errors by bin (n, m) and the number of dimensions in each (m,)."""
    if not hasattr(curve, "eps2"):
        raise ValueError(f"curve is a {type(curve).__name__}; pass an ErrorCurve")
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
    return curve.directions, _check.multiplicity(multiplicity, m)
