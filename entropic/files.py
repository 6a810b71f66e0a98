"""Everything that touches a disk: folders, whole writes, locks, checksums, resumable arrays."""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import tempfile
import time
import uuid
import warnings
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

__all__ = [
    "ArrayStore",
    "cache",
    "environment_path",
    "file_sha256",
    "keep",
    "keep_arrays",
    "load_arrays",
    "only_writer",
    "replaced",
    "write_atomically",
]

_OLD = 86_400.0  # seconds: each write moves the time of a file, so an older temporary one has lost its writer
_PAUSE = 5.0  # seconds between two writes of an `ArrayStore`


# Places


def environment_path(name):
    """The absolute path that the environment variable `name` holds; None where it is unset or empty.

    `~` is expanded. A relative path is taken from the working directory at the first use; for the variables that this
    package reads, that is the import of this module. The variable is then set to the absolute path, so that it means
    the same after a change of directory and in a child process. ValueError: a `~` whose home folder is not known.
    """
    value = os.environ.get(name)
    if not value:
        return None
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name} = {value!r}: {error}; pass a path without ~") from error
    if str(path.absolute()) != value:
        os.environ[name] = str(path.absolute())
    return path.absolute()


def cache():
    """The folder of whatever is kept between runs: $ENTROPIC_CACHE, or ~/.cache/entropic.

    A user without a home folder gets one in the folder for temporary files, which only this user may read.
    ValueError: another user has taken that one's name.
    """
    chosen = environment_path("ENTROPIC_CACHE")
    if chosen is not None:
        return chosen
    try:
        return Path.home() / ".cache" / "entropic"
    except RuntimeError:  # no HOME, and a user of whom the system knows nothing
        folder = Path(tempfile.gettempdir()).absolute() / f"entropic-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise ValueError(
                f"{folder} is not yours, and no home folder is known; set ENTROPIC_CACHE to a folder of yours"
            ) from None
        return folder


for _name in ("ENTROPIC_CACHE", "ENTROPIC_DATA", "ENTROPIC_INCEPTION", "ENTROPIC_DINOV2", "ENTROPIC_VAE"):
    with contextlib.suppress(ValueError, OSError):  # told when it is used
        environment_path(_name)


# Whole writes and locks


@contextlib.contextmanager
def replaced(path):
    """A temporary path beside `path`, for the block to write; moved to `path` when the block ends without error.

    The temporary name is unique, so that two processes never share one, and the file is removed when the block
    fails. Its content reaches the disk before it is moved; who may read it follows the umask. What a killed process
    left in the same folder is removed a day later, by the next such write there.
    OSError, which names `path`: its folder is missing or cannot be written, the disk is full, the name is too long.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "its folder does not exist; make it first", str(path))
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sweep(path.parent)
    except OSError as error:
        if error.filename is not None and os.fspath(error.filename) == str(temporary):
            raise type(error)(error.errno, f"cannot be written: {error.strerror}", str(path)) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _sweep(folder):
    """Remove what killed writers left in a folder. Age alone tells: a writer on another machine cannot be asked."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):  # it was moved, or another process removes it
            if re.fullmatch(r"\.[0-9a-f]{32}\.tmp", path.name) and time.time() - path.stat().st_mtime > _OLD:
                path.unlink()


def write_atomically(path, content):
    """Write bytes to `path`, as a whole or not at all; see `replaced`."""
    with replaced(path) as temporary:
        temporary.write_bytes(content)


_told = set()  # folders of which it was said that they cannot be written


def keep(path, write):
    """Write a file of a cache where that is possible; True if it was written.

    `write` is bytes, or a function that writes them to the temporary path that it is given. Missing folders are made.
    Where the cache cannot be written (it is read-only, or full), a warning says so once for each folder, and the
    caller goes on.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as temporary:
            if callable(write):
                write(temporary)
            else:
                temporary.write_bytes(write)
    except OSError as error:
        if path.parent not in _told:
            _told.add(path.parent)
            warnings.warn(
                f"{path} is not kept ({error}), and will be made again the next time; "
                "set ENTROPIC_CACHE, or pass a path, to a folder that can be written",
                stacklevel=3,
            )
        return False
    return True


@contextlib.contextmanager
def only_writer(folder, what):
    """Hold the lock of a folder for the block. ValueError: another process holds it; `what` says what writes there."""
    folder = Path(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"{folder} is being written by another {what}; wait for it, or name another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def file_sha256(path):
    """The sha256 of a file's bytes, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


