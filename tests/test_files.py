"""Files that are whole or not there, and what is left of a writer that was killed."""

import os
import signal
import subprocess
import sys
import time

from entropic.files import cache, replaced, write_atomically

KILLED = """
import os, signal, sys
from entropic.files import replaced
with replaced(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("ENTROPIC_CACHE", str(tmp_path))
    assert cache() == tmp_path
    monkeypatch.setenv("ENTROPIC_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache() == tmp_path / ".cache" / "entropic"


def test_what_a_killed_writer_left_goes_with_a_write_a_day_later(tmp_path):
    path = tmp_path / "a"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    others = [tmp_path / name for name in (".mine.tmp", left.name[1:], f"{left.name}.txt")]
    for other in others:
        other.write_bytes(b"of somebody else")
    write_atomically(path, b"1")
    assert left.exists()  # its writer may live: on another machine, say
    day = time.time() - 25 * 3600
    for old in (left, *others):
        os.utime(old, (day, day))
    write_atomically(path, b"2")
    assert {each.name for each in tmp_path.iterdir()} == {"a", *(other.name for other in others)}
    assert path.read_bytes() == b"2"


def test_live_writers_leave_each_other_s_files(tmp_path):
    """However long ago this process began: the first byte that it writes makes its file new."""
    with replaced(tmp_path / "a") as temporary:
        for number in range(20):
            temporary.write_bytes(b"1")
            write_atomically(tmp_path / "a", b"%d" % number)
            assert temporary.exists()
    assert (tmp_path / "a").read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["a"]
