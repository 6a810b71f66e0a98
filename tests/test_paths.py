"""Grids measured on paths: the derivatives, the step, the choice of the ridge, and what the search gains."""

import contextlib
import functools
import itertools
import math
import os
import warnings

import numpy as np
import pytest
import torch

from entropic import ErrorCurve, GaussianMixture, edm_sigmas, gaussian_optimal_sigmas, log_sigmas, paths
from entropic.gaussian import KL, gaussian_law, gaussian_w2
from entropic.paths import Search, measure, range_of
from entropic.placement import plan
from entropic.solvers import DDIM, DPMPP_2M, HEUN, SOLVERS
from studies.scales import models
from tests.modes import MODES as MODES_OF_TORCH
from tests.test_fifth_solver import DETERMINISTIC as OTHERS

F64 = torch.float64
DETERMINISTIC = [DDIM, HEUN, DPMPP_2M, *OTHERS]
by_name = {"ids": lambda one: one.name}
POINTS = torch.tensor([[-1.3, 0.4], [0.2, -0.9], [0.9, 0.6]], dtype=F64)
MODES = GaussianMixture.isotropic(POINTS.tolist(), 0.4)
VARIANCES = torch.arange(1, 9, dtype=F64) ** -1.5
GAUSSIAN = ErrorCurve(
    torch.logspace(-3, 2, 96, dtype=F64),
    (1 / (1 / VARIANCES + torch.logspace(-3, 2, 96, dtype=F64)[:, None] ** -2)).sum(1),
    dim=8,
)


def linear(x, sigma):
    """The exact denoiser of N(0, diag(VARIANCES))."""
    return VARIANCES.to(x.dtype) / (VARIANCES.to(x.dtype) + sigma**2) * x


def modes(x, sigma, labels=None):
    return MODES.denoiser(x, sigma)


def pilots(count=16, dim=2, high=80.0, seed=0):
    return high * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=F64)


def climb(denoiser, solver, logs, x, search=paths.SEARCH, calls=10**9, transform=None):
    """A search that stands at the levels exp(logs); the pilots converge by 256 levels."""
    walks = paths._Walks(denoiser, x, 80.0, None, None, None, "")
    target = DPMPP_2M.sample(denoiser, x, edm_sigmas(256))
    found = paths._Climb(walks, solver, len(logs), target, transform, calls, search)
    found.begin({"start": logs})
    return found


def free(found, low, high):
    """`ascend` without a round: the moves of the levels that are free."""
    found.calls, budget = 0, found.calls
    found.ascend(low, high)
    found.calls = budget
    return found


# The derivatives


@pytest.mark.parametrize("hats", [16, 3], ids=["each level", "hats"])
@pytest.mark.parametrize("solver", DETERMINISTIC, **by_name)
def test_the_derivatives_are_those_of_autograd(solver, hats):
    """d end / d log sigma of all levels, the first and the last as well, by short differences."""
    logs, x = log_sigmas(6, 0.05, 40.0)[:-1].log(), pilots(8)
    found = free(climb(modes, solver, logs.numpy(), x, Search(hats=hats, difference=1e-6)), -9.0, 9.0)
    changes, back = found._jacobian()

    def end(logs):
        """The walk by the solver's own step, which differentiates in sigma."""
        sigmas, state, past = logs.exp(), x * (logs[0].exp() / 80), ()
        for sigma, following in itertools.pairwise([*sigmas, 0.0]):
            state, _, _, past = solver.step(modes, state, sigma, following, past)
        return state.flatten(1)

    torch.testing.assert_close(end(logs), found.best.misses + found.target, rtol=1e-12, atol=1e-12)
    exact = torch.autograd.functional.jacobian(end, logs) @ torch.from_numpy(found.moves)
    # forward differences err by their length, of about 1e-6, times the curvature, and by rounding, 1e-16 / 1e-6
    torch.testing.assert_close(changes, exact, rtol=0, atol=2e-5 * exact.abs().max().item())
    assert changes.shape[-1] == min(hats, 6) and np.allclose(back @ found.moves, np.eye(changes.shape[-1]))


