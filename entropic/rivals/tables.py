"""Schedules read off a table of the sigmas that a network was trained at. They call no denoiser."""

import torch

from entropic._check import as_float64, integer, positive
from entropic.schedules import ending_in_zero


def vp_table(steps=1000, beta_min=1e-4, beta_max=0.02):
    """The training sigmas (steps,) of DDPM, ascending: betas are linear, and sigma^2 = 1 / prod(1 - beta) - 1.

    They run from 0.0100 to 157.4 by default. Source: Ho et al. (2020), section 4.
    """
    steps = integer("steps", steps, 2)
    low, high = positive("beta_min", beta_min), positive("beta_max", beta_max)
    if not low <= high < 1:
        raise ValueError(f"beta_min = {low}, beta_max = {high}; pass them in ascending order and below 1")
    growth = -torch.log1p(-torch.linspace(low, high, steps, dtype=torch.float64)).cumsum(0)
    return torch.expm1(growth).sqrt()


def simple_sigmas(n, table=None):
    """Every (T / n)-th of the T training sigmas, from the noisiest on: the entries -(1 + floor(i (T / n))).

    `table` (T,) ascends; it is `vp_table()` unless given. The last level is about the entry 1 + T / n from the bottom,
    not the lowest one. As in the source, T / n is rounded to a float64 before it is multiplied: where i T / n is a
    whole number the product may fall below it, and the level is one entry noisier (T = 1000: n = 38, 76, 122, ...).
    ValueError: n > T, or a table that does not ascend. Source: ComfyUI, the scheduler "simple".
    """
    n, table = integer("n", n, 2), _table(table)
    if n > len(table):
        raise ValueError(f"n = {n} exceeds the {len(table)} entries of the table; take fewer")
    index = (torch.arange(n, dtype=torch.float64) * (len(table) / n)).long()
    return ending_in_zero(table.flip(0)[index])


def beta_sigmas(n, table=None, alpha=0.6, beta=0.6):
    """Training sigmas at the quantiles of Beta(alpha, beta): the entries rint((T - 1) quantile(1 - i / n)).

    `table` (T,) ascends; it is `vp_table()` unless given. As in the source, an entry that comes twice is kept once, so
    that for large n (139 and more by default) there are fewer than n levels: the number of steps is the length of the
    result, less one. ValueError: a table that does not ascend, alpha or beta not above 0.
    Source: Lee et al. (2024), as in ComfyUI's scheduler "beta".
    """
    from scipy.stats import beta as law

    n, table = integer("n", n, 2), _table(table)
    share = 1 - torch.arange(n, dtype=torch.float64) / n
    quantile = torch.as_tensor(law.ppf(share.numpy(), positive("alpha", alpha), positive("beta", beta)))
    # A median lies halfway between two entries: which one is taken must not depend on the last bit.
    place = (1e9 * (len(table) - 1) * quantile).round() / 1e9
    index = place.round().long().unique_consecutive()
    return ending_in_zero(table[index])


def _table(table):
    if table is None:
        return vp_table()
    table = as_float64("table", table)
    if table.ndim != 1 or len(table) < 2 or not (table > 0).all() or not (table.diff() > 0).all():
        raise ValueError(f"table = {table}; pass the training sigmas (T,), above 0 and ascending")
    return table
