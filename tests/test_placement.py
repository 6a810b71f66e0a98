"""Local errors against exact steps, deviations against exact laws, densities against their own calculus, optima."""

import math

import numpy as np
import pytest
import sympy
import torch

from entropic import exact, placement
from entropic import solvers as samplers
from entropic.curve import ErrorCurve
from entropic.gaussian import (
    KL,
    W2,
    gaussian_deviation,
    gaussian_kl,
    gaussian_law,
    gaussian_w2,
    implied_spectrum,
    local_error,
    misfit,
    order,
    spectrum,
)
from entropic.identity import content_sha256
from entropic.mixtures import GaussianMixture
from entropic.placement import DEFAULT, gaussian_optimal_sigmas, plan, solver_aware_sigmas
from entropic.schedules import arctan_sigmas, edm_sigmas, log_sigmas, rescaled_sigmas
from entropic.solvers import find_solver

SOLVERS = ["ddim", "ddim_stochastic", "heun", "dpmpp_2m"]
LEVELS = torch.logspace(math.log10(0.002), math.log10(80), 128, dtype=torch.float64)


def some_of(first, second):
    """All pairs; the default suite has those of equal place, so that each value occurs, and `make verify` the rest."""
    return [
        pytest.param(one, other, marks=() if i == j else pytest.mark.verify)
        for i, one in enumerate(first)
        for j, other in enumerate(second)
    ]


def power_law(decay, k=100):
    return torch.arange(1, k + 1, dtype=torch.float64) ** -decay


def gaussian_curve(variances, multiplicity=None, split=True, sigma=LEVELS):
    """The error curve of Gaussian data, with or without its directions."""
    count = torch.ones_like(variances) if multiplicity is None else multiplicity
    parts = count / (1 / variances + 1 / sigma[:, None].square())
    dim = int(count.sum())
    return ErrorCurve(sigma, parts.sum(1), dim=dim, directions=parts if split else None)


def density_sigmas(variances, n, solver, **options):
    return solver_aware_sigmas(gaussian_curve(variances), n, solver, method="density", **options)


# ---------------------------------------------------------------------------------------------- one step


@pytest.mark.parametrize("solver", ["ddim", "ddim_stochastic", "heun"])
def test_local_error_is_the_first_term_of_the_exact_step(solver):
    c, s, h = sympy.symbols("c s h", positive=True)
    total, after = c**2 + s**2, c**2 + (s - h) ** 2
    if solver == "ddim_stochastic":
        ratio = ((s - h) / s) ** 2
        gain = ratio + (1 - ratio) * c**2 / total
        square = (gain**2 * total + (s - h) ** 2 * (1 - ratio)) / after
        # from the exact law the step leaves out just the posterior variance of x_0
        missing = (1 - ratio) ** 2 * c**2 * s**2 / total
        assert sympy.simplify(square * after - after + missing) == 0
    else:
        slope, slope_next = s / total, (s - h) / after
        factor = 1 - h * slope
        if solver == "heun":
            factor = 1 - h / 2 * (slope + slope_next * factor)
        square = factor**2 * total / after
    p = order(solver)
    # sqrt(1 + e) - 1 = e / 2 to first order
    first = sympy.limit(sympy.cancel(sympy.together((square - 1) / (2 * h ** (p + 1)))), h, 0)
    for values in ({c: 1.0, s: 0.3}, {c: 0.2, s: 3.0}, {c: 2.0, s: 2.0}):
        u = values[c] ** 2 / (values[c] ** 2 + values[s] ** 2)
        assert float(local_error(u, values[s], solver)) == pytest.approx(float(first.subs(values)), rel=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("c", "sigma"), [(1.0, 0.3), (0.7, 2.5), (1.0, 5.0)])
def test_order_and_constant_by_regression_on_the_step(solver, c, sigma):
    # The solvers' own code makes the step; C(h) = C + O(h), so with h = sigma / 4000 and 1 / 2000 both the order and C
    # are right to a few parts in 1000, and what rounding leaves, 1e-16 / (h / sigma)^3, is below 1e-5 of C sigma^3.
    def error(h):
        after = sigma - h
        exact_std = math.hypot(c, sigma), math.hypot(c, after)

        def denoiser(x, level):
            return x * c**2 / (c**2 + level**2)

        if solver == "ddim_stochastic":
            ratio = (after / sigma) ** 2
            gain = ratio + (1 - ratio) * c**2 / exact_std[0] ** 2
            return math.sqrt((gain * exact_std[0]) ** 2 + after**2 * (1 - ratio)) / exact_std[1] - 1
        if solver == "dpmpp_2m":
            # from an exact history, whose step was as long in log sigma; weight h / (2 h_prev) = 1/2
            before, ratio = sigma**2 / after, after / sigma
            x_before, x = math.hypot(c, before), exact_std[0]
            direction = 1.5 * denoiser(x, sigma) - 0.5 * denoiser(x_before, before)
            return (ratio * x + (1 - ratio) * direction) / exact_std[1] - 1
        seen = []
        sampler = {"ddim": samplers.sample_ddim, "heun": samplers.sample_heun}[solver]
        x = torch.tensor([exact_std[0]], dtype=torch.float64)
        sigmas = torch.tensor([sigma, after, 0.0], dtype=torch.float64)
        sampler(denoiser, x, sigmas, callback=lambda step: seen.append(step.x.item()))
        return seen[1] / exact_std[1] - 1

    p, h = order(solver), sigma / 4000
    one, two = error(h), error(2 * h)
    assert math.log2(two / one) == pytest.approx(p + 1, rel=0.01)
    u = c**2 / (c**2 + sigma**2)
    assert (2 * one / h ** (p + 1) - two / (2 * h) ** (p + 1)) == pytest.approx(
        float(local_error(u, sigma, solver)), rel=0.01
    )


def test_the_second_order_multistep_error_changes_sign_at_its_zero():
    # u = 2/5, sigma = c sqrt(3/2)
    assert abs(float(local_error(0.4, 1.0, "dpmpp_2m"))) < 1e-17
    assert local_error(0.39, 1.0, "dpmpp_2m") < 0 < local_error(0.41, 1.0, "dpmpp_2m")


