"""Fills the store of an experiment: error curve, images and features, cell by cell; what is there is not made again."""

import contextlib
import datetime
import functools
import json
import math
import os
import re
import time

import torch

from entropic.bases import amplitudes, fourier_basis
from entropic.estimate import curve_from_logvar, estimate
from entropic.files import file_sha256, write_atomically
from entropic.images import metrics
from entropic.images.data import check_images, load_images, load_states, to_pixels, to_uint8
from entropic.images.generate import generate, load_generated, load_manifest, local_device, missing_shards
from entropic.images.networks.snapshot import load_snapshot
from entropic.saved import load_curve, save_curve
from entropic.schedules import edm_sigmas, rescaled_sigmas
from entropic.solvers import sample_heun
from studies.published.experiment import SCHEDULES, SOLVERS, file_of

__all__ = ["error_curve", "fill", "gallery", "rows", "schedules"]


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
        for snapshot in experiment.snapshots:
            network = _network(snapshot, device, experiment.compiled)
            decode = _decoder(network, device)
            for cell in experiment.cells():
                solver, calls, schedule, run = cell
                out = _folder(experiment, snapshot, cell)
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

    Algorithm 2 of the paper on the smallest network; computed once, by the first process, and kept in a folder that
    bears the beginning of the sha256 of the network's file: another file has another curve, whatever its name.
    ValueError: the folder's curve was made with other parameters, or from other images.
    """
    snapshot, device = experiment.curve_snapshot, local_device()
    folder = _curve_folder(experiment)
    path = folder / "curve.npz"
    about = {
        "snapshot_sha256": snapshot.sha256,
        "curve_data": experiment.curve_data,
        "curve_data_sha256": _data_sha256(experiment.curve_data),
        "curve_levels": experiment.curve_levels,
        "curve_samples": experiment.curve_samples,
    }
    if not path.is_file():
        network = _network(snapshot, device, compiled=False)
        x, labels = _curve_data(experiment, network, device, progress)
        _barrier()
        if _ranks()[0] == 0:
            folder.mkdir(parents=True, exist_ok=True)
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
                store=folder / "estimate.npz",
                tag=snapshot.label,
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
        other = kept.provenance.get(name)
        if other != value:
            raise ValueError(
                f"{name} = {value!r}, but {path} was made with {other!r}; pass that, or another store"
            )
    return kept.curve, kept.amplitudes


def schedules(experiment, calls):
    """Sigmas of `calls` network calls by the name of each schedule, and by EDM2's learned loss where it has one."""
    curve, amplitude = error_curve(experiment)
    found = {name: SCHEDULES[name](calls, curve, amplitude) for name in experiment.schedules}
    network = _network(experiment.curve_snapshot, "cpu", compiled=False)
    if hasattr(network, "logvar"):
        found["rescaled, learned loss"] = rescaled_sigmas(calls, curve_from_logvar(network, curve.sigma))
    return found


def rows(experiment):
    """One row a network, solver, NFE, schedule and run: its distances, and images a second where that is known.

    Beside each distance, say "FID", stands "FID floor": what as many images of a perfect generator would have
    (`metrics.expected_floor`). FileNotFoundError: images that are still to be made, by `fill`.
    """
    reference = metrics.load_reference(file_of(experiment.reference))
    floor_of = functools.cache(lambda name: metrics.expected_floor(reference[name], experiment.images).mean)
    found = []
    for snapshot in experiment.snapshots:
        for cell in experiment.cells():
            solver, calls, schedule, run = cell
            out = _folder(experiment, snapshot, cell)
            if not _complete(out):
                raise FileNotFoundError(
                    f"{out} is not complete; run `python -m studies.published {experiment.name}` first"
                )
            features = load_generated(out).features
            row = {
                "network": snapshot.network,
                "tuned_for": snapshot.tuned_for,
                "solver": solver,
                "nfe": calls,
                "schedule": schedule,
                "run": run,
            }
            for extractor in experiment.extractors:
                label = metrics.EXTRACTORS[extractor].label
                row[label] = metrics.distance(features[extractor], reference[extractor], allow_singular=True)
                row[f"{label} floor"] = floor_of(extractor)
            found.append(row | {"images_per_second": _speed(out)})
    return found


def gallery(experiment, snapshot, seeds, nfe, solver="deterministic DDIM"):
    """Images uint8 of the same seeds, by (schedule, NFE); kept, so that a second look costs nothing."""
    curve, amplitude = error_curve(experiment)
    device, found = local_device(), {}
    network = _network(snapshot, device, compiled=False)
    for schedule in experiment.schedules:
        for calls in nfe:
            cell = ("gallery", solver, calls, schedule, seeds[0])
            found[schedule, calls] = generate(
                network,
                SCHEDULES[schedule](calls, curve, amplitude),
                seeds,
                sampler=SOLVERS[solver],
                out=_folder(experiment, snapshot, cell),
                decode=_decoder(network, device),
                chunk=8,
            ).images
    return found


def _folder(experiment, snapshot, cell):
    """Where the images and features of one cell are kept."""
    name = "-".join(map(str, cell))
    return experiment.folder / snapshot.label / re.sub(r"\W+", "-", name)


def _curve_folder(experiment):
    return experiment.folder / f"curve-{experiment.curve_snapshot.label}"


def _network(snapshot, device, compiled):
    """A snapshot in the numbers it was published in, on the device."""
    network = load_snapshot(file_of(snapshot.name), dtype=None, device=device)
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
        x, labels = to_pixels(check_images(found.images, network.shape)[:10_000]), found.labels[:10_000]
    elif experiment.curve_data != "own":
        x, labels = load_states(experiment.curve_data, network.shape, network.num_classes)
    else:
        out = _curve_folder(experiment) / "images"
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


def _data_sha256(name):
    """Of the file that the error curve is taken from; "" where there is none."""
    return "" if name in ("own", "cifar10") else file_sha256(name)


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
