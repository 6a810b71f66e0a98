"""Solvers that the package does not have: one rule each, and everything else follows."""

import math

import pytest
import torch

from entropic import ErrorCurve, GaussianMixture, deterministic_law, gaussian_optimal_sigmas, stochastic_law
from entropic.gaussian import gaussian_deviation, gaussian_kl, gaussian_law, local_error
from entropic.placement import plan
from entropic.schedules import edm_sigmas, log_sigmas
from entropic.solvers import Solver, log, sqrt


def ralston(denoise, x, sigma, sigma_next, denoised, past):
    """Ralston's method: slopes at the start and at two thirds of the step."""
    step, slope = sigma_next - sigma, (x - denoised) / sigma
    middle = sigma + 2 / 3 * step
    state = x + 2 / 3 * step * slope
    return x + step * (0.25 * slope + 0.75 / middle * (state - denoise(state, middle))), 0.0


def dpmpp_3m(denoise, x, sigma, sigma_next, denoised, past):
    """Third order: the quadratic in log sigma through three denoised states, integrated exactly."""
    h, shrink = log(sigma / sigma_next), sigma_next / sigma
    result = shrink * x + (1 - shrink) * denoised
    phi2 = 1 - (1 - shrink) / h
    if past:
        (before, sigma_before), r0 = past[0], log(past[0][1] / sigma) / h
        first = 1 / r0 * (denoised - before)
        if len(past) < 2:
            return result + phi2 * first, 0.0
        r1 = log(past[1][1] / sigma_before) / h
        bend = first - 1 / r1 * (before - past[1][0])
        result = result + phi2 * (first + r0 / (r0 + r1) * bend) + (1 - 2 * phi2 / h) / (r0 + r1) * bend
    return result, 0.0


def half_stochastic(denoise, x, sigma, sigma_next, denoised, past):
    """DDIM with eta = 1/2: less noise than the ancestral sampler."""
    std = 0.5 * sigma_next * sqrt(1 - (sigma_next / sigma) ** 2)
    return denoised + sqrt(sigma_next**2 - std**2) / sigma * (x - denoised), std


RALSTON = Solver("ralston", 2, ralston, evaluations=2)
THIRD = Solver("dpmpp_3m", 3, dpmpp_3m, memory=2)
HALF = Solver("ddim_half", 1, half_stochastic, stochastic=True)
ALL = [RALSTON, THIRD, HALF]
DETERMINISTIC = [RALSTON, THIRD]
by_name = {"ids": lambda one: one.name}

MODES = GaussianMixture.isotropic([-1.3, 0.2, 0.9], 0.4)
SPECTRUM = torch.arange(1, 9, dtype=torch.float64) ** -1.5


@pytest.mark.parametrize("solver", DETERMINISTIC, **by_name)
def test_it_samples_at_second_order(solver):
    x = 10 * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]

    def end(n):  # the grid ends high enough that the step to 0 is the same in all runs
        return solver.sample(MODES.denoiser, x, log_sigmas(n + 1, 0.2, 10.0))

    coarse, fine, finest = (end(n) for n in (96, 192, 384))
    rate = ((coarse - fine).abs().max() / (fine - finest).abs().max()).log2().item()
    # THIRD's first step is Euler's, which errs by h^2 once: that is what is left of it for long grids
    assert abs(rate - 2) < 0.4
    calls = []
    solver.sample(lambda x, s: calls.append(s) or MODES.denoiser(x, s), x, edm_sigmas(7))
    assert len(calls) == solver.calls(7)
    assert solver.levels(len(calls)) == 7 and solver.levels(len(calls) - 1) < 7


@pytest.mark.parametrize("solver", ALL, **by_name)
def test_it_has_its_gaussian_law(solver):
    sigmas, many = edm_sigmas(6, 0.05, 10.0), 200_000
    generator = torch.Generator().manual_seed(0)
    first = (SPECTRUM + 100).sqrt() * torch.randn(
        many, len(SPECTRUM), generator=generator, dtype=torch.float64
    )
    made = solver.sample(lambda x, s: SPECTRUM / (SPECTRUM + s**2) * x, first, sigmas, generator=generator)
    expected = gaussian_law(SPECTRUM, sigmas, solver)
    # a variance estimated from N samples has the relative standard error sqrt(2 / N)
    assert ((made.var(0) / expected - 1).abs() < 5 * math.sqrt(2 / many)).all()