def test_a_stochastic_error_is_forgotten_by_the_share_u():
    # A relative error at sigma, followed by very many small steps: what is left of it at 0 is u.
    # Each of n = 20,000 steps in log sigma errs by O((L / n)^2), L = log(sigma / sigma_min) = 6.9: 1e-3 in all.
    c, sigma = 0.8, 1.5
    u = c**2 / (c**2 + sigma**2)
    sigmas = log_sigmas(20_000, 1e-3, sigma)
    left = []
    for error in (0.0, 1e-3):
        v = (c**2 + sigma**2) * (1 + error) ** 2
        for now, following in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
            ratio = (following / now) ** 2
            gain = ratio + (1 - ratio) * c**2 / (c**2 + now**2)
            v = gain**2 * v + following**2 * (1 - ratio)
        left.append(math.sqrt(v) / c)
    assert (left[1] - left[0]) / 1e-3 == pytest.approx(u, rel=2e-3)


# ---------------------------------------------------------------------------------------------- exact deviations


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("sigmas", [edm_sigmas(9), log_sigmas(2), torch.tensor([3.0, 0.0])], ids=len)
def test_deviation_is_that_of_the_exact_law(solver, sigmas):
    generator = torch.Generator().manual_seed(1)
    variances = 10 ** (4 * torch.rand(30, generator=generator, dtype=torch.float64) - 3)
    variances[:10] = variances[10]
    law = gaussian_law(variances, sigmas, solver)
    kl, w2 = gaussian_kl(law, variances).item(), gaussian_w2(variances, law).item()
    relative = (law / variances).sqrt() - 1
    assert gaussian_deviation(variances, sigmas, solver).item() == pytest.approx(kl, rel=1e-12, abs=1e-12)
    assert gaussian_deviation(variances, sigmas, solver, "w2").item() == pytest.approx(
        w2, rel=1e-11, abs=1e-12
    )
    for alpha in (-0.5, 0.0, 0.75, 1.0):
        want = (variances**alpha * relative.square()).sum().item()
        got = gaussian_deviation(variances, sigmas, solver, alpha=alpha).item()
        assert got == pytest.approx(want, rel=1e-11, abs=1e-12)
    # equal directions may be counted, and those without variance do not count
    merged, counts = variances.unique(return_counts=True)
    merged, counts = torch.cat([merged, torch.zeros(1)]), torch.cat([counts, torch.ones(1)])
    got = gaussian_deviation(merged, sigmas, solver, multiplicity=counts)
    assert got.item() == pytest.approx(kl, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_deviation_is_differentiable(solver):
    ends = edm_sigmas(6, 0.05, 10.0)

    def kl(inner):
        return gaussian_deviation([1.0, 0.1], torch.cat([ends[:1], inner, ends[-2:]]), solver)

    assert torch.autograd.gradcheck(kl, ends[1:-2].clone().requires_grad_())


def test_alpha_meets_both_metrics():
    # (r - 1 - log r) / 2 with r = (1 + e)^2 is e^2 - e^3 / 3 + ...: apart by less than |e|^3 per direction
    v, sigmas = power_law(1.0), edm_sigmas(64)
    law = gaussian_law(v, sigmas)
    cubes = ((law / v).sqrt() - 1).abs().pow(3).sum().item()
    kl, zero = gaussian_deviation(v, sigmas).item(), gaussian_deviation(v, sigmas, alpha=0).item()
    assert 0 < abs(kl - zero) < cubes < 0.2 * kl
    assert gaussian_deviation(v, sigmas, metric="w2") == gaussian_deviation(v, sigmas, alpha=1)


# ---------------------------------------------------------------------------------------------- optimal grids

# N(0, 1), sigma from 80 to 0.002, KL at 8, 16 and 32 levels: density of many steps, numerical optimum.
# Found by an independent prototype and printed to two or three digits.
TABLE = {
    "ddim": (["0.0272", "0.0062", "0.00149"], ["0.0272", "0.0062", "0.00149"]),
    "ddim_stochastic": (["0.0522", "0.0134", "0.0035"], ["0.043", "0.0119", "0.00327"]),
    "heun": (["0.00664", "0.000177", "0.00000812"], ["0.00442", "0.00016", "0.0000079"]),
}


@pytest.mark.parametrize("solver", TABLE)
def test_the_table_of_the_isotropic_gaussian(solver):
    one = torch.ones(1, dtype=torch.float64)
    for row, method in zip(TABLE[solver], ("density", "recursion"), strict=True):
        for n, printed in zip((8, 16, 32), row, strict=True):
            sigmas = (
                density_sigmas(one, n, solver)
                if method == "density"
                else gaussian_optimal_sigmas(one, n, solver)
            )
            found = gaussian_deviation(one, sigmas, solver).item()
            # half a unit of the last printed digit, and what rounding leaves of it
            unit = 10.0 ** -len(printed.split(".")[1])
            assert abs(found - float(printed)) <= 0.5001 * unit, (n, method, found, printed)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("metric", ["kl", "w2"])
@pytest.mark.parametrize("n", [5, 12])
def test_no_other_grid_is_better(solver, metric, n):
    # Three random starts, gaps of log sigma from a Dirichlet law, meet the same minimum. 2M's errors cancel: with many
    # levels it has many minima, orders of magnitude below every simple grid, and only that is asked.
    v = power_law(1.5, 40)
    sigmas = gaussian_optimal_sigmas(v, n, solver, metric, 0.01, 20.0)
    found = gaussian_deviation(v, sigmas, solver, metric).item()

    searched = placement._Deviation(spectrum(v), find_solver(solver), KL if metric == "kl" else W2)

    def deviation(grid):
        return gaussian_deviation(v, grid, solver, metric)

    others = [deviation(grid(n, 0.01, 20.0)).item() for grid in (edm_sigmas, log_sigmas, arctan_sigmas)]
    others.append(
        deviation(density_sigmas(v, n, solver, metric=metric, sigma_min=0.01, sigma_max=20.0)).item()
    )
    assert found <= min(others) * (1 + 1e-12)
    generator = np.random.default_rng(n)
    starts = []
    for _ in range(3):
        gaps = torch.as_tensor(generator.dirichlet(np.full(n - 1, 4.0)))
        inner = 20.0 * (-gaps.cumsum(0)[:-1] * math.log(2000)).exp()
        starts.append(torch.cat([sigmas[:1], inner, sigmas[-2:]]))
    if solver == "dpmpp_2m" and n > 5:
        assert found < 1e-3 * min(others)
    else:
        best = [placement._descend(searched, start)[0] for start in starts]
        assert found <= min(best) * (1 + 1e-6)
        # and no neighbour is better: the gradient vanishes at the scale of the deviation
        inner = sigmas[1:-2].log().requires_grad_()
        deviation(torch.cat([sigmas[:1], inner.exp(), sigmas[-2:]])).backward()
        assert inner.grad.abs().max() < 1e-4 * found


@pytest.mark.parametrize("solver", SOLVERS)
def test_grids_scale_with_the_data(solver):
    # sigma, the standard deviations and the range by 3: the KL stays, W2 grows by 9, the grids by 3. The optimum is
    # quadratic: a deviation right to 1e-10 leaves 1e-5 in the levels. 2M's own is nearly flat: its value is compared.
    v, n = power_law(1.5, 20), 6
    for method in (density_sigmas, gaussian_optimal_sigmas):
        if method is density_sigmas:
            one = density_sigmas(v, n, solver, metric="kl", sigma_min=0.01, sigma_max=20.0)
            curve = gaussian_curve(9 * v, sigma=3 * LEVELS)
            other = solver_aware_sigmas(curve, n, solver, "kl", 0.03, 60.0, method="density")
        else:
            one = gaussian_optimal_sigmas(v, n, solver, "w2", 0.01, 20.0)
            other = gaussian_optimal_sigmas(9 * v, n, solver, "w2", 0.03, 60.0)
        if method is density_sigmas or solver != "dpmpp_2m":
            torch.testing.assert_close(3 * one, other, rtol=1e-4, atol=0)
        for metric, power in (("kl", 1), ("w2", 9)):
            assert gaussian_deviation(9 * v, 3 * one, solver, metric).item() == pytest.approx(
                power * gaussian_deviation(v, one, solver, metric).item(), rel=1e-9, abs=1e-12
            )


def test_an_optimal_grid_is_deterministic_and_merges_directions():
    v = power_law(1.0, 7)
    one = gaussian_optimal_sigmas(v, 6, "heun", multiplicity=torch.full((7,), 3.0))
    assert torch.equal(one, gaussian_optimal_sigmas(v, 6, "heun", multiplicity=torch.full((7,), 3.0)))
    repeated = torch.cat([v.flip(0), v, v, torch.zeros(5)])
    torch.testing.assert_close(one, gaussian_optimal_sigmas(repeated, 6, "heun"), rtol=1e-5, atol=0)
    assert torch.equal(
        gaussian_optimal_sigmas(v, 6, "sddim"), gaussian_optimal_sigmas(v, 6, "ddim_stochastic")
    )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("variance", [1e-20, 1e8])
def test_variances_far_outside_the_range_have_a_grid(solver, variance):
    sigmas = gaussian_optimal_sigmas([variance], 5, solver, "w2")
    assert (sigmas.diff() < 0).all() and len(sigmas) == 6


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n", [2, 3, 7])
def test_grids_descend_between_their_ends(solver, n):
    v = power_law(2.0, 30)
    curve = gaussian_curve(v)
    for sigmas in (
        gaussian_optimal_sigmas(v, n, solver, "w2", 0.01, 20.0),
        solver_aware_sigmas(curve, n, solver, "kl", 0.01, 20.0, method="density"),
        solver_aware_sigmas(curve, n, solver, "w2", 0.01, 20.0, alpha=0.75),
    ):
        assert sigmas.shape == (n + 1,) and sigmas.dtype == torch.float64
        assert (sigmas.diff() < 0).all()
        assert (sigmas[0].item(), sigmas[-2].item(), sigmas[-1].item()) == (20.0, 0.01, 0.0)


# ---------------------------------------------------------------------------------------------- the density


@pytest.mark.parametrize(
    ("solver", "time"),
    [
        ("ddim", lambda tangent: tangent.atan()),
        ("ddim_stochastic", lambda tangent: tangent.atan().sin()),
        ("heun", None),  # (sigma/c)^(1/3) / (sigma^2 + c^2), integrated below
    ],
)
def test_isotropic_densities_in_closed_form(solver, time):
    # The curve has 128 levels, 0.08 apart in log sigma: its spline leaves 1e-5 of the range of time.
    c = 0.6
    sigmas = density_sigmas(torch.tensor([c**2], dtype=torch.float64), 9, solver)[:-1]
    if time is None:
        z = torch.linspace(math.log(0.002), math.log(80), 200_001, dtype=torch.float64)
        rate = z.exp() * (z.exp() / c) ** (1 / 3) / (z.exp().square() + c**2)
        phi = torch.cat([torch.zeros(1), ((rate[1:] + rate[:-1]) / 2 * z.diff()).cumsum(0)])
        value = torch.as_tensor(np.interp(sigmas.log().numpy(), z.numpy(), phi.numpy()))
    else:
        value = time(sigmas / c)
    steps = value.diff() / (value[-1] - value[0])
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / 8), rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", ["ddim", "ddim_stochastic", "heun"])
@pytest.mark.parametrize("alpha", [0.0, 0.75])
def test_the_density_is_the_best_and_its_error_is_that_of_the_exact_law(solver, alpha):
    # J(g) = sum_i w_i E_i^2, E_i = integral |k_i| / g^p, is convex in g: a minimum among small changes is the minimum.
    # With n levels and the last step's sqrt(u) - 1 the errors are +-E_i / (n - 1)^p + sqrt(u_i) - 1, to a relative
    # O(1 / n): two n extrapolate it to O(1 / n^2).
    v, p, low, high = 100 * power_law(2.0, 12), order(solver), 0.002, 80.0
    sigma = log_sigmas(4001, low, high)[:-1].flip(0)
    x, u = sigma.log(), 1 / (1 + sigma[:, None].square() / v)
    k = (local_error(u, sigma[:, None], solver) * sigma[:, None] ** (p + 1)).abs()
    k = k * u if solver == "ddim_stochastic" else k
    time = placement._density_time(sigma, u, v**alpha, find_solver(solver), low, high)

    def errors(g):
        g = g / torch.trapezoid(g, x)
        return torch.trapezoid(k / g[:, None] ** p, x, dim=0)

    def objective(g):
        return (v**alpha * errors(g).square()).sum().item()

    g = time.rate_at(sigma) * sigma
    least = objective(g)
    # up by a curvature and to neither side: the slope is within a twentieth of what 0.01 of curvature gives
    for wave in (0.5, 1, 2):
        shape = torch.cos(wave * math.pi * (x - x[0]) / (x[-1] - x[0]))
        up, down = (objective(g * (size * shape).exp()) - least for size in (0.01, -0.01))
        assert up + down > 0
        assert abs(up - down) < 0.05 * (up + down)
    sign = 1 if solver == "heun" else -1
    share = []
    for n in (300, 600):
        expected = v**alpha @ (sign * errors(g) / (n - 1) ** p + u[0].sqrt() - 1).square()
        sigmas = density_sigmas(v, n, solver, alpha=alpha)
        share.append((gaussian_deviation(v, sigmas, solver, alpha=alpha) / expected).item())
    assert 2 * share[1] - share[0] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("decay", [1.5, 2.0])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("solver", ["ddim", "ddim_stochastic", "heun"])
