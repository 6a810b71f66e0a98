"""The words of the book: every page says what it teaches and where to go, and a symbol means one thing."""

import json
import re
from pathlib import Path

import pytest

from pdf import pages

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
PAGES = [page.removesuffix(".html") for page in pages(BOOK)]
BARE = ("cite", "notebooks/claims", "notebooks/paper_tables")  # tables and forms, no chapters
BOXED = [page for page in PAGES if page not in BARE and not page.startswith("api/")]


def prose(page):
    """The markdown of a page's source."""
    if not page.startswith("notebooks/"):
        return (BOOK / f"{page}.md").read_text("utf-8")
    cells = json.loads((ROOT / f"{page}.ipynb").read_text("utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


@pytest.mark.parametrize("page", BOXED)
def test_a_page_begins_with_what_it_teaches_and_ends_with_where_to_go(page):
    text = prose(page)
    assert text.count("\n:class: learn\n") == text.count("\n:class: next\n") == 1
    assert text.index(":class: learn") < text.index("\n## ")
    assert re.search(r"\n:class: next\n[^\n]*\{doc\}[^\n]*\n:::\s*$", text)


@pytest.mark.parametrize("page", BOXED)
def test_a_dimension_is_d_and_a_denoiser_is_D(page):
    assert not re.search(r"(?<![\w{(\\])D\s*(\\,)?(c\^2|\\sigma|/\\s|/\\?\()", prose(page))


def test_a_dimension_is_d_in_figures():
    code = "".join(path.read_text("utf-8") for path in sorted((ROOT / "notebooks").glob("*.ipynb")))
    assert re.search(r"d\\+sigma\^2", code) and not re.search(r"D\\+sigma\^2", code)


def test_a_symbol_has_one_line_in_the_notation():
    rows = re.findall(r"^\| (\$.*?) \|", prose("notation"), re.M)
    symbols = [one for row in rows for one in re.findall(r"\$([^$]+)\$", row)]
    assert len(symbols) > 35 and len(set(symbols)) == len(symbols)


def test_terms_are_in_the_glossary():
    words = re.findall(r"^(\w[\w -]*)\n  \S", prose("notation"), re.M)
    assert len(words) > 20
    for page in BOXED:
        for term in re.findall(r"\{term\}`([^`]+)`", prose(page)):
            named = re.sub(r"\s+", " ", re.sub(r".*<(.*)>", r"\1", term.replace("\n", " ")))
            assert named in words, (page, term)
