"""The exact law of a sampler: by quadrature in one dimension, in closed form for Gaussian data.

In one dimension no path is simulated. Stochastic DDIM moves a density: each step is a monotone map followed by
Gaussian noise. A deterministic solver moves points: its output is one function of the initial value, and every
branch of its inverse adds p0(z) / |F'(z)| to the density. All results are in nats and data units, and stay finite
where a density is far below the smallest float, since everything is kept as a logarithm.
"""

import math
from itertools import pairwise

import numpy as np
import torch

from entropic import _check

__all__ = [
    "DeterministicLaw",
    "StochasticLaw",
    "deterministic_law",
    "gaussian_kl",
    "gaussian_law",
    "gaussian_w2",
    "stochastic_law",
]

_NODES = 12  # Gauss-Legendre nodes a panel
_REACH = 9.5  # standard deviations of the data that a KL must see: the rest weighs below 1e-20
_BULK = 12.5  # standard deviations of a law that are always kept: log density 78 nats below the top
_TOLERANCE = 1e-11  # of a log density where it matters


def _legendre():
    node, weight = np.polynomial.legendre.leggauss(_NODES)
    to_coefficients = np.linalg.inv(np.polynomial.legendre.legvander(node, _NODES - 1))
    return torch.as_tensor(node), torch.as_tensor(weight), torch.as_tensor(to_coefficients)


_NODE, _WEIGHT, _TO_COEFFICIENTS = _legendre()
_LOG_WEIGHT = _WEIGHT.log()
_TAIL = _TO_COEFFICIENTS[-2:].T.contiguous()
_TO_ENDS = torch.stack([(-1.0) ** torch.arange(_NODES), torch.ones(_NODES)], 1).double()
_TO_ENDS = _TO_COEFFICIENTS.T @ _TO_ENDS
_EPS = 2.0**-52
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


# ---------------------------------------------------------------------------------------------------- panels


def _at_nodes(left, right):
    return ((left + right) / 2)[:, None] + ((right - left) / 2)[:, None] * _NODE


def _tail(values):
    """Size of the last two Legendre coefficients on each panel: what a polynomial of this degree leaves out."""
    return (values @ _TAIL).abs().sum(-1)


def _miss(values, at_left, at_right):
    """As `_tail`, or by how much the polynomial misses the ends: a step may hide between an end and a node."""
    ends = (values @ _TO_ENDS - torch.stack([at_left, at_right], 1)).abs()
    return torch.maximum(_tail(values), ends.max(1).values / 10)


def _resolve(function, edges, accept, depth=50):
    """Halve panels between `edges` until `accept(left, right, *values)`; values = function(nodes), each (P, nodes).

    Returns left, right and the values, sorted by left.
    """
    left, right = edges[:-1], edges[1:]
    done = []
    for level in range(depth):
        values = function(_at_nodes(left, right), left, right)
        good = accept(left, right, *values)
        middle = (left + right) / 2
        good = good | (middle <= left) | (middle >= right)
        if level == depth - 1:
            good = torch.ones_like(good)
        done.append((left[good], right[good], *(v[good] for v in values)))
        if good.all():
            break
        left, right = torch.cat([left[~good], middle[~good]]), torch.cat([middle[~good], right[~good]])
    columns = [torch.cat(column) for column in zip(*done, strict=True)]
    order = columns[0].argsort()
    return [column[order] for column in columns]


def _integrate(function, edges, tolerance):
    """Integral over [edges[0], edges[-1]] of `function` (flat nodes -> flat values), adaptively."""

    def values(x, left, right):
        return (function(x.reshape(-1)).reshape(x.shape),)

    scale = [None]

    def accept(left, right, value):
        if scale[0] is None:
            scale[0] = 1 + float(((right - left) / 2 * (value.abs() @ _WEIGHT)).sum())
        return _tail(value) * (right - left) <= tolerance * scale[0]

    left, right, value = _resolve(values, edges, accept)
    return float(((right - left) / 2 * (value @ _WEIGHT)).sum())


def _clenshaw(coefficients, t):
    """The Legendre series with `coefficients` along the last axis, at t in [-1, 1]."""
    ahead = after = torch.zeros_like(t)
    for k in range(_NODES - 1, 0, -1):
        ahead, after = (
            coefficients[..., k] + (2 * k + 1) / (k + 1) * t * ahead - (k + 1) / (k + 2) * after,
            ahead,
        )
    return coefficients[..., 0] + t * ahead - after / 2


