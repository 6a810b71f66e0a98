"""Figures and tables that carry their own provenance.

Nothing here computes a result. `save_figure` and `save_table` write the files of a result to ``<results>/<notebook>/``
and show it in the notebook; `read_result` reads them. `leave_json` and `read_json` do so for other values.
When ``notebooks/run.py`` runs a notebook, the environment variable ``ENTROPIC_RUN`` tells the name of the notebook and
the folder of its results. A notebook that is run by hand, in whatever folder, leaves its results in
``./results/scratch/`` and reads those of other pages, and what is recorded, from the book of this checkout.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import logging
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from fnmatch import fnmatch
from functools import lru_cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np

from entropic._version import version
from entropic.files import replaced, write_atomically

BOOK = Path(__file__).resolve().parents[2] / "book"

_STARTED = time.monotonic()
_SHOWN: dict[str, int] = {}


@contextmanager
def style(mode="light"):
    """Matplotlib settings of the book, for the light or the dark page.

    The colours "C0" to "C6" and the text can be read on that page, and the background is transparent.
    ValueError: `mode` is neither "light" nor "dark".
    """
    import matplotlib as mpl

    from studies import looks

    if mode not in looks.CYCLE:
        raise ValueError(f"mode = {mode!r}: must be 'light' or 'dark'")
    ink, grid = looks.INK[mode]
    with mpl.rc_context():
        mpl.rcdefaults()  # the figure must not depend on the user's own settings
        mpl.rcParams.update(
            {
                "figure.figsize": (5.6, 3.6),  # at phone width the 11 pt letters then stay above 9 px
                "figure.constrained_layout.use": True,
                "figure.facecolor": "none",
                "axes.facecolor": "none",
                "savefig.facecolor": "none",
                "savefig.edgecolor": "none",
                "font.size": 11,
                "axes.titlesize": 11,
                "legend.fontsize": 9.5,
                "legend.frameon": False,
                "axes.prop_cycle": mpl.cycler(color=looks.CYCLE[mode]),
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "grid.color": grid,
                "grid.linewidth": 0.6,
                "axes.axisbelow": True,
                "lines.linewidth": 1.8,
                "lines.markersize": 4.5,
                "image.cmap": "viridis",
                "svg.fonttype": "path",  # letters as outlines: no font is asked for by the reader's machine
                "pdf.fonttype": 42,
                "svg.hashsalt": "entropic",
            }
            | {f"{part}.color": ink for part in ("text", "xtick", "ytick")}
            | {f"axes.{part}color": ink for part in ("label", "edge", "title")}
            | {"legend.labelcolor": ink}
        )
        yield


def shade(colour="C0"):
    """A colour map from the page's background to `colour`, for densities. Call it inside `draw`, as colours differ."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    rgb = to_rgb(colour)
    return LinearSegmentedColormap.from_list("shade", [(*rgb, 0.0), (*rgb, 1.0)])


def save_figure(draw: Callable[[], Any], id: str, *, data: Mapping, caption: str, alt: str, **meta):
    """Draw a figure for the light and the dark page, and keep it with its data and provenance.

    The results folder of the notebook gets ``<id>.svg``, ``<id>-dark.svg``, ``<id>.png``, ``<id>.pdf``, the plotted
    data ``<id>.csv``, and the sidecar ``<id>.json`` of parameters, commit, versions and times. A notebook shows the
    figure in the colours of the reader's page, with its caption and links to these files. Equal inputs give equal
    bytes, except for the times in the sidecar.

    draw: a function without arguments that returns a Matplotlib figure in the colours of `style` and of `looks`; one
        with an image is drawn once more for the dark page
    id: a short name of lower-case letters, digits and hyphens
    data: column -> array, all of one length; or series -> such columns, which make one long table whose first
        column is ``series``
    caption: it tells NFE, samples, seeds and the spread; ``$...$`` is set as mathematics
    alt: what the figure shows, for readers who cannot see it
    meta: further entries of the sidecar, such as ``seed`` and ``device``

    ValueError: a bad id, an empty caption or alt text, columns of unequal length.
    """
    import matplotlib.pyplot as plt

    from studies import looks

    # fontTools logs a message about the date of a font, which does not concern the reader of a notebook.
    logging.getLogger("fontTools").setLevel(logging.ERROR)
    _check_text(id, caption=caption, alt=alt)
    if not callable(draw):
        raise ValueError(f"draw = {draw!r}: must be a function that draws and returns a figure")
    columns = _columns(data)
    out = _out_dir()
    files = {"csv": f"{id}.csv", "svg": f"{id}.svg", "svg_dark": f"{id}-dark.svg"}
    files |= {"png": f"{id}.png", "pdf": f"{id}.pdf"}
    with style("light"):
        fig = _drawn(draw, out / files["svg"])
        size = [round(float(v), 3) for v in fig.get_size_inches()]
        fig.set_layout_engine("none")  # the places that it has found hold for the other formats
        _save(fig, out / files["pdf"], format="pdf", facecolor="white", metadata={"CreationDate": None})
        _save(fig, out / files["png"], format="png", dpi=160, facecolor="white")
        plt.close(fig)
    svg = (out / files["svg"]).read_text("utf-8")
    if "<image" in svg:  # its pixels have the colours of the light page
        with style("dark"):
            plt.close(_drawn(draw, out / files["svg_dark"]))
    else:
        _write(out / files["svg_dark"], looks.in_dark(svg))
    sidecar = _leave(
        out, "figure", id, files, columns, {"caption": caption, "alt": alt, "size": size, **meta}
    )
    _show(sidecar, out)


