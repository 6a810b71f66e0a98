"""Places and whole writes: no home, other folders, other users, full disks, two writers."""

import errno
import os
import stat
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import pytest

from entropic import files
from entropic.files import cache, environment_path, keep, only_writer, replaced, write_atomically
from entropic.images.downloads import fetch
from tests.conftest import ROOT


def _run(words, cwd, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ENTROPIC_")}
    kept |= {"PYTHONPATH": str(ROOT), **environment}
    found = subprocess.run([sys.executable, "-c", words], cwd=cwd, env=kept, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


# Where


def test_without_a_home_the_cache_lies_with_the_temporary_files(tmp_path, monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ENTROPIC_CACHE", raising=False)
    monkeypatch.setattr(files.Path, "home", unknown)
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = cache()
    assert folder == tmp_path / f"entropic-{os.getuid()}" == cache()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.rmdir()
    folder.symlink_to(tmp_path)  # as another user could have made it
    with pytest.raises(ValueError, match=r"is not yours.*set ENTROPIC_CACHE"):
        cache()


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root to become an unknown user"
)
def test_an_unknown_user_without_home_can_import_and_write():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        words = (
            "import os, torch; from entropic import files; os.setuid(54321);"  # the modules: root alone may read them
            "os.environ.pop('HOME', None); os.environ['TMPDIR'] = os.getcwd();"
            "print(files.cache(), files.keep(files.cache() / 'a', b'b'))"
        )
        assert _run(words, folder) == [str(Path(folder) / "entropic-54321"), "True"]


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENTROPIC_CACHE", "~/x")
    assert cache() == tmp_path / "x" and os.environ["ENTROPIC_CACHE"] == str(tmp_path / "x")
    monkeypatch.setenv("ENTROPIC_DATA", "~nobody-of-this-name/x")
    with pytest.raises(ValueError, match=r"ENTROPIC_DATA = '~nobody-of-this-name/x'.*pass a path without ~"):
        environment_path("ENTROPIC_DATA")


def test_a_relative_path_means_one_place(tmp_path):
    """After a change of directory, and in a child that starts elsewhere."""
    (tmp_path / "other").mkdir()
    kept = {f"ENTROPIC_{name}": f"of/{name}" for name in ("CACHE", "DATA", "INCEPTION", "DINOV2", "VAE")}
    say = f"from entropic import files\nprint(*map(files.environment_path, {list(kept)}), flush=True)"
    words = "import os, subprocess, sys; from entropic import files; os.chdir('other');"
    words += f"exec({say!r}, {{}}); subprocess.run([sys.executable, '-c', {say!r}])"
    assert _run(words, tmp_path, **kept) == [str(tmp_path / path) for path in kept.values()] * 2


def test_an_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv("ENTROPIC_VAE", "")
    assert environment_path("ENTROPIC_VAE") is None
    monkeypatch.delenv("ENTROPIC_VAE")
    assert environment_path("ENTROPIC_VAE") is None and "ENTROPIC_VAE" not in os.environ


# Whole writes


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "a", b"1")
        keep(tmp_path / "b", b"1")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666 & ~umask}


def _full(*words):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["write", "fsync", "replace", "interrupt"])
def test_nothing_stays_behind(tmp_path, monkeypatch, where):
    path = tmp_path / "a"
    path.write_bytes(b"before")
    if where in ("fsync", "replace"):
        monkeypatch.setattr(files.os, where, _full)
    with pytest.raises(KeyboardInterrupt if where == "interrupt" else OSError):
        with replaced(path) as temporary:
            temporary.write_bytes(b"half")
            if where == "write":
                _full()
            if where == "interrupt":
                raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["a"] and path.read_bytes() == b"before"


def test_content_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    told = []
    real = files.os.replace
    monkeypatch.setattr(files.os, "fsync", lambda file: told.append("fsync"))
    monkeypatch.setattr(files.os, "replace", lambda *words: (told.append("replace"), real(*words)))
    write_atomically(tmp_path / "a", b"1")
    assert told == ["fsync", "replace"]


def test_two_writers_never_share_a_name(tmp_path):
    with replaced(tmp_path / "a") as first, replaced(tmp_path / "a") as second:
        assert first != second
        first.write_bytes(b"1")
        second.write_bytes(b"2")
    assert (tmp_path / "a").read_bytes() == b"1" and os.listdir(tmp_path) == ["a"]

    def write(content):
        for _ in range(50):
            write_atomically(tmp_path / "a", content)
            assert (tmp_path / "a").read_bytes() in (b"x" * 10_000, b"y" * 10_000)

    threads = [threading.Thread(target=write, args=(c * 10_000,)) for c in (b"x", b"y")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == ["a"]


def test_one_writer_of_a_folder(tmp_path):
    with only_writer(tmp_path, "training"):
        with pytest.raises(ValueError, match="is being written by another training; wait"):
            with only_writer(tmp_path, "training"):
                pass
    with only_writer(tmp_path, "training"):
        pass


def test_a_failed_write_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"its folder does not exist; make it first.*none/a"):
        write_atomically(tmp_path / "none" / "a", b"")
    with pytest.raises(OSError, match=r"cannot be written: File name too long.*aaaa"):
        write_atomically(tmp_path / ("a" * 256), b"")
    write_atomically(tmp_path / ("a" * 255), b"")


# Caches


def test_a_cache_that_cannot_be_written_is_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_told", set())
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(UserWarning, match="is not kept .*set ENTROPIC_CACHE") as told:
        assert not keep(tmp_path / "file" / "a", b"1")  # a folder that cannot be made
        assert not keep(tmp_path / "file" / "b", b"1")
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert keep(tmp_path / "deep" / "er" / "a", lambda path: path.write_bytes(b"2"))
    assert (tmp_path / "deep" / "er" / "a").read_bytes() == b"2"


def test_an_error_of_the_content_is_not_one_of_the_cache(tmp_path):
    def wrong(path):
        raise ValueError("no content")

    with pytest.raises(ValueError, match="no content"):
        keep(tmp_path / "a", wrong)
    assert os.listdir(tmp_path) == []


def test_a_file_in_a_cache_that_cannot_be_written_is_used(tmp_path, monkeypatch):
    path = tmp_path / "net.pkl"
    path.write_bytes(b"content")
    monkeypatch.setattr(files, "_told", set())
    monkeypatch.setattr(files.os, "fsync", _full)
    with pytest.warns(UserWarning, match=r"net\.pkl\.sha256 is not kept"):
        assert fetch("http://127.0.0.1:1/net.pkl", path) == Path(path)
    assert os.listdir(tmp_path) == ["net.pkl"]
