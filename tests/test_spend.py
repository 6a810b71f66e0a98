"""The interactive figure "Spend your steps": its numbers against the library, and what a reader does with it."""

import ast
import json
import math
import re
from urllib.parse import parse_qs

import pytest
import torch

from entropic import arctan_sigmas, deterministic_law, gaussian_law, log_sigmas
from entropic.solvers import HEUN, STOCHASTIC_DDIM, Solver, find_solver
from studies import spend
from tests.conftest import ROOT

STATIC = ROOT / "book" / "_static"
PAGE = """<!doctype html><html data-theme="light"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="{0}/spend.css">
<script src="{0}/spend_grids.js"></script><script src="{0}/spend.js"></script></head>
<body><div class="spend" id="spend"></div></body></html>"""

THREE = ("edm", "entropic", "rescaled")
STATES = [
    *(("fifteen", w, n, "ddim", name) for w in (0.02, 0.1, 0.5) for n in (4, 16) for name in THREE),
    *(("fifteen", 0.2, 8, solver, name) for solver in ("heun", "2m") for name in THREE),
    ("fifteen", 0.02, 4, "heun", "edm"),  # whose maps fold
    ("fifteen", 0.02, 8, "2m", "edm"),
    ("fifteen", 0.005, 12, "ddim", "log"),
    ("fifteen", 0.05, 64, "ddim", "cosine"),
    *(("two", 0.1, 8, solver, name) for solver in ("ddim", "heun", "2m") for name in ("log", "cosine")),
    *(("gaussian", w, 6, solver, "rescaled") for w in (0.05, 1.0) for solver in spend.SOLVERS),
    *(("power", None, 10, solver, name) for solver in spend.SOLVERS for name in ("edm", "rescaled")),
]
ASK = """states => states.map(([data, w, n, solver, schedule, metric]) => {
  const S = window.SpendYourSteps, state = {data, w, n, solver, schedule, metric, rho: 7};
  const levels = S.levelsOf(schedule, state);
  return {levels, value: S.distance(state, levels)};
})"""
PRICES = "([state, levels]) => window.SpendYourSteps.prices(state, levels)"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    page = tmp_path_factory.mktemp("spend") / "page.html"
    page.write_text(PAGE.format(STATIC.as_uri()), "utf-8")
    return page.as_uri()


