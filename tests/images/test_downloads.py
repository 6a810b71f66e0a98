"""Downloads from a server on this machine: broken, killed, altered, refused; trust on first use held to afterwards."""

import hashlib
import http.server
import re
import signal
import threading
import time

import pytest

from entropic.images import downloads
from entropic.images.downloads import fetch
from tests.conftest import start_process

CONTENT = bytes(range(256)) * 4096  # 1 MiB: four of the pieces in which a file is written
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


class Server:
    """Files at an address of this machine; can break off, hang, refuse, dawdle, and knows ranges where told."""

    def __init__(self):
        self.files, self.asked, self.cut, self.ranges, self.delay = {}, [], None, True, 0
        self.hang = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name, span = self.path.lstrip("/"), self.headers.get("Range")
                outer.asked.append((name, span))
                time.sleep(outer.delay)
                if name not in outer.files:
                    return self.send_error(404)
                content = outer.files[name]
                etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
                same = self.headers.get("If-Range", etag) == etag
                start = int(span[6:-1]) if span and outer.ranges and same else 0
                if start >= len(content):
                    return self.send_error(416)
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("ETag", etag)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start : outer.cut])
                while outer.hang.is_set():
                    time.sleep(0.01)

            def log_message(self, *words):
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}"
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.hang.clear()
        self.httpd.shutdown()
        self.httpd.server_close()


@pytest.fixture(name="server")
def _server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    server.files["net.pkl"] = CONTENT
    yield server
    server.close()


@pytest.fixture(name="get")
def _get(server, tmp_path):
    return lambda **options: fetch(f"{server.url}/net.pkl", tmp_path / "kept" / "net.pkl", **options)


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_first_download_is_announced_trusted_and_recorded(server, get, tmp_path, capsys):
    path = get(size=1, note="Licence CC BY-NC-SA 4.0.")
    assert path.read_bytes() == CONTENT
    record = path.with_name("net.pkl.sha256")
    assert record.read_text() == f"{SHA256}  net.pkl\n"
    said = capsys.readouterr().err
    announced, shown = (
        said.index("Downloading net.pkl, about 1 MB. Licence CC BY-NC-SA 4.0."),
        said.index("%|"),
    )
    assert announced < shown  # the words come before the bar
    assert "first file is trusted" in said and str(record) in said
    assert get() == path and capsys.readouterr().err == ""
    assert server.asked == [("net.pkl", None)] and _names(path.parent) == ["net.pkl", "net.pkl.sha256"]


def test_file_put_there_by_hand_is_recorded_with_the_same_words(server, get, tmp_path, capsys):
    get()
    rule = re.compile(r"Its authors publish.*")
    (downloaded,) = rule.findall(capsys.readouterr().err)
    for path in (tmp_path / "kept").iterdir():
        path.unlink()
    (tmp_path / "kept" / "net.pkl").write_bytes(CONTENT)
    path = get()
    assert rule.findall(capsys.readouterr().err) == [downloaded]
    assert path.with_name("net.pkl.sha256").read_text().split()[0] == SHA256
    assert len(server.asked) == 1


def test_altered_file_is_refused_and_a_new_one_held_to_the_record(server, get):
    path = get()
    path.write_bytes(b"other")
    words = (
        f"{path}: sha256 is {OTHER}, expected {SHA256}.*delete it to fetch it again from {server.url}/net.pkl"
    )
    with pytest.raises(ValueError, match=words):
        get()
    assert path.read_bytes() == b"other"  # the user's to delete
    path.unlink()
    server.files["net.pkl"] = b"other"
    with pytest.raises(
        ValueError, match=rf"{OTHER}, expected {SHA256}.*nothing was kept, and {path}.sha256 too"
    ):
        get()
    assert _names(path.parent) == ["net.pkl.sha256"]
    server.files["net.pkl"] = CONTENT
    assert get().read_bytes() == CONTENT


def test_pin_refuses_another_file_and_outranks_the_record(server, get, tmp_path, capsys):
    with pytest.raises(ValueError, match=f"{SHA256}, expected {OTHER}, as passed; nothing was kept"):
        get(sha256=OTHER)
    assert _names(tmp_path / "kept") == []
    assert "trusted" not in capsys.readouterr().err
    path = get(sha256=SHA256.upper())
    assert path.with_name("net.pkl.sha256").read_text().split()[0] == SHA256
    with pytest.raises(ValueError, match=f"{SHA256}, expected {OTHER}, as passed; delete it"):
        get(sha256=OTHER)
    path.write_bytes(b"other")
    get(sha256=OTHER)
    assert path.with_name("net.pkl.sha256").read_text().split()[0] == OTHER
    with pytest.raises(ValueError, match="sha256 = 'abc'; pass the 64"):
        get(sha256="abc")
    path.with_name("net.pkl.sha256").write_text("")
    with pytest.raises(ValueError, match="does not start with a sha256; delete it"):
        get()


def test_page_of_a_proxy_is_not_trusted(server, get, tmp_path):
    server.files["net.pkl"] = b"<html>Log in to the network</html>"
    with pytest.raises(ValueError, match=r"34 bytes came, which is not net\.pkl, about 1 MB"):
        get(size=1)
    assert _names(tmp_path / "kept") == []


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_download_goes_on_or_starts_again(server, get, ranges):
    server.cut, server.ranges = 300_000, ranges
    with pytest.raises(FileNotFoundError, match=f"after 300000 of {len(CONTENT)} bytes; run again"):
        get()
    server.cut = None
    path = get()
    assert path.read_bytes() == CONTENT
    assert server.asked[1] == ("net.pkl", "bytes=300000-")
    assert _names(path.parent) == ["net.pkl", "net.pkl.sha256"]


def test_killed_download_goes_on(server, get, tmp_path):
    part = tmp_path / "kept" / "net.pkl.part"
    server.cut = 600_000
    server.hang.set()
    child = start_process(fetch, server.url + "/net.pkl", str(part)[:-5])
    deadline = time.monotonic() + 20
    while not (part.is_file() and part.stat().st_size >= 2 << 18):
        assert child.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert (
        _names(part.parent) == ["net.pkl.part", "net.pkl.part.json"]
        and part.read_bytes() == CONTENT[: 2 << 18]
    )
    server.hang.clear()
    server.cut = None
    assert get().read_bytes() == CONTENT
    assert server.asked == [("net.pkl", None), ("net.pkl", f"bytes={2 << 18}-")]


def test_several_at_once_fetch_once(server, get):
    server.delay = 0.2
    threads = [threading.Thread(target=get) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1
    path = get()
    assert path.read_bytes() == CONTENT and _names(path.parent) == ["net.pkl", "net.pkl.sha256"]


def test_offline_says_which_file_where_from_and_where_to(tmp_path, server):
    path = tmp_path / "kept" / "net.pkl"
    for url in ("http://127.0.0.1:1/net.pkl", f"{server.url}/absent.pkl"):  # nothing listens on port 1
        with pytest.raises(FileNotFoundError) as caught:
            fetch(url, path)
        assert f"{url} cannot be had" in str(caught.value)
        assert f"put it at {path}" in str(caught.value)
    assert not path.exists()


def test_server_that_does_not_answer_is_left(server, get, monkeypatch):
    monkeypatch.setattr(downloads, "_TIMEOUT", 0.3)
    monkeypatch.setattr(downloads.urllib.request, "urlopen", lambda *words, **options: time.sleep(30))
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match="no answer within"):
        get()
    assert time.monotonic() - start < 15  # it would hang for 30
