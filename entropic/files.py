"""Everything that touches a disk or the net: folders, whole writes, locks, checksums, resumable arrays, downloads."""

import contextlib
import errno
import hashlib
import http.client
import io
import json
import os
import re
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
import warnings
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

__all__ = [
    "ArrayStore",
    "cache",
    "download",
    "environment_path",
    "fetch",
    "file_sha256",
    "keep",
    "load_arrays",
    "only_writer",
    "replaced",
    "write_atomically",
]

_TIMEOUT = 10.0  # seconds for a server to answer, and between two pieces of its answer
_MOST = 2**36  # bytes: no file that is downloaded here has more
_ETAG = re.compile(r'"[!#-~]*"')  # a strong one: it changes with any byte of the file
_PAUSE = 5.0  # seconds between two writes of an `ArrayStore`


# Places


def environment_path(name):
    """The absolute path that the environment variable `name` holds; None where it is unset or empty.

    `~` is expanded, and a relative path is taken from the working directory of the first use (of the import of this
    module for the variables that this package reads). The variable is then set to the absolute path, so that neither
    a later change of directory nor a child process with another one gives it another meaning.
    ValueError: a `~` whose home folder is not known.
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
    fails. Its content reaches the disk before it is moved; who may read it follows the umask.
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
    except OSError as error:
        if error.filename is not None and os.fspath(error.filename) == str(temporary):
            raise type(error)(error.errno, f"cannot be written: {error.strerror}", str(path)) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_atomically(path, content):
    """Write bytes to `path`, as a whole or not at all; see `replaced`."""
    with replaced(path) as temporary:
        temporary.write_bytes(content)


_told = set()  # folders of which it was said that they cannot be written


def keep(path, write):
    """Write a file of a cache, where that is possible; whether it was.

    `write` is bytes, or a function of the temporary path that writes them there. Missing folders are made. Where the
    cache cannot be written (it is read-only, or full), one warning a folder says so, and the caller goes on.
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
    """Hold the lock of a folder for the block; ValueError, which says `what` writes there, if another has it."""
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
    """All arrays of an .npz file, by name. ValueError, which names the file: it is no npz, or a damaged one.

    OSError: it is not there or may not be read.
    """
    content = Path(path).read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # a damaged zip or header fails in a dozen ways
        raise ValueError(f"{path} is no whole npz ({error or type(error).__name__})") from error


