"""Runs the notebooks, says how they stand, and checks their results against the committed ones.

    python notebooks/run.py run NAME [--profile default] [-p parameter value ...]
    python notebooks/run.py run NAME --help         list its parameters
    python notebooks/run.py run all [--profile default] [--jobs 2]
    python notebooks/run.py run changed [--profile default] [--jobs 2]
                                            run those that are out of date
    python notebooks/run.py html            build the html, where something in it has changed
    python notebooks/run.py record NAME [--as FOLDER] [-p parameter value ...]
                                            run in the profile "recorded", keep the data in book/results/FOLDER
    python notebooks/run.py status
    python notebooks/run.py serve [--port 8000]
    python notebooks/run.py expected        copy the results of the book to book/expected
    python notebooks/run.py compare RESULTS  compare a folder of results with book/expected

`notebooks/book.yml` lists the pages NAME. A run executes the page's notebook in a folder of its own. Only where every
cell succeeded does it become `BOOK/notebooks/NAME.ipynb`, with its figures and data under `BOOK/_build/results/NAME/`.
A run that fails or is killed leaves the last good page and its results as they were; a failed notebook is kept for a
look under `BOOK/_build/failed/`. `BOOK/_build/runs/NAME.json` records how the last run went, with a hash of everything
that the results depend on (a page is out of date when one of these has changed), and under "page" the run that the
page is of, where that is an earlier one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [path for path in (str(ROOT), str(HERE)) if path not in sys.path]

from studies.pages import Page, page, pages, profiles  # noqa: E402
from studies.parameters import Refused, read_yaml, take_overrides  # noqa: E402
from studies.sources import Tree, inputs  # noqa: E402

# What is imported inside functions takes seconds (torch, papermill), which `status` need not wait for.

# --- run -------------------------------------------------------------------------------------------------


def run(name: str, profile: str, overrides: list, book: Path) -> bool:
    """Execute one notebook; True where it succeeded.

    overrides: pairs of a parameter's name and the text of its value

    Raises Refused, before anything is changed, for parameters that do not fit and where another run of this page
    writes into the same book.
    """
    one = page(name)
    parameters = one.chosen(profile, overrides)
    environment = _environment()
    build = book / "_build"
    with _only(build / "scratch" / name, f"run of {name}") as scratch:
        _sweep(build, name)
        return _run(one, profile, overrides, parameters, environment, book, scratch)


def _run(one: Page, profile, overrides, parameters, environment, book, scratch) -> bool:
    name, build, started = one.name, book / "_build", time.time()
    label = f"[{list(pages()).index(name) + 1}/{len(pages())}] {name}"
    target, results = book / "notebooks" / f"{name}.ipynb", build / "results" / name
    failed, stamp = build / "failed" / f"{name}.ipynb", build / "runs" / f"{name}.json"
    for folder in (target.parent, results.parent, stamp.parent, failed.parent):
        folder.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    good = _good_run(stamp) if target.is_file() and results.is_dir() else None
    record = {
        "notebook": name,
        "state": "running",
        "started": datetime.fromtimestamp(started, timezone.utc).isoformat(timespec="seconds"),
        "profile": profile,
        "book_profile": _book_profile(book),
        "overrides": {key: parameters[key] for key, _ in overrides},
        "parameters": parameters,
        "inputs": inputs(one, parameters, results.parent, Tree()),
    }
    _write_json(stamp, record | ({"page": good} if good else {}))
    out, source, executed = scratch / "results", scratch / "source.ipynb", scratch / f"{name}.ipynb"
    out.mkdir()
    _write_json(source, one.notebook(parameters))
    about = {"notebook": name, "profile": profile, "parameters": parameters, "started": started}
    about |= {"out": str(out), "results": str(results.parent), "recorded": str(ROOT / "book" / "results")}
    about |= {"reads_recorded": list(one.recorded), "reads_results": list(one.results)}
    os.environ.update(environment | {"ENTROPIC_RUN": json.dumps(about)})
    error = _execute(source, executed, str(scratch), label)
    record["duration"] = round(time.time() - started, 1)
    if error:
        if executed.exists():
            executed.replace(failed)
        record |= {"state": "failed", "error": error.splitlines()[-1]} | ({"page": good} if good else {})
    else:
        shutil.rmtree(results, ignore_errors=True)
        out.replace(results)
        executed.replace(target)
        record["state"] = "ok"
    _write_json(stamp, record)
    if error:
        _say(f"{label}: FAILED after {record['duration']} s\n{error}")
        _say(f"(the notebook as far as it came: {_short(failed)})")
        if good:
            _say(f"(the page is still that of {_when(good)}: {_short(target)})")
    else:
        _say(f"{label}: done in {record['duration']} s")
        _say(f"  page:    {_short(target)} (make book shows it)\n  results: {_short(results)}/")
    return not error


def _good_run(stamp: Path) -> dict | None:
    """The record of the run that the page of a book is of: the last that succeeded; None where there is none."""
    try:
        record = json.loads(stamp.read_text("utf-8"))
        return record if record["state"] == "ok" else record.get("page")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _when(record: dict) -> str:
    return datetime.fromisoformat(record["started"]).astimezone().strftime("%Y-%m-%d %H:%M")


def run_all(profile: str, book: Path, jobs: int, changed: bool) -> bool:
    """Execute all notebooks, or those that are out of date, `jobs` at a time; True where all succeeded.

    The longest are started first. Those that read the results of others come after these.
    """
    every = pages()
    for one in every.values():
        one.chosen(profile)  # Refused before anything is run
    build = book / "_build"
    with _only(build / "scratch" / "book", "make book"):
        from entropic.files import write_atomically

        write_atomically(build / "profile", profile.encode())
        failed = set()
        for wave in (
            [one for one in every.values() if not one.results],
            [one for one in every.values() if one.results],
        ):
            states, tree = {}, Tree()
            for one in wave:
                states[one.name] = status(one, book, tree)
            todo = [one for one in wave if not changed or _is_due(states[one.name], profile)]
            waits = {one.name: sorted(name for name in failed if one.reads(name)) for one in todo}
            for one in todo:
                if waits[one.name]:
                    _say(f"{one.name}: not run, since it reads {waits[one.name][0]}, which failed")
                    failed.add(one.name)
            todo = [one.name for one in todo if not waits[one.name]]
            todo.sort(key=lambda name: -_seconds(states[name], every[name], profile))
            with ThreadPoolExecutor(jobs) as pool:
                done = list(pool.map(lambda name: _run_apart(name, profile, book), todo))
            failed |= {name for name, well in zip(todo, done, strict=True) if not well}
    return not failed


def _run_apart(name, profile, book) -> bool:
    """Run one notebook in a process of its own: its environment is its own, and its death is only its own."""
    words = [sys.executable, __file__, "run", name, "--profile", profile, "--book", str(book)]
    return subprocess.run(words).returncode == 0


def _is_due(state: dict, profile: str) -> bool:
    return state["state"] != "ok" or state["book_profile"] != profile


def _seconds(state: dict, one: Page, profile: str) -> float:
    """How long a run took in this profile the last time, or else about takes."""
    return state["duration"] if state.get("profile") == profile and "duration" in state else one.seconds


def _execute(source: Path, executed: Path, cwd: str, label: str) -> str:
    """Run the cells; '' or a short account of the cell that failed."""
    import papermill
    from papermill.engines import NBClientEngine, papermill_engines
    from papermill.exceptions import PapermillExecutionError

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, manager, kernel_name, **kwargs):
            cells = [i for i, cell in enumerate(manager.nb.cells) if cell.cell_type == "code"]
            cell_start = manager.cell_start

            def announce(cell, cell_index=None, **kw):
                if cell_index in cells:
                    _say(f"{label}: cell {cells.index(cell_index) + 1} of {len(cells)}")
                return cell_start(cell, cell_index, **kw)

            manager.cell_start = announce
            return super().execute_managed_notebook(manager, kernel_name, **kwargs)

    papermill_engines.register("entropic", Engine)
    import logging

    logging.getLogger("papermill").setLevel(logging.WARNING)
    from traitlets.config import Config

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            papermill.execute_notebook(
                str(source),
                str(executed),
                engine_name="entropic",
                kernel_name="python3",
                progress_bar=False,
                cwd=cwd,
                request_save_on_cell_execute=False,
                shutdown_kernel="immediate",
                config=Config({"KernelManager": {"transport": "ipc"}}),  # the other is warned about
            )
    except PapermillExecutionError as error:
        return _account(error)
    except Exception as error:  # a kernel that died or did not start
        return f"{type(error).__name__}: {error}"
    _strip_machine(executed)
    return ""


def _account(error) -> str:
    """The failing cell and the end of its traceback, without colour codes."""
    cell = error.source.strip().splitlines()
    shown = cell if len(cell) <= 25 else [*cell[:25], f"... ({len(cell) - 25} more lines)"]
    trace = [re.sub(r"\x1b\[[0-9;]*m", "", part) for part in error.traceback]
    lines = "\n".join(trace).splitlines()
    if len(lines) > 30:
        lines = ["...", *lines[-30:]]
    bar = "-" * 72
    return "\n".join([f"cell [{error.exec_count}]", bar, *shown, bar, *lines])


def _strip_machine(path: Path):
    """Drop what says where and when, and name the cells by their place, so that equal runs give equal notebooks."""
    notebook = json.loads(path.read_text("utf-8"))
    notebook["metadata"].pop("papermill", None)
    for i, cell in enumerate(notebook["cells"]):
        cell["id"], cell["source"] = f"cell-{i:02d}", "".join(cell["source"])
        cell["metadata"].pop("papermill", None)
        cell["metadata"].pop("execution", None)
    _write_json(path, notebook)


def _environment() -> dict:
    """What the kernel finds in its environment: every path of ours in full, since it works in another folder."""
    from entropic.files import environment_path

    found = {
        "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not one of the user's home
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), str(HERE), os.environ.get("PYTHONPATH")])),
        "PYTHONHASHSEED": "0",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    for name in [name for name in os.environ if name.startswith("ENTROPIC_") and name != "ENTROPIC_RUN"]:
        try:
            path = environment_path(name)
        except ValueError as error:
            raise Refused(str(error)) from error
        if path is not None:
            found[name] = str(path)
    return found


@contextlib.contextmanager
def _only(folder: Path, what: str):
    """An empty folder that no other process writes to meanwhile; Refused where one does."""
    folder.mkdir(parents=True, exist_ok=True)
    from entropic.files import only_writer

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(only_writer(folder, what))
        except ValueError as error:
            raise Refused(str(error)) from error
        _empty(folder)
        yield folder
        _empty(folder)


def _sweep(build: Path, name: str):
    """Remove what killed runs have left: their folders are locked by nobody."""
    from entropic.files import only_writer

    for old in build.glob(f".{name}-*"):  # as runs once named them
        shutil.rmtree(old, ignore_errors=True)
    for folder in (build / "scratch").iterdir():
        if folder.name not in (name, "book"):
            with contextlib.suppress(ValueError), only_writer(folder, "run"):
                _empty(folder)


def _empty(folder: Path):
    for path in folder.iterdir():
        if path.name == ".lock":
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


# --- record ----------------------------------------------------------------------------------------------


def record(name: str, kept_as: str, overrides: list, book: Path) -> bool:
    """Run a notebook in the profile "recorded" beside the book, and keep its csv and json in BOOK/results."""
    if not re.fullmatch(r"[a-z0-9_-]{1,64}", kept_as):
        raise Refused(f"--as {kept_as!r}: must be 1 to 64 lower-case letters, digits, - and _")
    elsewhere = book / "_build" / f"record-{kept_as}"
    if not run(name, "recorded", overrides, elsewhere):
        return False
    kept = book / "results" / kept_as
    kept.parent.mkdir(parents=True, exist_ok=True)
    with _only(book / "_build" / "scratch" / f"record-{kept_as}", f"record of {kept_as}") as scratch:
        fresh = scratch / kept_as
        fresh.mkdir()
        for path in sorted((elsewhere / "_build" / "results" / name).iterdir()):
            if path.suffix in {".csv", ".json"} and path.name != "claims.json":
                shutil.copyfile(path, fresh / path.name)
        shutil.rmtree(kept, ignore_errors=True)
        shutil.move(fresh, kept)
    _say(f"recorded in {_short(kept)}; commit it")
    return True


# --- status ----------------------------------------------------------------------------------------------


def status(one: Page, book: Path, tree: Tree) -> dict:
    """The state of a page ('ok', 'stale', 'running', 'failed', 'not run') with the reason, and its last run.

    'ok' means that the run succeeded and that nothing it depends on has changed since, its own profile supposed.
    """
    target, results = book / "notebooks" / f"{one.name}.ipynb", book / "_build" / "results"
    try:
        record = json.loads((book / "_build" / "runs" / f"{one.name}.json").read_text("utf-8"))
        told, profile = record["state"], record["profile"]
        overrides, known = record["overrides"], record["inputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return {"state": "not run", "why": ""}
    if told in ("running", "failed"):
        why = "or was interrupted" if told == "running" else record.get("error", "")
        kept = f" (the page is stale, of {_when(record['page'])})" if record.get("page") else ""
        return {**record, "state": told, "why": f"{why}{kept}"}
    if not target.is_file() or not (results / one.name).is_dir():
        return {**record, "state": "not run", "why": ""}
    try:
        present = inputs(one, one.chosen(profile) | overrides, results, tree)
    except Refused as error:
        return {**record, "state": "stale", "why": str(error)}
    changed = [part for part in {**present, **known} if present.get(part) != known.get(part)]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return {**record, "state": "stale", "why": f"{changed[0]}{more} changed since"}
    for other in pages().values():
        if other.name != one.name and one.reads(other.name):
            state = status(other, book, tree)["state"]
            if state != "ok":
                return {**record, "state": "stale", "why": f"{other.name} is {state}"}
    return {**record, "why": ""}


def _book_profile(book: Path) -> str:
    """The profile that the book is made in: that of the last `make book`."""
    try:
        return (book / "_build" / "profile").read_text("utf-8").strip()
    except OSError:
        return "default"


def print_status(book: Path):
    """A line a page: its state, when it ran last, how long that took, its profile, and why it is not ok."""
    rows = [("notebook", "state", "last run", "took", "profile", "")]
    tree = Tree()
    states = {one.name: status(one, book, tree) for one in pages().values()}
    for name, state in states.items():
        when = "-"
        if "started" in state:
            when = _when(state)
        took = f"{state['duration']:.0f} s" if "duration" in state else "-"
        changed = "".join(f" {key}={value}" for key, value in state.get("overrides", {}).items())
        rows.append((name, state["state"], when, took, state.get("profile", "-") + changed, state["why"]))
    widths = [max(len(row[j]) for row in rows) for j in range(5)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[5]]).rstrip())


# --- verify ----------------------------------------------------------------------------------------------


def tolerance(file: str, column: str, rules: dict) -> tuple[float, float] | None:
    """(relative, absolute) for one column of a file 'notebook/id.csv'; None where it is not compared."""
    rule = {**rules["default"], **rules.get(file, {})}
    if column in rule.get("ignore", []):
        return None
    rule = {**rule, **rule.get("columns", {}).get(column, {})}
    return float(rule["rtol"]), float(rule["atol"])


def compare_file(found: Path, expected: Path, file: str, rules: dict) -> list[str]:
    """What differs between two csv files beyond the tolerance, in words; empty where nothing does."""
    from studies.report import read_csv

    if not found.is_file():
        return ["was not made"]
    ours, theirs = read_csv(found), read_csv(expected)
    if list(ours) != list(theirs):
        return [f"has columns {list(ours)} instead of {list(theirs)}"]
    differences = []
    for column, want in theirs.items():
        limits, got = tolerance(file, column, rules), ours[column]
        if limits is None:
            continue
        if len(got) != len(want):
            return [f"has {len(got)} rows instead of {len(want)}"]
        worst, where = 0.0, None
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            if isinstance(a, float) and isinstance(b, float):
                if a == b or (math.isnan(a) and math.isnan(b)):
                    continue
                ratio = abs(a - b) / (limits[1] + limits[0] * abs(b) or math.ulp(0.0))
                excess = ratio if math.isfinite(ratio) else math.inf
            else:
                excess = 0.0 if a == b else math.inf
            if excess > max(worst, 1.0):
                worst, where = excess, f"row {i + 1}: {a} instead of {b}"
        if where:
            differences.append(f"column {column!r} is off by {worst:.3g} times its tolerance, {where}")
    return differences


def compare(results: Path, expected: Path) -> bool:
    """Compare every expected csv with the one in `results`; print what differs."""
    if not results.is_dir():
        raise Refused(f"{results} is no folder: name one that holds a folder of results for each page")
    rules = read_yaml(expected / "tolerances.yml")
    files = sorted(path.relative_to(expected).as_posix() for path in expected.glob("*/*.csv"))
    extra = sorted({path.relative_to(results).as_posix() for path in results.glob("*/*.csv")} - set(files))
    wrong = 0
    for file in files:
        differences = compare_file(results / file, expected / file, file, rules)
        wrong += bool(differences)
        print(f"{'DIFFERS' if differences else 'agrees '}  {file}")
        for difference in differences:
            print(f"         {difference}")
    for file in extra:
        print(f"NEW      {file} has no expected values; `make expected` adds them")
    unused = sorted(set(rules) - {"default"} - set(files))
    for file in unused:
        print(f"UNUSED   tolerances.yml has a rule for {file}, which is not expected")
    print(f"{len(files) - wrong} of {len(files)} files agree within book/expected/tolerances.yml")
    return bool(files) and not (wrong or extra or unused)


def refresh_expected(book: Path, expected: Path):
    """Make the results of the book's default profile the expected ones: csv, codecheck.yml, README's figure."""
    from studies.presentation import title

    tree = Tree()
    for one in pages().values():
        name, state = one.name, status(one, book, tree)
        if state["state"] != "ok" or state["profile"] != "default" or state["overrides"]:
            how = f"{state['state']}, profile {state.get('profile')}"
            raise Refused(f"notebook {name!r} is {how}: run `make book` with the default profile first")
    for old in expected.glob("*/*.csv"):
        old.unlink()
    manifest = []
    for name in pages():
        results = book / "_build" / "results" / name
        files = [path for path in results.glob("*.json") if path.name != "claims.json"]
        sidecars = [json.loads(path.read_text("utf-8")) for path in files]
        for sidecar in sorted(sidecars, key=lambda s: (s["kind"], s["number"])):
            file = sidecar["files"]["csv"]
            (expected / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(results / file, expected / name / file)
            path = f"book/_build/results/{name}/{file}"
            manifest.append({"file": path, "comment": f"{sidecar['kind']}: {title(sidecar)}"})
    if book == ROOT / "book":
        results = book / "_build" / "results"
        shutil.copyfile(results / "one_dimension" / "width-sweep.png", ROOT / "book" / "readme.png")
        check = ROOT / "codecheck.yml"
        text = check.read_text("utf-8")
        about = yaml.safe_load(text) | {"manifest": manifest}
        head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
        check.write_text(
            "---\n" + head + yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=110), "utf-8"
        )
    print(f"{len(manifest)} files in {_short(expected)}")


# --- html ------------------------------------------------------------------------------------------------


def weave(one: Page, book: Path):
    """Give an executed page the prose and tags that its notebook has now, where the code is still the same."""
    target, stamp = book / "notebooks" / f"{one.name}.ipynb", book / "_build" / "runs" / f"{one.name}.json"
    record = _good_run(stamp)
    if record is None or not target.is_file():
        return
    executed = json.loads(target.read_text("utf-8"))
    done = [cell for cell in executed["cells"] if cell["cell_type"] == "code"]
    with contextlib.suppress(Refused):  # parameters that the notebook no longer has
        present = one.notebook(record["parameters"])["cells"]
        code = [cell for cell in present if cell["cell_type"] == "code"]
        if [cell["source"] for cell in code] == ["".join(cell["source"]) for cell in done]:
            for cell, ran in zip(code, done, strict=True):
                cell |= {"outputs": ran["outputs"], "execution_count": ran["execution_count"]}
            for i, cell in enumerate(present):
                cell["id"] = f"cell-{i:02d}"
            woven = executed | {"cells": present}
            if woven != executed:
                _write_json(target, woven)


def html(book: Path) -> bool:
    """Build the html of the book unless nothing that it shows has changed; True where it is there."""
    from studies.report import git_state

    build = book / "_build"
    for one in pages().values():
        weave(one, book)
    parts = [
        "*.md",
        "api/*.md",
        "*.yml",
        "*.bib",
        "notebooks/*.ipynb",
        "_ext/*.py",
        "_static/**/*",
        "_build/runs/*.json",
    ]
    parts += ["_build/results/**/*"]
    tree = Tree()
    files = sorted({path for part in parts for path in book.glob(part) if path.is_file()})
    found = {path.relative_to(book).as_posix(): tree.file(path) for path in files}
    found |= {name: tree.file(ROOT / name) for name in ("CITATION.cff",) if (ROOT / name).is_file()}
    for name in ("studies.pages", "studies.presentation", "studies.report", "studies.spend"):
        found[name] = tree.module(name).sha256
    found |= {
        path.relative_to(ROOT).as_posix(): tree.file(path) for path in sorted(ROOT.glob("entropic/**/*.py"))
    }
    found["commit"] = git_state()  # of the footer
    found["repository"] = os.environ.get("BOOK_REPOSITORY", "")
    stamp = build / "html.json"
    with contextlib.suppress(OSError, ValueError):
        if json.loads(stamp.read_text("utf-8")) == found and (build / "html" / "index.html").is_file():
            return True
    with _only(build / "scratch" / "html", "make book"):
        stamp.unlink(missing_ok=True)
        # Always from scratch: Sphinx repeats no warning of a page that it does not read again, and -W must see all.
        for old in (build / "html", book / ".doctrees", build / ".doctrees"):
            shutil.rmtree(old, ignore_errors=True)
        _say("Building the html")
        if subprocess.run([sys.executable, str(book / "_ext" / "build.py"), str(book)]).returncode:
            return False
        _write_json(stamp, found)
    return True


def serve(book: Path, port: int):
    """Serve the html of the book on 127.0.0.1 until Ctrl-C. Refused: there is none yet, or the port is in use."""
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    built = book / "_build" / "html"
    if not (built / "index.html").is_file():
        raise Refused("there is no book yet: make book")
    try:
        server = ThreadingHTTPServer(
            ("127.0.0.1", port), partial(SimpleHTTPRequestHandler, directory=str(built))
        )
    except (OSError, OverflowError) as error:
        reason = "in use, perhaps by an earlier make serve" if error.__class__ is OSError else str(error)
        raise Refused(
            f"port {port} cannot be served ({reason}): name another, as in make serve PORT=8001"
        ) from error
    with server:
        _say(f"http://127.0.0.1:{port}/  (Ctrl-C ends it)")
        server.serve_forever()


# --- command line ----------------------------------------------------------------------------------------


def explain(one: Page, profile: str):
    """Print the parameters of a page with their values in a profile, and what they mean."""
    values, meanings = one.chosen(profile), one.meanings()
    print(f"{_short(one.source)}, profile {profile!r}: parameters, to be set by -p NAME VALUE")
    width = max(map(len, values), default=0)
    for name, value in values.items():
        print(f"  {name:<{width}}  {value!r}  # {meanings[name]}")
    print(f"Profiles: {', '.join(profiles())}. {_short(HERE / 'run.py')} --help lists all commands.")


def _short(path: Path) -> str:
    try:
        return path.resolve().relative_to(ROOT).as_posix()
    except ValueError:
        return str(path)


def _say(text: str):
    print(text, flush=True)


def _write_json(path: Path, value):
    from entropic.files import write_atomically

    write_atomically(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def _folder(text: str) -> Path:
    return Path(text).expanduser().resolve()


def _jobs(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number from 1 on")
    return int(text)


def _parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser(
        "run", help="execute one notebook, all, or those that are out of date", add_help=False
    )
    one.add_argument("name", nargs="?", help="a page, or its notebook's file, 'all', or 'changed'")
    one.add_argument("--profile", default="default")
    one.add_argument("--jobs", type=_jobs, default=1, help="how many of them at a time")
    kept = commands.add_parser(
        "record", help="execute one in the profile 'recorded' and keep its data", add_help=False
    )
    kept.add_argument("name", nargs="?", help="a page, or its notebook's file")
    kept.set_defaults(profile="recorded")
    kept.add_argument("--as", dest="kept_as", help="the folder in book/results, by default the page's name")
    for command in (
        one,
        kept,
    ):  # told here for --help; taken out of the words before, since a value may begin with -
        command.add_argument("-p", nargs=2, metavar=("PARAMETER", "VALUE"), help="another value; repeatable")
        command.add_argument("-h", "--help", action="store_true", help="list the parameters of the notebook")
        command.set_defaults(text=command.format_help)
    others = [commands.add_parser(name) for name in ("html", "status", "expected", "serve")]
    others[-1].add_argument("--port", type=int, default=8000)
    for command in (one, kept, *others):
        command.add_argument("--book", type=_folder, default=ROOT / "book", help="the book's folder")
    check = commands.add_parser("compare")
    check.add_argument("results", type=_folder)
    check.add_argument("--expected", type=_folder, default=ROOT / "book" / "expected")
    return parser


def main(arguments=None) -> int:
    for stream in (sys.stdout, sys.stderr):  # a letter that the terminal does not know must not hide a report
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        overrides, words = take_overrides(sys.argv[1:] if arguments is None else arguments)
        args = _parser().parse_args(words)
        if args.command in ("run", "record"):
            if args.name is None and not args.help:
                raise Refused("no notebook is named: write its name, one of " + ", ".join(pages()))
            if args.name is None:
                print(args.text())
                return 0
            args.name = Path(args.name).stem if args.name.endswith(".ipynb") else args.name
            if args.help:
                explain(page(args.name), args.profile)
                return 0
        if overrides and (args.command not in ("run", "record") or args.name in ("all", "changed")):
            raise Refused("-p sets parameters of one notebook: name it, as in run one_dimension -p seed 1")
        if args.command == "run" and args.name in ("all", "changed"):
            return 0 if run_all(args.profile, args.book, args.jobs, args.name == "changed") else 1
        if args.command == "run":
            return 0 if run(args.name, args.profile, overrides, args.book) else 1
        if args.command == "record":
            return 0 if record(args.name, args.kept_as or args.name, overrides, args.book) else 1
        if args.command == "html":
            return 0 if html(args.book) else 1
        if args.command == "serve":
            serve(args.book, args.port)
            return 0
        if args.command == "compare":
            return 0 if compare(args.results, args.expected) else 1
        refresh_expected(args.book, args.book / "expected") if args.command == "expected" else print_status(
            args.book
        )
        return 0
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
