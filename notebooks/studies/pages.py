"""The pages that are made from notebooks: which there are, what each reads, its notebook and its parameters.

``notebooks/book.yml`` lists the pages in the order of the book. A page NAME is ``notebooks/NAME.ipynb``.
``notebooks/params/PROFILE.yml`` holds what a profile changes; in the profile "default" every page has the values of its
notebook.
"""

from __future__ import annotations

import ast
import fnmatch
import io
import json
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from studies.parameters import Refused, fit, read_override, read_yaml

__all__ = ["NOTEBOOKS", "ROOT", "Page", "page", "pages", "profiles"]

NOTEBOOKS = Path(__file__).resolve().parents[1]
ROOT = NOTEBOOKS.parent


@dataclass(frozen=True)
class Page:
    """One entry of ``notebooks/book.yml``.

    seconds: about how long its run takes in the profile "default", which says what is to be started first
    recorded: folders of ``book/results`` that it reads
    results: what it reads of the other pages' results, patterns such as "*/claims.json"
    files: what else it reads of the repository, patterns
    """

    name: str
    seconds: float = 60.0
    recorded: Sequence[str] = ()
    results: Sequence[str] = ()
    files: Sequence[str] = ()

    @property
    def source(self) -> Path:
        """Its notebook."""
        return NOTEBOOKS / f"{self.name}.ipynb"

    def notebook(self, values: dict | None = None) -> dict:
        """Its notebook as JSON, with the parameters in `values` set in the parameters cell."""
        try:
            found = json.loads(self.source.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise Refused(f"{self.source} is no notebook that can be read: {error}") from error
        for cell in found["cells"]:
            cell["source"] = "".join(cell["source"])
        if values:
            _set(found, values)
        return found

    def parameters(self) -> dict:
        """Parameter -> value, as the page has them without a profile."""
        return _parameters(self.notebook())

    def meanings(self) -> dict:
        """Parameter -> what it is, as the comment beside it says."""
        cell, found = _cell(self.notebook()), {}
        for line in cell["source"].splitlines() if cell else []:
            name, _, rest = line.partition(" = ")
            comments = [one.string for one in _tokens(rest) if one.type == tokenize.COMMENT]
            found[name] = comments[0].lstrip("# ") if comments else ""
        return found

    def chosen(self, profile: str, overrides: Sequence[tuple[str, str]] = ()) -> dict:
        """Parameter -> value, all of them, in a profile, with the pairs of name and text of a command line.

        Raises Refused for an unknown profile or parameter, and for a value that does not fit.
        """
        known = self.parameters()
        path = NOTEBOOKS / "params" / f"{profile}.yml"
        if profile not in profiles():
            raise Refused(f"profile {profile!r} does not exist: take one of {', '.join(profiles())}")
        entries = (read_yaml(path) or {}) if path.is_file() else {}
        changed = self._fit(entries.get(self.name) or {}, known, path)
        for name, text in overrides:
            self._know(name, known, "-p")
            changed[name] = read_override(name, text, known[name])
        return known | changed

    def _fit(self, values, known, where) -> dict:
        if not isinstance(values, dict):
            raise Refused(f"{where}: the entry of {self.name} is {values!r}; write parameter: value")
        for name in values:
            self._know(name, known, where)
        try:
            return {name: fit(name, value, known[name]) for name, value in values.items()}
        except Refused as error:
            raise Refused(f"{where}: {error}") from error

    def _know(self, name, known, where):
        if name not in known:
            has = ", ".join(known) or "none"
            raise Refused(f"{where}: page {self.name!r} has no parameter {name!r}; it has {has}")

    def reads(self, other: str) -> bool:
        """Whether it reads results of that other page."""
        return any(fnmatch.fnmatchcase(other, pattern.partition("/")[0]) for pattern in self.results)


def pages() -> dict[str, Page]:
    """All pages by name, in the order of the book.

    Raises Refused where book.yml is damaged, or where it and the notebooks that there are do not agree.
    """
    path = NOTEBOOKS / "book.yml"
    entries = read_yaml(path)
    if not isinstance(entries, dict):
        raise Refused(f"{path}: must map the name of each page to what it reads")
    found = {}
    for name, about in entries.items():
        try:
            found[name] = Page(name, **(about or {}))
        except TypeError as error:
            raise Refused(f"{path}: the entry of {name} is {about!r}: {error}") from error
    files = {one.stem for one in NOTEBOOKS.glob("*.ipynb")}
    if files != set(found):
        raise Refused(f"{path} lists the notebooks {sorted(found)}, notebooks/ holds {sorted(files)}")
    return found


def page(name: str) -> Page:
    """The page of that name; Refused names those that there are."""
    found = pages()
    if name not in found:
        raise Refused(f"there is no notebook {name!r}: take one of {', '.join(found)}")
    return found[name]


def profiles() -> list[str]:
    """The names of all profiles."""
    return sorted({"default"} | {path.stem for path in (NOTEBOOKS / "params").glob("*.yml")})


def _tokens(line: str):
    return tokenize.generate_tokens(io.StringIO(line).readline)


def _cell(notebook: dict) -> dict | None:
    tagged = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    return tagged[0] if tagged else None


def _parameters(notebook: dict) -> dict:
    cell = _cell(notebook)
    if cell is None:
        return {}
    try:
        return {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(cell["source"]).body}
    except (SyntaxError, ValueError, AttributeError) as error:
        raise Refused(f"the parameters cell must hold lines `name = value  # help`: {error}") from error


def _set(notebook: dict, values: dict):
    """Write other values into the parameters cell; the comments stay."""
    cell = _cell(notebook)
    lines = cell["source"].encode().split(b"\n")  # ast counts columns in bytes of UTF-8
    for statement in ast.parse(cell["source"]).body:
        name, old = statement.targets[0].id, statement.value
        if name in values and values[name] != ast.literal_eval(old):
            line = lines[old.lineno - 1]
            new = repr(values[name]).encode()
            lines[old.lineno - 1] = line[: old.col_offset] + new + line[old.end_col_offset :]
    cell["source"] = b"\n".join(lines).decode()