@pytest.fixture
def visit(browser, address):
    """visit(hash, width) -> a settled tab; at the end nothing was asked of other machines, and nothing went wrong."""
    tabs, problems, asked = [], [], []

    def visit(hash="", width=1280, mode="light"):
        tab = browser.new_page(viewport={"width": width, "height": 900}, has_touch=width < 500)
        tab.on("console", lambda m: m.type in ("error", "warning") and problems.append(m.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda r: r.url.startswith(("file:", "data:")) or asked.append(r.url))
        tab.goto(address + hash)
        tab.evaluate("mode => { document.documentElement.dataset.theme = mode }", mode)
        settle(tab)
        tabs.append(tab)
        return tab

    yield visit
    for tab in tabs:
        tab.close()
    assert (problems, asked) == ([], [])


def settle(tab):
    tab.wait_for_function("document.querySelector('.spend').dataset.done", timeout=60_000)


def value(tab):
    return float(tab.get_attribute(".spend", "data-value"))


def told(tab):
    return {key: one[0] for key, one in parse_qs(tab.evaluate("window.location.hash.slice(1)")).items()}


def copied(tab, kind="list"):
    tab.click(f"[data-copy={kind}]")
    return tab.get_attribute(".spend", "data-copied")


def to_zero(levels):
    return torch.tensor([*levels, 0.0], dtype=torch.float64)


# The numbers


@pytest.fixture(scope="module")
def answers(browser, address):
    tab = browser.new_page()
    tab.goto(address)
    states = [
        (*state, metric) for state in STATES for metric in (("kl", "w2") if state[0] == "power" else ("kl",))
    ]
    found = tab.evaluate(ASK, states)
    tab.close()
    return list(zip(states, found, strict=True))


def test_the_fifteen_positions_are_those_of_the_book():
    page = json.loads((ROOT / "notebooks" / "one_dimension.ipynb").read_text("utf-8"))
    code = "".join(line for cell in page["cells"] for line in cell["source"])
    assert "components = 15 " in code and "seed = 0 " in code
    assert "x = positions(components, torch.Generator().manual_seed(seed))" in code
    assert spend.read()["means"] == spend.MEANS


def test_divergences_are_those_of_the_library(answers):
    assert len(answers) >= 30
    for (data, w, _, solver, name, metric), found in answers:
        exact = spend.divergence(data, w, to_zero(found["levels"]), solver, metric)
        assert found["value"] == pytest.approx(exact, rel=1e-3), (data, w, solver, name, metric)


def test_levels_are_those_of_the_library(answers):
    curves = {}
    for (data, w, n, *_, name, _), found in answers:
        if (data, w) not in curves:
            curves[data, w] = spend.curve_of(data, w, knots=513)
        exact = spend.schedules(n, curves[data, w])[name][:-1]
        assert found["levels"] == pytest.approx(exact.tolist(), rel=1e-6), (data, w, name)


def alone(solver, i, levels, elsewhere):
    """A `Solver` that takes step i of `levels` by the rule of a solver, and all others by another's."""
    solver = find_solver(solver)

    def rule(denoise, x, sigma, sigma_next, denoised, past):
        if (sigma, sigma_next) == (levels[i], levels[i + 1]):
            before = tuple(one for one in past if i and one[1] == levels[i - 1])
            return solver.rule(denoise, x, sigma, sigma_next, denoised, before)
        return elsewhere.rule(denoise, x, sigma, sigma_next, denoised, past)

    memory = 600 if solver.memory else 0
    return Solver("alone", 1, rule, stochastic=elsewhere.stochastic, memory=memory)


def between(levels, i, count):
    """Levels as fine as `count` between 80 and 2e-5, through those given, none inside step i."""
    fine = log_sigmas(count, 2e-5, 80.0)[:-1].tolist()
    kept = [one for one in fine if not levels[i + 1] <= one <= levels[i]]
    return sorted({*kept, *levels[: i + 2]} - {0.0}, reverse=True)


@pytest.mark.parametrize("solver", ["ddim", "heun", "2m"])
def test_the_price_of_a_step_is_the_divergence_when_all_others_are_exact(visit, solver):
    state = {"data": "fifteen", "w": 0.2, "n": 6, "solver": solver, "metric": "kl", "rho": 7}
    levels = [80.0, 10.0, 2.5, 0.8, 0.3, 0.08]
    found = visit().evaluate(PRICES, [state, levels])
    mixture = spend.mixture("fifteen", 0.2)
    for i in (1, 2):
        with_zero = [*levels, 0.0]
        one = alone(spend.SOLVERS[solver], i, with_zero, HEUN)
        coarse, fine = (
            deterministic_law(mixture, to_zero(between(with_zero, i, count)), one, start="exact").kl(mixture)
            for count in (150, 300)
        )
        assert found[i] == pytest.approx(fine + (fine - coarse) / 3, rel=3e-3), i  # Heun's order is 2


def test_the_price_of_a_stochastic_step(visit):
    state = {"data": "gaussian", "w": 0.5, "n": 4, "solver": "sddim", "metric": "kl", "rho": 7}
    levels = [80.0, 3.0, 0.6, 0.15]
    found = visit().evaluate(PRICES, [state, levels])
    variance = torch.tensor([0.25], dtype=torch.float64)
    for i in (1, 2):
        with_zero, exact = [*levels, 0.0], []
        one = alone("ddim_stochastic", i, with_zero, STOCHASTIC_DDIM)
        for count in (1500, 3000):
            ratio = float(gaussian_law(variance, to_zero(between(with_zero, i, count)), one)) / 0.25
            exact.append((1 / ratio - 1 + math.log(ratio)) / 2)
        assert found[i] == pytest.approx(2 * exact[1] - exact[0], rel=0.01), i  # its order is 1


# What it teaches


def test_at_one_width_the_rescaled_clock_is_the_arctangent_and_nothing_between_its_ends_is_better():
    best = arctan_sigmas(8)
    assert spend.schedules(8, spend.curve_of("gaussian", 1.0, 513))["rescaled"] == pytest.approx(
        best, rel=1e-6
    )
    worse = {"ddim": [], "heun": []}
    for solver, found in worse.items():
        least = spend.divergence("gaussian", 1.0, best, solver)
        for i in range(1, 7):
            for factor in (0.98, 1.02):
                moved = best.clone()
                moved[i] *= factor
                found.append(spend.divergence("gaussian", 1.0, moved, solver) > least)
    assert all(worse["ddim"]) and not all(worse["heun"])


def test_the_clocks_change_places_near_a_width_of_a_twentieth():
    share = {}
    for w in (0.005, 0.05, 0.5):
        grids = spend.schedules(16, spend.curve_of("fifteen", w))
        share[w] = spend.divergence("fifteen", w, grids["entropic"]) / spend.divergence(
            "fifteen", w, grids["rescaled"]
        )
    assert share[0.005] < 0.2 and 0.8 < share[0.05] < 1.25 and share[0.5] > 20


def test_the_last_of_four_levels_is_wasted():
    sigmas = spend.schedules(4, spend.curve_of("fifteen", 0.2))["edm"]
    raised = sigmas.clone()
    raised[3] = 0.2
    assert spend.divergence("fifteen", 0.2, raised) < 0.7 * spend.divergence("fifteen", 0.2, sigmas)


# The grids that were worked out beforehand


def test_the_grids_are_those_of_the_script():
    kept = spend.read()
    assert (STATIC / "spend_grids.js").stat().st_size < 250_000
    assert set(kept["grids"]) == {spend.name_of(*state) for state in spend.states()}
    assert kept["means"] == spend.MEANS
    few = (
        ("power", None, "heun", "w2", 5),
        ("gaussian", 0.2, "ddim", "kl", 8),
        ("fifteen", 0.2, "ddim", "kl", 4),
    )
    for state in few:
        data, w, solver, metric, _ = state
        curve = spend.curve_of(data, w)
        for logs, fresh in zip(
            kept["grids"][spend.name_of(*state)], spend.grids_of(*state, curve), strict=True
        ):
            sigmas = to_zero([80.0, *(80 * math.exp(one) for one in logs)])
            found = [spend.divergence(data, w, one, solver, metric) for one in (sigmas, fresh)]
            assert found[0] == pytest.approx(found[1], rel=0.02)  # a search stops near a flat minimum


# What a reader does


def test_a_level_is_dragged_by_mouse(visit):
    tab = visit()
    before, box = value(tab), tab.locator("[data-level='3'] .grip").bounding_box()
    assert told(tab)["schedule"] == "rescaled"
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] - 12, box["y"] + 4, steps=4)
    tab.mouse.up()
    tab.wait_for_function("window.location.hash.includes('schedule=yours')")
    assert value(tab) != before
    assert "slices of rescaled time from" in tab.inner_text(".spend-status")


