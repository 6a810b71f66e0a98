"""The grids of the page "Spend your steps" that a browser cannot work out: the solver-aware ones, and searched ones.

    python -m studies.spend                        # what is missing in book/_static/spend_grids.js
    python -m studies.spend --out other.js --all   # everything anew, about half an hour on one core

The file assigns one object to `window.SPEND_GRIDS`, so that a page opened from a disk can read it. The entry
"data/w/solver/metric/n" of `grids` holds two lists, the solver-aware levels and the searched ones: log(sigma / 80) of
each level but the first, which is 80. A power law has no w. `table` are the rows that a reader without JavaScript sees.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from entropic import (
    KL,
    W2,
    ErrorCurve,
    GaussianMixture,
    cosine_sigmas,
    deterministic_law,
    edm_sigmas,
    entropic_sigmas,
    gaussian_law,
    gaussian_optimal_sigmas,
    log_sigmas,
    plan,
    rescaled_sigmas,
)
from entropic.files import write_atomically
from entropic.gaussian import gaussian_deviation
from entropic.solvers import find_solver
from studies.positions import positions
from studies.report import BOOK

__all__ = ["MEANS", "SOLVERS", "WIDTHS", "curve_of", "divergence", "grids_of", "mixture"]
__all__ += ["name_of", "read", "schedules", "states"]

GRIDS = BOOK / "_static" / "spend_grids.js"
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
WIDTHS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
MIXED = {  # of these, those of the mixtures: with DDIM, and with Heun and 2M, whose maps fold where w is small
    "fifteen": {"ddim": (0.005, 0.02, 0.05, 0.2, 0.5), "heun": (0.02, 0.2), "2m": (0.02, 0.2)},
    "two": {"ddim": (0.02, 0.2), "heun": (0.2,), "2m": (0.2,)},
}
COUNTS = (4, 5, 6, 8, 10, 12, 16, 24, 32)
SOLVERS = {"ddim": "ddim", "heun": "heun", "2m": "dpmpp_2m", "sddim": "ddim_stochastic"}
_ZERO = torch.zeros(1, dtype=torch.float64)
DIRECTIONS = 300  # of the power law, of variance 1 / k^2
VARIANCES = torch.arange(1, DIRECTIONS + 1, dtype=torch.float64) ** -2.0
# The fifteen positions are those of the page "One dimension, exactly" at its seed 0.
_FIFTEEN = positions(15, torch.Generator().manual_seed(0)).sort().values.tolist()
MEANS = {"gaussian": [0.0], "two": [-1.0, 1.0], "fifteen": _FIFTEEN}
_PREFIX = "// Made by notebooks/studies/spend.py\nwindow.SPEND_GRIDS = "


def mixture(data, width):
    """The data of a name: Gaussians of standard deviation `width`, their means shrunk so that the variance is 1.

    "gaussian" is one Gaussian, N(0, width^2).
    """
    means = torch.tensor(MEANS[data], dtype=torch.float64) * math.sqrt(1 - width**2)
    return GaussianMixture.isotropic(means, width)


def curve_of(data, width=None, knots=129):
    """The exact `ErrorCurve` of the data between 0.002 and 80."""
    sigma = log_sigmas(knots, SIGMA_MIN, SIGMA_MAX)[:-1].flip(0)
    if data in ("gaussian", "power"):
        variances = VARIANCES if data == "power" else torch.tensor([width**2], dtype=torch.float64)
        eps2 = (1 / (1 / variances + 1 / sigma[:, None].square())).sum(1)
        return ErrorCurve(sigma, eps2, dim=len(variances), total_variance=variances.sum())
    total = float(mixture(data, width).covariance().squeeze())
    return ErrorCurve(sigma, mixture(data, width).eps2(sigma), dim=1, total_variance=total)


def divergence(data, width, sigmas, solver="ddim", metric="kl"):
    """How far the law of a solver is from the data, from the exact law at sigmas[0].

    Of a power law: KL(generated || data), or W2 squared, of 300 directions. Else KL(data || generated).
    """
    name = SOLVERS[solver]
    if data == "power":
        return float(gaussian_deviation(VARIANCES, sigmas, name, metric))
    if data == "gaussian":
        ratio = gaussian_law(torch.tensor([width**2], dtype=torch.float64), sigmas, name) / width**2
        return float((1 / ratio - 1 + ratio.log()) / 2)
    return deterministic_law(mixture(data, width), sigmas, name, start="exact").kl(mixture(data, width))


def schedules(n, curve, rho=7.0):
    """The schedules that the page works out itself, by the name that it gives them."""
    return {
        "edm": edm_sigmas(n, SIGMA_MIN, SIGMA_MAX, rho),
        "log": log_sigmas(n, SIGMA_MIN, SIGMA_MAX),
        "cosine": cosine_sigmas(n, SIGMA_MIN, SIGMA_MAX),
        "entropic": entropic_sigmas(n, curve, SIGMA_MIN, SIGMA_MAX),
        "rescaled": rescaled_sigmas(n, curve, SIGMA_MIN, SIGMA_MAX),
    }


def grids_of(data, width, solver, metric, n, curve):
    """The solver-aware and the searched sigmas (n + 1,) of a state."""
    ends = {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX}
    name, goal = SOLVERS[solver], W2 if metric == "w2" else KL
    aware = plan(n, curve, name, goal, **ends, free_end=True).sigmas
    if data in ("gaussian", "power"):
        variances = VARIANCES if data == "power" else torch.tensor([width**2], dtype=torch.float64)
        return aware, gaussian_optimal_sigmas(variances, n, name, metric, **ends, free_end=True)
    starts = [aware, *schedules(n, curve).values()]
    search = _Search(data, width, name)
    tried = [aware, search.descend(min(starts, key=search.rough))]
    return aware, min(tried, key=search.rough)


class _Search:
    """KL(data || generated) of a mixture as a function of the levels, with its gradient, where the map is monotone.

    With F the map from the start to the end, KL = E[log p(y) - log p_0(z) + log F'(z)] over data y = F(z). The nodes
    y are fixed, 21 a component; z is found by Newton's method. At fixed z the same KL is an integral over z of
    p(F) F' log(p F' / p_0), whose derivative in the levels is automatic.
    """

    _NODES = np.linspace(-6, 6, 21)
    _FAR = np.concatenate([np.linspace(-6, 6, 1601), [s * 6 * 1.3**k for k in range(1, 60) for s in (-1, 1)]])

    def __init__(self, data, width, solver):
        self.mixture, self.solver, self.width = mixture(data, width), find_solver(solver), width
        self.means = self.mixture.means[:, 0]
        weight = np.exp(-(self._NODES**2) / 2)
        self.y = (self.means[:, None] + width * torch.as_tensor(self._NODES)).flatten()
        self.weight = torch.as_tensor(weight / weight.sum()).repeat(len(self.means)) / len(self.means)
        self.far = torch.as_tensor(np.sort(self._FAR)) * SIGMA_MAX
        self.z = None

    def log_density(self, y, sigma):
        variance = self.width**2 + sigma**2
        logits = -((y[:, None] - self.means) ** 2) / (2 * variance)
        return logits.logsumexp(1) - math.log(len(self.means)) - 0.5 * math.log(2 * math.pi * variance)

    def map(self, z, levels):
        """F(z) and F'(z) as two rows: a step is linear in the state and in the denoiser's answer."""

        def denoise(state, sigma):
            x, slope = state
            total = self.width**2 + sigma**2
            share = (-((x[:, None] - self.means) ** 2) / (2 * total)).softmax(1)
            mean = share @ self.means
            spread = share @ self.means.square() - mean.square()
            own = sigma**2 / total
            gain = self.width**2 / total + own.square() * spread.clamp_min(0) / sigma**2
            return torch.stack([x - own * (x - mean), gain * slope])

        state, past = torch.stack([z, torch.ones_like(z)]), ()
        for sigma, following in pairwise(levels):
            state, _, _, past = self.solver.step(denoise, state, sigma, following, past)
        return denoise(state, levels[-1])

    def invert(self, levels):
        """z with F(z) = y at the nodes, and whether all were found on rising parts."""
        with torch.no_grad():
            for attempt in range(2):
                if self.z is None or attempt:
                    self.z = self.bisected(levels)
                z, best = self.z, math.inf
                for _ in range(12):
                    value, slope = self.map(z, levels)
                    missed = (value - self.y).abs().max().item()
                    if not (slope > 0).all() or not missed < best * 0.9:
                        break
                    best, self.z = missed, z
                    if missed < 1e-7 * self.width:
                        return True
                    z = z - (value - self.y) / slope
            return best < 1e-3 * self.width

    def bisected(self, levels):
        value = np.maximum.accumulate(self.map(self.far, levels)[0].numpy())
        at = np.searchsorted(value, self.y.numpy()).clip(1, len(value) - 1)
        low, high = self.far[at - 1], self.far[at]
        for _ in range(16):
            middle = (low + high) / 2
            below = self.map(middle, levels)[0] < self.y
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def __call__(self, levels):
        """The KL at `levels` (n,), differentiable once in them; infinite where it isn't known."""
        if not self.invert(levels.detach()):
            self.z = None
            return None
        value, slope = self.map(self.z, levels)
        log_moved = self.log_density(value, 0.0) + slope.log()
        ratio = log_moved - self.log_density(self.z, SIGMA_MAX)
        return (self.weight * (log_moved - log_moved.detach()).exp() * ratio).sum()

    def rough(self, sigmas):
        self.z = None
        with torch.no_grad():
            found = self(sigmas[:-1])
        return math.inf if found is None else float(found)

    def descend(self, sigmas, least=1e-3):
        """The best grid on the way of L-BFGS over the gaps of log sigma, of which the last ends at SIGMA_MIN."""
        from scipy.optimize import minimize

        n = len(sigmas) - 1
        high, span = math.log(SIGMA_MAX), math.log(SIGMA_MAX / SIGMA_MIN)
        gaps = -torch.cat([sigmas[:-1].log(), _ZERO + math.log(SIGMA_MIN)]).diff() / span
        gaps = ((gaps - least / n) / (1 - least)).clamp_min(1e-4)
        best = [math.inf, sigmas[:-1]]
        self.z = None

        def loss(free):
            free = torch.tensor(free, dtype=torch.float64, requires_grad=True)
            share = least / n + (1 - least) * free.softmax(0)
            levels = (high - span * torch.cat([_ZERO, share.cumsum(0)[:-1]])).exp()
            value = self(levels)
            if value is None:
                return 1e3, np.zeros(n)
            if value.item() < best[0]:
                best[:] = value.item(), levels.detach()
            value = value.log() if value.item() > 0 else value
            value.backward()
            return value.item(), free.grad.numpy()

        minimize(loss, gaps.log().numpy(), jac=True, method="L-BFGS-B", options={"maxfun": 30, "ftol": 1e-7})
        return torch.cat([best[1], _ZERO])