def test_a_power_law_makes_a_grid_of_edms_family(decay, alpha, solver):
    # c_k^2 = k^-a: directions per log c go as c^(-2/a). The best density per log sigma is then sigma^(1/rho), with
    # 1 / rho = (2 alpha - 2 / a) / (2 p + 1), while the rescaled time has sigma^(1 - 2/a). Five decades of c, of which
    # the middle one is looked at; what its far ends still do there is below 0.01 in the exponent.
    sigma = torch.logspace(-8, 3, 401, dtype=torch.float64)
    c = torch.logspace(-7.5, 2.5, 801, dtype=torch.float64)
    variances, count = c.square(), c ** (-2 / decay)
    u = 1 / (1 + sigma[:, None].square() / variances)
    time = placement._density_time(sigma, u, count * variances**alpha, find_solver(solver), 1e-8, 1e3)
    middle = torch.tensor([10**-3.0, 10**-2.0], dtype=torch.float64)
    found = (time.rate_at(middle) * middle).log().diff() / math.log(10)
    exponent = (2 * alpha - 2 / decay) / (2 * order(solver) + 1)
    assert found.item() == pytest.approx(exponent, abs=0.01)
    rescaled = ((count / (1 / variances + 1 / middle[:, None].square())).sum(1) / middle).log().diff()
    assert rescaled.item() / math.log(10) == pytest.approx(1 - 2 / decay, abs=0.01)
    # so the rescaled time is the best for first order at alpha = 3/2 - 2/a
    assert (2 * (1.5 - 2 / decay) - 2 / decay) / 3 == pytest.approx(1 - 2 / decay, abs=1e-12)


