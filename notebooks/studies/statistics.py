"""What several pages do with measured numbers: pick a column, give an interval, compare ranks."""

import math

import torch
from scipy import stats

__all__ = ["column", "interval", "nemenyi", "plus_minus", "student"]


def column(rows, name, **where):
    """The numbers called `name` in those rows whose entries equal `where`, as float64 (rows,), in their order.

    column(rows, "distance", solver="Heun", nfe=8) has one number a run, for instance.
    ValueError: no row has these entries.
    """
    found = [float(row[name]) for row in rows if all(row[key] == value for key, value in where.items())]
    if not found:
        raise ValueError(f"where = {where}: no row has these entries; pass those of rows that were measured")
    return torch.tensor(found, dtype=torch.float64)


def plus_minus(values):
    """Mean and standard deviation of values (runs,) as text, both to the second digit of the deviation: "12.3 ± 1.4".

    A mean without spread has three digits, or all before the point. ValueError: no value, values not finite.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    if values.ndim != 1 or not len(values) or not values.isfinite().all():
        raise ValueError(f"values = {values}; pass finite numbers (runs,) of at least one run")
    mean, spread = float(values.mean()), float(values.std()) if len(values) > 1 else 0.0
    if not spread:
        return f"{mean:,.0f}" if abs(mean) >= 100 else f"{mean:.3g}"
    places = 1 - math.floor(math.log10(spread))
    return " ± ".join(f"{round(value, places):,.{max(places, 0)}f}" for value in (mean, spread))


def student(count, level=0.95):
    """How many standard errors Student's interval of a mean of `count` normal values extends to each side.

    The quantile (1 + level) / 2 of Student's law with count - 1 degrees of freedom, from scipy. One value says nothing
    of its spread: inf. ValueError: count below 1, level not between 0 and 1.
    """
    if not count >= 1:
        raise ValueError(f"count = {count}; pass the number of values, at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level = {level}; pass a number between 0 and 1")
    return float(stats.t.ppf((1 + level) / 2, count - 1)) if count > 1 else math.inf


def interval(values, level=0.95):
    """The mean of values (..., runs) over the runs, and the two ends of its interval by Student's law: three (...,).

    For paired comparisons pass differences, or logarithms of ratios. One run has an interval without bounds.
    ValueError: no run, values that are not finite.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    if values.ndim == 0 or not values.shape[-1] or not values.isfinite().all():
        raise ValueError(f"values = {values}; pass finite numbers (..., runs) of at least one run")
    count, mean = values.shape[-1], values.mean(-1)
    if count == 1:
        return mean, torch.full_like(mean, -math.inf), torch.full_like(mean, math.inf)
    half = student(count, level) * values.std(-1) / math.sqrt(count)
    return mean, mean - half, mean + half


def nemenyi(schedules, comparisons, level=0.95):
    """The critical difference of mean ranks: two schedules whose mean ranks are closer are not told apart.

    q sqrt(k (k + 1) / (6 N)) for k schedules in N comparisons, where sqrt(2) q is the quantile `level` of the range of
    k standard normal variables, from scipy. Demsar (2006), section 3.2.2.
    ValueError: fewer than two schedules, no comparison.
    """
    if not schedules >= 2 or not comparisons >= 1:
        raise ValueError(
            f"schedules = {schedules}, comparisons = {comparisons}; pass at least 2 schedules and 1 comparison"
        )
    q = stats.studentized_range.ppf(level, schedules, math.inf) / math.sqrt(2)
    return float(q) * math.sqrt(schedules * (schedules + 1) / (6 * comparisons))
