"""What this book adds to Jupyter Book: the interactive figure, the files of results, and the "rerun this" line."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from studies import spend


class Spend(SphinxDirective):
    """The interactive figure "Spend your steps"; a reader without JavaScript gets a table in its place."""

    def run(self):
        rows = spend.read(Path(self.env.srcdir, "_static", "spend_grids.js"))["table"]
        cells = [[f"{key}" for key in rows[0]], *([f"{value:.3g}" for value in row.values()] for row in rows)]
        head, *body = (
            "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
            for tag, row in zip(["th", *["td"] * len(rows)], cells, strict=True)
        )
        caption = (
            "KL(data || generated) in nats of 15 positions of width w, with 8 levels and deterministic DDIM. "
            "With JavaScript this is a figure whose levels can be dragged."
        )
        lines = "".join(f"<tr>{line}</tr>" for line in body)
        table = (
            f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
        )
        text = f'<div class="spend" id="spend"><noscript>{table}</noscript></div>'
        return [nodes.raw("", text, format="html")]


def spare_scripts(app, pagename, templatename, context, doctree):
    """Only pages with the interactive figure load its scripts."""
    if 'class="spend"' not in context.get("body", ""):
        files = context.get("script_files", [])
        context["script_files"] = [one for one in files if "spend" not in str(getattr(one, "filename", one))]


def rerun_line(app, pagename, templatename, context, doctree):
    """Every page ends with the command that makes it anew."""
    if doctree is None or "body" not in context:
        return
    folder, _, name = pagename.rpartition("/")
    stamp = Path(app.srcdir, "_build", "runs", f"{name}.json")
    if folder == "notebooks" and stamp.is_file():
        record = json.loads(stamp.read_text("utf-8"))
        record = record.get("page", record)  # where a later run failed: the run that this page is of
        overrides = " ".join(f"-p {key} {_word(value)}" for key, value in record["overrides"].items())
        command = f"make run NB={name} PROFILE={record['profile']}"
        command += f" ARGS={json.dumps(overrides)}" if overrides else ""
        used = ", ".join(
            f"<code>{html.escape(f'{k} = {v!r}')}</code>" for k, v in record["parameters"].items()
        )
        day, took = record["started"].replace("T", " ")[:16], f"{record.get('duration', 0):.0f} s"
        text = (
            f"<strong>Rerun this:</strong> <code>{html.escape(command)}</code>, then <code>make book</code>."
        )
        text = f"<p>{text}</p><p>Parameters: {used or 'none'}. Last run {day} UTC, {took}.</p>"
    else:
        text = (
            "<p><strong>Rerun this:</strong> <code>make book</code> builds this page and what it shows.</p>"
        )
    context["body"] += f'<aside class="rerun">{text}</aside>'


def _word(value):
    return value if isinstance(value, str) and value.isalnum() else json.dumps(value)


def copy_results(app, exception):
    """The csv, pdf and sidecars that the pages link to."""
    source = Path(app.srcdir, "_build", "results")
    if exception is None and app.builder.format == "html" and source.is_dir():
        shutil.copytree(source, Path(app.outdir, "results"), dirs_exist_ok=True)
        Path(app.outdir, ".nojekyll").touch()


def drop_thebe(app):
    """sphinx_thebe declares its constants twice on a page, an error there, and nothing here uses it."""
    for listeners in app.events.listeners.values():
        for listener in list(listeners):
            if listener.handler.__module__.startswith("sphinx_thebe"):
                app.disconnect(listener.id)


def setup(app):
    app.set_html_assets_policy("always")  # captions may hold the only formulas of a page
    app.add_directive("spend", Spend)
    app.connect("html-page-context", rerun_line)
    app.connect("html-page-context", spare_scripts)
    app.connect("build-finished", copy_results)
    app.connect("builder-inited", drop_thebe, priority=1)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
