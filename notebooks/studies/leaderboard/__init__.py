"""Every schedule on the same work: exact laws where there are any, images where there are none, and who wins where.

    python -m studies.leaderboard mixtures image-mixture network [--store FOLDER] [--share 0/2]

fills the store with one line a measured cell; it goes on where it was stopped, and several processes may share the
work. The page on the leaderboard reads it.
"""

import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from entropic import rivals
from entropic.curve import ErrorCurve
from entropic.estimate import estimate, pca_basis
from entropic.exact import deterministic_law, gaussian_kl, gaussian_law, gaussian_w2, stochastic_law
from entropic.images import metrics
from entropic.images.data import load_images, to_pixels, to_uint8
from entropic.images.generate import generate, local_device
from entropic.images.networks import load_network
from entropic.mixtures import GaussianMixture
from entropic.placement import gaussian_optimal_sigmas, order, solver_aware_sigmas
from entropic.schedules import (
    cosine_sigmas,
    edm_sigmas,
    entropic_sigmas,
    linear_sigmas,
    log_sigmas,
    rescaled_sigmas,
    vp_sigmas,
)
from entropic.solvers import sample_ddim, sample_ddim_stochastic, sample_dpmpp_2m, sample_heun
from studies.report import git_state

__all__ = ["SCHEDULES", "SOLVERS", "Work", "cells", "fill", "noise", "ranks", "standing"]

LOW, HIGH = 0.002, 80.0


class Solver(NamedTuple):
    """A solver's name in `entropic.exact` and in tables, its function, and how many levels so many calls afford it."""

    key: str
    short: str
    sample: Callable
    levels: Callable


