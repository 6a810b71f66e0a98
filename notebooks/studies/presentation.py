"""How a saved figure or table looks: html made from its sidecar alone.

The book calls this when its html is built, a notebook that is run by hand calls it when a result is saved. No page's
results depend on it, so that a change here makes no page out of date.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping

__all__ = ["anchor", "result_html", "title"]


def anchor(sidecar: Mapping) -> str:
    """The id of a result's element on its page, such as "fig-width-sweep"."""
    return f"{sidecar['kind'][:3]}-{sidecar['id']}"


def title(sidecar: Mapping) -> str:
    """The first sentence of the caption, without its last dot; what it was recorded with is left out."""
    first, *more = _sentences(" ".join(sidecar["caption"].split()))
    if first.startswith("Recorded") and more:
        return f"{more[0].rstrip('.;')}, recorded"
    return first.rstrip(".;")


def _sentences(text: str) -> list[str]:
    """Text parted after dots and semicolons that stand outside brackets."""
    found, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth = max(0, depth + (letter == "(") - (letter == ")"))
        if letter in ".;" and not depth and text[i + 1 : i + 2] in ("", " "):
            found.append(text[start : i + 1])
            start = i + 2
    return found + [text[start:]] * (start < len(text))


def result_html(
    sidecar: Mapping, number: str, link: Callable[[str], str], address: str = "", more: str = ""
) -> str:
    """The html of a saved figure or table.

    number: what it is called, such as "Figure 5.3"
    link: gives the address of one of its files
    address: that of the result itself; "" for that of this page
    more: html that ends the caption
    """
    files, kind = sidecar["files"], sidecar["kind"]
    named = {"csv": files["csv"], "png": files.get("png"), "pdf": files.get("pdf")}
    named["provenance"] = f"{sidecar['id']}.json"
    links = "".join(f' · <a href="{link(name)}">{text}</a>' for text, name in named.items() if name)
    own = f'<a class="permalink" href="{address or "#" + anchor(sidecar)}" title="Link to {number}">#</a>'
    return (
        f'<figure class="entropic-{kind}" id="{anchor(sidecar)}">'
        f'<div class="frame" tabindex="0" role="group" aria-label="{number}">'
        f"{_image(sidecar, link) if kind == 'figure' else _table(sidecar)}</div>"
        f"<figcaption><p><strong>{number}.</strong> {_text(sidecar['caption'])}</p>"
        f'<p class="files">{own} '
        f"<code>{sidecar['notebook']}/{sidecar['id']}</code>{links}</p>{more}"
        "</figcaption></figure>"
    )


def _image(sidecar, link) -> str:
    width, height = (round(96 * v) for v in sidecar["size"])
    # Wide figures scroll inside their frame on a phone instead of shrinking their letters away.
    bounds = f"min-width: {round(0.75 * width)}px; max-width: {round(1.2 * width)}px"
    size = f'width="{width}" height="{height}" style="{bounds}"'
    alt = html.escape(sidecar["alt"], quote=True)
    return "".join(
        f'<img class="only-{mode}" src="{link(sidecar["files"][key])}" alt="{alt}" loading="lazy" {size}>'
        for mode, key in (("light", "svg"), ("dark", "svg_dark"))
    )


def _table(sidecar) -> str:
    names = "".join(f'<th scope="col">{_text(name)}</th>' for name in sidecar["head"].values())
    lines = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in sidecar["rows"])
    return f'<table class="table"><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>'


def _cell(value) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        text = "" if value is None else str(value)
        return f"<td{' class=short' * (len(text) < 14)}>{_text(text)}</td>"  # a short word is not broken
    text = "–" if value != value else value if isinstance(value, int) else format(value, ".4g")
    return f'<td class="number">{text}</td>'  # NaN is what was not measured


def _text(text: str) -> str:
    """Text escaped for html; what stands between dollars is marked for MathJax, and between backquotes as code."""
    parts = [html.escape(part) for part in re.split(r"(?<!\\)\$(.+?)(?<!\\)\$", text)]
    parts[::2] = [re.sub("`([^`]+)`", r"<code>\1</code>", part) for part in parts[::2]]
    parts[1::2] = [f'<span class="math notranslate nohighlight">\\({part}\\)</span>' for part in parts[1::2]]
    return "".join(parts)
