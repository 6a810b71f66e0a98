"""Every Python block of README and of the book's pages runs as it stands; README's picture is what its lines make."""

import functools
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from studies.examples import blocks, main
from tests.conftest import ROOT, run_python
from tests.images.networks.snapshots import pickled, snapshot

PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "book").glob("*.md"))) if blocks(path)]
EVERY = [(path, block.line) for path in PAGES for block in blocks(path)]


def _given(folder):
    """What README says must be downloaded: a snapshot, here tiny and of random weights."""
    from entropic.images.networks import edm2

    sizes = {"img_resolution": 16, "img_channels": 4, "label_dim": 10, "model_channels": 16}
    sizes |= {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
    content = pickled(snapshot(edm2.Precond(**sizes).half(), sizes))
    (folder / "edm2-img512-xs-2147483-0.135.pkl").write_bytes(content)


@functools.cache
def _ran(path):
    """Number of a block's first line -> how it went; what was said; the picture of the README."""
    with tempfile.TemporaryDirectory() as folder:
        _given(Path(folder))
        run = run_python("-m", "studies.examples", path, cwd=folder, ENTROPIC_CACHE=f"{folder}/cache")
        found = dict(re.findall(rf"^{re.escape(path.name)}:(\d+): (.*) after", run.stdout, re.M))
        picture = Path(folder) / "samples.png"
        shown = np.asarray(Image.open(picture)) if picture.is_file() else None
    return {int(line): how for line, how in found.items()}, run.stdout + run.stderr, shown


@pytest.mark.once
@pytest.mark.parametrize(("path", "line"), EVERY, ids=[f"{path.name}:{line}" for path, line in EVERY])
def test_a_block_runs_as_it_stands(path, line):
    outcomes, said, _ = _ran(path)
    how = outcomes.get(line, "not run")
    if how.startswith("needs"):
        pytest.skip(f"{path.name}:{line} {how}")
    assert how == "ok", said


@pytest.mark.once
def test_the_readme_s_picture_is_what_its_lines_make():
    kept = np.asarray(Image.open(ROOT / "book" / "samples.png"))
    _, said, made = _ran(ROOT / "README.md")
    assert made is not None, said
    # Another processor rounds otherwise: a grey level here and there, never another image.
    assert made.shape == kept.shape and np.abs(made.astype(int) - kept).mean() < 2


def test_no_code_hides_from_this_test():
    """Python stands in fenced blocks only: an indented one, or one without a language, would not be run."""
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "book").glob("*.md")):
        rest = re.sub(r"^```(python|bibtex|bash) *\n.*?^```", "", path.read_text("utf-8"), flags=re.M | re.S)
        assert re.findall(r"^(?:    )?(?:import \w|from \w+.* import ).*$", rest, re.M) == [], path.name


@pytest.fixture(name="page")
def _page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "page.md"
    path.write_text(
        "A.\n\n```python\na = 1\n```\n\n```python\nimport no_such\n```\n\n```python\nprint(a)\na / 0\n```\n"
    )
    return path


def test_blocks_share_their_variables_and_a_failure_names_its_line(page, capsys):
    assert main([str(page)]) == 1
    said = capsys.readouterr()
    assert "page.md:4: ok" in said.out and "page.md:8: needs no_such" in said.out
    assert "1\npage.md:12: failed" in said.out and 'page.md", line 13' in said.err and "a / 0" in said.err


def test_one_block_alone(page, capsys):
    assert main([str(page), "--only", "1"]) == 0
    assert capsys.readouterr().out.startswith("page.md:4: ok")
    with pytest.raises(SystemExit):
        main([str(page), "--only", "4"])
    assert "--only 4: " in capsys.readouterr().err
