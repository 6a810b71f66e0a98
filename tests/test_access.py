"""The built book for every reader: what axe-core finds, what a page costs, how long it is, what a phone shows."""

import io
from pathlib import Path

import axe_playwright_python
import numpy as np
import pytest
from PIL import Image

from access import lighter, mend, one_channel, plain, purge
from tests.test_book import PAGES, PHONE, SETTLE, server  # noqa: F401

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")
ALL = [*PAGES, "search.html", "genindex.html"]

FOUND = """() => axe.run(document, {
  resultTypes: ['violations'], rules: {'label-content-name-mismatch': {enabled: true}},
}).then(r => r.violations.flatMap(v => v.nodes.map(n => `${v.id}: ${n.target.join(' ')}: ${n.html.slice(0, 120)}`)))"""


HEIGHT = "() => document.documentElement.scrollHeight"
# Where the first picture of a page begins; formulas and icons are none.
PICTURE = """() => Math.min(...[...document.querySelectorAll('article img, article .spend svg')]
  .map(one => one.getBoundingClientRect()).filter(box => box.height > 60).map(box => box.top + scrollY))"""


@pytest.fixture(scope="module")
def look(browser, server):  # noqa: F811
    """look(page, mode, width) -> what was found; each is opened once, in a context that keeps what all pages load."""
    contexts, seen = {}, {}

    def look(page, mode="light", width=1400):
        if (mode, width) not in contexts:
            size = {"width": width, "height": 900}
            contexts[mode, width] = browser.new_context(color_scheme=mode, viewport=size)
        if (page, mode, width) not in seen:
            tab = contexts[mode, width].new_page()
            tab.goto(server + page)
            tab.evaluate(SETTLE)
            if width == PHONE:
                found = [tab.evaluate(question) for question in (CLIPPED, NUMBERS, NARROW)]
            else:
                tab.evaluate(AXE)
                found = [tab.evaluate(question) for question in (FOUND, HEIGHT, PICTURE)]
            tab.close()
            seen[page, mode, width] = found
        return seen[page, mode, width]

    return look


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("page", ALL)
def test_axe_finds_nothing(look, page, mode):
    found, *_ = look(page, mode)
    assert found == []


@pytest.mark.parametrize("page", PAGES)
def test_each_page_describes_itself(html, page):
    text = (html / page).read_text("utf-8")
    assert text.count('name="viewport"') == 1
    assert text.count('name="description"') == 1
    said = text.split('name="description"')[0].rsplit("<meta", 1)[1] + text.split('name="description"')[1]
    assert "\\" not in said[:300]


def weight(context, address, settle):
    """Bytes that come over the net until a page is there, and with `settle` all that is shown further down."""
    tab = context.new_page()
    session, sizes, cached = context.new_cdp_session(tab), {}, set()
    session.send("Network.enable")
    session.on("Network.requestServedFromCache", lambda e: cached.add(e["requestId"]))
    session.on("Network.loadingFinished", lambda e: sizes.update({e["requestId"]: e["encodedDataLength"]}))
    tab.goto(address)
    if settle:
        tab.evaluate(SETTLE)
    tab.wait_for_load_state("networkidle")
    tab.close()
    return sum(size for name, size in sizes.items() if name not in cached)


@pytest.mark.parametrize("page", PAGES)
def test_first_visit_costs_two_megabytes(browser, server, page):  # noqa: F811
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    first = weight(context, server + page, settle=True)
    context.close()
    assert 5e4 < first < 2e6