SOLVERS = {
    "deterministic DDIM": Solver("ddim", "det. DDIM", sample_ddim, lambda nfe: nfe),
    "stochastic DDIM": Solver("ddim_stochastic", "stoch. DDIM", sample_ddim_stochastic, lambda nfe: nfe),
    "Heun": Solver("heun", "Heun", sample_heun, lambda nfe: (nfe + 1) // 2),  # 2 n - 1 calls, at most `nfe`
    "DPM-Solver++(2M)": Solver("dpmpp_2m", "2M", sample_dpmpp_2m, lambda nfe: nfe),
}


class Work(NamedTuple):
    """One problem that every schedule is put to.

    `curve`: its error curve, with directions of `multiplicity` dimensions each; `variances`, `counts`: the data's own
    spectrum, whose exact recursion gives the optimum of Gaussian data. denoiser(x, sigma), data(n, generator) ->
    (n, ...): what rivals ask for. measure(solver, sigmas, run) -> distances by name. `runs`: how many seeds; `floor`:
    distances of real data, by name.
    """

    name: str
    group: str
    curve: ErrorCurve
    multiplicity: torch.Tensor | None
    variances: torch.Tensor
    counts: torch.Tensor
    denoiser: Callable
    data: Callable
    measure: Callable
    runs: int
    floor: dict
    schedules: tuple = ()  # names of those worth measuring here, where not all differ


# ------------------------------------------------------------------------------------------------- schedules


def _aware(work, n, solver, free_end=True, **measure):
    return solver_aware_sigmas(
        work.curve,
        n,
        SOLVERS[solver].key,
        sigma_min=LOW,
        sigma_max=HIGH,
        multiplicity=work.multiplicity,
        free_end=free_end,
        **measure,
    )


def _recursion(work, n, solver, **measure):
    if order(SOLVERS[solver].key) == 1:
        raise ValueError(f"{solver}: the recursion is what its default takes; measured there")
    return _aware(work, n, solver, method="recursion", **measure)


def _spectrum(work, n, solver, metric="kl", alpha=None):
    return gaussian_optimal_sigmas(
        work.variances,
        n,
        SOLVERS[solver].key,
        metric,
        LOW,
        HIGH,
        alpha=alpha,
        multiplicity=work.counts,
        free_end=True,
    )


def _from_start(function, work, n, solver, count=256):
    generator = torch.Generator().manual_seed(2**20)
    x = work.data(count, generator)
    x = x + HIGH * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return function(n, work.denoiser, x, sigma_min=LOW, sigma_max=HIGH)


def _from_data(function, work, n, solver, count=256):
    generator = torch.Generator().manual_seed(2**20)
    return function(n, work.denoiser, work.data(count, generator), generator, sigma_min=LOW, sigma_max=HIGH)


# Name -> function(work, n, solver) of sigmas, or of `rivals.Placed`. All keep to LOW and HIGH but "simple" and "Beta",
# whose table of training levels ends where it ends, and those that choose their last level: "OSS" and ours.
RIVALS = {
    "EDM": lambda work, n, solver: edm_sigmas(n, LOW, HIGH),
    "log": lambda work, n, solver: log_sigmas(n, LOW, HIGH),
    "linear": lambda work, n, solver: linear_sigmas(n, LOW, HIGH),
    "cosine": lambda work, n, solver: cosine_sigmas(n, LOW, HIGH),
    "VP": lambda work, n, solver: vp_sigmas(n, LOW, HIGH),
    "simple": lambda work, n, solver: rivals.simple_sigmas(n),
    "Beta": lambda work, n, solver: rivals.beta_sigmas(n),
    "Laplace": lambda work, n, solver: rivals.laplace_sigmas(n, LOW, HIGH),
    "entropic": lambda work, n, solver: entropic_sigmas(n, work.curve, LOW, HIGH),
    "rescaled": lambda work, n, solver: rescaled_sigmas(n, work.curve, LOW, HIGH),
    "AYS": lambda work, n, solver: rivals.ays_sigmas(n, work.curve, LOW, HIGH),
    "DMN": lambda work, n, solver: rivals.dmn_sigmas(n, LOW, HIGH),
    # its fine grid has 61 levels, of which it takes n: more where more are asked for
    "GITS": lambda work, n, solver: _from_start(
        functools.partial(rivals.gits_sigmas, levels=max(61, 2 * n)), work, n, solver
    ),
    "OSS": functools.partial(_from_start, functools.partial(rivals.oss_sigmas, levels=100), count=32),
    "SharpEuler": functools.partial(_from_start, rivals.sharpeuler_sigmas),
    "COS": functools.partial(_from_data, rivals.cos_sigmas),
    "CRS": functools.partial(_from_data, rivals.crs_sigmas),
}
OURS = {
    f"{route}, {name}": functools.partial(function, **measure)
    for route, function in (("curve", _aware), ("spectrum", _spectrum))
    for name, measure in (
        ("KL", {"metric": "kl"}),
        ("0.5", {"alpha": 0.5}),
        ("0.75", {"alpha": 0.75}),
        ("W2", {"metric": "w2"}),
    )
}
OURS["curve, 0.75, fixed end"] = functools.partial(_aware, alpha=0.75, free_end=False)
OURS["curve, KL, recursion"] = functools.partial(_recursion, metric="kl")
OURS["curve, 0.75, recursion"] = functools.partial(_recursion, alpha=0.75)
SCHEDULES = RIVALS | OURS
FORMULAS = (
    "EDM",
    "log",
    "linear",
    "cosine",
    "VP",
    "simple",
    "Beta",
    "Laplace",
    "DMN",
)  # ask nothing of the data


def _asks(schedule, work, solver):
    """What a schedule depends on besides the number of levels: two cells with the same need one search."""
    if schedule in FORMULAS:
        return None
    if schedule.startswith("spectrum"):
        return solver, tuple(work.variances.tolist()), tuple(work.counts.tolist())
    return work.name, solver if schedule in OURS else None


# ------------------------------------------------------------------------------------------------- work


def _levels(count=96):
    return torch.logspace(math.log10(LOW), math.log10(HIGH), count, dtype=torch.float64)


def gaussians():
    """Gaussian data, isotropic and with spectra that fall as a power: exact KL(generated || data) and squared W2."""
    k = torch.arange(1, 301, dtype=torch.float64)
    spectra = {"isotropic": torch.ones(1, dtype=torch.float64), "k^-1": 1 / k, "k^-2": k**-2}
    sigma = _levels()

    def work(name, variances):
        def measure(solver, sigmas, run):
            made = gaussian_law(variances, sigmas, SOLVERS[solver].key, start="exact")
            return {"KL": float(gaussian_kl(made, variances)), "W2": float(gaussian_w2(variances, made))}

        def draw(n, generator):
            return variances.sqrt() * torch.randn(n, len(variances), generator=generator, dtype=torch.float64)

        parts = variances * sigma[:, None].square() / (variances + sigma[:, None].square())
        curve = ErrorCurve(sigma, parts.sum(1), dim=len(variances), directions=parts)
        ones = torch.ones_like(variances)
        return Work(
            f"Gaussian, {name}",
            f"Gaussian, {name}",
            curve,
            ones,
            variances,
            ones,
            lambda x, sigma: x * (variances / (variances + sigma**2)),
            draw,
            measure,
            1,
            {},
        )

    return [work(name, variances) for name, variances in spectra.items()]


def _positions(components, generator):
    """Standardised random positions (components, 1), no two closer than 0.02."""
    while True:
        x = torch.randn(components, 1, generator=generator, dtype=torch.float64)
        x = (x - x.mean()) / x.std(correction=0)
        if x[:, 0].sort().values.diff().min() > 0.02:
            return x


def mixtures(widths=(0.05, 0.3), data_sets=20, components=15):
    """One-dimensional mixtures at random, standardised: exact KL; relative width 0 means points, seen through bins."""
    works, sigma = [], _levels(128)
    for width in widths:
        generator = torch.Generator().manual_seed(0)
        for index in range(data_sets):
            x = _positions(components, generator)
            shrink = math.sqrt(1 - width**2)
            mixture = GaussianMixture.isotropic(shrink * x, width) if width else GaussianMixture.points(x)
            halfwidth = float(x[:, 0].sort().values.diff().min() / 2)

            def measure(solver, sigmas, run, mixture=mixture, width=width, halfwidth=halfwidth):
                key = SOLVERS[solver].key
                if key == "ddim_stochastic":
                    law = stochastic_law(mixture, sigmas)
                else:
                    law = deterministic_law(mixture, sigmas, key)
                return {"KL": float(law.kl(mixture) if width else law.kl_bins(mixture, halfwidth))}

            one = torch.ones(1, dtype=torch.float64)
            works.append(
                Work(
                    f"1-D, width {width:g}, {index}",
                    f"1-D mixtures, width {width:g}",
                    ErrorCurve(sigma, mixture.eps2(sigma), dim=1),
                    None,
                    one,
                    one,
                    mixture.denoiser,
                    lambda n, generator, mixture=mixture: mixture.sample(n, generator),
                    measure,
                    1,
                    {},
                    # one direction: the weights have nothing to say
                    (*RIVALS, "curve, KL", "curve, KL, recursion", "spectrum, KL"),
                )
            )
    return works


def image_mixture(rank=None, samples=4000, curve_levels=48, curve_samples=256, reference=6000, source="full"):
    """Ten Gaussians fitted to Fashion-MNIST, one a class: exact denoiser, exact pixel moments.

    With their full covariances, or with `rank` directions each and the rest isotropic, as on the page "Real images".
    """
    images = load_images("fashion-mnist", "train", source)
    x, labels = to_pixels(images.images, torch.float64).flatten(1), images.labels
    if rank is None:
        name, classes = "image mixture", [x[labels == k] for k in range(10)]
        means = torch.stack([part.mean(0) for part in classes])
        mixture = GaussianMixture.full(means, torch.stack([torch.cov(part.T) for part in classes]))
    else:
        name = f"image mixture, rank {rank}"
        mixture = GaussianMixture.fit_low_rank(x, labels, rank, shared_noise=True)
    shape = tuple(images.images.shape[1:])
    generator = torch.Generator().manual_seed(2**21)
    known = mixture.sample(reference, generator)
    covariance = mixture.covariance()
    values, vectors = torch.linalg.eigh(covariance)
    variances, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    sigma = _levels(curve_levels)
    found = estimate(
        mixture.denoiser,
        known,
        sigma,
        samples=curve_samples,
        common_noise=False,
        bases={"own": lambda error: (error @ vectors).square()},
    )
    real = metrics.statistics(to_uint8(known.reshape(-1, *shape)), "efficientnet-lite0", allow_singular=True)

    def distances(x):
        features = metrics.extract(to_uint8(x.reshape(-1, *shape)), "efficientnet-lite0")
        pixels = metrics.frechet_distance(*metrics.moments(x), mixture.mean(), covariance)
        return {
            "pixel W2": pixels,
            "FD-EffNetLite0": metrics.frechet_distance(*metrics.moments(features), *real[:2]),
        }

    def measure(solver, sigmas, run):
        generator = torch.Generator().manual_seed(run)
        x = mixture.sample(samples, generator)
        x = x + HIGH * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return distances(SOLVERS[solver].sample(mixture.denoiser, x, sigmas, generator=generator))

    return [
        Work(
            name,
            name,
            found.curve("own"),
            torch.ones(len(variances), dtype=torch.float64),
            variances[variances > 1e-12],
            torch.ones(int((variances > 1e-12).sum()), dtype=torch.float64),
            mixture.denoiser,
            lambda n, generator: mixture.sample(n, generator),
            measure,
            3,
            distances(mixture.sample(samples, torch.Generator().manual_seed(2**22))),
        )
    ]


def network(
    weights="fashion-mnist",
    images=1000,
    curve_levels=48,
    curve_samples=256,
    source="full",
    spaces=("fashion-classifier", "efficientnet-lite0"),
):
    """The trained Fashion-MNIST network: Frechet distances in two feature spaces and in pixels."""
    device = local_device()
    model = load_network(weights, device)
    train, test = (load_images("fashion-mnist", split, source) for split in ("train", "test"))
    x = to_pixels(train.images).to(device)
    basis = pca_basis(x[:10_000], 200)
    found = estimate(
        model,
        x[:10_000],
        _levels(curve_levels),
        labels=train.labels[:10_000],
        samples=curve_samples,
        common_noise=False,
        bases={"pca": basis},
    )
    reference = {name: metrics.statistics(train.images, name, device=device) for name in spaces}
    pixels = metrics.moments(to_pixels(train.images, torch.float64).flatten(1))

    def distances(made):
        found = {
            "pixel W2": metrics.frechet_distance(
                *metrics.moments(to_pixels(made, torch.float64).flatten(1)), *pixels
            )
        }
        for name in spaces:
            moments = metrics.moments(metrics.extract(made, name, device=device))
            found[metrics.EXTRACTORS[name].label] = metrics.frechet_distance(*moments, *reference[name][:2])
        return found

    def measure(solver, sigmas, run):
        seeds = range(10_000 + run * images, 10_000 + (run + 1) * images)
        made = generate(model, sigmas, seeds, sampler=SOLVERS[solver].sample, batch=256, chunk=16)
        return distances(made.images)

    label = train.labels[:256].to(device)
    shuffled = torch.randperm(len(test.images), generator=torch.Generator().manual_seed(0))

    def denoiser(x, sigma):
        return model(x.float(), sigma, label[torch.arange(len(x)) % 256]).to(x.dtype)

    return [
        Work(
            "Fashion-MNIST network",
            "Fashion-MNIST network",
            found.curve("pca"),
            basis.multiplicity,
            basis.variance / basis.multiplicity,
            basis.multiplicity,
            denoiser,
            lambda n, generator: x[torch.randperm(len(x), generator=generator)[:n]].double(),
            measure,
            3,
            distances(test.images[shuffled[:images]]),
        )
    ]


WORKS = {
    "gaussians": gaussians,
    "mixtures": mixtures,
    "mixtures-wider": functools.partial(mixtures, widths=(0.1, 0.5)),
    "points": functools.partial(mixtures, widths=(0.0,)),
    "image-mixture": image_mixture,
    "image-mixture-low-rank": functools.partial(image_mixture, rank=16),
    "network": network,
}


# ------------------------------------------------------------------------------------------------- filling


class Store:
    """Lines of JSON in a folder, one file a process; a line cut off by a kill counts as not written."""

    def __init__(self, folder, share="0/1"):
        self.folder, self.file = Path(folder), Path(folder) / f"rows-{share.replace('/', '-of-')}.jsonl"

    def rows(self):
        """All rows of all files, oldest first in each."""
        found = []
        for path in sorted(self.folder.glob("rows-*.jsonl")):
            for line in path.read_text("utf-8").splitlines():
                try:
                    found.append(json.loads(line))
                except ValueError:
                    continue
        return found

    def add(self, rows):
        self.folder.mkdir(parents=True, exist_ok=True)
        torn = self.file.is_file() and not self.file.read_bytes().endswith(b"\n")
        with self.file.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + "".join(json.dumps(row) + "\n" for row in rows))