def _steepest(values):
    """The largest slope between nodes of each panel, times the panel's width."""
    return ((values[:, 1:] - values[:, :-1]).abs() / _NODE.diff() * 2).max(1).values


class _Piecewise:
    """A log density as a polynomial on each of adjacent panels."""

    def __init__(self, left, right, values):
        self.edges = torch.cat([left, right[-1:]])
        self.coefficients = values @ _TO_COEFFICIENTS.T
        self.values = values

    def __call__(self, x):
        panel = (torch.searchsorted(self.edges, x, right=True) - 1).clamp(0, len(self.edges) - 2)
        left, right = self.edges[panel], self.edges[panel + 1]
        return _clenshaw(self.coefficients[panel], (2 * x - left - right) / (right - left))

    def log_masses(self, left, right, group, groups):
        """log of the integral of exp over the pieces [left, right], each within one panel, summed by group."""
        values = self(_at_nodes(left, right))
        rough = values.max(1).values + (right - left).log()
        best = torch.full((groups,), -math.inf, dtype=torch.float64).scatter_reduce(0, group, rough, "amax")
        kept = rough > best[group] - 80
        left, right, group, values = left[kept], right[kept], group[kept], values[kept]
        bend = (values @ _TO_COEFFICIENTS.T)[:, 2:].abs().sum(1).sqrt()
        spread = (values.max(1).values - values.min(1).values) / 12
        pieces = torch.maximum(bend, spread).ceil().clamp(1, 1e5).long()
        which = torch.arange(len(left)).repeat_interleave(pieces)
        position = (torch.arange(len(which)) - (pieces.cumsum(0) - pieces)[which]).double()
        step = ((right - left) / pieces)[which]
        low = left[which] + position * step
        masses = torch.logsumexp(self(_at_nodes(low, low + step)) + _LOG_WEIGHT, 1) + (step / 2).log()
        return _scatter_logsumexp(masses, group[which], groups)


# ------------------------------------------------------------------------------- the data, in one dimension


class _Data:
    """A one-dimensional mixture: denoiser and its slope together, without checks, components along axis 0."""

    def __init__(self, mixture):
        if mixture.dim != 1:
            raise ValueError(f"mixture has {mixture.dim} dimensions; exact laws need 1")
        along = (mixture.basis[:, 0, :].square() * mixture.eigenvalues).sum(1)
        self.means = mixture.means[:, :1]
        self.variances = (mixture.noise + along)[:, None]
        self.log_weights = mixture.weights.log()[:, None]

    def _logits(self, x, total):
        """log of the terms of the density at x (n,), (K, n), less a term common to all that is returned too.

        Far outside the means the squares are huge and nearly equal: with e the distance from their hull and p the
        nearest point of it, (x - mean)^2 = (p - mean) (p - mean + 2 e) + e^2, whose e^2 is set apart.
        """
        hull = x.clamp(float(self.means.min()), float(self.means.max()))
        outside = x - hull
        offset = hull - self.means
        logits = (self.log_weights - 0.5 * total.log()) - offset * (offset + 2 * outside) * (0.5 / total)
        curvature = 0.5 / total
        least = float(curvature.min())
        if float(curvature.max()) > least:
            logits = logits - (curvature - least) * outside.square()
        return logits, -least * outside.square()

    def denoise(self, x, sigma):
        """E[x0 | x] and its derivative Var[x0 | x] / sigma^2, shaped like x."""
        shape, x = x.shape, x.reshape(-1)
        total = self.variances + sigma**2
        gain = self.variances / total
        posterior = self._logits(x, total)[0].softmax(0)
        centre = self.means + gain * (x - self.means)
        denoised = (posterior * centre).sum(0)
        slope = (posterior * ((centre - denoised).square() / sigma**2 + gain)).sum(0)
        return denoised.reshape(shape), slope.reshape(shape)

    def log_density(self, x, sigma):
        logits, common = self._logits(x.reshape(-1), self.variances + sigma**2)
        return (logits.logsumexp(0) + (common - _LOG_SQRT_2PI)).reshape(x.shape)

    def log_interval(self, low, high, sigma):
        """log P(low < x < high) at noise sigma."""
        std = (self.variances + sigma**2).sqrt()
        return (
            self.log_weights + _log_normal_interval((low - self.means) / std, (high - self.means) / std)
        ).logsumexp(0)

    def reach(self, sigma, reach=_REACH):
        std = (self.variances + sigma**2).sqrt() * reach
        return float((self.means - std).min()), float((self.means + std).max())

    def continuous(self):
        return bool((self.variances > 0).all())


