"""Mends the pages of the theme for every reader, and keeps back what no page uses.

The theme's pages have faults that axe-core finds (see tests/test_access.py), load 3.8 MB, of which 1.5 MB are icons,
and describe themselves to nobody. This is mended in the finished html, once, and not in copies of its templates.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from bs4 import BeautifulSoup
from fontTools import subset
from PIL import Image

# What MathJax needs for TeX; its ready-made bundle has a menu, too, and is half as large again.
MATHJAX = ["core", "input/tex", "output/chtml", "a11y/assistive-mml"]
SEARCH = ("searchtools.js", "language_data.js", "searchindex.js")  # the search page alone uses them
UNUSED = ("scripts/fontawesome.js", "design-tabs.js", "sphinx-design.min.css", "sphinx-thebe.css")


# --- pages ---------------------------------------------------------------------------------------------------


def mend(text: str, name: str) -> str:
    """The html of one page, mended."""
    page = BeautifulSoup(text, "html.parser")
    for meta in page.find_all("meta", attrs={"name": "viewport"})[1:]:
        meta.decompose()
    describe(page)
    for head in page.find_all("th"):
        if not head.get_text(strip=True) and not head.find("img"):
            head.name = "td"  # an empty cell is no heading
            del head["scope"]
        for formula in head.select("span.math"):  # a heading of a formula alone has no words
            formula["role"], formula["aria-label"] = "math", plain(formula.get_text())
    for entry in page.select("div.citation[role=doc-biblioentry]"):
        entry["role"] = "listitem"
    for button in page.select("button.search-button-field, details > summary"):
        button.attrs.pop("aria-label", None)  # it hides the words that are to be seen
        if not button.get_text(strip=True):  # an arrow of the contents
            button["aria-label"] = f"Pages of {button.find_parent('li').a.get_text(strip=True)}"
    for sidebar in page.select("#pst-primary-sidebar"):
        sidebar["role"], sidebar["aria-label"] = "complementary", "Book"
    formulas = page.find(class_="math") is not None
    for part in page.find_all(["script", "link"]):
        address = (part.get("src") or part.get("href") or "").partition("?")[0]
        unused = address.endswith(UNUSED) or ("/mathjax/" in address and not formulas)
        if unused or (address.endswith(SEARCH) and name != "search.html"):
            part.decompose()
    # Names, brackets and spaces in code have the colour of its text; their marks are a quarter of a long page.
    return re.sub(r'<span class="[npw]">([^<>]*)</span>', r"\1", str(page))


def describe(page: BeautifulSoup):
    """Give a page the description that lists of search results show: its first paragraph."""
    first = next((p for p in page.select("article p") if len(p.get_text(strip=True)) > 40), None)
    title = page.title.get_text(strip=True)
    text = plain(first.get_text()) if first else title
    if len(text) > 200:
        text = text[:200].rsplit(" ", 1)[0] + " ..."
    page.title.insert_after(page.new_tag("meta", attrs={"name": "description", "content": text}))


def plain(text: str) -> str:
    r"""Text without the marks of TeX: "\(\sigma_{\max}\)" is "sigma_max"."""
    text = re.sub(r"\\sqrt\s*\{([^{}]*)\}", r"√(\1)", text)
    text = re.sub(r"\\(mathrm|mathbb|mathcal|text|operatorname)\b\s*|\\[()\[\],;!]|[{}$]", "", text)
    return " ".join(text.replace("\\", "").split())


# --- what the pages load --------------------------------------------------------------------------------------


def purge(css: str, words: set[str]) -> str:
    """The rules of a style sheet that can apply where `words` are all the names that pages and scripts use."""
    out, rest = [], re.sub(r"/\*.*?\*/", "", css, flags=re.S)
    block = re.compile(r"""((?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^{};"'])*)([{};]|$)""")
    place = 0
    while place < len(rest):
        found = block.match(rest, place)
        head, mark, start = found[1], found[2], found.end()
        if mark != "{":
            out.append(head + mark)
            place = max(start, place + 1)
            continue
        depth, place = 1, start
        while depth:  # to the end of this rule
            inner = block.match(rest, place)
            if not inner[2]:
                raise ValueError(f"a style sheet ends within the rule {head.strip()!r}")
            depth += {"{": 1, "}": -1}.get(inner[2], 0)
            place = inner.end()
        body = rest[start : place - 1]
        if head.lstrip().startswith(("@media", "@supports", "@layer", "@container")):
            body = purge(body, words)
        elif not head.lstrip().startswith("@"):
            head = ",".join(one for one in split(head) if used(one, words))
        if head.strip() and body.strip():
            out.append(f"{head}{{{body}}}")
    return "".join(out)


def split(selectors: str) -> list[str]:
    """Selectors that are parted by commas, those within brackets left whole."""
    return re.findall(r"(?:\((?:[^()]|\([^()]*\))*\)|\[[^\]]*\]|\\.|[^,])+", selectors)


def used(selector: str, words: set[str]) -> bool:
    alone = re.sub(r"\((?:[^()]|\([^()]*\))*\)", "", selector)  # :not(.a) applies where there is no a
    names = re.findall(r"[.#]((?:\\.|[\w-])+)", re.sub(r"\[[^\]]*\]", "", alone))
    return all(re.sub(r"\\(.)", r"\1", name) in words for name in names)


def lighten(out: Path, pages: dict[str, str]):
    """Reduce style sheets, icons, figures and MathJax to what these pages can use."""
    static = out / "_static"
    for name in UNUSED:
        (static / name).unlink(missing_ok=True)
    for path in static.rglob("*.map"):
        path.unlink()
    scripts = [path for path in static.rglob("*.js") if "mathjax" not in path.parts]
    texts = [*pages.values(), *(path.read_text("utf-8") for path in scripts)]
    words = set().union(*(re.findall(r"[\w-]+", text) for text in texts))
    words |= set().union(*(one.split() for text in texts for one in re.findall('class="([^"]*)"', text)))
    icons = set()
    for path in static.rglob("*.css"):
        css = purge(path.read_text("utf-8"), words)
        icons |= {int(code, 16) for code in re.findall(r"\\([ef][0-9a-f]{3})\b", css)}
        path.write_text(re.sub(r'url\([^)]*\.woff2\) format\("woff2"\),', "", css), "utf-8")
    for path in static.rglob("webfonts/*.woff2"):  # to write these anew would take one more package
        path.unlink()
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # its reports would hide a warning of the build
    for path in static.rglob("webfonts/*.ttf"):
        font = subset.load_font(path, subset.Options())
        one = subset.Subsetter()
        one.populate(unicodes=icons)
        one.subset(font)
        font.save(path)
    kept = {f"{name}.js" for name in (*MATHJAX, "startup", "output/chtml/fonts/tex")}
    for path in (static / "mathjax").rglob("*.*"):
        name = path.relative_to(static / "mathjax").as_posix()
        if name not in kept and not name.startswith(("output/chtml/fonts/woff-v2/", "input/tex/extensions/")):
            path.unlink()
    for path in out.glob("results/*/*.svg"):
        path.write_text(lighter(path.read_text("utf-8")), "utf-8")


def lighter(svg: str) -> str:
    """A figure drawn to a hundredth of a point, less than a pixel; its images in one channel where that does."""
    places = r' (?:d|x|y)="[^"]*"|translate\([^)]*\)'
    svg = re.sub(places, lambda d: re.sub(r"(\.\d\d)\d+", r"\1", d[0]), svg)
    # Letters are drawn hundreds of times, by the names of their outlines; comments repeat what they spell.
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.S).replace("DejaVuSans-", "D")
    letter = r'(<use xlink:href="#D[^>]* transform="translate\(\d+)\.\d+'
    svg = re.sub(letter, r"\1", svg)  # to a hundredth of the letter's size
    svg = re.sub(r"\s*\n\s*<", "\n<", svg)
    image = r"(data:image/png;base64,)\s*([^\"]*)"
    return re.sub(image, lambda m: m[1] + base64.b64encode(one_channel(base64.b64decode(m[2]))).decode(), svg)


