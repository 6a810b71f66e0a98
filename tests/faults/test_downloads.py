"""A file is kept only when all of one version of it has come: changed, cut, lying and endless servers."""

import hashlib
import http.server
import json
import threading

import pytest

from entropic.images.downloads import download, fetch

OLD, NEW = b"old version " * 1000, b"new version " * 1000


class Scripted:
    """A server that sends, request by request, what the test tells it to: (status, headers, body)."""

    def __init__(self):
        self.answers, self.asked = [], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.asked.append((self.headers.get("Range"), self.headers.get("If-Range")))
                status, headers, body = outer.answers.pop(0)
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = True

            def log_message(self, *words):
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}/net.pkl"
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def whole(self, content, etag, cut=None):
        headers = [("Content-Length", str(len(content)))] + ([("ETag", etag)] if etag else [])
        self.answers.append((200, headers, content[:cut]))

    def rest(self, content, start, etag, *, span=None, cut=None):
        span = span or f"bytes {start}-{len(content) - 1}/{len(content)}"
        headers = [("Content-Length", str(len(content) - start)), ("Content-Range", span), ("ETag", etag)]
        self.answers.append((206, headers, content[start:cut]))


@pytest.fixture(name="server")
def _server(monkeypatch):
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Scripted()
    yield server
    server.httpd.shutdown()
    server.httpd.server_close()


@pytest.fixture(name="path")
def _path(tmp_path):
    return tmp_path / "kept" / "net.pkl"


def _cut(server, path, etag='"a"', size=5000):
    """A first try that stops after `size` bytes of the old version."""
    server.whole(OLD, etag, cut=size)
    with pytest.raises(FileNotFoundError, match=f"after {size} of {len(OLD)} bytes"):
        fetch(server.url, path)
    assert not path.exists() and not path.with_name("net.pkl.sha256").exists()


def _nothing_is_kept(path):
    assert [each.name for each in path.parent.iterdir()] == []


def test_the_rest_of_the_same_version_is_appended(server, path):
    _cut(server, path)
    server.rest(OLD, 5000, '"a"')
    assert fetch(server.url, path).read_bytes() == OLD
    assert server.asked == [(None, None), ("bytes=5000-", '"a"')]
    assert sorted(each.name for each in path.parent.iterdir()) == ["net.pkl", "net.pkl.sha256"]


def test_a_changed_file_is_fetched_anew(server, path):
    _cut(server, path)
    server.whole(NEW, '"b"')
    assert fetch(server.url, path).read_bytes() == NEW
    record = path.with_name("net.pkl.sha256").read_text().split()[0]
    assert record == hashlib.sha256(NEW).hexdigest()


@pytest.mark.parametrize("etag", ['"b"', '"a"'])
def test_a_part_of_another_version_is_not_appended(server, path, etag):
    """A server that ignores If-Range; with the same ETag, the total tells."""
    _cut(server, path)
    server.rest(NEW + b"!", 5000, etag)
    with pytest.raises(FileNotFoundError, match="where bytes 5000 to 11999 were asked for"):
        fetch(server.url, path)
    _nothing_is_kept(path)
    server.whole(NEW, '"b"')
    assert fetch(server.url, path).read_bytes() == NEW


@pytest.mark.parametrize("etag", [None, 'W/"a"', "a", ""])
def test_without_a_strong_etag_it_begins_anew(server, path, etag):
    _cut(server, path, etag)
    server.whole(NEW, etag)
    assert fetch(server.url, path).read_bytes() == NEW
    assert server.asked == [(None, None), (None, None)]


def test_another_address_begins_anew(server, path):
    _cut(server, path)
    server.whole(NEW, '"a"')
    assert fetch(f"{server.url}?v=2", path).read_bytes() == NEW
    assert server.asked[1] == (None, None)


@pytest.mark.parametrize("told", ["", "{", "[]", '{"url": 1}', "null", "\x00"])
def test_a_part_of_which_nothing_is_known_begins_anew(server, path, told):
    _cut(server, path)
    path.with_name("net.pkl.part.json").write_text(told)
    server.whole(NEW, '"a"')
    assert fetch(server.url, path).read_bytes() == NEW


def test_a_rest_that_is_cut_again_is_not_recorded(server, path):
    _cut(server, path)
    server.rest(OLD, 5000, '"a"', cut=7000)
    with pytest.raises(FileNotFoundError, match="after 7000 of 12000"):
        fetch(server.url, path)
    assert not path.exists() and not path.with_name("net.pkl.sha256").exists()
    server.rest(OLD, 7000, '"a"')
    assert fetch(server.url, path).read_bytes() == OLD


