"""The repository as a stranger finds it: pins that agree, commands that exist, nothing of one machine."""

import ast
import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import entropic
from studies.parameters import read_yaml
from tests.conftest import NOTEBOOKS, ROOT, run_python

PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def read(name):
    return (ROOT / name).read_text("utf-8")


@pytest.fixture(scope="module")
def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [Path(ROOT, name) for name in listed.stdout.split("\0") if name and Path(ROOT, name).is_file()]


def targets():
    return set(re.findall(r"^([a-z][a-z0-9-]*):", read("Makefile"), re.M))


def test_help_lists_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    listed = set(re.findall(r"^  make ([a-z0-9-]+) ", shown, re.M))
    assert listed == targets() - {"executed"}  # a part of `book`, not a command of its own
    assert {"help", "book", "test", "run", "verify", "status", "serve", "bench", "clean"} <= listed


def test_commands_in_the_text_exist():
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "book").glob("*.md"))):
        text = path.read_text("utf-8")
        named = set(re.findall(r"^(?:\$ | {4})?make ([a-z0-9-]+)", text, re.M)) | set(
            re.findall(r"`make ([a-z0-9-]+)", text)
        )
        assert named <= targets(), path.name
        used = set(re.findall(r"\bNB=(\w+)", text)) - {"name", "NAME"}
        assert used <= set(NOTEBOOKS), path.name


def test_readme_names_the_two_commands():
    assert {"book", "test"} <= set(re.findall(r"make ([a-z-]+)", read("README.md")))


# --- versions ----------------------------------------------------------------------------------------------


def locked():
    lines = [line.strip() for line in read("requirements.lock").splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def locked_alone():
    """Requirements that are installed without their own."""
    lines = read("requirements-no-deps.lock").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pins(python):
    """Package -> version on a Linux machine with that Python."""
    found = {}
    for requirement in locked():
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            assert canonical(requirement.name) not in found, f"{requirement.name} is pinned twice"
            (only,) = requirement.specifier
            found[canonical(requirement.name)] = Version(only.version)
    return found


def test_lock_is_exact_and_of_no_index():
    text = "\n".join(line for line in read("requirements.lock").splitlines() if not line.startswith("#"))
    assert not re.search(r"://|--|\+cpu|\bfile:|@", text)
    for requirement in [*locked(), *locked_alone()]:
        assert [s.operator for s in requirement.specifier] == ["=="], str(requirement)
        assert "*" not in str(requirement.specifier)


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_satisfies_the_ranges_of_the_project(python):
    # tomllib is not in Python 3.10, and every requirement is a string of its own in the file.
    text = read("pyproject.toml").split("[tool.", 1)[0].split("dependencies = [", 1)[1]
    wanted = [Requirement(item) for item in re.findall(r'"([a-z][^"]*[=<>][^"]*)"', text)]
    wanted = [one for one in wanted if one.name != "jupyterlab"]  # of `make lab` alone, which makes no result
    assert len(wanted) > 10
    versions = pins(python)
    versions |= {canonical(one.name): Version(next(iter(one.specifier)).version) for one in locked_alone()}
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"python_version": python}):
            continue
        version = versions[canonical(requirement.name)]
        assert version in requirement.specifier, f"{requirement} against {version}"


def test_lock_holds_what_is_installed_here():
    """Everything that the project needs is pinned, its dependencies' dependencies too."""
    from importlib.metadata import distribution

    versions = pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    optional = ("nvidia-", "cuda-", "triton")  # torch's own on Linux with CUDA
    missing = set()
    for name in versions:
        for line in distribution(name).requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                missing |= {canonical(needed.name)} - set(versions)
    assert {name for name in missing if not name.startswith(optional)} - {"pip"} == set()


def test_environment_has_the_same_pins():
    environment = yaml.safe_load(read("environment.yml"))
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-r requirements.lock", "-e ."]  # the package itself, too
    (python,) = [e for e in environment["dependencies"] if isinstance(e, str) and e.startswith("python=")]
    assert python.split("=")[1] in PYTHONS