def _log_normal_interval(a, b):
    """log(Phi(b) - Phi(a)) for a <= b, without cancellation in either tail."""
    flip = a + b > 0
    low, high = torch.where(flip, -b, a), torch.where(flip, -a, b)  # now low is the deeper in the left tail
    top, bottom = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return top + torch.log(-torch.expm1((bottom - top).clamp_max(0)))


class _Start:
    """The initial law: N(0, sigma_max^2) as in the paper, or the exact marginal at sigma_max."""

    def __init__(self, data, start, sigma):
        if start not in ("normal", "exact"):
            raise ValueError(
                f"start = {start!r}; pass 'normal' for N(0, sigma_max^2) or 'exact' for the marginal"
            )
        if start == "normal":
            data = _Data.__new__(_Data)
            data.means = data.variances = data.log_weights = torch.zeros(1, 1, dtype=torch.float64)
        self.data, self.sigma = data, sigma

    def log_density(self, z):
        return self.data.log_density(z, self.sigma)

    def log_interval(self, low, high):
        return self.data.log_interval(low, high, self.sigma)

    def reach(self, reach=_BULK):
        return self.data.reach(self.sigma, reach)


def _inputs(mixture, sigmas, start, resolution):
    data, sigmas = _Data(mixture), _check.schedule(sigmas).detach().tolist()
    resolution = float(_check.as_float64("resolution", resolution))
    if not resolution >= 0.5:
        raise ValueError(
            f"resolution = {resolution}; 1 is accurate, 2 halves the panels, below 0.5 is too coarse"
        )
    return data, sigmas, _Start(data, start, sigmas[0]), resolution


# ---------------------------------------------------------------------------------------------- common queries


class _Law:
    """What both kinds of law share. Subclasses give log_density, log_bin_probabilities, moments and _kl."""

    def bin_probabilities(self, centres, halfwidth):
        """P(|y - centre| <= halfwidth) for each of `centres` (B,); `halfwidth` a number or (B,), data units."""
        return self.log_bin_probabilities(centres, halfwidth).exp()

    def log_bin_probabilities(self, centres, halfwidth):
        """log of `bin_probabilities`, nats; finite where the probability is below the smallest float.

        ValueError: halfwidth not above 0.
        """
        centres, halfwidth = _check.as_float64("centres", centres), _check.as_float64("halfwidth", halfwidth)
        if centres.ndim != 1 or halfwidth.shape not in {(), centres.shape}:
            raise ValueError(
                f"centres {tuple(centres.shape)} and halfwidth {tuple(halfwidth.shape)}: pass (B,) and () or (B,)"
            )
        if not (halfwidth > 0).all():
            raise ValueError(f"halfwidth = {halfwidth.min().item()}; a bin needs a width above 0")
        return self._log_intervals(centres - halfwidth, centres + halfwidth)

    def cdf(self, y):
        """P(generated <= y), shaped like `y`."""
        y = _check.as_float64("y", y)
        flat = y.reshape(-1)
        return self._log_intervals(torch.full_like(flat, -math.inf), flat).exp().reshape(y.shape)

    def kl_bins(self, mixture, halfwidth):
        """KL(data || generated) in nats for point masses, the generated law seen in bins around the points.

        sum_k w_k log(w_k / P(|y - a_k| <= halfwidth)); generated mass outside all bins counts as lost.
        ValueError: a component with variance; bins that overlap. Source: section 6.1 and App. H.2.
        """
        data = _Data(mixture)
        if bool((data.variances > 0).any()):
            raise ValueError("mixture has components with variance; kl_bins needs point masses, use kl")
        points, order = data.means[:, 0].sort()
        weights = data.log_weights[:, 0][order]
        halfwidth = _check.positive("halfwidth", halfwidth)
        if len(points) > 1 and float(points.diff().min()) < 2 * halfwidth:
            raise ValueError(
                f"halfwidth = {halfwidth} makes bins overlap; use at most {float(points.diff().min()) / 2}"
            )
        found = self.log_bin_probabilities(points, halfwidth)
        return float((weights.exp() * (weights - found)).sum())

    def kl(self, mixture):
        """KL(data || generated) in nats, for data with a density; infinite where the law misses the data.

        ValueError: point masses (use kl_bins).
        """
        data = _Data(mixture)
        if not data.continuous():
            raise ValueError("mixture has point masses, whose KL to a density is infinite; use kl_bins")
        return self._kl(data)