def fill(
    works,
    store,
    *,
    nfe,
    solvers=tuple(SOLVERS),
    schedules=tuple(SCHEDULES),
    runs=None,
    share="0/1",
    progress=True,
):
    """Measure what the store lacks: every work, solver, number of network calls, schedule and run.

    share "i/k": the i-th of k processes takes every k-th cell. A schedule that refuses a number of levels (Beta's table
    has too few, say) leaves a row without a value, and the reason. runs: at most so many of each work's.
    """
    from tqdm import tqdm

    mine, of = map(int, share.split("/"))
    state = git_state()
    commit = (state["commit"] or "")[:12] + "-dirty" * bool(state["dirty"])
    done = {_key(row) for row in store.rows()}
    work_of = {work.name: work for work in works}
    wanted = [
        (work.name, solver, calls, schedule, run)
        for work in works
        for solver in solvers
        for calls in nfe
        for schedule in schedules
        if schedule in (work.schedules or SCHEDULES)
        for run in range(min(work.runs, runs or work.runs))
    ]
    placed = {}
    for cell in tqdm(
        [cell for cell in wanted[mine::of] if cell not in done], disable=not progress, unit="cell"
    ):
        name, solver, calls, schedule, run = cell
        work, n = work_of[name], SOLVERS[solver].levels(calls)
        search = schedule, n, _asks(schedule, work, solver)
        if search not in placed:
            placed[search] = _place(work, schedule, n, solver)
        sigmas, cost = placed[search]
        row = dict(zip(_KEY, cell, strict=True)) | {"group": work.group, "levels": n, "commit": commit}
        row |= cost
        if sigmas is None:
            store.add([row | {"metric": "", "value": None}])
            continue
        began = time.perf_counter()
        values = work.measure(solver, sigmas, run)
        row |= {"measured_in": time.perf_counter() - began, "sigmas": sigmas.tolist()}
        store.add(
            [
                row | {"metric": metric, "value": value, "floor": work.floor.get(metric)}
                for metric, value in values.items()
            ]
        )


