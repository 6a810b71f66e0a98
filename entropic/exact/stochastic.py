"""The exact law of a stochastic solver in one dimension: a density that each step maps and widens."""

from __future__ import annotations

import math

import numpy as np

from entropic.exact.data import Law, inputs, quiet
from entropic.exact.panels import (
    BULK,
    LOG_SQRT_2PI,
    LOG_WEIGHT,
    NODE,
    NODES,
    TO_COEFFICIENTS,
    TOLERANCE,
    WEIGHT,
    Piecewise,
    at_nodes,
    bends,
    clenshaw,
    kl_through_map,
    logsumexp,
    miss,
    resolve,
    spelled_out,
    steepest,
    tail,
)
from entropic.mixtures import GaussianMixture
from entropic.solvers import Solver, find_solver
from entropic.types import Numbers


def stochastic_law(
    mixture: GaussianMixture,
    sigmas: Numbers,
    start: str = "normal",
    resolution: float = 1.0,
    *,
    solver: str | Solver = "ddim_stochastic",
) -> StochasticLaw:
    """Exact law of a stochastic solver on a one-dimensional mixture.

    `sigmas` descend to 0 (at least one above 0); `start` is "normal", N(0, sigma_max^2) as in the paper, or
    "exact", the marginal at sigma_max. `resolution` 2 halves every panel: what changes is the error. solver: a name or
    a `Solver` without memory, whose mean increases with the state. ValueError: a mixture of more than one dimension,
    bad sigmas, an unknown start or solver, one that is deterministic or has a memory. Returns a StochasticLaw.
    """
    solver = find_solver(solver)
    if not solver.stochastic or solver.memory:
        raise ValueError(
            f"solver = {solver.name!r}; pass a stochastic one without memory, or use deterministic_law"
        )
    data, sigmas, initial, resolution = inputs(mixture, sigmas, start, resolution)
    with quiet():
        return _carried(_Moves(data, solver), sigmas, initial, resolution)


def _carried(move, sigmas, initial, resolution):
    """The law after all steps: the initial density, carried from one noise level to the next."""
    data = move.data
    needed = _needed(move, sigmas)
    low, high = initial.reach()
    edges = np.linspace(min(low, needed[0][0]), max(high, needed[0][1]), 17)
    law = resolve(
        lambda x, left, right: (initial.log_density(x),),
        edges,
        _accept_log_density(data, sigmas[0], sigmas[-2], needed[0], resolution),
    )
    law = Piecewise(*law)
    for index in range(len(sigmas) - 2):
        law = _stochastic_step(
            move, law, *sigmas[index : index + 2], sigmas[-2], needed[index + 1], resolution
        )
    return StochasticLaw(data, law, sigmas[-2], needed[-1], resolution)


class _Moves:
    """The step of a solver on the data: the mean of the next state, and the deviation of the noise it adds."""

    def __init__(self, data, solver):
        self.data, self.solver = data, solver

    def mean(self, x, sigma, sigma_next):
        return self.solver.step(self._denoise, x, sigma, sigma_next).mean

    def std(self, sigma, sigma_next):
        # The noise of a step is the same at every state.
        return float(self.solver.step(self._denoise, self.data.means[:1, 0], sigma, sigma_next).std)

    def _denoise(self, x, sigma):
        return self.data.denoise(x, sigma)[0]


def _needed(move, sigmas):
    """At each sigma, the interval from which the data is reached: a KL asks for the law there, however small.

    It is found backwards, from the ends of the data. A state has a cost in nats: that of the noise which leads from it
    to the end, less half the log density of the state (half, since the law may be wider than the marginal). The
    interval holds all states whose cost is at most 40 nats above the least.
    """
    further = 2 ** (np.arange(161) / 4) - 1
    data = move.data
    target = data.reach(0.0)
    needed = []
    for sigma, sigma_next in zip(sigmas[-2::-1], sigmas[:0:-1], strict=True):
        low, high = data.reach(sigma)
        if sigma_next == 0 and not data.continuous():
            low, high = target  # points fill their bins from where they lie
        else:
            x = np.stack([low - (high - low) * further, high + (high - low) * further])
            reached = move.mean(x, sigma, sigma_next)
            missing = np.stack([reached[0] - target[0], target[1] - reached[1]]).clip(0)
            if sigma_next == 0:
                hit = (missing == 0).argmax(1)
            else:
                tau = move.std(sigma, sigma_next)
                cost = np.square(missing / tau) / 2 - data.log_density(x, sigma) / 2
                near = cost <= cost.min(1, keepdims=True) + 40
                hit = (near * np.arange(len(further))).argmax(1)
            low, high = float(x[0, hit[0]]), float(x[1, hit[1]])
        target = (low, high)
        needed.append(target)
    return needed[::-1]