# ---------------------------------------------------------------------------------------------- stochastic DDIM


def stochastic_law(mixture, sigmas, start="normal", resolution=1.0):
    """Exact law of stochastic DDIM (`samplers.sample_ddim_stochastic`) on a one-dimensional mixture.

    `sigmas` descend to 0 (at least one above 0); `start` is "normal", N(0, sigma_max^2) as in the paper, or
    "exact", the marginal at sigma_max. `resolution` 2 halves every panel: what changes is the error.
    ValueError: a mixture of more than one dimension, bad sigmas, an unknown start. Returns a StochasticLaw.
    """
    data, sigmas, initial, resolution = _inputs(mixture, sigmas, start, resolution)
    needed = _needed(data, sigmas)
    low, high = initial.reach()
    edges = torch.linspace(min(low, needed[0][0]), max(high, needed[0][1]), 17, dtype=torch.float64)
    law = _resolve(
        lambda x, left, right: (initial.log_density(x),),
        edges,
        _accept_log_density(data, sigmas[0], sigmas[-2], needed[0], resolution),
    )
    law = _Piecewise(*law)
    for index in range(len(sigmas) - 2):
        law = _stochastic_step(
            data, law, *sigmas[index : index + 2], sigmas[-2], needed[index + 1], resolution
        )
    return StochasticLaw(data, law, sigmas[-2], needed[-1], resolution)


def _map(data, x, sigma, sigma_next):
    ratio = (sigma_next / sigma) ** 2
    return ratio * x + (1 - ratio) * data.denoise(x, sigma)[0]


def _needed(data, sigmas):
    """At each sigma, the interval from which the data is reached: a KL asks for the law there, however small.

    Backwards from the ends of the data: the state from which the least unlikely noise leads to the end, its own log
    density weighed by a half since the law may be wider than the marginal, and all within 40 nats.
    """
    further = 2 ** (torch.arange(161, dtype=torch.float64) / 4) - 1
    target = data.reach(0.0)
    needed = []
    for sigma, sigma_next in zip(sigmas[-2::-1], sigmas[:0:-1], strict=True):
        low, high = data.reach(sigma)
        if sigma_next == 0 and not data.continuous():
            low, high = target  # points fill their bins from where they lie
        else:
            x = torch.stack([low - (high - low) * further, high + (high - low) * further])
            reached = _map(data, x, sigma, sigma_next)
            missing = torch.stack([reached[0] - target[0], target[1] - reached[1]]).clamp_min(0)
            if sigma_next == 0:
                hit = (missing == 0).to(torch.uint8).argmax(1)
            else:
                tau = sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
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
        tolerance = _TOLERANCE / resolution + 4e-15 * torch.maximum(left.abs(), right.abs()) / tau
        top[0] = max(top[0], float(log_density.max()))
        x = _at_nodes(left, right)
        weight = _importance(data, sigma, sigma_last, x, log_density, top[0], *needed).max(1).values
        depth = top[0] - log_density.max(1).values
        allowed = torch.minimum(tolerance * (1 / weight.clamp_min(1e-300) + depth), 1e-3 + 0.05 * depth)
        return _tail(log_density) <= allowed

    return accept


