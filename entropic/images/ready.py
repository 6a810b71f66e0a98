"""Grids that are ready for networks whose error curve was measured here, as diffusers' AysSchedules are for theirs.

`ready_sigmas("fashion-mnist", 8, "heun")` reads them; `python -m entropic.images.ready` made them: a curve of 64 levels
and 256 samples each, then `plan` with a free last level for every solver and number of levels.
"""

import json
from pathlib import Path

import torch

from entropic import _check
from entropic.files import write_atomically
from entropic.placement import plan
from entropic.saved import curve_sha256, load_curve, save_curve
from entropic.schedules import edm_sigmas
from entropic.solvers import SOLVERS, find_solver

__all__ = ["READY", "ready_curve", "ready_sigmas"]

READY = ("fashion-mnist",)
_FOLDER = Path(__file__).parent / "assets" / "ready"
_LEVELS = (4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
_RANGE = 0.002, 80.0


def ready_sigmas(network, n, solver):
    """Sigmas (n + 1,) float64 for a network of `READY`, n levels and a solver (any of its names).

    ValueError: another network, or a number of levels that is not kept: `plan` places it from `ready_curve` then.
    """
    grids = _kept(network)["grids"][find_solver(solver).name]
    if str(n) not in grids:
        raise ValueError(
            f"n = {n}; {network} has grids of {', '.join(grids)} levels: take one of these, or "
            f"plan(n, ready_curve({network!r}), {solver!r}, free_end=True)"
        )
    return _check.schedule(grids[str(n)])


def ready_curve(network):
    """The `ErrorCurve` that the grids of a network were made from. ValueError: a network that is not in `READY`."""
    return load_curve(_FOLDER / f"{_known(network)}.npz").curve


def _known(network):
    if network not in READY:
        raise ValueError(f"network = {network!r}; grids are ready for {', '.join(READY)}")
    return network


def _kept(network):
    return json.loads((_FOLDER / f"{_known(network)}.json").read_text("utf-8"))


def _make(network):
    """Measure the curve of a network of this package, and keep it and its grids with their provenance."""
    from entropic.estimate import estimate
    from entropic.images.data import load_images, to_pixels
    from entropic.images.networks import load_network
    from entropic.images.networks.weights import fingerprint

    torch.set_num_threads(1)
    found, data = load_network(network), load_images(network, "train", "embedded")
    sigma = edm_sigmas(64, *_RANGE)[:-1].flip(0)
    options = {"samples": 256, "common_noise": False, "seed": 0, "batch": 64}
    curve = estimate(
        found, to_pixels(data.images), sigma, labels=data.labels, progress=True, **options
    ).curve()
    told = {
        "network": network,
        "weights": fingerprint(found),
        "data": "Fashion-MNIST (embedded subset)",
        "calls": 64 * 256,
    }
    _FOLDER.mkdir(exist_ok=True)
    save_curve(_FOLDER / f"{network}.npz", curve, **told)
    grids = {
        solver: {
            str(n): plan(n, curve, solver, None, *_RANGE, free_end=True).sigmas.tolist() for n in _LEVELS
        }
        for solver in SOLVERS
    }
    content = {"provenance": told | {"curve_sha256": curve_sha256(curve)}, "grids": grids}
    write_atomically(_FOLDER / f"{network}.json", (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    for one in READY:
        _make(one)
