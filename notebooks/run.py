"""Runs the notebooks, says how they stand, and checks their results against the committed ones.

    python notebooks/run.py run NAME [--profile default] [-p parameter value ...]
    python notebooks/run.py record NAME [--as FOLDER] [-p parameter value ...]
                                            run in the profile "recorded", keep the data in book/results/FOLDER
    python notebooks/run.py status
    python notebooks/run.py expected        copy the results of the book to book/expected
    python notebooks/run.py compare RESULTS  compare a folder of results with book/expected

A run executes `notebooks/NAME.ipynb` into a temporary file. Only where every cell succeeded does it become
`BOOK/notebooks/NAME.ipynb`, with its figures and data under `BOOK/_build/results/NAME/`; a failed run leaves
neither, and is kept for a look under `BOOK/_build/failed/`. `BOOK/_build/runs/NAME.json` records how it went.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from datetime import datetime, timezone
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PROFILES = sorted(path.stem for path in (HERE / "params").glob("*.yml"))


class Refused(Exception):
    """What was asked for makes no sense; the message says what would."""


# --- what there is ---------------------------------------------------------------------------------------


def names() -> list[str]:
    """The notebooks in the order of the book, the claims, which read the others' results, last."""
    order = list(yaml.safe_load((HERE / "params" / "default.yml").read_text("utf-8")))
    found = {path.stem for path in HERE.glob("*.ipynb")}
    if found != set(order):
        raise Refused(f"params/default.yml lists {sorted(order)}, notebooks/ holds {sorted(found)}")
    return order


def sources(name: str) -> list[Path]:
    """The files that a notebook's results depend on; the same as in the Makefile."""
    folders = (ROOT / "entropic", HERE / "studies")
    package = [
        p for folder in folders for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts
    ]
    found = [HERE / f"{name}.ipynb", *sorted((HERE / "params").glob("*.yml")), *sorted(package)]
    if found[0].is_file() and re.search("read_recorded|pretrained.results", found[0].read_text("utf-8")):
        found += sorted((ROOT / "book" / "results").glob("*/*"))
    return found


def sources_hash(name: str) -> str:
    digest = hashlib.sha256()
    for path in sources(name):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def known_parameters(notebook: Path) -> dict:
    """Parameter -> (default, help), from the cell tagged `parameters`."""
    import papermill

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = papermill.inspect_notebook(str(notebook))
    return {name: (_literal(entry["default"]), entry["help"].strip()) for name, entry in found.items()}


def chosen_parameters(notebook: Path, profile: str, overrides: dict) -> dict:
    """What the profile and the command line set, checked against the notebook's own parameters."""
    path = HERE / "params" / f"{profile}.yml"
    if not path.is_file():
        raise Refused(f"profile {profile!r} does not exist: take one of {', '.join(PROFILES)}")
    values = (yaml.safe_load(path.read_text("utf-8")) or {}).get(notebook.stem) or {}
    known = known_parameters(notebook)
    for where, given in ((f"params/{profile}.yml", values), ("-p", overrides)):
        for key in given:
            if key not in known:
                has = ", ".join(known) or "none"
                raise Refused(f"{where}: notebook {notebook.stem!r} has no parameter {key!r}; it has {has}")
    return {**values, **overrides}


# --- run -------------------------------------------------------------------------------------------------


