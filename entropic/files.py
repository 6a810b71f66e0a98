"""Everything that touches a disk or the net: the cache folder, whole writes, locks, checksums, downloads."""

import contextlib
import hashlib
import http.client
import os
import re
import sys
import threading
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["cache", "download", "fetch", "file_sha256", "only_writer", "replaced", "write_atomically"]

_TIMEOUT = 10.0  # seconds for a server to answer, and between two pieces of its answer


def cache():
    """The folder of whatever is kept between runs: $ENTROPIC_CACHE, or ~/.cache/entropic."""
    return Path(os.environ.get("ENTROPIC_CACHE") or Path.home() / ".cache" / "entropic")


@contextlib.contextmanager
def replaced(path):
    """A temporary path beside `path`, for the block to write; moved to `path` when the block ends without error.

    The temporary name is unique, so that two processes never share one, and it is removed when the block fails.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path, content):
    """Write bytes to `path`, as a whole or not at all; see `replaced`."""
    with replaced(path) as temporary:
        temporary.write_bytes(content)


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


def fetch(url, path, *, sha256=None, size=None, note=""):
    """The file of `url` at `path`, for files whose authors give no checksum: trusted once, then held to that.

    The first file, downloaded or put there by hand, is trusted and its sha256 recorded beside it in
    PATH.sha256 (as sha256sum writes it), after which the file at `path` is checked against the record at every
    call, and so is another download. `sha256` pins it instead: nothing else is kept, and a record that differs
    gives way. Name, `size` (MB of 2^20 bytes, about), `note` (the licence) and this rule are told on stderr.
    ValueError: an altered file, with both checksums; an answer less than a tenth of `size`, as a proxy's page.
    FileNotFoundError: no file and no server, with where to get it and where to put it.
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
        download(url, path, verify, remedy)
    found = file_sha256(path)
    if expected:
        remedy = f"delete it to fetch it again from {url}{_renewal(record, sha256)}"
        _compare(path, found, expected, source, remedy)
    if not record.is_file() or _recorded(record) != found:
        part = record.with_name(f".{record.name}.{os.getpid()}.{threading.get_ident()}.part")
        part.write_text(f"{found}  {path.name}\n", "utf-8")
        os.replace(part, record)
    return path


def download(url, path, verify, remedy):
    """Fetch `url` to `path` unless it is there, going on where an earlier try stopped; moved in place once verified.

    `verify(file, name)` raises ValueError. FileNotFoundError with `remedy`: the server gave nothing.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f"{path.name}.part").open("ab") as part:
            _lock(part)
            if not path.is_file():  # else another process fetched it meanwhile
                _append(url, part)
                try:
                    verify(Path(part.name), path.name)
                except ValueError as error:
                    part.truncate(0)
                    raise ValueError(f"{url}: {error}") from error
                os.replace(part.name, path)
            else:
                Path(part.name).unlink(missing_ok=True)
    except (OSError, http.client.HTTPException) as error:
        raise FileNotFoundError(f"{path} is absent and {url} cannot be had ({error}); {remedy}") from error


def file_sha256(path):
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


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


def _lock(file):
    """Wait until no other process writes `file`, where the system can tell."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX)


def _append(url, part):
    """Append to the open file `part` what it lacks of `url`; OSError where that does not come."""
    from tqdm import tqdm

    with _answer(url, part.tell()) as response:
        resumed = re.match(rf"bytes {part.tell()}-", response.headers.get("Content-Range", ""))
        if not (response.status == 206 and resumed):
            part.truncate(0)
        start = part.seek(0, os.SEEK_END)
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=url.rpartition("/")[2]) as bar:
            while piece := response.read(1 << 18):
                part.write(piece)
                bar.update(len(piece))
    part.flush()
    if total is not None and part.tell() != total:
        raise OSError(
            f"the connection ended after {part.tell()} of {total} bytes; run again to go on from there"
        )


def _answer(url, start):
    """The server's answer from byte `start` on, in `_TIMEOUT` seconds: a name server may hang for longer."""
    box = []

    def ask(start):
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        try:
            box.append(urllib.request.urlopen(request, timeout=_TIMEOUT))
        except urllib.error.HTTPError as error:
            if error.code != 416 or not start:
                box.append(error)
            else:  # nothing lies beyond `start`, and yet the file is not the original: from the beginning
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