@pytest.mark.parametrize("solver", DETERMINISTIC, **by_name)
def test_a_walk_from_a_kept_state_is_the_whole_walk_at_fewer_calls(solver):
    logs, x, asked = log_sigmas(7, 0.01, 80.0)[:-1].log().numpy(), pilots(8), []

    def counted(x, sigma):
        asked.append(len(x))
        return modes(x, sigma)

    walks = paths._Walks(counted, x, 80.0, None, 3, None, "")
    whole = walks.walk(solver, logs)
    assert sum(asked) == walks.calls == 8 * solver.calls(7)
    sampled = solver.sample(modes, x, np.append(np.exp(logs), 0.0))
    torch.testing.assert_close(whole.end, sampled, rtol=1e-12, atol=1e-12)
    for at in range(7):
        asked.clear()
        before, moved = walks.calls, logs + 0.1 * np.eye(7)[min(at + 1, 6)]
        part = walks.walk(solver, moved if at < 6 else logs, whole.states[at], at)
        assert sum(asked) == walks.calls - before == 8 * (solver.calls(7 - at) - 1)
        full = walks.walk(solver, moved if at < 6 else logs)
        torch.testing.assert_close(part.end, full.end, rtol=1e-14, atol=1e-14)


def test_a_step_that_was_walked_is_right_in_the_derivatives_afterwards(monkeypatch):
    """Broyden's update: J dlog = dr, and nothing changes across the step."""
    seen = []
    step = paths._Climb._step

    def noted(self, changes, moves, trust):
        seen.append((self.best, changes @ torch.from_numpy(moves)))
        return step(self, changes, moves, trust)

    found = free(
        climb(modes, HEUN, edm_sigmas(5)[:-1].log().numpy(), pilots()), math.log(0.002), math.log(80)
    )
    monkeypatch.setattr(paths._Climb, "_step", noted)
    found._round(0)
    taken = [(a, b) for a, b in itertools.pairwise(seen) if a[0] is not b[0]]
    assert len(taken) >= 2
    for (here, before), (there, after) in taken:
        move = torch.from_numpy(there.logs - here.logs)
        torch.testing.assert_close(after @ move, there.misses - here.misses, rtol=1e-9, atol=1e-12)
        across = torch.eye(5, dtype=F64) - torch.outer(move, move) / (move @ move)
        torch.testing.assert_close(after @ across, before @ across, rtol=1e-9, atol=1e-12)


# The step


def fit(residuals, slopes, trust=1e9):
    """The `_Fit` of r (P, d) and J (P, d, k)."""
    squares = np.einsum("pdi,pdj->pij", slopes, slopes)
    return paths._Fit(squares, np.einsum("pdi,pd->pi", slopes, residuals), (residuals**2).sum(1), trust)


def test_a_linear_problem_is_solved_in_one_step():
    draw = np.random.default_rng(0)
    slopes, wanted = draw.normal(size=(12, 5, 3)), np.array([0.3, -0.7, 0.2])
    z, promised = fit(-slopes @ wanted, slopes).cross_validated(4)
    # the smallest ridge, 1e-6 of the diagonal, leaves that share of z, and the floor is 1e-3 of the mean length
    assert np.abs(z - wanted).max() < 1e-5 and promised < 2e-3
    z, promised = fit(-slopes @ wanted, slopes, trust=0.1).cross_validated(4)
    assert np.abs(z).max() == pytest.approx(0.1, rel=1e-9) and 0.5 < promised < 1


