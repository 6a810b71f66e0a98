"""The exact law of a deterministic solver in one dimension: the branches of the map from start to end."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch

from entropic.exact.data import Law, inputs, quiet
from entropic.exact.panels import (
    EPS,
    NODES,
    REACH,
    TOLERANCE,
    WEIGHT,
    at_nodes,
    integrate,
    kl_through_map,
    miss,
    resolve,
    scatter_logsumexp,
)
from entropic.mixtures import GaussianMixture
from entropic.solvers import DDIM, Solver, find_solver
from entropic.types import Numbers


def deterministic_law(
    mixture: GaussianMixture,
    sigmas: Numbers,
    solver: str | Solver = "ddim",
    start: str = "normal",
    resolution: float = 1.0,
) -> DeterministicLaw:
    """Exact law of a deterministic solver, a name or a `Solver`, on a one-dimensional mixture.

    Arguments, errors and `start` as `stochastic_law`; an unknown or a stochastic solver raises ValueError too. The
    composite map F of the initial value need not be monotone: all its branches are summed. Returns a
    DeterministicLaw.
    """
    data, sigmas, initial, resolution = inputs(mixture, sigmas, start, resolution)
    solver = find_solver(solver)
    if solver.stochastic:
        raise ValueError(f"solver = {solver.name!r} adds noise; use stochastic_law")
    with quiet():
        return DeterministicLaw(data, sigmas, initial, solver, resolution)


class _Carried:
    """A value with its slope in the initial value, and a bound on what rounding has done to it so far.

    A solver's step adds such numbers and multiplies them by constants: slopes and bounds follow by the rules of
    differentiation and of running error analysis (Higham 2002, section 3.3), whatever the solver.
    """

    def __init__(self, value, slope, noise):
        self.value, self.slope, self.noise = value, slope, noise

    def __add__(self, other):
        value = self.value + other.value
        return _Carried(value, self.slope + other.slope, self.noise + other.noise + EPS * np.abs(value))

    def __sub__(self, other):
        return self + -1.0 * other

    def __mul__(self, factor):
        return _Carried(factor * self.value, factor * self.slope, abs(factor) * self.noise)

    __rmul__ = __mul__

    def __truediv__(self, divisor):
        return (1 / divisor) * self


class DeterministicLaw(Law):
    """Law of y = F(z), z of the initial law. `branches` counts the monotone pieces of F."""

    def __init__(self, data, sigmas, initial, solver, resolution):
        self._data, self._sigmas, self._initial, self._solver = data, sigmas, initial, solver
        self._tolerance = TOLERANCE / resolution
        low, high = self._domain()
        bulk = np.linspace(*initial.reach(), math.ceil(24 * resolution) + 1)
        edges = np.concatenate([low[low < bulk[0]][::-1], bulk, high[high > bulk[-1]]])
        scale = max(1e-300, float(data.reach(0.0)[1] - data.reach(0.0)[0]))

        # A monotone F hides nothing between its values. Otherwise every state must be resolved, at the scale of its
        # own sigma, lest a state crosses a border between two nodes and returns.
        watched = solver != DDIM

        def values(z, left, right):
            unresolved = np.zeros_like(left)
            z = np.concatenate([z, np.stack([left, right], 1)], 1)
            for sigma, (x, _, noise) in zip(sigmas, self._states(z), strict=False):
                if watched:
                    missed = miss(x[:, :NODES], x[:, -2], x[:, -1])
                    unresolved += missed > 1e-3 / resolution * sigma + 10 * noise.max(1)
            value, gain = data.denoise(x, sigmas[-2])
            spread = np.ptp(value, 1)
            missed = miss(value[:, :NODES], value[:, -2], value[:, -1])
            noise = (gain * noise + EPS * np.abs(value)).max(1)
            unresolved += missed > 1e-7 / resolution**8 * spread + 1e-10 * scale + 10 * noise
            return value[:, :NODES], unresolved

        def accept(left, right, value, unresolved):
            return unresolved == 0

        self._left, self._right, self._value, _ = resolve(values, edges, accept, depth=48)
        z = np.concatenate([self._left[:1], at_nodes(self._left, self._right).reshape(-1), self._right[-1:]])
        self._split(np.unique(z))
        self.branches = len(self._branches)

    def _states(self, z):
        """At each sigma above 0: the state that z leads to, its slope, and a bound on its rounding."""

        def denoise(x, sigma):
            value, gain = self._data.denoise(x.value, sigma)
            return _Carried(value, gain * x.slope, gain * x.noise + EPS * np.abs(value))

        x, past = _Carried(z, np.ones_like(z), EPS * np.abs(z)), ()
        yield x.value, x.slope, x.noise
        for sigma, sigma_next in pairwise(self._sigmas[:-1]):
            x, _, _, past = self._solver.step(denoise, x, sigma, sigma_next, past)
            yield x.value, x.slope, x.noise

    def _evaluate(self, z):
        """F(z), its slope, and the slope before the last step, whose sign is F's own: that step is monotone."""
        *_, (x, before, _) = self._states(z)
        y, gain = self._data.denoise(x, self._sigmas[-2])
        return y, gain * before, before

    def _domain(self):
        """Points beyond the bulk of the initial law on both sides, until F has passed the data."""
        low, high = self._initial.reach()
        further = (high - low) * (2 ** (np.arange(0, 121) / 3) - 1)
        below, above = low - further, high + further
        values = self._evaluate(np.concatenate([below, above]))[0]
        target = self._data.reach(0.0)
        slack = 1e-9 * (target[1] - target[0])
        passed = (values <= target[0] + slack) | (values >= target[1] - slack)

        def cut(passed):
            return (int(passed.argmax()) if passed.any() else 0) + 1

        n = len(further)
        return below[: cut(passed[:n])], above[: cut(passed[n:])]

    def _split(self, z):
        """Find the turning points of F, and its monotone branches between them."""
        value, _, slope = self._evaluate(z)
        turns = (np.sign(slope[1:]) * np.sign(slope[:-1]) < 0).nonzero()[0]
        low, high, rising = z[turns], z[turns + 1], slope[turns] > 0
        for _ in range(60 if len(turns) else 0):
            middle = (low + high) / 2
            same = (self._evaluate(middle)[2] > 0) == rising
            low, high = np.where(same, middle, low), np.where(same, high, middle)
        turning = (low + high) / 2
        self._turning_values = self._evaluate(turning)[0] if len(turns) else low
        self.turning_points = torch.from_numpy(turning)
        self.turning_values = torch.from_numpy(self._turning_values.copy())  # a caller may write into it
        order = np.concatenate([z, turning]).argsort(kind="stable")
        z = np.concatenate([z, turning])[order]
        value = np.concatenate([value, self._turning_values])[order]
        cuts = np.searchsorted(z, turning).tolist()
        starts, ends = [0, *cuts], [*cuts, len(z) - 1]
        self._branches = [(z[i : j + 1], value[i : j + 1]) for i, j in zip(starts, ends, strict=True)]

    def _roots(self, y):
        """All (index into y, z) with F(z) = y, and for every branch what lies outside it."""
        which, low, high, guess, rising = [], [], [], [], []
        for z, value in self._branches:
            up = bool(value[-1] >= value[0])
            key = np.maximum.accumulate(value if up else value[::-1])
            inside = ((y > key[0]) & (y < key[-1])).nonzero()[0]
            at = np.searchsorted(key, y[inside]).clip(1, len(key) - 1)
            at = at if up else len(key) - at
            which.append(inside)
            low.append(z[at - 1])
            high.append(z[at])
            share = (y[inside] - value[at - 1]) / (value[at] - value[at - 1])
            share = np.where(np.isnan(share), 0.5, share.clip(0, 1))
            guess.append(z[at - 1] + share * (z[at] - z[at - 1]))
            rising.append(np.full(len(inside), up))
        counts = [len(w) for w in which]
        which, rising = np.concatenate(which), np.concatenate(rising)
        return (
            which,
            counts,
            self._solve(y[which], np.concatenate(low), np.concatenate(high), np.concatenate(guess), rising),
        )

    def _solve(self, y, low, high, z, rising):
        """z in [low, high] with F(z) = y: Newton's method kept inside a shrinking bracket."""
        low, high, z = low.copy(), high.copy(), z.copy()
        active = np.arange(len(y))
        for iteration in range(100):
            if not len(active):
                break
            at = z[active]
            value, slope, _ = self._evaluate(at)
            residual = value - y[active]
            below = (residual < 0) == rising[active]
            low[active] = np.where(below, at, low[active])
            high[active] = np.where(below, high[active], at)
            step = residual / slope
            wild = ~((at - step > low[active]) & (at - step < high[active])) | (iteration % 4 == 3)
            ulp = 2.3e-16 * np.abs(at)
            done = (np.abs(step) <= ulp) | (high[active] - low[active] <= 2 * ulp) | (residual == 0)
            z[active] = np.where(done, at, np.where(wild, (low[active] + high[active]) / 2, at - step))
            active = active[~done]
        return z

    def _log_density(self, y):
        """log of the sum over branches of p0 / |F'|."""
        which, _, z = self._roots(y)
        terms = self._initial.log_density(z) - np.log(np.abs(self._evaluate(z)[1]))
        return scatter_logsumexp(terms, which, len(y))

    def _log_intervals(self, low, high):
        n = len(low)
        ends = np.concatenate([low, high])
        which, counts, roots = self._roots(ends)
        total = np.full(n, -math.inf)
        cuts = np.cumsum(counts)[:-1]
        for (z, value), own, root in zip(
            self._branches, np.split(which, cuts), np.split(roots, cuts), strict=True
        ):
            up = bool(value[-1] >= value[0])
            top, bottom = (z[-1], z[0]) if up else (z[0], z[-1])
            at = np.where(ends >= value.max(), top, bottom)
            at[own] = root
            first, last = (at[:n], at[n:]) if up else (at[n:], at[:n])
            total = np.logaddexp(total, self._initial.log_interval(first, np.maximum(first, last)))
        return total

    def _moments(self):
        z = at_nodes(self._left, self._right)
        weight = np.exp(self._initial.log_density(z)) * WEIGHT * ((self._right - self._left) / 2)[:, None]
        mean = (weight * self._value).sum() / weight.sum()
        variance = (weight * np.square(self._value - mean)).sum() / weight.sum()
        return float(weight.sum()), float(mean), float(variance)

    def _kl(self, data):
        if self.branches > 1:
            return self._kl_over_data(data)

        def log_terms(z):
            y, slope, _ = self._evaluate(z)
            log_data, log_slope = data.log_density(y, 0.0), np.log(np.abs(slope))
            return log_data + log_slope, log_data - self._initial.log_density(z) + log_slope

        return kl_through_map(log_terms, np.concatenate([self._left, self._right[-1:]]), self._tolerance)

    def _kl_over_data(self, data):
        """KL over y. The density is infinite on one side of a turning value: y = smooth(t) flattens that end."""
        values = np.concatenate([value for _, value in self._branches])
        bottom, top = values.min(), values.max()
        beyond = data.log_interval(np.array([-math.inf, top]), np.array([bottom, math.inf]), 0.0)
        if np.exp(beyond).sum() > 1e-9:
            return math.inf
        low, high = data.reach(0.0)
        low, high = max(low, bottom), min(high, top)
        std = np.sqrt(data.variances)
        edges = (data.means + std * np.linspace(-REACH, REACH, 8)).reshape(-1).clip(low, high)
        turning = self._turning_values
        edges = np.unique(np.concatenate([edges, turning[(turning > low) & (turning < high)]]))
        middle, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2

        def integrand(t):  # piece k of y is t in [2 k - 1, 2 k + 1]
            piece = np.floor((t + 1) / 2).clip(0, len(half) - 1).astype(int)
            t = t - 2 * piece
            y = middle[piece] + half[piece] * t * (35 - 35 * t**2 + 21 * t**4 - 5 * t**6) / 16
            log_data = data.log_density(y, 0.0)
            weight = np.exp(log_data) * half[piece] * 35 / 16 * (1 - t**2) ** 3
            return weight * (log_data - self._log_density(y))

        return integrate(integrand, 2.0 * np.arange(len(edges)) - 1, 10 * self._tolerance)
