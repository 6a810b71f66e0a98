"""Intervals against closed forms and by simulation, ranks against Demsar's table, columns."""

import math

import pytest
import torch

from studies.statistics import column, interval, nemenyi, plus_minus, student


def test_student_against_closed_forms_and_printed_tables():
    # With 1 degree of freedom the law is Cauchy's, with 2 its quantile is (2 p - 1) sqrt(2 / (4 p (1 - p))).
    for level in (0.5, 0.9, 0.95, 0.99):
        p = (1 + level) / 2
        assert student(2, level) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-9)
        assert student(3, level) == pytest.approx(level * math.sqrt(2 / (4 * p * (1 - p))), rel=1e-9)
    for count, printed in ((2, 12.706), (3, 4.303), (4, 3.182), (5, 2.776), (10, 2.262), (1000, 1.962)):
        assert student(count) == pytest.approx(printed, abs=5e-4)
    assert student(1) == math.inf


@pytest.mark.parametrize("runs", [2, 3, 8])
def test_interval_covers_the_mean_as_often_as_it_says(runs):
    trials = 20_000
    values = 3 + 2 * torch.randn(
        trials, runs, generator=torch.Generator().manual_seed(runs), dtype=torch.float64
    )
    for level in (0.5, 0.95):
        mean, low, high = interval(values, level)
        share = ((low < 3) & (high > 3)).double().mean()
        assert abs(share - level) < 4 * math.sqrt(level * (1 - level) / trials)  # four standard errors
        torch.testing.assert_close((low + high) / 2, mean)


def test_interval_of_three_by_hand_and_of_one_run():
    mean, low, high = interval([1.0, 2.0, 4.0])
    # deviations -4/3, -1/3, 5/3: variance 7/3; the quantile for three runs in closed form
    half = 0.95 * math.sqrt(2 / (1 - 0.95**2)) * math.sqrt(7 / 3 / 3)
    assert [float(v) for v in (mean, low, high)] == pytest.approx(
        [7 / 3, 7 / 3 - half, 7 / 3 + half], rel=1e-9
    )
    assert [float(v) for v in interval([5.0])] == [5, -math.inf, math.inf]
    assert [len(v) for v in interval(torch.zeros(4, 1))] == [4, 4, 4]


def test_critical_differences_are_those_of_demsar():
    # Demsar (2006), table 5: q at 5 % for k = 2 to 10 schedules
    printed = (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164)
    for k, q in enumerate(printed, 2):
        assert nemenyi(k, 7) == pytest.approx(q * math.sqrt(k * (k + 1) / 42), rel=1e-3)
    # table 5 b: q at 10 %
    for k, q in ((2, 1.645), (5, 2.459), (10, 2.920)):
        assert nemenyi(k, 7, 0.9) == pytest.approx(q * math.sqrt(k * (k + 1) / 42), rel=1e-3)


def test_range_of_normal_variables_by_simulation():
    count, trials = 18, 40_000  # as many schedules as the leaderboard ranks
    x = torch.randn(trials, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    width = nemenyi(count, 1) / math.sqrt(count * (count + 1) / 6) * math.sqrt(2)
    share = ((x.amax(1) - x.amin(1)) < width).double().mean()
    assert abs(share - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


def test_column_picks_rows_in_their_order():
    rows = [
        {"solver": "Heun", "nfe": 8, "run": 0, "distance": "1.5"},
        {"solver": "2M", "nfe": 8, "run": 0, "distance": 3},
        {"solver": "Heun", "nfe": 8.0, "run": 1, "distance": 0.5},
    ]
    found = column(rows, "distance", solver="Heun", nfe=8)
    assert found.tolist() == [1.5, 0.5] and found.dtype == torch.float64
    with pytest.raises(ValueError, match="no row has these entries"):
        column(rows, "distance", solver="DDIM")


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: student(0), "count"),
        (lambda: student(math.nan), "count"),
        (lambda: student(3, 1.0), "level"),
        (lambda: student(3, math.nan), "level"),
        (lambda: interval([1.0, math.nan]), "values"),
        (lambda: interval([]), "values"),
        (lambda: interval(2.0), "values"),
        (lambda: interval([1.0, 2.0], 95), "level"),
        (lambda: nemenyi(1, 5), "schedules"),
        (lambda: nemenyi(3, 0), "comparisons"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=f"{name} = "):
        call()


def test_a_mean_has_the_digits_of_its_spread():
    # The standard deviation of (m - d, m + d) is d sqrt(2).
    for mean, d, text in (
        (12.3456, 0.1, "12.35 ± 0.14"),
        (0.0123456, 0.00007, "0.012346 ± 0.000099"),
        (12345.6, 70, "12,346 ± 99"),
        (12345.6, 700, "12,350 ± 990"),
        (-0.5, 1.0, "-0.5 ± 1.4"),
    ):
        assert plus_minus([mean - d, mean + d]) == text
    assert (plus_minus([0.123456]), plus_minus([1234.5])) == ("0.123", "1,234")
    for wrong in ([], [math.nan], [[1.0]]):
        with pytest.raises(ValueError, match="pass finite numbers"):
            plus_minus(wrong)
