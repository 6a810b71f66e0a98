"""What the book says of itself: version, commit and date in every footer; where its repository is known, links to it.

The environment variable BOOK_REPOSITORY holds the address of the repository, https://github.com/OWNER/NAME, or of
the folder in it where the built book is published, https://github.com/OWNER/NAME/tree/BRANCH/FOLDER (by default the
root of the branch gh-pages). Then every page links to its source, and those of notebooks have buttons that open a copy
which runs alone, in Colab or Binder. Without the variable there is no button and no link.
"""

from __future__ import annotations

import html
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from entropic._version import version
from studies.pages import ROOT, page, pages
from studies.report import git_state

INSTALL = """\
# Installs the book's package and what its notebooks share, where they are not there yet.
import importlib.util, pathlib, subprocess, sys

if importlib.util.find_spec("studies") is None:
    here = pathlib.Path("entropic-book").resolve()
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    if not here.is_dir():
        subprocess.run(["git", "clone", "--quiet", "{url}", here], check=True)
    subprocess.run(["git", "-C", here, "checkout", "--quiet", "{commit}"], check=True)
    subprocess.run([*pip, f"{{here}}[metrics]", "matplotlib", "pyyaml"], check=True)
    subprocess.run([*pip, "--no-deps", "-r", here / "requirements-no-deps.lock"], check=True)
    sys.path[:0] = [str(here), str(here / "notebooks")]"""


class Repository(NamedTuple):
    """Where the sources are: `url` on GitHub, and the branch and folder that the built book is published in."""

    url: str
    branch: str
    folder: str

    @property
    def name(self) -> str:
        return self.url.removeprefix("https://github.com/")


def repository() -> Repository | None:
    """The repository that BOOK_REPOSITORY names; None where it is not set. ValueError: it names none."""
    address = os.environ.get("BOOK_REPOSITORY", "")
    if not address:
        return None
    found = re.fullmatch(
        r"(https://github\.com/[\w.-]+/[\w.-]+?)/?(?:/tree/([\w.-]+)(?:/([\w./-]*))?)?", address
    )
    if not found:
        raise ValueError(
            f"BOOK_REPOSITORY = {address!r}: must be https://github.com/OWNER/NAME or .../tree/BRANCH/FOLDER"
        )
    return Repository(found[1], found[2] or "gh-pages", (found[3] or "").strip("/"))


def commit_of(about: Mapping) -> str:
    """The short commit of a sidecar or of this tree, with "-dirty" where the tree was changed."""
    return (about["commit"] or "unknown")[:7] + "-dirty" * bool(about["dirty"])


def day() -> str:
    """The day of this build; SOURCE_DATE_EPOCH, where it is set, decides."""
    return time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))


def footer(app, config):
    config.html_theme_options["extra_footer"] = (
        f'<p class="about">entropic {version} · commit <code>{commit_of(git_state())}</code> · built {day()}</p>'
    )


def source_of(docname: str) -> str | None:
    """The file of the repository that a page is made from; None where there is none."""
    folder, _, name = docname.rpartition("/")
    if folder == "notebooks" and name in pages():
        return page(name).source.relative_to(ROOT).as_posix()
    path = ROOT / "book" / f"{docname}.md"
    return path.relative_to(ROOT).as_posix() if path.is_file() else None


def links(app, pagename, templatename, context, doctree):
    """Launch buttons, "source" and "edit" at the end of a page, where the repository is known."""
    known, source = repository(), source_of(pagename)
    if known is None or source is None or "body" not in context:
        return
    found = {}
    if runs_alone(pagename.removeprefix("notebooks/")):
        copy = "/".join(filter(None, [known.folder, "launch", f"{Path(pagename).name}.ipynb"]))
        tree = quote(f"lab/tree/{copy}", safe="")
        found["Open in Colab"] = (
            f"https://colab.research.google.com/github/{known.name}/blob/{known.branch}/{copy}"
        )
        found["Open in Binder"] = f"https://mybinder.org/v2/gh/{known.name}/{known.branch}?urlpath={tree}"
    commit = git_state()["commit"] or "main"
    found["Source"] = f"{known.url}/blob/{commit}/{source}"
    found["Edit this page"] = f"{known.url}/edit/main/{source}"
    anchors = "".join(f'<a href="{html.escape(address)}">{text}</a>' for text, address in found.items())
    context["body"] += f'<p class="launch">{anchors}</p>'


def runs_alone(name: str) -> bool:
    """Whether a page is a notebook that reads no results of other pages, which a fresh copy would not have."""
    return name in pages() and not page(name).results


def copies(app, exception):
    """The notebooks behind the buttons: each installs, in its first cell, what it needs."""
    known = repository()
    if exception is not None or known is None or app.builder.name != "html":
        return
    folder = Path(app.outdir, "launch")
    folder.mkdir(exist_ok=True)
    for one in pages().values():
        if runs_alone(one.name):
            (folder / f"{one.name}.ipynb").write_text(json.dumps(alone(one, known), indent=1), "utf-8")


def alone(one, known: Repository) -> dict:
    """A page's notebook that runs on a machine which has nothing of this repository."""
    notebook = one.notebook()
    install = INSTALL.format(url=known.url, commit=git_state()["commit"] or "main")
    cell = {"cell_type": "code", "id": "install", "metadata": {}, "outputs": [], "execution_count": None}
    return notebook | {"cells": [cell | {"source": install}, *notebook["cells"]]}


def setup(app):
    app.connect("config-inited", footer)
    app.connect("html-page-context", links, priority=600)  # after the "rerun this" line
    app.connect("build-finished", copies)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
