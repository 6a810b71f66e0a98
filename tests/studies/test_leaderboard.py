"""The leaderboard's works against exact laws, its store, its sharing among processes, its ranks."""

import json
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from entropic import ErrorCurve, gaussian_kl, gaussian_law, gaussian_w2
from entropic.placement import solver_aware_sigmas
from entropic.schedules import edm_sigmas
from studies import leaderboard
from studies.leaderboard import (
    KL_OF_DATA,
    KL_OF_GENERATED,
    PATH,
    PATH_RMS,
    SOLVERS,
    Cell,
    Store,
    cells,
    fill,
    ranks,
    standing,
)
from studies.leaderboard.__main__ import main
from studies.leaderboard.schedules import MAPPED
from studies.report import read_result

RECORDED = Path(__file__).parents[2] / "book" / "results"
FEW = ("EDM", "log", "Beta", "rescaled", "curve, KL", "spectrum, KL", "spectrum, W2")


@pytest.fixture(name="gaussians", scope="module")
def _gaussians():
    return leaderboard.gaussians()


@pytest.fixture(name="rows", scope="module")
def _rows(gaussians, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    fill(gaussians[:1], store, nfe=[8, 9], schedules=FEW, progress=False)
    return store.rows()


def test_values_are_those_of_the_exact_law(rows):
    one = torch.ones(1, dtype=torch.float64)
    for solver, key, n in (("stochastic DDIM", "ddim_stochastic", 8), ("Heun", "heun", 4)):
        made = gaussian_law(one, edm_sigmas(n), key)
        for metric, wanted in ((KL_OF_GENERATED, gaussian_kl(made, one)), ("W2", gaussian_w2(one, made))):
            (row,) = (
                row
                for row in rows
                if (row["solver"], row["nfe"], row["schedule"], row["metric"]) == (solver, 8, "EDM", metric)
            )
            assert row["value"] == pytest.approx(float(wanted), rel=1e-12)
            assert row["levels"] == n


def test_heun_never_takes_more_calls_than_the_others():
    for nfe in range(4, 65):
        levels = leaderboard.SOLVERS["Heun"].levels(nfe)
        assert nfe - 1 <= 2 * levels - 1 <= nfe


def test_the_spectrum_s_own_optimum_is_never_beaten(rows):
    for metric, name in ((KL_OF_GENERATED, "spectrum, KL"), ("W2", "spectrum, W2")):
        for cell in (cell for cell in cells(rows) if cell.metric == metric):
            best = cell.values[cell.schedules.index(name), 0]
            same_ends = [name not in ("Beta", "simple") for name in cell.schedules]
            # one direction can be made exact by 2M, and by Heun with a free end: what is left is the search's
            assert (cell.values[same_ends] >= best * (1 - 1e-6) - 1e-14).all(), (cell.solver, cell.nfe)


def test_no_more_images_are_measured_than_give_a_floor():
    with pytest.raises(ValueError, match="images = 1001; the floor is measured on as many test images"):
        leaderboard.network(images=1001, source="embedded")


def test_searches_tell_what_they_cost(gaussians, tmp_path):
    store = Store(tmp_path)
    searches = ("GITS", "OSS", "SharpEuler", "COS", "CRS")
    options = {"solvers": ["deterministic DDIM"], "schedules": ("EDM", *searches), "progress": False}
    fill(gaussians[:1], store, nfe=[6, 40], **options)
    calls = {(row["schedule"], row["nfe"]): row["calls"] for row in store.rows()}
    assert calls["EDM", 6] == 0
    for name in searches:
        # all that fits into 8,192 calls, in proportion to n above 16 levels: no more, and not much less
        assert 0.85 * 8192 < calls[name, 6] <= 8192
        assert 0.75 * 8192 * 40 / 16 < calls[name, 40] <= 8192 * 40 / 16


def test_what_a_schedule_cannot_do_is_a_row_with_the_reason(gaussians, tmp_path):
    store = Store(tmp_path)
    fill(
        gaussians[:1],
        store,
        nfe=[1],
        solvers=["deterministic DDIM"],
        schedules=["EDM", "AYS"],
        progress=False,
    )
    assert all(row["value"] is None and row["why"] for row in store.rows())
    assert cells(store.rows()) == []


def test_store_goes_on_after_a_torn_line_and_is_shared(gaussians, tmp_path):
    options = {"nfe": [4], "schedules": ("EDM", "log"), "progress": False}
    whole = Store(tmp_path / "whole")
    fill(gaussians[:2], whole, **options)
    parts = [Store(tmp_path / "parts", f"{i}/2") for i in range(2)]
    fill(gaussians[:2], parts[0], **options)
    with parts[0].file.open("a") as file:
        file.write('{"work": "Gaussian, iso')  # as a kill within a line leaves it
    before = len(parts[0].rows())
    assert 0 < before < len(whole.rows())
    fill(gaussians[:2], parts[1], **options)
    fill(
        gaussians[:2], parts[0], **options
    )  # the cell of the torn line was the other share's: nothing is left to do
    assert not list((tmp_path / "parts").glob("rows-0-of-1.jsonl"))
    fill(gaussians[:2], Store(tmp_path / "parts"), **options)
    assert not list((tmp_path / "parts").glob("rows-0-of-1.jsonl"))

    def told(store):
        return sorted(
            json.dumps({k: v for k, v in row.items() if k not in ("seconds", "measured_in")})
            for row in store.rows()
        )

    assert told(parts[0]) == told(whole)
    with parts[0].file.open("a") as file:
        file.write('{"torn": ')
    row = parts[0].rows()[0] | {"nfe": 5}
    with parts[0].writing() as add:
        add([row])  # on a line of its own
    assert row in parts[0].rows() and len(parts[0].rows()) == len(whole.rows()) + 1


def _row(**other):
    row = {"work": "w", "solver": "Heun", "nfe": 4, "schedule": "EDM", "run": 0, "group": "Gaussian, w"}
    return row | {"metric": "W2", "value": 1.0, "commit": "abc", "calls": 0, "seconds": 0.1} | other


def test_a_store_cut_at_any_byte_goes_on(tmp_path):
    """A kill may leave any prefix of what was written, and the next run adds to it. Text may hold braces."""
    rows = [_row(), _row(nfe=8, metric="", value=None, why="{no} levels \u00fc}"), _row(nfe=16)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    for cut in range(len(text) + 1):
        store = Store(tmp_path / str(cut))
        store.folder.mkdir()
        store.file.write_bytes(text[:cut])
        whole = rows[: text[:cut].count(b"\n")]
        assert store.rows() == whole
        if cut % 40 == 0:
            with store.writing() as add:
                add([_row(nfe=32)])
            assert store.rows() == [*whole, _row(nfe=32)]
    with store.file.open("ab") as file:  # as an earlier version went on after a torn line
        file.write(b'{"work": "Gauss\n' + text)
    assert store.rows() == [*rows, *rows]


@pytest.mark.parametrize(
    "line",
    [
        b"\x00\x00\x00",
        b"work: w",
        b"[1, 2]",
        b'{"a": 1}',
        b"17",
        b"null",
        json.dumps(_row()).encode()[5:],  # its beginning is lost
        json.dumps(_row()).encode().replace(b'"W2"', b"W2"),
        json.dumps(_row()).encode().replace(b"Heun", b"\xff\xfe"),
        json.dumps(_row(value="1.0")).encode(),
        json.dumps(_row(nfe="4")).encode(),
        json.dumps(_row(nfe=[4])).encode(),
        json.dumps(_row(run=None)).encode(),
        json.dumps(_row(seconds=None)).encode(),
        json.dumps(_row(work=3)).encode(),
        json.dumps({k: v for k, v in _row().items() if k != "value"}).encode(),
        b'{"a": ' + b"[" * 100_000 + b"}",
    ],
)
def test_any_other_damage_names_file_and_line(line, tmp_path):
    store, good = Store(tmp_path), json.dumps(_row()).encode()
    store.file.write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    with pytest.raises(ValueError, match=r"rows-0-of-1.jsonl, line 2 is damaged"):
        store.rows()


def test_a_cell_with_some_of_its_distances_is_measured_again(gaussians, tmp_path):
    store = Store(tmp_path)
    options = {"nfe": [4], "solvers": ["Heun"], "schedules": ("EDM", "log"), "progress": False}
    fill(gaussians[:1], store, **options)
    rows = store.rows()
    lines = store.file.read_bytes().splitlines(keepends=True)
    store.file.write_bytes(b"".join(lines[:-1]) + lines[-1][:30])  # killed between two distances of a cell
    fill(gaussians[:1], store, **options)
    assert [row["metric"] for row in store.rows()].count("W2") == 2
    assert [cell.values.tolist() for cell in cells(store.rows())] == [
        cell.values.tolist() for cell in cells(rows)
    ]


def test_two_processes_of_one_share_are_refused(gaussians, tmp_path):
    options = {"nfe": [4], "solvers": ["Heun"], "schedules": ("EDM", "log"), "progress": False}
    with Store(tmp_path, "0/2").writing() as add:
        add([_row()])
        with pytest.raises(ValueError, match="another process with share 0/2"):
            fill(gaussians[:1], Store(tmp_path, "0/2"), **options)
        fill(gaussians[:1], Store(tmp_path, "1/2"), **options)  # another share is free
    fill(gaussians[:1], Store(tmp_path, "0/2"), **options)
    assert len(cells(Store(tmp_path).rows())) == 3


@pytest.mark.parametrize("share", ["2/2", "1", "-1/2", "a/b", "0/0", "", "1/2/3", None])
def test_a_share_that_is_none_is_refused(share, tmp_path, capsys):
    with pytest.raises(ValueError, match="share = "):
        Store(tmp_path, share)
    if share is not None:
        with pytest.raises(SystemExit):
            main(["gaussians", "--store", str(tmp_path), f"--share={share}"])
        assert "share = " in capsys.readouterr().err


def test_every_kl_has_its_direction_in_its_name(rows, tmp_path):
    assert {row["metric"] for row in rows} == {KL_OF_GENERATED, "W2"}
    assert KL_OF_GENERATED == "KL(generated || data)" and KL_OF_DATA == "KL(data || generated)"
    store = Store(tmp_path)  # rows and tables of earlier versions say only "KL"
    with store.writing() as add:
        add([_row(metric="KL"), _row(metric="KL", group="1-D mixtures, width 0.3")])
    assert [row["metric"] for row in store.rows()] == [KL_OF_GENERATED, KL_OF_DATA]
    recorded = leaderboard.from_table(read_result("leaderboard", "cells", RECORDED)[1])
    assert {(cell.group[:3], cell.metric) for cell in recorded if "KL" in cell.metric} == {
        ("Gau", KL_OF_GENERATED),
        ("1-D", KL_OF_DATA),
    }


@pytest.mark.parametrize("noisier", [1.1, 3.0])
def test_the_two_directions_are_what_their_names_say(gaussians, noisier):
    """Sampling from a wider law than the data's, by one step: both directions in closed form."""
    work, one = gaussians[0], torch.ones(1, dtype=torch.float64)
    grid = torch.tensor([80.0, noisier, 0.0], dtype=torch.float64)
    made = float(gaussian_law(one, grid, "ddim"))
    found = work.measure("deterministic DDIM", grid, 0)[KL_OF_GENERATED]
    assert found == pytest.approx((made - 1 - math.log(made)) / 2, rel=1e-9)  # KL(N(0, made) || N(0, 1))
    (mixture,) = leaderboard.mixtures(widths=(0.999999,), data_sets=1)  # almost N(0, 1)
    found = mixture.measure("deterministic DDIM", grid, 0)[KL_OF_DATA]
    assert found == pytest.approx((1 / made - 1 + math.log(made)) / 2, rel=1e-3)  # KL(N(0, 1) || N(0, made))


def _cell(values, names=("EDM", "log", "rescaled")):
    return Cell("g", KL_OF_DATA, "Heun", 8, names, np.array(values, float), 0.0, ("abc",) * len(names))


def test_standing():
    found = {
        row["schedule"]: row for row in standing(_cell([[2, 8, 4, 4], [1, 4, 2, 2], [1.02, 3.9, 2.01, 2]]))
    }
    assert found["EDM"]["verdict"] == "worst"
    assert found["log"]["verdict"] == found["rescaled"]["verdict"] == "level"  # so that neither is the best
    assert found["EDM"]["value"] == pytest.approx(4.0) and found["log"]["to EDM"] == pytest.approx(0.5)
    alone = {row["schedule"]: row["verdict"] for row in standing(_cell([[1.0], [1.005], [1.02]]))}
    assert alone == {"EDM": "level", "log": "level", "rescaled": "worst"}
    clear = {row["schedule"]: row["verdict"] for row in standing(_cell([[1.0], [1.011], [1.02]]))}
    assert clear == {"EDM": "best", "log": "", "rescaled": "worst"}
    gap = {row["schedule"]: row for row in standing(_cell([[1, 2], [3, 1], [math.nan, 0.5]]))}
    assert math.isnan(gap["rescaled"]["value"]) and gap["rescaled"]["verdict"] == ""
    assert gap["EDM"]["to the best rival"] == 1 and gap["EDM"]["verdict"] == gap["log"]["verdict"] == "level"


def test_the_recursion_is_measured_without_its_spread_too(gaussians, tmp_path):
    store = Store(tmp_path)
    names = ["curve, KL", "curve, KL, no spread"]
    # Many variances, for all of which no grid of few levels is right, and a wave of 1 % in their error, which is no
    # Gaussian's: scales are spread.
    known = gaussians[1].curve
    curve = ErrorCurve(known.sigma, known.eps2 * (1 + 0.01 * torch.cos(2 * known.sigma.log())))
    assert not set(names[1:]) & set(gaussians[1].names())  # the spread is 0 there
    blind = gaussians[1]._replace(curve=curve, multiplicity=None, schedules=())
    fill([blind], store, nfe=[9], solvers=["Heun"], schedules=names, progress=False)
    values = {row["schedule"]: row["value"] for row in store.rows() if row["metric"] != "W2"}
    for name, spread in zip(names, (None, 0), strict=True):
        grid = solver_aware_sigmas(curve, 5, "heun", "kl", 0.002, 80, spread=spread, free_end=True)
        assert values[name] == blind.measure("Heun", grid, 0)[KL_OF_GENERATED]
    assert abs(values[names[1]] / values[names[0]] - 1) > 1e-3


def test_a_map_of_the_ends_is_measured_where_the_work_has_one(gaussians, tmp_path):
    name = next(iter(MAPPED))
    work = gaussians[1]
    assert name not in work.names() and "measured" in work.names()
    seen = []

    def half(states):
        seen.append(states.shape)
        return states[:, :5]

    mapped = work._replace(maps={MAPPED[name]: half}, schedules=("measured", name))
    assert mapped.names() == ["measured", name]
    store = Store(tmp_path)
    fill([mapped], store, nfe=[4], solvers=["deterministic DDIM"], schedules=(name,), progress=False)
    assert [row["schedule"] for row in store.rows()] == [name, name] and {shape[1:] for shape in seen} == {
        (300,)
    }


def test_the_plan_of_the_book_is_one_that_runs(capsys):
    for name, nfe, solvers, runs, schedules in leaderboard.PLAN:
        assert name in leaderboard.WORKS and set(solvers or ()) <= set(leaderboard.SOLVERS)
        some = nfe == [32] and name in ("image-mixture", "network")  # where every rival would take a night
        needed = ("EDM", "rescaled", "curve, 0.75", "curve, W2") if some else leaderboard.RIVALS
        if nfe == [leaderboard.CONVERGED[1]]:
            needed, nfe = ("EDM",), [64]
        assert set(needed) <= set(schedules) <= set(leaderboard.SCHEDULES)
        assert min(nfe) >= 4 and max(nfe) <= 64 and runs in (None, 1, 2, 3)
    with pytest.raises(SystemExit):
        main(["no-such-work"])
    assert "no-such-work' is none of gaussians" in capsys.readouterr().err


def test_noise_is_pooled_and_decides_what_is_level():
    values = [[1.0, 1.0], [math.exp(0.1), math.exp(0.3)], [math.exp(-0.2), math.exp(0.2)]]
    cell = _cell(values)._replace(metric="FD-X")
    single = _cell([[1.0], [1.09], [1.3]])._replace(metric="FD-X")
    found = leaderboard.noise([cell, single, _cell(values)])  # a KL has data sets, not seeds
    assert found == {"FD-X": pytest.approx(math.sqrt((0.02 + 0.08) / 2))}
    assert [row["verdict"] for row in standing(single)] == ["best", "", "worst"]
    assert [row["verdict"] for row in standing(single, 0.05)] == ["level", "level", "worst"]
    twice = single._replace(values=single.values.repeat(2, 1))
    assert [row["verdict"] for row in standing(twice, 0.05)] == ["best", "", "worst"]


def test_what_is_left_by_rounding_is_no_difference():
    found = standing(_cell([[2.0], [3e-31], [0.0]]))
    assert [row["verdict"] for row in found] == ["worst", "level", "level"]
    mean, _, _ = ranks([_cell([[2.0], [3e-31], [0.0]])])
    assert mean == {"EDM": 3.0, "log": 1.5, "rescaled": 1.5}


def test_a_tuned_rival_is_tuned_to_the_goal_of_the_contest():
    names = (
        "EDM",
        *(f"EDM, end tuned, {goal}" for goal in ("KL", "0.75", "W2")),
        "curve, KL",
        "curve, 0.75",
        "curve, W2",
    )
    cell = _cell([[10.0], [1.0], [2.0], [3.0], [4.0], [5.0], [6.0]], names)
    for metric, wanted in ((KL_OF_DATA, [10, 1, 4]), ("FD-X", [10, 2, 5]), (PATH, [10, 3, 6])):
        one = leaderboard.contest(cell._replace(metric=metric))
        assert one.schedules == ("EDM", "EDM, end tuned", "ours") and one.values[:, 0].tolist() == wanted
        rival = {row["schedule"]: row["to the best rival"] for row in standing(one)}
        assert rival["EDM, end tuned"] == pytest.approx(1.0)


def test_a_schedule_may_be_infinitely_far_off():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {row["schedule"]: row for row in standing(_cell([[1, 2], [3, 1], [math.inf, math.inf]]))}
    assert found["EDM"]["to the best rival"] == 1  # log 2 < log 3, though not by more than noise
    assert found["rescaled"]["verdict"] == "" and not math.isfinite(found["rescaled"]["spread"])


def test_cells_survive_the_table_and_a_contest_has_one_of_ours(rows):
    found = cells(rows)
    columns = {}
    for row in leaderboard.table(found):
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    again = leaderboard.from_table(columns)
    assert [cell[:5] + cell[6:] for cell in again] == [cell[:5] + cell[6:] for cell in found]
    for one, two in zip(found, again, strict=True):
        assert np.allclose(one.values, two.values, rtol=1e-5, atol=0, equal_nan=True)
    for cell in again:
        once = leaderboard.contest(cell, None if cell.metric == KL_OF_GENERATED else "spectrum, W2")
        assert [name for name in once.schedules if name not in leaderboard.RIVALS] == ["ours"]
        if cell.metric == KL_OF_GENERATED:
            place = cell.schedules.index("curve, KL")
            assert np.array_equal(once.values[once.schedules.index("ours")], cell.values[place])
    gaps = found[0]._replace(values=np.full((len(found[0].schedules), 3), [1.0, 2.0, math.nan]))
    assert leaderboard.contest(gaps).values.shape[1] == 2
    assert leaderboard.contest(gaps._replace(values=gaps.values * math.nan)) is None
    assert leaderboard.contest(found[0], "no such") is None
    named = leaderboard.contest(found[0], "spectrum, KL")
    assert named.values[-1, 0] == found[0].values[found[0].schedules.index("spectrum, KL"), 0]


def test_what_is_measured_anew_takes_the_place_of_what_was_kept():
    kept = _cell([[1, 2], [3, 4]], ("EDM", "rescaled"))
    other = kept._replace(nfe=4)
    new = _cell([[5, 6], [7, 8]], ("log", "rescaled"))._replace(commits=("def", "def"))
    both, left = leaderboard.merged([new], [kept, other])
    assert left is other
    assert both.schedules == ("EDM", "log", "rescaled") and both.commits == ("abc", "def", "def")
    assert both.values.tolist() == [[1, 2], [5, 6], [7, 8]]
    (alone,) = leaderboard.merged([new], [])
    assert alone.schedules == new.schedules and np.array_equal(alone.values, new.values)
    with pytest.raises(ValueError, match=r"g, KL\(data \|\| generated\), Heun, 8: \[2, 1\] works and runs"):
        leaderboard.merged([new._replace(values=new.values[:, :1])], [kept])


def test_lines_of_the_record_are_not_measured_again(gaussians, rows, tmp_path):
    store, options = Store(tmp_path), {"solvers": ["Heun"], "progress": False}
    known = cells(rows)  # of the first work, at 8 and 9 calls
    fill(gaussians[:2], store, nfe=[8, 10], schedules=("EDM", "linear"), known=known, **options)
    found = {(row["work"], row["nfe"], row["schedule"]) for row in store.rows()}
    one, two = (work.name for work in gaussians[:2])
    every = {(work, nfe, name) for work in (one, two) for nfe in (8, 10) for name in ("EDM", "linear")}
    assert found == every - {(one, 8, "EDM")}
    # A line that lacks one of the work's distances is measured.
    half = [cell for cell in known if cell.metric == "W2"]
    fill(gaussians[:1], store, nfe=[8], schedules=("log",), known=half, **options)
    assert (one, 8, "log") in {(row["work"], row["nfe"], row["schedule"]) for row in store.rows()}


def test_lines_whose_schedule_has_changed_count_no_more():
    names = ("EDM", "simple", "DMN")
    cell = _cell([[1.0], [2.0], [3.0]], names)
    old = {"commits": ("056b95041410",) * 3}
    for group, kept in (("image mixture", ("EDM",)), ("Gaussian, k^-1", ("EDM", "simple"))):
        lines = leaderboard.table([cell._replace(group=group, **old)])
        (again,) = leaderboard.from_table({name: [line[name] for line in lines] for name in lines[0]})
        assert again.schedules == kept
    lines = leaderboard.table([cell])  # of a later commit
    (again,) = leaderboard.from_table({name: [line[name] for line in lines] for name in lines[0]})
    assert again.schedules == names


def test_searches_that_ask_nothing_of_the_work_are_made_once(gaussians, tmp_path, monkeypatch):
    made = []
    monkeypatch.setitem(
        leaderboard.RIVALS, "DMN", lambda work, n, solver: made.append((work.name, n)) or edm_sigmas(n)
    )
    monkeypatch.setitem(leaderboard.SCHEDULES, "DMN", leaderboard.RIVALS["DMN"])
    options = {"nfe": [4, 6], "solvers": ["deterministic DDIM", "DPM-Solver++(2M)"], "progress": False}
    fill(gaussians, Store(tmp_path), schedules=("DMN", "log"), **options)
    assert [n for _, n in made] == [4, 6]


def test_ranks_and_their_critical_difference():
    found = [_cell([[1.0], [2.0], [3.0]]), _cell([[1.0], [3.0], [2.0]])]
    mean, critical, count = ranks(found)
    assert mean == {"EDM": 1.0, "log": 2.5, "rescaled": 2.5} and count == 2
    # Demsar (2006), table 5: q at 5 % for three schedules
    assert critical == pytest.approx(2.343 * math.sqrt(3 * 4 / 12), rel=1e-3)
    with pytest.raises(ValueError, match="no cell that has all schedules"):
        ranks([_cell([[1.0], [math.nan], [2.0]])])


@pytest.mark.parametrize("width", [0.0, 0.3])
def test_mixtures_are_standardised_and_their_law_exact(width, tmp_path):
    works = leaderboard.mixtures(widths=(width,), data_sets=2)
    assert len({work.name for work in works}) == 2 and len({work.group for work in works}) == 1
    for work in works:
        generator = torch.Generator().manual_seed(0)
        x = work.data(100_000, generator)
        assert abs(x.mean()) < 5 / 300 and abs(x.var() - 1) < 0.05
        # at high noise the error is the variance, at low noise (a density) it is sigma^2
        assert work.curve.eps2[-1] == pytest.approx(1, abs=1e-3)
    store = Store(tmp_path)
    solvers = ["deterministic DDIM", "stochastic DDIM"]
    fill(works, store, nfe=[6, 16], schedules=("EDM", "rescaled"), solvers=solvers, progress=False)
    found = {(cell.solver, cell.nfe): cell for cell in cells(store.rows())}
    assert found["stochastic DDIM", 6].values.shape == (2, 2)
    for solver in solvers:
        assert (found[solver, 16].values < found[solver, 6].values).all()


def test_trained_network_s_work_is_measured(tmp_path):
    work, paths = leaderboard.network(
        images=100,
        curve_levels=8,
        curve_samples=8,
        source="embedded",
        spaces=("fashion-classifier",),
        paths=4,
    )
    assert paths.group == work.group and paths.name != work.name and paths.curve is work.curve
    assert work.curve.directions.shape == (8, len(work.multiplicity)) and int(work.multiplicity.sum()) == 784
    store = Store(tmp_path)
    options = {"solvers": ["deterministic DDIM"], "schedules": ("EDM",), "runs": 1}
    fill([work], store, nfe=[2], progress=False, **options)
    values = {(row["schedule"], row["metric"]): row for row in store.rows()}
    assert values["EDM", "FD-FashionCNN"]["value"] > values["EDM", "FD-FashionCNN"]["floor"] > 0
    assert values["EDM", "pixel W2"]["value"] > 0


def test_path_errors_are_those_of_the_exact_law(gaussians):
    # On Gaussian data every solver, and the exact path, multiplies direction i of the start by a number.
    work = gaussians[1]
    x = work.data(50, torch.Generator().manual_seed(0))
    x = x + 80 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    paths = work.along_paths(work.denoiser, lambda run: x, levels=256)
    first = work.variances + 80.0**2
    for solver, key, n in (("deterministic DDIM", "ddim", 6), ("DPM-Solver++(2M)", "dpmpp_2m", 9)):
        made = gaussian_law(work.variances, edm_sigmas(n), key)
        gap = ((made.sqrt() - work.variances.sqrt()) / first.sqrt() * x).norm(dim=1)
        found = paths.measure(solver, edm_sigmas(n), 0)
        assert set(found) == set(paths.distances)
        # Heun with 256 levels is itself off by a small part of these errors
        assert found[PATH] == pytest.approx(float(gap.mean()), rel=1e-2)
        assert found[PATH_RMS] == pytest.approx(float(gap.square().mean().sqrt()), rel=1e-2)


def test_varying_scale_has_eight_works_whose_references_have_converged(tmp_path):
    works = leaderboard.varying_scale(paths=20, curve_levels=8, curve_samples=8)
    assert len(works) == 8 and {work.group for work in works} == {"varying scale"}
    for work in works:
        fine = work.measure("Heun", edm_sigmas(256, 2e-4, 80.0), 0)[PATH]
        assert fine < 0.03 * work.measure("Heun", edm_sigmas(32), 0)[PATH]
    store = Store(tmp_path)
    fill(works[:2], store, nfe=[5], schedules=("EDM", "curve, W2"), progress=False)
    assert {row["solver"] for row in store.rows()} == set(SOLVERS) - {"stochastic DDIM"}
    (heun,) = (cell for cell in cells(store.rows()) if (cell.metric, cell.solver) == (PATH, "Heun"))
    assert heun.values.shape == (2, 2)
    assert leaderboard.contest(heun).schedules == ("EDM", "ours")


def test_a_schedule_that_begins_elsewhere_begins_with_noise_of_that_level(gaussians):
    work = gaussians[0]
    x = work.data(2000, torch.Generator().manual_seed(0))
    x = x + 80 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    paths = work.along_paths(work.denoiser, lambda run: x, levels=256)
    # EDM's steps over a range that begins higher end as near to the path of the same noise; unscaled they miss it.
    usual, higher = (paths.measure("Heun", edm_sigmas(40, 0.002, high), 0)[PATH] for high in (80.0, 160.0))
    assert higher < 2 * usual < 0.02
    # Below 80 the exact law of the level is not given away: from N(0, sigma^2) the variance ends short.
    sigmas = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert work.measure("deterministic DDIM", sigmas, 0)["W2"] == pytest.approx((1 - 0.5) ** 2)


def test_without_the_package_there_are_no_galaxies_and_a_word_why(monkeypatch, capsys):
    monkeypatch.setitem(
        sys.modules, "entropic.images.networks.galaxies", None
    )  # as if it could not be imported
    assert leaderboard.galaxies() == []
    assert "not run here" in capsys.readouterr().out
