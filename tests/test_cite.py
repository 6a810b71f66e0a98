"""The book can be cited, launched and found one's way in: numbers, links, citations, previews, the reference."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import yaml

import entropic
from studies.pages import page
from studies.presentation import title
from tests.conftest import ROOT

sys.path.append(str(ROOT / "book" / "_ext"))
import entropic_about as about
import entropic_api as api
import entropic_citation as citation
import entropic_results as results

SIDECAR = {
    "kind": "figure",
    "id": "width-sweep",
    "number": 4,
    "notebook": "one_dimension",
    "caption": "Left: 50% of $\\sigma_1$ & more. The rest.",
    "created": "2026-01-02T00:00:00+00:00",
    "commit": "0123456789",
    "dirty": False,
    "versions": {"entropic": "0.1.0"},
}


# --- what needs no book ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("Left: 50% of $\\sigma_1$ & more. The rest.", "Left: 50% of $\\sigma_1$ & more"),
        ("Distance (W2; of modes KL) over EDM's; exact.", "Distance (W2; of modes KL) over EDM's"),
        (
            "Recorded (n = 5, cpu (x86, 2 cores); `make a`). Errors of .5 nats. More.",
            "Errors of .5 nats, recorded",
        ),
        ("Recorded. ", "Recorded"),
    ],
)
def test_a_title_is_the_first_sentence(caption, found):
    assert title({"caption": caption}) == found


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("https://github.com/a/b", ("https://github.com/a/b", "gh-pages", "")),
        ("https://github.com/a/b.c/", ("https://github.com/a/b.c", "gh-pages", "")),
        ("https://github.com/a/b/tree/gh-pages/", ("https://github.com/a/b", "gh-pages", "")),
        ("https://github.com/a/b/tree/pages/v0.2", ("https://github.com/a/b", "pages", "v0.2")),
    ],
)
def test_the_repository_is_read(monkeypatch, address, found):
    monkeypatch.setenv("BOOK_REPOSITORY", address)
    assert tuple(about.repository()) == found


@pytest.mark.parametrize("address", ["github.com/a/b", "https://github.com/a", "https://example.org/a/b"])
def test_what_is_no_repository_is_refused(monkeypatch, address):
    monkeypatch.setenv("BOOK_REPOSITORY", address)
    with pytest.raises(ValueError, match="BOOK_REPOSITORY"):
        about.repository()


def launch(pagename):
    context = {"body": ""}
    about.links(None, pagename, None, context, None)
    return re.findall('href="([^"]*)">([^<]*)<', context["body"])


def test_without_a_repository_there_is_no_link(monkeypatch):
    monkeypatch.delenv("BOOK_REPOSITORY", raising=False)
    assert launch("notebooks/one_dimension") == launch("cite") == []


def test_with_a_repository_pages_link_to_their_source_and_notebooks_can_be_launched(monkeypatch):
    monkeypatch.setenv("BOOK_REPOSITORY", "https://github.com/a/b/tree/gh-pages/v0.2")
    found = {text: address for address, text in launch("notebooks/one_dimension")}
    assert found["Open in Colab"].endswith("/github/a/b/blob/gh-pages/v0.2/launch/one_dimension.ipynb")
    assert found["Open in Binder"].endswith("?urlpath=lab%2Ftree%2Fv0.2%2Flaunch%2Fone_dimension.ipynb")
    for address, text in launch("notebooks/one_dimension") + launch("cite"):
        if text in ("Source", "Edit this page"):
            assert (ROOT / re.sub(r"https://github.com/a/b/(blob|edit)/\w+/", "", address)).is_file()
    assert [text for _, text in launch("cite")] == ["Source", "Edit this page"]
    assert launch("genindex") == []


def test_the_notebook_behind_a_button_installs_what_it_needs_first(monkeypatch, tmp_path):
    notebook = about.alone(page("one_dimension"), about.Repository("https://github.com/a/b", "gh-pages", ""))
    first = notebook["cells"][0]["source"]
    assert (
        "https://github.com/a/b" in first
        and notebook["cells"][1:] == page("one_dimension").notebook()["cells"]
    )
    said = []
    monkeypatch.setattr(subprocess, "run", lambda words, check: said.append(" ".join(map(str, words))))
    monkeypatch.chdir(tmp_path)
    exec(first, {})  # here everything is installed
    assert said == []
    monkeypatch.setattr(sys, "path", list(sys.path))
    exec(first.replace('"studies"', '"no_such_module"'), {})
    assert [re.search("git clone|git -C|pip install", words)[0] for words in said] == [
        "git clone",
        "git -C",
        "pip install",
        "pip install",
    ]
    assert sys.path[1] == str(tmp_path / "entropic-book" / "notebooks")


def test_a_figure_is_cited_by_number_title_id_version_and_commit(monkeypatch):
    monkeypatch.delenv("BOOK_REPOSITORY", raising=False)
    text = citation.cite_html(SIDECAR, "Figure 4.4")
    for part in (
        "Figure 4.4: Left: 50",
        "figure one_dimension/width-sweep",
        "0.1.0",
        "commit 0123456)",
        "2026",
    ):
        assert part in text
    assert r"50\% of $\sigma_1$ \&amp; more}" in text  # for TeX; the formula as it is
    assert "The rest" not in text and "url" not in text
    monkeypatch.setenv("BOOK_REPOSITORY", "https://github.com/a/b")
    assert citation.cite_html(SIDECAR, "Figure 4.4").count("https://github.com/a/b") == 2


def test_a_changed_tree_says_so():
    assert about.commit_of({"commit": "0123456789", "dirty": True}) == "0123456-dirty"
    assert about.commit_of({"commit": None, "dirty": None}) == "unknown"


def test_the_day_of_a_build_can_be_set(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert about.day() == "1970-01-02"


def test_a_docstring_becomes_paragraphs_with_links():
    text = "Sum of x_i * |y|, for `plan`.\n\nx, y: what they are,\nboth. See *Take it\nhome*."
    text += "\nValueError: n < 2.\n\n    a  b"
    assert api.rst(text, ("x", "y")).split("\n\n") == [
        r"Sum of x\_i \* \|y\|, for :py:obj:`~entropic.plan`\ .",
        "x, y: what they are, both. See *Take it home*.",
        "ValueError: n < 2.",
        "::",
        "    a  b",
    ]
    assert api.rst("a sentence on\nx: no parameter begins here.", ("x",)).count("\n") == 0


def test_a_release_stays_when_the_book_is_published_again(tmp_path):
    def git(*words, cwd=tmp_path / "work"):
        return subprocess.run(["git", *words], cwd=cwd, check=True, capture_output=True, text=True).stdout

    git("init", "--quiet", "--bare", "origin", cwd=tmp_path)
    git("init", "--quiet", "work", cwd=tmp_path)
    git("remote", "add", "origin", str(tmp_path / "origin"))
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    git(*name, "commit", "--quiet", "--allow-empty", "-m", "start")
    built = tmp_path / "html"
    for text, words in (("one", []), ("one", ["v0.1"]), ("two", []), ("two", ["v0.2"]), ("three", [])):
        built.mkdir(exist_ok=True)
        (built / "index.html").write_text(text)
        (built / f"{text}.html").write_text(text)
        subprocess.run([ROOT / ".ci" / "publish", built, *words], cwd=tmp_path / "work", check=True)
        (built / f"{text}.html").unlink()
    git("fetch", "--quiet", "origin", "gh-pages")
    files = git("ls-tree", "-r", "--name-only", "FETCH_HEAD").split()
    assert set(files) == {".nojekyll", "index.html", "three.html"} | {
        f"{folder}/{file}.html"
        for folder, name in (("v0.1", "one"), ("v0.2", "two"))
        for file in ("index", name)
    }
    assert (
        git("show", "FETCH_HEAD:index.html") == "three" and git("show", "FETCH_HEAD:v0.1/index.html") == "one"
    )
    assert git("rev-list", "--count", "FETCH_HEAD").strip() == "1" and git("status", "--porcelain") == ""

    # An origin that does not answer is no origin without a book.
    tool = tmp_path / "tool"
    tool.mkdir()
    (tool / "git").write_text(
        f'#!/bin/sh\ncase "$1" in fetch | ls-remote) exit 128 ;; esac\nexec {shutil.which("git")} "$@"\n'
    )
    (tool / "git").chmod(0o755)
    about = os.environ | {"PATH": f"{tool}{os.pathsep}{os.environ['PATH']}"}
    again = subprocess.run([ROOT / ".ci" / "publish", built], cwd=tmp_path / "work", env=about)
    git("fetch", "--quiet", "origin", "gh-pages")
    assert again.returncode and git("ls-tree", "-r", "--name-only", "FETCH_HEAD").split() == files


def test_a_row_is_named_by_what_stands_in_it():
    table = {"schedule": ["EDM", "ours", "ours"], "nfe": [8.0, 8.0, 16.0], "value": [1.0, 0.5, 0.25]}
    assert (
        results._entry(table, "value", "schedule=ours&nfe=16") == 0.25 == results._entry(table, "value", "-1")
    )
    assert results._entry(table, "value", "schedule=log", missing="-") == "-"
    for row in ("schedule=ours", "schedule=log", "nfe=8&schedule=log", "3"):
        with pytest.raises(ValueError, match="must name one"):
            results._entry(table, "value", row)


# --- the html ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(html):
    """Page -> its html without the unseen copies."""
    paths = [*html.glob("*.html"), *html.glob("notebooks/*.html"), *html.glob("api/*.html")]
    texts = {path.relative_to(html).as_posix(): path.read_text("utf-8") for path in paths}
    return {name: re.sub("<template.*?</template>", "", text, flags=re.S) for name, text in texts.items()}


def figures(pages):
    """(page, id, html) of every figure and table on the page that makes it."""
    for name, text in pages.items():
        for found in re.finditer(r'<figure class="entropic-\w+" id="([^"]+)">.*?</figure>', text, re.S):
            if f'href="#{found[1]}"' in found[0]:
                yield name, found[1], found[0]


def test_a_number_names_one_figure_of_the_whole_book(pages):
    numbers = Counter(re.search(r"<strong>(.*?)\.</strong>", text)[1] for _, _, text in figures(pages))
    assert len(numbers) > 50 and set(numbers.values()) == {1}
    for name, _, text in figures(pages):
        chapter = re.search(r'class="section-number">(\d+)\.', pages[name])[1]
        assert re.search(r"<strong>\w+ (\d+)\.\d+\.</strong>", text)[1] == chapter


def test_every_figure_has_its_link_its_files_and_its_citation(pages, html):
    for name, id, text in figures(pages):
        links = dict(re.findall(r'<a[^>]* href="([^"]+)"[^>]*>([^<]+)</a>', text))
        said = set(links.values())
        assert said >= {"#", "csv", "provenance"} | ({"png", "pdf"} if id.startswith("fig") else set()), (
            name,
            id,
        )
        for link in links:
            assert link.startswith("#") or (html / name).parent.joinpath(link).is_file()
        assert "@misc{" in text and "<summary>Cite" in text
        assert not re.search(r"[$\\]", re.search(r'<p data-copy="text">(.*?)</p>', text, re.S)[1]), (name, id)
        made = json.loads(
            (html / name).parent.joinpath(next(k for k, v in links.items() if v == "provenance")).read_text()
        )
        assert f"{made['notebook']}/{made['id']}" in text


def test_the_page_cite_lists_every_figure_and_has_the_title_of_the_book(pages):
    title = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["title"]
    assert pages["cite.html"].count(title) == 2 and "@software{entropic" in pages["cite.html"]
    listed = set(re.findall(r'<li><a href="([^"]+)">(?:Figure|Table) [\d.]+</a>', pages["cite.html"]))
    assert listed == {f"{name}#{id}" for name, id, _ in figures(pages)}


def test_every_page_says_what_build_it_is(pages):
    for name, text in pages.items():
        assert re.search(
            rf"entropic {re.escape(entropic.__version__)} · commit <code>\w+(-dirty)?</code> · built \d", text
        ), name


def test_ids_occur_once(pages):
    for name, text in pages.items():
        twice = [id for id, n in Counter(re.findall(r'\sid="([^"]*)"', text)).items() if n > 1]
        assert twice == [], name


def test_every_public_name_is_in_the_reference(pages):
    text = "".join(text for name, text in pages.items() if name.startswith("api/"))
    missing = [
        name
        for name in entropic.__all__
        if name[0] != "_"
        and f'id="entropic.{name}"' not in text
        and not inspect.ismodule(getattr(entropic, name))
    ]
    assert missing == []
    missing = [full for full in api.documented().values() if f'id="{full}"' not in text]
    assert missing == []


def test_prose_links_to_the_reference(pages):
    assert 'href="api/schedules.html#entropic.plan"' in pages["solver_aware.html"]
    assert len(set(re.findall(r"#entropic\.adapters\.\w+", pages["notebooks/take_home.html"]))) >= 5


# --- in the browser ----------------------------------------------------------------------------------------


@pytest.fixture
def tab(browser, html):
    """tab(page) -> it, opened as a file."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    one = context.new_page()

    def visit(name):
        one.goto(f"{html.as_uri()}/{name}")
        return one

    yield visit
    context.close()


