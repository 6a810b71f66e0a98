"""What is measured, and the measuring."""

import time

from entropic import rivals
from studies.leaderboard.names import SOLVERS
from studies.leaderboard.schedules import RIVALS, SCHEDULES, TUNED_FOR, asks
from studies.leaderboard.store import KEY, key
from studies.report import git_state

# Schedules that are measured in features at all numbers of calls.
_FEATURES = (
    *RIVALS,
    *(name for name in TUNED_FOR if not name.endswith("KL")),
    *("curve, 0.5", "curve, 0.75", "curve, 0.75, no spread", "curve, 0.75, fixed end"),
    *("curve, W2", "curve, W2, fixed end", "measured"),
)
# At 32 calls on images: the rivals that lead with the same solvers at 16 calls.
_LEADING = {
    ("deterministic DDIM", "stochastic DDIM"): ("OSS", "SharpEuler", "cosine"),
    ("Heun", "DPM-Solver++(2M)"): ("log", "Beta", "OSS"),
}
# EDM's schedule with 64 levels of Heun, 127 calls: where the solver has converged. No other schedule is measured there.
CONVERGED = ("Heun", 127, "EDM")
_IMAGES = ("image-mixture", "image-mixture-low-rank", "network", "galaxies")
# What `make leaderboard` measures: works, numbers of calls, solvers, runs, schedules. Heun has 9 levels at 17 calls.
# For points, second-order solvers with few steps are left out: their law has so many folds that it takes minutes and
# gigabytes.
PLAN = (
    ("gaussians", [4, 8, 16, 32, 64], None, None, SCHEDULES),
    ("varying-scale", [4, 8, 16, 32], None, None, SCHEDULES),
    ("varying-scale", [9, 17], ["Heun"], None, SCHEDULES),
    ("varying-scale", [5, 9], ["DPM-Solver++(2M)"], None, SCHEDULES),
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
    ("galaxies", [5, 8, 9, 16], None, 1, _FEATURES),
    *(
        (name, [32], solvers, 1, ("EDM", "rescaled", *few, "curve, 0.75", "curve, W2", "measured"))
        for name in ("image-mixture", "network")
        for solvers, few in _LEADING.items()
    ),
    *((name, [CONVERGED[1]], [CONVERGED[0]], 1, (CONVERGED[2],)) for name in _IMAGES),
)


def fill(
    works,
    store,
    *,
    nfe,
    solvers=tuple(SOLVERS),
    schedules=tuple(SCHEDULES),
    runs=None,
    progress=True,
    known=(),
):
    """Measure what the store lacks: every work, solver, number of network calls, schedule and run.

    known: `Cell`s whose lines are not measured again, such as those of the record.
    The store's share "i/k" says which cells: every k-th one, from the i-th on. A schedule that refuses a number of
    levels (the table of "Beta" may have too few) leaves a row without a value, with the reason. runs: at most so many
    runs of each work. ValueError: another process writes the same share; a damaged line in the store.
    """
    work_of = {work.name: work for work in works}
    lines = {(*cell[:4], name) for cell in known for name in cell.schedules}
    measured = {}
    for row in store.rows():
        measured.setdefault(key(row), set()).add(row["metric"])
    wanted = [
        (work.name, solver, calls, schedule, run)
        for work in works
        for solver in solvers
        for calls in nfe
        for schedule in schedules
        if schedule in work.names() and solver in (work.solvers or SOLVERS)
        if not {(work.group, metric, solver, calls, schedule) for metric in work.distances} <= lines
        for run in range(min(work.runs, runs or work.runs))
    ]
    missing = [cell for cell in wanted[store.index :: store.count] if not _done(cell, work_of, measured)]
    if missing:
        with store.writing() as add:
            _measure(missing, work_of, add, progress)


def _done(cell, work_of, measured):
    """Whether the store has all distances of a cell, or the reason why it has none."""
    found = measured.get(cell, set())
    return "" in found or found >= set(work_of[cell[0]].distances)


def _measure(cells, work_of, add, progress):
    from tqdm import tqdm

    state = git_state()
    commit = (state["commit"] or "")[:12] + "-dirty" * bool(state["dirty"])
    placed = {}
    for cell in tqdm(cells, disable=not progress, unit="cell"):
        name, solver, calls, schedule, run = cell
        work, n = work_of[name], SOLVERS[solver].levels(calls)
        search = schedule, n, asks(schedule, work, solver)
        if search not in placed:
            placed[search] = _place(work, schedule, n, solver)
        sigmas, cost = placed[search]
        row = dict(zip(KEY, cell, strict=True)) | {"group": work.group, "levels": n, "commit": commit} | cost
        if sigmas is None:
            add([row | {"metric": "", "value": None}])
            continue
        began = time.perf_counter()
        values = work.measure(solver, sigmas, run)
        row |= {"measured_in": time.perf_counter() - began, "sigmas": sigmas.tolist()}
        add(
            [
                row | {"metric": name, "value": values[name], "floor": work.floor.get(name)}
                for name in work.distances
            ]
        )


def _place(work, schedule, n, solver):
    """Sigmas of a schedule and what they cost, denoiser calls and seconds; or None and the reason."""
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
