"""What several test modules share: the repository, and one run of all notebooks in the smoke profile."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from studies.pages import pages

ROOT = Path(__file__).resolve().parent.parent
# What the tests start finds the package and the studies, as `make` has it.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "notebooks")])
NOTEBOOKS = list(pages())
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
HINT = (
    "browser checks: no `chromium` here; apt-get install -y --no-install-recommends chromium fonts-liberation"
)


def run_python(*words, cwd=ROOT, **environment):
    """Run a script of the repository with the tests' own interpreter."""
    about = {"cwd": cwd, "env": os.environ | environment, "encoding": "utf-8", "errors": "replace"}
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, **about)


# A server that has loaded torch forks what is started: a test that needs processes does not pay for their imports.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    ["tests.conftest", "entropic.images.generate", "entropic.images.train", "torch._dynamo"]
)


def start_process(function, *words, **environment):
    """A process of its own that runs `function(*words)`, a function of a module, in this environment with additions."""
    process = _PROCESSES.Process(target=_run, args=(os.environ | environment, function, words), daemon=True)
    process.start()
    return process


def _run(environment, function, words):
    os.environ.clear()  # the server's is that of its start
    os.environ.update(environment)
    function(*words)


def pytest_collection_modifyitems(items):
    """Mark `once` what runs notebooks or a browser (one Python version is enough for it); its files are long: first."""
    for item in items:
        if {"smoke", "project", "browser"} & set(item.fixturenames):
            item.add_marker("once")
    files = {item.path for item in items if item.get_closest_marker("once")}
    items.sort(key=lambda item: item.path not in files)


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
    """A copy of the book's sources in which every notebook was run in the smoke profile, two at a time.

    Where ENTROPIC_TEST_BOOK names a book that was made already, with its html, that one is looked at instead.
    """

    def make(folder):
        book = folder / "smoke" / "book"
        products = shutil.ignore_patterns("_build", "notebooks", "__pycache__")
        shutil.copytree(ROOT / "book", book, ignore=products)
        words = ["run", "all", "--profile", "smoke", "--jobs", "2", "--book", book]
        run = run_python(ROOT / "notebooks" / "run.py", *words)
        return {"book": str(book), "said": run.stdout + run.stderr}

    made = {"book": os.environ.get("ENTROPIC_TEST_BOOK"), "said": ""}
    if not made["book"]:
        made = once(tmp_path_factory, "smoke", make)
    book = Path(made["book"]).resolve()
    runs = {}
    for name in NOTEBOOKS:
        path = book / "_build" / "runs" / f"{name}.json"
        runs[name] = json.loads(path.read_text("utf-8")) if path.is_file() else {"state": "not run"}
    return SimpleNamespace(book=book, runs=runs, said=made["said"], results=book / "_build" / "results")


@pytest.fixture(scope="session")
def html(smoke, tmp_path_factory):
    """The html of the smoke run, built as `make book` builds it: every warning an error."""
    failed = [name for name, record in smoke.runs.items() if record["state"] != "ok"]
    if failed:
        pytest.fail(f"no book without these notebooks: {', '.join(failed)}; test_notebooks.py says why")

    def make(_):
        built = run_python(ROOT / "notebooks" / "run.py", "html", "--book", smoke.book)
        return [built.returncode, built.stdout + built.stderr]

    code, said = once(tmp_path_factory, "html", make)
    if code:
        pytest.fail(f"the book does not build:\n{said}")
    return smoke.book / "_build" / "html"


@pytest.fixture(scope="session")
def browser():
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(HINT)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=chromium, args=FLAGS) as browser:
            yield browser
