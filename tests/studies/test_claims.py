"""Claims: the rule by all its branches and at its edges, counts from cases, what is refused, what the page shows."""

import html
import math
import re

import pytest
import torch

from studies import claims
from studies.claims import outcome, read_claims, record_claims, rule, within
from studies.report import leave_json

WON, LOST, OPEN = (0.5, 0.4, 0.6), (2.0, 1.5, 2.5), (0.9, 0.7, 1.1)
CLAIM = {
    "id": "thm-1",
    "topic": claims.TOPICS[0],
    "claim": "It rises.",
    "paper": "Theorem 1",
    "shown": "fig-rise",
    "cases": {"a": 0.5, "b": WON},
}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENTROPIC_RUN", raising=False)
    monkeypatch.setattr("studies.report.BOOK", tmp_path / "book")


@pytest.mark.parametrize(
    ("case", "fell"),
    [
        (WON, "won"),
        (LOST, "lost"),
        (OPEN, "undecided"),
        ((1.0, 1.0, 1.0), "undecided"),
        ((0.9, 0.8, 1.0), "undecided"),
        ((1.1, 1.0, 1.2), "undecided"),
    ],
)
def test_a_case_is_won_where_its_interval_lies_below_one(case, fell):
    assert outcome(case) == fell


@pytest.mark.parametrize(
    ("cases", "meets", "verdict"),
    [
        ([], "", "not run here"),
        ([WON], "", "holds"),
        ([WON] * 4, "", "holds"),
        ([WON] * 4, "abc", "holds"),  # won in the cases outside of the condition, too
        ([WON] * 4, "abcd", "holds under a condition"),  # a condition on the comparison itself
        ([WON, WON, LOST, OPEN], "ab", "holds under a condition"),  # half of the cases are enough
        ([WON, LOST, LOST, OPEN], "a", "does not hold"),  # fewer are an exception, not a condition
        ([WON, OPEN, OPEN, OPEN], "a", "undecided"),
        ([WON, WON, LOST, OPEN], "abc", "does not hold"),  # a case that meets it is lost
        ([WON, WON, WON, OPEN], "", "undecided"),
        ([OPEN], "", "undecided"),
        ([WON, WON, WON, LOST], "", "does not hold"),
        ([LOST], "a", "does not hold"),
    ],
)
def test_the_rule(cases, meets, verdict):
    assert rule(dict(zip("abcd", cases, strict=False)), list(meets)) == verdict
    assert verdict in claims.VERDICTS


def test_spectral_does_not_hold():
    """Won 3, lost 7, undecided 6, as it was measured: not even with the one distance that won."""
    cases = {f"{i}": case for i, case in enumerate([WON] * 3 + [LOST] * 7 + [OPEN] * 6)}
    assert rule(cases) == rule(cases, ["0", "1", "2"]) == "does not hold"


@pytest.mark.parametrize(
    ("ratios", "text", "names"),
    [
        ((2, 0.5, 0.5, 0.5), "with at least 8 steps", "8 16 32"),
        ((0.5, 0.5, 2, 2), "with at most 8 steps", "4 8"),
        ((2, 0.5, 0.5, 2), "with 8 to 16 steps", "8 16"),
        ((0.5, 2, 0.5, 0.5), "with at least 16 steps", "16 32"),  # the longest range
    ],
)
def test_a_range_in_which_all_is_won(ratios, text, names):
    cases = dict(zip(("4", "8", "16", "32"), ratios, strict=True))
    assert within(cases, int, "with {} steps") == {"text": text, "cases": names.split()}


def test_no_range_is_needed_or_none_is_there():
    assert within({"4": WON, "8": WON}, int, "with {} steps") is None
    assert within({"4": LOST, "8": OPEN}, int, "with {} steps") is None


def test_claims_are_read_back_with_counts_and_verdict():
    numbers = {"a": torch.tensor(0.5), "b": (0.5, 0.0, math.inf)}  # one run has an interval without bounds
    record_claims([{**CLAIM, "cases": numbers, "ratio": "x / y"}])
    (found,) = read_claims()
    assert (found["notebook"], found["won"], found["lost"], found["undecided"]) == ("scratch", 1, 0, 1)
    assert (found["verdict"], found["ours"]) == ("undecided", "x / y: median 0.5")


def test_a_condition_that_no_case_meets_is_left_out():
    record_claims([{**CLAIM, "condition": {"text": "on Sundays", "cases": []}}])
    assert read_claims()[0]["condition"] == {"text": "", "cases": []}


def test_claims_come_by_topic():
    record_claims(
        [{**CLAIM, "id": "later", "topic": claims.TOPICS[2]}, CLAIM, {**CLAIM, "id": "not-run", "cases": {}}]
    )
    assert [claim["id"] for claim in read_claims()] == ["thm-1", "not-run", "later"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"verdict": "holds"}, "verdict"),  # whatever it is: the rule gives it
        ({"won": 2}, "won"),
        ({"topic": "Sundays"}, "topic"),
        ({"id": "A b"}, "id"),
        ({"cases": {"a": math.nan}}, "case 'a'"),
        ({"cases": {"a": (0.5, 0.6, 0.7)}}, "case 'a'"),
        ({"condition": {"text": "on Sundays", "cases": ["c"]}}, "condition"),
        ({"condition": {"text": "", "cases": ["a"]}}, "condition"),
    ],
)
def test_a_bad_claim_is_refused(change, named):
    with pytest.raises(ValueError, match=named):
        record_claims([{**CLAIM, **change}])


def test_a_claim_is_whole_and_recorded_once():
    with pytest.raises(ValueError, match="twice"):
        record_claims([CLAIM, CLAIM])
    with pytest.raises(ValueError, match="lacks"):
        record_claims([{name: value for name, value in CLAIM.items() if name != "paper"}])


def test_a_verdict_that_the_rule_does_not_give_is_not_read():
    record_claims([CLAIM])
    (claim,) = read_claims()
    del claim["notebook"]
    for change in ({"verdict": "does not hold"}, {"won": 3}):
        leave_json("claims", [claim | change])
        with pytest.raises(ValueError, match=f"other {next(iter(change))} than the rule gives"):
            read_claims()


def test_the_page_counts_its_rows(monkeypatch):
    shown = []
    monkeypatch.setattr(claims, "_display", shown.append)
    ids = {"a": [WON, WON], "b": [WON, LOST], "c": [OPEN], "d": [WON] * 3, "e": []}
    record_claims(
        [
            {**CLAIM, "id": name, "paper": "FID 7.60 < 8", "cases": {str(i): c for i, c in enumerate(cases)}}
            for name, cases in ids.items()
        ]
    )
    found = read_claims()
    claims.show_summary(found, ["b"])
    claims.show_claims(found)
    summary, table = shown
    rows = re.findall(r'<tr id="claim-(\w)">(.*?)</tr>', table)
    assert [name for name, _ in rows] == list(ids)
    fell = {name: re.search(r"(\d) / (\d) / (\d)", row) for name, row in rows}
    assert [fell[name].groups() for name in "abcd"] == [
        ("2", "0", "0"),
        ("1", "1", "0"),
        ("0", "0", "1"),
        ("3", "0", "0"),
    ]
    assert fell["e"] is None and "not run here" in dict(rows)["e"]
    for verdict in claims.VERDICTS:
        count = sum(f">{verdict}</span>" in row for _, row in rows)
        assert (f">{verdict}</span> <b>{count}</b>" in summary) == (count > 0)
    assert html.escape("FID 7.60 < 8") in table  # as printed
    assert '<a href="scratch.html#fig-rise">' in table and "won 1, lost 1, undecided 0 of 2 cases" in summary