_KEY = ("work", "solver", "nfe", "schedule", "run")


def _key(row):
    return tuple(row[name] for name in _KEY)


def _place(work, schedule, n, solver):
    """Sigmas of a schedule, or None, and what they cost: denoiser calls and seconds, or why there are none."""
    began = time.perf_counter()
    try:
        sigmas = SCHEDULES[schedule](work, n, solver)
    except ValueError as error:
        return None, {"why": str(error)}
    calls = 0
    if isinstance(sigmas, rivals.Placed):
        sigmas, calls = sigmas
    if len(sigmas) != n + 1:
        return None, {"why": f"{len(sigmas) - 1} levels instead of {n}"}
    return sigmas, {"calls": int(calls), "seconds": time.perf_counter() - began}


# ------------------------------------------------------------------------------------------------- standing


class Cell(NamedTuple):
    """One comparison: `values` (schedules, members), members being works and runs, NaN where a schedule has none.

    `commits`: of the code that measured each schedule, "-dirty" where its tree was changed.
    """

    group: str
    metric: str
    solver: str
    nfe: int
    schedules: tuple
    values: np.ndarray
    floor: float
    commits: tuple


def cells(rows):
    """The comparisons that rows hold, one a group of works, metric, solver and NFE."""
    tables = {}
    for row in rows:
        if row["value"] is not None:
            where = (row["group"], row["metric"], row["solver"], row["nfe"])
            table, member = tables.setdefault(where, {}), (row["work"], row["run"])
            table.setdefault(row["schedule"], {})[member] = row["value"], row["commit"]
            table.setdefault(None, []).append(row.get("floor"))
    found = []
    for where, table in tables.items():
        floors = [floor for floor in table.pop(None) if floor is not None]
        members = sorted(set().union(*table.values()))
        names = tuple(name for name in SCHEDULES if name in table)
        values = [[table[name].get(member, (math.nan,))[0] for member in members] for name in names]
        commits = tuple(list(table[name].values())[-1][1] for name in names)
        floor = float(np.mean(floors)) if floors else 0.0
        found.append(Cell(*where, names, np.array(values), floor, commits))
    return found


