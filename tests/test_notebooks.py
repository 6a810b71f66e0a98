"""Every notebook in the smoke profile, its parameters, and what make does with a change or a failure."""

import ast
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import nbformat
import pytest
import yaml

from studies.claims import read_claims
from studies.pages import pages, profiles
from studies.report import read_csv
from tests.conftest import NOTEBOOKS, ROOT, run_python

PROFILES = ("smoke", "default", "recorded", "paper")


def source(name):
    return nbformat.from_dict(pages()[name].notebook())


def parameter_cells(notebook):
    return [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_in_smoke_and_leaves_complete_results(smoke, name):
    record = smoke.runs[name]
    assert record["state"] == "ok", smoke.said[-6000:]
    assert (smoke.book / "notebooks" / f"{name}.ipynb").is_file()
    sidecars = [p for p in (smoke.results / name).glob("*.json") if p.name != "claims.json"]
    assert sidecars, "a notebook that shows nothing"
    for path in sidecars:
        sidecar = json.loads(path.read_text("utf-8"))
        needed = ["caption", "notebook", "parameters", "versions", "device", "duration"]
        needed += ["commit", "dirty"] if (ROOT / ".git").exists() else []
        needed += ["alt", "size"] if sidecar["kind"] == "figure" else []
        assert [key for key in needed if sidecar.get(key) in (None, "")] == [], path.name
        assert sidecar["parameters"] == record["parameters"] and sidecar["notebook"] == name
        assert all((path.parent / file).stat().st_size for file in sidecar["files"].values())
        csv = (path.parent / sidecar["files"]["csv"]).read_bytes()
        assert hashlib.sha256(csv).hexdigest() == sidecar["sha256"]


def test_claims_are_complete(smoke):
    found = read_claims(smoke.results)  # which gives every verdict anew
    assert found and len({claim["id"] for claim in found}) == len(found)
    rows = read_csv(smoke.results / "claims" / "verdicts.csv")
    assert rows["verdict"] == [claim["verdict"] for claim in found]
    cases = read_csv(smoke.results / "claims" / "cases.csv")
    fell = list(zip(cases["claim"], cases["fell"], strict=True))
    for name, *counts in zip(*(rows[key] for key in ("id", "won", "lost", "undecided")), strict=True):
        assert counts == [fell.count((name, one)) for one in ("won", "lost", "undecided")]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_is_kept_without_outputs(name):
    for cell in source(name).cells:
        assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_parameters_are_documented_literals(name):
    cells = parameter_cells(source(name))
    assert len(cells) == 1, "one cell tagged `parameters`"
    lines = cells[0].source.splitlines()
    for statement in ast.parse(cells[0].source).body:
        assert isinstance(statement, ast.Assign), ast.unparse(statement)
        ast.literal_eval(statement.value)
        assert statement.lineno == statement.end_lineno, "papermill reads one line a parameter"
        assert "  # " in lines[statement.lineno - 1], f"say what it is: {ast.unparse(statement)}"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_defines_no_class(name):
    for cell in source(name).cells:
        if cell.cell_type == "code":
            assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(ast.parse(cell.source)))


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_fit_the_notebooks(profile):
    assert sorted(PROFILES) == profiles()
    for page in pages().values():
        assert page.chosen(profile).keys() == page.parameters().keys()
    path = ROOT / "notebooks" / "params" / f"{profile}.yml"
    if path.is_file():
        assert set(yaml.safe_load(path.read_text("utf-8"))) <= set(NOTEBOOKS)


def test_unknown_parameter_is_refused(tmp_path):
    words = [
        "run",
        NOTEBOOKS[0],
        "--profile",
        "smoke",
        "--book",
        tmp_path / "book",
        "-p",
        "no_such_thing",
        "3",
    ]
    refused = run_python(ROOT / "notebooks" / "run.py", *words)
    assert refused.returncode == 2 and "no_such_thing" in refused.stderr
    assert not (tmp_path / "book" / "notebooks").exists()


def test_unknown_notebook_and_profile_are_refused(tmp_path):
    for words in (["nothing"], [NOTEBOOKS[0], "--profile", "nothing"]):
        refused = run_python(ROOT / "notebooks" / "run.py", "run", *words, "--book", tmp_path / "book")
        assert refused.returncode == 2 and "nothing" in refused.stderr