def test_a_level_is_dragged_by_a_finger(visit):
    """Real touches, not synthetic events: the page must not take the gesture for scrolling."""
    tab = visit("#data=two&w=0.2&n=6&schedule=edm", width=390)
    tab.add_style_tag(content="body { padding-bottom: 3000px }")
    before = ast.literal_eval(copied(tab))
    grip = tab.locator("[data-level='3'] .grip")
    grip.scroll_into_view_if_needed()
    box = grip.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = tab.context.new_cdp_session(tab)
    for kind, points in (
        ("touchStart", [0]),
        *(("touchMove", [5 * k]) for k in range(1, 9)),
        ("touchEnd", []),
    ):
        places = [{"x": x - dx, "y": y - dx} for dx in points]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})
    tab.wait_for_function("window.location.hash.includes('schedule=yours')")
    after = ast.literal_eval(copied(tab))
    assert after[:3] + after[4:] == pytest.approx(before[:3] + before[4:], rel=1e-6)
    assert after[3] < 0.4 * before[3]  # 40 pixels; a gesture that the page takes ends after 15


def test_a_link_to_a_section_stays(visit):
    tab = visit("#what-to-see")
    assert tab.evaluate("window.location.hash") == "#what-to-see"
    tab.focus("[data-level='3']")
    tab.keyboard.press("ArrowRight")
    tab.wait_for_function("window.location.hash.includes('schedule=yours')")
    assert told(tab)["schedule"] == "yours"