def test_the_mean_length_is_minimised_and_not_the_mean_square():
    """Against a general minimiser, with one pilot far off; least squares would go elsewhere."""
    from scipy.optimize import minimize

    draw = np.random.default_rng(1)
    slopes, residuals = draw.normal(size=(10, 3, 2)), draw.normal(size=(10, 3))
    residuals[0] *= 30

    def mean(z):
        return np.linalg.norm(residuals + slopes @ z, axis=1).mean()

    least = minimize(mean, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).fun
    z = fit(residuals, slopes)._solved(np.ones((1, 10), bool), 1e-9)[0]
    squared = np.linalg.lstsq(slopes.reshape(-1, 2), -residuals.ravel(), rcond=None)[0]
    # the rounds of weighted squares converge linearly: after six, 1 % of what they started from is left
    assert mean(z) - least < 0.01 * (mean(squared) - least) and mean(squared) - least > 0.01 * least


def test_a_move_that_helps_one_pilot_alone_is_not_made():
    """Each pilot would go to a place of its own: whatever the others promise of it is false."""
    draw = np.random.default_rng(2)
    residuals, slopes = draw.normal(size=(16, 1)), draw.normal(size=(16, 1, 12))
    found = fit(residuals, slopes)
    free_fit = found._solved(np.ones((1, 16), bool), 1e-9)[0]
    own = np.linalg.norm(residuals + slopes @ free_fit, axis=1).mean() / np.abs(residuals).mean()
    z, promised = found.cross_validated(16)
    assert own < 0.5 and promised > 0.95 and np.abs(z).max() < 0.2 * np.abs(free_fit).max()
    # with a move that helps all in the same way, it is found among the others
    slopes[:, :, 0] = -residuals
    z, promised = found = fit(residuals, slopes).cross_validated(16)
    assert promised < 0.5 and z[0] > 0.5


def test_no_move_is_made_where_none_changes_an_end():
    z, promised = fit(np.ones((8, 2)), np.zeros((8, 2, 3))).cross_validated(4)
    assert (z == 0).all() and promised == pytest.approx(1)


@pytest.mark.parametrize(("count", "most"), [(1, 16), (16, 16), (17, 16), (40, 16)])
def test_hats_add_up_to_one_and_touch_their_neighbours_alone(count, most):
    hats = paths._hats(count, most)
    assert hats.shape == (count, min(count, most)) and np.linalg.matrix_rank(hats) == hats.shape[1]
    assert np.allclose(hats.sum(1), 1) and (hats >= 0).all() and (np.count_nonzero(hats, 1) <= 2).all()


# What is gained


@functools.cache
def scale_models():
    return models()


@pytest.mark.parametrize(
    ("name", "solver", "n", "share"),
    [
        # over EDM's, means of two draws of pilots: 0.166, 0.077, 0.20, 0.65, 0.53; a quarter or more is allowed on top
        ("isotropic, spread 0.5", "dpmpp_2m", 9, 0.21),
        pytest.param("isotropic, spread 0.5", "heun", 5, 0.10, marks=pytest.mark.verify),
        pytest.param("power law, spread 0.5", "heun", 9, 0.25, marks=pytest.mark.verify),
        pytest.param("power law, spread 0.5", "ddim", 8, 0.81, marks=pytest.mark.verify),
        ("power law, spread 1", "dpmpp_2m", 9, 0.70),
    ],
)
def test_other_noises_end_nearer_than_with_edm_s_levels(name, solver, n, share):
    model, solver = scale_models()[name], SOLVERS[solver]
    found = plan(n, model.denoiser, solver, x=pilots(32, 64), calls=8192)
    assert found.errors["measured"].mean() < share * found.errors["EDM"].mean() and found.calls <= 8192
    x = pilots(300, 64, 1.0, seed=1)
    target = DPMPP_2M.sample(model.denoiser, 80 * x, edm_sigmas(80))
    ours, edm = (
        (solver.sample(model.denoiser, sigmas[0] * x, sigmas) - target).norm(dim=1).mean()
        for sigmas in (found.sigmas, edm_sigmas(n))
    )
    assert ours < share * edm