def _stochastic_step(data, law, sigma, sigma_next, sigma_last, needed, resolution):
    """The law of m(x) + tau z for x of the given law, m the monotone mean of stochastic DDIM's step."""
    tau = sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
    top, ends_of_law = float(law.values.max()), law.edges[[0, -1]].tolist()

    # Panels on which the map is a polynomial too, then pieces on which the integrand is one, up to its exponential
    def accept(left, right, mapped, ends):
        x = _at_nodes(left, right)
        weight = _importance(data, sigma, sigma_last, x, law(x), top, *ends_of_law).max(1).values
        size = mapped.abs().max(1).values
        return _miss(mapped, *ends.T) * weight <= 1e-10 * tau / resolution + 1e-14 * size

    def source(x, left, right):
        return _map(data, x, sigma, sigma_next), _map(data, torch.stack([left, right], 1), sigma, sigma_next)

    left, right, mapped, _ = _resolve(source, law.edges, accept, depth=45)
    x = _at_nodes(left, right)
    log_density = law(x)
    weight = _importance(data, sigma, sigma_last, x, log_density, top, *ends_of_law).max(1).values
    # A slope of the log density only moves the maximum of the integrand; its bend makes the maximum narrow.
    bend = (log_density @ _TO_COEFFICIENTS.T)[:, 2:].abs().sum(1)
    pieces = torch.maximum(_steepest(mapped) / (2.75 * tau), bend.sqrt())
    pieces = torch.where(weight < 1e-25, 1.0, (pieces * resolution).ceil().clamp(1, 1e6)).long()
    panel = torch.arange(len(left)).repeat_interleave(pieces)
    position = torch.arange(len(panel)) - (pieces.cumsum(0) - pieces)[panel]
    pieces = pieces[panel].double()
    t = ((2 * position + 1)[:, None] + _NODE) / pieces[:, None] - 1
    centres = _clenshaw((mapped @ _TO_COEFFICIENTS.T)[panel, None], t)
    masses = _clenshaw((log_density @ _TO_COEFFICIENTS.T)[panel, None], t)
    masses += ((right - left)[panel] / (2 * pieces)).log()[:, None] + _LOG_WEIGHT
    source = _Source(centres, masses, tau)

    bulk = (log_density.max(1).values > top - _BULK**2 / 2).nonzero()
    ends = _map(data, torch.stack([left[bulk[0, 0]], right[bulk[-1, 0]]]), sigma, sigma_next)
    low = min(needed[0], float(ends[0]) - _BULK * tau)
    high = max(needed[1], float(ends[1]) + _BULK * tau)
    edges = _seed(_map(data, law.edges, sigma, sigma_next)[::2], low, high, tau, resolution)
    left, right, values = _resolve(
        lambda y, left, right: (source.log_density(y.reshape(-1)).reshape(y.shape),),
        edges,
        _accept_log_density(data, sigma_next, sigma_last, needed, resolution, tau),
        depth=30,
    )
    kept = (values.max(1).values > values.max() - _BULK**2 / 2) | ((right > needed[0]) & (left < needed[1]))
    kept = kept.nonzero()
    kept = slice(int(kept[0]), int(kept[-1]) + 1)
    return _Piecewise(left[kept], right[kept], values[kept])


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
        self.at_low, self.at_high = log_mass[:, 0] - _LOG_WEIGHT[0], log_mass[:, -1] - _LOG_WEIGHT[-1]

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
        for pick in _batches(stops - starts, _NODES):
            block = starts[pick, None] + torch.arange(int((stops - starts)[pick[-1]]))
            outside = block >= stops[pick, None]
            block = block.clamp_max(len(self.low) - 1)
            exponent = (y[pick, None, None] - self.centres[block]).mul_(1 / self.tau).square_().mul_(-0.5)
            exponent += self.log_mass[block]
            exponent.masked_fill_(outside[:, :, None], -math.inf)
            result[pick] = exponent.flatten(1).logsumexp(1)
        result -= math.log(self.tau) + _LOG_SQRT_2PI
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


class StochasticLaw(_Law):
    """Law of y = D(x; sigma_min), with the law of x known as a piecewise log density. D is monotone."""

    def __init__(self, data, law, sigma, needed, resolution):
        self._data, self._law, self._sigma, self._needed = data, law, sigma, needed
        self._tolerance = _TOLERANCE / resolution

        # Panels on which exp(log density) and the denoiser are polynomials
        def accept(left, right, log_density, denoised, ends):
            bend = (log_density @ _TO_COEFFICIENTS.T)[:, 2:].abs().sum(1)
            spread = log_density.max(1).values - log_density.min(1).values
            mass = log_density.max(1).values.exp() * (right - left)
            smooth = _miss(denoised, *ends.T) * mass <= 1e-12 * span
            return smooth & (((bend <= 1 / resolution) & (spread <= 12)) | (mass < 1e-300))

        span = float(data.means.max() - data.means.min()) + float(data.variances.max().sqrt())

        def values(x, left, right):
            ends = torch.stack([left, right], 1)
            return law(x), data.denoise(x, sigma)[0], data.denoise(ends, sigma)[0]

        left, right, *_ = _resolve(values, law.edges, accept)
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
        x = _at_nodes(left, right)
        weight = self._law(x).exp() * _WEIGHT * ((right - left) / 2)[:, None]
        y = self._data.denoise(x, self._sigma)[0]
        mean = (weight * y).sum() / weight.sum()
        return float(weight.sum()), float(mean), float((weight * (y - mean).square()).sum() / weight.sum())

    def _kl(self, data):
        def log_terms(x):
            y, slope = self._data.denoise(x, self._sigma)
            log_data, log_slope = data.log_density(y, 0.0), slope.log()
            return log_data + log_slope, log_data - self._law(x) + log_slope

        return _kl_through_map(log_terms, self._edges, self._tolerance)


