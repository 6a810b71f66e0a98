"""Schedules from a denoiser on noised data: how its score, its answer or its divergence changes with sigma."""

from itertools import pairwise

import torch

from entropic._check import as_float64, integer, sigma_range
from entropic._check import levels as noise_levels
from entropic.noise import edm, flow_matching
from entropic.rivals.model import (
    Model,
    Placed,
    equal_shares,
    frame,
    root_mean_square,
    standard_normal,
)
from entropic.schedules import edm_sigmas, ending_in_zero
from entropic.types import Denoiser


def cos_sigmas(
    n,
    denoiser: Denoiser,
    x0: torch.Tensor,
    generator: torch.Generator,
    *,
    sigma_min=0.002,
    sigma_max=80.0,
    process=None,
    levels=64,
    rounds=3,
    batch=None,
) -> Placed:
    """COS: every step asks the same work of a Langevin corrector. It is meant for predictor-corrector samplers.

    The step t -> t' costs L = (s' sigma')^2 E||score_t'(x) - score_t(x)||^2 with x ~ p_t, the Fisher divergence that a
    corrector at t' meets. The levels are uniform in the sum of sqrt(L). The sum is measured over `levels` levels, at
    first those of EDM, which are themselves placed in this way `rounds` - 1 times: the costs add up only for small
    steps, because L falls to 0 with sigma'. `process` sets the frame of the scores (s = 1 unless given). x0 (N, ...)
    with one draw of noise serves all levels. It takes 2 N (levels - 1) rounds calls. ValueError: see
    `entropic.rivals`. Source: Williams et al. (2024), Score-Optimal Diffusion Schedules, as others describe it. It was
    not checked at the source which frame is meant, and which end of a step gives x and the factor.
    """
    n, rounds, levels = integer("n", n, 2), integer("rounds", rounds, 1), integer("levels", levels, 3)
    process = frame(process, edm)
    grid = edm_sigmas(levels, sigma_min, sigma_max)[:-1]
    model = Model(denoiser, "x0", x0, batch)
    noise = standard_normal(model.x, generator)
    for left in reversed(range(rounds)):
        scale, work = process.s(process.t(grid)).tolist(), []
        for (before, s), (after, s_after) in pairwise(zip(grid.tolist(), scale, strict=True)):
            x = model.x + before * noise
            score = (model(x, before) - x) / (s * before**2)
            x = x * (s / s_after)
            score_after = (model(x, after) - x) / (s_after * after**2)
            work.append(s_after * after * root_mean_square(score_after - score))
        grid = equal_shares(levels if left else n, grid, torch.stack(work))[:-1]
    return Placed(ending_in_zero(grid), model.calls)


def crs_sigmas(
    n,
    denoiser: Denoiser,
    x0: torch.Tensor,
    generator: torch.Generator,
    *,
    sigma_min=0.002,
    sigma_max=80.0,
    xi=1.0,
    levels=128,
    batch=None,
) -> Placed:
    """Constant rate: d alpha / dt ~ v(alpha)^-xi, where v is the rate at which the denoised data change. Any solver.

    alpha = 1 / (1 + sigma^2) is the share of signal in the variance-preserving frame. v is the root mean square of
    dD(x0 + sigma z) / d alpha at fixed x0 (N, ...) and z (the variant for a network that predicts x0), by differences
    over `levels` levels of EDM. With xi = 1, equal steps in t change the denoised data equally, whatever measures
    alpha. For N(0, c^2 I) this is uniform in arctan(sigma / c), the rescaled entropic time. It takes N levels calls.
    ValueError: xi below 0; otherwise see `entropic.rivals`. Source: Okada et al. (2026), Constant Rate Scheduling, as
    others describe it. The measure of alpha and the distance were not checked at the source.
    """
    n, levels = integer("n", n, 2), integer("levels", levels, 3)
    xi = float(as_float64("xi", xi))
    if xi < 0:
        raise ValueError(f"xi = {xi}; it is at least 0, 1 for a constant rate")
    grid = edm_sigmas(levels, sigma_min, sigma_max)[:-1]
    model = Model(denoiser, "x0", x0, batch)
    noise = standard_normal(model.x, generator)
    denoised = (model(model.x + sigma * noise, sigma) for sigma in grid.tolist())
    change = [root_mean_square(after - before) for before, after in pairwise(denoised)]
    alpha = grid.square() / (1 + grid.square())  # 1 - alpha, which is exact for small sigma
    step = -alpha.diff()
    return Placed(equal_shares(n, grid, step * (torch.stack(change) / step) ** xi), model.calls)