def merged(newer, older):
    """The `Cell`s of both, a schedule's values taken from `newer` where both have it.

    ValueError: a comparison that is in both, with another number of works and runs.
    """
    found = {cell[:4]: cell for cell in older}
    for cell in newer:
        before = found.get(cell[:4], cell)
        if before.values.shape[1] != cell.values.shape[1]:
            members = [before.values.shape[1], cell.values.shape[1]]
            raise ValueError(
                f"{', '.join(map(str, cell[:4]))}: {members} works and runs; measure as many as before"
            )
        lines = {
            name: (values, commit)
            for part in (before, cell)
            for name, values, commit in zip(part.schedules, part.values, part.commits, strict=True)
        }
        names = tuple(name for name in SCHEDULES if name in lines)
        values, commits = zip(*(lines[name] for name in names), strict=True)
        found[cell[:4]] = cell._replace(schedules=names, values=np.array(values), commits=commits)
    return list(found.values())


def table(found):
    """`Cell`s as rows of text and numbers, one a schedule, for `figures.save_table`; `from_table` reads them back."""
    return [
        {
            "group": cell.group,
            "metric": cell.metric,
            "solver": cell.solver,
            "nfe": cell.nfe,
            "schedule": name,
            "floor": cell.floor,
            "commit": commit,
            "values": " ".join(f"{value:.6g}" for value in values),
        }
        for cell in found
        for name, values, commit in zip(cell.schedules, cell.values, cell.commits, strict=True)
    ]