def _kl_through_map(log_terms, edges, tolerance):
    """KL by a change of variables; `log_terms` gives log(data density in the new variable) and the log ratio there."""

    def values(x, left, right):
        x = torch.cat([x, torch.stack([left, right], 1)], 1)
        log_weight, log_ratio = log_terms(x.reshape(-1))
        weight = log_weight.exp()
        return weight.reshape(x.shape), torch.where(weight > 0, weight * log_ratio, 0.0).reshape(x.shape)

    def accept(left, right, weight, value):
        missed = [_miss(v[:, :_NODES], v[:, -2], v[:, -1]) * (right - left) for v in (weight, value)]
        ratio = 1 + (value / weight.clamp_min(1e-300)).abs().max(1).values
        return (missed[0] <= tolerance) & (missed[1] <= tolerance * ratio)

    left, right, weight, value = _resolve(values, edges, accept)
    half = (right - left) / 2
    if float(half @ (weight[:, :_NODES] @ _WEIGHT)) < 1 - 1e-9:
        return math.inf
    return float(half @ (value[:, :_NODES] @ _WEIGHT))


# ------------------------------------------------------------------------------------------ deterministic solvers


def deterministic_law(mixture, sigmas, solver="ddim", start="normal", resolution=1.0):
    """Exact law of a deterministic solver on a one-dimensional mixture: "ddim", "heun" or "dpmpp_2m".

    Arguments, errors and `start` as `stochastic_law`; an unknown solver raises ValueError too. The composite
    map F of the initial value need not be monotone: all its branches are summed. Returns a DeterministicLaw.
    """
    data, sigmas, initial, resolution = _inputs(mixture, sigmas, start, resolution)
    if solver not in _STATES:
        raise ValueError(f"solver = {solver!r}; pass one of {sorted(_STATES)}")
    return DeterministicLaw(data, sigmas, initial, _STATES[solver], resolution)


# Each takes x through `sigmas`, all above 0, and yields at each of them the state, its slope, and what rounding may
# have done to it: the rounding before, carried by the step's own slope, and that of the step's operands.


def _ddim_states(data, x, sigmas):
    slope, noise = torch.ones_like(x), _EPS * x.abs()
    yield x, slope, noise
    for sigma, sigma_next in pairwise(sigmas):
        denoised, gain = data.denoise(x, sigma)
        ratio = sigma_next / sigma
        factor = ratio + (1 - ratio) * gain
        noise = factor * noise + _EPS * (ratio * x.abs() + denoised.abs())
        x, slope = ratio * x + (1 - ratio) * denoised, slope * factor
        yield x, slope, noise


def _heun_states(data, x, sigmas):
    slope, noise = torch.ones_like(x), _EPS * x.abs()
    yield x, slope, noise
    for sigma, sigma_next in pairwise(sigmas):
        denoised, gain = data.denoise(x, sigma)
        ratio = sigma_next / sigma
        euler, euler_slope = ratio * x + (1 - ratio) * denoised, ratio + (1 - ratio) * gain
        denoised_next, gain_next = data.denoise(euler, sigma_next)
        half = (sigma_next - sigma) / 2
        factor = 1 + half * ((1 - gain) / sigma + (1 - gain_next) * euler_slope / sigma_next)
        operands = (x.abs() + denoised.abs()) / sigma + (euler.abs() + denoised_next.abs()) / sigma_next
        euler_noise = _EPS * (euler.abs() + denoised.abs())
        noise = factor.abs() * noise - half * (_EPS * operands + (1 + gain_next) * euler_noise / sigma_next)
        x = x + half * ((x - denoised) / sigma + (euler - denoised_next) / sigma_next)
        slope = slope * factor
        yield x, slope, noise


