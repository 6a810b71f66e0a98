"""What the paper says, what was found, and the one rule that gives the verdict.

A claim is tried in cases. A case is a ratio with the two ends of its interval: (ratio, low, high), or one number where
the value is exact. A claim is written so that a ratio below 1 speaks for it: distance of the better schedule over that
of the worse one, or an error over what is allowed. `record_claims` counts the cases and asks `rule` for the verdict, so
that no notebook can give its own.
"""

from __future__ import annotations

import html
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from statistics import median

from studies.report import leave_json, read_json

__all__ = [
    "TOPICS",
    "VERDICTS",
    "outcome",
    "read_claims",
    "record_claims",
    "rule",
    "show_claims",
    "show_rule",
]
__all__ += ["show_summary", "within"]

TOPICS = (
    "The theory",
    "Data on a line",
    "Images: the rescaled schedule against EDM's",
    "Images: the other schedules",
    "Second-order solvers",
    "Beyond the paper",
)
VERDICTS = ("holds", "holds under a condition", "undecided", "does not hold", "not run here")


def outcome(case):
    """How a case fell: won where its whole interval lies below 1, lost where it lies above, else undecided."""
    _, low, high = case
    return "won" if high < 1 else "lost" if low > 1 else "undecided"


def rule(cases, meets=()):
    """The verdict on a claim.

    cases: name -> (ratio, low, high). meets: names of the cases that meet the claim's condition, if it has one.
    A condition that every case meets limits the comparison itself: to one kind of data, or because it favours one side.
    """
    fell = {name: outcome(case) for name, case in cases.items()}
    won = {name for name in fell if fell[name] == "won"}
    if not cases:
        return "not run here"
    if len(won) == len(cases) and len(meets) < len(cases):
        return "holds"  # won in every case that was tried
    if meets and set(meets) <= won and 2 * len(meets) >= len(cases):
        return "holds under a condition"  # won in every case that meets it, and these are half of all or more
    if "lost" not in fell.values():
        return "undecided"  # no case is lost, and not all are won
    return "does not hold"


def within(cases, size, text):
    """The condition that some size lies in a range: the longest range of sizes in which every case is won.

    size: a function of a case's name. text: the sentence, with {} where the range stands. None where there is no such
    range, or where all cases are won.
    """
    cases = {name: _triple(case) for name, case in cases.items()}
    sizes = sorted({size(name) for name in cases})
    good = [all(outcome(case) == "won" for name, case in cases.items() if size(name) == one) for one in sizes]
    spans = [(i, j) for i in range(len(sizes)) for j in range(i, len(sizes)) if all(good[i : j + 1])]
    if not spans or all(good):
        return None
    first, last = max(spans, key=lambda span: span[1] - span[0])
    low, high = sizes[first], sizes[last]
    told = f"{low:g} to {high:g}"
    if first == 0:
        told = f"at most {high:g}"
    elif last == len(sizes) - 1:
        told = f"at least {low:g}"
    return {"text": text.format(told), "cases": [name for name in cases if low <= size(name) <= high]}


def record_claims(claims: Sequence[Mapping]):
    """Write the claims that this notebook tests, with their cases and verdicts, to ``claims.json`` of its results.

    Each claim has these fields:

    id, topic: a short name, and one of `TOPICS`
    claim: what is claimed, in one sentence
    paper: where the paper says so, and the value that is printed there, if any
    shown: the anchor of the figure or table of this page that shows it: "fig-identity"
    cases: name -> (ratio, low, high), or one number where it is exact; none where it was not run
    ratio: what the ratio is, such as "KL, entropic / rescaled"
    ours, interval: what was measured, in a few words; by default the median of the ratios, and their range
    condition: optional, {"text": a sentence, "cases": the names of the cases that meet it}, as `within` gives it

    ValueError: a missing or unknown field, and so a verdict of the notebook's own; a repeated id, a case that is not
    finite or lies outside of its interval, a condition on cases that there are not.
    """
    kept, seen = [], set()
    for claim in claims:
        kept.append(_judged(claim))
        if claim["id"] in seen:
            raise ValueError(f"id = {claim['id']!r} occurs twice: each claim needs its own")
        seen.add(claim["id"])
    leave_json("claims", kept)


def read_claims(results=None) -> list[dict]:
    """All recorded claims in the order of their topics, each with the name of its ``notebook``.

    ValueError: a verdict or a count that the rule does not give.
    """
    found = []
    for notebook, claims in read_json("claims", results).items():
        for claim in claims:
            again = _judged({name: claim[name] for name in (*_NEEDED, *_OPTIONAL)})
            if again != claim:
                wrong = [name for name in again if again[name] != claim.get(name)]
                raise ValueError(
                    f"claim {claim['id']!r} of {notebook} has other {', '.join(wrong)} than the rule gives"
                )
            found.append({"notebook": notebook, **claim})
    return sorted(found, key=lambda claim: TOPICS.index(claim["topic"]))


_NEEDED = ("id", "topic", "claim", "paper", "shown", "cases")
_OPTIONAL = ("ratio", "ours", "interval", "condition")


def _triple(case):
    """(ratio, low, high) of a case; an exact value is all three."""
    return [float(one) for one in (case if isinstance(case, (list, tuple)) else [case] * 3)]