class ArrayStore:
    """Arrays that a long computation fills step by step, kept in one .npz, so that a stopped run goes on.

    `state`: arrays by name; those of the file are copied into them. `key`: what the arrays belong to, by name, as
    JSON holds it: arguments, seeds, sha256 of contents (see `entropic.identity.content_sha256`). `probes`: arrays by
    name that must agree with the file's to 1e-6, for functions that are known by an answer. `what`: whose store it
    is, for messages. With `path` None nothing is kept.

    A damaged store is told in a warning and computed anew; a folder that cannot be written is told in a warning.
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
        keep(self._path, self._write)
        self._last = time.monotonic()
        # A large store may take long to write: never more than a twentieth of the time.
        self._pause = max(_PAUSE, 20 * (self._last - began))

    def _write(self, temporary):
        with temporary.open("wb") as file:
            np.savez(file, **self._fixed, **self._state)


# Downloads


def fetch(url, path, *, sha256=None, size=None, note=""):
    """The file of `url` at `path`, for files whose authors give no checksum: trusted once, then held to that.

    The first file, downloaded or put there by hand, is trusted and its sha256 recorded beside it in
    PATH.sha256 (as sha256sum writes it), after which the file at `path` is checked against the record at every
    call, and so is another download. `sha256` pins it instead: nothing else is kept, and a record that differs
    gives way. Name, `size` (MB of 2^20 bytes, about), `note` (the licence) and this rule are told on stderr.
    ValueError: an altered file, with both checksums; an answer less than a tenth of `size`, as a proxy's page.
    FileNotFoundError: no file, and no server or one whose answer is not trusted (see `download`), with where to get
    the file and where to put it.
    """
    path = Path(path)
    record = path.with_name(f"{path.name}.sha256")
    expected, source = _digest("sha256", sha256), "as passed"
    if expected is None and record.is_file():
        expected, source = _recorded(record), f"as recorded in {record}"

    def tell(what):
        rule = (
            f"Its sha256 must be {expected}, {source}."
            if expected
            else "Its authors publish no sha256, so this first file is trusted; "
            f"its sha256 is recorded in {record}, and every later use is checked against that."
        )
        about = "" if size is None else f", about {size} MB"
        print(
            " ".join(filter(None, [f"{what} {path.name}{about}.", note, rule])), file=sys.stderr, flush=True
        )

    def verify(part, name):
        length = part.stat().st_size
        if length == 0 or (size is not None and length < size * 2**20 / 10):
            about = "" if size is None else f", about {size} MB"
            raise ValueError(
                f"{length} bytes came, which is not {name}{about}; look at what the address shows"
            )
        if expected:
            _compare(name, file_sha256(part), expected, source, f"nothing was kept{_renewal(record, sha256)}")

    if path.is_file():
        if expected is None:
            tell(f"Found {path.parent}{os.sep}")
    else:
        tell("Downloading")
        remedy = f"get it from there by any other way, and put it at {path}"
        most = _MOST if size is None else 10 * size * 2**20
        download(url, path, verify, remedy, most=most, pinned=expected is not None)
    found = file_sha256(path)
    if expected:
        remedy = f"delete it to fetch it again from {url}{_renewal(record, sha256)}"
        _compare(path, found, expected, source, remedy)
    if not record.is_file() or _recorded(record) != found:
        keep(record, f"{found}  {path.name}\n".encode())
    return path


def download(url, path, verify, remedy, *, most=_MOST, pinned=True):
    """Fetch `url` to `path` unless it is there, going on where an earlier try stopped; moved in place once verified.

    The unfinished file is PATH.part; PATH.part.json beside it holds the url, the ETag and the total length in bytes of
    what it is a part of. The next try asks for the rest of just that version (Range with If-Range), and begins anew
    where the server has another one, or gives no strong ETag. A file is whole once all bytes that the server told have
    come; only then `verify(file, name)` is called, which raises ValueError for a wrong file: nothing is then kept.

    `most`: bytes, above which an answer is refused. `pinned`: whether `verify` compares with a checksum known
    beforehand; if not, an answer whose end cannot be told from a cut connection is refused, too.
    FileNotFoundError with the reason and `remedy`: the server gave nothing, only a part, or an answer that does not fit
    what was asked.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part, path) as file:
            if path.is_file():  # another process fetched it meanwhile
                part.unlink(missing_ok=True)
                return
            _complete(url, file, part, most, pinned)
            try:
                verify(part, path.name)
            except ValueError as error:
                _drop(part)
                raise ValueError(f"{url}: {error}") from error
            os.replace(part, path)
            _about(part).unlink(missing_ok=True)
    except (OSError, http.client.HTTPException) as error:
        raise FileNotFoundError(f"{path} is absent and {url} cannot be had ({error}); {remedy}") from error


def _about(part):
    return part.with_name(f"{part.name}.json")