def save_table(
    rows: Sequence[Mapping],
    id: str,
    caption: str,
    *,
    columns: Mapping | None = None,
    shown: int | None = None,
    **meta,
):
    """Show a table, which scrolls inside its own frame, and keep it as ``<id>.csv`` with a sidecar ``<id>.json``.

    rows: mappings of column -> number or text, all with the same keys; ``$...$`` is set as mathematics
    columns: column -> heading, in the order in which they are shown; the csv holds all columns
    shown: the page shows so many rows, the first ones, and the caption says so; the csv holds all

    ValueError: a bad id, an empty caption, no rows, rows whose keys differ.
    """
    _check_text(id, caption=caption)
    rows = [dict(row) for row in rows]
    if shown is not None and shown < len(rows):
        caption = f"{caption} The first {shown} of {len(rows):,} lines; the file of data has all."
    if not rows:
        raise ValueError("rows = []: a table needs at least one row")
    for i, row in enumerate(rows):
        if list(row) != list(rows[0]):
            raise ValueError(f"rows[{i}] has columns {list(row)}: must be those of rows[0], {list(rows[0])}")
    columns = dict(columns) if columns is not None else {key: key for key in rows[0]}
    for key in columns:
        if key not in rows[0]:
            raise ValueError(f"columns names {key!r}: must be one of {list(rows[0])}")
    table = {key: [row[key] for row in rows] for key in rows[0]}
    out = _out_dir()
    lines = [[_plain(row[key]) for key in columns] for row in rows[:shown]]
    entries = {"caption": caption, "head": columns, "rows": lines, **meta}
    sidecar = _leave(out, "table", id, {"csv": f"{id}.csv"}, table, entries)
    _show(sidecar, out)