def test_the_supported_pythons_agree():
    text = read("pyproject.toml")
    assert 'requires-python = ">=3.10"' in text  # no cap: a newer Python is tried, and not refused
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)
    assert tuple(named) == PYTHONS
    (matrix,) = re.findall(r"python: \[(.*)\]", read(".github/workflows/test.yml"))
    assert tuple(yaml.safe_load(f"[{matrix}]")) == PYTHONS


def test_pre_commit_has_the_ruff_of_the_lock():
    (hooks,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert hooks["rev"] == f"v{pins(PYTHONS[0])['ruff']}"


def test_issue_templates_are_whole():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text("utf-8"))
        if path.name != "config.yml":
            assert form["name"] and form["description"]
            assert all(
                part["type"] in ("textarea", "input") and part["attributes"]["label"] for part in form["body"]
            )


def extras():
    """Extra -> names of distributions that it brings, by itself or by another extra; "" has the dependencies."""
    text = read("pyproject.toml")
    found = {"": re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S)[1]}
    part = text.split("[project.optional-dependencies]", 1)[1].split("\n[", 1)[0]
    found |= dict(re.findall(r"^(\w+) = \[(.*?)\]$", part, re.M | re.S))
    wanted = {
        extra: [Requirement(item) for item in re.findall(r'"([^"]+)"', items)]
        for extra, items in found.items()
    }
    names = {}

    def add(extra):
        brought = {canonical(one.name) for one in [*wanted[""], *wanted[extra]]}
        for one in wanted[extra]:
            if canonical(one.name) == "entropic-time":
                brought |= set().union(*(add(other) for other in one.extras))
        return brought

    for extra in wanted:
        names[extra] = add(extra) - {"entropic-time"}
    return names


@pytest.mark.parametrize(
    ("folder", "extras_used"),
    [
        ("entropic", ("", "images", "metrics", "pipelines", "skrample", "vae")),
        ("notebooks", ("book", "metrics", "pipelines")),
        ("tests", ("test",)),
    ],
)
def test_what_is_imported_is_declared(folder, extras_used):
    """Each package that the code of a folder imports is named by an extra for it, and comes not by chance."""
    from importlib.metadata import packages_distributions

    homes = packages_distributions()
    declared = set().union(*(extras()[extra] for extra in extras_used))
    if folder != "entropic":
        declared |= {canonical(one.name) for one in locked_alone()}
    paths = [path for path in (ROOT / folder).rglob("*.py") if "params" not in path.parts]
    lines = "\n".join(path.read_text("utf-8") for path in paths)
    used = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(lines.replace("from __future__ import annotations", "")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom) and node.level == 0
            else []
        )
    }
    ours = {
        "entropic",
        "studies",
        "tests",
        *(path.stem for folder in ("book/_ext", "notebooks") for path in (ROOT / folder).glob("*.py")),
    }
    stray = {
        name
        for name in used - ours - set(sys.stdlib_module_names)
        if not declared & {canonical(home) for home in homes.get(name, [name])}
    }
    assert stray == set()


# --- papers and people -------------------------------------------------------------------------------------


def test_citation_names_the_paper():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"]
    assert citation["license"] == "MIT" and citation["type"] == "software" and citation["authors"]
    assert citation["version"] == entropic.__version__
    assert "```{citation}" in read("book/cite.md")  # the page takes it from here
    assert re.search(rf"^## {re.escape(entropic.__version__)}\b", read("CHANGELOG.md"), re.M)
    for paper in (citation["preferred-citation"], *citation["references"]):
        assert {"type", "title", "authors"} <= set(paper)
        assert [author["family-names"] for author in paper["authors"]] == [
            "Stancevic",
            "Handke",
            "Ambrogioni",
        ]
        assert paper["year"] == 2025 and "2504.13612" in paper["url"]