def test_the_rescaled_time_is_a_solver_aware_density_for_one_variance_only():
    one = torch.tensor([0.25], dtype=torch.float64)
    curve = gaussian_curve(one)
    for alpha in (0.0, 0.5, 1.0):
        grid = solver_aware_sigmas(curve, 12, alpha=alpha, method="density")
        torch.testing.assert_close(grid, rescaled_sigmas(12, curve), rtol=1e-3, atol=0)
    v = power_law(1.0)
    curve = gaussian_curve(v)
    grid = solver_aware_sigmas(curve, 12, alpha=1.0, method="density")
    assert gaussian_deviation(v, grid, metric="w2") < 0.8 * gaussian_deviation(
        v, rescaled_sigmas(12, curve), metric="w2"
    )


# ---------------------------------------------------------------------------------------------- error curves


def test_an_implied_spectrum_has_the_curves_error():
    # A variance between two of the grid's, spacing d in log c, is replaced by both: the chord of eps2 in log c is off
    # by at most d^2 / 8 times 4 (1 - u) (1 - 2 u) <= 4 of eps2. Least squares do no worse, in their weighted norm.
    spacing = math.log(80 / 0.002) / 95
    for v in (
        torch.tensor([0.777], dtype=torch.float64),
        power_law(1.0),
        power_law(1.3),
        power_law(0.5, 9) * 4,
    ):
        curve = gaussian_curve(v)
        variances, masses = implied_spectrum(curve)
        assert (masses > 0).all() and len(masses) <= 96
        fitted = (masses / (1 / variances + 1 / LEVELS[:, None].square())).sum(1)
        rows = 1 / LEVELS.square() + len(v) / v.sum()
        missed = (rows * (fitted - curve.eps2)).norm() / (rows * curve.eps2).norm()
        assert missed < spacing**2 / 2
        assert misfit(curve, variances, masses) < spacing**2 / 2
        assert masses.sum().item() == pytest.approx(len(v), rel=spacing**2 / 2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_total_error_curve_is_enough_for_the_best_grid(solver):
    # The error is all that the recursion sees, and the spectrum that implies it is as good as the true one: 1%
    # (measured 0.01%); for 2M, whose errors cancel to a thousandth, within 10%.
    for decay, metric in ((1.0, "kl"), (1.5, "w2")):
        v = power_law(decay)
        best = gaussian_deviation(v, gaussian_optimal_sigmas(v, 6, solver, metric), solver, metric)
        sigmas = solver_aware_sigmas(gaussian_curve(v, split=False), 6, solver, metric, method="recursion")
        found = gaussian_deviation(v, sigmas, solver, metric)
        assert found < best * (1.1 if solver == "dpmpp_2m" else 1.01)


@pytest.mark.parametrize(("decay", "n"), some_of([1.0, 1.5, 2.0], [4, 6, 8]))
def test_gain_of_the_recursion_over_the_density_at_few_steps(decay, n):
    v = power_law(decay)
    curve = gaussian_curve(v)
    share = {}
    for solver in SOLVERS:
        few = solver_aware_sigmas(curve, n, solver, "w2", method="recursion", free_end=False)
        many = solver_aware_sigmas(curve, n, solver, "w2", method="density")
        share[solver] = (
            gaussian_deviation(v, few, solver, "w2") / gaussian_deviation(v, many, solver, "w2")
        ).item()
    assert 0.9 < share["ddim"] < 1 + 1e-4
    assert share["ddim_stochastic"] < 0.95
    assert share["heun"] < 2 / 3
    assert share["dpmpp_2m"] < 2 / 3


def test_noise_in_the_curve_hardly_moves_a_grid():
    # 1% of noise a level, 128 levels, one spectrum to fit: the deviation is quadratic around its optimum.
    v = power_law(1.5)
    noise = 1 + 0.01 * torch.randn(128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eps2 = gaussian_curve(v).eps2
    noisy = ErrorCurve(LEVELS, eps2 * noise, 0.01 * eps2, dim=len(v))
    for solver in ("ddim", "ddim_stochastic", "heun"):
        sigmas = solver_aware_sigmas(noisy, 8, solver, "w2", method="recursion")
        best = gaussian_optimal_sigmas(v, 8, solver, "w2")
        assert gaussian_deviation(v, sigmas, solver, "w2") < 1.02 * gaussian_deviation(v, best, solver, "w2")


def test_by_default_it_aims_at_feature_distances():
    curve = gaussian_curve(power_law(1.5, 30))
    for method in ("recursion", "density"):
        found = solver_aware_sigmas(curve, 6, "heun", method=method)
        assert torch.equal(found, solver_aware_sigmas(curve, 6, "heun", alpha=0.75, method=method))
        for metric in ("kl", "w2"):
            assert (found - solver_aware_sigmas(curve, 6, "heun", metric, method=method)).abs().max() > 0.01
            one = solver_aware_sigmas(curve, 6, "heun", metric, alpha=0.75, method=method)
            assert torch.equal(found, one)  # alpha replaces the metric


@pytest.mark.parametrize(("solver", "n"), [("ddim", 9), ("heun", 3), ("dpmpp_2m", 4), ("heun", 33)])
def test_a_curve_gets_the_recursion_unless_a_method_is_named(solver, n):
    modes = GaussianMixture.isotropic(0.8 * torch.tensor([-1.3, -0.4, 0.2, 1.5]), 0.6)
    curve = ErrorCurve(LEVELS, modes.eps2(LEVELS), dim=1)
    by = {
        name: solver_aware_sigmas(curve, n, solver, **options)
        for name, options in {
            "unnamed": {},
            "recursion": {"method": "recursion"},
            "plain": {"spread": 0},
            "density": {"method": "density"},
        }.items()
    }
    assert [name for name in by if torch.equal(by["unnamed"], by[name])] == ["unnamed", "recursion"]


def test_without_directions_the_density_is_that_of_the_implied_spectrum():
    # 12 levels of 1,000 power-law directions: the curve alone gives their grid, one mean direction would not
    v = power_law(1.5, 1000)
    for solver in SOLVERS:
        found = [
            gaussian_deviation(
                v,
                solver_aware_sigmas(gaussian_curve(v, split=split), 12, solver, "w2", method="density"),
                solver,
                "w2",
            ).item()
            for split in (True, False)
        ]
        assert found[1] == pytest.approx(found[0], rel=0.01)


# ------------------------------------------------------------------------------------------- scales spread


def step_errors(c, sigmas):
    """The relative error of each step of DPM-Solver++(2M) from the exact law, as the search for a grid counts it."""
    one = torch.tensor([c**2], dtype=torch.float64)
    deviation = placement._Deviation(spectrum(one), find_solver("dpmpp_2m"), KL, penalty=1.0)
    logs = sigmas[:-1].log().numpy()
    parts = [deviation._steps(logs, *group)[2][0].real for group in deviation._groups(len(logs))]
    return torch.as_tensor(
        np.concatenate([*(part[:, 0] for part in parts), [c / math.hypot(c, sigmas[-2]) - 1]])
    )


@pytest.mark.parametrize("c", [0.1, 1.0, 7.0])
def test_errors_of_the_multistep_solver_step_by_step(c):
    """By the solver's own code: a denoiser that knows the exact state tells what each step adds, its past exact."""
    sigmas = torch.tensor([30.0, 8.0, 3.0, 0.7, 0.2, 0.0], dtype=torch.float64)
    exact_std = (c**2 + sigmas.square()).sqrt()
    states = []

    def denoiser(x, sigma):
        states.append(x)
        return torch.full_like(x, c**2 / math.sqrt(c**2 + sigma**2))

    states.append(samplers.sample_dpmpp_2m(denoiser, exact_std[:1], sigmas))
    states, ratio = torch.cat(states), sigmas[1:] / sigmas[:-1]
    made = ratio * exact_std[:-1] + states[1:] - ratio * states[:-1]
    found = step_errors(c, sigmas)
    torch.testing.assert_close(found, made / exact_std[1:] - 1, rtol=1e-12, atol=1e-14)
    # and they are those of the local theory: steps of 1 / 200 in log sigma
    fine = torch.linspace(math.log(20 * c), math.log(c / 20), 1200, dtype=torch.float64).exp()
    fine = torch.cat([fine, torch.zeros(1, dtype=torch.float64)])
    error = step_errors(c, fine)[1:-1]
    u, h = c**2 / (c**2 + fine[1:-2].square()), fine[1:-2] - fine[2:-1]
    wanted = local_error(u, fine[1:-2], "dpmpp_2m") * h**3
    assert (error - wanted).abs().max() < 0.01 * wanted.abs().max()


@pytest.mark.parametrize(("solver", "n"), some_of(["heun", "dpmpp_2m"], [4, 8]))
def test_spread_scales_pay_where_data_are_not_gaussian(solver, n):
    """Fifteen modes a third wide, their total error nearly Gaussian: on average less KL than the Gaussian optimum."""
    generator, gain = torch.Generator().manual_seed(0), 0.0
    for _ in range(3):
        x = torch.randn(15, 1, generator=generator, dtype=torch.float64)
        x = (x - x.mean()) / x.std(correction=0)
        modes = GaussianMixture.isotropic(math.sqrt(0.91) * x, 0.3)
        curve = ErrorCurve(LEVELS, modes.eps2(LEVELS), dim=1)
        spread, plain = (
            exact.deterministic_law(
                modes, solver_aware_sigmas(curve, n, solver, "kl", spread=spread), solver, "exact"
            ).kl(modes)
            for spread in (None, 0)
        )
        gain += math.log(plain / spread)
    assert gain > 0


@pytest.mark.parametrize(("decay", "goal"), some_of([1.0, 2.0], [("kl", 5), ("w2", 7)]))
@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m"])
def test_spread_scales_on_gaussian_data(decay, goal, solver):
    """The curve alone tells that data are Gaussian: then it is the optimum. Where it is made to doubt, it pays for it,
    more for more doubt, and is still ahead of EDM's; with Heun, of uniform log sigma too."""
    v, (metric, n) = power_law(decay), goal
    curve = gaussian_curve(v, split=False)

    def deviation(spread):
        grid = solver_aware_sigmas(curve, n, solver, metric, spread=spread)
        return gaussian_deviation(v, grid, solver, metric)

    best = deviation(0)
    assert deviation(None) < best * (1.1 if solver == "dpmpp_2m" else 1.01)
    little, much = deviation(0.1), deviation(0.5)
    others = [edm_sigmas(n), log_sigmas(n)][: 2 if solver == "heun" else 1]
    assert best < little < much < min(gaussian_deviation(v, grid, solver, metric) for grid in others)
    one, other = (
        solver_aware_sigmas(gaussian_curve(v, split=split), n, solver, metric) for split in (True, False)
    )
    torch.testing.assert_close(one, other, rtol=1e-3, atol=0)  # the sum of directions is enough


@pytest.mark.parametrize("of", [torch.as_tensor, torch.Tensor.numpy])
def test_the_divergence_keeps_its_digits_near_1_and_near_0(of):
    """(r^2 - 1) / 2 - log r: e^2 - e^3 / 3 at r = 1 + e, and -1/2 - log r at r near 0."""
    off = torch.tensor([1e-9, -1e-7, 3e-5], dtype=torch.float64)
    small = torch.tensor([1e-40, 1e-17, 1e-9], dtype=torch.float64)
    for ratio, wanted in ((1 + off, off**2 - off**3 / 3 + off**4 / 4), (small, -0.5 - small.log())):
        found = torch.as_tensor(KL.of_ratios(of(ratio), None)[0])
        # a ratio near 1 is known to 1e-16, its distance from 1 to 1e-16 / e
        torch.testing.assert_close(found, wanted, rtol=5e-7, atol=0)


def test_misfit():
    v, count = torch.tensor([[0.25, 4.0], [3.0, 2.0]], dtype=torch.float64)
    curve = gaussian_curve(v, count, split=False)
    assert misfit(curve, v, count) < 1e-15
    assert misfit(curve, v.repeat_interleave(count.long())) < 1e-15
    # One variance taken for another: with t = log sigma^2, u(t) = 1 / (1 + e^(t - log c^2)), and by partial fractions
    # the integral of (u_1 - u_2)^2 over log sigma is ((d / tanh(d / 2)) - 2) / 2, d the difference of the log c^2.
    sigma = torch.logspace(-5, 5, 2001, dtype=torch.float64)
    for levels, rel in (
        (sigma, 1e-6),
        (torch.cat([sigma[:900:7], sigma[900:]]), 1e-3),
    ):  # evenly spaced or not
        curve = ErrorCurve(levels, 1 / (1 + 1 / levels.square()), dim=1)
        for d in (0.1, 1.0, 3.0):
            wanted = math.sqrt((d / math.tanh(d / 2) - 2) / 2 / (10 * math.log(10)))
            assert misfit(curve, [math.exp(d)]) == pytest.approx(wanted, rel=rel)
    with pytest.raises(ValueError, match="pass an ErrorCurve"):
        misfit(sigma, [1.0])


@pytest.mark.parametrize("width", [0.3, 0.6])
def test_the_spread_is_read_off_the_misfit(width):
    modes = GaussianMixture.isotropic(math.sqrt(1 - width**2) * torch.tensor([-1.3, -0.4, 0.2, 1.5]), width)
    curve = ErrorCurve(LEVELS, modes.eps2(LEVELS), dim=1)
    m = misfit(curve, *implied_spectrum(curve))
    assert 1e-4 < m < 0.1
    one = plan(6, curve, "heun")
    assert (one.misfit, one.spread) == (m, 5 * math.sqrt(m))
    assert torch.equal(one.sigmas, solver_aware_sigmas(curve, 6, "heun", spread=5 * math.sqrt(m)))
    assert (one.sigmas - solver_aware_sigmas(curve, 6, "heun", spread=0)).abs().max() > 1e-3


def test_levels_keep_apart():
    """The descent goes towards a grid with two levels in one place, and stops short of it."""
    wanted = log_sigmas(7)[:-1].log().numpy()
    wanted[3] = wanted[2]

    def deviation(logs):
        return ((logs - wanted) ** 2).sum(), 2 * (logs - wanted)

    value, sigmas = placement._descend(deviation, log_sigmas(7))
    gaps = -sigmas[:-1].log().diff()
    assert gaps.min() > 1e-3 * gaps.mean()
    assert value < 1e-4


@pytest.mark.parametrize("spread", [1e-5, 0.4, 1.0])
def test_a_grid_hangs_smoothly_on_the_spread(spread):
    """No cliff: neither from one number of nodes to the next, nor near the plain recursion."""
    modes = GaussianMixture.isotropic([-1.4, -0.3, 0.6, 1.1], 0.36)
    curve = ErrorCurve(LEVELS, modes.eps2(LEVELS), dim=1)
    found = [solver_aware_sigmas(curve, 6, spread=s) for s in (spread, 1.0001 * spread + 1e-9)]
    torch.testing.assert_close(*found, rtol=3e-3, atol=0)
    assert spread > 1e-4 or torch.allclose(found[0], solver_aware_sigmas(curve, 6, spread=0), rtol=1e-4)


@pytest.mark.parametrize(("solver", "n"), [("ddim", 8), ("heun", 4), ("dpmpp_2m", 4)])
def test_separate_modes_are_told_by_their_misfit(solver, n):
    """No spectrum has their curve. The plain recursion is far off; with spread scales the grid is ahead of EDM's."""
    modes = GaussianMixture.isotropic([-1.4, -0.3, 0.6, 1.1], 0.08)
    curve = ErrorCurve(LEVELS, modes.eps2(LEVELS), dim=1)
    assert misfit(curve, *implied_spectrum(curve)) > 0.02

    def divergence(grid):
        return exact.deterministic_law(modes, grid, solver, "exact").kl(modes)

    found = divergence(solver_aware_sigmas(curve, n, solver, "kl"))
    assert found < divergence(edm_sigmas(n))
    assert found < divergence(solver_aware_sigmas(curve, n, solver, "kl", spread=0))


def test_bins_are_directions_of_their_multiplicity():
    v, count = power_law(1.0, 8), torch.arange(1.0, 9.0, dtype=torch.float64)
    binned = gaussian_curve(v, count)
    split = gaussian_curve(v.repeat_interleave(count.long()))
    for solver in SOLVERS:
        one = solver_aware_sigmas(binned, 9, solver, alpha=0.75, multiplicity=count, method="density")
        other = solver_aware_sigmas(split, 9, solver, alpha=0.75, method="density")
        torch.testing.assert_close(one, other, rtol=1e-8, atol=0)
    # a bin without error changes nothing, whatever the weights
    parts = torch.cat([binned.directions, torch.zeros(128, 1)], 1)
    more = ErrorCurve(LEVELS, binned.eps2, directions=parts)
    for alpha in (-0.5, 0.0, 1.0):
        one = solver_aware_sigmas(binned, 9, alpha=alpha, multiplicity=count, method="density")
        longer = torch.cat([count, torch.ones(1)])
        other = solver_aware_sigmas(more, 9, alpha=alpha, multiplicity=longer, method="density")
        torch.testing.assert_close(one, other, rtol=1e-10, atol=0)


# ---------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variances": [-1.0]}, "variances"),
        ({"variances": [0.0, 0.0]}, "variances"),
        ({"variances": [[1.0]]}, "variances"),
        ({"variances": [math.nan]}, "variances"),
        ({"n": 1}, "n = 1"),
        ({"n": 4.0}, "n = 4.0"),
        ({"solver": "rk45"}, "solver = 'rk45'"),
        ({"solver": None}, "solver = None"),
        ({"metric": "fid"}, "metric = 'fid'"),
        ({"alpha": math.nan}, "alpha"),
        ({"sigma_min": 0.0}, "sigma_min"),
        ({"sigma_min": 90.0}, "sigma_min"),
        ({"multiplicity": [1.0, 2.0]}, "multiplicity"),
        ({"multiplicity": [0.0]}, "multiplicity"),
    ],
)
def test_bad_input_of_the_optimum(options, message):
    with pytest.raises(ValueError, match=message):
        gaussian_optimal_sigmas(**({"variances": [1.0], "n": 4} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curve": LEVELS}, "ErrorCurve"),
        ({"n": 1}, "n = 1"),
        ({"solver": "dpm"}, "solver"),
        ({"metric": "l2"}, "metric"),
        ({"alpha": math.inf}, "alpha"),
        ({"method": "best"}, "method"),
        ({"sigma_max": 800.0, "method": "density"}, "800"),
        ({"spread": 0.3, "method": "density"}, 'only "recursion" spreads'),
        ({"spread": -0.3}, "spread = -0.3"),
        ({"spread": math.nan}, "spread"),
        ({"spread": True}, "spread = True"),
        ({"spread": 11.0}, "spread = 11.0; it must be from 0 to 10"),
        ({"spread": [0.0, 1.0]}, "pass one number from 0 to 10"),
        ({"free_start": "no"}, "free_start = 'no'; pass True or False"),
        ({"free_end": math.nan}, "free_end = nan; pass True or False"),
        ({"free_start": True, "method": "density"}, 'only "recursion" moves'),
        ({"method": "robust"}, "use one of measured, recursion, density"),
        ({"sigma_max": 800.0, "method": "recursion"}, "800"),
        ({"sigma_min": 1e-4, "method": "recursion"}, "outside the curve"),
        ({"multiplicity": [1.0]}, "multiplicity"),
        ({"multiplicity": [1.0, math.nan, 1.0]}, "multiplicity"),
        ({"curve": gaussian_curve(power_law(1.0, 3), split=False), "multiplicity": [1.0]}, "multiplicity"),
        ({"curve": ErrorCurve(LEVELS, 0 * LEVELS, dim=2)}, "eps2"),
        ({"curve": ErrorCurve(LEVELS, 0 * LEVELS, dim=1), "method": "density"}, "0 or 1"),
        (
            {"curve": gaussian_curve(power_law(1.0, 2), torch.tensor([2.0, 5.0])), "method": "density"},
            "7 dimensions",
        ),
    ],
)
def test_bad_input_of_the_curve(options, message):
    with pytest.raises(ValueError, match=message):
        solver_aware_sigmas(**({"curve": gaussian_curve(power_law(1.0, 3)), "n": 4} | options))


