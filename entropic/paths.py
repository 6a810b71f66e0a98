"""Grids measured on a denoiser's own paths: a search by Gauss-Newton, for any deterministic solver.

Pilot noises x_p at sigma_max are walked to convergence once; the ends of these walks are the targets. The solver with
its n levels ends elsewhere, by r_p. The search moves the levels so that the mean distance E|r_p| falls:

    1. the starts: EDM's levels and several of the recursion for the error curve; the best goes on
    2. J_p = d r_p / d log sigma, by differences along `hats` smooth moves of the levels; each of these walks begins
       at the last state that its move leaves as it was
    3. the step of the log gaps that minimises the mean of |r_p + J_p dz| + a ridge, which cross-validation over the
       pilots chooses: a move that helps some pilots and not the others is not made
    4. the step is kept if the measured mean distance falls, and the root mean square is not above that of EDM's levels,
       where a few pilots that end far off weigh more; either way the walk corrects J (Broyden's update)

until nothing is gained, or the calls are spent. So on the pilots the grid is never worse than EDM's in either. Nothing
is assumed of the data, and no formula of a solver is used but its step.

Optimised steps of a given number are not new: OSS and GITS choose levels by a dynamic programme along the paths of a
teacher, LD3 and S4S learn them by gradients through the network. We found no Gauss-Newton on the ends of pilot paths.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from entropic import _check
from entropic.adapters import rows_of
from entropic.estimate import told_by
from entropic.files import keep_arrays, load_arrays
from entropic.identity import content_sha256
from entropic.progress import progress_bar
from entropic.schedules import edm_sigmas, ending_in_zero
from entropic.solvers import DPMPP_2M, Solver
from entropic.types import Denoiser

__all__ = ["RANGE", "SEARCH", "Measured", "Search", "converged", "measure", "range_of"]

RANGE = 0.002, 80.0  # of a denoiser that does not tell its own


@dataclasses.dataclass(frozen=True)
class Search:
    """The constants of `measure`.

    Tried on one network of galaxies (HSC, 32 pixels; grids of 8 to 16 levels, Heun 9): trust from 0.25 to 1, 8 to 32
    folds and 8 hats moved errors by a tenth at most, a difference of 0.3 by 14 %; reference and gain were not varied.

    reference: levels of the walk to convergence, by DPM-Solver++(2M) over EDM's levels; four for each of the n levels
    where that is more. hats: moves of the levels along which J is measured. difference: length of these moves, in
    units of the smallest gap that they change. trust: the largest first step of a log gap. gain: the search ends where
    cross-validation, or the last round, promises less than this share. folds: of the cross-validation.
    """

    reference: int = 64
    hats: int = 16
    difference: float = 0.1
    trust: float = 0.5
    gain: float = 0.002
    folds: int = 16


SEARCH = Search()


class Measured(NamedTuple):
    """What `measure` found.

    sigmas (n + 1,) descend to 0. errors: by the name of a start, and "measured" for the grid returned, the distance of
    each pilot's end from its target, (P,) float64. calls: of the denoiser, one for each row, with those of the targets.
    """

    sigmas: torch.Tensor
    errors: dict[str, torch.Tensor]
    calls: int


def measure(
    denoiser: Denoiser,
    solver: Solver,
    x: torch.Tensor,
    starts: Callable[[torch.Tensor], tuple[dict[str, torch.Tensor], int]],
    sigma_min: float,
    sigma_max: float,
    calls: int,
    *,
    n: int,
    labels: Any = None,
    fixed_start: bool = False,
    fixed_end: bool = False,
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    batch: int | None = None,
    store: str | os.PathLike[str] | None = None,
    tag: str = "",
    search: Search = SEARCH,
) -> Measured:
    """The grid of n levels from sigma_max whose ends come nearest to the converged ones.

    x (P, ...): the pilots, states at sigma_max, float32 or float64. starts(ends) -> (grids (n + 1,) by name, the calls
    that they took), from the converged ends (P, ...); the root mean square of the first one is never exceeded. The
    first level moves below sigma_max, or stays where `fixed_start`, the last above sigma_min, or stays where
    `fixed_end`. calls: of the denoiser, counted by rows, those of targets and starts among them; the search takes no
    more, but targets and starts are walked in any case.
    transform: a map of ends (P, ...) to (P, ...), where the distance is taken, such as features of images; none unless
    given. batch: rows that the denoiser sees at once. store: a folder that keeps the end of each walk, so that a
    stopped search goes on to the same grid; it may serve several searches, since it knows x, labels and the denoiser by
    content, or by a `tag` of it.
    ValueError: a denoiser or transform that returns NaN or another number of rows; a denoiser that cannot be told by
    content, with a store and no tag.
    """
    walks = _Walks(denoiser, x, sigma_max, labels, batch, store, tag)
    levels = edm_sigmas(max(search.reference, 4 * n), sigma_min, sigma_max)
    with progress_bar(f"pilot paths for {n} levels", "call", calls) as bar:
        walks.told = bar.update
        target = walks.walk(DPMPP_2M, levels[:-1].log().numpy()).end
        grids, spent = starts(target.clone())
        walks.count(spent)
        climb = _Climb(walks, solver, n, target, transform, calls, search)
        climb.begin({name: grid[:-1].log().numpy() for name, grid in grids.items()})
        climb.ascend(None if fixed_end else math.log(sigma_min), None if fixed_start else math.log(sigma_max))
    best = climb.best
    sigmas = grids[best.name][:-1] if best.name in grids else torch.from_numpy(np.exp(best.logs))
    sigmas = sigmas.clamp(sigma_min, sigma_max)  # a logarithm and its exponential miss an end by rounding
    if fixed_start or math.isclose(sigmas[0].item(), sigma_max, rel_tol=1e-12):
        sigmas[0] = sigma_max
    if fixed_end or math.isclose(sigmas[-1].item(), sigma_min, rel_tol=1e-12):
        sigmas[-1] = sigma_min
    sigmas = ending_in_zero(sigmas)
    return Measured(sigmas, climb.errors | {"measured": best.misses.norm(dim=1)}, walks.calls)


def converged(denoiser, x, sigmas, *, labels=None, batch=None, store=None, tag=""):
    """(where pilots x (P, ...) converge, the calls that it took), by DPM-Solver++(2M) over fine `sigmas`."""
    walks = _Walks(denoiser, x, float(sigmas[0]), labels, batch, store, tag)
    return walks.walk(DPMPP_2M, sigmas[:-1].log().numpy()).end, walks.calls


def range_of(denoiser, sigma_min=None, sigma_max=None):
    """(sigma_min, sigma_max): as given, or the denoiser's own, or those of RANGE where its own are 0 or infinite."""
    ends = []
    for name, given, default in zip(("sigma_min", "sigma_max"), (sigma_min, sigma_max), RANGE, strict=True):
        own = getattr(denoiser, name, None)
        own = float(own) if own is not None and 0 < float(own) < math.inf else default
        ends.append(own if given is None else given)
    return _check.sigma_range(*ends)


