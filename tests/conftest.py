"""What several test modules share: the repository, and one run of all notebooks in the smoke profile."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
# What the tests start finds the package and the studies, as `make` has it.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "notebooks")])
NOTEBOOKS = list(yaml.safe_load((ROOT / "notebooks" / "params" / "default.yml").read_text("utf-8")))


def run_python(*words, cwd=ROOT):
    """Run a script of the repository with the tests' own interpreter."""
    return subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True)


def once(tmp_path_factory, name, make):
    """`make(folder)` once in a test session, though several processes ask; its result is kept as JSON."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # the one that the workers share
    kept = folder / f"{name}.json"
    with FileLock(folder / f"{name}.lock"):
        if not kept.is_file():
            kept.write_text(json.dumps(make(folder)), "utf-8")
    return json.loads(kept.read_text("utf-8"))


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """A copy of the book's sources in which every notebook was run in the smoke profile."""

    def make(folder):
        book = folder / "smoke" / "book"
        products = shutil.ignore_patterns("_build", "notebooks", "__pycache__")
        shutil.copytree(ROOT / "book", book, ignore=products)
        runs = {}
        for name in NOTEBOOKS:
            words = ["run", name, "--profile", "smoke", "--book", book]
            run = run_python(ROOT / "notebooks" / "run.py", *words)
            runs[name] = [run.returncode, run.stdout + run.stderr]
        return {"book": str(book), "runs": runs}

    made = once(tmp_path_factory, "smoke", make)
    book = Path(made["book"])
    return SimpleNamespace(book=book, runs=made["runs"], results=book / "_build" / "results")


@pytest.fixture(scope="session")
def html(smoke, tmp_path_factory):
    """The html of the smoke run, built as `make book` builds it: every warning an error."""
    failed = [name for name, (code, _) in smoke.runs.items() if code]
    if failed:
        pytest.fail(f"no book without these notebooks: {', '.join(failed)}; test_notebooks.py says why")

    def make(_):
        built = run_python(smoke.book / "_ext" / "build.py", smoke.book)
        return [built.returncode, built.stdout + built.stderr]

    code, said = once(tmp_path_factory, "html", make)
    if code:
        pytest.fail(f"the book does not build:\n{said}")
    return smoke.book / "_build" / "html"