def states():
    """(data, w, solver, metric, n) of every entry. At w = 1 the mixtures are the one Gaussian, and are left out."""
    for n in COUNTS:
        for solver in SOLVERS:
            for metric in ("kl", "w2"):
                yield "power", None, solver, metric, n
            for width in WIDTHS:
                yield "gaussian", width, solver, "kl", n
    for data, solvers in MIXED.items():
        for solver, some in solvers.items():
            for width in some:
                for n in COUNTS:
                    yield data, width, solver, "kl", n


def name_of(data, width, solver, metric, n):
    return "/".join([data, *([] if width is None else [f"{width:g}"]), solver, metric, str(n)])


def table(widths=(0.005, 0.02, 0.05, 0.2, 0.5), n=8):
    """KL of each schedule at 8 levels with deterministic DDIM on the 15 positions."""
    rows = []
    for width in widths:
        curve = curve_of("fifteen", width)
        found = {k: divergence("fifteen", width, v) for k, v in schedules(n, curve).items()}
        rows.append({"w": width} | {key: float(f"{value:.4g}") for key, value in found.items()})
    return rows


def read(path=GRIDS):
    """The object that the file assigns."""
    return json.loads(Path(path).read_text("utf-8").removeprefix(_PREFIX).rstrip().rstrip(";"))