def _judged(claim):
    """The claim with plain numbers, its defaults, its counts and its verdict."""
    name = claim.get("id")
    missing, unknown = set(_NEEDED) - set(claim), set(claim) - {*_NEEDED, *_OPTIONAL}
    if missing or unknown:
        wrong = f"lacks {sorted(missing)}" if missing else f"has {sorted(unknown)}, which it may not have"
        raise ValueError(f"claim {name!r} {wrong}; the verdict is the rule's")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        raise ValueError(f"id = {name!r}: must be lower-case letters, digits, dots and hyphens")
    if claim["topic"] not in TOPICS:
        raise ValueError(f"topic = {claim['topic']!r} of claim {name!r}: must be one of {TOPICS}")
    cases = {}
    for case, value in claim["cases"].items():
        ratio, low, high = _triple(value)
        if not math.isfinite(ratio) or not low <= ratio <= high:
            raise ValueError(
                f"case {case!r} of claim {name!r} is {(ratio, low, high)}: must be low <= ratio <= high"
            )
        # JSON knows no infinity: an interval without bounds becomes as wide as floats are.
        cases[case] = [ratio, max(low, 0.0), min(high, 1e308)]
    condition = claim.get("condition")
    if not condition or not condition["cases"]:  # one that no case meets says nothing
        condition = {"text": "", "cases": []}
    if bool(condition["text"]) != bool(condition["cases"]) or not set(condition["cases"]) <= set(cases):
        raise ValueError(
            f"condition = {condition} of claim {name!r}: must have a text, and names of its cases"
        )
    fell = [outcome(case) for case in cases.values()]
    ratios = [case[0] for case in cases.values()]
    told = f"{claim.get('ratio', 'ratio')}: median {median(ratios):.2g}" if ratios else "not run here"
    spread = (
        f"{min(ratios):.2g} to {max(ratios):.2g} over the cases"
        if len(ratios) > 1
        else "one case"
        if ratios
        else ""
    )
    return {
        **{key: claim[key] for key in _NEEDED if key != "cases"},
        "cases": cases,
        "ratio": claim.get("ratio", "ratio"),
        "ours": claim.get("ours") or told,
        "interval": claim.get("interval") or spread,
        "condition": condition,
        **{one: fell.count(one) for one in ("won", "lost", "undecided")},
        "verdict": rule(cases, condition["cases"]),
    }


# What the page shows


def show_summary(claims, chosen):
    """How many claims have which verdict, and the chosen ones, by their ids, in a sentence each."""
    counts = {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in VERDICTS}
    told = "".join(f"<li>{_mark(verdict)} <b>{count}</b></li>" for verdict, count in counts.items() if count)
    by_id = {claim["id"]: claim for claim in claims}
    lines = "".join(
        f"<li>{_link(claim)} {_mark(claim['verdict'])}{_condition(claim)}: {_counts(claim)}.</li>"
        for claim in map(by_id.__getitem__, chosen)
    )
    _display(
        f'<div class="claims"><p>{len(claims)} claims were looked at:</p><ul class="counts">{told}</ul>'
        f"<p>The {len(chosen)} that matter most:</p><ol>{lines}</ol></div>"
    )


def show_claims(claims):
    """The claims by topic: what the paper has, what was measured, the counts of the cases, and the verdict.

    On a narrow page each claim becomes a card, whose lines bear the names of the columns.
    """
    heads = ("claim", "paper", "ours", "won / lost / undecided", "interval or range", "verdict")
    body = ""
    for topic in TOPICS:
        its = [claim for claim in claims if claim["topic"] == topic]
        if its:
            body += f'<tr class="topic"><th colspan="{len(heads)}" scope="rowgroup">{html.escape(topic)}</th></tr>'
        for claim in its:
            cells = (
                _link(claim),
                html.escape(claim["paper"]),
                html.escape(claim["ours"]),
                f"{claim['won']} / {claim['lost']} / {claim['undecided']}" if claim["cases"] else "",
                html.escape(claim["interval"]),
                _mark(claim["verdict"]) + _condition(claim),
            )
            line = "".join(
                f'<td data-head="{head}">{cell}</td>' for head, cell in zip(heads, cells, strict=True)
            )
            body += f'<tr id="claim-{claim["id"]}">{line}</tr>'
    names = "".join(f'<th scope="col">{head}</th>' for head in heads)
    _display(f'<div class="claims"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>')


def show_rule():
    """The two functions that give the verdict, as they stand in this file."""
    from IPython.display import Code, display

    display(Code(f"{inspect.getsource(outcome)}\n\n{inspect.getsource(rule)}", language="python"))


def _link(claim):
    return f'<a href="{claim["notebook"]}.html#{claim["shown"]}">{html.escape(claim["claim"])}</a>'


def _mark(verdict):
    return f'<span class="verdict {verdict.replace(" ", "-")}">{verdict}</span>'


def _condition(claim):
    text = claim["condition"]["text"]
    return f" {html.escape(text)}" if claim["verdict"] == "holds under a condition" else ""


def _counts(claim):
    return f"won {claim['won']}, lost {claim['lost']}, undecided {claim['undecided']} of {len(claim['cases'])} cases"


def _display(text):
    from IPython.display import HTML, display

    display(HTML(text))
