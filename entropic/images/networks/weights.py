"""Weights on disk: safetensors with a JSON file beside it that holds their sha256 and all else about them."""

import contextlib
import hashlib
import json
import os
import re
import time
from pathlib import Path

import torch

from entropic import _check
from entropic.files import file_sha256, replaced, write_atomically

__all__ = [
    "fingerprint",
    "load_module",
    "load_weights",
    "plain_torch",
    "reading",
    "remember_sha256",
    "remembered_sha256",
    "safe_tensors",
    "save_weights",
]

_LARGE = 1 << 26  # bytes; what is smaller is hashed in a tenth of a second
_SETTLED = 2.0  # seconds: a file system may give two writes within this time the same time stamp


@contextlib.contextmanager
def reading(path, remedy):
    """The block reads the file `path`, which the user named; whatever goes wrong there is a ValueError.

    Its message names the file, says what went wrong and ends with `remedy`. FileNotFoundError and PermissionError,
    which name the file themselves, and ModuleNotFoundError, a package that is missing, pass as they are.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, ModuleNotFoundError):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}".partition("\n")[0][:400]
        raise ValueError(f"{path} cannot be read ({said}); {remedy}") from error


@contextlib.contextmanager
def plain_torch():
    """The block builds a network as a fresh process does, whatever the caller has set.

    Default dtype float32, default device the CPU, no gradients, no inference mode. The default dtype belongs to the
    whole process: other threads see float32 for as long.
    """
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(kept)


def safe_tensors():
    """The package safetensors, imported at its first use; ModuleNotFoundError says what to install."""
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise _check.not_installed(error, "images") from error
    return safetensors


def save_weights(path, tensors, info):
    """Write `tensors` (name -> tensor) to PATH.safetensors and `info` with their sha256 to PATH.json.

    Each file is written under a temporary name and moved. Returns the sha256. ValueError: another suffix.
    """
    path = _safetensors(path)
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # by the umask; safetensors would make it the owner's alone
        safe_tensors().torch.save_file(held, temporary)
        temporary.chmod(mode)
        digest = file_sha256(temporary)
    text = json.dumps({**info, "sha256": digest}, indent=1) + "\n"
    write_atomically(path.with_suffix(".json"), text.encode())
    return digest


def load_weights(path, convert=torch.clone, *, record=None):
    """(tensors, info) as `save_weights` wrote them; `convert` is applied to each tensor as it is read.

    The file is mapped into memory, 16 MB of it at a time, so that reading takes no more memory than what `convert`
    returns; `convert` returns a tensor with memory of its own. With `record`, the sha256 of a file that has not
    changed is not computed again (`remembered_sha256`).
    ValueError: a file whose sha256 is not the one in the JSON beside it, with both; damaged files.
    FileNotFoundError: either is missing.
    """
    path = _safetensors(path)
    beside = path.with_suffix(".json")
    for file in (path, beside):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing; weights are two files, {path.name} and {beside.name}"
            )
    with reading(beside, "fetch or train the weights again"):
        info = json.loads(beside.read_text("utf-8"))
        if not isinstance(info, dict) or not isinstance(info.get("sha256"), str):
            raise ValueError("it holds no sha256 of the weights")
    found = file_sha256(path) if record is None else remembered_sha256(path, record)
    if found != info["sha256"]:
        raise ValueError(
            f"{path} is truncated or altered: expected sha256 {info['sha256']}, found {found}; fetch or train it again"
        )
    with reading(path, "fetch or train it again"):
        return {name: convert(value) for name, value in _mapped(path)}, info


def load_module(path, make, kind):
    """The network `make(tensors, info)` of the weights at `path` (`load_weights`), built as in a fresh process.

    ValueError, which names the file: as in `load_weights`, or weights that are not those of `kind` ("a SmallUNet").
    """
    with plain_torch():
        tensors, info = load_weights(path)
        with reading(path, f"it and its .json are not the weights of {kind}; fetch or train them again"):
            return make(tensors, info)


def _mapped(path, piece=1 << 24):
    """(name, tensor) of a file of safetensors; a tensor is part of the mapped file and is not to be kept.

    A new mapping is made after every `piece` bytes: the pages of the old one no longer count as this process's memory.
    """
    open_file = safe_tensors().safe_open
    with open_file(str(path), framework="pt", device="cpu") as file:
        names = list(file.keys())
    while names:
        read = 0
        with open_file(str(path), framework="pt", device="cpu") as file:
            while names and read < piece:
                value = file.get_tensor(names[0])
                yield names.pop(0), value
                read += value.nbytes
                del value


def remembered_sha256(path, record):
    """sha256 of a file; for one of 64 MB and more, computed only where the file has changed since the last time.

    `record`, a JSON file, keeps the sha256 of each file with its size, inode and times of last change. The time of the
    last change of the inode (ctime) is set by the system at every write, so an altered file is hashed anew. A file
    that was written less than 2 s ago is not kept yet: a second write could leave the same times. A record that
    cannot be read, or written where it is to be, costs time only.
    """
    path, record = Path(os.path.abspath(path)), Path(record)
    if path.stat().st_size < _LARGE:
        return file_sha256(path)
    before, (*stamp, digest) = _stamp(path), _known(record).get(str(path), [None])
    if stamp == before:
        return digest
    started, digest = time.time(), file_sha256(path)
    if _stamp(path) == before and started - before[-1] / 1e9 > _SETTLED:
        _remember(record, path, [*before, digest])
    return digest


def remember_sha256(path, record, digest):
    """Keep in `record`, for `remembered_sha256`, the sha256 of a file that this process has just moved to its place."""
    path = Path(os.path.abspath(path))
    _remember(Path(record), path, [*_stamp(path), digest])


def _stamp(path):
    about = path.stat()
    return [about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def _known(record):
    """The entries of a record; what is no entry is left out, and a record that cannot be read has none."""
    try:
        entries = json.loads(record.read_text("utf-8")).items()
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    return {
        name: entry
        for name, entry in entries
        if isinstance(entry, list) and len(entry) == 6 and re.fullmatch("[0-9a-f]{64}", str(entry[-1]))
    }


def _remember(record, path, entry):
    known = {name: value for name, value in _known(record).items() if os.path.exists(name)}
    with contextlib.suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(record, json.dumps({**known, str(path): entry}, indent=1).encode())


def fingerprint(network):
    """sha256 of names, types, shapes and bytes of all weights and buffers of a module, wherever they lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _safetensors(path):
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path = {path}; weights are named *.safetensors")
    return path
