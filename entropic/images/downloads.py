"""Files from the net: resumed where they stopped, whole or not there, held to the checksum of the first time."""

import contextlib
import http.client
import json
import os
import re
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

from entropic.files import file_sha256, keep, write_atomically

__all__ = ["download", "fetch"]

_TIMEOUT = 10.0  # seconds for a server to answer, and between two pieces of its answer
_MOST = 2**36  # bytes: no file that is downloaded here has more
_ETAG = re.compile(r'"[!#-~]*"')  # a strong one: it changes with any byte of the file


def fetch(url, path, *, sha256=None, size=None, note=""):
    """The file of `url` at `path`, for files whose authors give no checksum: trusted once, then held to that.

    The first file, downloaded or put there by hand, is trusted and its sha256 recorded beside it in
    PATH.sha256 (as sha256sum writes it), after which the file at `path` is checked against the record at every
    call, and so is another download. `sha256` pins it instead: nothing else is kept, and a record that differs
    gives way. Name, `size` (MB of 2^20 bytes, about), `note` (the licence) and this rule are told on stderr.
    ValueError: an altered file, with both checksums; an answer less than a tenth of `size`, as of a proxy.
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
        most = _MOST if size is None else 10 * (size + 1) * 2**20  # `size` is rounded
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
