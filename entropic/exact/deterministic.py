"""The exact law of a deterministic solver in one dimension: the branches of the map from start to end."""

import math
from itertools import pairwise

import torch

from entropic import _check
from entropic.exact.data import Law, inputs
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
from entropic.solvers import DDIM, find_solver


def deterministic_law(mixture, sigmas, solver="ddim", start="normal", resolution=1.0):
    """Exact law of a deterministic solver, a name or a `Solver`, on a one-dimensional mixture.

    Arguments, errors and `start` as `stochastic_law`; an unknown or a stochastic solver raises ValueError too. The
    composite map F of the initial value need not be monotone: all its branches are summed. Returns a
    DeterministicLaw.
    """
    data, sigmas, initial, resolution = inputs(mixture, sigmas, start, resolution)
    solver = find_solver(solver)
    if solver.stochastic:
        raise ValueError(f"solver = {solver.name!r} adds noise; use stochastic_law")
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
        return _Carried(value, self.slope + other.slope, self.noise + other.noise + EPS * value.abs())

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
        bulk = torch.linspace(*initial.reach(), math.ceil(24 * resolution) + 1, dtype=torch.float64)
        edges = torch.cat([low[low < bulk[0]].flip(0), bulk, high[high > bulk[-1]]])
        scale = max(1e-300, float(data.reach(0.0)[1] - data.reach(0.0)[0]))

        # A monotone F hides nothing between its values. Otherwise every state must be resolved, at the scale of its
        # own sigma, lest a state crosses a border between two nodes and returns.
        watched = solver != DDIM

        def values(z, left, right):
            unresolved = torch.zeros_like(left)
            z = torch.cat([z, torch.stack([left, right], 1)], 1)
            for sigma, (x, _, noise) in zip(sigmas, self._states(z), strict=False):
                if watched:
                    missed = miss(x[:, :NODES], x[:, -2], x[:, -1])
                    unresolved += missed > 1e-3 / resolution * sigma + 10 * noise.max(1).values
            value, gain = data.denoise(x, sigmas[-2])
            spread = value.max(1).values - value.min(1).values
            missed = miss(value[:, :NODES], value[:, -2], value[:, -1])
            noise = (gain * noise + EPS * value.abs()).max(1).values
            unresolved += missed > 1e-7 / resolution**8 * spread + 1e-10 * scale + 10 * noise
            return value[:, :NODES], unresolved

        def accept(left, right, value, unresolved):
            return unresolved == 0

        self._left, self._right, self._value, _ = resolve(values, edges, accept, depth=48)
        z = torch.cat([self._left[:1], at_nodes(self._left, self._right).reshape(-1), self._right[-1:]])
        self._split(z.unique())
        self.branches = len(self._branches)

    def _states(self, z):
        """At each sigma above 0: the state that z leads to, its slope, and a bound on its rounding."""

        def denoise(x, sigma):
            value, gain = self._data.denoise(x.value, sigma)
            return _Carried(value, gain * x.slope, gain * x.noise + EPS * value.abs())

        x, past = _Carried(z, torch.ones_like(z), EPS * z.abs()), ()
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
        further = (high - low) * (2 ** (torch.arange(0, 121, dtype=torch.float64) / 3) - 1)
        below, above = low - further, high + further
        values = self._evaluate(torch.cat([below, above]))[0]
        target = self._data.reach(0.0)
        slack = 1e-9 * (target[1] - target[0])
        passed = (values <= target[0] + slack) | (values >= target[1] - slack)

        def cut(passed):
            hit = passed.nonzero()
            return (int(hit[0]) if len(hit) else 0) + 1

        n = len(further)
        return below[: cut(passed[:n])], above[: cut(passed[n:])]

    def _split(self, z):
        """Find the turning points of F, and its monotone branches between them."""
        value, _, slope = self._evaluate(z)
        turns = (torch.sign(slope[1:]) * torch.sign(slope[:-1]) < 0).nonzero()[:, 0]
        low, high, rising = z[turns], z[turns + 1], slope[turns] > 0
        for _ in range(60 if len(turns) else 0):
            middle = (low + high) / 2
            same = (self._evaluate(middle)[2] > 0) == rising
            low, high = torch.where(same, middle, low), torch.where(same, high, middle)
        self.turning_points = (low + high) / 2
        self.turning_values = self._evaluate(self.turning_points)[0] if len(turns) else low
        order = torch.cat([z, self.turning_points]).argsort(stable=True)
        z = torch.cat([z, self.turning_points])[order]
        value = torch.cat([value, self.turning_values])[order]
        cuts = torch.searchsorted(z, self.turning_points).tolist()
        starts, ends = [0, *cuts], [*cuts, len(z) - 1]
        self._branches = [(z[i : j + 1], value[i : j + 1]) for i, j in zip(starts, ends, strict=True)]

    def _roots(self, y):
        """All (index into y, z) with F(z) = y, and for every branch what lies outside it."""
        which, low, high, guess, rising = [], [], [], [], []
        for z, value in self._branches:
            up = bool(value[-1] >= value[0])
            key = (value if up else value.flip(0)).cummax(0).values
            inside = ((y > key[0]) & (y < key[-1])).nonzero()[:, 0]
            at = torch.searchsorted(key, y[inside]).clamp(1, len(key) - 1)
            at = at if up else len(key) - at
            which.append(inside)
            low.append(z[at - 1])
            high.append(z[at])
            share = ((y[inside] - value[at - 1]) / (value[at] - value[at - 1])).nan_to_num(0.5).clamp(0, 1)
            guess.append(z[at - 1] + share * (z[at] - z[at - 1]))
            rising.append(torch.full((len(inside),), up))
        counts = [len(w) for w in which]
        which, rising = torch.cat(which), torch.cat(rising)
        return which, counts, self._solve(y[which], torch.cat(low), torch.cat(high), torch.cat(guess), rising)

    def _solve(self, y, low, high, z, rising):
        """z in [low, high] with F(z) = y: Newton's method kept inside a shrinking bracket."""
        low, high, z = low.clone(), high.clone(), z.clone()
        active = torch.arange(len(y))
        for iteration in range(100):
            if not len(active):
                break
            at = z[active]
            value, slope, _ = self._evaluate(at)
            residual = value - y[active]
            below = (residual < 0) == rising[active]
            low[active] = torch.where(below, at, low[active])
            high[active] = torch.where(below, high[active], at)
            step = residual / slope
            wild = ~((at - step > low[active]) & (at - step < high[active])) | (iteration % 4 == 3)
            ulp = 2.3e-16 * at.abs()
            done = (step.abs() <= ulp) | (high[active] - low[active] <= 2 * ulp) | (residual == 0)
            z[active] = torch.where(done, at, torch.where(wild, (low[active] + high[active]) / 2, at - step))
            active = active[~done]
        return z

    def log_density(self, y):
        """log density of the generated value at `y`, shaped like y: log of the sum over branches of p0 / |F'|."""
        y = _check.as_float64("y", y)
        flat = y.reshape(-1)
        which, _, z = self._roots(flat)
        terms = self._initial.log_density(z) - self._evaluate(z)[1].abs().log()
        return scatter_logsumexp(terms, which, len(flat)).reshape(y.shape)

    def _log_intervals(self, low, high):
        n = len(low)
        ends = torch.cat([low, high])
        which, counts, roots = self._roots(ends)
        total = torch.full((n,), -math.inf, dtype=torch.float64)
        for (z, value), own, root in zip(
            self._branches, which.split(counts), roots.split(counts), strict=True
        ):
            up = bool(value[-1] >= value[0])
            top, bottom = (z[-1], z[0]) if up else (z[0], z[-1])
            at = torch.where(ends >= value.max(), top, bottom)
            at[own] = root
            first, last = (at[:n], at[n:]) if up else (at[n:], at[:n])
            total = torch.logaddexp(total, self._initial.log_interval(first, last.maximum(first)))
        return total

    def moments(self):
        """Total mass, mean and variance of the generated value, as floats; the mass is 1 up to the error."""
        z = at_nodes(self._left, self._right)
        weight = self._initial.log_density(z).exp() * WEIGHT * ((self._right - self._left) / 2)[:, None]
        mean = (weight * self._value).sum() / weight.sum()
        variance = (weight * (self._value - mean).square()).sum() / weight.sum()
        return float(weight.sum()), float(mean), float(variance)

    def _kl(self, data):
        if self.branches > 1:
            return self._kl_over_data(data)

        def log_terms(z):
            y, slope, _ = self._evaluate(z)
            log_data, log_slope = data.log_density(y, 0.0), slope.abs().log()
            return log_data + log_slope, log_data - self._initial.log_density(z) + log_slope

        return kl_through_map(log_terms, torch.cat([self._left, self._right[-1:]]), self._tolerance)

    def _kl_over_data(self, data):
        """KL over y. The density is infinite on one side of a turning value: y = smooth(t) flattens that end."""
        low, high = data.reach(0.0)
        std = data.variances.sqrt()
        edges = (data.means + std * torch.linspace(-REACH, REACH, 8, dtype=torch.float64)).flatten()
        inside = self.turning_values[(self.turning_values > low) & (self.turning_values < high)]
        edges = torch.cat([edges, inside]).unique()
        middle, half = (edges[1:] + edges[:-1]) / 2, edges.diff() / 2

        def integrand(t):  # piece k of y is t in [2 k - 1, 2 k + 1]
            piece = ((t + 1) / 2).floor().clamp(0, len(half) - 1).long()
            t = t - 2 * piece
            y = middle[piece] + half[piece] * t * (35 - 35 * t**2 + 21 * t**4 - 5 * t**6) / 16
            log_data = data.log_density(y, 0.0)
            weight = log_data.exp() * half[piece] * 35 / 16 * (1 - t**2) ** 3
            return weight * (log_data - self.log_density(y))

        return integrate(
            integrand, 2 * torch.arange(len(edges), dtype=torch.float64) - 1, 10 * self._tolerance
        )