def test_bad_input_of_the_rest():
    with pytest.raises(ValueError, match=r"u runs from .* to 1\.5"):
        local_error(1.5, 1.0)
    with pytest.raises(ValueError, match="sigma = 0"):
        local_error(0.5, 0.0)
    with pytest.raises(ValueError, match="u"):
        local_error(math.nan, 1.0)
    with pytest.raises(ValueError, match="solver"):
        order("rk4")
    with pytest.raises(ValueError, match="sigmas"):
        gaussian_deviation([1.0], [1.0, 0.5])
    with pytest.raises(ValueError, match="size"):
        implied_spectrum(gaussian_curve(power_law(1.0, 3)), 1)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n", [2, 3, 4, pytest.param(8, marks=pytest.mark.verify)])
def test_a_free_end_is_never_worse_and_a_grid_like_any_other(solver, n):
    variances = torch.arange(1, 31, dtype=torch.float64) ** -1.0
    for metric in ("kl", "w2"):
        fixed = gaussian_optimal_sigmas(variances, n, solver, metric)
        free = gaussian_optimal_sigmas(variances, n, solver, metric, free_end=True)
        assert free.shape == fixed.shape and free[0] == fixed[0] and free[-1] == 0
        assert (free.diff() < 0).all() and free[-2] >= 0.002 * (1 - 1e-12)
        assert gaussian_deviation(variances, free, solver, metric) <= gaussian_deviation(
            variances, fixed, solver, metric
        )