def _importance(data, sigma, sigma_last, x, log_density, top, low, high):
    """How much a point matters, 0 to 1: to the law, to the data, or as a tail through which the data is reached.

    The last denoiser contracts the tails of the marginal. A value k standard deviations out in a component of variance
    v comes from a state k sqrt(1 + sigma_last^2 / v) standard deviations out. So the marginal density of that state
    counts to the power v / (v + sigma_last^2). At an earlier sigma, where noise helps to reach it, the power is higher.
    """
    inside = data.reach(sigma)
    exact = data.log_density(x, sigma)
    variance = data.least_variance
    last = variance + sigma_last**2
    power = min(1.0, max(0.05, variance / last * (variance + sigma**2) / last)) if variance > 0 else 1.0
    weight = np.exp(np.maximum(log_density - top, power * (exact - exact.max())).clip(max=0))
    outside = ((x < inside[0]) & (x > low)) | ((x > inside[1]) & (x < high))
    return np.where(outside, 1.0, weight)


def _accept_log_density(data, sigma, sigma_last, needed, resolution, tau=math.inf):
    """Accept a panel when its polynomial gives the log density as exactly as the panel matters."""
    top = [-math.inf]

    def accept(left, right, log_density):
        # (y - centre) / tau is rounded to one part in 1e16 of y / tau
        tolerance = TOLERANCE / resolution + 4e-15 * np.maximum(np.abs(left), np.abs(right)) / tau
        top[0] = max(top[0], float(log_density.max()))
        x = at_nodes(left, right)
        weight = _importance(data, sigma, sigma_last, x, log_density, top[0], *needed).max(1)
        depth = top[0] - log_density.max(1)
        allowed = np.minimum(tolerance * (1 / weight.clip(1e-300) + depth), 1e-3 + 0.05 * depth)
        return tail(log_density) <= allowed

    return accept


def _stochastic_step(move, law, sigma, sigma_next, sigma_last, needed, resolution):
    """The law of m(x) + tau z for x of the given law, m the monotone mean of stochastic DDIM's step."""
    data, tau = move.data, move.std(sigma, sigma_next)
    top, ends_of_law = float(law.values.max()), law.edges[[0, -1]].tolist()

    # Panels on which the map is a polynomial too, then pieces on which the integrand is one, up to its exponential
    def accept(left, right, mapped, ends):
        x = at_nodes(left, right)
        weight = _importance(data, sigma, sigma_last, x, law(x), top, *ends_of_law).max(1)
        size = np.abs(mapped).max(1)
        return miss(mapped, *ends.T) * weight <= 1e-10 * tau / resolution + 1e-14 * size

    def source(x, left, right):
        return move.mean(x, sigma, sigma_next), move.mean(np.stack([left, right], 1), sigma, sigma_next)

    left, right, mapped, _ = resolve(source, law.edges, accept, depth=45)
    x = at_nodes(left, right)
    log_density = law(x)
    weight = _importance(data, sigma, sigma_last, x, log_density, top, *ends_of_law).max(1)
    # A slope of the log density only moves the maximum of the integrand; its bend makes the maximum narrow.
    pieces = np.maximum(steepest(mapped) / (2.75 * tau), np.sqrt(bends(log_density)))
    pieces = np.where(weight < 1e-25, 1.0, np.ceil(pieces * resolution).clip(1, 1e6)).astype(int)
    panel, position = spelled_out(pieces)
    pieces = pieces[panel].astype(float)
    t = ((2 * position + 1)[:, None] + NODE) / pieces[:, None] - 1
    centres = clenshaw((mapped @ TO_COEFFICIENTS.T)[panel, None], t)
    masses = clenshaw((log_density @ TO_COEFFICIENTS.T)[panel, None], t)
    masses += np.log((right - left)[panel] / (2 * pieces))[:, None] + LOG_WEIGHT
    source = _Source(centres, masses, tau)

    bulk = (log_density.max(1) > top - BULK**2 / 2).nonzero()[0]
    ends = move.mean(np.array([left[bulk[0]], right[bulk[-1]]]), sigma, sigma_next)
    low = min(needed[0], float(ends[0]) - BULK * tau)
    high = max(needed[1], float(ends[1]) + BULK * tau)
    edges = _seed(move.mean(law.edges, sigma, sigma_next)[::2], low, high, tau, resolution)
    left, right, values = resolve(
        lambda y, left, right: (source.log_density(y.reshape(-1)).reshape(y.shape),),
        edges,
        _accept_log_density(data, sigma_next, sigma_last, needed, resolution, tau),
        depth=30,
    )
    kept = (values.max(1) > values.max() - BULK**2 / 2) | ((right > needed[0]) & (left < needed[1]))
    kept = kept.nonzero()[0]
    kept = slice(int(kept[0]), int(kept[-1]) + 1)
    return Piecewise(left[kept], right[kept], values[kept])


