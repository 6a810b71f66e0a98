"""The built book as a reader meets it: every page in a real headless Chromium, served from 127.0.0.1."""

import http.server
import io
import threading
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import numpy as np
import pytest
from PIL import Image

from pdf import pages
from tests.conftest import NOTEBOOKS, ROOT

PAGES = pages(ROOT / "book")
DESKTOP, PHONE = 1280, 390

# What a page shows, asked of the page itself once its formulas are set and its lazy images are loaded.
SETTLE = """async () => {
  if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
  const images = [...document.querySelectorAll('img')].filter(i => i.checkVisibility());
  for (const i of images) { i.loading = 'eager'; await i.decode().catch(() => 0); }
}"""
FACTS = """() => ({
  width: document.documentElement.scrollWidth,
  theme: document.documentElement.dataset.theme,
  formulas: document.querySelectorAll('.math').length,
  unset: [...document.querySelectorAll('.math')]
    .filter(m => !m.querySelector('mjx-container')).map(m => m.textContent),
  wrong: [...document.querySelectorAll('mjx-merror')].map(m => m.textContent),
  tex: (document.querySelector('article') ?? document.body).innerText.match(/\\\\\\(|\\\\\\[|\\$\\$/g) ?? [],
  images: [...document.querySelectorAll('article img')].map(i => ({
    src: i.getAttribute('src'), alt: i.alt, shown: i.checkVisibility(), width: i.naturalWidth,
    light: i.classList.contains('only-light'), dark: i.classList.contains('only-dark')})),
  links: [...document.querySelectorAll('a[href], link[href]')].map(a => a.getAttribute('href')),
  rerun: document.querySelector('aside.rerun')?.innerText ?? '',
})"""


@pytest.fixture(scope="session")
def server(html):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(html))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def visit(browser, server):
    """visit(page, mode, width) -> what was seen; each is opened once, at half of the pixels: a quarter of the work."""
    contexts, seen = {}, {}

    def visit(page, mode="light", width=DESKTOP):
        if (page, mode, width) in seen:
            return seen[page, mode, width]
        if (mode, width) not in contexts:  # which keep the scripts that all pages load
            about = {"viewport": {"width": width, "height": 900}, "device_scale_factor": 0.5}
            contexts[mode, width] = browser.new_context(color_scheme=mode, **about)
        tab, problems, outside = contexts[mode, width].new_page(), [], []
        tab.on("console", lambda m: m.type in ("error", "warning") and problems.append(f"{m.type}: {m.text}"))
        tab.on("pageerror", lambda error: problems.append(f"page error: {error}"))
        tab.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
        tab.on("response", lambda r: r.status >= 400 and problems.append(f"{r.status}: {r.url}"))
        tab.on("request", lambda r: r.url.startswith((server, "data:", "blob:")) or outside.append(r.url))
        tab.goto(server + page)
        tab.evaluate(SETTLE)
        facts = tab.evaluate(FACTS)
        shots, figures = [], tab.query_selector_all("figure.entropic-figure .frame")
        if width == DESKTOP:  # the phone is asked for widths alone
            shots = [pixels(tab.screenshot(full_page=True)), *(pixels(f.screenshot()) for f in figures)]
        found = SimpleNamespace(
            **facts, problems=problems, outside=outside, shots=shots, figures=len(figures)
        )
        tab.close()
        seen[page, mode, width] = found
        return found

    return visit


