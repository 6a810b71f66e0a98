"""The API reference: docstrings, which are plain text with `names` in backticks, become reStructuredText."""

from __future__ import annotations

import inspect
import re
from functools import cache
from importlib import import_module

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
    known = ()
    if callable(obj):
        try:
            known = tuple(inspect.signature(obj).parameters)
        except (TypeError, ValueError):
            known = ()
    lines[:] = rst("\n".join(lines), known, own=name.rpartition(".")[2]).split("\n")


def rst(text: str, parameters=(), own: str = "") -> str:
    """A docstring as reStructuredText: a paragraph for each parameter and error, other letters as they are."""
    found, block = [], False
    for line in text.split("\n"):
        indented = line.startswith("    ") and line.strip()
        if indented and not block:
            found += ["", "::", ""]
        if not line.strip():
            found.append("")
        elif indented:
            found.append(line)
        else:
            starts = re.match(r"([\w*]+(?:, \w+)*): ", line)
            if block or line.startswith("- ") or (starts and _names(starts[1], parameters)):
                found.append("")
            item = line.startswith("- ")
            found.append(("- " if item else "  " * _within(found)) + _inline(line[2 * item :].strip(), own))
        block = bool(indented) or (block and not line.strip())
    return "\n".join(found)


def _names(text: str, parameters) -> bool:
    return text.endswith(("Error", "Warning")) or all(
        name.strip("* ") in parameters for name in text.split(",")
    )


def _within(lines) -> bool:
    """Whether the next line goes on with an item of a list."""
    for line in reversed(lines):
        if not line:
            return False
        if line.startswith("- "):
            return True
    return False


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


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    app.config.autodoc_typehints = "none"
    app.config.autodoc_inherit_docstrings = False
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
