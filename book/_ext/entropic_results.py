"""Saved figures and tables in the book: shown from their sidecars, and numbered by the chapter that makes them."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from entropic_citation import book_html, cite_html
from studies.presentation import anchor, result_html
from studies.report import read_csv, read_result

MARKER = re.compile(r'<figure class="entropic-\w+" data-result="([^"/]+)/([^"]+)">')


class Result(SphinxDirective):
    """Shows a saved figure or table: ``{result} one_dimension/kl-against-steps``."""

    required_arguments = 1

    def run(self):
        notebook, _, id = self.arguments[0].partition("/")
        try:
            read_result(notebook, id, _results(self.env))
        except ValueError as error:
            raise self.error(str(error)) from error
        return [nodes.raw("", f'<figure class="entropic-x" data-result="{notebook}/{id}">', format="html")]


class See(SphinxRole):
    """The number of a saved figure or table, linked to it: ``{see}`one_dimension/kl-against-steps```."""

    class node(nodes.inline):
        """Holds the place of the link until the chapters have their numbers."""

    def run(self):
        notebook, _, id = self.text.partition("/")
        try:
            read_result(notebook, id, _results(self.env))
        except ValueError as error:
            message = self.inliner.reporter.error(str(error), line=self.lineno)
            return [self.inliner.problematic(self.rawtext, self.rawtext, message)], [message]
        return [self.node("", result=(notebook, id))], []


class Results(SphinxDirective):
    """The list of all figures and tables: ``{results}``."""

    class node(nodes.General, nodes.Element):
        """Holds the place of the list until the chapters have their numbers."""

    def run(self):
        return [self.node("")]


class Citation(SphinxDirective):
    """How to cite the book, as BibTeX and as text, from CITATION.cff: ``{citation}``."""

    def run(self):
        return [nodes.raw("", book_html(), format="html")]


class Value(SphinxRole):
    """A number out of a saved result: ``{value}`notebook/id/column/schedule=EDM&nfe=8``` is that of the one row whose
    columns have these values; ``{value}`notebook/id/column/schedule=EDM/.2e``` has a format, and ``0`` or ``-1`` takes
    a row by its place. Where a smaller profile than the default one has left no such row, a dash stands there."""

    def run(self):
        try:
            notebook, id, column, row, *form = self.text.split("/")
            about = _results(self.env) / notebook / f"{id}.json"
            small = json.loads(about.read_text("utf-8"))["profile"] != "default"
            value = _entry(read_csv(about.with_suffix(".csv")), column, row, "-" if small else None)
            text = format(value, form[0] if form else ".3g") if isinstance(value, float) else value
        except (ValueError, KeyError, IndexError, OSError) as error:
            message = self.inliner.reporter.error(f"value {self.text!r}: {error!r}", line=self.lineno)
            return [self.inliner.problematic(self.rawtext, self.rawtext, message)], [message]
        return [nodes.inline("", text.replace("e-0", "e-"), classes=["value"])], []


def _entry(table, column, row, missing=None):
    """The value of a column in the one row that is named. Where there is none: `missing`, or ValueError."""
    if "=" in row:
        wanted = dict(part.rsplit("=", 1) for part in row.split("&"))
        rows = zip(*(table[name] for name in wanted), strict=True)
        places = [i for i, found in enumerate(rows) if [*map(_told, found)] == [*wanted.values()]]
    else:
        place, count = int(row), len(table[column])
        places = [place] if -count <= place < count else []
    if len(places) > 1 or (not places and missing is None):
        raise ValueError(f"{row!r} names {len(places)} rows of {len(table[column])}: must name one")
    return table[column][places[0]] if places else missing


def _told(value) -> str:
    return format(value, ".10g") if isinstance(value, float) else value


def number(env, sidecar) -> str:
    """What a result is called in the whole book: "Figure 5.3" is the third figure of chapter 5."""
    title = env.titles.get(f"notebooks/{sidecar['notebook']}", {})
    chapter = [str(part) for part in title.get("secnumber") or ()]
    return f"{sidecar['kind'].capitalize()} {'.'.join([*chapter, str(sidecar['number'])])}"


def show(app, doctree, docname):
    """Put the html of every result in the place of its marker; only now the chapters have their numbers."""
    if app.builder.format != "html":
        return
    up, shown = "../" * docname.count("/"), set()
    for node in list(doctree.findall(nodes.raw)):
        if found := MARKER.match(node.astext()):
            notebook, id = found.groups()
            sidecar, _ = read_result(notebook, id, _results(app.env))
            if (notebook, id) in shown:  # at the top of the page already
                text = f'<p class="above"><a href="#{anchor(sidecar)}">{number(app.env, sidecar)}</a> stands above.</p>'
                node.replace_self(nodes.raw("", text, format="html"))
                continue
            shown.add((notebook, id))
            if sidecar["kind"] == "table" and "rows" not in sidecar:
                logging.getLogger(__name__).error(f"{notebook}/{id} is of an older run: run {notebook} again")
                continue
            name, address = number(app.env, sidecar), _address(app, docname, sidecar)
            text = result_html(
                sidecar,
                name,
                lambda file, n=notebook: f"{up}results/{n}/{file}",
                address,
                cite_html(sidecar, name),
            )
            node.replace_self(nodes.raw("", text, format="html"))
    for node in list(doctree.findall(See.node)):
        sidecar, _ = read_result(*node["result"], _results(app.env))
        address = _address(app, docname, sidecar)
        node.replace_self(nodes.reference("", number(app.env, sidecar), refuri=address, internal=True))
    for node in list(doctree.findall(Results.node)):
        node.replace_self(nodes.raw("", _list(app, docname), format="html"))


def _address(app, docname, sidecar) -> str:
    """Where a result is, from a page: on the page that makes it."""
    page = f"notebooks/{sidecar['notebook']}"
    own = "" if docname == page else app.builder.get_relative_uri(docname, page)
    return f"{own}#{anchor(sidecar)}"


def _list(app, docname) -> str:
    """All figures and tables with their numbers, a list for each chapter, in the order of the book."""
    folder, text = _results(app.env), ""
    for page in app.env.toctree_includes[app.config.root_doc]:
        files = (
            sorted((folder / page.partition("/")[2]).glob("*.json")) if page.startswith("notebooks/") else []
        )
        sidecars = [json.loads(file.read_text("utf-8")) for file in files if file.name != "claims.json"]
        items = "".join(
            f'<li><a href="{_address(app, docname, one)}">{number(app.env, one)}</a> '
            f"<code>{one['notebook']}/{one['id']}</code></li>"
            for one in sorted(sidecars, key=lambda one: (one["kind"], one["number"]))
        )
        if items:
            text += f"<h3>{html.escape(app.env.titles[page].astext())}</h3><ul>{items}</ul>"
    return f'<div class="results">{text}</div>'


def _results(env) -> Path:
    return Path(env.srcdir, "_build", "results")


def setup(app):
    app.add_directive("result", Result)
    app.add_directive("results", Results)
    app.add_directive("citation", Citation)
    app.add_role("value", Value())
    app.add_role("see", See())
    app.connect("doctree-resolved", show)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