# Arrays


def load_arrays(path):
    """All arrays of an .npz file, by name. ValueError: a file that is no npz, or a damaged one; the message names it.

    OSError: the file is not there or may not be read.
    """
    content = Path(path).read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # a damaged zip or header fails in a dozen ways
        raise ValueError(f"{path} is no whole npz ({error or type(error).__name__})") from error


def keep_arrays(path, **arrays):
    """Write an .npz of arrays, by name, to a cache; see `keep`."""

    def write(temporary):
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    return keep(path, write)


class ArrayStore:
    """Arrays that a long computation fills step by step, kept in one .npz, so that a stopped run goes on.

    `state`: the arrays, by name; where there is a file, its arrays are copied into them. `key`: what the arrays belong
    to, by name, as JSON can hold it: arguments, seeds, the sha256 of contents (`entropic.identity.content_sha256`).
    `probes`: arrays by name that must agree with those of the file to 1e-6; a function is known by its answer to a
    fixed question. `what`: the kind of computation, for messages. Where `path` is None nothing is kept.

    A damaged store is computed anew, and a folder that cannot be written is left, each with a warning.
    ValueError: the file is something else, or was made with another key; it stays as it is.
    """

    def __init__(self, path, key, state, *, probes=None, what="a computation"):
        self._path, self._state = None if path is None else Path(path), state
        self._fixed = {"key": np.array(json.dumps(key))}
        self._fixed |= {f"probe/{name}": value for name, value in (probes or {}).items()}
        self._last, self._pause = time.monotonic(), _PAUSE
        if self._path is not None and self._path.exists():
            self._read(key, what)

    def _read(self, key, what):
        try:
            kept = load_arrays(self._path)
        except ValueError as error:
            with self._path.open("rb") as file:
                start = file.read(37)
            if start and not (start.startswith(b"PK\x03\x04") and start[30:] == b"key.npy"):
                raise ValueError(
                    f"store = {self._path} is not the store of {what}; name another path, or remove it ({error})"
                ) from error
            warnings.warn(f"store = {self._path} is damaged and is computed anew ({error})", stacklevel=4)
            return
        try:
            found = json.loads(str(kept["key"]))
            other = [
                name for name in {**key, **found} if found.get(name) != json.loads(json.dumps(key.get(name)))
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"store = {self._path} is not the store of {what}; name another path, or remove it ({error!r})"
            ) from error
        probes = {name: value for name, value in self._fixed.items() if name != "key"}
        names = {*self._fixed, *self._state}
        if {*kept} != names or not all(
            kept[name].shape == probe.shape and np.allclose(kept[name], probe, rtol=1e-6)
            for name, probe in probes.items()
        ):
            other.append("bases" if probes or any(name.startswith("probe/") for name in kept) else "arrays")
        if not other:
            other = [
                name
                for name, array in self._state.items()
                if (kept[name].shape, kept[name].dtype) != (array.shape, array.dtype)
            ]
        if other:
            raise ValueError(
                f"store = {self._path} was made with other {', '.join(other)}; pass those or another path"
            )
        for name, array in self._state.items():
            array[...] = kept[name]

    def save(self, now=False):
        """Write the arrays, if some seconds have passed since the last time, or `now`."""
        if self._path is None or (not now and time.monotonic() - self._last < self._pause):
            return
        began = time.monotonic()
        keep_arrays(self._path, **self._fixed, **self._state)
        self._last = time.monotonic()
        # A large store may take long to write. Writing shall take at most a twentieth of the time.
        self._pause = max(_PAUSE, 20 * (self._last - began))
