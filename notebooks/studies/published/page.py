"""What the page of the paper's tables shows: the paper's numbers beside ours, noise levels, pictures, claims."""

import math

import numpy as np

from entropic.images import metrics
from entropic.images.data import paper_table
from studies import looks
from studies.montage import draw_montage
from studies.published.filling import fill, gallery, rows, schedules
from studies.report import read_recorded, save_figure, save_table
from studies.statistics import interval, student

__all__ = [
    "beside_paper",
    "claim",
    "results",
    "show_behind",
    "show_gallery",
    "show_paper",
    "show_schedules",
    "show_tables",
]


def beside_paper(table, found=()):
    """The paper's rows of table `table`, and ours beside them where `found` (of `rows`) has them.

    Ours: mean and standard deviation over runs. A single run of the paper's is within noise where the difference is at
    most Student's 95 % quantile times std sqrt(1 + 1/runs), as if theirs spread like ours.
    """
    beside = []
    for theirs in paper_table(table):
        ours = [
            float(row[theirs["metric"]])
            for row in found
            if theirs["metric"] in row
            and row["network"] == theirs["network"]
            and theirs["snapshot_tuned_for"] in ("", row["tuned_for"])
            and (row["solver"], int(row["nfe"]), row["schedule"])
            == (theirs["solver"], int(theirs["nfe"]), theirs["schedule"])
        ]
        row = {
            name: theirs[name]
            for name in ("network", "snapshot_tuned_for", "solver", "schedule", "nfe", "metric")
        }
        row |= {"paper": theirs["value"], "ours": "not run here", "difference": "", "within noise": ""}
        if ours:
            mean, std = float(np.mean(ours)), float(np.std(ours, ddof=1)) if len(ours) > 1 else math.nan
            row["ours"] = f"{mean:.4g}" + (f" ± {std:.2g}" if len(ours) > 1 else "")
            row["difference"] = f"{mean - float(row['paper']):+.3g}"
            if len(ours) > 1:
                width = student(len(ours)) * std * math.sqrt(1 + 1 / len(ours))
                row["within noise"] = "yes" if abs(mean - float(row["paper"])) <= width else "no"
        beside.append(row)
    return beside


# What the pages show


def results(experiment, run):
    """Rows of an experiment, and where they come from in words: made now where `run`, else recorded, else none."""
    if run:
        fill(experiment, progress=False)
        found, origin = rows(experiment), f"Ours: {experiment.images:,} images a run, {experiment.runs} runs."
        save_table(found, "rows", f"Every run. {origin}")
        return found, origin
    about, columns = read_recorded(experiment.name, "rows") or (None, {})
    found = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if about is None:
        return found, f"Ours: not run here; to run it: {experiment.command}."
    commit = (about["commit"] or "unknown")[:7]
    return found, f"Ours recorded on {about['device']}, {about['created'][:10]}, commit {commit}."


_HEADS = {
    "network": "network",
    "snapshot_tuned_for": "tuned for",
    "solver": "DDIM",
    "nfe": "NFE",
    "metric": "metric",
}


def show_tables(experiment, found, origin):
    """The experiment's tables of the paper, as printed there, and ours beside them."""
    for table in experiment.tables:
        wide = {}
        for row in beside_paper(table, found):
            row["solver"] = row["solver"].removesuffix(" DDIM")
            line = wide.setdefault(tuple(row[name] for name in _HEADS), {name: row[name] for name in _HEADS})
            line[f"{row['schedule']}, paper"] = row["paper"]
            if found:
                line[f"{row['schedule']}, ours"] = row["ours"] + (
                    f" ({row['difference']}{', within noise' if row['within noise'] == 'yes' else ''})"
                    * (row["difference"] != "")
                )
        lines = list(wide.values())
        shown = [name for name in lines[0] if any(line[name] for line in lines)]
        save_table(
            lines,
            f"table-{table}",
            f"Table {table} of the paper, {experiment.dataset}; lower is better. {origin}{_floors(found)}",
            columns={name: _HEADS.get(name, name) for name in shown},
        )


def show_behind(experiments):
    """The rows in which the paper's own schedule is not ahead of EDM's, in the paper's own numbers."""
    behind = []
    for experiment in experiments:
        values = {(where, schedule): value for where, schedule, value in _theirs(experiment.tables)}
        for where, ratio in _compared(_theirs(experiment.tables)).items():
            if ratio >= 1:
                row = {"dataset": experiment.dataset} | dict(zip(_HEADS, where, strict=True))
                row["solver"] = row["solver"].removesuffix(" DDIM")
                behind.append(row | {name: values[where, name] for name in ("EDM", "rescaled entropic")})
    if behind:
        save_table(
            behind,
            "behind",
            "The rows of the paper in which its rescaled schedule is not ahead of EDM's, as printed there.",
            columns={"dataset": "data"}
            | {name: _HEADS.get(name, name) for name in behind[0] if name != "dataset"},
        )