def test_a_citation_is_copied_by_keyboard_and_said(tab):
    page = tab("notebooks/one_dimension.html")
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    figure = page.locator("#fig-exact-kl-wide")
    figure.locator("summary").focus()
    page.keyboard.press("Enter")
    for name in ("text", "BibTeX"):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "PRE":  # it scrolls
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        figure.locator("[role=status]", has_text=f"{name} copied.").wait_for()
        assert "one" in page.evaluate("window.copied")
    assert page.evaluate("window.copied").startswith("@misc{entropic-one-dimension-exact-kl-wide,")


def test_where_nothing_can_be_copied_the_text_is_selected(tab):
    page = tab("cite.html")
    page.evaluate(
        "navigator.clipboard.writeText = () => Promise.reject(); document.execCommand = () => false"
    )
    page.get_by_role("button", name="Copy BibTeX").click()
    page.get_by_text("BibTeX is selected").wait_for()
    assert page.evaluate("String(getSelection())").startswith("@software{entropic")


def published(browser, html):
    """A tab in which the book stands at https://book.example/."""
    context = browser.new_context()
    context.route(
        "**/*", lambda route: route.fulfill(path=html / route.request.url.split("/", 3)[3].split("?")[0])
    )
    return context.new_page()


def test_a_public_page_gives_its_address(browser, html):
    page = published(browser, html)
    page.goto("https://book.example/notebooks/one_dimension.html")
    shown = page.locator("#fig-exact-kl-wide [data-copy]").all_text_contents()
    address = "https://book.example/notebooks/one_dimension.html#fig-exact-kl-wide"
    assert shown[0].endswith(f" {address}") and f"url = {{{address}}}\n}}" in shown[1]
    page.context.close()


