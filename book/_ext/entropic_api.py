"""The API reference: docstrings, which are plain text with `names` in backticks, become reStructuredText.

In the prose, code that is a name of the reference, or a call of one, is linked to it.
"""

from __future__ import annotations

import inspect
import re
from functools import cache
from importlib import import_module

from docutils import nodes

MODULES = ("adapters", "noise", "estimate", "saved", "exact", "rivals", "images.data", "images.generate")
MODULES += ("images.metrics", "images.networks", "images.pipelines", "images.ready", "images.cost")


@cache
def documented() -> dict[str, str]:
    """Name -> full name of what the reference holds; where two modules have a name, that of `entropic` counts."""
    found = {}
    for module in (*(f"entropic.{name}" for name in reversed(MODULES)), "entropic"):
        found |= {name: f"{module}.{name}" for name in public(import_module(module))}
    return found


def public(module) -> list[str]:
    """The public functions and classes of a module: those in `__all__`, or else those that it defines."""
    own = [name for name, one in vars(module).items() if getattr(one, "__module__", "") == module.__name__]
    names = getattr(module, "__all__", own)
    return [name for name in names if name[0] != "_" and callable(getattr(module, name))]


def process(app, what, name, obj, options, lines):
    """Rewrite the lines of one docstring in place."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()  # what Python says of a field of a named tuple; its class says what it is
        return
    known = ()
    if callable(obj):
        try:
            known = tuple(inspect.signature(obj).parameters)
        except (TypeError, ValueError):
            known = ()
    lines[:] = rst("\n".join(lines), known, own=name.rpartition(".")[2]).split("\n")


def rst(text: str, parameters=(), own: str = "") -> str:
    """A docstring as reStructuredText: a paragraph for each parameter and error, other letters as they are."""
    blocks = []  # of lines: indented ones, an item, or a paragraph
    for line in text.split("\n"):
        last = blocks[-1] if blocks else []
        if not line.strip():
            blocks.append([])
        elif line.startswith("    ") or (last and last[0].startswith("- ") and line.startswith("  ")):
            alike = last and (last[0].startswith("    ") or last[0].startswith("- "))
            last.append(line) if alike else blocks.append([line])
        elif (
            not last
            or last[0].startswith("    ")
            or line.startswith("- ")
            or _begins(last[-1], line, parameters)
        ):
            blocks.append([line])
        else:
            last.append(line)
    return "\n\n".join(_block(lines, own) for lines in blocks if lines)


def _block(lines, own) -> str:
    if lines[0].startswith("    "):
        return "\n".join(["::", "", *lines])
    joined = " ".join(line.strip() for line in lines)
    return f"- {_inline(joined[2:], own)}" if joined.startswith("- ") else _inline(joined, own)


def _begins(before: str, line: str, parameters) -> bool:
    """Whether a line begins what is said of parameters, "x, sigma: ...", or of an error."""
    starts = re.match(r"([\w*]+(?:, \w+)*): ", line)
    if not starts or not before.rstrip().endswith((".", ":", ")")):
        return False
    names = [name.strip("* ") for name in starts[1].split(",")]
    return all(name in parameters or name.endswith(("Error", "Warning")) for name in names)


def _inline(line: str, own: str) -> str:
    parts = re.split(r"(``[^`]+``|`[^`]+`|\*\*[^*\s][^*]*\*\*|(?<![\w*])\*[A-Za-z][^*]*\*(?![\w*]))", line)
    parts[::2] = [re.sub(r"([\\*_|`])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [_code(part, own) if part[0] == "`" else part for part in parts[1::2]]
    return "".join(parts)


def _code(part: str, own: str) -> str:
    name = part.strip("`")
    full = documented().get(name)
    # A word stands for itself in its own entry, and is no letter of a formula such as `plan(n)`.
    return f":py:obj:`~{full}`\\ " if full and name != own else f"``{name}``\\ "


def link(app, doctree, docname):
    """Link `plan`, `entropic.plan` and `plan(n, curve)` in the prose to what the reference says of them."""
    entries = app.env.get_domain("py").objects
    for node in list(doctree.findall(nodes.literal)):
        name = re.match(r"(?:entropic\.)?(\w+)(?:$|\()", node.astext())
        entry = entries.get(documented().get(name[1], "")) if name else None
        if entry and not isinstance(node.parent, (nodes.reference, nodes.title)):
            page = "" if entry.docname == docname else app.builder.get_relative_uri(docname, entry.docname)
            address = f"{page}#{entry.node_id}"
            node.replace_self(nodes.reference("", "", node.deepcopy(), refuri=address, internal=True))


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    app.config.autodoc_typehints = "none"
    app.config.autodoc_inherit_docstrings = False
    app.connect("autodoc-process-docstring", process)
    app.connect("doctree-resolved", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