def run(name: str, profile: str, overrides: dict, book: Path) -> bool:
    """Execute one notebook; True where it succeeded."""
    started = time.time()
    source = HERE / f"{name}.ipynb"
    if not source.is_file():
        raise Refused(f"there is no notebook {name!r}: take one of {', '.join(names())}")
    chosen = chosen_parameters(source, profile, overrides)
    label = f"[{names().index(name) + 1}/{len(names())}] {name}"
    build = book / "_build"
    target, results = book / "notebooks" / f"{name}.ipynb", build / "results" / name
    for folder in (target.parent, results.parent, build / "runs", build / "failed"):
        folder.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    (build / "failed" / f"{name}.ipynb").unlink(missing_ok=True)

    record = {
        "notebook": name,
        "state": "running",
        "started": datetime.fromtimestamp(started, timezone.utc).isoformat(timespec="seconds"),
        "profile": profile,
        "overrides": overrides,
        "parameters": {key: value for key, (value, _) in known_parameters(source).items()} | chosen,
        "sources": sources_hash(name),
    }
    stamp = build / "runs" / f"{name}.json"
    _write_json(stamp, record)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=build) as scratch:
        out, executed = Path(scratch, "results"), Path(scratch, f"{name}.ipynb")
        out.mkdir()
        about = {"notebook": name, "profile": profile, "parameters": record["parameters"], "started": started}
        about |= {"out": str(out.resolve()), "results": str(results.parent.resolve())}
        about |= {"recorded": str(ROOT / "book" / "results")}
        environment = {
            "ENTROPIC_RUN": json.dumps(about),
            "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not one of the user's home
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), str(HERE), os.environ.get("PYTHONPATH")])),
            "PYTHONHASHSEED": "0",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        os.environ.update(environment)
        error = _execute(source, executed, chosen, scratch, label)
        record["duration"] = round(time.time() - started, 1)
        if error:
            shutil.rmtree(results, ignore_errors=True)
            if executed.exists():
                executed.replace(build / "failed" / f"{name}.ipynb")
            record |= {"state": "failed", "error": error.splitlines()[-1] if error else ""}
        else:
            shutil.rmtree(results, ignore_errors=True)
            out.replace(results)
            executed.replace(target)
            record["state"] = "ok"
    _write_json(stamp, record)
    if error:
        _say(f"{label}: FAILED after {record['duration']} s\n{error}")
        _say(f"(the notebook as far as it came: {_short(build / 'failed' / f'{name}.ipynb')})")
    else:
        _say(f"{label}: done in {record['duration']} s")
    return not error


def _execute(source: Path, executed: Path, parameters: dict, cwd: str, label: str) -> str:
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
                parameters,
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
    """Drop what says where and when, so that the same run gives the same notebook."""
    notebook = json.loads(path.read_text("utf-8"))
    notebook["metadata"].pop("papermill", None)
    for cell in notebook["cells"]:
        cell["metadata"].pop("papermill", None)
        cell["metadata"].pop("execution", None)
    _write_json(path, notebook)


# --- record ----------------------------------------------------------------------------------------------


def record(name: str, kept_as: str, overrides: dict, book: Path) -> bool:
    """Run a notebook in the profile "recorded" beside the book, and keep its csv and json in BOOK/results."""
    if not re.fullmatch(r"[a-z0-9_-]+", kept_as):
        raise Refused(f"--as {kept_as!r}: must be a name of lower-case letters, digits, - and _")
    elsewhere = book / "_build" / f"record-{kept_as}"
    if not run(name, "recorded", overrides, elsewhere):
        return False
    kept = book / "results" / kept_as
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{kept_as}-", dir=kept.parent) as scratch:
        fresh = Path(scratch, kept_as)
        fresh.mkdir()
        for path in sorted((elsewhere / "_build" / "results" / name).iterdir()):
            if path.suffix in {".csv", ".json"} and path.name != "claims.json":
                shutil.copyfile(path, fresh / path.name)
        shutil.rmtree(kept, ignore_errors=True)
        fresh.replace(kept)
    _say(f"recorded in {_short(kept)}; commit it")
    return True


# --- status ----------------------------------------------------------------------------------------------


def status(name: str, book: Path) -> dict:
    """The state of a notebook ('ok', 'stale', 'failed', 'not run') with the reason, and its last run."""
    stamp, target = book / "_build" / "runs" / f"{name}.json", book / "notebooks" / f"{name}.ipynb"
    record = json.loads(stamp.read_text("utf-8")) if stamp.is_file() else {}
    if record.get("state") == "failed":
        return {**record, "state": "failed", "why": record.get("error", "")}
    if record.get("state") == "running" and not target.is_file():
        return {**record, "state": "running", "why": "or was interrupted"}
    if not record or not target.is_file():
        return {**record, "state": "not run", "why": ""}
    done = target.stat().st_mtime
    newer = [path for path in sources(name) if path.stat().st_mtime > done]
    if name == "claims":  # it reads what the others leave
        others = [other for other in names() if other != name]
        newer += [
            p
            for p in (book / "notebooks" / f"{o}.ipynb" for o in others)
            if p.is_file() and p.stat().st_mtime > done
        ]
        waits = [other for other in others if status(other, book)["state"] != "ok"]
        if waits and not newer:
            return {**record, "state": "stale", "why": f"{waits[0]} is not ok"}
    if newer:
        more = f" and {len(newer) - 1} more" if len(newer) > 1 else ""
        return {**record, "state": "stale", "why": f"{_short(newer[0])}{more} changed since"}
    return {**record, "state": "ok", "why": ""}