@pytest.mark.parametrize(("name", "solver"), [("blobs", "heun"), ("sparse waves", "dpmpp_2m")])
def test_no_pilots_end_farther_than_with_edm_s_levels(name, solver):
    found = plan(4, scale_models()[name].denoiser, solver, x=pilots(8, 64), calls=1400)
    means = {name: errors.mean() for name, errors in found.errors.items()}
    assert list(means) == ["EDM", "recursion", "recursion, no spread", "recursion, free start", "measured"]
    rms = {name: errors.square().mean().sqrt() for name, errors in found.errors.items()}
    allowed = [name for name in means if rms[name] <= rms["EDM"]]
    assert "measured" in allowed and means["measured"] == min(means[name] for name in allowed)
    assert f"{means['measured']:.3g}, {means['measured'] / means['EDM']:.3g} times EDM's" in found.explain()
    # the distances that are told are those of the grid that is returned
    walked = SOLVERS[solver].sample(
        scale_models()[name].denoiser, pilots(8, 64) * (found.sigmas[0] / 80), found.sigmas
    )
    target = DPMPP_2M.sample(scale_models()[name].denoiser, pilots(8, 64), edm_sigmas(64))
    torch.testing.assert_close((walked - target).norm(dim=1), found.errors["measured"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_on_gaussian_data_it_is_as_good_as_the_exact_optimum(solver):
    """The path error is not the distance of laws, but both are small together; EDM's levels are far from both."""
    found = plan(5, linear, solver, x=pilots(32, 8), sigma_max=80.0, curve=GAUSSIAN).sigmas
    best = gaussian_optimal_sigmas(VARIANCES, 5, solver, "w2", free_end=True)
    ours, least, edm = (
        gaussian_w2(VARIANCES, gaussian_law(VARIANCES, one, solver)).item()
        for one in (found, best, edm_sigmas(5))
    )
    assert least <= ours * (1 + 1e-6) and ours < least + 0.1 * (edm - least)


# The budget and the ends


@pytest.mark.parametrize(
    ("solver", "n", "calls"), [(one, 5, 1500) for one in DETERMINISTIC] + [(HEUN, 2, 1000), (HEUN, 20, 3800)]
)
def test_every_call_is_counted_and_none_is_beyond_the_budget(solver, n, calls):
    asked = []

    def counted(x, sigma):
        asked.append(len(x))
        return modes(x, sigma)

    found = plan(n, counted, solver, x=pilots(32), calls=calls, curve=_curve_of_modes(), batch=5)
    assert sum(asked) == found.calls <= calls and max(asked) == 5
    assert len(found.sigmas) == n + 1 and (found.sigmas.diff() < 0).all()


@functools.cache
def _curve_of_modes():
    sigma = torch.logspace(-3, 2, 64, dtype=F64)
    return ErrorCurve(sigma, 2 / (1 / 0.9 + sigma**-2), dim=2)


def test_too_few_calls_are_told_before_one_is_made():
    asked = []

    def counted(x, sigma):
        asked.append(sigma)
        return modes(x, sigma)

    for solver, most in (("heun", 500), ("ddim_stochastic", 500)):
        with pytest.raises(ValueError, match=r"calls = 500; .* of 8 pilots take \d.* or more"):
            plan(5, counted, solver, x=pilots(), calls=most)
    assert asked == []
    assert plan(5, modes, "ddim_stochastic", x=pilots(200), calls=3000).calls <= 3000


@pytest.mark.parametrize("ends", [(5.0, 80.0), (60.0, 80.0)])
@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("fixed", [(True, False), (False, True), (False, False)])
def test_the_ends_are_where_they_were_asked_to_be(n, ends, fixed):
    low, high = ends
    grids = {"EDM": edm_sigmas(n, *ends), "log": log_sigmas(n, *ends)}
    walked = []
    sigmas = measure(
        lambda x, sigma: walked.append(sigma) or modes(x, sigma),
        DPMPP_2M,
        pilots(8),
        lambda _: (grids, 0),
        *ends,
        900,
        n=n,
        fixed_start=fixed[0],
        fixed_end=fixed[1],
    ).sigmas
    assert low <= sigmas[-2] and sigmas[0] <= high and (sigmas.diff() < 0).all() and len(sigmas) == n + 1
    assert low * (1 - 1e-12) < min(walked) and max(walked) < high * (1 + 1e-12)
    assert not high * (1 - 1e-12) < sigmas[0] < high  # an end that was reached is that end, not to rounding
    assert (sigmas[0] == high or not fixed[0]) and (sigmas[-2] == low or not fixed[1])


def test_an_end_that_is_given_stays_unless_it_is_freed():
    for low, high in itertools.product((None, 0.01), (None, 80.0)):
        sigmas = made(sigma_min=low, sigma_max=high).sigmas
        assert (sigmas[0] == 80 or high is None) and (sigmas[-2] == 0.01) == (low is not None)
    freed = made(sigma_min=0.01, sigma_max=80.0, free_start=True, free_end=True).sigmas
    assert freed[0] <= 80 and freed[-2] > 0.01
    kept = made(free_start=False, free_end=False).sigmas
    assert (kept[0], kept[-2]) == (80.0, 0.002)


def test_a_first_level_never_falls_below_the_last():
    """The step's trust, up to 1 in log sigma, may be more than the whole range."""
    found = free(climb(modes, DDIM, np.log([80.0, 70.0, 60.0]), pilots(8)), None, math.log(80))
    found.best = found.best._replace(misses=torch.full((8, 2), 10.0, dtype=F64))
    changes = torch.tensor([1.0, 0.0, 0.0], dtype=F64).expand(8, 2, 3)  # the first level alone moves the ends
    logs, _, length = found._step(changes, np.eye(3), 1.0)
    assert (
        length == pytest.approx(1) and (np.diff(logs) < 0).all() and logs[-1] == pytest.approx(math.log(60))
    )


def test_the_range_is_the_denoiser_s_own_unless_given():
    class Ranged:
        sigma_min, sigma_max = 0.05, math.inf

    assert range_of(Ranged()) == (0.05, 80.0) and range_of(linear, 0.1) == (0.1, 80.0)
    assert range_of(Ranged(), None, 20.0) == (0.05, 20.0)
    with pytest.raises(ValueError, match="not below sigma_max"):
        range_of(Ranged(), 90.0)


# The same grid, whatever happens around it


def made(denoiser=modes, x=None, n=4, **options):
    x = pilots(12) if x is None else x
    return plan(n, denoiser, "heun", x=x, calls=1600, **({"curve": _curve_of_modes()} | options))


@functools.cache
def plain():
    return made()


@pytest.mark.parametrize("mode", MODES_OF_TORCH)
def test_it_is_the_same_in_every_mode(mode):
    with MODES_OF_TORCH[mode]():
        found = made()
    assert torch.equal(found.sigmas, plain().sigmas) and not found.sigmas.requires_grad


def _into_its_input(x, sigma):
    return x.copy_(MODES.denoiser(x, sigma))


_BUFFER = torch.empty(12, 2, dtype=F64)


def _one_buffer(x, sigma):
    return _BUFFER.copy_(MODES.denoiser(x, sigma))


def _with_a_graph(x, sigma):
    assert not torch.is_grad_enabled()
    with torch.enable_grad():
        return MODES.denoiser(x, sigma) * torch.ones(2, dtype=F64, requires_grad=True)


@pytest.mark.parametrize("denoiser", [_into_its_input, _one_buffer, _with_a_graph])
def test_a_denoiser_s_habits_change_nothing(denoiser):
    x = pilots(12)
    assert torch.equal(made(denoiser, x.requires_grad_()).sigmas, plain().sigmas)
    assert torch.equal(x, pilots(12))


def test_batches_labels_and_types_change_rounding_alone():
    number = torch.arange(12)

    def asks(x, sigma, labels):
        first = labels["a"][0] if isinstance(labels, dict) else labels
        assert torch.is_tensor(first) and len(first) == len(x)
        return MODES.denoiser(x, sigma)

    for labels in ({"a": (number, None), "w": 2.0}, number.tolist()):
        found = made(asks, labels=labels, batch=5)
        torch.testing.assert_close(found.sigmas, plain().sigmas, rtol=1e-6, atol=0)
    single = made(x=pilots(12).float())
    assert single.sigmas.dtype == F64 and single.errors["measured"].mean() < single.errors["EDM"].mean()
    turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=F64)  # lengths stay, and so does the search
    torch.testing.assert_close(
        made(transform=lambda ends: ends @ turn).sigmas, plain().sigmas, rtol=1e-6, atol=0
    )


def test_a_transform_of_ends_is_a_denoiser_in_other_coordinates():
    """y = A x of an invertible A: the same paths, with the distance taken of y."""
    by = torch.tensor([[2.0, 0.5], [0.0, 0.3]], dtype=F64)
    back, x = torch.linalg.inv(by), pilots(12)
    walks = [
        (modes, x, lambda ends: ends @ by),
        (lambda y, sigma: MODES.denoiser(y @ back, sigma) @ by, x @ by, None),
    ]
    grids = {"EDM": edm_sigmas(4), "log": log_sigmas(4)}
    one, other = (
        measure(denoiser, HEUN, start, lambda ends: (grids, 0), 0.002, 80.0, 3000, n=4, transform=transform)
        for denoiser, start, transform in walks
    )
    torch.testing.assert_close(one.sigmas, other.sigmas, rtol=1e-6, atol=0)
    torch.testing.assert_close(one.errors["measured"], other.errors["measured"], rtol=1e-5, atol=1e-12)
    assert one.calls == other.calls


# Stores


def _stops(denoiser, after):
    count = itertools.count()

    def stopping(x, sigma):
        if next(count) == after:
            raise KeyboardInterrupt
        return denoiser(x, sigma)

    return stopping


def test_a_search_that_was_stopped_goes_on_to_the_same_grid(tmp_path):
    wanted = made(curve=None)
    for after in (3, 70, 95, 110, 140):
        with contextlib.suppress(KeyboardInterrupt):
            made(_stops(modes, after), curve=None, store=tmp_path, tag="modes")
    found = made(curve=None, store=tmp_path, tag="modes")
    assert torch.equal(found.sigmas, wanted.sigmas) and found.calls == wanted.calls
    assert all(torch.equal(found.errors[name], wanted.errors[name]) for name in wanted.errors)
    asked = []

    def counted(x, sigma):
        asked.append(len(x))
        return modes(x, sigma)

    assert torch.equal(made(counted, curve=None, store=tmp_path, tag="modes").sigmas, wanted.sigmas)
    assert sum(asked) <= 3 * 12 * HEUN.calls(
        4
    )  # the states of a walk that was kept, for each J, and no other


def test_one_folder_serves_searches_of_other_networks_pilots_labels_and_sizes(tmp_path):
    def scaled(x, sigma, labels):
        return labels["w"] * MODES.denoiser(x, sigma)

    cases = [
        {},
        {"x": pilots(11)},
        {"n": 3, "sigma_max": 60.0},
        {"denoiser": scaled, "labels": {"w": 0.9}},
        {"denoiser": scaled, "labels": {"w": 0.8}},
    ]
    for case in cases:
        kept, plainly = (made(curve=None, store=store, **case).sigmas for store in (tmp_path, None))
        assert torch.equal(kept, plainly)


def test_a_damaged_store_is_computed_anew_and_a_folder_that_is_none_is_told(tmp_path):
    made(store=tmp_path / "a")
    for path in (tmp_path / "a").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    with pytest.warns(UserWarning, match="is damaged and is computed anew"):
        assert torch.equal(made(store=tmp_path / "a").sigmas, plain().sigmas)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(made(store=tmp_path / "a").sigmas, plain().sigmas)
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match="is not kept"):
        assert torch.equal(made(store=tmp_path / "file").sigmas, plain().sigmas)
    assert sorted(os.listdir(tmp_path)) == ["a", "file"]


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": None}, "pass pilot noises"),
        ({"x": pilots(12).half()}, "float16"),
        ({"x": pilots(7)}, "x has 7 rows"),
        ({"x": pilots(12)[:, :0]}, "root mean square nan"),
        ({"x": pilots(12) / 80}, "root mean square"),
        ({"x": pilots(12), "sigma_max": 10.0}, "root mean square .* sigma_max = 10"),
        ({"x": pilots(12) * math.nan}, "every entry must be finite"),
        ({"labels": torch.arange(5)}, "labels has shape"),
        ({"labels": ["a"] * 12}, "labels are not numbers"),
        ({"batch": 0}, "batch = 0"),
        ({"calls": 3.5}, "calls = 3.5"),
        ({"goal": KL}, "goal = KL with a denoiser"),
        ({"method": "density"}, "method = 'density'"),
        ({"spread": 1.0}, "spread = 1.0"),
        ({"curve": 3}, "curve is a int"),
        ({"curve": ErrorCurve([0.01, 0.1, 1, 10], [1e-4, 1e-2, 0.5, 1.0])}, "outside the curve"),
        ({"curve": _curve_of_modes(), "sigma_min": 1e-4}, "outside the curve"),
        ({"source": lambda x, sigma: x * math.nan}, "NaN or infinity at a pilot's path"),
        ({"source": lambda x, sigma: x[:1]}, "returned shape"),
        ({"source": 3}, "source is a int"),
        ({"store": "x", "tag": 3}, "tag = 3; pass text"),
        ({"transform": lambda ends: None}, "transform returned None for 12 ends"),
        ({"transform": lambda ends: ends.sum()}, r"transform returned torch.float64 \(\)"),
        ({"transform": lambda ends: ends[:3]}, r"\(3, 2\) for 12 ends"),
        ({"transform": lambda ends: ends[:, :0]}, r"\(12, 0\) for 12 ends"),
        ({"transform": lambda ends: ends + 0j}, "real numbers"),
        ({"transform": lambda ends: ends * math.nan}, "what transform returned"),
        ({"solver": "ddim_stochastic", "transform": lambda ends: ends}, "transform is given"),
    ],
)
def test_bad_input_is_named(options, message):
    given = {"n": 4, "source": modes, "solver": "heun", "x": pilots(12), "calls": 2100} | options
    with pytest.raises(ValueError, match=message):
        plan(**given)


@pytest.mark.parametrize(
    "option",
    [
        {"x": pilots(8)},
        {"calls": 9},
        {"batch": 0},
        {"store": "x"},
        {"tag": "x"},
        {"labels": 3},
        {"transform": abs},
        {"curve": GAUSSIAN},
        {"method": "measured"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_of_a_denoiser_are_refused_beside_a_curve(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} is given, but the source is an ErrorCurve"):
        plan(4, GAUSSIAN, "heun", **option)


def test_a_stochastic_solver_gets_the_recursion_for_its_goal():
    found = plan(4, modes, "ddim_stochastic", KL, x=pilots(12), calls=3000)
    assert found.method == "recursion" and found.goal is KL and "no path" in found.evidence
    assert found.calls == 12 * (64 + 24) and not found.errors


def test_a_transform_that_sees_no_difference_leaves_the_start():
    found = made(transform=lambda ends: 0 * ends)
    assert torch.equal(found.sigmas, edm_sigmas(4)) and "nan" not in found.explain()
    assert made(transform=lambda ends: ends[:, 0]).errors["measured"].shape == (12,)
