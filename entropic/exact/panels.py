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
    to_coefficients = np.linalg.inv(np.polynomial.legendre.legvander(node, NODES - 1))
    return torch.as_tensor(node), torch.as_tensor(weight), torch.as_tensor(to_coefficients)


NODE, WEIGHT, TO_COEFFICIENTS = _legendre()
LOG_WEIGHT = WEIGHT.log()
_TAIL = TO_COEFFICIENTS[-2:].T.contiguous()
_TO_ENDS = torch.stack([(-1.0) ** torch.arange(NODES), torch.ones(NODES)], 1).double()
_TO_ENDS = TO_COEFFICIENTS.T @ _TO_ENDS
EPS = 2.0**-52
LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def at_nodes(left, right):
    return ((left + right) / 2)[:, None] + ((right - left) / 2)[:, None] * NODE


def tail(values):
    """Size of the last two Legendre coefficients on each panel: what a polynomial of this degree leaves out."""
    return (values @ _TAIL).abs().sum(-1)


def miss(values, at_left, at_right):
    """As `tail`, or by how much the polynomial misses the ends: a step may hide between an end and a node."""
    ends = (values @ _TO_ENDS - torch.stack([at_left, at_right], 1)).abs()
    return torch.maximum(tail(values), ends.max(1).values / 10)


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
            good = torch.ones_like(good)
        done.append((left[good], right[good], *(v[good] for v in values)))
        if good.all():
            break
        left, right = torch.cat([left[~good], middle[~good]]), torch.cat([middle[~good], right[~good]])
    columns = [torch.cat(column) for column in zip(*done, strict=True)]
    order = columns[0].argsort()
    return [column[order] for column in columns]


def integrate(function, edges, tolerance):
    """Integral over [edges[0], edges[-1]] of `function` (flat nodes -> flat values), adaptively."""

    def values(x, left, right):
        return (function(x.reshape(-1)).reshape(x.shape),)

    scale = [None]

    def accept(left, right, value):
        if scale[0] is None:
            scale[0] = 1 + float(((right - left) / 2 * (value.abs() @ WEIGHT)).sum())
        return tail(value) * (right - left) <= tolerance * scale[0]

    left, right, value = resolve(values, edges, accept)
    return float(((right - left) / 2 * (value @ WEIGHT)).sum())


def clenshaw(coefficients, t):
    """The Legendre series with `coefficients` along the last axis, at t in [-1, 1]."""
    ahead = after = torch.zeros_like(t)
    for k in range(NODES - 1, 0, -1):
        ahead, after = (
            coefficients[..., k] + (2 * k + 1) / (k + 1) * t * ahead - (k + 1) / (k + 2) * after,
            ahead,
        )
    return coefficients[..., 0] + t * ahead - after / 2


def steepest(values):
    """The largest slope between nodes of each panel, times the panel's width."""
    return ((values[:, 1:] - values[:, :-1]).abs() / NODE.diff() * 2).max(1).values


class Piecewise:
    """A log density as a polynomial on each of adjacent panels."""

    def __init__(self, left, right, values):
        self.edges = torch.cat([left, right[-1:]])
        self.coefficients = values @ TO_COEFFICIENTS.T
        self.values = values

    def __call__(self, x):
        panel = (torch.searchsorted(self.edges, x, right=True) - 1).clamp(0, len(self.edges) - 2)
        left, right = self.edges[panel], self.edges[panel + 1]
        return clenshaw(self.coefficients[panel], (2 * x - left - right) / (right - left))

    def log_masses(self, left, right, group, groups):
        """log of the integral of exp over the pieces [left, right], each within one panel, summed by group."""
        values = self(at_nodes(left, right))
        rough = values.max(1).values + (right - left).log()
        best = torch.full((groups,), -math.inf, dtype=torch.float64).scatter_reduce(0, group, rough, "amax")
        kept = rough > best[group] - 80
        left, right, group, values = left[kept], right[kept], group[kept], values[kept]
        bend = (values @ TO_COEFFICIENTS.T)[:, 2:].abs().sum(1).sqrt()
        spread = (values.max(1).values - values.min(1).values) / 12
        pieces = torch.maximum(bend, spread).ceil().clamp(1, 1e5).long()
        which = torch.arange(len(left)).repeat_interleave(pieces)
        position = (torch.arange(len(which)) - (pieces.cumsum(0) - pieces)[which]).double()
        step = ((right - left) / pieces)[which]
        low = left[which] + position * step
        masses = torch.logsumexp(self(at_nodes(low, low + step)) + LOG_WEIGHT, 1) + (step / 2).log()
        return scatter_logsumexp(masses, group[which], groups)


def scatter_logsumexp(terms, which, n):
    top = torch.full((n,), -math.inf, dtype=torch.float64).scatter_reduce(0, which, terms, "amax")
    safe = torch.where(top.isfinite(), top, 0.0)
    return safe + torch.zeros(n, dtype=torch.float64).scatter_add(0, which, (terms - safe[which]).exp()).log()


def kl_through_map(log_terms, edges, tolerance):
    """KL by a change of variables; `log_terms` gives log(data density in the new variable) and the log ratio there."""

    def values(x, left, right):
        x = torch.cat([x, torch.stack([left, right], 1)], 1)
        log_weight, log_ratio = log_terms(x.reshape(-1))
        weight = log_weight.exp()
        return weight.reshape(x.shape), torch.where(weight > 0, weight * log_ratio, 0.0).reshape(x.shape)

    def accept(left, right, weight, value):
        missed = [miss(v[:, :NODES], v[:, -2], v[:, -1]) * (right - left) for v in (weight, value)]
        ratio = 1 + (value / weight.clamp_min(1e-300)).abs().max(1).values
        return (missed[0] <= tolerance) & (missed[1] <= tolerance * ratio)

    left, right, weight, value = resolve(values, edges, accept)
    half = (right - left) / 2
    if float(half @ (weight[:, :NODES] @ WEIGHT)) < 1 - 1e-9:
        return math.inf
    return float(half @ (value[:, :NODES] @ WEIGHT))