class _Walk(NamedTuple):
    """end: (P, ...). states: (x, past, denoised) where each step began; None where the end was read from a store."""

    end: torch.Tensor
    states: list[Any] | None


class _Walks:
    """Walks of all pilots at once, counted and kept.

    `calls` counts those of a walk that was read from the store, too, so that a search that goes on is the same search.
    """

    def __init__(self, denoiser, x, sigma_max, labels, batch, store, tag):
        self.denoiser, self.x, self.sigma_max, self.labels = denoiser, x.detach(), sigma_max, labels
        self.batch = len(x) if batch is None else _check.integer("batch", batch, 1)
        self.calls, self.told = 0, lambda count: None
        self.store = None if store is None else Path(store)
        if self.store is not None:
            told = told_by(denoiser, tag, store)
            self.key = [told, content_sha256(x.detach(), "x"), content_sha256(labels, "labels"), sigma_max]

    def count(self, calls):
        self.calls += calls
        self.told(calls)

    def walk(self, solver, logs, begin=None, at=0):
        """The `_Walk` of a solver over exp(logs), then 0: from the state `begin` at the level `at`, or from the pilots.

        `begin` holds what the denoiser answered there, so that it is not asked again.
        """
        self.count(len(self.x) * (solver.calls(len(logs) - at) - (begin is not None)))
        kept = self._kept(solver, logs)
        if kept is not None and kept.exists():
            try:
                return _Walk(
                    torch.from_numpy(load_arrays(kept)["end"]).to(self.x).reshape(self.x.shape), None
                )
            except (KeyError, OSError, RuntimeError, ValueError) as error:
                warnings.warn(f"{kept} is damaged and is computed anew ({error})", stacklevel=5)
        found = self._walk(solver, logs, begin, at)
        if kept is not None:
            keep_arrays(kept, end=found.end.cpu().numpy())
        return found

    def states(self, solver, logs):
        """The states of a walk that was read from the store; they are not counted again."""
        return self._walk(solver, logs, None, 0).states

    def _walk(self, solver, logs, begin, at):
        sigmas = [*np.exp(logs).tolist(), 0.0]
        x, past, answer = begin if begin is not None else (self.x * (sigmas[0] / self.sigma_max), (), None)
        states = []
        for sigma, following in itertools.pairwise(sigmas[at:]):
            known, answer = [answer], None

            def denoise(x, sigma, known=known):
                first = known.pop() if known else None
                return self._denoise(x, sigma) if first is None else first

            move = solver.step(denoise, x, sigma, following, past)
            states.append((x, past, move.denoised))
            x, past = move.mean, move.past
        return _Walk(x, states)

    @torch.no_grad()
    def _denoise(self, x, sigma):
        found = []
        for rows in torch.arange(len(x), device="cpu").split(self.batch):
            given = () if self.labels is None else (rows_of(self.labels, rows),)
            part = x[rows.to(x.device)]
            answer = self.denoiser(part.clone(), sigma, *given)
            found.append(_check.denoised(answer, part, sigma, "a pilot's path, "))
        return torch.cat(found)

    def _kept(self, solver, logs):
        if self.store is None:
            return None
        asked = json.dumps([*self.key, content_sha256(solver, "solver"), [float(log).hex() for log in logs]])
        return self.store / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.npz"