@pytest.fixture(scope="module")
def warm(browser, server):  # noqa: F811
    """A context in which a page was read before."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    weight(context, server + "search.html", settle=False)
    weight(context, server + "background.html", settle=True)
    return context


@pytest.mark.parametrize("page", [page for page in PAGES if page != "background.html"])
def test_a_further_page_costs_half_a_megabyte(warm, server, page):  # noqa: F811
    assert weight(warm, server + page, settle=False) < 5e5


@pytest.mark.parametrize("page", PAGES)
def test_no_page_is_too_long(look, html, page):
    assert (html / page).stat().st_size < 1e6
    _, height, _ = look(page)
    assert height <= 12_000


OPENED = [page for page in PAGES if page.startswith("notebooks/")]
OPENED += [
    "index.html",
    "spend_your_steps.html",
    "background.html",
    "entropic_time.html",
    "solver_aware.html",
]


@pytest.mark.parametrize("page", OPENED)
def test_the_first_screen_has_a_picture(look, page):
    assert look(page)[2] < 900


CLIPPED = """() => [...document.querySelectorAll('article *')].filter(e => {
  if (!e.checkVisibility() || e.closest('mjx-assistive-mml, svg, .visually-hidden') || !e.clientWidth) return false;
  const style = getComputedStyle(e);
  // Beside a formula stands its text for screen readers, which nobody sees: the formula itself counts.
  const ink = e.matches('span.math') ? e.querySelector('mjx-math')?.getBoundingClientRect().width : e.scrollWidth;
  const hides = ink > e.clientWidth + 2 && style.overflowX !== 'visible';
  return hides && (style.overflowX === 'hidden' || style.maskImage === 'none');
}).map(e => e.outerHTML.slice(0, 120))"""
NUMBERS = """() => [...document.querySelectorAll('article .eqno')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width === 0 || box.left < 0 || box.right > innerWidth;
}).map(e => e.parentElement.id)"""
NARROW = """() => [...document.querySelectorAll('article td')].filter(e => e.checkVisibility()
  && e.innerText.split(/\\s+/).length > 8 && e.clientWidth < 90).map(e => e.innerText.slice(0, 60))"""


@pytest.mark.parametrize("page", PAGES)
def test_a_phone_shows_everything(look, page):
    clipped, numbers, narrow = look(page, width=PHONE)
    assert clipped == [], "cut off, and nothing says that there is more"
    assert numbers == [], "numbers of equations that cannot be seen"
    assert narrow == [], "sentences with a word a line"


@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize(("mode", "other"), [("light", "dark"), ("dark", "light")])
def test_one_variant_of_a_figure_is_shown_and_loaded(browser, server, mode, other, scripts):  # noqa: F811
    context = browser.new_context(color_scheme=mode, java_script_enabled=scripts)
    asked = []
    tab = context.new_page()
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(f"{server}index.html")
    assert tab.locator(f"img.only-{mode}").first.is_visible()
    assert not tab.locator(f"img.only-{other}").first.is_visible()
    context.close()
    dark = [url.endswith("-dark.svg") for url in asked if url.endswith(".svg") and "/results/" in url]
    assert dark
    if scripts:  # without them, browsers load nothing late, and so both
        assert set(dark) == {mode == "dark"}


def test_icons_are_drawn_without_a_script(browser, server):  # noqa: F811
    tab = browser.new_page(viewport={"width": 1400, "height": 900})
    tab.goto(server + "background.html")
    style = "e => [getComputedStyle(e, '::before').content, e.getBoundingClientRect().width]"
    icons = tab.locator(".bd-header-article i:visible, .bd-header-article span[class*=fa-]:visible")
    assert icons.count() >= 3
    for icon in icons.all():
        content, width = icon.evaluate(style)
        assert content not in ("none", "normal", '""') and width > 5
    assert tab.evaluate("document.fonts.check('900 16px \"Font Awesome 6 Free\"', '\\uf0c9')")
    tab.close()


# --- the parts -------------------------------------------------------------------------------------------------


def test_purge_keeps_what_can_apply():
    css = '@media print{.a .b,.c{x:"}"}.d{y:1}}.e:not(.f){z:1}h1{q:1}@font-face{src:url(x)}#g[h=".i"],.j\\/2{k:1}'
    kept = purge(css, {"a", "b", "e", "g"})
    assert kept == '@media print{.a .b{x:"}"}}.e:not(.f){z:1}h1{q:1}@font-face{src:url(x)}#g[h=".i"]{k:1}'
    assert "j\\/2" in purge(css, {"j/2"})
    with pytest.raises(ValueError, match=r"ends within the rule '\.a'"):
        purge(".a{b:c", {"a"})


def test_plain_has_no_tex():
    assert plain(r"noise of size \(\sigma_{\max}\) and $\mathrm H$") == "noise of size sigma_max and H"


def test_a_lighter_figure_has_everything_in_its_place():
    drawn = """<svg>
 <metadata>x</metadata>
 <!-- ab -->
 <g transform="translate(7.2345 80.2999) scale(0.085 -0.085)">
  <use xlink:href="#DejaVuSans-61"/>
  <use xlink:href="#DejaVuSans-62" transform="translate(61.2793 0)"/>
  <use xlink:href="#m1" x="368.776021" y="37.1" style="stroke-width: 0.845"/>
  <path id="DejaVuSans-61" d="M 1.23456 2 L 3 4.5"/>
</svg>"""
    assert lighter(drawn).split("\n") == [
        "<svg>",
        '<g transform="translate(7.23 80.29) scale(0.085 -0.085)">',
        '<use xlink:href="#D61"/>',
        '<use xlink:href="#D62" transform="translate(61 0)"/>',
        '<use xlink:href="#m1" x="368.77" y="37.1" style="stroke-width: 0.845"/>',
        '<path id="D61" d="M 1.23 2 L 3 4.5"/>',
        "</svg>",
    ]


def test_images_keep_their_pixels_in_one_channel():
    ramp = np.arange(256, dtype="uint8").reshape(16, 16)
    tinted = np.stack([np.full_like(ramp, value) for value in (10, 90, 200)] + [ramp], 2)
    grey = np.stack([ramp, ramp, ramp, np.full_like(ramp, 255)], 2)
    colourful = np.stack([ramp, ramp.T, ramp, np.full_like(ramp, 255)], 2)
    empty = np.zeros_like(tinted)
    for picture, mode in ((tinted, "P"), (grey, "L"), (colourful, "RGBA"), (empty, "P")):
        out = io.BytesIO()
        Image.fromarray(picture).save(out, "png")
        small = Image.open(io.BytesIO(one_channel(out.getvalue())))
        assert small.mode == mode
        assert (np.asarray(small.convert("RGBA")) == picture).all()


def test_a_page_is_mended():
    page = mend(
        '<html><head><meta name="viewport" content="a"/><meta name="viewport" content="b"/><title>T</title>'
        '<script src="_static/mathjax/startup.js"></script></head><body><article><p>Short.</p>'
        "<p>The first paragraph that is long enough says what this page is about.</p>"
        "<table><tr><th></th><th>a</th></tr></table></article></body></html>",
        "page.html",
    )
    assert page.count("viewport") == 1 and "mathjax" not in page and "<td></td><th>a</th>" in page
    assert 'content="The first paragraph that is long enough says' in page
