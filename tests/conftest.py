"""What several test modules share: the repository, and one run of all notebooks in the smoke profile."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = list(yaml.safe_load((ROOT / "notebooks" / "params" / "default.yml").read_text("utf-8")))


def run_python(*words, cwd=ROOT):
    """Run a script of the repository with the tests' own interpreter."""
    return subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """A copy of the book's sources in which every notebook was run in the smoke profile."""
    book = tmp_path_factory.mktemp("smoke") / "book"
    shutil.copytree(ROOT / "book", book, ignore=shutil.ignore_patterns("_build", "notebooks", "__pycache__"))
    runner = ROOT / "notebooks" / "run.py"
    runs = {name: run_python(runner, "run", name, "--profile", "smoke", "--book", book) for name in NOTEBOOKS}
    return SimpleNamespace(book=book, runs=runs, results=book / "_build" / "results")


@pytest.fixture(scope="session")
def html(smoke):
    """The html of the smoke run, built as `make book` builds it: every warning an error."""
    failed = [name for name, run in smoke.runs.items() if run.returncode]
    if failed:
        pytest.fail(f"no book without these notebooks: {', '.join(failed)}; test_notebooks.py says why")
    built = run_python(smoke.book / "_ext" / "build.py", smoke.book)
    if built.returncode:
        pytest.fail(f"the book does not build:\n{built.stderr}")
    return smoke.book / "_build" / "html"
