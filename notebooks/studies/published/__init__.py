"""The paper's tables on published networks: error curve, schedules, images, features, distances; all resumable.

    torchrun --nproc-per-node N -m studies.published notebooks/imagenet512.ipynb [-p parameter value]

makes what the tables of that notebook need, with its parameters; the notebook then reads it and shows it.
"""

import ast
import contextlib
import dataclasses
import datetime
import json
import math
import os
import re
import time
from pathlib import Path

import numpy as np
import torch

from entropic import _check
from entropic.bases import amplitudes, fourier_basis
from entropic.estimate import curve_from_logvar, estimate
from entropic.files import cache, write_atomically
from entropic.images import metrics
from entropic.images.data import load_images, paper_table, to_pixels, to_uint8
from entropic.images.generate import generate, load_generated, load_manifest, local_device, missing_shards
from entropic.images.networks.published import fetch_published, find, published
from entropic.images.networks.snapshot import load_snapshot
from entropic.saved import load_curve, save_curve
from entropic.schedules import edm_sigmas, rescaled_sigmas, spectral_sigmas
from entropic.solvers import sample_ddim, sample_ddim_stochastic, sample_heun
from studies.report import draw_montage, read_recorded, save_figure, save_table

__all__ = [
    "Experiment",
    "beside_paper",
    "error_curve",
    "fill",
    "gallery",
    "results",
    "rows",
    "schedules",
    "show_gallery",
    "show_schedules",
    "show_tables",
    "verdict",
]

