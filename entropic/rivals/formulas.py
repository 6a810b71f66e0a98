"""Formulas: schedules that need neither data nor a denoiser."""

import torch

from entropic._check import as_float64, integer, positive, sigma_range
from entropic.schedules import ending_in_zero


def laplace_sigmas(n, sigma_min=0.002, sigma_max=80.0, mu=0.0, b=0.5):
    """The levels at which ln sigma lies at uniform quantiles of the Laplace law (mu, b), clamped to the range.

    ln sigma = mu - b sgn(1/2 - x) ln(1 - 2|1/2 - x| + 1e-5), with x uniform from 0 to 1. The 1e-5 keeps the ends
    finite: they are exp(mu +- 11.5 b), 316 and 0.0032 by default. The last level is exp(mu - 11.5 b) or sigma_min,
    whichever is higher. ValueError: the clamp makes levels equal.
    Source: Hang et al. (2024), as in ComfyUI's LaplaceScheduler.
    """
    n, b, mu = integer("n", n, 2), positive("b", b), float(as_float64("mu", mu))
    low, high = sigma_range(sigma_min, sigma_max)
    off = 0.5 - torch.linspace(0.0, 1.0, n, dtype=torch.float64)
    sigma = (mu - b * off.sign() * (1 - 2 * off.abs() + 1e-5).log()).exp().clamp(low, high)
    if not (sigma.diff() < 0).all():
        raise ValueError(
            f"mu = {mu}, b = {b}: several of n = {n} levels fall outside [{low:g}, {high:g}]; widen the range or "
            "take a smaller b"
        )
    return ending_in_zero(sigma)