def test_a_level_is_moved_by_keys_and_keeps_the_focus(visit):
    tab = visit()
    before = ast.literal_eval(copied(tab))
    tab.focus("[data-level='7']")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp"):
        tab.keyboard.press(key)
    after = ast.literal_eval(copied(tab))
    assert after[:7] + after[8:] == pytest.approx(before[:7] + before[8:], rel=1e-7)
    assert after[7] == pytest.approx(before[7] * math.exp(0.1), rel=1e-6)
    tab.focus("[data-level='7']")
    assert tab.evaluate("document.activeElement.getAttribute('role')") == "slider"
    assert "sigma = 0.00221" in tab.evaluate("document.activeElement.getAttribute('aria-valuetext')")
    for key, end in (("End", after[6]), ("Home", 0.002)):  # as far as the neighbours allow
        tab.keyboard.press(key)
        assert ast.literal_eval(copied(tab))[7] == pytest.approx(end, rel=0.1)
        tab.focus("[data-level='7']")


def test_a_link_brings_the_state_back(visit):
    tab = visit("#data=two&w=0.2&n=6&solver=heun&schedule=edm&rho=5")
    tab.focus("[data-level='2']")
    tab.keyboard.press("ArrowRight")
    hash = tab.evaluate("window.location.hash")
    again = visit(hash)
    assert told(again) == told(tab)
    assert value(again) == pytest.approx(value(tab), rel=1e-6)


def test_what_is_copied_is_the_schedule(visit):
    tab = visit("#data=gaussian&w=1&n=8&solver=ddim&schedule=rescaled")
    exact = arctan_sigmas(8).tolist()
    assert ast.literal_eval(copied(tab)) == pytest.approx(exact, rel=1e-6)
    assert [float(one) for one in copied(tab, "text").split(",")] == pytest.approx(exact, rel=1e-6)
    assert copied(tab, "link").endswith(tab.evaluate("window.location.hash"))


def test_a_bad_link_shows_the_default(visit):
    tab = visit("#data=none&w=9&n=-3&solver=sddim&schedule=yours&sigmas=1,2")
    assert told(tab) | {"sigmas": ""} == told(visit()) | {"sigmas": ""}


def test_the_answer_waits_for_a_guess(visit):
    tab = visit()
    assert tab.locator(".spend .bar").count() == 0
    tab.click("[data-guess='edm']")
    assert tab.locator(".spend .bar").count() == 7
    assert "Your guess" in tab.inner_text(".spend-bars")
    tab.click("[data-story='4']")
    assert tab.locator(".spend .bar").count() == 0 and told(tab)["data"] == "gaussian"


def test_stochastic_ddim_is_offered_where_its_law_is_known(visit):
    tab = visit()
    option = tab.locator("select[name=solver] option[value=sddim]")
    assert option.is_disabled() and "Gaussian data only" in tab.inner_text(".spend-note")
    tab.select_option("select[name=data]", "power")
    assert option.is_enabled()


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_it_fits_a_phone(visit, mode):
    tab = visit(width=390, mode=mode)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    axis, bars = (tab.locator(one).bounding_box() for one in (".spend-axis", ".spend-bars"))
    assert bars["y"] >= axis["y"] + axis["height"]


def test_without_scripts_there_is_a_table():
    text = (ROOT / "book" / "spend_your_steps.md").read_text("utf-8")
    assert re.search(r"^```\{spend\}$", text, re.M)
    rows = spend.read()["table"]
    fresh = spend.divergence(
        "fifteen", rows[1]["w"], spend.schedules(8, spend.curve_of("fifteen", rows[1]["w"]))["edm"]
    )
    assert rows[1]["edm"] == pytest.approx(fresh, rel=1e-3)