SOLVERS = {"deterministic DDIM": sample_ddim, "stochastic DDIM": sample_ddim_stochastic}
# As the paper's tables call them: what places n sigmas by the error curve and the data's amplitudes.
SCHEDULES = {
    "EDM": lambda n, curve, amplitude: edm_sigmas(n),
    "rescaled entropic": lambda n, curve, amplitude: rescaled_sigmas(n, curve),
    "spectral rescaled entropic": lambda n, curve, amplitude: spectral_sigmas(n, curve, amplitude),
}
_STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # 97.5 % quantile for that many runs


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One data set's part of the paper; the fields are the parameters of its notebook.

    dataset: as the paper's tables call it. networks: as they do ("EDM2-XS": every snapshot of it that is published
    for the data set), or names of snapshots (`images.networks.published`), or paths. curve_network: the one whose
    error curve all share, at `curve_levels` noise levels with `curve_samples` samples each; from images of
    `curve_data` ("cifar10", or a .npz of x (N, C, H, W) as the network sees it and labels (N,)), or from its own
    images where "" (32 steps of Heun). reference: statistics of real images, a published name or a path. Run r has
    the seeds r images, …, (r + 1) images - 1. keep_images: on the disk, beside their features. store: a folder,
    under the cache unless absolute.
    ValueError: a schedule, solver or extractor that is not there, numbers that are not.
    """

    dataset: str
    networks: list
    curve_network: str
    curve_data: str
    curve_levels: int
    curve_samples: int
    reference: str
    extractors: list
    solvers: list
    schedules: list
    nfe: list
    images: int
    runs: int
    chunk: int
    compiled: bool
    keep_images: bool
    store: str

    def __post_init__(self):
        for name, known in (
            ("solvers", SOLVERS),
            ("schedules", SCHEDULES),
            ("extractors", metrics.EXTRACTORS),
        ):
            for value in getattr(self, name):
                if value not in known:
                    raise ValueError(f"{name} holds {value!r}; it may hold {', '.join(map(repr, known))}")
        for name, least in (
            ("curve_levels", 4),
            ("curve_samples", 2),
            ("images", 2),
            ("runs", 1),
            ("chunk", 1),
        ):
            _check.integer(name, getattr(self, name), least)
        for calls in self.nfe:
            _check.integer("nfe", calls, 1)

    @classmethod
    def of(cls, parameters):
        """The experiment whose fields a mapping holds, such as a notebook's `globals()`."""
        return cls(**{field.name: parameters[field.name] for field in dataclasses.fields(cls)})

    @classmethod
    def of_notebook(cls, path, overrides=()):
        """The experiment that a notebook's `parameters` cell describes; overrides: pairs of name and value."""
        cells = json.loads(Path(path).read_text("utf-8"))["cells"]
        source = next(cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", []))
        lines = ast.parse("".join(source)).body
        found = {line.targets[0].id: ast.literal_eval(line.value) for line in lines}
        for name, value in overrides:
            if name not in found:
                raise ValueError(f"{path} has no parameter {name!r}; it has {', '.join(found)}")
            with contextlib.suppress(ValueError, SyntaxError):  # else it is text
                value = ast.literal_eval(value)
            found[name] = value
        return cls.of(found)

    @property
    def snapshots(self):
        """Names or paths of all snapshots."""
        return [name for network in self.networks for name in _snapshots(self.dataset, network)]

    @property
    def folder(self):
        """Where everything is kept."""
        return cache() / self.store


def fill(experiment, progress=True):
    """Make what is missing: the error curve, then images and their features, cell by cell.

    Under torchrun the processes share the images of each cell. A killed run goes on. Errors: as `load_snapshot`,
    `fetch_published`, `generate` and `entropic.images.metrics.feature_network`.
    """
    device, progress = local_device(), progress and _ranks()[0] == 0
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _together():
        curve, amplitude = error_curve(experiment, progress)
        features = {name: metrics.feature_network(name, device=device) for name in experiment.extractors}
        for name in experiment.snapshots:
            network = _network(name, device, experiment.compiled)
            decode = _decoder(network, device)
            for solver, calls, schedule, run in _cells(experiment):
                out = experiment.folder / _label(name) / _cell_name(solver, calls, schedule, run)
                began, fresh = time.perf_counter(), _untouched(out)
                made = generate(
                    network,
                    SCHEDULES[schedule](calls, curve, amplitude),
                    range(run * experiment.images, (run + 1) * experiment.images),
                    sampler=SOLVERS[solver],
                    out=out,
                    output="uint8" if experiment.keep_images else "none",
                    decode=decode,
                    features=features,
                    batch=4 * experiment.chunk,
                    chunk=experiment.chunk,
                    shard=min(512, 4 * experiment.chunk),
                    progress=progress,
                )
                if fresh:
                    _note_speed(out, len(made.labels), time.perf_counter() - began, device)


def error_curve(experiment, progress=False):
    """The `ErrorCurve` that all networks share, with its Fourier directions, and the data's amplitudes in them.

    Algorithm 2 of the paper on the smallest network; computed once, by the first process, and kept.
    ValueError: the store's curve was made with other parameters.
    """
    path = experiment.folder / "curve.npz"
    device, name = local_device(), _snapshots(experiment.dataset, experiment.curve_network)[0]
    about = {
        "curve_network": _label(name),
        "curve_data": experiment.curve_data,
        "curve_levels": experiment.curve_levels,
        "curve_samples": experiment.curve_samples,
    }
    if not path.is_file():
        network = _network(name, device, compiled=False)
        x, labels = _curve_data(experiment, network, device, progress)
        _barrier()
        if _ranks()[0] == 0:
            basis = fourier_basis(network.shape)
            found = estimate(
                network,
                x,
                edm_sigmas(experiment.curve_levels)[:-1].flip(0),
                labels=labels,
                samples=experiment.curve_samples,
                batch=experiment.chunk,
                bases={"fourier": basis},
                common_noise=False,
                store=experiment.folder / "estimate.npz",
                tag=_label(name),
                progress=progress,
            )
            save_curve(
                path,
                found.curve("fourier"),
                multiplicity=basis.multiplicity,
                amplitudes=amplitudes(basis, x).cpu(),
                **about,
            )
        _barrier()
    kept = load_curve(path)
    for name, value in about.items():
        if kept.provenance[name] != value:
            raise ValueError(
                f"{name} = {value!r}, but {path} was made with {kept.provenance[name]!r}; pass that, or another store"
            )
    return kept.curve, kept.amplitudes


def schedules(experiment, calls):
    """Sigmas of `calls` network calls by the name of each schedule, and by EDM2's learned loss where it has one."""
    curve, amplitude = error_curve(experiment)
    found = {name: SCHEDULES[name](calls, curve, amplitude) for name in experiment.schedules}
    network = _network(_snapshots(experiment.dataset, experiment.curve_network)[0], "cpu", compiled=False)
    if hasattr(network, "logvar"):
        found["rescaled, learned loss"] = rescaled_sigmas(calls, curve_from_logvar(network, curve.sigma))
    return found


def rows(experiment):
    """One row a network, solver, NFE, schedule and run: its distances, and images a second where that is known.

    FileNotFoundError: images that are still to be made, by `fill`.
    """
    reference = metrics.load_reference(_file(experiment.reference))
    found = []
    for name in experiment.snapshots:
        for solver, calls, schedule, run in _cells(experiment):
            out = experiment.folder / _label(name) / _cell_name(solver, calls, schedule, run)
            if not _complete(out):
                raise FileNotFoundError(
                    f"{out} is not complete; run studies.published on this notebook first"
                )
            features = load_generated(out).features
            row = {**_about(name), "solver": solver, "nfe": calls, "schedule": schedule, "run": run}
            for extractor in experiment.extractors:
                distance = metrics.frechet_distance(
                    *metrics.moments(features[extractor]), *reference[extractor][:2]
                )
                row[metrics.EXTRACTORS[extractor].label] = distance
            found.append(row | {"images_per_second": _speed(out)})
    return found


def gallery(experiment, name, seeds, nfe, solver="deterministic DDIM"):
    """Images uint8 of the same seeds, by (schedule, NFE); kept, so that a second look costs nothing."""
    curve, amplitude = error_curve(experiment)
    device, found = local_device(), {}
    network = _network(name, device, compiled=False)
    for schedule in experiment.schedules:
        for calls in nfe:
            found[schedule, calls] = generate(
                network,
                SCHEDULES[schedule](calls, curve, amplitude),
                seeds,
                sampler=SOLVERS[solver],
                out=experiment.folder
                / _label(name)
                / f"gallery-{_cell_name(solver, calls, schedule, seeds[0])}",
                decode=_decoder(network, device),
                chunk=8,
            ).images
    return found


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
                width = _STUDENT.get(len(ours), 2.6) * std * math.sqrt(1 + 1 / len(ours))
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
            f"Table {table} of the paper, {dataset}; lower is better. {origin}",
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
                caption=f"{schedule}, {_label(snapshot)}: seeds {seeds[0]} to {seeds[-1]}, deterministic DDIM; "
                "the number of network calls stands at the left.",
                alt=f"Rows of pictures made with the {schedule} schedule, from few network calls to many.",
            )