def from_table(columns):
    """The `Cell`s of columns as `figures.read_recorded` gives them."""
    found = {}
    for group, metric, solver, nfe, *rest in zip(
        *(
            columns[name]
            for name in ("group", "metric", "solver", "nfe", "schedule", "floor", "commit", "values")
        ),
        strict=True,
    ):
        found.setdefault((group, metric, solver, int(nfe)), []).append(rest)
    return [
        Cell(
            *where,
            tuple(name for name, *_ in lines),
            np.array([[float(value) for value in str(values).split()] for *_, values in lines]),
            lines[0][1],
            tuple(commit for _, _, commit, _ in lines),
        )
        for where, lines in found.items()
    ]


def contest(cell, ours=None):
    """The `Cell` with the rivals and one schedule of ours, called "ours": the one for its metric unless named.

    From the error curve alone: "curve, KL" where KL is measured, "curve, W2" in data space, "curve, 0.75" in features.
    Members that lack it or EDM's are left out. None where none are left.
    """
    ours = ours or {"KL": "curve, KL", "W2": "curve, W2", "pixel W2": "curve, W2"}.get(
        cell.metric, "curve, 0.75"
    )
    if not {ours, "EDM"} <= set(cell.schedules):
        return None
    kept = [i for i, name in enumerate(cell.schedules) if name in RIVALS or name == ours]
    names = tuple("ours" if cell.schedules[i] == ours else cell.schedules[i] for i in kept)
    values, commits = cell.values[kept], tuple(cell.commits[i] for i in kept)
    both = np.isfinite(values[[names.index("ours"), names.index("EDM")]]).all(0)
    return cell._replace(schedules=names, values=values[:, both], commits=commits) if both.any() else None


def noise(found):
    """By metric of images, the standard deviation of a log ratio to EDM's schedule from seeds to seeds, one run each.

    Root mean square over all schedules and `Cell`s of images that have more than one run.
    """
    squares = {}
    for cell in found:
        if cell.metric.startswith(("FD-", "pixel")) and cell.values.shape[1] > 1 and "EDM" in cell.schedules:
            logs = np.log(cell.values)
            gaps = np.delete(logs - logs[cell.schedules.index("EDM")], cell.schedules.index("EDM"), 0)
            squares.setdefault(cell.metric, []).extend(gaps.var(1, ddof=1))
    return {metric: math.sqrt(np.nanmean(values)) for metric, values in squares.items()}


def standing(cell, noise=None):
    """Each schedule's place in a cell: rows with geometric mean, spread, ratio to EDM and to the best, and verdict.

    "best": the least geometric mean of those measured on all members. "level": not told apart from it, the mean paired
    log ratio lies within two standard errors: of one member's `noise` if given, else of the members' own deviation
    (one member: within 1 %). "worst": the largest. Else "".
    """
    logs = np.log(np.maximum(cell.values, 1e-300))
    means = logs.mean(1)
    complete = np.isfinite(means)
    best, worst = (
        np.nanargmin(np.where(complete, means, np.nan)),
        np.nanargmax(np.where(complete, means, np.nan)),
    )
    edm = cell.schedules.index("EDM") if "EDM" in cell.schedules else best
    rivals_only = [i for i, name in enumerate(cell.schedules) if name in RIVALS and complete[i]]
    rival = min(rivals_only, key=lambda i: means[i]) if rivals_only else best
    found = []
    for i, name in enumerate(cell.schedules):
        gaps = logs[i] - logs[best]
        count = gaps.size
        with np.errstate(invalid="ignore"):  # a schedule may be infinitely far off
            own = noise or (gaps.std(ddof=1) if count > 1 else 0.5 * math.log(1.01))
            spread = np.exp(logs[i].std(ddof=1)) if count > 1 and complete[i] else math.nan
        verdict = ""
        if complete[i]:
            verdict = (
                "best"
                if i == best
                else "level"
                if gaps.mean() <= 2 * own / math.sqrt(count)
                else "worst"
                if i == worst
                else ""
            )
        found.append(
            {
                "schedule": name,
                "value": math.exp(means[i]) if complete[i] else math.nan,
                "spread": float(spread),
                "to EDM": math.exp(means[i] - means[edm]) if complete[i] else math.nan,
                "to the best rival": math.exp(means[i] - means[rival]) if complete[i] else math.nan,
                "verdict": verdict,
            }
        )
    return found


