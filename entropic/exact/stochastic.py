"""The exact law of a stochastic solver in one dimension: a density that each step maps and widens."""

import math

import torch

from entropic import _check
from entropic.exact.data import Law, inputs
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
    clenshaw,
    kl_through_map,
    miss,
    resolve,
    steepest,
    tail,
)
from entropic.solvers import find_solver


def stochastic_law(mixture, sigmas, start="normal", resolution=1.0, *, solver="ddim_stochastic"):
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
    move = _Moves(data, solver)
    needed = _needed(move, sigmas)
    low, high = initial.reach()
    edges = torch.linspace(min(low, needed[0][0]), max(high, needed[0][1]), 17, dtype=torch.float64)
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

    Backwards from the ends of the data: the state from which the least unlikely noise leads to the end, its own log
    density weighed by a half since the law may be wider than the marginal, and all within 40 nats.
    """
    further = 2 ** (torch.arange(161, dtype=torch.float64) / 4) - 1
    data = move.data
    target = data.reach(0.0)
    needed = []
    for sigma, sigma_next in zip(sigmas[-2::-1], sigmas[:0:-1], strict=True):
        low, high = data.reach(sigma)
        if sigma_next == 0 and not data.continuous():
            low, high = target  # points fill their bins from where they lie
        else:
            x = torch.stack([low - (high - low) * further, high + (high - low) * further])
            reached = move.mean(x, sigma, sigma_next)
            missing = torch.stack([reached[0] - target[0], target[1] - reached[1]]).clamp_min(0)
            if sigma_next == 0:
                hit = (missing == 0).to(torch.uint8).argmax(1)
            else:
                tau = move.std(sigma, sigma_next)
                cost = (missing / tau).square() / 2 - data.log_density(x, sigma) / 2
                near = cost <= cost.min(1, keepdim=True).values + 40
                hit = (near * torch.arange(len(further))).argmax(1)
            low, high = float(x[0, hit[0]]), float(x[1, hit[1]])
        target = (low, high)
        needed.append(target)
    return needed[::-1]


def _importance(data, sigma, sigma_last, x, log_density, top, low, high):
    """How much a point matters, 0 to 1: to the law, to the data, or as a tail through which the data is reached.

    The last denoiser spreads the data's own tails: what lies k standard deviations out in a component of variance
    v comes from k sqrt(1 + sigma_last^2 / v) of them out in the marginal. So its density counts to the power
    v / (v + sigma_last^2), and at an earlier sigma, from where noise leads there, to a higher one.
    """
    inside = data.reach(sigma)
    exact = data.log_density(x, sigma)
    variance = float(data.variances.min())
    last = variance + sigma_last**2
    power = min(1.0, max(0.05, variance / last * (variance + sigma**2) / last)) if variance > 0 else 1.0
    weight = torch.maximum(log_density - top, power * (exact - exact.max())).clamp_max(0).exp()
    outside = ((x < inside[0]) & (x > low)) | ((x > inside[1]) & (x < high))
    return torch.where(outside, torch.ones_like(weight), weight)


def _accept_log_density(data, sigma, sigma_last, needed, resolution, tau=math.inf):
    """Accept a panel when its polynomial gives the log density as exactly as the panel matters."""
    top = [-math.inf]

    def accept(left, right, log_density):
        # (y - centre) / tau is rounded to one part in 1e16 of y / tau
        tolerance = TOLERANCE / resolution + 4e-15 * torch.maximum(left.abs(), right.abs()) / tau
        top[0] = max(top[0], float(log_density.max()))
        x = at_nodes(left, right)
        weight = _importance(data, sigma, sigma_last, x, log_density, top[0], *needed).max(1).values
        depth = top[0] - log_density.max(1).values
        allowed = torch.minimum(tolerance * (1 / weight.clamp_min(1e-300) + depth), 1e-3 + 0.05 * depth)
        return tail(log_density) <= allowed

    return accept


def _stochastic_step(move, law, sigma, sigma_next, sigma_last, needed, resolution):
    """The law of m(x) + tau z for x of the given law, m the monotone mean of stochastic DDIM's step."""
    data, tau = move.data, move.std(sigma, sigma_next)
    top, ends_of_law = float(law.values.max()), law.edges[[0, -1]].tolist()

    # Panels on which the map is a polynomial too, then pieces on which the integrand is one, up to its exponential
    def accept(left, right, mapped, ends):
        x = at_nodes(left, right)
        weight = _importance(data, sigma, sigma_last, x, law(x), top, *ends_of_law).max(1).values
        size = mapped.abs().max(1).values
        return miss(mapped, *ends.T) * weight <= 1e-10 * tau / resolution + 1e-14 * size

    def source(x, left, right):
        return move.mean(x, sigma, sigma_next), move.mean(torch.stack([left, right], 1), sigma, sigma_next)

    left, right, mapped, _ = resolve(source, law.edges, accept, depth=45)
    x = at_nodes(left, right)
    log_density = law(x)
    weight = _importance(data, sigma, sigma_last, x, log_density, top, *ends_of_law).max(1).values
    # A slope of the log density only moves the maximum of the integrand; its bend makes the maximum narrow.
    bend = (log_density @ TO_COEFFICIENTS.T)[:, 2:].abs().sum(1)
    pieces = torch.maximum(steepest(mapped) / (2.75 * tau), bend.sqrt())
    pieces = torch.where(weight < 1e-25, 1.0, (pieces * resolution).ceil().clamp(1, 1e6)).long()
    panel = torch.arange(len(left)).repeat_interleave(pieces)
    position = torch.arange(len(panel)) - (pieces.cumsum(0) - pieces)[panel]
    pieces = pieces[panel].double()
    t = ((2 * position + 1)[:, None] + NODE) / pieces[:, None] - 1
    centres = clenshaw((mapped @ TO_COEFFICIENTS.T)[panel, None], t)
    masses = clenshaw((log_density @ TO_COEFFICIENTS.T)[panel, None], t)
    masses += ((right - left)[panel] / (2 * pieces)).log()[:, None] + LOG_WEIGHT
    source = _Source(centres, masses, tau)

    bulk = (log_density.max(1).values > top - BULK**2 / 2).nonzero()
    ends = move.mean(torch.stack([left[bulk[0, 0]], right[bulk[-1, 0]]]), sigma, sigma_next)
    low = min(needed[0], float(ends[0]) - BULK * tau)
    high = max(needed[1], float(ends[1]) + BULK * tau)
    edges = _seed(move.mean(law.edges, sigma, sigma_next)[::2], low, high, tau, resolution)
    left, right, values = resolve(
        lambda y, left, right: (source.log_density(y.reshape(-1)).reshape(y.shape),),
        edges,
        _accept_log_density(data, sigma_next, sigma_last, needed, resolution, tau),
        depth=30,
    )
    kept = (values.max(1).values > values.max() - BULK**2 / 2) | ((right > needed[0]) & (left < needed[1]))
    kept = kept.nonzero()
    kept = slice(int(kept[0]), int(kept[-1]) + 1)
    return Piecewise(left[kept], right[kept], values[kept])