def _command(page):
    return f"make {page.replace('_', '-')}"


def verdict(id, tables, found=()):
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
        "id": id,
        "claim": f"On {dataset}, with published networks and DDIM, the rescaled schedule is closer to the data than "
        "EDM's at the same NFE.",
        "paper": f"Section 6.2, table{'s' * (len(tables) > 1)} {', '.join(map(str, tables))}",
        "tested": "this notebook",
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


def _cells(experiment):
    return [
        (solver, calls, schedule, run)
        for solver in experiment.solvers
        for calls in experiment.nfe
        for schedule in experiment.schedules
        for run in range(experiment.runs)
    ]


def _cell_name(solver, calls, schedule, run):
    return re.sub(r"\W+", "-", f"{solver}-{calls}-{schedule}-{run}")


def _snapshots(dataset, network):
    if _is_file(network):
        return [network]
    named = [one.name for one in published() if (one.dataset, one.network) == (dataset, network)]
    return named or [find(network).name]


def _label(name):
    return Path(name).stem if _is_file(name) else name


def _is_file(name):
    return Path(name).suffix in {".pkl", ".npz"} or os.sep in str(name)


def _file(name):
    return Path(name) if _is_file(name) else fetch_published(name)


def _about(name):
    """A snapshot's network and what its averaging was tuned for, as the paper's tables name them."""
    if _is_file(name):
        return {"network": Path(name).stem, "tuned_for": ""}
    one = find(name)
    return {"network": one.network, "tuned_for": one.tuned_for}


def _network(name, device, compiled):
    """A snapshot in the numbers it was published in, on the device."""
    network = load_snapshot(_file(name), dtype=None, device=device)
    if compiled and torch.device(device).type == "cuda":
        network.compile(mode="reduce-overhead")
    return network


def _decoder(network, device):
    if network.shape[0] != 4:
        return to_uint8
    from entropic.images.networks.vae import load_vae

    return load_vae(device=device).decode


def _curve_data(experiment, network, device, progress):
    """States (N, C, H, W) float32 as the network sees them, and their classes."""
    if experiment.curve_data == "cifar10":
        found = load_images("cifar10", "train", "full")
        x, labels = to_pixels(found.images[:10_000]), found.labels[:10_000]
    elif experiment.curve_data:
        with np.load(experiment.curve_data, allow_pickle=False) as kept:
            x = torch.from_numpy(kept["x"]).float()
            labels = torch.from_numpy(kept["labels"]).long()
    else:
        out = experiment.folder / "curve-images"
        seeds = range(2**40, 2**40 + experiment.curve_samples)
        options = {"batch": 4 * experiment.chunk, "chunk": experiment.chunk, "shard": 64}
        generate(
            network,
            edm_sigmas(32),
            seeds,
            sampler=sample_heun,
            out=out,
            output="float32",
            progress=progress,
            **options,
        )
        _barrier()
        x, labels, _ = load_generated(out)
    return x.to(device), labels.to(device) if network.num_classes else None


def _complete(out):
    try:
        return not missing_shards(out)
    except FileNotFoundError:
        return False


def _ranks():
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def _together():
    """One gloo group of all processes, for `_barrier` alone: images need no communication."""
    if _ranks()[1] == 1:
        yield
        return
    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(days=7))
    try:
        yield
        _barrier()
    finally:
        torch.distributed.destroy_process_group()


def _barrier():
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _untouched(out):
    """Whether this process has yet to make its first image of a cell: only then does its time tell its speed."""
    rank, world = _ranks()
    return not any(int(path.stem[-6:]) % world == rank for path in out.glob("labels-*.npy"))


def _note_speed(out, images, seconds, device):
    about = {"images": images, "seconds": seconds, "device": str(device)}
    write_atomically(out / f"speed-{_ranks()[0]}.json", json.dumps(about).encode())


def _speed(out):
    """Images a second of all processes together; NaN where a run was stopped in between."""
    found = [json.loads(path.read_text("utf-8")) for path in out.glob("speed-*.json")]
    whole = sum(one["images"] for one in found) == len(load_manifest(out)["seeds"])
    return sum(one["images"] / one["seconds"] for one in found) if whole else math.nan