def _dpmpp_2m_states(data, x, sigmas):
    slope, noise = torch.ones_like(x), _EPS * x.abs()
    yield x, slope, noise
    before = None
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised, gain = data.denoise(x, sigma)
        own = denoised, gain * slope, gain * noise + _EPS * denoised.abs()
        direction, turn, rough = own
        if index > 0:
            weight = math.log(sigma / sigma_next) / (2 * math.log(sigmas[index - 1] / sigma))
            direction = (1 + weight) * direction - weight * before[0]
            turn = (1 + weight) * turn - weight * before[1]
            rough = (1 + weight) * rough + weight * before[2]
        before = own
        ratio = sigma_next / sigma
        x, slope = ratio * x + (1 - ratio) * direction, ratio * slope + (1 - ratio) * turn
        noise = ratio * noise + (1 - ratio) * rough + _EPS * x.abs()
        yield x, slope, noise


_STATES = {"ddim": _ddim_states, "heun": _heun_states, "dpmpp_2m": _dpmpp_2m_states}


class DeterministicLaw(_Law):
    """Law of y = F(z), z of the initial law. `branches` counts the monotone pieces of F."""

    def __init__(self, data, sigmas, initial, solver, resolution):
        self._data, self._sigmas, self._initial, self._solver = data, sigmas, initial, solver
        self._tolerance = _TOLERANCE / resolution
        low, high = self._domain()
        bulk = torch.linspace(*initial.reach(), math.ceil(24 * resolution) + 1, dtype=torch.float64)
        edges = torch.cat([low[low < bulk[0]].flip(0), bulk, high[high > bulk[-1]]])
        scale = max(1e-300, float(data.reach(0.0)[1] - data.reach(0.0)[0]))

        # A monotone F hides nothing between its values. Otherwise every state must be resolved, at the scale of its
        # own sigma, lest a state crosses a border between two nodes and returns.
        watched = solver is not _ddim_states

        def values(z, left, right):
            unresolved = torch.zeros_like(left)
            z = torch.cat([z, torch.stack([left, right], 1)], 1)
            for sigma, (x, _, noise) in zip(sigmas, solver(data, z, sigmas[:-1]), strict=False):
                if watched:
                    missed = _miss(x[:, :_NODES], x[:, -2], x[:, -1])
                    unresolved += missed > 1e-3 / resolution * sigma + 10 * noise.max(1).values
            value, gain = data.denoise(x, sigmas[-2])
            spread = value.max(1).values - value.min(1).values
            missed = _miss(value[:, :_NODES], value[:, -2], value[:, -1])
            noise = (gain * noise + _EPS * value.abs()).max(1).values
            unresolved += missed > 1e-7 / resolution**8 * spread + 1e-10 * scale + 10 * noise
            return value[:, :_NODES], unresolved

        def accept(left, right, value, unresolved):
            return unresolved == 0

        self._left, self._right, self._value, _ = _resolve(values, edges, accept, depth=48)
        z = torch.cat([self._left[:1], _at_nodes(self._left, self._right).reshape(-1), self._right[-1:]])
        self._split(z.unique())
        self.branches = len(self._branches)

    def _evaluate(self, z):
        """F(z), its slope, and the slope before the last step, whose sign is F's own: that step is monotone."""
        *_, (x, before, _) = self._solver(self._data, z, self._sigmas[:-1])
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
        return _scatter_logsumexp(terms, which, len(flat)).reshape(y.shape)

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
        z = _at_nodes(self._left, self._right)
        weight = self._initial.log_density(z).exp() * _WEIGHT * ((self._right - self._left) / 2)[:, None]
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

        return _kl_through_map(log_terms, torch.cat([self._left, self._right[-1:]]), self._tolerance)

    def _kl_over_data(self, data):
        """KL over y. The density is infinite on one side of a turning value: y = smooth(t) flattens that end."""
        low, high = data.reach(0.0)
        std = data.variances.sqrt()
        edges = (data.means + std * torch.linspace(-_REACH, _REACH, 8, dtype=torch.float64)).flatten()
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

        return _integrate(
            integrand, 2 * torch.arange(len(edges), dtype=torch.float64) - 1, 10 * self._tolerance
        )