def print_status(book: Path) -> bool:
    rows = [("notebook", "state", "last run", "took", "profile", "")]
    states = [status(name, book) for name in names()]
    for name, state in zip(names(), states, strict=True):
        when = "-"
        if "started" in state:
            when = datetime.fromisoformat(state["started"]).astimezone().strftime("%Y-%m-%d %H:%M")
        took = f"{state['duration']:.0f} s" if "duration" in state else "-"
        changed = "".join(f" {key}={value}" for key, value in state.get("overrides", {}).items())
        rows.append((name, state["state"], when, took, state.get("profile", "-") + changed, state["why"]))
    widths = [max(len(row[j]) for row in rows) for j in range(5)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[5]]).rstrip())
    return all(state["state"] == "ok" for state in states)


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
    rules = yaml.safe_load((expected / "tolerances.yml").read_text("utf-8"))
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
    for name in names():
        state = status(name, book)
        if state["state"] != "ok" or state["profile"] != "default" or state["overrides"]:
            how = f"{state['state']}, profile {state.get('profile')}"
            raise Refused(f"notebook {name!r} is {how}: run `make book` with the default profile first")
    for old in expected.glob("*/*.csv"):
        old.unlink()
    manifest = []
    for name in names():
        results = book / "_build" / "results" / name
        files = [path for path in results.glob("*.json") if path.name != "claims.json"]
        sidecars = [json.loads(path.read_text("utf-8")) for path in files]
        for sidecar in sorted(sidecars, key=lambda s: (s["kind"], s["number"])):
            file = sidecar["files"]["csv"]
            (expected / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(results / file, expected / name / file)
            first = re.split(r"(?<=[.:;]) ", " ".join(sidecar["caption"].split()))[0]
            path = f"book/_build/results/{name}/{file}"
            manifest.append({"file": path, "comment": f"{sidecar['kind']}: {first}"})
    if book == ROOT / "book":
        results = book / "_build" / "results"
        shutil.copyfile(results / "one_dimension" / "width-sweep.png", ROOT / "book" / "readme.png")
        check = ROOT / "codecheck.yml"
        text = check.read_text("utf-8")
        about = yaml.safe_load(text) | {"manifest": manifest}
        head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
        check.write_text(
            head + yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=110), "utf-8"
        )
    print(f"{len(manifest)} files in {_short(expected)}")


# --- command line ----------------------------------------------------------------------------------------


def _literal(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _short(path: Path) -> str:
    try:
        return path.resolve().relative_to(ROOT).as_posix()
    except ValueError:
        return str(path)


def _say(text: str):
    print(text, flush=True)


def _write_json(path: Path, value):
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(part, path)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="execute one notebook, or all")
    one.add_argument("name", help="a notebook, or 'all'")
    one.add_argument("--profile", default="default")
    kept = commands.add_parser(
        "record", help="execute one notebook in the profile 'recorded' and keep its data"
    )
    kept.add_argument("name")
    kept.add_argument(
        "--as", dest="kept_as", help="the folder in book/results; the notebook's name unless given"
    )
    for command in (one, kept):
        command.add_argument(
            "-p", nargs=2, action="append", default=[], metavar=("PARAMETER", "VALUE"), dest="overrides"
        )
    for command in (one, kept, commands.add_parser("status"), commands.add_parser("expected")):
        command.add_argument("--book", type=Path, default=ROOT / "book", help="the book's folder")
    check = commands.add_parser("compare")
    check.add_argument("results", type=Path)
    check.add_argument("--expected", type=Path, default=ROOT / "book" / "expected")
    args = parser.parse_args(arguments)
    try:
        if args.command == "status":
            print_status(args.book)
            return 0
        if args.command == "expected":
            refresh_expected(args.book, args.book / "expected")
            return 0
        if args.command == "compare":
            return 0 if compare(args.results, args.expected) else 1
        overrides = {key: yaml.safe_load(value) for key, value in args.overrides}
        if args.command == "record":
            return 0 if record(args.name, args.kept_as or args.name, overrides, args.book) else 1
        if args.name != "all":
            return 0 if run(args.name, args.profile, overrides, args.book) else 1
        if overrides:
            raise Refused("-p sets parameters of one notebook: name it")
        return 0 if all([run(name, args.profile, {}, args.book) for name in names()]) else 1
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
