"""Saved figures and tables in the book: shown from their sidecars, and numbered by the chapter that makes them."""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

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

    def run(self):
        notebook, _, id = self.text.partition("/")
        try:
            read_result(notebook, id, _results(self.env))
        except ValueError as error:
            message = self.inliner.reporter.error(str(error), line=self.lineno)
            return [self.inliner.problematic(self.rawtext, self.rawtext, message)], [message]
        return [nodes.inline("", "", classes=["see"], result=(notebook, id))], []


class Value(SphinxRole):
    """A number out of a saved result: ``{value}`one_dimension/kl-against-steps/column/row``` or
    ``{value}`notebook/id/column/row/.2e``` with its format. Rows count from 0, or from the end with -1."""

    def run(self):
        try:
            notebook, id, column, row, *form = self.text.split("/")
            value = read_csv(_results(self.env) / notebook / f"{id}.csv")[column][int(row)]
            text = format(value, form[0] if form else ".3g") if isinstance(value, float) else value
        except (ValueError, KeyError, IndexError, OSError) as error:
            message = self.inliner.reporter.error(f"value {self.text!r}: {error!r}", line=self.lineno)
            return [self.inliner.problematic(self.rawtext, self.rawtext, message)], [message]
        return [nodes.inline("", text.replace("e-0", "e-"), classes=["value"])], []


def number(env, sidecar) -> str:
    """What a result is called in the whole book: "Figure 5.3" is the third figure of chapter 5."""
    title = env.titles.get(f"notebooks/{sidecar['notebook']}", {})
    chapter = [str(part) for part in title.get("secnumber") or ()]
    return f"{sidecar['kind'].capitalize()} {'.'.join([*chapter, str(sidecar['number'])])}"


def show(app, doctree, docname):
    """Put the html of every result in the place of its marker; only now the chapters have their numbers."""
    if app.builder.format != "html":
        return
    up = "../" * docname.count("/")
    for node in list(doctree.findall(nodes.raw)):
        if found := MARKER.match(node.astext()):
            notebook, id = found.groups()
            sidecar, _ = read_result(notebook, id, _results(app.env))
            if "rows" not in sidecar and sidecar["kind"] == "table":
                logging.getLogger(__name__).error(f"{notebook}/{id} is of an older run: run {notebook} again")
                continue
            page = app.builder.get_relative_uri(docname, f"notebooks/{notebook}")
            more = (
                ""
                if docname == f"notebooks/{notebook}"
                else f'<a href="{page}#{anchor(sidecar)}">its page</a>'
            )
            text = result_html(
                sidecar, number(app.env, sidecar), lambda name, n=notebook: f"{up}results/{n}/{name}", more
            )
            node.replace_self(nodes.raw("", text, format="html"))
    for node in list(doctree.findall(lambda node: "result" in getattr(node, "attributes", {}))):
        notebook, id = node["result"]
        sidecar, _ = read_result(notebook, id, _results(app.env))
        page = app.builder.get_relative_uri(docname, f"notebooks/{notebook}")
        link = nodes.reference(
            "", number(app.env, sidecar), refuri=f"{page}#{anchor(sidecar)}", internal=True
        )
        node.replace_self(link)


def _results(env) -> Path:
    return Path(env.srcdir, "_build", "results")


def setup(app):
    app.add_directive("result", Result)
    app.add_role("value", Value())
    app.add_role("see", See())
    app.connect("doctree-resolved", show)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