def test_codecheck_lists_the_expected_outputs():
    listed = [entry["file"] for entry in yaml.safe_load(read("codecheck.yml"))["manifest"]]
    expected = [
        p.relative_to(ROOT / "book" / "expected") for p in (ROOT / "book" / "expected").glob("*/*.csv")
    ]
    assert sorted(listed) == sorted(f"book/_build/results/{path.as_posix()}" for path in expected)
    assert {path.parent.name for path in expected} == set(NOTEBOOKS)


def test_every_tolerance_has_a_reason_and_a_file():
    rules = read_yaml(ROOT / "book" / "expected" / "tolerances.yml")  # as `run.py compare` reads it
    assert {"rtol", "atol"} <= set(rules["default"])
    for file, rule in rules.items():
        assert rule["why"].strip(), file
        assert file == "default" or (ROOT / "book" / "expected" / file).is_file(), file


# --- what is kept ------------------------------------------------------------------------------------------


def test_nothing_large_is_kept(tracked):
    others = [path for path in tracked if path.suffix != ".safetensors"]
    assert [path.name for path in others if path.stat().st_size > 5_000_000] == []


ASSETS = sorted(
    path
    for path in (ROOT / "entropic" / "images" / "assets").rglob("*")
    if path.is_file() and not path.name.startswith(".")
)


@pytest.mark.parametrize("path", [p for p in ASSETS if p.suffix == ".safetensors"], ids=lambda p: p.stem)
def test_shipped_weights_are_small_and_those_of_their_record(path):
    from entropic.images.networks.weights import load_weights

    assert path.stat().st_size <= 8_000_000
    tensors, info = load_weights(path)  # ValueError where the sha256 is another
    assert tensors and info["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The unpacked wheel of the sources as they are."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("entropic", "notebooks", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    words = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder / "made",
        folder,
    ]
    built = run_python(*words, cwd=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (folder / "made").glob("*.whl")
    with zipfile.ZipFile(path) as file:
        file.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_the_wheel_is_the_library_and_nothing_else(wheel):
    names = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    (about,) = [path for path in wheel.glob("*.dist-info")]
    assert {name.partition("/")[0] for name in names} == {"entropic", about.name}
    assert not [name for name in names if "studies" in name or "figures" in name or name.endswith(".ipynb")]
    assert {path.relative_to(ROOT).as_posix() for path in ASSETS} <= names
    metadata = (about / "METADATA").read_text("utf-8")
    needed = [Requirement(line) for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.M)]
    core = {one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})}
    assert core == {"torch", "numpy", "scipy", "filelock", "tqdm"}
    assert re.search(r"^Name: entropic-time$", metadata, re.M)
    assert re.search(rf"^Version: {re.escape(entropic.__version__)}$", metadata, re.M)
    assert "entropic/py.typed" in names
    assert "entropic = entropic.__main__:main" in (about / "entry_points.txt").read_text("utf-8")


def test_the_wheel_s_weights_load(wheel, tmp_path):
    code = "import entropic, entropic.images.networks as n; n.load_network('fashion-mnist'); print(entropic.__file__)"
    loaded = run_python("-c", code, cwd=tmp_path, PYTHONPATH=str(wheel))
    assert loaded.returncode == 0, loaded.stderr
    assert Path(loaded.stdout.strip()).is_relative_to(wheel)


def test_recorded_results_say_where_they_come_from():
    """What no reader's `make book` computes is only worth its provenance."""
    folder = ROOT / "book" / "results"
    if not folder.is_dir():
        pytest.skip("nothing is recorded in book/results yet; make record NB=... does it")
    sidecars = sorted(folder.glob("*/*.json"))
    assert sidecars
    files = {path for path in folder.rglob("*") if path.is_file()}
    assert files == {path.with_suffix(suffix) for path in sidecars for suffix in (".json", ".csv")}
    for path in sidecars:
        where = path.relative_to(folder).as_posix()
        sidecar = json.loads(path.read_text("utf-8"))
        assert sidecar["id"] == path.stem and sidecar["notebook"] in NOTEBOOKS, where
        if path.parent.name in NOTEBOOKS:  # else it was kept under another name, for other data
            assert sidecar["notebook"] == path.parent.name, where
        assert sidecar["profile"] == "recorded" and sidecar["parameters"] and sidecar["device"], where
        assert re.fullmatch(r"[0-9a-f]{40}", sidecar["commit"] or ""), where
        assert sidecar["duration"] > 0, where
        digest = hashlib.sha256(path.with_suffix(".csv").read_bytes()).hexdigest()
        assert sidecar["sha256"] == digest, where