def _seed(candidates, low, high, tau, resolution):
    """Edges from `low` to `high` through those candidates that are about 2 tau apart or more, eight gaps at least."""
    inside = candidates[(candidates > low) & (candidates < high)]
    inside = torch.cat([inside, torch.linspace(low, high, round(8 * resolution) + 1, dtype=torch.float64)])
    inside = inside.sort().values
    cells = torch.floor(inside * resolution / (2 * tau)).diff() > 0
    return torch.cat([inside[:1], inside[1:-1][cells[:-1]], inside[-1:]]).unique()


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
        block = first[:, None] + torch.arange(width)
        outside = (block >= last[:, None])[:, None]
        block = block.clamp_max(len(self.low) - 1)
        at = y[:, :, None]
        scale = -0.5 / self.tau**2
        score = (at - self.low[block][:, None]).square_().mul_(scale).add_(self.at_low[block][:, None])
        other = (at - self.high[block][:, None]).square_().mul_(scale).add_(self.at_high[block][:, None])
        score = torch.maximum(score, other)
        score = score.masked_fill_(outside, -math.inf)
        near = (score >= score.amax(2, keepdim=True) - 45).to(torch.uint8)
        return near.argmax(2) + first[:, None], width - near.flip(2).argmax(2) + first[:, None]

    def log_density(self, y):
        order = y.argsort()
        y = y[order]
        group = 16
        ends = torch.cat([y[::group], y[-1:]])
        zero = torch.zeros(1, dtype=torch.long)
        found = [
            self._windows(chunk[None], zero, zero + len(self.low))
            for chunk in ends.split(max(1, 500_000 // len(self.low)))
        ]
        first, last = (torch.cat([f[k][0] for f in found]) for k in (0, 1))
        # A block seen through its ends alone may leave a window a value early or late: keep both ends in order.
        first, last = first.flip(0).cummin(0).values.flip(0), last.cummax(0).values
        rows = torch.cat([y, y[-1:].expand(-len(y) % group)]).reshape(-1, group)
        starts, stops = torch.empty_like(rows, dtype=torch.long), torch.empty_like(rows, dtype=torch.long)
        for pick in _batches(last[1:] - first[:-1], group):
            starts[pick], stops[pick] = self._windows(rows[pick], first[:-1][pick], last[1:][pick])
        starts, stops = starts.reshape(-1)[: len(y)], stops.reshape(-1)[: len(y)]
        result = torch.empty_like(y)
        for pick in _batches(stops - starts, NODES):
            block = starts[pick, None] + torch.arange(int((stops - starts)[pick[-1]]))
            outside = block >= stops[pick, None]
            block = block.clamp_max(len(self.low) - 1)
            exponent = (y[pick, None, None] - self.centres[block]).mul_(1 / self.tau).square_().mul_(-0.5)
            exponent += self.log_mass[block]
            exponent.masked_fill_(outside[:, :, None], -math.inf)
            result[pick] = exponent.flatten(1).logsumexp(1)
        result -= math.log(self.tau) + LOG_SQRT_2PI
        return torch.empty_like(y).scatter_(0, order, result)


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
            bend = (log_density @ TO_COEFFICIENTS.T)[:, 2:].abs().sum(1)
            spread = log_density.max(1).values - log_density.min(1).values
            mass = log_density.max(1).values.exp() * (right - left)
            smooth = miss(denoised, *ends.T) * mass <= 1e-12 * span
            return smooth & (((bend <= 1 / resolution) & (spread <= 12)) | (mass < 1e-300))

        span = float(data.means.max() - data.means.min()) + float(data.variances.max().sqrt())

        def values(x, left, right):
            ends = torch.stack([left, right], 1)
            return law(x), data.denoise(x, sigma)[0], data.denoise(ends, sigma)[0]

        left, right, *_ = resolve(values, law.edges, accept)
        self._edges = torch.cat([left, right[-1:]])

    def _invert(self, y):
        """x with D(x; sigma_min) = y, by bisection; the ends of the law's range where there is none."""
        low = torch.full_like(y, float(self._edges[0]))
        high = torch.full_like(y, float(self._edges[-1]))
        for _ in range(64):
            middle = (low + high) / 2
            below = self._data.denoise(middle, self._sigma)[0] < y
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def log_density(self, y):
        """log density of the generated value at `y`, shaped like y; -inf outside the range of the denoiser."""
        y = _check.as_float64("y", y)
        flat = y.reshape(-1)
        x = self._invert(flat)
        denoised, slope = self._data.denoise(x, self._sigma)
        result = self._law(x) - slope.log()
        # Outside the range bisection ends on the border, whose image is not y.
        hit = (denoised - flat).abs() <= 1e-9 * (1 + flat.abs())
        return torch.where(hit, result, -math.inf).reshape(y.shape)

    def _log_intervals(self, low, high):
        ends = torch.cat([low, high])
        x = self._invert(ends)
        x = torch.where(ends == -math.inf, self._edges[0], torch.where(ends == math.inf, self._edges[-1], x))
        edges = torch.cat([self._edges, x]).unique()
        first, last = torch.searchsorted(edges, x).reshape(2, -1)
        count = (last - first).clamp_min(0)
        which = torch.arange(len(low)).repeat_interleave(count)
        piece = torch.arange(len(which)) - (count.cumsum(0) - count)[which] + first[which]
        if len(which) <= 10 * len(edges):
            return self._law.log_masses(edges[piece], edges[piece + 1], which, len(low)).clamp_max(0)
        every = torch.arange(len(edges) - 1)
        total = self._law.log_masses(edges[:-1], edges[1:], every, len(every)).exp().cumsum(0)
        total = torch.cat([total.new_zeros(1), total])
        return (total[last] - total[first]).clamp(0, 1).log()

    def moments(self):
        """Total mass, mean and variance of the generated value, as floats; the mass is 1 up to the error."""
        left, right = self._edges[:-1], self._edges[1:]
        x = at_nodes(left, right)
        weight = self._law(x).exp() * WEIGHT * ((right - left) / 2)[:, None]
        y = self._data.denoise(x, self._sigma)[0]
        mean = (weight * y).sum() / weight.sum()
        return float(weight.sum()), float(mean), float((weight * (y - mean).square()).sum() / weight.sum())

    def _kl(self, data):
        def log_terms(x):
            y, slope = self._data.denoise(x, self._sigma)
            log_data, log_slope = data.log_density(y, 0.0), slope.log()
            return log_data + log_slope, log_data - self._law(x) + log_slope

        return kl_through_map(log_terms, self._edges, self._tolerance)