def test_a_free_end_pays_at_few_steps_and_not_at_many():
    """Levels far below every variance are wasted at few steps; at many the range is used up either way."""
    variances = torch.arange(1, 31, dtype=torch.float64) ** -1.0

    def gain(n, solver):
        free, fixed = (
            gaussian_deviation(
                variances, gaussian_optimal_sigmas(variances, n, solver, "w2", free_end=free), solver, "w2"
            )
            for free in (True, False)
        )
        return (free / fixed).item()

    assert gain(4, "heun") < 0.1
    few, many = gain(4, "ddim"), gain(48, "ddim")
    assert few < 0.75 and 0.9 < many <= 1


def test_a_free_end_reaches_the_implied_spectrum():
    sigma = torch.logspace(-3, 2.5, 96, dtype=torch.float64)
    variances = torch.arange(1, 31, dtype=torch.float64) ** -1.0
    eps2 = (variances * sigma[:, None].square() / (variances + sigma[:, None].square())).sum(1)
    curve = ErrorCurve(sigma, eps2, dim=30)
    wanted = gaussian_optimal_sigmas(variances, 5, "heun", "w2", free_end=True)
    found = solver_aware_sigmas(curve, 5, "heun", "w2", 0.002, 80, method="recursion", free_end=True)
    assert found[-2] > 0.01
    least = gaussian_deviation(variances, wanted, "heun", "w2")
    assert gaussian_deviation(variances, found, "heun", "w2") < 1.05 * least


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("normal", [False, True])
def test_the_gradient_of_the_deviation_in_all_levels(solver, normal):
    data, logs = spectrum(power_law(1.0, 20)), edm_sigmas(5, 0.01, 8.0)[:-1].log()
    for goal in (KL, W2):
        found = placement._Deviation(data, find_solver(solver), goal, normal=normal)(logs.numpy())
        inner = logs.clone().requires_grad_()
        sigmas = torch.cat([inner.exp(), torch.zeros(1, dtype=torch.float64)])
        made = gaussian_law(data.variances, sigmas, solver, start="normal" if normal else "exact")
        terms = goal.of_ratios((made / data.variances).sqrt(), data.variances)[0]
        value = data.multiplicity @ terms
        assert found[0] == pytest.approx(value.item(), rel=1e-10)
        if (
            normal
        ):  # an exact start at another level is another problem: the search keeps the first level then
            torch.testing.assert_close(
                torch.as_tensor(found[1]), torch.autograd.grad(value, inner)[0], rtol=1e-8, atol=1e-12
            )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n", [2, 5])