def test_a_citation_can_be_read_without_javascript(browser, html):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{html.as_uri()}/notebooks/one_dimension.html")
    figure = page.locator("#fig-exact-kl-wide")
    figure.locator("summary").click()
    assert figure.get_by_text("@misc{").is_visible() and figure.locator("button").count() == 0
    context.close()


def test_a_link_shows_what_it_points_to(tab):
    page = tab("cite.html")
    link, preview = page.locator("a[href$='#fig-width-sweep']").first, page.locator("#preview")
    link.hover()
    preview.wait_for()
    assert preview.locator("img.only-light").evaluate("i => i.decode().then(() => i.naturalWidth)") > 0
    page.keyboard.press("Escape")
    assert preview.is_hidden()
    page = tab("entropic_time.html")
    page.keyboard.press("Tab")
    link = page.locator("article a[href*='cite.html#']").first
    link.focus()
    preview.wait_for()
    assert "Ambrogioni" in preview.inner_text() and link.get_attribute("aria-describedby") == "preview"
    shown = preview.inner_text()
    page.keyboard.press("Tab")
    page.wait_for_function(
        "s => (e => e.hidden || e.innerText !== s)(document.getElementById('preview'))", arg=shown
    )


def test_every_preview_has_its_pictures(html):
    found = [
        path.parent / source
        for path in html.rglob("*.html")
        for copy in re.findall("<template.*?</template>", path.read_text("utf-8"), re.S)
        for source in re.findall('<img[^>]* src="([^"]+)"', copy)
    ]
    assert found and [path for path in found if not path.is_file()] == []


def test_a_search_result_is_prose_and_opens_at_the_hit(browser, html):
    """Served, not from a file: a browser lets no page of a file read another."""
    page = published(browser, html)
    page.goto("https://book.example/search.html?q=posterior")
    page.locator("ul.search p.context").first.wait_for()
    excerpts = " ".join(page.locator("ul.search p.context").all_text_contents())
    assert not re.search(r"\\\(|\\\[|\\mathbb|\\sigma|import ", excerpts)
    page.locator("ul.search li a:not([href*='#'])").first.click()
    hit = page.locator("article .highlighted").first
    hit.wait_for()
    page.wait_for_function(
        "document.querySelector('article .highlighted').getBoundingClientRect().top < innerHeight"
    )
    page.context.close()