def leave_json(name: str, value):
    """Write a value to the file `name`.json of this notebook's results, where `read_json` finds it."""
    _write(_out_dir() / f"{name}.json", json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(name: str, results=None) -> dict[str, Any]:
    """What the notebooks left under that name, by notebook, in the order of their names.

    results: the folder that holds one folder for each notebook; by default that of the current run
    """
    if results is None:
        _declared("reads_results", "*", f"{name}.json")
    roots = [
        _results_root(results),
        *([] if results or _run().get("results") else [BOOK / "_build" / "results"]),
    ]
    paths = {path.parent.name: path for root in reversed(roots) for path in root.glob(f"*/{name}.json")}
    return {notebook: json.loads(path.read_text("utf-8")) for notebook, path in sorted(paths.items())}


def read_result(notebook: str, id: str, results=None) -> tuple[dict, dict[str, list]]:
    """The sidecar of a saved figure or table, and its columns (numbers where every entry is one).

    ValueError: there is no such result.
    """
    if results is None:
        _declared("reads_results", notebook, f"{id}.json")
    path = _results_root(results) / notebook / f"{id}.json"
    if not path.is_file() and results is None and "results" not in _run():
        path = BOOK / "_build" / "results" / notebook / f"{id}.json"
    if not path.is_file():
        raise ValueError(f"id = {id!r}: notebook {notebook!r} has left no such result; run it first")
    return json.loads(path.read_text("utf-8")), read_csv(path.with_suffix(".csv"))


def read_recorded(notebook: str, id: str) -> tuple[dict, dict[str, list]] | None:
    """A result that was computed elsewhere or over hours and is kept in ``book/results``, as `read_result` gives it.

    None where there is none: the page then says "not run here", and how to run it.
    """
    _declared("reads_recorded", notebook)
    folder = Path(_run().get("recorded") or BOOK / "results")
    return read_result(notebook, id, folder) if (folder / notebook / f"{id}.json").is_file() else None


def save_recorded_table(notebook: str, id: str):
    """Show the recorded table ``id`` of a notebook beside a smaller live one, as ``<id>-recorded``.

    Its caption says with which parameters it was made, where, and at which commit. The notebook that makes the record
    shows nothing; without a record the page says how to make one.
    """
    if _run().get("profile") == "recorded":
        return
    kept = read_recorded(notebook, id)
    if kept is None:
        print(f"The full size is not recorded here: make record NB={notebook} computes it and keeps it.")
        return
    about, table = kept
    rows = [
        dict(zip(table, map(_whole, values), strict=True)) for values in zip(*table.values(), strict=True)
    ]
    live = _run().get("parameters") or _variables()
    differs = [f"{name} = {value}" for name, value in about["parameters"].items() if live.get(name) != value]
    made = f"{about['device']}, commit {(about['commit'] or 'unknown')[:7]}"
    lead = f"Recorded ({', '.join([*differs, made])}; `make record NB={notebook}`). "
    save_table(rows, f"{id}-recorded", lead + about["caption"], columns=about["head"])


def _whole(value):
    """A number of a csv, as it was saved: whole numbers come back from it as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_csv(path) -> dict[str, list]:
    """The columns of a csv. A column becomes numbers if every entry is a number or empty; empty ones become NaN."""
    with open(path, encoding="utf-8", newline="") as f:
        head, *rows = list(csv.reader(f))
    columns = {}
    for j, name in enumerate(head):
        cells = [row[j] for row in rows]
        try:
            columns[name] = [float(cell) if cell else math.nan for cell in cells]
        except ValueError:
            columns[name] = cells
    return columns


def _check_text(id, **texts):
    if not isinstance(id, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", id):
        raise ValueError(f"id = {id!r}: must be lower-case letters and digits, joined by hyphens")
    if id == "claims":
        raise ValueError("id = 'claims': must be another, since claims.json holds the recorded claims")
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} = {text!r}: must say something")


def _plain(value):
    """The Python number, text or list that a tensor, an array or a NumPy number holds."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return value.tolist() if hasattr(value, "tolist") else value


def _columns(data: Mapping) -> dict[str, list]:
    if not isinstance(data, Mapping) or not data:
        raise ValueError(f"data = {data!r}: must map column names to arrays")
    if all(isinstance(v, Mapping) for v in data.values()):
        names = list(dict.fromkeys(name for series in data.values() for name in series))
        table: dict[str, list] = {"series": []} | {name: [] for name in names}
        for label, series in data.items():
            part = _columns(series)
            n = len(next(iter(part.values())))
            table["series"] += [str(label)] * n
            for name in names:
                table[name] += part.get(name, [""] * n)
        return table
    columns = {str(name): list(np.atleast_1d(_plain(values)).tolist()) for name, values in data.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"data has columns of lengths {lengths}: must be of one length; nest unequal series")
    for name, values in columns.items():
        if any(isinstance(v, list) for v in values):
            raise ValueError(f"data[{name!r}] has more than one dimension: must be a column")
    return columns


def _csv(columns: Mapping[str, list]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow(format(v, ".10g") if isinstance(v, float) else v for v in map(_plain, row))
    return out.getvalue()


def _leave(out: Path, kind: str, id: str, files: dict, columns: Mapping, entries: dict) -> dict:
    run = _run()
    text = _csv(columns)
    _write(out / files["csv"], text)
    number = _SHOWN.setdefault(f"{kind}:{id}", 1 + sum(key.startswith(kind) for key in _SHOWN))
    parameters = run.get("parameters", {})
    sidecar = {
        "kind": kind,
        "id": id,
        "number": number,
        "notebook": run["notebook"],
        "profile": run.get("profile"),
        "parameters": parameters,
        "seed": parameters.get("seed"),
        **git_state(),
        "versions": _versions(),
        "device": f"cpu ({platform.machine()}, {os.cpu_count()} cores)",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "duration": round(
            time.time() - run["started"] if "started" in run else time.monotonic() - _STARTED, 3
        ),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "files": files,
        **{key: _plain(value) for key, value in entries.items()},
    }
    _write(out / f"{id}.json", json.dumps(sidecar, indent=1, ensure_ascii=False) + "\n")
    return sidecar


def _run() -> dict:
    return {"notebook": "scratch"} | json.loads(os.environ.get("ENTROPIC_RUN", "{}"))


def _variables() -> dict:
    """The variables of the notebook that runs: by hand, its parameters are among them."""
    try:
        from IPython import get_ipython
    except ImportError:
        return {}
    shell = get_ipython()
    return {} if shell is None else shell.user_ns


def _declared(kind: str, notebook: str, file: str = ""):
    """ValueError where a page reads what it has not declared: the page would not run again when that changes."""
    run = _run()
    what = f"{notebook}/{file}" if file else notebook
    own = bool(file) and notebook == run["notebook"]
    if kind in run and not own and not any(fnmatch(what, part) for part in run[kind]):
        name = kind.removeprefix("reads_")
        raise ValueError(
            f"{what!r} is read, but not declared: add it to `{name}` of this page in notebooks/book.yml"
        )


def _out_dir() -> Path:
    run = _run()
    out = Path(run.get("out") or Path("results") / run["notebook"])
    out.mkdir(parents=True, exist_ok=True)
    return out


def _results_root(results) -> Path:
    return Path(results or _run().get("results") or "results")


def _show(sidecar: Mapping, out: Path):
    """Show a result in a notebook. The book finds it by `data-result`, and makes its html from the sidecar."""
    try:
        from IPython import get_ipython
        from IPython.display import HTML, display
    except ImportError:
        return
    if get_ipython() is not None:
        display(HTML(_marker(sidecar) if "out" in _run() else _by_hand(sidecar, out)))


def _marker(sidecar: Mapping) -> str:
    kind, name = sidecar["kind"], f"{sidecar['notebook']}/{sidecar['id']}"
    text = html.escape(sidecar["caption"])
    return f'<figure class="entropic-{kind}" data-result="{name}"><figcaption>{text}</figcaption></figure>'


def _by_hand(sidecar: Mapping, out: Path) -> str:
    """The html of a result in a notebook that nobody weaves into the book: it contains the pictures."""
    # By a name that is put together: what a page shows is not what its results depend on.
    presentation = import_module(f"{__package__}.presentation")

    def link(name):
        if not name.endswith(".svg"):
            return f"results/{sidecar['notebook']}/{name}"
        return "data:image/svg+xml;base64," + base64.b64encode((out / name).read_bytes()).decode()

    return presentation.result_html(sidecar, f"{sidecar['kind'].capitalize()} {sidecar['number']}", link)


def _drawn(draw, path):
    """The figure that is drawn, and saved as svg."""
    fig = draw()
    if not hasattr(fig, "savefig"):
        raise ValueError(f"draw() returned {type(fig).__name__}: must return a Matplotlib figure")
    _save(fig, path, format="svg", metadata={"Date": None}, dpi=150)
    return fig


def _save(fig, path: Path, **kwargs):
    with replaced(path) as part:
        fig.savefig(part, **kwargs)


def _write(path: Path, text: str):
    write_atomically(path, text.encode())


@lru_cache
def git_state() -> dict:
    """The commit of this package and whether its tree is changed; None where it is not under git."""

    def git(*args):
        return subprocess.run(
            ["git", *args],
            cwd=Path(__file__).parent,
            capture_output=True,
            encoding="utf-8",
            timeout=20,
            check=True,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "report.py")  # else we'd name the commit of a folder around us
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


@lru_cache
def _versions() -> dict:
    found = {"python": platform.python_version(), "entropic": version}
    for name in ("torch", "numpy", "matplotlib"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