def test_a_part_shorter_than_asked_is_no_whole(server, path):
    _cut(server, path)
    headers = [("Content-Length", "1000"), ("Content-Range", "bytes 5000-5999/12000"), ("ETag", '"a"')]
    server.answers.append((206, headers, OLD[5000:6000]))
    with pytest.raises(FileNotFoundError, match="after 6000 of 12000"):
        fetch(server.url, path)
    server.rest(OLD, 6000, '"a"')
    assert fetch(server.url, path).read_bytes() == OLD


@pytest.mark.parametrize(
    "span",
    [
        "bytes 4000-11999/12000",
        "bytes 6000-11999/12000",
        "bytes 5000-11999/*",
        "bytes 5000-4999/12000",
        "bytes 5000-12000/12000",
        "bytes */12000",
        "nonsense",
    ],
)
def test_a_part_other_than_asked_is_refused(server, path, span):
    _cut(server, path)
    server.rest(OLD, 5000, '"a"', span=span)
    with pytest.raises(FileNotFoundError, match="were asked for"):
        fetch(server.url, path)
    _nothing_is_kept(path)


def test_a_part_that_nobody_asked_for_is_refused(server, path):
    server.rest(OLD, 0, '"a"', span="bytes 0-5/12000")
    with pytest.raises(FileNotFoundError, match="nobody asked"):
        fetch(server.url, path)
    _nothing_is_kept(path)


@pytest.mark.parametrize("length", ["many", "-5", "1e3", "", "12000, 12000", "1_0"])
def test_a_length_that_is_no_number_is_refused(server, path, length):
    server.answers.append((200, [("Content-Length", length)], OLD))
    with pytest.raises(FileNotFoundError, match="no number of bytes"):
        fetch(server.url, path)
    _nothing_is_kept(path)


def test_without_a_length_only_a_known_checksum_is_trusted(server, path):
    server.answers += [(200, [], OLD[:7000])] * 2 + [(200, [], OLD)]
    with pytest.raises(FileNotFoundError, match="does not tell how long"):
        fetch(server.url, path)
    assert not path.with_name("net.pkl.sha256").exists()
    sha256 = hashlib.sha256(OLD).hexdigest()
    with pytest.raises(ValueError, match="nothing was kept"):
        fetch(server.url, path, sha256=sha256)
    assert fetch(server.url, path, sha256=sha256).read_bytes() == OLD


def test_a_chunked_answer_is_whole_only_with_its_last_chunk(server, path):
    chunk = f"{len(OLD):x}\r\n".encode() + OLD + b"\r\n"
    headers = [("Transfer-Encoding", "chunked")]
    server.answers += [
        (200, headers, chunk),
        (200, headers, chunk[:6000]),
        (200, headers, chunk + b"0\r\n\r\n"),
    ]
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="cannot be had"):
            fetch(server.url, path)
        assert not path.exists() and not path.with_name("net.pkl.sha256").exists()
    assert fetch(server.url, path).read_bytes() == OLD


def test_more_than_expected_is_refused(server, path):
    server.whole(OLD, '"a"')
    with pytest.raises(FileNotFoundError, match="announces 12000 bytes, and at most 100"):
        download(server.url, path, lambda *_: None, "remedy", most=100)
    server.answers.append((200, [], OLD))
    with pytest.raises(FileNotFoundError, match="more than 100 bytes came"):
        download(server.url, path, lambda *_: None, "remedy", most=100)
    _nothing_is_kept(path)
    server.answers.append((200, [("Content-Length", str(21 * 2**20))], b"x"))
    with pytest.raises(FileNotFoundError, match="announces"):
        fetch(server.url, path, size=1)


@pytest.mark.parametrize("target", ["file", "nothing"])
def test_a_linked_part_is_not_followed(server, path, tmp_path, target):
    victim = tmp_path / "victim"
    if target == "file":
        victim.write_bytes(b"precious")
    path.parent.mkdir()
    path.with_name("net.pkl.part").symlink_to(victim)
    with pytest.raises(FileNotFoundError, match="symbolic link; remove it"):
        fetch(server.url, path)
    assert not victim.exists() if target == "nothing" else victim.read_bytes() == b"precious"
    assert server.asked == []


def test_a_part_that_is_complete_but_was_not_moved_is_verified(server, path):
    _cut(server, path)
    path.with_name("net.pkl.part").write_bytes(OLD)
    assert fetch(server.url, path).read_bytes() == OLD and len(server.asked) == 1


def test_what_is_known_of_a_part(server, path):
    _cut(server, path)
    told = json.loads(path.with_name("net.pkl.part.json").read_text())
    assert told == {"url": server.url, "etag": '"a"', "total": len(OLD)}