def test_a_free_start_pays_and_stays_in_the_range(solver, n):
    variances = power_law(1.0, 30)
    curve = gaussian_curve(variances, split=False)
    free, fixed = (
        plan(n, curve, solver, W2, 0.002, 80, free_end=True, free_start=f).sigmas for f in (True, False)
    )
    assert free[0] <= 80 and fixed[0] == 80 and (free.diff() < 0).all() and free[-2] >= 0.002 * (1 - 1e-12)
    ours, theirs = (
        gaussian_w2(variances, gaussian_law(variances, s, solver, start="normal")) for s in (free, fixed)
    )
    assert ours < 0.9 * theirs


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_narrow_range_has_grids_too(solver):
    """With both ends free: one whose levels lie within a factor 1.3."""
    ends = {"sigma_min": 1.0, "sigma_max": 1.3, "free_start": True, "free_end": True}
    sigmas = plan(4, gaussian_curve(power_law(1.0, 5)), solver, **ends).sigmas
    assert (sigmas.diff() < 0).all() and sigmas[-2] >= 1.0 and sigmas[0] <= 1.3


def test_the_recursion_asks_no_multiplicity_of_bins():
    known = gaussian_curve(power_law(1.0, 3), (count := torch.tensor([2.0, 5.0, 1.0])))
    assert torch.equal(plan(4, known, "heun").sigmas, plan(4, known, "heun", multiplicity=count).sigmas)