# --- a project of two tiny notebooks, to see what make does ------------------------------------------------

CLAIMS = (
    "from studies.claims import record_claims\nrecord_claims([])\nprint(1 / n)"  # matplotlib takes a second
)
CELL = """from studies.report import save_figure
import matplotlib.pyplot as plt

def draw():
    fig, ax = plt.subplots()
    ax.plot([0, n])
    return fig

save_figure(draw, "line", data={"n": [n]}, caption="A line.", alt="A line.")
print(1 / n)"""


@pytest.fixture
def project(tmp_path):
    """A repository of two notebooks, at a path with a space."""
    project = tmp_path / "a project"
    shutil.copytree(ROOT / "notebooks" / "studies", project / "notebooks" / "studies", ignore=_PARTS)
    for folder in ("notebooks/params", "entropic", "book"):
        (project / folder).mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", project)
    shutil.copy(ROOT / "notebooks" / "run.py", project / "notebooks")
    for name in ("files.py", "_check.py", "_version.py"):
        shutil.copy(ROOT / "entropic" / name, project / "entropic")
    (project / "entropic" / "__init__.py").touch()
    (project / "notebooks" / "book.yml").write_text(
        'first: {}\nclaims: {recorded: [first], results: ["*/claims.json"]}\n'
    )
    for profile in ("smoke", "recorded", "paper"):
        (project / "notebooks" / "params" / f"{profile}.yml").write_text("first: {}\nclaims: {}\n")
    for name, cell in (("first", CELL), ("claims", CLAIMS)):
        cells = [nbformat.v4.new_code_cell("n = 2  # a number", metadata={"tags": ["parameters"]})]
        notebook = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell(cell)])
        notebook.metadata["kernelspec"] = {
            "name": "python3",
            "display_name": "Python 3",
            "language": "python",
        }
        nbformat.write(notebook, project / "notebooks" / f"{name}.ipynb")
    return project


_PARTS = shutil.ignore_patterns("__pycache__", "leaderboard", "published")


def make(project, *words):
    ours = (
        "MAKEFLAGS",
        "MAKEOVERRIDES",
        "MAKELEVEL",
        "MFLAGS",
        "PYTHONPATH",
        "ARGS",
        "NB",
        "PROFILE",
        "JOBS",
    )
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    command = ["make", "--no-print-directory", f"PYTHON={sys.executable}", *words]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def ran(result):
    assert result.returncode == 0, result.stdout + result.stderr
    return [name for name in ("first", "claims") if f"{name}: done" in result.stdout]


def states(project):
    lines = make(project, "status").stdout.splitlines()
    return {line.split()[0]: line for line in lines[1:]}


