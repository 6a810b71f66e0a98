"""The looks of schedules: told apart by every reader, on both pages, and the same in the interactive figure."""

import io
import itertools
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from studies import looks
from studies.report import style
from tests.conftest import ROOT

# What readers without red or without green receptors see, in linear light.
# Machado, Oliveira, Fernandes (2009), table 1.
RECEPTORS = {
    "all": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
PAGES = {"light": ["#FFFFFF"], "dark": ["#121212", "#14181E"]}


def linear(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)


def lab(light):
    """CIE Lab of linear light, D65."""
    x = TO_XYZ @ np.clip(light, 0, 1) / TO_XYZ.sum(1)
    f = np.where(x > 216 / 24389, np.cbrt(x), (24389 / 27 * x + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def colours(mode):
    with style(mode):
        return {name: looks.schedule(name)["color"] for name in looks.SCHEDULES}


def test_a_figure_of_the_light_page_becomes_that_of_the_dark_page():
    def svg(mode):
        with style(mode):
            fig, axis = plt.subplots()
            for k, name in enumerate(looks.SCHEDULES):
                axis.plot([0, k], label=name, **looks.schedule(name))
                axis.fill_between([0, 1], k, color=f"C{k}", alpha=0.3)
            axis.legend()
            text = io.StringIO()
            fig.savefig(text, format="svg", metadata={"Date": None})
            plt.close(fig)
        ids = {}  # they are made from what they name, colours included
        return re.sub(
            r"\b[mph][0-9a-f]{10}\b", lambda found: ids.setdefault(found[0], str(len(ids))), text.getvalue()
        )

    light, dark = svg("light"), svg("dark")
    assert light != dark and svg("light") == light
    assert looks.in_dark(light) == dark
    with pytest.raises(ValueError, match=r"colours \['#123456'\]: draw with those of"):
        looks.in_dark(light + "fill: #123456")


@pytest.mark.parametrize("mode", PAGES)
def test_schedules_are_told_apart(mode):
    found = colours(mode).values()
    for matrix in RECEPTORS.values():
        seen = [lab(np.array(matrix) @ linear(colour)) for colour in found]
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 17
    grey = [lab(linear(colour))[0] for colour in found]
    assert min(abs(a - b) for a, b in itertools.combinations(grey, 2)) > 4


def test_no_marker_twice():
    for table in (looks.SCHEDULES, looks.SOLVERS):
        markers = [look[-2] for look in table.values()]
        assert len(set(markers)) == len(markers)


@pytest.mark.parametrize("mode", PAGES)
def test_contrast_with_the_page(mode):
    """WCAG 2.1 asks a contrast of 3 of graphics (success criterion 1.4.11)."""
    for page, colour in itertools.product(PAGES[mode], colours(mode).values()):
        low, high = sorted(0.05 + TO_XYZ[1] @ linear(one) for one in (page, colour))
        assert high / low >= 3, colour


def test_unknown_names_are_refused():
    for look in (looks.schedule, looks.solver):
        with pytest.raises(ValueError, match="'Euler': must be one of"):
            look("Euler")


def test_least_counts_first_places():
    assert (
        looks.least({"a": [1, 5, 2], "b": [2, 3, 1], "c": [float("nan")] * 3}) == "b at 2 of 3, a at 1 of 3"
    )


def test_legend_takes_seven_lines_and_says_each_once():
    fig, axes = plt.subplots(1, 2)
    for k in range(looks.MOST):
        for axis in axes:
            axis.plot([0, 1], label=str(k))
    assert len(looks.legend(fig).get_texts()) == looks.MOST
    axes[0].plot([0, 1], label="one more")
    with pytest.raises(ValueError, match="8 lines have labels"):
        looks.legend(fig)
    plt.close(fig)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_legends_are_outside(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert re.findall(r"(?<!looks)\.legend\(", code) == []


def test_the_interactive_figure_has_the_same_colours():
    css = (ROOT / "book" / "_static" / "spend.css").read_text("utf-8")
    names = {"edm": "EDM", "log": "log", "cosine": "cosine", "entropic": "entropic", "rescaled": "rescaled"}
    names |= {"aware": "ours", "best": "rival"}
    for key, name in names.items():
        assert re.findall(rf"--spend-{key}: (#\w+);", css) == [c.lower() for c in looks.SCHEDULES[name][:2]]