def test_no_product_is_kept(tracked):
    products = ("book/_build/", "book/notebooks/", ".venv/", "notebooks/results/")
    assert [p for p in tracked if p.relative_to(ROOT).as_posix().startswith(products)] == []


def test_no_path_of_one_machine_is_kept(tracked):
    private = [f"{ROOT.parent}/".encode(), f"{Path.home()}/".encode()]
    private = [path for path in private if path != b"//"]
    assert [p.name for p in tracked if any(path in p.read_bytes() for path in private)] == []


def test_ruff_is_content():
    for words in (["check"], ["format", "--check"]):
        result = run_python("-m", "ruff", *words, ".")
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]


def test_the_page_on_galaxies_has_the_numbers_of_its_record():
    # This sentence is typed; the record that it tells of may be made again.
    page = json.loads(read("notebooks/galaxies.ipynb"))
    full = next(
        " ".join(text.split())
        for cell in page["cells"]
        if "At full size" in (text := "".join(cell["source"]))
    )

    def gains(folder):
        path = ROOT / "book" / "results" / folder / "gains.csv"
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    for survey in ("hsc", "ztf"):
        ratios = [
            float(row["measured"]) / float(row["pilots"])
            for row in gains("galaxies")
            if row["network"].startswith(survey)
        ]
        assert f"is {min(ratios):.2f} to {max(ratios):.1f} times" in full
    rows = gains("galaxies_others")
    quasar = [float(row["measured"]) for row in rows if row["network"] == "quasar-72"]
    assert max(quasar) < 1.002


def expected_table(name):
    with (ROOT / "book" / "expected" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_what_the_prose_says_of_tables_holds():
    """Sentences without a number of the results, each beside the table that it is of."""
    advice = {row["with"]: row for row in expected_table("which_schedule/on-paths.csv")}
    assert all(float(row["measured"]) < 1 for row in advice.values())
    assert all(float(advice[f"2M, {calls}"]["curve"]) < 1 for calls in (4, 5, 8))
    assert all(float(advice[f"2M, {calls}"]["curve"]) > 1 for calls in (9, 16, 32))
    for row in expected_table("leaderboard/varying-scale.csv"):
        measured, others = float(row["ours, measured"]), (float(row["ours"]), float(row["rival"]))
        assert measured < min(others) * (1.04 if "DDIM" in row["with"] else 1), row["with"]
    varying = expected_table("leaderboard/varying-scale.csv")
    assert sum(float(row["ours"]) > float(row["rival"]) for row in varying) > len(varying) / 2
    missed = [row["target"] for row in expected_table("leaderboard/targets.csv") if row["met"] == "no"]
    assert len(missed) == 1 and "width 0.05, Heun with 9 levels" in missed[0]
    behind = {(row["solver"], row["metric"]) for row in expected_table("paper_tables/behind.csv")}
    assert behind == {("deterministic", "FD-DINOv2")}
    ratios = {
        (row["series"], float(row["nfe"])): float(row["ratio"])
        for row in expected_table("paper_tables/in-the-paper.csv")
    }
    fid = {series for series, _ in ratios if series.startswith("FID,")}
    assert fid and all(ratios[series, 64] > ratios[series, 32] for series in fid)
    gain = {row["schedule"]: float(row["ratio"]) for row in expected_table("take_home/gain.csv")}
    measured, w2, features = gain["ours, measured"], gain["ours, curve, W2"], gain["ours, curve, features"]
    assert measured < w2 < 1 < features