def edit(path, old, new):
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def test_new_prose_needs_no_run(project):
    assert ran(make(project, "executed")) == ["first", "claims"]
    path, page = project / "notebooks" / "first.ipynb", project / "book" / "notebooks" / "first.ipynb"
    before = nbformat.read(page, 4).cells
    notebook = nbformat.read(path, 4)
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell("What this shows."))
    notebook.cells[2].metadata["tags"] = ["hide-input"]
    nbformat.write(notebook, path)
    assert ran(make(project, "executed")) == []

    (project / "book" / "_ext").mkdir()
    build = [  # in the place of Sphinx, which leaves the sources of the pages beside them, too
        "from pathlib import Path",
        "html = Path('book/_build/html')",
        "(html / '_sources').mkdir(parents=True)",
        "(html / 'index.html').touch()",
        "(html / '_sources' / 'page.md').touch()",
        "print('built')",
    ]
    (project / "book" / "_ext" / "build.py").write_text("\n".join(build))
    words = [sys.executable, str(project / "notebooks" / "run.py"), "html"]
    assert "built" in subprocess.run(words, cwd=project, capture_output=True, text=True).stdout
    first, prose, last = nbformat.read(page, 4).cells
    assert prose.source == "What this shows." and last.metadata["tags"] == ["hide-input"]
    assert [first.outputs, last.outputs] == [cell.outputs for cell in before] and last.outputs
    woven = page.read_bytes()
    again = subprocess.run(words, cwd=project, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout == "" and page.read_bytes() == woven

    notebook.cells[1].source = "What another result shows."
    notebook.cells[2].source += "\nprint(n)"
    nbformat.write(notebook, path)  # the results are of the former code, and the prose stays with it
    assert subprocess.run(words, cwd=project).returncode == 0 and page.read_bytes() == woven


def test_make_runs_what_changed_and_no_more(project):
    assert all("not run" in line for line in states(project).values())
    assert ran(make(project, "executed")) == ["first", "claims"]
    executed = [project / "book" / "notebooks" / f"{name}.ipynb" for name in ("first", "claims")]
    before = [path.read_bytes() for path in executed]
    assert "cell 2 of 2" in make(project, "run", "NB=first").stdout  # progress
    assert all(" ok " in line for line in states(project).values())
    for path in project.rglob("*"):
        os.utime(path)
    assert ran(make(project, "executed")) == []  # a touch is no change, nor is a docstring or a comment
    report = project / "notebooks" / "studies" / "report.py"
    edit(report, '"""Figures and tables', '"""Tables and figures')
    report.write_text(report.read_text("utf-8") + "\n\n# A comment.\n", "utf-8")
    assert ran(make(project, "executed")) == []

    edit(project / "notebooks" / "claims.ipynb", "a number", "any number")
    assert " stale " in states(project)["claims"] and " ok " in states(project)["first"]
    assert ran(make(project, "executed")) == ["claims"]

    edit(report, '"lines.linewidth": 1.8', '"lines.linewidth": 1.9')
    assert all("notebooks/studies/report.py changed" in line for line in states(project).values())
    edit(report, '"lines.linewidth": 1.9', '"lines.linewidth": 1.8')
    edit(project / "notebooks" / "claims.ipynb", "any number", "a number")
    assert ran(make(project, "executed")) == ["claims"]
    assert [path.read_bytes() for path in executed] == before  # nothing random is left in them

    (project / "notebooks/params/smoke.yml").write_text("claims: {n: 3}\n")
    assert ran(make(project, "executed")) == []  # parameters of another profile
    assert ran(make(project, "executed", "PROFILE=smoke")) == ["first", "claims"]
    (project / "notebooks/params/smoke.yml").write_text("claims: {n: 4}\n")
    assert ran(make(project, "executed", "PROFILE=smoke")) == ["claims"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("-p n 1.5", "a whole number"),
        ("-p n true", "n = True"),
        ("-p n '!!python/tuple [1]'", "tag"),
        ("-p n '[1'", "not YAML"),
        ("-p n .nan", "finite"),
        ("-p n ''", "nothing"),
        ("-p n", "NAME VALUE"),
        ("-p m 1", "no parameter 'm'"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_before_anything_is_changed(project, words, said):
    page = project / "book" / "notebooks" / "first.ipynb"
    page.parent.mkdir(parents=True)
    page.write_text("a good page")
    refused = make(project, "run", "NB=first", f"ARGS={words}")
    assert refused.returncode != 0 and said in refused.stderr and "Traceback" not in refused.stderr
    assert page.read_text() == "a good page"


@pytest.mark.parametrize(
    ("file", "text"),
    [("book.yml", "first: [1"), ("params/smoke.yml", "{a: b"), ("params/smoke.yml", "first: 3")],
)
def test_a_broken_file_is_named(project, file, text):
    (project / "notebooks" / file).write_text(text)
    refused = make(project, "run", "NB=first", "PROFILE=smoke")
    assert refused.returncode != 0 and file in refused.stderr and "Traceback" not in refused.stderr


def test_one_writer_at_a_time_and_what_a_killed_run_leaves_is_swept(project):
    add_cell(project / "notebooks" / "first.ipynb", "import time\ntime.sleep(n)")
    words = [sys.executable, project / "notebooks" / "run.py", "run", "first"]
    build = project / "book" / "_build"
    lives = subprocess.Popen([*words, "-p", "n", "300"], stdout=subprocess.PIPE, text=True)
    try:
        for line in lives.stdout:
            if "cell 3 of 3" in line:
                break
        refused = make(project, "run", "NB=first")
        assert refused.returncode != 0 and "run of first" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert ran(make(project, "run", "NB=claims")) == ["claims"]  # another page may be run meanwhile
        held = build / "scratch" / "first"
        assert (held / "results" / "line.csv").is_file()  # of a run that is alive: not swept
    finally:
        lives.send_signal(signal.SIGKILL)
        lives.wait()
    assert " running " in states(project)["first"]
    (build / ".first-abc").mkdir()
    (build / ".first-abc" / "old").touch()
    assert ran(make(project, "run", "NB=claims")) == ["claims"]
    assert {path.name for path in held.iterdir()} <= {".lock"}
    assert ran(make(project, "run", "NB=first", "ARGS=-p n 0.1e1")) == ["first"]
    assert not list(build.glob(".first-*"))


def test_two_make_book_in_one_folder_are_refused(project):
    from entropic.files import only_writer

    folder = project / "book" / "_build" / "scratch" / "book"
    folder.mkdir(parents=True)
    with only_writer(folder, "make book"):
        refused = make(project, "executed")
    assert refused.returncode != 0 and "another make book" in refused.stderr
    assert "Traceback" not in refused.stderr and not (project / "book" / "notebooks").exists()


def test_a_report_is_printed_though_the_terminal_knows_ascii_only(project):
    add_cell(project / "notebooks" / "first.ipynb", "raise ValueError('\u03c3 \u2260 0')")
    words = [project / "notebooks" / "run.py", "run", "first"]
    failed = run_python(*words, cwd=project, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert failed.returncode == 1 and "ValueError: \\u03c3 \\u2260 0" in failed.stdout
    assert "Traceback" not in failed.stderr


def test_paths_of_the_environment_are_those_of_the_caller(project):
    """The kernel works in another folder: a relative path, and one that begins with ~, must mean the same there."""
    add_cell(
        project / "notebooks" / "first.ipynb",
        "import os\nprint(*[os.environ[f'ENTROPIC_{x}'] for x in ('CACHE', 'DATA', 'VAE')], sep='\\n')",
    )
    about = {"ENTROPIC_CACHE": "kept", "ENTROPIC_DATA": "~/data", "ENTROPIC_VAE": "a/name", "HOME": "/a/home"}
    done = run_python(project / "notebooks" / "run.py", "run", "first", cwd=project, **about)
    assert done.returncode == 0, done.stdout + done.stderr
    executed = nbformat.read(project / "book" / "notebooks" / "first.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0]["text"].split("\n")[:3] == [
        str(project / "kept"),
        "/a/home/data",
        str(project / "a/name"),
    ]


def test_what_is_read_must_be_declared(project):
    add_cell(project / "notebooks" / "first.ipynb", READ.replace('"first"', '"claims"'))
    failed = make(project, "run", "NB=first")
    assert failed.returncode != 0 and "book.yml" in failed.stdout


def test_a_failed_run_keeps_the_good_page_and_shows_its_cell(project):
    """Nobody loses a page of two hours to a typing error; `make status` says that it is not that of the last run."""
    failed = make(project, "run", "NB=first", "ARGS=-p n 0")
    assert failed.returncode != 0 and "still" not in failed.stdout
    assert "failed" in states(project)["first"] and "the page is" not in states(project)["first"]
    target, results = project / "book/notebooks/first.ipynb", project / "book/_build/results/first"
    assert not target.exists() and not results.exists()  # there was none

    done = make(project, "run", "NB=first")
    assert ran(done) == ["first"]
    assert "book/notebooks/first.ipynb" in done.stdout and "book/_build/results/first/" in done.stdout
    good = {path.name: path.read_bytes() for path in [target, *results.iterdir()]}
    for _ in range(2):  # what is kept survives a second failure, too
        failed = make(project, "run", "NB=first", "ARGS=-p n 0")
        assert failed.returncode != 0
        assert "print(1 / n)" in failed.stdout and "ZeroDivisionError" in failed.stdout
        assert "\x1b" not in failed.stdout and len(failed.stdout.splitlines()) < 60
        assert "the page is still that of 20" in failed.stdout
        assert {path.name: path.read_bytes() for path in [target, *results.iterdir()]} == good
        assert (project / "book/_build/failed/first.ipynb").is_file()
        line = states(project)["first"]
        assert " failed " in line and "n=0" in line and "ZeroDivisionError" in line
        assert "the page is stale, of 20" in line
    record = json.loads((project / "book/_build/runs/first.json").read_text("utf-8"))
    assert record["page"]["state"] == "ok" and record["page"]["parameters"] == {"n": 2}
    assert ran(make(project, "executed")) == ["first", "claims"]
    assert " ok " in states(project)["first"] and not (project / "book/_build/failed/first.ipynb").exists()


def test_the_parameters_of_a_notebook_are_listed_with_their_help(project):
    for name in ("first", "first.ipynb", "notebooks/first.ipynb"):
        told = make(project, "run", f"NB={name}", "ARGS=--help")
        assert told.returncode == 0 and "n  2  # a number" in told.stdout, told.stderr
    (project / "notebooks/params/smoke.yml").write_text("first: {n: 7}\n")
    assert "n  7  # a number" in make(project, "run", "NB=first", "PROFILE=smoke", "ARGS=-h").stdout
    assert not (project / "book/notebooks").exists()
    assert ran(make(project, "run", "NB=first.ipynb")) == ["first"]
    assert "there is no notebook 'none'" in make(project, "run", "NB=none.ipynb", "ARGS=--help").stderr


def test_a_port_in_use_is_said(project):
    assert "there is no book yet" in make(project, "serve").stderr
    (project / "book/_build/html").mkdir(parents=True)
    (project / "book/_build/html/index.html").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = make(project, "serve", f"PORT={port}")
    assert refused.returncode != 0 and f"port {port} cannot be served (in use" in refused.stderr
    assert "PORT=" in refused.stderr and "Traceback" not in refused.stderr
    refused = make(project, "serve", "PORT=70000")
    assert "port 70000 cannot be served" in refused.stderr and "Traceback" not in refused.stderr


def test_lab_opens_the_notebooks_in_this_environment(project):
    code = "import os, sys\nif __name__ == '__main__': print(sys.argv[1:], os.environ['PYTHONPATH'])\n"
    (project / "jupyterlab.py").write_text(code)
    opened = make(project, "lab", "ARGS=--no-browser")
    assert opened.returncode == 0, opened.stderr
    assert "['--notebook-dir=notebooks', '--no-browser']" in opened.stdout
    assert str(project / "notebooks") in opened.stdout


def test_a_notebook_run_by_hand_shows_what_make_shows(project, tmp_path):
    """By papermill, in another folder, without ENTROPIC_RUN: the record is that of the checkout."""
    add_cell(project / "notebooks/first.ipynb", "from studies.claims import record_claims\nrecord_claims([])")
    add_cell(project / "notebooks/claims.ipynb", READ)
    claims = "from studies.claims import read_claims\nfrom studies.report import read_result\n"
    claims += "print(read_result('first', 'line')[1], read_claims())"
    add_cell(project / "notebooks/claims.ipynb", claims)
    assert ran(make(project, "record", "NB=first", "ARGS=-p n 5")) == ["first"]
    edit(project / "notebooks/book.yml", '["*/claims.json"]', '["*/claims.json", first/line.json]')
    assert ran(make(project, "executed")) == ["first", "claims"]
    paths = os.pathsep.join(map(str, (project, project / "notebooks")))
    words = [
        "-m",
        "papermill",
        "--no-progress-bar",
        project / "notebooks/claims.ipynb",
        tmp_path / "by-hand.ipynb",
    ]
    by_hand = run_python(*words, cwd=tmp_path, PYTHONPATH=paths)
    assert by_hand.returncode == 0, by_hand.stderr
    made, hand = (
        nbformat.read(path, as_version=4).cells[-2:]
        for path in (project / "book/notebooks/claims.ipynb", tmp_path / "by-hand.ipynb")
    )
    assert [cell.outputs for cell in made] == [cell.outputs for cell in hand]
    assert made[0].outputs[0]["text"].strip() == "recorded [5.0]"


READ = """from studies.report import read_recorded

kept = read_recorded("first", "line")
print("nothing" if kept is None else f"{kept[0]['profile']} {kept[1]['n']}")"""


def add_cell(path, text):
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(text))
    nbformat.write(notebook, path)


def test_record_keeps_the_data_and_the_other_notebooks_read_it(project):
    """Csv and sidecar in book/results, whole or not at all; the book itself is left as it was."""
    (project / "notebooks/params/recorded.yml").write_text("first: {n: 5}\nclaims: {}\n")
    add_cell(project / "notebooks/first.ipynb", "from studies.claims import record_claims\nrecord_claims([])")
    add_cell(project / "notebooks/claims.ipynb", READ)
    kept, reader = project / "book/results/first", project / "book/notebooks/claims.ipynb"

    def told():
        assert ran(make(project, "run", "NB=claims")) == ["claims"]
        return nbformat.read(reader, as_version=4).cells[-1].outputs[0]["text"].strip()

    assert told() == "nothing"
    assert ran(make(project, "run", "NB=first")) == ["first"]
    before = (project / "book/_build/results/first/line.csv").read_bytes()

    kept.mkdir(parents=True)
    (kept / "of-an-earlier-record.csv").touch()
    assert ran(make(project, "record", "NB=first")) == ["first"]
    assert {path.name for path in kept.iterdir()} == {"line.csv", "line.json"}
    sidecar = json.loads((kept / "line.json").read_text("utf-8"))
    assert (sidecar["profile"], sidecar["parameters"]) == ("recorded", {"n": 5})
    assert sidecar["sha256"] == hashlib.sha256((kept / "line.csv").read_bytes()).hexdigest()
    assert told() == "recorded [5.0]"
    assert (project / "book/_build/results/first/line.csv").read_bytes() == before
    assert " ok " in states(project)["first"] and " default" in states(project)["first"]

    recorded = {path.name: path.read_bytes() for path in kept.iterdir()}
    failed = make(project, "record", "NB=first", "ARGS=-p n 0")
    assert failed.returncode != 0 and "ZeroDivisionError" in failed.stdout
    assert ran(make(project, "record", "NB=first", "ARGS=--as other -p n 7")) == ["first"]
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == recorded
    other = json.loads((project / "book/results/other/line.json").read_text("utf-8"))
    assert (other["notebook"], other["parameters"]) == ("first", {"n": 7})


def test_record_needs_a_notebook_that_exists(project):
    assert make(project, "record").returncode != 0
    refused = make(project, "record", "NB=nothing")
    assert refused.returncode != 0 and "nothing" in refused.stderr
    assert not (project / "book/results").exists()


def test_verify_finds_a_changed_number(project):
    """The comparison agrees with itself, and names a value that moved, a column and a file that is gone."""
    expected, results = project / "book" / "expected", project / "results"
    for folder in (expected / "first", results / "first"):
        folder.mkdir(parents=True)
    rules = {"default": {"rtol": 1e-3, "atol": 0.0}, "first/a.csv": {"columns": {"kl": {"atol": 0.5}}}}
    rules["first/a.csv"]["ignore"] = ["seconds"]
    (expected / "tolerances.yml").write_text(yaml.safe_dump(rules))
    (expected / "first" / "a.csv").write_text("name,n,kl,seconds\nedm,8,1.0,3\nours,16,,4\n")

    def compare(text):
        (results / "first" / "a.csv").write_text(text)
        words = ["compare", results, "--expected", expected]
        return run_python(project / "notebooks" / "run.py", *words, cwd=project)

    agrees = compare("name,n,kl,seconds\nedm,8.001,1.4,9\nours,16,,9\n")
    assert agrees.returncode == 0, agrees.stdout + agrees.stderr
    for text, word in (
        ("name,n,kl,seconds\nedm,8.1,1.0,3\nours,16,,4\n", "'n'"),
        ("name,n,kl,seconds\nedm,8,1.6,3\nours,16,,4\n", "'kl'"),
        ("name,n,kl,seconds\nedm,8,nan,3\nours,16,,4\n", "'kl'"),
        ("name,n,kl,seconds\nother,8,1.0,3\nours,16,,4\n", "'name'"),
        ("name,n,kl,seconds\nedm,8,1.0,3\n", "rows"),
        ("name,n,seconds\nedm,8,3\nours,16,4\n", "columns"),
    ):
        differs = compare(text)
        assert differs.returncode == 1 and word in differs.stdout, differs.stdout
    (results / "first" / "a.csv").unlink()
    (results / "first" / "b.csv").write_text("n\n1\n")
    missing = run_python(project / "notebooks" / "run.py", "compare", results, "--expected", expected)
    assert missing.returncode == 1 and "not made" in missing.stdout and "NEW" in missing.stdout