def main(words=None):
    """Work out the entries that the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=GRIDS)
    parser.add_argument("--all", action="store_true", help="work out every entry anew")
    options = parser.parse_args(words)
    fresh = options.all or not options.out.is_file()
    kept = {"widths": WIDTHS, "counts": COUNTS, "means": MEANS, "directions": DIRECTIONS}
    kept |= {"table": table(), "grids": {} if fresh else read(options.out)["grids"]}
    wanted = {name_of(*state) for state in states()}
    kept["grids"] = {name: grids for name, grids in kept["grids"].items() if name in wanted}
    curves = {}
    for state in states():
        data, width, solver, metric, n = state
        name = name_of(*state)
        if name in kept["grids"]:
            continue
        curve = curves.setdefault((data, width), curve_of(data, width))
        found = grids_of(data, width, solver, metric, n, curve)
        kept["grids"][name] = [_written(sigmas) for sigmas in found]
        print(name, file=sys.stderr)
        if len(kept["grids"]) % 5 == 0:
            _write(options.out, kept)
    _write(options.out, kept)


def _write(path, kept):
    text = _PREFIX + json.dumps(kept, separators=(",", ":")) + ";\n"
    write_atomically(path, text.encode())


def _written(sigmas):
    """log(sigma / 80) to seven decimals: a level to 5e-8 of itself."""
    return [round(math.log(one / SIGMA_MAX), 7) for one in sigmas[1:-1].tolist()]


if __name__ == "__main__":
    main()