def show_paper(experiments):
    """The rescaled schedule's distance over EDM's in the paper's own numbers: a figure, and how many rows it wins."""
    ratios = {
        (experiment.dataset, *where): float(ratio)
        for experiment in experiments
        for where, ratio in _compared(_theirs(experiment.tables)).items()
    }
    kinds = {}  # (metric, solver) -> its ratios
    lines = {}  # (metric, solver) -> network -> NFE -> ratio; with the weights that were tuned for the metric
    for (dataset, network, tuned, solver, nfe, metric), ratio in ratios.items():
        kinds.setdefault((metric, solver), []).append(ratio)
        if tuned in ("", metric):
            name = f"{dataset} {network.removeprefix('EDM2-').removeprefix('EDM-VP')}".strip()
            lines.setdefault((metric, solver), {}).setdefault(name, {})[int(nfe)] = ratio

    def draw():
        import matplotlib.pyplot as plt

        shape = {"figsize": (7.2, 1.2 + 1.7 * ((len(lines) + 1) // 2)), "sharex": True, "sharey": True}
        fig, axes = plt.subplots((len(lines) + 1) // 2, 2, squeeze=False, **shape)
        names = list(dict.fromkeys(name for found in lines.values() for name in found))
        for axis, ((metric, solver), found) in zip(axes.flat, lines.items(), strict=False):
            for name, its in found.items():
                look = names.index(name)
                axis.plot(its.keys(), its.values(), f"{'os^vDP'[look]}-", color=f"C{look}", label=name)
            axis.axhline(1, lw=1.2, ls="--", color=looks.schedule("EDM")["color"])
            axis.set_title(f"{metric}, {solver}")
            axis.set(xscale="log", xticks=list(its), xticklabels=list(its))
            axis.minorticks_off()
        for axis in axes[-1]:
            axis.set_xlabel("NFE")
        for axis in axes[:, 0]:
            axis.set_ylabel("rescaled / EDM")
        looks.legend(fig, 3)
        return fig

    def told(found):
        return f"{sum(ratio < 1 for ratio in found)} of {len(found)}"

    counts = ", ".join(
        f"{told(found)} with {metric} and {solver}" for (metric, solver), found in kinds.items()
    )
    save_figure(
        draw,
        "in-the-paper",
        data={
            f"{metric}, {solver}, {name}": {"nfe": list(its), "ratio": list(its.values())}
            for (metric, solver), found in lines.items()
            for name, its in found.items()
        },
        caption="The distance of the paper's rescaled schedule over that of EDM's at the same NFE, from the numbers "
        "that the paper prints: single runs, without an interval. Below the broken line it is ahead. EDM2's networks "
        "with the averaging tuned for the distance of the panel.",
        alt="Panels of lines against the number of network calls. The rescaled schedule is ahead in "
        f"{counts} rows of the tables.",
    )
    save_table(
        [
            {
                "distance": metric,
                "solver": solver,
                "rows": len(found),
                "ahead": sum(ratio < 1 for ratio in found),
                "least": min(found),
                "median": float(np.median(found)),
                "most": max(found),
            }
            for (metric, solver), found in {**kinds, ("all", "both"): list(ratios.values())}.items()
        ],
        "ahead",
        "In how many rows of the paper's tables its rescaled schedule is ahead of EDM's, and the ratio of their "
        "distances: least, median and most.",
    )


def _floors(found):
    """A sentence that tells the floors that rows hold; "" where they hold none."""
    held = {name.removesuffix(" floor"): value for name, value in found[0].items()} if found else {}
    told = [f"{name} {float(value):.3g}" for name, value in held.items() if f"{name} floor" in found[0]]
    return f" As many images of a perfect generator would have {', '.join(told)}." if told else ""


def show_schedules(experiment, run, origin, calls=16):
    """Where the noise levels of each schedule lie: of this run, recorded, or a line that says it is not run."""
    if run:
        placed = {name: sigmas[:-1].tolist() for name, sigmas in schedules(experiment, calls).items()}
    else:
        _, placed = read_recorded(experiment.name, "schedules") or (None, {})
        placed = {name: values for name, values in placed.items() if name != "step"}
    if not placed:
        print(f"{experiment.dataset}: the error curve is not run here. To run it: {experiment.command}")
        return

    def draw():
        import matplotlib.pyplot as plt

        fig, axis = plt.subplots(figsize=(7.6, 0.8 + 0.4 * len(placed)))
        for line, sigmas in enumerate(placed.values()):
            axis.plot(sigmas, [line] * len(sigmas), "|", ms=16, mew=1.5, color=f"C{line}")
        axis.set(xscale="log", xlabel=r"$\sigma$", yticks=range(len(placed)), yticklabels=list(placed))
        axis.set_ylim(len(placed) - 0.4, -0.6)
        return fig

    save_figure(
        draw,
        "schedules" if run else f"schedules-{experiment.name.replace('_', '-')}",
        data={"step": range(calls)} | placed,
        caption=f"{experiment.dataset}: the {calls} noise levels of each schedule; error curve of "
        f"{experiment.curve_network}. {origin}",
        alt="Rows of ticks on a logarithmic axis of noise, one row a schedule.",
    )


def show_gallery(experiment, run, nfe, seeds=range(8)):
    """The same seeds under each schedule, few network calls to many, a figure for each snapshot and schedule."""
    if not run:
        print(f"{experiment.dataset}: the pictures are not run here. To make them: {experiment.command}")
        return
    for number, snapshot in enumerate(experiment.snapshots):
        pictures = gallery(experiment, snapshot, seeds, nfe)
        for schedule in experiment.schedules:
            lines = [pictures[schedule, calls] for calls in nfe]
            brightness = {
                f"brightness_{calls}": (line.double().mean((1, 2, 3)) / 255).tolist()
                for calls, line in zip(nfe, lines, strict=True)
            }
            save_figure(
                lambda lines=lines: draw_montage(lines, nfe),
                f"gallery-{number}-{schedule.split()[0].lower()}",
                data={"seed": seeds} | brightness,
                caption=f"{schedule}, {snapshot.title}: seeds {seeds[0]} to {seeds[-1]}, deterministic DDIM; "
                "the number of network calls stands at the left.",
                alt=f"Rows of pictures made with the {schedule} schedule, from few network calls to many.",
            )


def claim(experiment, found=()):
    """The paper's claim that its schedule beats EDM's at the same NFE, as `studies.claims.record_claims` takes it.

    A case is a row of network, solver, NFE and metric of our runs (of `rows`), paired by the run.
    """
    theirs = _compared(_theirs(experiment.tables))
    printed = {(where, schedule): value for where, schedule, value in _theirs(experiment.tables)}
    where = next(iter(theirs))
    first = f"{where[4]} {printed[where, 'rescaled entropic']} against {printed[where, 'EDM']}"
    runs = {}
    for row in found:
        for label in (extractor.label for extractor in metrics.EXTRACTORS.values()):
            if label in row:
                case = ", ".join(
                    str(part) for part in (row["network"], row["tuned_for"], row["solver"], label) if part
                )
                its = runs.setdefault(f"{case}, NFE {row['nfe']}", {})
                its.setdefault(row["schedule"], []).append(float(row[label]))
    cases = {}
    for case, its in runs.items():
        if {"rescaled entropic", "EDM"} <= set(its):
            gaps = np.log(its["rescaled entropic"]) - np.log(its["EDM"])
            cases[case] = [end.exp().item() for end in interval(gaps)]
    tables = experiment.tables
    return {
        "id": f"published-{experiment.name.replace('_', '-')}",
        "topic": "Images: the rescaled schedule against EDM's",
        "claim": f"On {experiment.dataset}, with published networks and DDIM, the rescaled schedule is closer to the "
        "data than EDM's at the same NFE.",
        "paper": f"Table{'s' * (len(tables) > 1)} {', '.join(map(str, tables))}: ahead in "
        f"{sum(ratio < 1 for ratio in theirs.values())} of {len(theirs)} rows, single runs; the first row: {first}",
        "shown": f"tab-table-{tables[0]}",
        "cases": cases,
        "ratio": "distance, rescaled / EDM",
    }


def _theirs(tables):
    """The paper's values: (network, tuned for, solver, NFE, metric), schedule, value."""
    names = ("network", "snapshot_tuned_for", "solver", "nfe", "metric")
    return [
        (tuple(row[name] for name in names), row["schedule"], row["value"])
        for table in tables
        for row in paper_table(table)
    ]


def _compared(values):
    """By row: the mean of the rescaled schedule's distance over that of EDM's."""
    kept = {}
    for where, schedule, value in values:
        kept.setdefault(where, {}).setdefault(schedule, []).append(float(value))
    return {
        where: np.mean(found["rescaled entropic"]) / np.mean(found["EDM"])
        for where, found in kept.items()
        if {"rescaled entropic", "EDM"} <= set(found)
    }