def _seed(candidates, low, high, tau, resolution):
    """Edges from `low` to `high` through those candidates that are about 2 tau apart or more, eight gaps at least."""
    inside = candidates[(candidates > low) & (candidates < high)]
    inside = np.concatenate([inside, np.linspace(low, high, round(8 * resolution) + 1)])
    inside.sort()
    cells = np.diff(np.floor(inside * resolution / (2 * tau))) > 0
    return np.unique(np.concatenate([inside[:1], inside[1:-1][cells[:-1]], inside[-1:]]))


class _Source:
    """Weighted Gaussians of standard deviation tau about sorted centres (S, nodes): evaluated within windows.

    The score of a centre c at y, log mass - (y - c)^2 / (2 tau^2), grows faster in y the larger c is. So the set of
    centres within 45 nats of the best moves to the right with y: the windows of two values of y enclose
    those of all values between.
    """

    def __init__(self, centres, log_mass, tau):
        self.centres, self.log_mass, self.tau = centres, log_mass, tau
        # A block stands for its two ends: what lies between is at most about 2 nats better.
        self.low, self.high = centres[:, 0], centres[:, -1]
        self.at_low, self.at_high = log_mass[:, 0] - LOG_WEIGHT[0], log_mass[:, -1] - LOG_WEIGHT[-1]

    def _windows(self, y, first, last):
        """For rows of y (G, n), the blocks that matter to each value, sought in [first, last) of the row (G,)."""
        width = int((last - first).max())
        block = first[:, None] + np.arange(width)
        outside = (block >= last[:, None])[:, None]
        block = block.clip(max=len(self.low) - 1)
        at = y[:, :, None]
        score = self._score(at, self.low[block][:, None], self.at_low[block][:, None])
        np.maximum(score, self._score(at, self.high[block][:, None], self.at_high[block][:, None]), out=score)
        np.copyto(score, -math.inf, where=outside)
        near = score >= score.max(2, keepdims=True) - 45
        return near.argmax(2) + first[:, None], width - near[..., ::-1].argmax(2) + first[:, None]

    def _score(self, y, centre, log_mass):
        score = y - centre
        score *= score
        score *= -0.5 / self.tau**2
        score += log_mass
        return score

    def log_density(self, y):
        order = y.argsort()
        y = y[order]
        group = 16
        ends = np.append(y[::group], y[-1])
        size = max(1, 500_000 // len(self.low))
        zero = np.zeros(1, dtype=int)
        found = [
            self._windows(ends[None, i : i + size], zero, zero + len(self.low))
            for i in range(0, len(ends), size)
        ]
        first, last = (np.concatenate([f[k][0] for f in found]) for k in (0, 1))
        # A block seen through its ends alone may leave a window a value early or late: keep both ends in order.
        first, last = np.minimum.accumulate(first[::-1])[::-1], np.maximum.accumulate(last)
        rows = np.append(y, y[-1:].repeat(-len(y) % group)).reshape(-1, group)
        starts, stops = np.empty(rows.shape, dtype=int), np.empty(rows.shape, dtype=int)
        for pick in _batches(last[1:] - first[:-1], group):
            starts[pick], stops[pick] = self._windows(rows[pick], first[:-1][pick], last[1:][pick])
        starts, stops = starts.reshape(-1)[: len(y)], stops.reshape(-1)[: len(y)]
        result = np.empty_like(y)
        for pick in _batches(stops - starts, NODES):
            block = starts[pick, None] + np.arange(int((stops - starts)[pick[-1]]))
            outside = block >= stops[pick, None]
            block = block.clip(max=len(self.low) - 1)
            exponent = self._score(y[pick, None, None], self.centres[block], self.log_mass[block])
            np.copyto(exponent, -math.inf, where=outside[:, :, None])
            result[order[pick]] = logsumexp(exponent.reshape(len(pick), -1))
        return result - (math.log(self.tau) + LOG_SQRT_2PI)


def _batches(sizes, factor, elements=200_000):
    """Indices in order of size, in runs whose padded blocks of size x factor stay within the cache."""
    order = sizes.argsort()
    sizes = sizes[order].tolist()
    at = 0
    while at < len(order):
        stop = min(len(order), at + max(1, elements // (factor * sizes[at])))
        while stop - at > 1 and (stop - at) * factor * sizes[stop - 1] > elements:
            stop = at + (stop - at) // 2
        yield order[at:stop]
        at = stop


class StochasticLaw(Law):
    """Law of y = D(x; sigma_min), with the law of x known as a piecewise log density. D is monotone."""

    def __init__(self, data, law, sigma, needed, resolution):
        self._data, self._law, self._sigma, self._needed = data, law, sigma, needed
        self._tolerance = TOLERANCE / resolution

        # Panels on which exp(log density) and the denoiser are polynomials
        def accept(left, right, log_density, denoised, ends):
            bend, spread = bends(log_density), np.ptp(log_density, 1)
            mass = np.exp(log_density.max(1)) * (right - left)
            missed = miss(denoised, *ends.T)
            # One point has no span, and what is missed of a constant is its rounding.
            smooth = (missed * mass <= 1e-12 * span) | (missed <= 1e-14 * np.abs(denoised).max(1))
            return smooth & (((bend <= 1 / resolution) & (spread <= 12)) | (mass < 1e-300))

        span = float(np.ptp(data.means)) + math.sqrt(data.variances.max())

        def values(x, left, right):
            ends = np.stack([left, right], 1)
            return law(x), data.denoise(x, sigma)[0], data.denoise(ends, sigma)[0]

        left, right, *_ = resolve(values, law.edges, accept)
        self._edges = np.concatenate([left, right[-1:]])

    def _invert(self, y):
        """x with D(x; sigma_min) = y, by bisection; the ends of the law's range where there is none."""
        low = np.full_like(y, float(self._edges[0]))
        high = np.full_like(y, float(self._edges[-1]))
        for _ in range(64):
            middle = (low + high) / 2
            below = self._data.denoise(middle, self._sigma)[0] < y
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2

    def _log_density(self, y):
        x = self._invert(y)
        denoised, slope = self._data.denoise(x, self._sigma)
        # Outside the range of the denoiser bisection ends on the border, whose image is not y.
        hit = np.abs(denoised - y) <= 1e-9 * (1 + np.abs(y))
        return np.where(hit, self._law(x) - np.log(slope), -math.inf)

    def _log_intervals(self, low, high):
        ends = np.concatenate([low, high])
        x = self._invert(ends)
        x = np.where(ends == -math.inf, self._edges[0], np.where(ends == math.inf, self._edges[-1], x))
        edges = np.unique(np.concatenate([self._edges, x]))
        first, last = np.searchsorted(edges, x).reshape(2, -1)
        which, piece = spelled_out((last - first).clip(0))
        piece += first[which]
        if len(which) <= 10 * len(edges):
            return self._law.log_masses(edges[piece], edges[piece + 1], which, len(low)).clip(max=0)
        every = np.arange(len(edges) - 1)
        total = np.exp(self._law.log_masses(edges[:-1], edges[1:], every, len(every))).cumsum()
        total = np.append(0.0, total)
        return np.log((total[last] - total[first]).clip(0, 1))

    def _moments(self):
        left, right = self._edges[:-1], self._edges[1:]
        x = at_nodes(left, right)
        weight = np.exp(self._law(x)) * WEIGHT * ((right - left) / 2)[:, None]
        y = self._data.denoise(x, self._sigma)[0]
        mean = (weight * y).sum() / weight.sum()
        return float(weight.sum()), float(mean), float((weight * np.square(y - mean)).sum() / weight.sum())

    def _kl(self, data):
        def log_terms(x):
            y, slope = self._data.denoise(x, self._sigma)
            log_data, log_slope = data.log_density(y, 0.0), np.log(slope)
            return log_data + log_slope, log_data - self._law(x) + log_slope

        return kl_through_map(log_terms, self._edges, self._tolerance)
