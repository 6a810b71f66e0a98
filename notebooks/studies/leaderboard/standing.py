"""Where each schedule stands: comparisons, ratios, verdicts, ranks."""

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from studies.leaderboard.names import PATH, PATH_RMS, W2_OF_COMPONENTS, distance_name
from studies.leaderboard.schedules import RIVALS, SCHEDULES, TUNED, TUNED_FOR, outdated
from studies.statistics import nemenyi


class Cell(NamedTuple):
    """One comparison: one group of works, one distance, one solver, one number of network calls.

    metric: full name of the distance. values: (schedules, members), one member for each work and run, NaN where a
    schedule was not measured. floor: distance of real data. commits: of the code that measured each schedule, with
    "-dirty" where its files had been changed.
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
    """The comparisons that rows hold, as `Cell`s."""
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
    """The `Cell`s of both. Where both measured a schedule in a comparison, the values are those of `newer`.

    ValueError: a comparison that is in both with different numbers of works and runs.
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
    """`Cell`s as rows for `studies.report.save_table`, one row for each schedule; `from_table` reads them back."""
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
    """The `Cell`s of columns that `studies.report.read_recorded` returns; old names of distances become full names.

    Lines that are `outdated` are left out.
    """
    found = {}
    for group, metric, solver, nfe, *rest in zip(
        *(
            columns[name]
            for name in ("group", "metric", "solver", "nfe", "schedule", "floor", "commit", "values")
        ),
        strict=True,
    ):
        if not outdated(group, rest[0], rest[2]):
            found.setdefault((group, distance_name(group, metric), solver, int(nfe)), []).append(rest)
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
    """The `Cell` with the rivals and one schedule of ours, which is called "ours" in it.

    ours: its name; by default that of `made_for`. Of the rivals that are tuned to a goal, the cell has those that are
    tuned to the goal of `made_for`. Members without a value of ours or of EDM's are left out; the result is None where
    no member is left.
    """
    own, goal = made_for(cell.metric), made_for(cell.metric).removeprefix("curve, ")
    ours = ours or own
    if not {ours, "EDM"} <= set(cell.schedules):
        return None
    called = {ours: "ours"} | {name: name for name in RIVALS} | {f"{name}, {goal}": name for name in TUNED}
    kept = [i for i, name in enumerate(cell.schedules) if name in called]
    names = tuple(called[cell.schedules[i]] for i in kept)
    values, commits = cell.values[kept], tuple(cell.commits[i] for i in kept)
    both = np.isfinite(values[[names.index("ours"), names.index("EDM")]]).all(0)
    return cell._replace(schedules=names, values=values[:, both], commits=commits) if both.any() else None


def made_for(metric):
    """The name of our schedule, from the error curve alone, that is made for a distance.

    "curve, KL" where a KL is measured, "curve, W2" for distances of the data themselves and for errors along paths,
    "curve, 0.75" for distances of features.
    """
    if metric.startswith("KL"):
        return "curve, KL"
    return "curve, W2" if metric in ("W2", "pixel W2", W2_OF_COMPONENTS, PATH, PATH_RMS) else "curve, 0.75"


def noise(found):
    """The standard deviation, over sets of seeds, of the logarithm of a distance over EDM's: one number a distance.

    It is that of one run, the root mean square over all schedules and `Cell`s of images with more than one run.
    """
    squares = {}
    for cell in found:
        if (
            cell.metric.startswith(("FD-", "pixel", W2_OF_COMPONENTS))
            and cell.values.shape[1] > 1
            and "EDM" in cell.schedules
        ):
            logs = np.log(cell.values)
            gaps = np.delete(logs - logs[cell.schedules.index("EDM")], cell.schedules.index("EDM"), 0)
            squares.setdefault(cell.metric, []).extend(gaps.var(1, ddof=1))
    return {metric: math.sqrt(np.nanmean(values)) for metric, values in squares.items()}


def _logs(cell):
    """Logarithms of a cell's values. A value below 1e-12 of EDM's is rounding alone, and counts as so much."""
    least = np.full(cell.values.shape[1], 1e-300)
    if "EDM" in cell.schedules:
        least = np.fmax(least, 1e-12 * cell.values[cell.schedules.index("EDM")])
    return np.log(np.maximum(cell.values, least))


def standing(cell, noise=None):
    """Each schedule's place in a cell: rows with geometric mean, spread, ratios to EDM and the best rival, and verdict.

    The least geometric mean of those measured on all members is the first. Others are "level" with it where the mean
    of the paired log ratios to it is at most two standard errors. The standard error is that of `noise`, the deviation
    of one member, if given, else that of the members' own deviation; a single member is level within 1 %. The first is
    "best" where none is level with it, else "level", too. "worst" has the largest mean; "" all others.
    """
    logs = _logs(cell)
    means = logs.mean(1)
    complete = np.isfinite(means)
    best, worst = (
        np.nanargmin(np.where(complete, means, np.nan)),
        np.nanargmax(np.where(complete, means, np.nan)),
    )
    edm = cell.schedules.index("EDM") if "EDM" in cell.schedules else best
    known = RIVALS.keys() | TUNED.keys() | TUNED_FOR.keys()
    rivals_only = [i for i, name in enumerate(cell.schedules) if name in known and complete[i]]
    rival = min(rivals_only, key=lambda i: means[i]) if rivals_only else best
    found = []
    for i, name in enumerate(cell.schedules):
        gaps = logs[i] - logs[best]
        count = gaps.size
        with np.errstate(invalid="ignore"):  # a schedule may be infinitely far off
            own = noise or (gaps.std(ddof=1) if count > 1 else 0.5 * math.log(1.01))
            spread = np.exp(logs[i].std(ddof=1)) if count > 1 and complete[i] else math.nan
        level = complete[i] and i != best and gaps.mean() <= 2 * own / math.sqrt(count)
        verdict = "best" if i == best else "level" if level else "worst" if i == worst else ""
        found.append(
            {
                "schedule": name,
                "value": math.exp(means[i]) if complete[i] else math.nan,
                "spread": float(spread),
                "to EDM": math.exp(means[i] - means[edm]) if complete[i] else math.nan,
                "to the best rival": math.exp(means[i] - means[rival]) if complete[i] else math.nan,
                "verdict": verdict if complete[i] else "",
            }
        )
    if any(row["verdict"] == "level" for row in found):
        found[best]["verdict"] = "level"
    return found


def ranks(found):
    """Mean rank of each schedule over `Cell`s, the critical difference at 5 %, and the number of cells ranked.

    Ranked are the schedules that all cells have, in the cells where all their values are finite. Two schedules whose
    mean ranks are closer than the critical difference are not told apart; equal values share their ranks. Demsar
    (2006).
    ValueError: no cell can be ranked.
    """
    names = [name for name in (*SCHEDULES, *TUNED, "ours") if all(name in cell.schedules for cell in found)]
    table = []
    for cell in found:
        means = _logs(cell).mean(1)
        values = np.array([means[cell.schedules.index(name)] for name in names])
        if np.isfinite(values).all():
            table.append(rankdata(values))
    count = len(table)
    if not count:
        raise ValueError("found holds no cell that has all schedules; measure more of them")
    return dict(zip(names, np.mean(table, 0).tolist(), strict=True)), nemenyi(len(names), count), count
