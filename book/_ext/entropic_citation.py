"""How the book, and each figure and table in it, is cited: as BibTeX and as plain text, for a reader to copy."""

from __future__ import annotations

import html
import re

import yaml

from access import plain
from entropic._version import version
from entropic_about import commit_of, day, repository
from studies.pages import ROOT
from studies.presentation import title


def book() -> dict:
    """CITATION.cff, which says what the book is called."""
    return yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))


def book_html() -> str:
    about, known = book(), _url()
    year, author = day()[:4], about["authors"][0]["name"]
    entry = {"title": about["title"], "author": f"{{{author}}}", "year": year, "version": version}
    text = f"{author} ({year}). {about['title']}. Version {version}."
    return _html(bibtex("software", "entropic", entry, known), _with(text, known), open=True)


def cite_html(sidecar, number: str) -> str:
    """What a reader opens under a figure or table. It can be read, and copied by hand, without JavaScript."""
    about, known = book(), _url()
    author, year = about["authors"][0]["name"], sidecar["created"][:4]
    name, kind = f"{sidecar['notebook']}/{sidecar['id']}", sidecar["kind"]
    made = f"{kind} {name}, version {sidecar['versions']['entropic']}, commit {commit_of(sidecar)}"
    entry = {
        "title": f"{number}: {_tex(title(sidecar))}",
        "author": f"{{{author}}}",
        "year": year,
        "howpublished": f"In: {about['title']}",
        "note": _tex(made),
    }
    text = f"{author} ({year}). {number}: {plain(title(sidecar))}. In: {about['title']} ({made})."
    key = f"entropic-{sidecar['notebook']}-{sidecar['id']}".replace("_", "-")
    return _html(bibtex("misc", key, entry, known), _with(text, known), name=number)


def _url() -> str:
    known = repository()
    return known.url if known else ""


def bibtex(kind: str, key: str, entry: dict, url: str) -> str:
    entry = entry | ({"url": url} if url else {})
    width = max(map(len, entry))
    lines = (f"  {name:<{width}} = {{{value}}}" for name, value in entry.items())
    return f"@{kind}{{{key},\n" + ",\n".join(lines) + "\n}"


def _with(text: str, url: str) -> str:
    return f"{text} {url}" if url else text


def _tex(text: str) -> str:
    """Text for TeX: its special letters are escaped, formulas between dollars stay as they are."""
    parts = re.split(r"(\$.+?\$)", text)
    parts[::2] = [re.sub(r"([%&#_])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def _html(entry: str, text: str, name: str = "", open: bool = False) -> str:
    what = f' <span class="visually-hidden">{name}</span>' if name else " this book"
    return (
        f'<details class="citation"{" open" * open}><summary>Cite{what}</summary>'
        f'<p data-copy="text">{html.escape(text)}</p>'
        f'<pre data-copy="BibTeX" tabindex="0">{html.escape(entry)}</pre></details>'
    )
