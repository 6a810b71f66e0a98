"""Adaptive Gauss-Legendre panels: functions known as polynomials on adjacent intervals, and their integrals."""

import math

import numpy as np
import torch

NODES = 12  # Gauss-Legendre nodes a panel
REACH = 9.5  # standard deviations of the data that a KL must see: the rest weighs below 1e-20
BULK = 12.5  # standard deviations of a law that are always kept: log density 78 nats below the top
TOLERANCE = 1e-11  # of a log density where it matters


def _legendre():
    node, weight = np.polynomial.legendre.leggauss(NODES)
    return node, weight, np.linalg.inv(np.polynomial.legendre.legvander(node, NODES - 1))


NODE, WEIGHT, TO_COEFFICIENTS = _legendre()
LOG_WEIGHT = np.log(WEIGHT)
_TAIL = np.ascontiguousarray(TO_COEFFICIENTS[-2:].T)
_TO_ENDS = TO_COEFFICIENTS.T @ np.stack([(-1.0) ** np.arange(NODES), np.ones(NODES)], 1)
EPS = 2.0**-52
LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def at_nodes(left, right):
    return ((left + right) / 2)[:, None] + ((right - left) / 2)[:, None] * NODE


def tail(values):
    """Size of the last two Legendre coefficients on each panel: what a polynomial of this degree leaves out."""
    return np.abs(values @ _TAIL).sum(-1)


def miss(values, at_left, at_right):
    """As `tail`, or by how much the polynomial misses the ends: a step may hide between an end and a node."""
    ends = np.abs(values @ _TO_ENDS - np.stack([at_left, at_right], 1))
    return np.maximum(tail(values), ends.max(1) / 10)


def resolve(function, edges, accept, depth=50):
    """Halve panels between `edges` until `accept(left, right, *values)`; values = function(nodes), each (P, nodes).

    Returns left, right and the values, sorted by left.
    """
    left, right = edges[:-1], edges[1:]
    done = []
    for level in range(depth):
        values = function(at_nodes(left, right), left, right)
        good = accept(left, right, *values)
        middle = (left + right) / 2
        good = good | (middle <= left) | (middle >= right)
        if level == depth - 1:
            good[:] = True
        done.append((left[good], right[good], *(v[good] for v in values)))
        if good.all():
            break
        left, right = (
            np.concatenate([left[~good], middle[~good]]),
            np.concatenate([middle[~good], right[~good]]),
        )
    columns = [np.concatenate(column) for column in zip(*done, strict=True)]
    order = columns[0].argsort()
    return [column[order] for column in columns]


def integrate(function, edges, tolerance):
    """Integral over [edges[0], edges[-1]] of `function` (flat nodes -> flat values), adaptively."""

    def values(x, left, right):
        return (function(x.reshape(-1)).reshape(x.shape),)

    scale = [None]

    def accept(left, right, value):
        if scale[0] is None:
            scale[0] = 1 + float(((right - left) / 2) @ (np.abs(value) @ WEIGHT))
        return tail(value) * (right - left) <= tolerance * scale[0]

    left, right, value = resolve(values, edges, accept)
    return float(((right - left) / 2) @ (value @ WEIGHT))


def clenshaw(coefficients, t):
    """The Legendre series with `coefficients` along the last axis, at t in [-1, 1]."""
    ahead = after = np.zeros_like(t)
    for k in range(NODES - 1, 0, -1):
        this = (2 * k + 1) / (k + 1) * t
        this *= ahead
        this += coefficients[..., k]
        this -= (k + 1) / (k + 2) * after
        ahead, after = this, ahead
    return coefficients[..., 0] + t * ahead - after / 2


def steepest(values):
    """The largest slope between nodes of each panel, times the panel's width."""
    return (np.abs(np.diff(values)) / np.diff(NODE) * 2).max(1)


class Piecewise:
    """A log density as a polynomial on each of adjacent panels."""

    def __init__(self, left, right, values):
        self.edges = np.concatenate([left, right[-1:]])
        self.coefficients = values @ TO_COEFFICIENTS.T
        self.values = values

    def __call__(self, x):
        panel = (np.searchsorted(self.edges, x, "right") - 1).clip(0, len(self.edges) - 2)
        left, right = self.edges[panel], self.edges[panel + 1]
        return clenshaw(self.coefficients[panel], (2 * x - left - right) / (right - left))

    def log_masses(self, left, right, group, groups):
        """log of the integral of exp over the pieces [left, right], each within one panel, summed by group."""
        values = self(at_nodes(left, right))
        rough = values.max(1) + np.log(right - left)
        best = np.full(groups, -math.inf)
        np.maximum.at(best, group, rough)
        kept = rough > best[group] - 80
        left, right, group, values = left[kept], right[kept], group[kept], values[kept]
        bend = np.sqrt(bends(values))
        spread = np.ptp(values, 1) / 12
        pieces = np.ceil(np.maximum(bend, spread)).clip(1, 1e5).astype(int)
        which, position = spelled_out(pieces)
        step = ((right - left) / pieces)[which]
        low = left[which] + position * step
        masses = logsumexp(self(at_nodes(low, low + step)) + LOG_WEIGHT) + np.log(step / 2)
        return scatter_logsumexp(masses, group[which], groups)


def bends(log_density):
    """How far the log density on each panel is from a straight line: sum of its higher Legendre coefficients."""
    return np.abs((log_density @ TO_COEFFICIENTS.T)[:, 2:]).sum(1)


def spelled_out(counts):
    """Of `counts[i]` items of each i: the i of every item, and its place among those of its i."""
    which = np.arange(len(counts)).repeat(counts)
    return which, np.arange(len(which)) - (counts.cumsum() - counts)[which]


def logsumexp(terms):
    """log of the sum of exp along the last axis; torch's exponential of many numbers is several times NumPy's."""
    return torch.from_numpy(terms).logsumexp(-1).numpy()


def scatter_logsumexp(terms, which, n):
    top = np.full(n, -math.inf)
    np.maximum.at(top, which, terms)
    safe = np.where(np.isfinite(top), top, 0.0)
    return safe + np.log(np.bincount(which, np.exp(terms - safe[which]), n))


def kl_through_map(log_terms, edges, tolerance):
    """KL by a change of variables; `log_terms` gives log(data density in the new variable) and the log ratio there."""

    def values(x, left, right):
        x = np.concatenate([x, np.stack([left, right], 1)], 1)
        log_weight, log_ratio = log_terms(x.reshape(-1))
        weight = np.exp(log_weight)
        return weight.reshape(x.shape), np.where(weight > 0, weight * log_ratio, 0.0).reshape(x.shape)

    def accept(left, right, weight, value):
        missed = [miss(v[:, :NODES], v[:, -2], v[:, -1]) * (right - left) for v in (weight, value)]
        ratio = 1 + np.abs(value / weight.clip(1e-300)).max(1)
        return (missed[0] <= tolerance) & (missed[1] <= tolerance * ratio)

    left, right, weight, value = resolve(values, edges, accept)
    half = (right - left) / 2
    if float(half @ (weight[:, :NODES] @ WEIGHT)) < 1 - 1e-9:
        return math.inf
    return float(half @ (value[:, :NODES] @ WEIGHT))
