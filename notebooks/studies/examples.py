"""The Python code of a page in Markdown, run as it stands there.

    python -m studies.examples PAGE.md [--only K]

runs the blocks of the page in the working folder, one after the other with the same variables, and says of each how it
went. A block that needs a package which is not installed is passed over. The exit code is 1 where a block failed.
"""

from __future__ import annotations

import argparse
import linecache
import re
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

__all__ = ["Block", "blocks"]

_BLOCK = re.compile(r"^```python *\n(.*?)^```", re.M | re.S)


class Block(NamedTuple):
    """A block of code: the number of its first line in the page, and its text."""

    line: int
    code: str


def blocks(path: Path) -> list[Block]:
    """The blocks ```python of a page, in their order."""
    text = path.read_text("utf-8")
    return [Block(text.count("\n", 0, found.start(1)) + 1, found[1]) for found in _BLOCK.finditer(text)]


def _run(path: Path, block: Block, namespace: dict) -> str:
    """How it went: "ok", "needs PACKAGE", or "failed"; the traceback, with the lines of the page, goes to stderr."""
    text = "\n" * (block.line - 1) + block.code
    linecache.cache[str(path)] = (
        len(text),
        None,
        path.read_text("utf-8").splitlines(keepends=True),
        str(path),
    )
    try:
        exec(compile(text, str(path), "exec"), namespace)
    except ModuleNotFoundError as error:
        return f"needs {error.name}"
    except Exception:
        traceback.print_exc()
        return "failed"
    return "ok"


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studies.examples", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("--only", type=int, metavar="K", help="the K-th block alone")
    given = parser.parse_args(arguments)
    found = blocks(given.page)
    if given.only is not None:
        if not 1 <= given.only <= len(found):
            parser.error(f"--only {given.only}: {given.page} has {len(found)} blocks; pass 1 to {len(found)}")
        found = found[given.only - 1 : given.only]
    namespace, outcomes = {"__name__": "__main__"}, []
    for block in found:
        began = time.perf_counter()
        outcomes.append(_run(given.page, block, namespace))
        print(
            f"{given.page.name}:{block.line}: {outcomes[-1]} after {time.perf_counter() - began:.1f} s",
            flush=True,
        )
    return int("failed" in outcomes)


if __name__ == "__main__":
    sys.exit(main())
