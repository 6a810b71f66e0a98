"""Prints the built html of the book as one pdf: python notebooks/pdf.py [BOOK]

The articles of all pages, in the order of the table of contents, become one page that Chromium prints, with an
outline and numbers of pages. It is made of the html that readers see, and so shows nothing else. It stands here, as
it is a command on a book that is built, like run.py, and no part of building one.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
STYLE = """
@page { size: A4; margin: 18mm 16mm 20mm; }
html { font-size: 9.5pt; }
body { display: block; background: white; }
article, #contents { break-before: page; max-width: none; padding-top: 2mm; }  /* ink over the edge is outlined twice */
h1, h2, h3, caption { break-after: avoid; }
figure, tr, img, div.math, .admonition { break-inside: avoid; }
figure.entropic-table { break-inside: auto; }
thead { display: table-header-group; }
.frame, .pst-scrollable-table-container, .cell_output, pre, div.math {
  overflow: visible !important; mask: none !important;
}
.frame img { min-width: 0 !important; max-width: 100% !important; max-height: 215mm; object-fit: contain; }
pre { white-space: pre-wrap !important; overflow-wrap: anywhere; }
.headerlink, .copybtn, .files { display: none !important; }
.wide { zoom: var(--zoom); }
#title { height: 240mm; display: flex; flex-direction: column; justify-content: center; }
#contents a { display: block; margin: .4rem 0; }
"""
# Formulas that are set; tables and formulas wider than the page, scaled to it; all pictures there.
SETTLE = """async () => {
  if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
  for (const image of document.images) { image.loading = 'eager'; await image.decode().catch(() => 0); }
  const width = document.querySelector('#title').clientWidth;
  for (const one of document.querySelectorAll('table, mjx-container[display="true"]')) {
    const scale = width / one.scrollWidth;
    if (scale < 1) { one.classList.add('wide'); one.style.setProperty('--zoom', scale); }
  }
}"""
FOOT = (
    '<div style="font-size: 8px; width: 100%; text-align: center; color: #555">'
    '<span class="title"></span> &#183; <span class="pageNumber"></span></div>'
)


def pages(book: Path) -> list[str]:
    """The addresses of the pages, in the order of the table of contents, whatever parts it has."""
    toc = yaml.safe_load((book / "_toc.yml").read_text("utf-8"))
    found = [toc["root"]]

    def walk(node):
        for part in node.get("parts", []) + node.get("chapters", []) + node.get("sections", []):
            found.extend([part["file"]] if "file" in part else [])
            walk(part)

    walk(toc)
    return [f"{file}.html" for file in found]


def whole(html: Path, names: list[str], title: str, about: str) -> str:
    """All articles as one page of html; its links to other pages of the book lead to places in it."""
    places = {name: f"page-{i}" for i, name in enumerate(names)}
    articles, heads, contents, scripts = [], {}, [], ""
    for name in names:
        page = BeautifulSoup((html / name).read_text("utf-8"), "html.parser")
        for link in page.select('head link[rel="stylesheet"]'):
            heads[urljoin(name, link["href"]).partition("?")[0]] = None
        if page.select_one('script[src*="/mathjax/"]'):
            scripts = _mathjax(page, name)
        article = page.select_one("article")
        for old in article.select(
            "script, details.hide, .only-dark, aside.rerun"
        ):  # what is folded, and for a screen
            old.decompose()
        for figure in article.select(".spend noscript"):  # the interactive figure: its table
            figure.name = "div"
        for one in article.find_all(id=True):
            one["id"] = f"{places[name]}-{one['id']}"
        for one in article.find_all(["a", "img"]):
            kind = "href" if one.name == "a" else "src"
            if not one.get(kind) or one[kind].startswith(("http", "data:", "mailto:")):
                continue
            target, anchor = urldefrag(urljoin(name, one[kind]))
            target = unquote(target) or name
            if target in places:
                one[kind] = f"#{places[target]}" + (f"-{anchor}" if anchor else "")
            elif one.name == "img":
                one[kind] = target
            else:
                one.unwrap()  # a file that is not in the pdf
        article["id"] = places[name]
        contents.append(f'<a href="#{places[name]}">{article.h1.get_text().rstrip("#¶")}</a>')
        articles.append(str(article))
    styles = "".join(f'<link rel="stylesheet" href="{address}">' for address in heads)
    return (
        f'<!DOCTYPE html><html lang="en" data-theme="light" data-mode="light"><head><meta charset="utf-8">'
        f"<title>{title}</title>{styles}<style>{STYLE}</style>{scripts}</head><body>"
        f'<div id="title"><p style="font-size: 2.4rem">{title}</p><p>{about}</p></div>'
        f'<nav id="contents"><h1>Contents</h1>{"".join(contents)}</nav>'
        f"{''.join(articles)}</body></html>"
    )


def _mathjax(page: BeautifulSoup, name: str) -> str:
    """The scripts that set formulas, as seen from the top of the book."""
    found = [
        one for one in page.select("head script") if "mathjax" in (one.get("src", "") + one.text).lower()
    ]
    for one in found:
        if one.get("src"):
            one["src"] = urljoin(name, one["src"])
    return "".join(map(str, found))


def print_pdf(book: Path, title: str, about: str) -> Path:
    """BOOK/_build/entropic.pdf of BOOK/_build/html. ValueError: no html, or no Chromium."""
    html, target = book / "_build" / "html", book / "_build" / "entropic.pdf"
    if not (html / "index.html").is_file():
        raise ValueError("there is no book yet: make book")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise ValueError("a pdf is printed by chromium: apt-get install chromium fonts-liberation")
    from playwright.sync_api import sync_playwright

    one = html / "whole-book.html"
    one.write_text(whole(html, pages(book), title, about), "utf-8")
    try:
        with sync_playwright() as playwright:
            with playwright.chromium.launch(
                executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
            ) as browser:
                tab = browser.new_page(color_scheme="light", viewport={"width": 673, "height": 1000})
                tab.set_default_timeout(300_000)
                tab.goto(one.as_uri())
                tab.emulate_media(media="print")
                tab.evaluate(SETTLE)
                tab.pdf(
                    path=str(target),
                    prefer_css_page_size=True,
                    print_background=True,
                    display_header_footer=True,
                    header_template="<span></span>",
                    footer_template=FOOT,
                    outline=True,
                    tagged=True,
                )
    finally:
        one.unlink()
    return target


def main(book: str = "book") -> int:
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    try:
        target = print_pdf(
            Path(book).resolve(), cff["title"].replace("&", "&amp;"), f"Version {cff['version']}"
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{target} ({target.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
