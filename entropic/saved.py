"""Schedules and error curves on disk: read back bit for bit, checked by a sha256, with what they were made from."""

import datetime
import hashlib
import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from entropic import _check
from entropic._version import version
from entropic.curve import ErrorCurve
from entropic.files import load_arrays, write_atomically

__all__ = [
    "SavedCurve",
    "curve_sha256",
    "load_curve",
    "load_schedule",
    "save_curve",
    "save_schedule",
    "schedule_text",
]


# Schedules


def save_schedule(path, sigmas, **provenance):
    """Write sigmas (N + 1,) to `path` (*.json) as exact decimals, with their sha256 and their provenance.

    `provenance` is what JSON can hold, by name: schedule, solver, metric, alpha, commit and so on. Of an `ErrorCurve`
    its `curve_sha256` is kept. n, sigma_min and sigma_max are taken from the sigmas. The version of this package and
    the date (UTC) are added unless they are given. The file is replaced as a whole or not at all.
    ValueError: another suffix; sigmas that no sampler takes; provenance that JSON cannot hold, or that contradicts the
    sigmas.
    """
    path = _suffixed(path, ".json")
    write_atomically(path, schedule_text(sigmas, **provenance).encode())


def schedule_text(sigmas, **provenance):
    """The text that `save_schedule` writes."""
    sigmas = _check.schedule(sigmas).cpu()
    known = {"n": len(sigmas) - 1, "sigma_min": sigmas[-2].item(), "sigma_max": sigmas[0].item()}
    for name in known.keys() & provenance.keys():
        if provenance[name] != known[name]:
            raise ValueError(
                f"{name} = {provenance[name]!r}, but the sigmas have {known[name]!r}; leave it out"
            )
    content = {
        "sigmas": sigmas.tolist(),
        "sha256": _schedule_sha256(sigmas),
        "provenance": _told(provenance) | known,
    }
    return json.dumps(content, indent=1) + "\n"