def one_channel(png: bytes) -> bytes:
    """An image of greys, or of one colour that is more or less opaque, as one byte a pixel; others as they were."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)
    colours, opaque = pixels[..., :3], pixels[..., 3]
    if opaque.min() == 255 and np.ptp(colours, axis=2).max() == 0:
        small, more = Image.fromarray(colours[..., 0].astype("uint8")), {}
    elif not opaque.any() or np.ptp(colours[opaque > 0], axis=0).max() <= 2:  # they differ by rounding
        small = Image.fromarray(opaque.astype("uint8"), "L").convert("P")
        small.putpalette(
            colours[np.unravel_index(opaque.argmax(), opaque.shape)].astype("uint8").tobytes() * 256
        )
        more = {"transparency": bytes(range(256))}
    else:
        return png
    out = io.BytesIO()
    small.save(out, "png", optimize=True, **more)
    return out.getvalue()


def finish(app, exception):
    if exception is None and app.builder.name == "html":
        out = Path(app.outdir)
        paths = [path for path in sorted(out.rglob("*.html")) if "_static" not in path.parts]
        names = [path.relative_to(out).as_posix() for path in paths]
        with ProcessPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            texts = list(pool.map(mend, [path.read_text("utf-8") for path in paths], names))
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text, "utf-8")
        lighten(out, dict(zip(names, texts, strict=True)))


def mathjax(app):
    """Load only the needed parts of MathJax."""
    app.config.mathjax_path = "mathjax/startup.js"
    app.config.mathjax3_config = {**(app.config.mathjax3_config or {}), "loader": {"load": MATHJAX}}


def setup(app):
    app.connect("builder-inited", mathjax)
    app.connect("build-finished", finish, priority=900)  # after all files are there
    return {"parallel_read_safe": True, "parallel_write_safe": True}
