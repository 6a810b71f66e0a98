"""What the pages of published networks show: the paper's numbers beside ours, noise levels, pictures, a verdict."""

import math

import numpy as np

from entropic.images import metrics
from entropic.images.data import paper_table
from studies.montage import draw_montage
from studies.published.filling import fill, gallery, rows, schedules
from studies.report import read_recorded, save_figure, save_table
from studies.statistics import student

__all__ = ["beside_paper", "results", "show_gallery", "show_schedules", "show_tables", "verdict"]


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
        row |= {"paper": float(theirs["value"]), "ours": "not run here", "difference": "", "within noise": ""}
        if ours:
            mean, std = float(np.mean(ours)), float(np.std(ours, ddof=1)) if len(ours) > 1 else math.nan
            row["ours"] = f"{mean:.4g}" + (f" ± {std:.2g}" if len(ours) > 1 else "")
            row["difference"] = f"{mean - row['paper']:+.3g}"
            if len(ours) > 1:
                width = student(len(ours)) * std * math.sqrt(1 + 1 / len(ours))
                row["within noise"] = "yes" if abs(mean - row["paper"]) <= width else "no"
        beside.append(row)
    return beside


# What the pages show


def results(experiment, page, run):
    """Rows of an experiment, and where they come from in words: made now where `run`, else recorded, else none.

    page: the notebook's name, under which results are recorded.
    """
    if run:
        fill(experiment, progress=False)
        found, origin = rows(experiment), f"Ours: {experiment.images:,} images a run, {experiment.runs} runs."
        save_table(found, "rows", f"Every run. {origin}")
        return found, origin
    about, columns = read_recorded(page, "rows") or (None, {})
    found = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if about is None:
        return found, f"Ours: not run here; to run it: {_command(page)}."
    commit = (about["commit"] or "unknown")[:7]
    return found, f"Ours recorded on {about['device']}, {about['created'][:10]}, commit {commit}."


def show_tables(tables, found, origin):
    """The paper's tables, ours beside them, and the rows in which the paper's own schedule is not ahead."""
    heads = {"network": "network", "snapshot_tuned_for": "tuned for", "solver": "DDIM", "nfe": "NFE"}
    heads |= {"metric": "metric"}
    for table in tables:
        wide, dataset = {}, paper_table(table)[0]["dataset"]
        for row in beside_paper(table, found):
            row["solver"] = row["solver"].removesuffix(" DDIM")
            line = wide.setdefault(tuple(row[name] for name in heads), {name: row[name] for name in heads})
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
            f"Table {table} of the paper, {dataset}; lower is better. {origin}{_floors(found)}",
            columns={name: heads.get(name, name) for name in shown},
        )
    values = {(where, schedule): value for where, schedule, value in _theirs(tables)}
    behind = [
        dict(zip(heads, where, strict=True))
        | {name: float(values[where, name]) for name in ("EDM", "rescaled entropic")}
        for where in _compared(_theirs(tables))[1]
    ]
    if behind:
        save_table(
            behind,
            "behind",
            "The rows of the paper in which its rescaled schedule is not ahead of EDM's, in the paper's own numbers.",
            columns={name: heads.get(name, name) for name in behind[0] if any(line[name] for line in behind)},
        )


def _floors(found):
    """A sentence that tells the floors that rows hold; "" where they hold none."""
    held = {name.removesuffix(" floor"): value for name, value in found[0].items()} if found else {}
    told = [f"{name} {float(value):.3g}" for name, value in held.items() if f"{name} floor" in found[0]]
    return f" As many images of a perfect generator would have {', '.join(told)}." if told else ""


def show_schedules(experiment, page, run, origin, calls=16):
    """Where the noise levels of each schedule lie: of this run, recorded, or a line that says it is not run."""
    if run:
        placed = {name: sigmas[:-1].tolist() for name, sigmas in schedules(experiment, calls).items()}
    else:
        _, placed = read_recorded(page, "schedules") or (None, {})
        placed = {name: values for name, values in placed.items() if name != "step"}
    if not placed:
        print(f"The error curve: not run here. To run it: {_command(page)}")
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
        "schedules",
        data={"step": range(calls)} | placed,
        caption=f"The {calls} noise levels of each schedule; error curve of {experiment.curve_network}. {origin}",
        alt="Rows of ticks on a logarithmic axis of noise, one row a schedule.",
    )


def show_gallery(experiment, page, run, nfe, seeds=range(8)):
    """The same seeds under each schedule, few network calls to many, a figure for each snapshot and schedule."""
    if not run:
        print(f"Pictures: not run here. To make them: {_command(page)}")
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


def _command(page):
    return f"make {page.replace('_', '-')}"


def verdict(page, tables, found=()):
    """The paper's claim that its schedule beats EDM's at the same NFE, as `studies.report.record_claims` takes it.

    Counted over rows of network, solver, NFE and metric: in the paper's own numbers, and in ours (of `rows`), where a
    row is won by the mean over runs.
    """
    theirs = _compared(_theirs(tables))
    labels = [extractor.label for extractor in metrics.EXTRACTORS.values()]
    ours = _compared(
        ((row["network"], row["tuned_for"], row["solver"], row["nfe"], label), row["schedule"], row[label])
        for row in found
        for label in labels
        if label in row
    )
    told, count = (
        f"the paper's own rows: won {len(theirs[0])} of {sum(map(len, theirs))}",
        sum(map(len, ours)),
    )
    dataset = paper_table(tables[0])[0]["dataset"]
    claim = {
        "id": f"published-{page.replace('_', '-')}",
        "claim": f"On {dataset}, with published networks and DDIM, the rescaled schedule is closer to the data than "
        "EDM's at the same NFE.",
        "paper": f"Section 6.2, table{'s' * (len(tables) > 1)} {', '.join(map(str, tables))}",
        "tested": "notebooks/published.ipynb",
        "measured": f"{told}; ours: " + (f"won {len(ours[0])} of {count}" if count else "not run here"),
        "spread": f"{len({row['run'] for row in found})} runs" if found else "the paper gives single runs",
        "verdict": "not run here",
    }
    if count:
        full = not ours[1]
        claim["verdict"] = "holds" if full else "holds under a condition" if ours[0] else "does not hold"
        if ours[0] and not full:
            claim["condition"] = f"in {len(ours[0])} of {count} rows"
    return claim


def _theirs(tables):
    """The paper's values: (network, tuned for, solver, NFE, metric), schedule, value."""
    names = ("network", "snapshot_tuned_for", "solver", "nfe", "metric")
    return [
        (tuple(row[name] for name in names), row["schedule"], row["value"])
        for table in tables
        for row in paper_table(table)
    ]


def _compared(values):
    """Rows in which the rescaled schedule's mean is below EDM's, and those in which it is not."""
    kept = {}
    for where, schedule, value in values:
        kept.setdefault(where, {}).setdefault(schedule, []).append(float(value))
    won, lost = [], []
    for where, found in kept.items():
        if {"rescaled entropic", "EDM"} <= set(found):
            better = np.mean(found["rescaled entropic"]) < np.mean(found["EDM"])
            (won if better else lost).append(where)
    return won, lost