class _Place(NamedTuple):
    """A grid that was walked: its log levels (n,), states, misses r (P, d) float64, their mean length and its name."""

    logs: np.ndarray
    states: list[Any] | None
    misses: torch.Tensor
    error: float
    name: str

    @property
    def rms(self):
        """The root of the mean squared length."""
        return self.misses.square().sum(1).mean().sqrt().item()


class _Climb:
    """The search itself: `begin`, then `ascend`; `best` is the place that it stands at."""

    def __init__(self, walks, solver, n, target, transform, calls, search):
        self.walks, self.solver, self.n, self.calls, self.search = walks, solver, n, calls, search
        self.transform = transform or (lambda ends: ends)
        self.errors, self.best = {}, None
        self.target = self._mapped(target)

    def begin(self, starts):
        """Walk the starts and stand at the best."""
        for name, logs in starts.items():
            place = self._place(self.walks.walk(self.solver, logs), logs, name)
            self.errors[name] = place.misses.norm(dim=1)
            if self.best is None:
                self.best, self.limit = place, place.rms
            elif self._better(place):
                self.best = place

    def ascend(self, low, high):
        """Rounds of one J and the steps that it allows.

        low, high: logs of the least last and the largest first level; None where that level stays.
        """
        self.low, self.high = low, high
        free = np.arange(high is None, self.n - (low is None))
        if not len(free):
            return
        self.moves = np.zeros((self.n, min(len(free), self.search.hats)))
        self.moves[free] = _hats(len(free), self.search.hats)
        walk = len(self.walks.x) * self.solver.calls(self.n)
        # No grid is better than one that is exact to rounding.
        self.rounding = 8 * torch.finfo(self.walks.x.dtype).eps * self.target.norm(dim=1).mean().item()
        while self.walks.calls + self._cost() + walk <= self.calls and self.best.error > self.rounding:
            before = self.best.error
            self._round(walk)
            if self.best.error > before * (1 - 2 * self.search.gain):
                break

    def _round(self, walk):
        changes, moves = self._jacobian()
        trust, failed = self.search.trust, 0
        while failed < 2 and self.walks.calls + walk <= self.calls and self.best.error > self.rounding:
            logs, promised, length = self._step(changes, moves, trust)
            if promised > 1 - self.search.gain or (logs == self.best.logs).all():
                break
            here, there = self.best, self._place(self.walks.walk(self.solver, logs), logs, "measured")
            # Broyden's update: the J nearest to the old one that has this step right.
            step = logs - here.logs
            surprise = there.misses - here.misses - changes @ torch.from_numpy(moves @ step)
            changes = torch.cat([changes, surprise[..., None]], -1)
            moves = np.vstack([moves, step / (step @ step)])
            if self._better(there):
                if 1 - there.error / here.error > (1 - promised) / 2:
                    trust = min(2 * trust, 1.0)
                self.best, failed = there, 0
            else:
                trust, failed = length / 4, failed + 1

    def _better(self, place):
        return place.error < self.best.error and place.rms <= self.limit

    def _place(self, walk, logs, name):
        misses = self._mapped(walk.end) - self.target
        return _Place(logs, walk.states, misses, misses.norm(dim=1).mean().item(), name)

    @torch.no_grad()
    def _mapped(self, ends):
        found = self.transform(ends.clone())
        whole = isinstance(found, torch.Tensor) and found.shape[:1] == ends.shape[:1] and found.numel()
        if not whole or found.is_complex():
            told = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, torch.Tensor) else repr(found)
            raise ValueError(
                f"transform returned {told} for {len(ends)} ends; it must return real numbers, a tensor (P, ...)"
            )
        found = found.reshape(len(ends), -1).double().cpu()
        return _check.check_finite("what transform returned", found)

    def _cost(self):
        """Calls of the next J."""
        touched = [np.flatnonzero(move)[0] for move in self.moves.T]
        each = [self.solver.calls(self.n - max(0, at - 1)) - (at > 0) for at in touched]
        return len(self.walks.x) * sum(each)

    def _jacobian(self):
        """(changes (P, d, m), moves (m, n)) such that J = changes @ moves."""
        here = self.best
        if here.states is None:
            self.best = here = here._replace(states=self.walks.states(self.solver, here.logs))
        gaps = -np.diff(here.logs)
        nearest = np.minimum(np.append(gaps[0], gaps), np.append(gaps, gaps[-1]))
        changes = []
        for move in self.moves.T:
            touched = np.flatnonzero(move)
            length = -self.search.difference * nearest[touched].min()
            if self.low is not None and here.logs[-1] + length * move[-1] < self.low:
                length = -length
            logs, at = here.logs + length * move, max(0, int(touched[0]) - 1)
            walk = self.walks.walk(self.solver, logs, here.states[at] if touched[0] else None, at)
            changes.append((self._mapped(walk.end) - self.target - here.misses) / length)
        return torch.stack(changes, -1), np.linalg.pinv(self.moves)

    def _step(self, changes, moves, trust):
        """(log levels, promised share of the error, largest change) of the best step that J knows.

        Unknown are the logarithms of the gaps and, where it is free, that of the first level.
        """
        here = self.best
        gaps = -np.diff(here.logs)
        to_logs = np.zeros((self.n, self.n))
        to_logs[:, 1:] = -np.tri(self.n, self.n - 1, -1) * gaps  # d log sigma / d log gap
        if self.high is not None:
            to_logs[:, 0] = 1.0
        if self.low is None:  # the last level stays: what moves it, all gaps together take back
            to_logs -= np.outer(np.append(0.0, np.cumsum(gaps)) / gaps.sum(), to_logs[-1])
        inner = moves @ to_logs
        gram = torch.einsum("pdi,pdj->pij", changes, changes).numpy()
        squares = np.einsum("ia,pij,jb->pab", inner, gram, inner)
        slopes = torch.einsum("pdi,pd->pi", changes, here.misses).numpy() @ inner
        fit = _Fit(squares, slopes, here.misses.square().sum(1).numpy(), trust)
        change, promised = fit.cross_validated(self.search.folds)
        first, last = here.logs[0], here.logs[-1]
        if self.high is not None:  # at most half way down to where the levels end
            bottom = last if self.low is None else self.low
            first = min(max(first + change[0], (first + bottom) / 2), self.high)
        new = gaps * np.exp(change[1:])
        if self.low is not None:
            last = max(first - new.sum(), self.low)
        logs = first - np.append(0.0, np.cumsum(new * ((first - last) / new.sum())))
        return logs, promised, np.abs(change).max()


