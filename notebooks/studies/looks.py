"""How the book draws a schedule or a solver: one colour, one marker and one line for each, on every page.

A schedule is looked up by its name inside the function that draws: the colours of the light and of the dark page
differ. Colours differ by a distance of 17 in CIE Lab for readers with and without red-green blindness, and by a
lightness of 4 in grey, where the markers help; each has a contrast of 3 with its page.
"""

import re
from collections import Counter

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

__all__ = [
    "CYCLE",
    "INK",
    "MOST",
    "SCHEDULES",
    "SOLVERS",
    "draw_levels",
    "in_dark",
    "least",
    "legend",
    "schedule",
    "solver",
]

# The colours "C0" to "C6" are those of Okabe and Ito, which colour-blind people can tell apart. They are shifted until
# each has a contrast of 3 with its page; black and yellow are left out, as they cannot do that on both.
CYCLE = {
    "light": ["#0072B2", "#D55E00", "#009E73", "#B8559A", "#B07A00", "#2B90CC", "#6B6B6B"],
    "dark": ["#56A8E8", "#FF8A3D", "#2EC99A", "#E8A2CC", "#F2BC42", "#9AD7FA", "#ABABAB"],
}
# The colour of text and lines, and that of the grid.
INK = {"light": ("#222222", "#D5D5D5"), "dark": ("#E4E4E4", "#4A4A4A")}

MOST = 7  # lines in a plot, at most

# Name -> colour on the light page, on the dark page, marker, line. Formulas have broken lines, rivals dotted ones.
SCHEDULES = {
    "EDM": ("#242422", "#F8F2F4", "o", "--"),
    "log": ("#604609", "#FCCD6C", "P", "--"),
    "cosine": ("#2A3009", "#AEAC80", "p", "--"),
    "linear": ("#582052", "#8C7278", "<", "--"),
    "VP": ("#838896", "#7993AE", "X", "--"),
    "entropic": ("#C76000", "#E45340", "s", "-"),
    "rescaled": ("#2A99EA", "#3770A9", "^", "-"),
    "spectral": ("#236586", "#6ED1F9", "v", "-"),
    "ours": ("#327B4A", "#8EF7A5", "D", "-"),
    "measured": ("#6A0094", "#BA81FF", "*", "-"),
    "rival": ("#385B54", "#63C9BB", "h", ":"),
}
# What a page calls a schedule, where it is another name.
_ALSO = {
    "EDM, end tuned": "EDM",
    "EDM, end and rho tuned": "EDM",
    "standard, EDM": "linear",  # EDM's standard time is sigma itself
    "standard, VP": "VP",
    "uniform t": "VP",  # of the networks of galaxies, whose process is VP
    "ours, curve": "ours",
    "ours, fixed end": "ours",
    "ours, free start": "ours",
    "ours, measured": "measured",
} | dict.fromkeys(
    ("simple", "Beta", "Laplace", "DMN", "AYS", "GITS", "OSS", "SharpEuler", "COS", "CRS"), "rival"
)
# Name -> marker, line. A solver has no colour of its own, so that none is taken for that of a schedule.
SOLVERS = {
    "deterministic DDIM": ("o", "-"),
    "stochastic DDIM": ("s", "--"),
    "Heun": ("^", "-."),
    "DPM-Solver++(2M)": ("D", ":"),
}


def in_dark(svg):
    """The svg of a figure for the light page in the colours of the dark page.

    ValueError: a colour that is neither of `CYCLE` nor of `INK` nor that of a schedule.
    """
    pairs = [look[:2] for look in SCHEDULES.values()]
    pairs += [*zip(CYCLE["light"], CYCLE["dark"], strict=True), *zip(INK["light"], INK["dark"], strict=True)]
    colours = {light.lower(): dark.lower() for light, dark in pairs}
    if other := set(re.findall("#[0-9a-f]{6}", svg)) - set(colours):
        raise ValueError(
            f"the figure has the colours {sorted(other)}: draw with those of style() and looks alone"
        )
    return re.sub("#[0-9a-f]{6}", lambda found: colours[found[0]], svg)


def schedule(name):
    """The colour, the marker and the line of a schedule, as arguments for Matplotlib. Call it inside `draw`.

    ValueError: a name that has no look.
    """
    name = _ALSO.get(name, name)
    if name not in SCHEDULES:
        raise ValueError(f"name = {name!r}: must be one of {[*SCHEDULES, *_ALSO]}")
    light, dark, marker, line = SCHEDULES[name]
    dark_page = sum(to_rgb(mpl.rcParams["text.color"])) > 1.5
    size = mpl.rcParams["lines.markersize"] * (1.8 if marker == "*" else 1)  # a star has little area
    return {"color": dark if dark_page else light, "marker": marker, "ls": line, "ms": size}


def solver(name):
    """The marker and the line of a solver in the colour of the text, as arguments for Matplotlib.

    ValueError: a name that has no look.
    """
    if name not in SOLVERS:
        raise ValueError(f"name = {name!r}: must be one of {list(SOLVERS)}")
    marker, line = SOLVERS[name]
    return {"color": mpl.rcParams["text.color"], "marker": marker, "ls": line}


def legend(place, columns=4):
    """One legend above a figure or one of its panels, where it hides no data: each label once.

    ValueError: more than `MOST` labels.
    """
    whole = isinstance(place, Figure)
    found = {
        label: handle
        for axis in (place.axes if whole else [place])
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if len(found) > MOST:
        raise ValueError(f"{len(found)} lines have labels, {list(found)}: draw at most {MOST}")
    where = {"loc": "outside upper center"} if whole else {"loc": "lower center", "bbox_to_anchor": (0.5, 1)}
    return place.legend(found.values(), found.keys(), ncols=columns, **where)


def least(values):
    """Which name has the least number at how many places, in words for an alt text: "EDM at 2 of 3, log at 1 of 3".

    values: name -> numbers, one for each place; NaN where there is none
    """
    places = range(len(next(iter(values.values()))))
    first = Counter(min(values, key=lambda name: np.nan_to_num(values[name][k], nan=np.inf)) for k in places)
    return ", ".join(f"{name} at {count} of {first.total()}" for name, count in first.most_common())


def draw_levels(placed, errors):
    """A figure with a row of dots for each schedule: its noise levels, with bars of two standard errors.

    placed, errors: name of a schedule -> levels above 0, and their standard errors
    """
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(6.4, 0.8 + 0.4 * len(placed)))
    for row, (name, sigmas) in enumerate(placed.items()):
        look = schedule(name) | {"ls": "none"}
        axis.errorbar(sigmas, [row] * len(sigmas), xerr=2 * errors[name], **look)
    axis.set(
        xscale="log",
        xlabel=r"noise level $\sigma$",
        yticks=range(len(placed)),
        yticklabels=list(placed),
        ylim=(len(placed) - 0.5, -0.5),
    )
    return fig