def load_schedule(path):
    """(sigmas (N + 1,) float64, provenance), as `save_schedule` wrote them, bit for bit.

    ValueError: a file that is truncated or altered, or whose sigmas are not numbers that descend to 0; the message
    names the file. FileNotFoundError: there is no such file.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not whole JSON ({error}); it is truncated or no schedule, save it again"
        ) from error
    if not isinstance(content, dict) or not {"sigmas", "sha256", "provenance"} <= content.keys():
        raise ValueError(f"{path} lacks sigmas, sha256 or provenance; it was not written by save_schedule")
    sigmas, provenance = content["sigmas"], content["provenance"]
    if not isinstance(sigmas, list) or not all(type(sigma) in (int, float) for sigma in sigmas):
        raise ValueError(f"{path}: sigmas is not a list of numbers; save it again")
    if not isinstance(provenance, dict):
        raise ValueError(f"{path}: provenance = {provenance!r} is not an object; save it again")
    try:
        sigmas = _check.schedule(sigmas)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from error
    _compare(path, content["sha256"], _schedule_sha256(sigmas))
    return sigmas, provenance


# Error curves


class SavedCurve(NamedTuple):
    """What `load_curve` returns: an `ErrorCurve`, two tensors (m,) of its directions or None, and its provenance."""

    curve: ErrorCurve
    multiplicity: torch.Tensor | None
    amplitudes: torch.Tensor | None
    provenance: dict


def save_curve(path, curve, *, multiplicity=None, amplitudes=None, **provenance):
    """Write an `ErrorCurve` to `path` (*.npz), bit for bit, with a sha256 of the whole content.

    multiplicity (m,) > 0 is the number of basis vectors behind each of the curve's directions, and amplitudes (m,) >= 0
    are those of the data: `Basis.multiplicity` and `amplitudes` of `entropic.bases`. `provenance` and ValueError are as
    in `save_schedule`.
    """
    path = _suffixed(path, ".npz")
    arrays = _arrays(curve)
    about = _told(provenance)
    arrays |= _per_direction(curve, {"multiplicity": multiplicity, "amplitudes": amplitudes})
    arrays["provenance"] = np.array(json.dumps(about))
    buffer = io.BytesIO()
    np.savez(buffer, sha256=_digest(arrays), **arrays)
    write_atomically(path, buffer.getvalue())


def load_curve(path):
    """The `SavedCurve` that `save_curve` wrote, bit for bit. ValueError: a truncated or altered file, or no curve."""
    path = Path(path)
    try:
        arrays = load_arrays(path)
    except ValueError as error:
        raise ValueError(f"{error}; it is truncated or altered, save it again") from error
    lacking = {"sigma", "eps2", "sha256", "provenance"} - arrays.keys()
    if lacking:
        raise ValueError(f"{path} lacks {', '.join(sorted(lacking))}; it was not written by save_curve")
    _compare(path, str(arrays.pop("sha256")), _digest(arrays))
    try:
        about = json.loads(str(arrays.pop("provenance")))
        tensors = {name: torch.from_numpy(value) for name, value in arrays.items() if value.ndim}
        scalars = {name: value.item() for name, value in arrays.items() if not value.ndim}
        more = {name: tensors.pop(name, None) for name in ("multiplicity", "amplitudes")}
        curve = ErrorCurve(**tensors, **scalars)
        _per_direction(curve, more)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    return SavedCurve(curve, **more, provenance=about)


def curve_sha256(curve):
    """sha256 (hex) of all that an `ErrorCurve` holds: names, shapes and float64 bytes."""
    return _digest(_arrays(curve))


def _arrays(curve):
    if not isinstance(curve, ErrorCurve):
        raise ValueError(f"curve = {curve!r}; pass an entropic.ErrorCurve")
    kept = {"sigma": curve.sigma, "eps2": curve.eps2, "directions": curve.directions}
    # Standard errors follow from a covariance, and `ErrorCurve` takes one of the two.
    kept |= {"stderr": curve.stderr} if curve.covariance is None else {"covariance": curve.covariance}
    arrays = {name: value.cpu().numpy() for name, value in kept.items() if value is not None}
    if curve.dim is not None:
        arrays["dim"] = np.array(curve.dim, "<i8")
    if curve.total_variance is not None:
        arrays["total_variance"] = np.array(curve.total_variance, "<f8")
    if curve.common_samples:
        arrays["common_samples"] = np.array(True)
    return arrays


def _per_direction(curve, given):
    """The given tensors, one a direction of the curve, as arrays."""
    arrays = {}
    for name, value in given.items():
        if value is None:
            continue
        value = _check.as_float64(name, value).cpu()
        shape = None if curve.directions is None else tuple(curve.directions.shape[1:])
        if shape is None or tuple(value.shape) != shape:
            found = "no directions" if shape is None else f"{shape[0]} directions"
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, but the curve has {found}; pass one for each"
            )
        if not (value > 0 if name == "multiplicity" else value >= 0).all():
            least = "above 0" if name == "multiplicity" else "at least 0"
            raise ValueError(f"{name} = {value.min().item()} at its lowest; each must be {least}")
        arrays[name] = value.numpy()
    return arrays


# Shared pieces


def _suffixed(path, suffix):
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"path = {path}; name it *{suffix}")
    return path


def _told(provenance):
    """The provenance of a file as JSON can hold it, with version and date where they are not given."""
    told = {}
    for name, value in provenance.items():
        if isinstance(value, ErrorCurve):
            name, value = f"{name}_sha256", curve_sha256(value)
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name} = {value!r}; JSON does not hold it: pass text or finite numbers"
            ) from error
        told[name] = value
    now = datetime.datetime.now(datetime.timezone.utc)
    return {"version": version, "date": now.isoformat(timespec="seconds")} | told


def _schedule_sha256(sigmas):
    return hashlib.sha256(sigmas.numpy().astype("<f8").tobytes()).hexdigest()


def _digest(arrays):
    """sha256 over names, types, shapes and little-endian bytes."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        array = array.astype(array.dtype.newbyteorder("<"))
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _compare(path, expected, found):
    if found != expected:
        raise ValueError(
            f"{path} is altered: its sha256 is {found}, not {expected} as it says; save it again"
        )
