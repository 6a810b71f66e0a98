"""The gradient mode, the inference mode and the default type of torch change no grid and no sample."""

import functools

import pytest
import torch

from entropic import ErrorCurve, GaussianMixture, edm_sigmas, gaussian_optimal_sigmas, solver_aware_sigmas
from entropic.placement import plan
from entropic.solvers import SOLVERS, sample_heun
from tests.modes import MODES as MODES_OF_TORCH

LEVELS = torch.logspace(-2.7, 1.91, 64, dtype=torch.float64)
MODES = GaussianMixture.isotropic([[-1.0, 0.2], [0.6, -0.4]], 0.6)
CURVE = ErrorCurve(LEVELS, 2 / (1 / 0.9 + 1 / LEVELS.square()), dim=2)


def _grids(solver):
    return (
        solver_aware_sigmas(CURVE, 4, solver),
        solver_aware_sigmas(CURVE, 5, solver, "kl", method="density"),
        gaussian_optimal_sigmas([1.0, 0.1], 4, solver, free_end=True),
    )


_plain_grids = functools.cache(_grids)


@pytest.mark.parametrize("mode", MODES_OF_TORCH)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_grid_is_the_same_in_every_mode(mode, solver):
    wanted = _plain_grids(solver)
    with MODES_OF_TORCH[mode]():
        found = _grids(solver)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other) and not one.requires_grad and one.dtype == torch.float64


@pytest.mark.parametrize("mode", MODES_OF_TORCH)
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=lambda one: one.name)
def test_a_sample_is_the_same_in_every_mode(mode, solver):
    x = 10 * torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def made():
        generator = torch.Generator().manual_seed(1)
        return solver.sample(MODES.denoiser, x, edm_sigmas(5, 0.1, 10.0), generator=generator)

    wanted = made()
    with MODES_OF_TORCH[mode]():
        assert torch.equal(made(), wanted)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=lambda one: one.name)
def test_no_graph_is_recorded_unless_x_asks_for_one(solver):
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def denoiser(x, sigma):
        return weight * x / (1 + sigma**2)

    x, sigmas = torch.ones(3, 2, dtype=torch.float64), edm_sigmas(5, 0.1, 10.0)
    plain = solver.sample(denoiser, x, sigmas, generator=torch.Generator().manual_seed(0))
    assert not plain.requires_grad
    asked = x.clone().requires_grad_()
    result = solver.sample(denoiser, asked, sigmas, generator=torch.Generator().manual_seed(0))
    result.sum().backward()
    assert torch.equal(result.detach(), plain) and weight.grad is not None and asked.grad.abs().min() > 0
    with torch.no_grad():
        assert not solver.sample(denoiser, asked, sigmas, generator=torch.Generator()).requires_grad


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=lambda one: one.name)
@pytest.mark.parametrize("habit", ["one buffer", "into x", "in the callback"])
def test_memory_that_is_used_again_changes_nothing(solver, habit):
    x = 10 * torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept, buffer = x.clone(), torch.empty_like(x)

    def denoiser(x, sigma):
        found = MODES.denoiser(x, sigma)
        if habit == "one buffer":
            return buffer.copy_(found)
        if habit == "into x":
            return x.copy_(found)
        return found

    def callback(step):
        if habit == "in the callback":
            step.denoised.zero_()
        else:
            told.append((step.denoised.clone(), MODES.denoiser(step.x, step.sigma)))

    told, sigmas = [], edm_sigmas(6, 0.1, 10.0)
    options = {"generator": torch.Generator().manual_seed(3)}
    wanted = solver.sample(MODES.denoiser, x, sigmas, **options)
    options["generator"].manual_seed(3)
    assert torch.equal(solver.sample(denoiser, x, sigmas, callback=callback, **options), wanted)
    assert torch.equal(x, kept)
    assert all(torch.equal(*pair) for pair in told)


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (lambda x: (x,), "returned a tuple"),
        (lambda x: None, "returned a NoneType"),
        (lambda x: x[:1], "returned shape"),
        (lambda x: x + 0j, "complex64"),
        (lambda x: x.long(), "int64"),
        (lambda x: x * torch.nan, "NaN"),
    ],
    ids=["tuple", "None", "shape", "complex", "whole numbers", "NaN"],
)
def test_what_is_no_answer_is_refused(answer, match):
    with pytest.raises(ValueError, match=match):
        sample_heun(lambda x, sigma: answer(x), torch.ones(3, 2), [3.0, 1.0, 0.0])


@pytest.mark.parametrize("generator", [[1, 2, 3], "abc", 7, None, [torch.Generator(), 1, 2]])
def test_what_is_no_generator_is_refused(generator):
    with pytest.raises(ValueError, match="this sampler draws noise"):
        SOLVERS["ddim_stochastic"].sample(
            lambda x, s: x, torch.ones(3, 2), [3.0, 1.0, 0.0], generator=generator
        )


def test_complex_states_are_refused():
    with pytest.raises(ValueError, match="complex64"):
        sample_heun(lambda x, s: x, torch.ones(3, 2) + 0j, [3.0, 1.0, 0.0])


def test_levels_rounded_to_float32_are_inside_the_curve():
    low, high = LEVELS[0].item(), LEVELS[-1].item()
    for ends in ((low, high), tuple(torch.tensor([low, high]).float().tolist())):
        assert CURVE.entropic().phi_at(torch.tensor(ends)).isfinite().all()
        for method in ("recursion", "density"):
            found = plan(5, CURVE, "heun", sigma_min=ends[0], sigma_max=ends[1], method=method).sigmas
            assert found[0] == ends[1] and found[-2] == ends[0]
    with pytest.raises(ValueError, match="outside the curve"):
        plan(5, CURVE, "heun", sigma_min=low * (1 - 1e-6), sigma_max=high)