def ranks(found):
    """Mean rank of each schedule over cells that all of them have, and the critical difference of Nemenyi at 5 %.

    Two schedules whose mean ranks are closer than that are not told apart. found: `Cell`s. Demsar 2006.
    """
    names = [name for name in (*SCHEDULES, "ours") if all(name in cell.schedules for cell in found)]
    table = []
    for cell in found:
        means = np.log(np.maximum(cell.values, 1e-300)).mean(1)
        values = np.array([means[cell.schedules.index(name)] for name in names])
        if np.isfinite(values).all():
            table.append(values.argsort().argsort() + 1.0)
    count, k = len(table), len(names)
    if not count:
        raise ValueError("found holds no cell that has all schedules; measure more of them")
    # Studentised range over sqrt(2), by its usual approximation through the normal maximum of k.
    critical = _studentised(k) * math.sqrt(k * (k + 1) / (6 * count))
    return dict(zip(names, np.mean(table, 0).tolist(), strict=True)), critical, count


def _studentised(k):
    """The 95 % quantile of the range of k standard normal variables over sqrt(2), by quadrature and bisection."""
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)

    def below(width):
        inside = torch.special.ndtr(x) - torch.special.ndtr(x - width)
        return float(torch.trapezoid(k * density * inside ** (k - 1), x))

    low, high = 0.0, 20.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < 0.95 else (low, middle)
    return low / math.sqrt(2)


# What `make leaderboard` measures: works, numbers of calls, solvers, runs, schedules. Heun's 17 calls are 9 levels. The
# law of points after few steps of a second-order solver has so many folds that it can take minutes and gigabytes.
_FEATURES = (*RIVALS, "curve, 0.5", "curve, 0.75", "curve, 0.75, recursion", "curve, W2")
# At 32 calls on images, those near the front with the same solvers at 16.
_LEADING = {
    ("deterministic DDIM", "stochastic DDIM"): ("OSS", "SharpEuler", "cosine"),
    ("Heun", "DPM-Solver++(2M)"): ("log", "Beta", "OSS"),
}
PLAN = (
    ("gaussians", [4, 8, 16, 32, 64], None, None, SCHEDULES),
    ("mixtures", [4, 8, 16, 32, 64], None, None, SCHEDULES),
    ("mixtures", [17], ["Heun"], None, SCHEDULES),
    ("mixtures-wider", [8], None, None, SCHEDULES),
    ("points", [4, 8, 16], ["deterministic DDIM", "stochastic DDIM"], None, SCHEDULES),
    ("points", [8, 16], ["DPM-Solver++(2M)"], None, SCHEDULES),
    ("points", [16], ["Heun"], None, SCHEDULES),
    ("image-mixture", [8], None, 1, SCHEDULES),
    ("image-mixture", [17], ["Heun"], 1, SCHEDULES),
    ("image-mixture", [16], ["deterministic DDIM", "stochastic DDIM"], 1, SCHEDULES),
    ("image-mixture", [16], ["DPM-Solver++(2M)"], 1, _FEATURES),
    ("image-mixture", [4], None, 1, _FEATURES),
    ("image-mixture-low-rank", [8], None, 1, SCHEDULES),
    ("image-mixture-low-rank", [4, 16, 32, 64], None, 1, _FEATURES),
    ("network", [8], None, 2, SCHEDULES),
    ("network", [4, 16], None, 1, _FEATURES),
    *(
        (name, [32], solvers, 1, ("EDM", "rescaled", *few, "curve, 0.75", "curve, W2"))
        for name in ("image-mixture", "network")
        for solvers, few in _LEADING.items()
    ),
)