def test_the_range_is_the_curve_s_own_unless_given():
    sigma = torch.logspace(math.log10(0.0292), math.log10(14.61), 64, dtype=torch.float64)
    curve = ErrorCurve(sigma, 3 / (1 + sigma**-2), dim=3)
    ends = sigma[-1].item(), sigma[0].item()
    for method in ("density", "recursion", None):
        chosen = plan(5, curve, "heun", method=method, free_end=False).sigmas
        assert (chosen[0].item(), chosen[-2].item()) == ends
        assert torch.equal(
            chosen, plan(5, curve, "heun", sigma_min=ends[1], sigma_max=ends[0], method=method).sigmas
        )
        # An end that is not named is free, in a search; a density ends at the curve's.
        free = plan(5, curve, "heun", method=method).sigmas
        assert free[-2] == ends[1] if method == "density" else free[-2] > 2 * ends[1]
        same = {"sigma_min": ends[1], "sigma_max": ends[0], "free_end": True, "method": method}
        assert torch.equal(free, plan(5, curve, "heun", **same).sigmas)
        assert torch.equal(free, solver_aware_sigmas(curve, 5, "heun", alpha=DEFAULT.alpha, method=method))
    chosen = plan(
        5, curve, "heun", sigma_max=10.0, free_end=False
    ).sigmas  # one end, and the curve's other one
    assert (chosen[0].item(), chosen[-2].item()) == (10.0, ends[1])
    chosen = plan(5, curve, "heun", sigma_min=0.1, free_end=True).sigmas
    assert chosen[0].item() == ends[0] and chosen[-2] >= 0.1
    with pytest.raises(ValueError, match=r"sigma_min = 20\.0 is not below sigma_max = 14\.6"):
        plan(5, curve, "heun", sigma_min=20.0)


def test_a_plan_is_shown_in_one_line_and_told_by_its_content():
    curve = ErrorCurve(LEVELS, 3 / (1 + LEVELS**-2), dim=3)
    chosen = plan(5, curve, "heun", W2, method="density")
    assert repr(chosen) == (
        "Plan(5 levels from 80 to 0.002, then 0; method density, solver heun, goal Weighted(alpha=1.0); "
        "explain() says why)"
    )
    assert str(chosen) == repr(chosen) and "goal KL;" in repr(plan(5, curve, "ddim", KL))
    assert content_sha256(chosen) != content_sha256(
        plan(5, curve, "heun", W2, sigma_min=0.00200001, method="density")
    )