def _drop(part):
    """Remove an unfinished file and what is known of it."""
    for path in (_about(part), part):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(part, path):
    """The file `part`, open to read and write, once no other process writes it (where the system can tell)."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        if part.is_symlink():
            raise OSError(f"{part} is a symbolic link; remove it")
        if part.exists() and not part.is_file():
            raise OSError(f"{part} is no file; remove it")
        with os.fdopen(os.open(part, flags, 0o666), "r+b") as file:
            with contextlib.suppress(ImportError):
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            if path.is_file() or _is_at(
                file, part
            ):  # else whoever held the lock has moved or removed this one
                yield file
                return


def _is_at(file, path):
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def _complete(url, file, part, most, pinned):
    """Fill the open file `part` with all of `url`; OSError where that does not come."""
    from tqdm import tqdm

    known = _known(url, part)
    have = file.seek(0, os.SEEK_END)
    if known is None or have > known["total"]:
        have, known = 0, None
    if known is not None and have == known["total"]:
        return
    with _answer(url, have, known) as response:
        try:
            start, total = _span(response, have, known, most)
        except OSError:
            _drop(part)  # the next try begins anew
            raise
        if start == 0:
            file.truncate(0)
            etag = response.headers.get("ETag", "")
            strong = total is not None and _ETAG.fullmatch(etag)
            _about(part).unlink(missing_ok=True)
            if strong:
                write_atomically(
                    _about(part), json.dumps({"url": url, "etag": etag, "total": total}).encode()
                )
        chunked = response.headers.get("Transfer-Encoding", "").strip().lower() == "chunked"
        if total is None and not chunked and not pinned:
            raise OSError(
                "the server does not tell how long the file is, so that a part would pass for the whole"
            )
        have = file.seek(start)
        with tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=url.rpartition("/")[2]) as bar:
            while piece := response.read(1 << 18):
                have += len(piece)
                if have > (most if total is None else total):
                    _drop(part)
                    raise OSError(
                        f"more than {most if total is None else total} bytes came; nothing was kept"
                    )
                file.write(piece)
                bar.update(len(piece))
    file.flush()
    os.fsync(file.fileno())
    if total is not None and have != total:
        raise OSError(f"the connection ended after {have} of {total} bytes; run again to go on from there")


def _known(url, part):
    """{"url", "etag", "total"} of an unfinished file of `url`, or None where that is not known for certain."""
    try:
        known = json.loads(_about(part).read_bytes())
        fits = known["url"] == url and isinstance(known["etag"], str) and type(known["total"]) is int
        return known if fits and _ETAG.fullmatch(known["etag"]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _span(response, have, known, most):
    """(first byte, total or None) of an answer; OSError for one that does not fit what was asked."""
    lengths = {text.strip() for text in response.headers.get_all("Content-Length", [])}
    if len(lengths) > 1 or not all(re.fullmatch("[0-9]{1,18}", text) for text in lengths):
        raise OSError(
            f"the server tells the length as {', '.join(sorted(lengths))!r}, which is no number of bytes"
        )
    length = int(lengths.pop()) if lengths else None
    start, total = 0, length
    if response.status == 206:
        span = response.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", span.strip())
        if not have:
            raise OSError(f"the server sent a part ({span!r}) of which nobody asked")
        first, last, total = map(int, found.groups()) if found else (None, None, None)
        fits = (
            first == have
            and total == known["total"]
            and first <= last < total
            and length in (None, last - first + 1)
            and response.headers.get("ETag", known["etag"]) == known["etag"]
        )
        if not fits:
            raise OSError(
                f"the server sent {span!r} where bytes {have} to {known['total'] - 1} were asked for"
            )
        start = first
    elif response.status != 200:
        raise OSError(f"the server answered {response.status}")
    if total is not None and total > most:
        raise OSError(f"the server announces {total} bytes, and at most {most} are expected")
    return start, total


def _answer(url, start, known):
    """The server's answer from byte `start` on, in `_TIMEOUT` seconds: a name server may hang for longer."""
    box = []

    def ask(start):
        headers = {"Range": f"bytes={start}-", "If-Range": known["etag"]} if start else {}
        try:
            box.append(urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT))
        except urllib.error.HTTPError as error:
            if error.code != 416 or not start:
                box.append(error)
            else:  # nothing lies beyond `start`, so the server has another file now: from the beginning
                ask(0)
        except Exception as error:
            box.append(error)

    thread = threading.Thread(target=ask, args=(start,), daemon=True)
    thread.start()
    thread.join(1.2 * _TIMEOUT)
    if not box:
        raise TimeoutError(f"no answer within {1.2 * _TIMEOUT:g} s")
    if isinstance(box[0], Exception):
        raise box[0]
    return box[0]


def _digest(name, value):
    """`value` in lower case, or None as it is; ValueError unless it is a sha256."""
    if value is not None and not re.fullmatch("[0-9a-fA-F]{64}", str(value)):
        raise ValueError(f"{name} = {value!r}; pass the 64 hexadecimal digits that sha256sum prints")
    return None if value is None else value.lower()


def _recorded(record):
    words = record.read_text("utf-8", errors="replace").split() or [""]
    if not re.fullmatch("[0-9a-f]{64}", words[0]):
        raise ValueError(f"{record} does not start with a sha256; delete it to trust the file beside it anew")
    return words[0]


def _renewal(record, pinned):
    return "" if pinned else f", and {record} too if its authors have replaced it"


def _compare(what, found, expected, source, remedy):
    if found != expected:
        raise ValueError(f"{what}: sha256 is {found}, expected {expected}, {source}; {remedy}")