def pixels(png):
    """Luminance of a screenshot, 0 to 255; bytes, as all pages are kept."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


@pytest.mark.parametrize("page", [*PAGES, "search.html", "genindex.html"])
def test_no_error_and_no_failed_request(visit, page):
    assert visit(page).problems == []


@pytest.mark.parametrize("page", [*PAGES, "search.html", "genindex.html"])
def test_nothing_is_asked_of_other_machines(visit, page):
    assert visit(page).outside == []


@pytest.mark.parametrize("page", PAGES)
def test_formulas_are_typeset(visit, page):
    seen = visit(page)
    assert (seen.unset, seen.wrong, seen.tex) == ([], [], [])


def test_some_page_has_formulas(visit):
    assert sum(visit(page).formulas for page in PAGES) > 0


@pytest.mark.parametrize("page", PAGES)
def test_figures_have_alt_text_and_both_variants(visit, page):
    light, dark = visit(page), visit(page, "dark")
    assert [image["src"] for image in light.images if not image["alt"].strip()] == []
    for seen, other in ((light, "dark"), (dark, "light")):
        shown = [image for image in seen.images if image["shown"]]
        assert not any(image[other] for image in shown)
        assert all(image["width"] > 0 for image in shown), "an image that did not load"
    assert sum(image["light"] for image in light.images) == sum(image["dark"] for image in light.images)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_saved_figure_is_shown(visit, smoke, name):
    saved = list((smoke.results / name).glob("*-dark.svg"))
    assert visit(f"notebooks/{name}.html").figures == len(saved)


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_looks_right_in(visit, page, mode):
    seen = visit(page, mode)
    assert seen.theme == mode
    for picture in seen.shots:
        ground = np.median(np.concatenate([picture[[0, -1]].ravel(), picture[:, [0, -1]].ravel()]))
        assert ground > 200 if mode == "light" else ground < 60, "not the ground of this mode"
        # Ink of either sort: some thousandth of the picture stands out by more than half the scale.
        assert np.mean(abs(picture - ground) > 100) > 1e-3, (
            "blank, or ink that cannot be told from the ground"
        )


@pytest.mark.parametrize("page", [*PAGES, "search.html", "genindex.html"])
def test_fits_a_phone(visit, page):
    seen = visit(page, width=PHONE)
    assert seen.width <= PHONE
    assert seen.problems == []


@pytest.mark.parametrize("page", PAGES)
def test_says_how_to_rerun(visit, smoke, page):
    name = Path(page).stem
    said = f"make run NB={name} PROFILE={smoke.runs[name]['profile']}" if name in NOTEBOOKS else "make book"
    assert said in visit(page).rerun


@pytest.mark.parametrize("page", PAGES)
def test_internal_links_resolve(visit, html, page):
    dead = []
    for href in visit(page).links:
        address, anchor = urldefrag(urljoin(f"http://book/{page}", href))
        parts = urlparse(address)
        if parts.netloc != "book" or parts.scheme != "http":
            continue
        path = html / unquote(parts.path.lstrip("/") or "index.html")
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file():
            dead.append(href)
        elif anchor and path.suffix == ".html" and f'id="{anchor}"' not in path.read_text("utf-8"):
            dead.append(href)
    assert dead == []


def test_search_finds(browser, server):
    tab = browser.new_page()
    tab.goto(f"{server}search.html?q=entropic")
    tab.wait_for_selector("ul.search li a", timeout=15_000)
    assert tab.locator("ul.search li a").count() > 0
    tab.close()


def test_claims_are_cards_on_a_phone(browser, server):
    """No cell is a column of single words: each takes the width of the page."""
    tab = browser.new_page(viewport={"width": PHONE, "height": 900})
    tab.goto(f"{server}notebooks/claims.html")
    cells = "[...document.querySelectorAll('.claims td')].filter(cell => cell.innerText && cell.checkVisibility())"
    widths = tab.evaluate(f"{cells}.map(cell => cell.offsetWidth)")
    assert widths and min(widths) > 0.75 * PHONE
    tab.close()


def test_a_card_of_claims_is_short_until_its_button_is_pressed(browser, server):
    tab = browser.new_page(viewport={"width": PHONE, "height": 900})
    tab.goto(f"{server}notebooks/claims.html")
    cards = tab.locator(".claims tbody tr:not(.topic)")
    card, button = cards.first, cards.first.locator("button")
    paper = card.locator("td[data-head=paper]")
    assert button.count() == 1 and cards.locator("button").count() == cards.count()
    for expanded in (True, False):
        assert paper.is_visible() != expanded
        button.focus()
        tab.keyboard.press("Enter")
        assert paper.is_visible() == expanded
        assert button.get_attribute("aria-expanded") == str(expanded).lower()
    tab.emulate_media(media="print")
    assert paper.is_visible() and not button.is_visible()
    tab.emulate_media(media="screen")
    tab.set_viewport_size({"width": 1400, "height": 900})
    assert paper.is_visible() and not button.is_visible()
    name = cards.nth(1).get_attribute("id")
    tab.close()
    tab = browser.new_page(viewport={"width": PHONE, "height": 900})
    tab.goto(f"{server}notebooks/claims.html#{name}")  # a link to a claim opens its card
    assert tab.locator(f"#{name} td[data-head=paper]").is_visible()
    tab.close()


def test_the_paper_s_tables_are_one_page(browser, server):
    tab = browser.new_page(viewport={"width": 1400, "height": 900})
    tab.goto(f"{server}notebooks/paper_tables.html")
    shown = tab.evaluate("[...document.querySelectorAll('figure.entropic-table')].map(one => one.id)")
    assert {f"tab-table-{number}" for number in range(1, 7)} < set(shown)
    assert "FD-DINOv2" in tab.inner_text("#tab-table-2") and "294.25" in tab.inner_text(
        "#tab-table-2"
    )  # as printed
    assert tab.evaluate("document.documentElement.scrollHeight") <= 12_000
    tab.close()
