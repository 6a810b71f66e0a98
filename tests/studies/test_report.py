"""save_figure, save_table, leave_json: what they leave, the same each time, and what they refuse."""

import ast
import csv
import hashlib
import json
import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from studies import report as figures
from studies.report import (
    leave_json,
    read_csv,
    read_json,
    read_recorded,
    read_result,
    save_figure,
    save_table,
    shade,
    style,
)
from studies.sources import Tree

X = torch.linspace(0, 1, 5, dtype=torch.float64)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENTROPIC_RUN", raising=False)
    monkeypatch.setattr(figures, "_SHOWN", {})
    monkeypatch.setattr(figures, "BOOK", tmp_path / "book")
    return tmp_path / "results" / "scratch"


def draw():
    fig, ax = plt.subplots()
    ax.plot(X, X**2, label=r"$\sigma$")
    ax.legend()
    return fig


def save(id="rise", drawn=draw, **changes):
    data = {"x": X, "y": X**2}
    save_figure(drawn, id, **{"data": data, "caption": "A rise in $\\sigma$.", "alt": "Rising.", **changes})


def test_a_figure_leaves_its_files_data_and_sidecar(folder):
    save(seed=3)
    sidecar, columns = read_result("scratch", "rise")
    names = {"rise.csv", "rise.svg", "rise-dark.svg", "rise.png", "rise.pdf", "rise.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert columns == {"x": X.tolist(), "y": (X**2).tolist()}
    assert sidecar["sha256"] == hashlib.sha256((folder / "rise.csv").read_bytes()).hexdigest()
    assert sidecar["seed"] == 3 and sidecar["alt"] == "Rising." and sidecar["versions"]["torch"]
    assert set(sidecar) >= {"commit", "dirty", "parameters", "device", "duration", "notebook", "caption"}
    assert plt.get_fignums() == []


def test_the_same_input_gives_the_same_bytes(folder):
    kept = []
    for _ in range(2):
        save()
        kept.append({path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"})
    assert kept[0] == kept[1]


def test_figures_do_not_depend_on_the_users_settings(folder):
    save()
    before = (folder / "rise.svg").read_bytes()
    with plt.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        save()
    assert (folder / "rise.svg").read_bytes() == before


def test_svg_asks_for_nothing_and_has_no_ground(folder):
    save()
    for name in ("rise.svg", "rise-dark.svg"):
        text = (folder / name).read_text()
        assert "<text" not in text and "<dc:date" not in text
        assert not re.findall(r"(?:href|src)=\"http|url\(http", text)
        assert "fill: #ffffff" not in text


def test_an_image_is_drawn_in_the_colours_of_each_page(folder):
    calls = []

    def drawn(image):
        fig, axis = plt.subplots()
        axis.imshow(X[:, None] * X, cmap=shade("C0")) if image else axis.plot(X, X)
        calls.append(image)
        return fig

    save(drawn=lambda: drawn(False))
    save(drawn=lambda: drawn(True))
    assert calls == [False, True, True]  # lines are drawn once, for both pages
    pixels = [
        re.findall(r"base64,\s*([^\"]+)", (folder / name).read_text())
        for name in ("rise.svg", "rise-dark.svg")
    ]
    assert len(pixels[0]) == len(pixels[1]) == 1 and pixels[0] != pixels[1]


def luminance(colour):
    """Relative luminance as in WCAG 2.1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("mode", "ground"), [("light", "#ffffff"), ("dark", "#121212")])
def test_colours_stand_out_from_the_page(mode, ground):
    """WCAG 2.1 asks a contrast of 4.5 of text and of 3 of graphics (success criteria 1.4.3 and 1.4.11)."""
    with style(mode):
        lines = plt.rcParams["axes.prop_cycle"].by_key()["color"]
        ink = plt.rcParams["text.color"]

    def contrast(colour):
        a, b = sorted((luminance(colour), luminance(ground)))
        return (b + 0.05) / (a + 0.05)

    assert contrast(ink) > 4.5
    assert [colour for colour in lines if contrast(colour) < 3] == []


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_shade_starts_from_the_page(mode):
    with style(mode):
        low, high = shade("C1")([0.0, 1.0])
        assert low[3] == 0 and tuple(high[:3]) == pytest.approx(to_rgb("C1"), abs=1e-9) and high[3] == 1


def test_series_of_unequal_length_become_one_long_table(folder):
    save(data={"edm": {"n": [1, 2], "kl": [0.5, 0.25]}, "ours": {"n": [1], "w": [7.0]}})
    rows = list(csv.reader(open(folder / "rise.csv")))
    assert rows == [
        ["series", "n", "kl", "w"],
        ["edm", "1", "0.5", ""],
        ["edm", "2", "0.25", ""],
        ["ours", "1", "", "7"],
    ]
    assert math.isnan(read_csv(folder / "rise.csv")["w"][0])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"id": "Not an id"}, "id"),
        ({"id": "claims"}, "claims"),
        ({"caption": " "}, "caption"),
        ({"alt": ""}, "alt"),
        ({"data": {}}, "data"),
        ({"data": {"x": [1, 2], "y": [1]}}, "lengths"),
        ({"data": {"x": np.zeros((2, 2))}}, "dimension"),
    ],
)
def test_a_bad_figure_is_refused_and_leaves_nothing(folder, changes, named):
    with pytest.raises(ValueError, match=named):
        save(**changes)
    assert not folder.exists() or list(folder.iterdir()) == []


def test_what_draws_must_be_a_function_that_returns_a_figure():
    for bad in (draw(), lambda: None):
        with pytest.raises(ValueError, match="draw"):
            save_figure(bad, "rise", data={"x": X}, caption="c", alt="a")
    plt.close("all")


def test_a_table_keeps_all_columns_and_shows_the_chosen(folder):
    rows = [{"name": "a<b", "kl": 0.123456, "n": 3}, {"name": "$\\sigma$", "kl": 2.0, "n": 40000}]
    save_table(rows, "summary", "A table.", columns={"name": "Name", "kl": "KL"})
    sidecar, columns = read_result("scratch", "summary")
    assert columns == {"name": ["a<b", "$\\sigma$"], "kl": [0.123456, 2.0], "n": [3, 40000]}
    html = figures._by_hand(sidecar, folder)
    assert "a&lt;b" in html and "\\(\\sigma\\)" in html and "0.1235" in html and 'class="frame"' in html
    assert "<th" in html and ">n<" not in html and "40000" not in html


def test_the_page_shows_cells_as_they_were_saved(folder):
    """Whole numbers keep their digits, and text that looks like a number is shown as it is printed in the paper."""
    save_table([{"n": 123456, "paper": "2.10", "ours": 2.1049999, "none": None}], "kinds", "A table.")
    sidecar, _ = read_result("scratch", "kinds")
    html = figures._by_hand(sidecar, folder)
    cells = re.findall("<td[^>]*>([^<]*)</td>", html)
    assert cells == ["123456", "2.10", "2.105", ""]


def test_a_long_table_is_shown_in_part_and_kept_whole(folder):
    rows = [{"name": f"line {k}"} for k in range(1200)]
    save_table(rows, "long", "A table.", shown=3)
    save_table(rows[:3], "short", "A table.", shown=3)
    long, short = (read_result("scratch", id)[0] for id in ("long", "short"))
    assert long["rows"] == short["rows"] == [["line 0"], ["line 1"], ["line 2"]]
    assert "The first 3 of 1,200 lines" in long["caption"] and "The first" not in short["caption"]
    assert len(read_csv(folder / "long.csv")["name"]) == 1200


def test_what_was_not_measured_is_a_dash(folder):
    save_table([{"a": math.nan, "b": 1.0}], "summary", "A table.")
    html = figures._by_hand(read_result("scratch", "summary")[0], folder)
    assert '<td class="number">–</td><td class="number">1</td>' in html


@pytest.mark.parametrize("rows", [[], [{"a": 1}, {"b": 1}]])
def test_a_bad_table_is_refused(rows):
    with pytest.raises(ValueError, match="rows"):
        save_table(rows, "summary", "A table.")


def test_the_shown_html_has_both_variants_alt_text_and_files(folder):
    save(alt='Rising "fast".', caption="By `make <book>`, where $a$ < b.")
    html = figures._by_hand(read_result("scratch", "rise")[0], folder)
    assert html.count('alt="Rising &quot;fast&quot;."') == 2 and "Figure 1" in html
    assert html.count("data:image/svg+xml;base64,") == 2
    assert "By <code>make &lt;book&gt;</code>, where" in html and "\\(a\\)</span> &lt; b." in html
    for word in ("only-light", "only-dark", "scratch/rise.csv", "scratch/rise.pdf", "scratch/rise.json"):
        assert word in html


def test_a_page_of_the_book_holds_only_a_marker_of_the_result():
    """So that how results look is decided when the html is built, and a change of it runs no notebook."""
    save(caption="A rise, a < b.")
    marker = figures._marker(read_result("scratch", "rise")[0])
    assert 'data-result="scratch/rise"' in marker and "a &lt; b" in marker
    needed = {module.name for module in Tree().needed(ast.parse("import studies.report"))}
    assert "studies.report" in needed and "studies.presentation" not in needed


def test_values_are_read_back_by_notebook(monkeypatch, folder):
    leave_json("claims", [{"id": "a"}])
    monkeypatch.setenv("ENTROPIC_RUN", json.dumps({"notebook": "other"}))
    leave_json("claims", [])
    assert read_json("claims") == {"other": [], "scratch": [{"id": "a"}]}
    assert read_json("else") == {}


@pytest.mark.parametrize("told", [True, False])
def test_a_recorded_result_is_read_from_where_the_run_says(tmp_path, monkeypatch, folder, told):
    """By default from the book of this checkout; None, not an error, where nothing is kept."""
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")  # which folder a notebook is run in does not matter
    folder = tmp_path / "folder" / "results" / "scratch"
    where = tmp_path / ("elsewhere" if told else "book/results")
    if told:
        monkeypatch.setenv("ENTROPIC_RUN", json.dumps({"notebook": "scratch", "recorded": str(where)}))
    assert read_recorded("scratch", "rise") is None
    save(device="a GPU")
    assert read_recorded("scratch", "rise") is None  # a result of this run is not a recorded one
    where.parent.mkdir(parents=True, exist_ok=True)
    folder.parent.rename(where)
    sidecar, columns = read_recorded("scratch", "rise")
    assert sidecar["device"] == "a GPU" and columns == {"x": X.tolist(), "y": (X**2).tolist()}
    assert read_recorded("scratch", "fall") is None


def test_a_missing_result_and_a_bad_style_are_refused():
    with pytest.raises(ValueError, match="nothing"):
        read_result("scratch", "nothing")
    with pytest.raises(ValueError, match="mode"), style("sepia"):
        pass