def _scatter_logsumexp(terms, which, n):
    top = torch.full((n,), -math.inf, dtype=torch.float64).scatter_reduce(0, which, terms, "amax")
    safe = torch.where(top.isfinite(), top, 0.0)
    return safe + torch.zeros(n, dtype=torch.float64).scatter_add(0, which, (terms - safe[which]).exp()).log()


# -------------------------------------------------------------------------------------------------- Gaussian data


def gaussian_law(variances, sigmas, solver="ddim", start="exact"):
    """Variances that a solver gives Gaussian data N(0, diag(variances)), in closed form.

    variances (D,) of the data along its principal directions, sigmas (N + 1,) descending to 0, solver "ddim",
    "ddim_stochastic", "heun" or "dpmpp_2m", start "exact" (variances + sigma_max^2) or "normal" (sigma_max^2).
    Returns (D,), differentiable in `sigmas` and `variances`: every step multiplies a direction by a known factor.
    ValueError: negative variances, bad sigmas, unknown solver or start.
    """
    variances = _check.as_float64("variances", variances)
    if variances.ndim != 1 or not (variances >= 0).all():
        raise ValueError(
            f"variances has shape {tuple(variances.shape)} and minimum {variances.min().item()}; pass (D,) >= 0"
        )
    sigmas = _check.schedule(sigmas)
    if start not in ("normal", "exact"):
        raise ValueError(
            f"start = {start!r}; pass 'exact' for the marginal at sigma_max or 'normal' for N(0, sigma_max^2)"
        )
    first = sigmas[0] ** 2 + (variances if start == "exact" else torch.zeros_like(variances))
    gains = variances / (variances + sigmas[:-1, None] ** 2)  # (N, D): D(x) = gain x
    if solver == "ddim_stochastic":
        for sigma, sigma_next, gain in zip(sigmas[:-1], sigmas[1:], gains, strict=True):
            ratio = (sigma_next / sigma) ** 2
            first = (ratio + (1 - ratio) * gain) ** 2 * first + sigma_next**2 * (1 - ratio)
        return first
    if solver not in _STATES:
        raise ValueError(f"solver = {solver!r}; pass one of {sorted([*_STATES, 'ddim_stochastic'])}")
    factor, before = torch.ones_like(variances), None
    last = len(gains) - 1
    for index, gain in enumerate(gains):
        sigma, sigma_next = sigmas[index], sigmas[index + 1]
        ratio = sigma_next / sigma
        euler = ratio + (1 - ratio) * gain
        if index == last or solver == "ddim":
            factor = factor * euler
        elif solver == "heun":
            slopes = (1 - gain) / sigma + (1 - gains[index + 1]) * euler / sigma_next
            factor = factor * (1 + (sigma_next - sigma) / 2 * slopes)
        else:
            denoised = direction = gain * factor
            if index > 0:
                weight = (sigma / sigma_next).log() / (2 * (sigmas[index - 1] / sigma).log())
                direction = (1 + weight) * denoised - weight * before
            before = denoised
            factor = ratio * factor + (1 - ratio) * direction
    return factor**2 * first


def gaussian_kl(variances, generated):
    """KL(N(0, diag(variances)) || N(0, diag(generated))) in nats: the data first. ValueError: variances not above 0."""
    variances, generated = _spectra(variances, generated)
    if not ((variances > 0).all() and (generated > 0).all()):
        raise ValueError("variances and generated must be above 0: the KL to a degenerate law is infinite")
    excess = variances / generated - 1
    return 0.5 * (excess - torch.log1p(excess)).sum()


def gaussian_w2(variances, generated):
    """Squared 2-Wasserstein distance of the two Gaussians, which is their Frechet distance as FID counts it."""
    variances, generated = _spectra(variances, generated)
    if not ((variances >= 0).all() and (generated >= 0).all()):
        raise ValueError("variances and generated must be at least 0")
    return (variances.sqrt() - generated.sqrt()).square().sum()


def _spectra(variances, generated):
    variances, generated = (
        _check.as_float64("variances", variances),
        _check.as_float64("generated", generated),
    )
    if variances.shape != generated.shape or variances.ndim != 1:
        raise ValueError(
            f"variances {tuple(variances.shape)} and generated {tuple(generated.shape)}: pass two spectra (D,)"
        )
    return variances, generated