def marginal_entropy_rate(
    denoiser: Denoiser,
    x0: torch.Tensor,
    sigma,
    generator: torch.Generator,
    *,
    process=None,
    divergence="hutchinson",
    batch=None,
) -> torch.Tensor:
    """dH[x_t]/dt = E[div v], the rate of the MARGINAL entropy at the levels `sigma`, in nats per unit of t; float64.

    v is the probability-flow velocity. In terms of the denoiser D the rate is dim s'/s + sigma'/sigma (dim - E[div D]).
    The rate of H[x_0 | x_t] is dim (s'/s + sigma'/sigma) less this one (eq. 8 of 2504.13612): sign and shape differ.
    t grows with sigma; `process` is flow matching unless given. divergence "hutchinson" takes one random vector of
    signs a sample, "exact" every unit vector (dim of them). x0 (N, ...) and one draw of noise serve all levels. The
    denoiser must be differentiable by autograd, in whatever mode this is called, and treat its rows independently.
    ValueError: a sigma not above 0, an unknown divergence, an answer without gradient; else see `entropic.rivals`.
    """
    model = Model(denoiser, "x0", x0, batch)
    return _marginal_rates(model, noise_levels(sigma), generator, frame(process, flow_matching), divergence)


def marginal_entropy_sigmas(
    n,
    denoiser: Denoiser,
    x0: torch.Tensor,
    generator: torch.Generator,
    *,
    sigma_min=0.002,
    sigma_max=80.0,
    process=None,
    levels=100,
    divergence="hutchinson",
    batch=None,
) -> Placed:
    """Uniform in the growth of the MARGINAL entropy towards the data: a variant in use, which is not the paper's.

    In a time that falls towards the data the rate is -E[div v], see `marginal_entropy_rate`. Where it is negative it
    counts as 0. For flow matching and N(0, c^2 I) that is everywhere above sigma = c^2, where no level but sigma_max
    lies. It depends on the frame: with s = 1 the rate is negative everywhere (ValueError). It is measured at `levels`
    times uniform in t and integrated by the trapezoid rule. It takes N levels (1 + probes) calls; the probes are
    derivative passes: 1, or dim with divergence="exact". Otherwise ValueError as `marginal_entropy_rate`.
    Source: BioNeMo MoCo's EntropicInferenceSchedule (128 samples, 100 times, left sum).
    """
    n, levels = integer("n", n, 2), integer("levels", levels, 3)
    low, high = sigma_range(sigma_min, sigma_max)
    process = frame(process, flow_matching)
    ends = process.t([high, low])
    time = ends[0] + torch.linspace(0.0, 1.0, levels, dtype=torch.float64) * (ends[1] - ends[0])
    grid = process.sigma(time)
    grid[0], grid[-1] = high, low
    model = Model(denoiser, "x0", x0, batch)
    rate = (-_marginal_rates(model, grid, generator, process, divergence)).clamp_min(0)
    if not rate.any():
        raise ValueError(
            f"process = {process!r}: the marginal entropy falls towards the data from sigma = {high:g} to {low:g}; "
            "clamped, it has no time. Use flow_matching(), or rescaled_sigmas"
        )
    return Placed(equal_shares(n, grid, -time.diff() * (rate[1:] + rate[:-1]) / 2), model.calls)


def _marginal_rates(model, sigma, generator, process, divergence):
    if divergence not in ("hutchinson", "exact"):
        raise ValueError(f'divergence = {divergence!r}; use "hutchinson" or "exact"')
    noise = standard_normal(model.x, generator)
    dim = model.x[0].numel()
    if divergence == "hutchinson":
        bits = torch.randint(0, 2, model.x.shape, generator=generator, device=generator.device)
        probes = (2 * bits - 1).to(model.x)[None]
    else:
        unit = torch.eye(dim).to(model.x).reshape(dim, 1, *model.x.shape[1:])
        probes = unit.expand(dim, *model.x.shape)
    means = []
    for level in sigma.flatten().tolist():
        total = 0.0
        for rows in torch.arange(len(noise)).split(model.batch):
            # The derivative is taken in whatever mode the caller is.
            with torch.inference_mode(False), torch.enable_grad():
                x = (model.x[rows] + level * noise[rows]).requires_grad_()
                denoised = model.answer(x, level)
                if not denoised.requires_grad:
                    raise ValueError(
                        "denoiser returned a tensor without gradient; call the network outside no_grad"
                    )
                for probe in probes[:, rows]:
                    (back,) = torch.autograd.grad(denoised, x, probe, retain_graph=True)
                    total += (back * probe).double().sum().item()
                    model.calls += len(rows)
        means.append(total / len(noise))
    time = process.t(sigma)
    spread = dim - torch.tensor(means, dtype=torch.float64).reshape(sigma.shape)
    return dim * process.drift(time) + process.sigma_rate(time) / sigma * spread
