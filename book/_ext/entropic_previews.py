"""What a link points to, shown beside it: each page carries, unseen, a short copy of what its links name.

The copies are made when the book is built, so that a page asks nothing of other pages and works from a file.
`_static/previews.js` shows them. Statements, proofs, equations, figures, tables, citations, terms of the glossary and
functions have one.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from urllib.parse import unquote, urldefrag

from bs4 import BeautifulSoup
from docutils import nodes

LONGEST = 1500  # letters of a copy; a longer proof ends in "..."
DROPPED = ".headerlink, .citation, .files, script, style, .backrefs, button, .viewcode-link"


def write(app, exception):
    if exception is not None or app.builder.name != "html":
        return
    root = Path(app.outdir)
    pages = {f"{name}.html": root / f"{name}.html" for name in app.env.found_docs}
    soups = {
        name: BeautifulSoup(article(path.read_text("utf-8")), "html.parser") for name, path in pages.items()
    }
    for name, soup in soups.items():
        copies = {}
        for link in soup.select("a[href*='#']"):
            href = link["href"]
            file, anchor = urldefrag(href)
            target = (
                posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(file))) if file else name
            )
            if (
                href in copies
                or target not in soups
                or {"headerlink", "permalink"} & set(link.get("class", []))
            ):
                continue
            copies[href] = copy(soups[target].find(id=unquote(anchor)), target, name)
        found = "".join(
            f'<template data-preview="{href}">{text}</template>' for href, text in copies.items() if text
        )
        if found:
            page = pages[name].read_text("utf-8")
            before, end, after = page.rpartition("</body>")
            pages[name].write_text(before + found + end + after, "utf-8")


def article(page: str) -> str:
    """The text of a page without the theme's lists of pages around it, which take long to parse."""
    found = re.search(r"<article.*</article>", page, flags=re.S)
    return found[0] if found else ""


def copy(target, page: str, reader: str) -> str:
    """The short html of an element of `page`, for the page `reader`; "" where it is none of those that have one."""
    if target is None:
        return ""
    classes = target.get("class", [])
    if target.name == "figure":
        kept = [
            target.find("img", class_="only-light"),
            target.find("img", class_="only-dark"),
            target.find("p"),
        ]
    elif target.name == "dt":
        body = target.find_next_sibling("dd")
        kept = [target, body and body.find("p")]
    elif {"math", "proof", "citation"} & set(classes) or target.get("role") == "doc-biblioentry":
        kept = [target]
    else:
        return ""
    soup = BeautifulSoup("".join(str(part) for part in kept if part), "html.parser")
    for part in soup.select(DROPPED if target.name == "figure" else DROPPED.replace(".citation, ", "")):
        part.decompose()
    for part in soup.find_all("a"):
        part.unwrap()
    for part in soup.find_all(id=True):
        del part["id"]
    for image in soup.find_all("img"):
        where = posixpath.normpath(posixpath.join(posixpath.dirname(page), image["src"]))
        image["src"], image["alt"] = posixpath.relpath(where, posixpath.dirname(reader) or "."), ""
        del image["style"]
    for part in soup.find_all("dt") + soup.find_all("dd"):
        part.name = "div"
    shorten(soup)
    return str(soup)


def shorten(soup):
    """Leave out the last blocks until the text is short enough; a formula is left whole or out."""
    blocks = soup.select("p, div.math, ul, ol")
    while len(soup.get_text()) > LONGEST and len(blocks) > 1:
        last = blocks.pop()
        last.replace_with("..." if not blocks[-1].find_next_sibling(string="...") else "")


def name_proofs(app, doctree):
    """Give every proof an id of its own, that of the statement before it: sphinx-proof calls them all "proof"."""
    label, taken = "", set()
    for node in doctree.findall(nodes.Element):
        if node.get("label") and node.get("realtype"):
            label = node["label"]
        for i, id in enumerate(node["ids"]):
            if id in ("proof", "proof-content"):
                owner = label if id == "proof" or not node.parent.get("label") else node.parent["label"]
                new = f"{id}-{owner or len(taken)}"
                node["ids"][i] = new if new not in taken else f"{new}-{len(taken)}"
                taken.add(node["ids"][i])


def once(app, pagename, templatename, context, doctree):
    """sphinx-proof gives the title of an unnumbered statement the id of the statement, too."""
    if "body" in context:
        context["body"] = re.sub(r'(<p class="admonition-title") id="[^"]*"', r"\1", context["body"])


def setup(app):
    app.connect("doctree-read", name_proofs)
    app.connect("html-page-context", once)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