class _Fit:
    """The change z (k,) of least mean |r_p + J_p z|, from J'J (P, k, k), J'r (P, k) and |r|^2 (P,).

    The mean of lengths, not of squares, so that a few pilots far off do not decide alone. It is found by weighted least
    squares, the weights 1 / |r_p + J_p z| of the round before. No entry of z is larger than `trust`.
    """

    _ROUNDS = 6
    _RIDGES = 10.0 ** np.arange(-6.0, 1.5, 0.5)  # in units of the mean diagonal entry of J'J

    def __init__(self, squares, slopes, lengths2, trust):
        self.squares, self.slopes, self.lengths2, self.trust = squares, slopes, lengths2, trust
        self.floor = 1e-3 * np.sqrt(lengths2).mean()

    def cross_validated(self, folds):
        """(z, the share of the mean length that is left on pilots that z was not fitted to), with the best ridge."""
        count = len(self.slopes)
        fold = np.arange(count) % min(folds, count)
        weights = 1 / np.maximum(np.sqrt(self.lengths2), self.floor)
        unit = np.einsum("p,pii->", weights / weights.sum(), self.squares) / self.slopes.shape[1]
        ridges = max(unit, 1e-300) * self._RIDGES  # where no level moves any end, none is moved
        others = (
            fold != np.arange(fold.max() + 1)[:, None]
        )  # (folds, P): the pilots that each fold is fitted to
        left = []
        for ridge in ridges:
            lengths = self._lengths(self._solved(others, ridge))
            left.append(lengths[~others].sum())
        best = int(np.argmin(left))
        z = self._solved(np.ones((1, count), bool), ridges[best])[0]
        return z, left[best] / self._lengths(np.zeros((1, len(z)))).sum()

    def _lengths(self, z):
        """|r_p + J_p z| (F, P) of F changes z (F, k)."""
        squared = self.lengths2 + 2 * z @ self.slopes.T
        squared = squared + (np.tensordot(z, self.squares, (1, 1)) * z[:, None]).sum(2)
        return np.sqrt(np.maximum(squared, self.floor**2))

    def _solved(self, chosen, ridge):
        """The best change for each choice of pilots (F, P), (F, k)."""
        z = np.zeros((len(chosen), self.slopes.shape[1]))
        for _ in range(self._ROUNDS):
            weights = chosen / self._lengths(z)
            weights /= weights.sum(1, keepdims=True)
            matrix = np.tensordot(weights, self.squares, 1) + ridge * np.eye(z.shape[1])
            z = -np.linalg.solve(matrix, (weights @ self.slopes)[..., None])[..., 0]
            z *= np.minimum(1.0, self.trust / np.maximum(np.abs(z).max(1, keepdims=True), 1e-100))
        return z


def _hats(count, most):
    """Moves (count, m) of levels: piecewise linear hats over the index, one for each level where there are few."""
    if count <= most:
        return np.eye(count)
    knots = np.linspace(0, count - 1, most)
    return np.stack([np.interp(np.arange(count), knots, each) for each in np.eye(most)], 1)
