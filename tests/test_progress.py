"""A search says how far it is, only to somebody at a terminal, and only where it takes longer than a second."""

import contextlib
import fcntl
import os
import pty
import struct
import termios

import pytest
import torch

from entropic import progress
from entropic.placement import gaussian_optimal_sigmas
from entropic.rivals import dmn_sigmas, oss_sigmas

F64 = torch.float64
SEARCHES = {
    "grid": lambda: gaussian_optimal_sigmas(torch.tensor([1.0, 0.1], dtype=F64), 5, "heun", "w2"),
    " levels": lambda: dmn_sigmas(8),
    "row": lambda: oss_sigmas(3, lambda x, sigma: x / (1 + sigma**2), torch.ones(2, 2), levels=8),
}


def seen(search):
    """What a search writes where stderr is a terminal."""
    main, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    os.set_blocking(main, False)
    with os.fdopen(child, "w") as stream:
        with contextlib.redirect_stderr(stream):
            search()
        stream.flush()
        try:
            return os.read(main, 1 << 20).decode()
        except BlockingIOError:
            return ""
        finally:
            os.close(main)


@pytest.mark.parametrize("word", SEARCHES)
def test_a_long_search_is_seen_on_a_terminal_and_a_short_one_is_not(word, monkeypatch):
    monkeypatch.setattr(progress, "_DELAY", 60)
    assert seen(SEARCHES[word]) == ""
    monkeypatch.setattr(progress, "_DELAY", 0)  # as if it took long
    assert word in seen(SEARCHES[word])


@pytest.mark.parametrize("word", SEARCHES)
def test_nothing_is_written_where_nobody_looks(word, capfd, monkeypatch):
    monkeypatch.setattr(progress, "_DELAY", 0)
    SEARCHES[word]()
    assert capfd.readouterr() == ("", "")