@pytest.mark.parametrize("solver", ALL, **by_name)
def test_its_local_error_is_that_of_a_short_step(solver):
    c, sigma, h = 0.7, 1.3, 2e-3
    u = c**2 / (c**2 + sigma**2)

    def std(sigma):
        return math.hypot(c, sigma)

    def denoise(x, sigma):
        return c**2 / (c**2 + sigma**2) * x

    errors = []
    for step in (h, h / 2):
        levels = [sigma * math.exp(k * -math.log1p(-step / sigma)) for k in range(1, solver.memory + 1)]
        past = tuple((denoise(std(one), one), one) for one in levels)
        move = solver.step(denoise, std(sigma), sigma, sigma - step, past)
        errors.append((math.hypot(move.mean, move.std) / std(sigma - step) - 1) / step ** (solver.order + 1))
    # Richardson: what is left is of second order in h; rounding is 1e-16 / h^(p + 1)
    rounding = 4e-16 / (h / 2) ** (solver.order + 1)
    found = 2 * errors[1] - errors[0]
    assert found == pytest.approx(local_error(u, sigma, solver).item(), rel=1e-4, abs=3 * rounding)


@pytest.mark.parametrize("solver", ALL, **by_name)
@pytest.mark.parametrize("metric", ["kl", "w2"])
def test_it_has_its_optimal_grid(solver, metric):
    sigmas = gaussian_optimal_sigmas(SPECTRUM, 7, solver, metric, 0.01, 20.0)
    found = gaussian_deviation(SPECTRUM, sigmas, solver, metric).item()
    for grid in (edm_sigmas(7, 0.01, 20.0), log_sigmas(7, 0.01, 20.0)):
        assert found < 0.9 * gaussian_deviation(SPECTRUM, grid, solver, metric).item()
    # no neighbour is better: the gradient of the exact law vanishes at the scale of the deviation
    if solver is not THIRD:  # whose errors cancel, so that its optimum is orders below its surroundings
        inner = sigmas[1:-2].log().requires_grad_()
        grid = torch.cat([sigmas[:1], inner.exp(), sigmas[-2:]])
        gaussian_deviation(SPECTRUM, grid, solver, metric).backward()
        assert inner.grad.abs().max() < 1e-4 * found
    level = torch.logspace(-3, 2, 96, dtype=torch.float64)
    eps2 = (1 / (1 / SPECTRUM + 1 / level[:, None].square())).sum(1)
    chosen = plan(7, ErrorCurve(level, eps2, dim=8), solver, sigma_min=0.01, sigma_max=20.0)
    assert chosen.solver == solver.name and (chosen.sigmas.diff() < 0).all()


@pytest.mark.parametrize("solver", DETERMINISTIC, **by_name)
def test_it_has_its_law_in_one_dimension(solver):
    sigmas = edm_sigmas(9, 0.05, 10.0)
    c = 0.6
    one = GaussianMixture.isotropic([0.0], c)
    law = deterministic_law(one, sigmas, solver, start="exact")
    variance = torch.tensor([c**2], dtype=torch.float64)
    assert law.kl(one) == pytest.approx(
        gaussian_kl(variance, gaussian_law(variance, sigmas, solver)).item(), abs=1e-12
    )
    law = deterministic_law(MODES, sigmas, solver, start="normal")
    z = torch.linspace(-3, 3, 201, dtype=torch.float64)
    made = solver.sample(MODES.denoiser, sigmas[0] * z[:, None], sigmas)[:, 0]
    assert (made.diff() > 0).all()  # so that the distribution function is that of the start
    torch.testing.assert_close(law.cdf(made), torch.special.ndtr(z), rtol=0, atol=1e-11)


def test_a_stochastic_one_has_its_law_in_one_dimension():
    sigmas, c = edm_sigmas(9, 0.05, 10.0), 0.6
    one = GaussianMixture.isotropic([0.0], c)
    law = stochastic_law(one, sigmas, start="exact", solver=HALF)
    variance = torch.tensor([c**2], dtype=torch.float64)
    assert law.kl(one) == pytest.approx(
        gaussian_kl(variance, gaussian_law(variance, sigmas, HALF)).item(), abs=1e-11
    )
    with pytest.raises(ValueError, match="adds noise"):
        deterministic_law(one, sigmas, HALF)
    with pytest.raises(ValueError, match="without memory"):
        stochastic_law(one, sigmas, solver=RALSTON)
