"""Entropy: dH = eps2 / sigma^3, closed forms, orders, invariance, upper bound, tails, error bars, input."""

import functools
import math
import warnings

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from entropic.curve import (
    ErrorCurve,
    eps2_from_edm_loss,
    eps2_from_epsilon_loss,
    eps2_from_v_loss,
    rate_from_eps2,
    rate_from_marginal_score,
    rate_from_scores,
    score_norms,
)
from entropic.mixtures import GaussianMixture
from entropic.noise import (
    change_of_time,
    edm,
    flow_matching,
    iddpm,
    ve_geometric,
    ve_sqrt,
    vp_cosine,
    vp_linear,
)
from entropic.times import Time, time_from_rate

F64 = torch.float64


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _levels(low, high, n):
    return torch.logspace(math.log10(low), math.log10(high), n, dtype=F64)


THREE = GaussianMixture.isotropic([-1.2, 0.1, 1.4], [0.3, 0.2, 0.4], [0.5, 0.2, 0.3])
POINTS = GaussianMixture.points([-1.5, -0.2, 0.4, 1.3], [0.1, 0.4, 0.3, 0.2])

# The identity (eq. 13)

ONE_DIMENSION = {
    "Gaussian": GaussianMixture.isotropic([0.3], [0.7]),
    "two equal Gaussians": GaussianMixture.isotropic([-1.0, 1.0], [0.25, 0.25]),
    "unequal weights and widths": GaussianMixture.isotropic(
        [-2.0, 0.0, 1.5], [0.1, 0.5, 1.2], [0.1, 0.3, 0.6]
    ),
    "two points": GaussianMixture.points([-1.0, 1.0]),
    "unequal points": POINTS,
    "fifteen points": GaussianMixture.points(
        torch.randn(15, generator=_generator(), dtype=F64)
    ).standardised(),
}


def _derivative(function, x, h):
    """Central difference of order 8 in x, the error h^8 f^(9) / 630 plus rounding of 2 eps f / h."""
    weights = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}
    return sum(w * (function(x + k * h) - function(x - k * h)) for k, w in weights.items()) / h


# Truncation: halving h = 0.02 divides the difference by 256 down to rounding, and leaves at most 3e-10
# (two points at sigma = 0.3, whose entropy falls as exp(-1 / (2 sigma^2)), the steepest here). Quadrature
# and rounding: 1e-12. Below sigma = 0.3 that entropy is under the quadrature's own reach.
@pytest.mark.parametrize("name", ONE_DIMENSION)
@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0, 4.0])
def test_entropy_rate_is_the_error_over_sigma_cubed(name, sigma):
    mixture = ONE_DIMENSION[name]
    sigma = torch.tensor(sigma, dtype=F64)
    numerical = _derivative(lambda x: mixture.conditional_entropy(x.exp()), sigma.log(), 0.02) / sigma
    assert numerical.item() == pytest.approx(rate_from_eps2(sigma, mixture.eps2(sigma)).item(), rel=1e-8)


def _grid_entropy_and_error(mixture, sigma):
    """H[x] and eps2 at noise sigma of a mixture in the plane, by the trapezoid rule on a square.

    The rule converges exponentially for densities that decay; nodes are a quarter of the narrowest standard
    deviation apart and reach 9 standard deviations.
    """
    variance = mixture.noise[:, None] + mixture.eigenvalues + sigma**2
    reach = mixture.means.abs().max() + 9 * variance.max().sqrt()
    n = int(8 * reach / variance.min().sqrt()) + 1
    axis = torch.linspace(-reach.item(), reach.item(), n, dtype=F64)
    x = torch.cartesian_prod(axis, axis)
    density = mixture.log_density(x, sigma)
    cell = (axis[1] - axis[0]) ** 2 * density.exp()
    return -(cell @ density), cell @ mixture.posterior_variance(x, sigma)


def test_entropy_rate_in_the_plane():
    covariances = torch.tensor([[[0.5, 0.3], [0.3, 0.4]], [[0.2, -0.1], [-0.1, 0.6]]], dtype=F64)
    mixture = GaussianMixture.full([[-1.0, 0.5], [0.8, -0.3]], covariances, [0.6, 0.4])
    for sigma in (0.4, 1.5):
        # H[x_0 | x] = H[x_0] + log-variance of the noise - H[x]: two dimensions of 1 / sigma less dH[x].
        change = _derivative(lambda s: _grid_entropy_and_error(mixture, s)[0], sigma, 0.02 * sigma)
        eps2 = _grid_entropy_and_error(mixture, sigma)[1]
        # Truncation as in one dimension, for smoother data: 1e-9; quadrature 1e-14.
        assert (2 / sigma - change).item() == pytest.approx(rate_from_eps2(sigma, eps2).item(), rel=1e-7)


def _high_dimensional():
    g = _generator(3)
    means = torch.randn(5, 16, generator=g, dtype=F64)
    factors = torch.randn(5, 16, 2, generator=g, dtype=F64)
    rotated = torch.linalg.qr(torch.randn(4, 8, 8, generator=g, dtype=F64)).Q
    spectrum = torch.rand(4, 1, 8, generator=g, dtype=F64)
    return {
        "low rank, D = 16": GaussianMixture.low_rank(means, factors, 0.05, [0.1, 0.3, 0.2, 0.2, 0.2]),
        "rotated, D = 8": GaussianMixture.full(means[:4, :8], (rotated * spectrum) @ rotated.mT),
        "points, D = 16": GaussianMixture.points(means, [0.1, 0.3, 0.2, 0.2, 0.2]),
    }


HIGH = _high_dimensional()


# Both sides from the same samples x = x_0 + sigma z: the derivative of each sample's surprise along its
# path has the mean dH / dsigma. Their mean difference must be 0 within 4 standard errors, which are
# themselves small.
@pytest.mark.parametrize("name", HIGH)
@pytest.mark.parametrize("sigma", [0.9, 2.0])
def test_entropy_rate_in_high_dimension(name, sigma):
    mixture, n = HIGH[name], 40_000
    g = _generator(4)
    x0, z = mixture.sample(n, g), torch.randn(n, mixture.dim, generator=g, dtype=F64)

    if "points" in name:

        def entropy(s):
            gamma = mixture.responsibilities(x0 + s * z, s)
            return -torch.special.xlogy(gamma, gamma).sum(1)
    else:

        def entropy(s):
            return mixture.dim * math.log(s) + mixture.log_density(x0 + s * z, s)

    numerical = _derivative(entropy, sigma, 0.01 * sigma)
    rate = rate_from_eps2(sigma, mixture.posterior_variance(x0 + sigma * z, sigma))
    difference = numerical - rate
    stderr = difference.std() / n**0.5
    assert stderr < 0.02 * rate.mean()
    assert difference.mean().abs() < 4 * stderr


# Closed forms


# Levels from 1/16 of the smallest distance d, below which less than exp(-(d / sigma)^2 / 8) = 1e-14 is
# unknown, to 100. The rule has order 4: 64 levels over four decades (h = 0.18) leave 1e-7, four times as
# many 256 times less.
@pytest.mark.parametrize("name", ["two points", "unequal points", "fifteen points"])
@pytest.mark.parametrize(("n", "tolerance"), [(64, 1e-6), (256, 1e-9)])
def test_integral_over_all_noise_is_the_entropy_of_the_weights(name, n, tolerance):
    mixture = ONE_DIMENSION[name]
    entropy = -torch.special.xlogy(mixture.weights, mixture.weights).sum().item()
    sigma = _levels(mixture.means[:, 0].sort().values.diff().min().item() / 16, 100.0, n)
    curve = ErrorCurve(sigma, mixture.eps2(sigma), dim=1, total_variance=mixture.covariance().item())
    total = curve.entropic().phi[-1].item()
    below, above = curve.tails("entropic", entropy=entropy)
    assert above[1] - above[0] < 1e-12
    assert total + above[0] == pytest.approx(entropy, abs=tolerance)
    # The missing lower end is what the entropy leaves once the rest is counted.
    assert below[0] == 0
    assert below[1] == pytest.approx(max(0, entropy - total - above[0]), abs=1e-15)
    half = ErrorCurve(sigma[n // 2 :], curve.eps2[n // 2 :], dim=1, total_variance=curve.total_variance)
    missing = curve.entropic().phi[n // 2].item()
    assert half.tails("entropic", entropy=entropy).below[1] == pytest.approx(missing, abs=1e-4)
    assert math.isinf(curve.tails("entropic").below[1])


# h = log(1e6) / 2047 = 0.0067. The rule's error at a knot is h^4 / 720 times the third derivative of
# c sech(log(sigma / c)) / 2, at most 2: 6e-12 D c; the Hermite interpolant adds h^4 / 384 of the same.
@pytest.mark.parametrize(("c", "dim"), [(0.7, 1), (1.0, 16), (3.0, 5)])
def test_rescaled_time_of_a_gaussian_is_an_arctangent(c, dim):
    def exact(sigma):
        return dim * c * (sigma / c).atan()

    sigma = _levels(1e-3 * c, 1e3 * c, 2048)
    curve = ErrorCurve(sigma, dim * (c * sigma).square() / (sigma.square() + c**2), dim=dim)
    time = curve.rescaled()
    between = _levels(2e-3 * c, 500 * c, 997)
    scale = dim * c * math.pi / 2
    assert (time.phi - (exact(sigma) - exact(sigma[0]))).abs().max() < 1e-10 * scale
    assert (time.phi_at(between) - (exact(between) - exact(sigma[0]))).abs().max() < 1e-10 * scale
    # Its derivative, of order 3 between the knots: 1e-8 of the largest rate, dim.
    rate = dim * c**2 / (between.square() + c**2)
    assert (time.rate_at(between) - rate).abs().max() < 1e-7 * dim
    entropic = curve.entropic()
    entropy = dim / 2 * (c**2 * sigma.square() / (sigma.square() + c**2)).log()
    assert (entropic.phi - (entropy - entropy[0])).abs().max() < 1e-10 * entropic.phi[-1]


def _order(kind, rule):
    sizes = [64, 96, 128, 192, 256, 384, 512]
    errors = []
    for n in sizes:
        sigma = _levels(0.01, 20.0, n)
        eps2 = sigma.square() / (1 + sigma.square())
        antiderivative = sigma.atan() if kind == "rescaled" else eps2.log() / 2
        phi = ErrorCurve(sigma, eps2).time(kind, rule).phi
        errors.append((phi - (antiderivative - antiderivative[0])).abs().max().log())
    x = torch.tensor(sizes, dtype=F64).log()
    x, y = x - x.mean(), torch.stack(errors)
    return -(x @ y / (x @ x)).item()


# Regression over a factor of 8 in n; the next order contributes h^2 or h of it, a few per cent.
@pytest.mark.parametrize("kind", ["entropic", "rescaled"])
def test_orders_of_the_two_rules(kind):
    assert _order(kind, "spline") == pytest.approx(4, abs=0.2)
    assert _order(kind, "left") == pytest.approx(1, abs=0.1)


def test_left_rule_is_the_sum_of_algorithm_2():
    sigma = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=F64)
    eps2 = torch.tensor([0.25, 0.5, 2.0, 3.0], dtype=F64)
    curve = ErrorCurve(sigma, eps2)
    # eps2 / sigma^2 at the left ends is 1, 0.5, 0.5; eps2 / sigma^3 is 2, 0.5, 0.25. Exact in binary.
    assert curve.rescaled("left").phi.tolist() == [0, 0.5, 1.0, 2.0]
    assert curve.entropic("left").phi.tolist() == [0, 1.0, 1.5, 2.0]
    # Linear between levels, as Algorithm 1 interpolates.
    time = curve.rescaled("left")
    assert time.phi_at([0.75, 1.5, 3.0]).tolist() == pytest.approx([0.25, 0.75, 1.5], abs=1e-15)
    assert time.sigma_at([0.25, 0.75, 1.5]).tolist() == pytest.approx([0.75, 1.5, 3.0], abs=1e-15)


# Routes to the rate


def _processes():
    warped = change_of_time(flow_matching(), lambda t: t / (2 - t), lambda u: 2 * u / (1 + u))
    warped.name = "warped flow"
    families = {
        "s = 1": [edm(), ve_sqrt(), ve_geometric()],
        "VP": [vp_linear(), vp_cosine(), iddpm()],
        "flow": [flow_matching(), warped],
    }
    return [(family, p) for family, members in families.items() for p in members]


PROCESSES = _processes()


def _own_rate(process):
    """dH/dt of THREE from eq. 10, both norms by quadrature over x_t, without `entropic.mixtures`.

    x_t has components N(s mean, s^2 (std^2 + sigma^2)). The trapezoid rule with 400 nodes to 10 standard
    deviations has steps below half the narrowest, and so an error below 1e-15.
    """
    weight, mean, std = THREE.weights, THREE.means[:, 0], THREE.noise.sqrt()

    def rate(t):
        values = []
        for part in t.split(1024):
            s, sigma = process.s(part)[:, None], process.sigma(part)[:, None]
            centre, width = s * mean, s * (std**2 + sigma**2).sqrt()
            low, high = (centre - 10 * width).amin(1), (centre + 10 * width).amax(1)
            share = torch.linspace(0, 1, 400, dtype=F64)
            x = low[:, None] + (high - low)[:, None] * share
            z = (x[:, :, None] - centre[:, None, :]) / width[:, None, :]
            parts = weight / width[:, None, :] / math.sqrt(2 * math.pi) * (-z.square() / 2).exp()
            density = parts.sum(2)
            slope = -(parts * z / width[:, None, :]).sum(2)
            norm = (slope.square() / density.clamp_min(1e-300)).sum(1) * (high - low) / 399
            values.append(rate_from_scores(process, part, 1 / (s * sigma).square()[:, 0], norm))
        return torch.cat(values)

    return rate


# The two norms differ by the share eps2 / sigma^2 < 1 of the first. At sigma = 40 that share is 8e-4, so
# that a rounding of 1e-15 becomes 1e-12.
@pytest.mark.parametrize(("family", "process"), PROCESSES, ids=lambda p: getattr(p, "name", ""))
def test_rates_from_scores_and_from_errors_agree(family, process):
    sigma = _levels(0.02, 40.0, 13)
    t = process.t(sigma)
    expected = rate_from_eps2(sigma, THREE.eps2(sigma)) * process.sigma_rate(t)
    conditional, marginal = score_norms(process, THREE, t)
    for rate in (
        rate_from_scores(process, t, conditional, marginal),
        rate_from_marginal_score(process, t, marginal, dim=1),
        _own_rate(process)(t),
    ):
        torch.testing.assert_close(rate, expected, rtol=1e-10, atol=0)


@pytest.fixture(scope="module")
def own_times():
    """Entropic and rescaled times of THREE, each process integrated in its own t on knots of its own."""
    times = {}
    for i, (_, process) in enumerate(PROCESSES):
        sigma = _levels(0.02, 60.0, 500 + 23 * i)
        rate = _own_rate(process)
        times[process.name] = {
            k: time_from_rate(process, rate, sigma, k, order=4) for k in ("entropic", "rescaled")
        }
    return times


# Between knots 0.016 apart in log sigma the Hermite interpolant is good to h^4 / 384 = 2e-10 of phi's
# scale, and Gauss-Legendre panels of that width to 1e-15. So the placed levels agree to 1e-8, though no
# two processes share knots or times.
@pytest.mark.parametrize("kind", ["entropic", "rescaled"])
def test_every_process_places_the_same_levels(own_times, kind):
    placed = {name: times[kind].place(33, 0.03, 50.0) for name, times in own_times.items()}
    sigma = _levels(0.02, 60.0, 600)
    curve = ErrorCurve(sigma, THREE.eps2(sigma))
    reference = curve.time(kind).place(33, 0.03, 50.0)
    assert len(placed) >= 7
    for levels in placed.values():
        torch.testing.assert_close(levels, placed["EDM"], rtol=1e-8, atol=0)
        torch.testing.assert_close(levels, reference, rtol=1e-8, atol=0)
    standard = {p.name: p.sigma(torch.linspace(*p.t([0.03, 50.0]).tolist(), 33)) for _, p in PROCESSES}
    assert (standard["VP linear"] / standard["flow matching"]).log().abs().max() > 0.5


# Theorem 5.2: processes that differ by a change of time (the same s as a function of sigma) become one in
# entropic time. Accuracy as of the rates, 1e-10; the theorem's content is that 1e-6 holds at all.
@pytest.mark.parametrize("rescaled", [False, True])
def test_drift_and_diffusion_in_entropic_time_are_those_of_the_family(rescaled):
    sigma = _levels(0.03, 50.0, 21)
    by_family = {}
    for family, process in PROCESSES:
        t = process.t(sigma)
        rate = _own_rate(process)(t) * (sigma if rescaled else 1)
        by_family.setdefault(family, []).append(process.coefficients_in_time(t, rate))
    for members in by_family.values():
        for drift, diffusion in members[1:]:
            torch.testing.assert_close(drift, members[0][0], rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(diffusion, members[0][1], rtol=1e-6, atol=0)
    first = [members[0][1] for members in by_family.values()]
    for a in range(3):
        for b in range(a):
            assert (first[a] / first[b]).log().abs().max() > 0.1


# Upper bound and losses


def _wrong(x, sigma):
    return THREE.denoiser(x, sigma) + 0.2 * torch.sin(3 * x) + 0.1


def _mean_over_data_and_noise(function, sigma):
    """E function(x_0, x_0 + sigma z) over THREE: the trapezoid rule over both normal variables."""
    node = torch.linspace(-9, 9, 145, dtype=F64)
    mass = (-node.square() / 2).exp() * 0.125 / math.sqrt(2 * math.pi)
    a, z = (g.reshape(-1, 1) for g in torch.meshgrid(node, node, indexing="ij"))
    weight = (mass[:, None] * mass).reshape(-1)
    total = 0.0
    for share, mean, variance in zip(THREE.weights, THREE.means, THREE.noise, strict=True):
        x0 = mean + variance.sqrt() * a
        total = total + share * (weight @ function(x0, x0 + sigma * z)[:, 0])
    return total


# eqs. 15-17. Both sides by quadrature that converges exponentially; the excess is the difference of
# numbers 20 times as large, hence 1e-10 from roundings of 1e-12.
@pytest.mark.parametrize(("family", "process"), PROCESSES, ids=lambda p: getattr(p, "name", ""))
def test_a_wrong_denoiser_overestimates_the_rate_by_its_score_error(family, process):
    for sigma in (0.3, 1.0, 3.0):
        t = process.t(sigma)
        s, level = process.s(t), process.sigma(t)
        loss = _mean_over_data_and_noise(lambda x0, x, v=level: (x0 - _wrong(x, v)).square(), level)
        x, weight = THREE.quadrature(level)
        # In the frame of x_t = s x: score = (D(x) - x) / (s sigma^2), eq. in appendix G.
        score_error = (_wrong(x, level) - x) / (s * level**2) - THREE.score(x, level) / s
        delta2 = weight @ (THREE.log_density(x, level).exp() * score_error[:, 0].square())
        excess = process.sigma_rate(t) * (
            rate_from_eps2(level, loss) - rate_from_eps2(level, THREE.eps2(level))
        )
        bound = process.diffusion(t).square() / 2 * delta2
        assert bound > 0
        assert excess.item() == pytest.approx(bound.item(), rel=1e-9)


def test_second_order_tweedie_in_the_frame_of_a_process():
    mixture, process = HIGH["rotated, D = 8"], vp_cosine()
    t = process.t(0.8)
    s, sigma = process.s(t), process.sigma(t)
    x0 = mixture.sample(1, _generator(5))
    x_t = s * (x0 + sigma * torch.randn(1, 8, generator=_generator(6), dtype=F64))

    def log_density(x):
        return mixture.log_density(x / s, sigma)[0] - 8 * s.log()

    score = torch.autograd.functional.jacobian(log_density, x_t)
    hessian = torch.autograd.functional.hessian(log_density, x_t)[0, :, 0]
    covariance = sigma**2 * (torch.eye(8, dtype=F64) + (s * sigma) ** 2 * hessian)
    # Some hundred roundings of numbers of order one.
    torch.testing.assert_close(
        mixture.posterior_covariance(x_t / s, sigma)[0], covariance, rtol=0, atol=1e-12
    )
    denoised = (x_t + (s * sigma) ** 2 * score) / s
    torch.testing.assert_close(mixture.denoiser(x_t / s, sigma), denoised, rtol=0, atol=1e-12)


# Each network's own loss, of an arbitrary prediction, against the error of the x_0 that it stands for:
# algebra, so equal to some roundings for any samples.
@pytest.mark.parametrize("sigma", [0.05, 0.7, 12.0])
def test_every_training_loss_gives_the_same_error(sigma):
    dim, sigma_data = 16, 0.6
    g = _generator(7)
    x0 = HIGH["low rank, D = 16"].sample(200, g)
    eps = torch.randn(200, dim, generator=g, dtype=F64)
    process = vp_linear()
    t = process.t(sigma)
    alpha = process.s(t)
    beta = alpha * sigma
    x_t = alpha * x0 + beta * eps

    def mean_square(x):
        return x.square().sum(1).mean()

    network = torch.tanh(x_t.roll(1, 1)) + 0.3 * x_t
    # v-prediction: the rotation (alpha, beta) inverts itself.
    x0_hat = alpha * x_t - beta * network
    loss = mean_square(alpha * eps - beta * x0 - network)
    torch.testing.assert_close(eps2_from_v_loss(loss, sigma), mean_square(x0 - x0_hat), rtol=1e-12, atol=0)
    # epsilon-prediction
    x0_hat = (x_t - beta * network) / alpha
    loss = mean_square(eps - network)
    torch.testing.assert_close(
        eps2_from_epsilon_loss(loss, sigma), mean_square(x0 - x0_hat), rtol=1e-12, atol=0
    )
    # EDM: D = c_skip x + c_out F at x = x_0 + sigma eps; the loss is E||F - target||^2, lambda = 1 /
    # c_out^2.
    total = sigma**2 + sigma_data**2
    c_skip, c_out = sigma_data**2 / total, sigma * sigma_data / total**0.5
    x = x0 + sigma * eps
    loss = mean_square(network - (x0 - c_skip * x) / c_out)
    eps2 = mean_square(x0 - c_skip * x - c_out * network)
    torch.testing.assert_close(eps2_from_edm_loss(loss, sigma, sigma_data), eps2, rtol=1e-12, atol=0)
    assert eps2_from_edm_loss(loss, sigma) == eps2_from_edm_loss(loss, sigma, 0.5) != eps2


def test_routes_of_the_exact_denoiser_agree_on_the_rate():
    sigma = torch.tensor([0.2, 1.0, 5.0], dtype=F64)
    expected = rate_from_eps2(sigma, THREE.eps2(sigma))
    eps, edm_loss, v = [], [], []
    for s in sigma:
        alpha = (1 + s**2).rsqrt()

        def predicted_noise(x, s=s):
            return (x - THREE.denoiser(x, s)) / s

        def noise_error(x0, x, s=s):
            return ((x - x0) / s - predicted_noise(x, s)).square()

        def v_error(x0, x, s=s, alpha=alpha):
            true = alpha * (x - x0) / s - alpha * s * x0
            return (true - alpha * predicted_noise(x, s) + alpha * s * THREE.denoiser(x, s)).square()

        weight = (s**2 + 0.25) / (s * 0.5) ** 2
        eps.append(_mean_over_data_and_noise(noise_error, s))
        v.append(_mean_over_data_and_noise(v_error, s))
        edm_loss.append(
            weight * _mean_over_data_and_noise(lambda x0, x, s=s: (x0 - THREE.denoiser(x, s)).square(), s)
        )
    for eps2 in (
        eps2_from_epsilon_loss(torch.stack(eps), sigma),
        eps2_from_v_loss(torch.stack(v), sigma),
        eps2_from_edm_loss(torch.stack(edm_loss), sigma),
    ):
        torch.testing.assert_close(rate_from_eps2(sigma, eps2), expected, rtol=1e-10, atol=0)


# The missing ends

spectra = st.lists(st.floats(0.01, 10.0), min_size=1, max_size=6)


@given(spectra, st.floats(0.01, 0.5), st.floats(2.0, 50.0))
@settings(max_examples=60, deadline=None)
def test_tails_of_gaussian_data_hold_the_exact_values(spectrum, low, high):
    c2 = torch.tensor(spectrum, dtype=F64)
    sigma = _levels(low, high, 8)
    square = sigma[:, None].square()
    curve = ErrorCurve(
        sigma, (c2 * square / (c2 + square)).sum(1), dim=len(spectrum), total_variance=c2.sum().item()
    )
    c = c2.sqrt()
    below = (c * (low / c).atan()).sum().item()
    above = (c * (c / high).atan()).sum().item()
    entropy = (c2 / high**2).log1p().sum().item() / 2
    slack = 1 + 1e-9  # rounding of D / m_0 - snr_0, up to 1e-16 (c / low)^2 1e3
    rescaled, entropic = curve.tails("rescaled"), curve.tails("entropic")
    assert 0 == rescaled.below[0] <= below <= rescaled.below[1] * slack
    assert rescaled.above[0] <= above * slack and above <= rescaled.above[1] * slack
    assert entropic.above[0] <= entropy * slack and entropy <= entropic.above[1] * slack
    assert math.isinf(entropic.below[1])
    if len(set(spectrum)) == 1:  # N(., c^2 I): the bounds meet
        assert rescaled.below[1] == pytest.approx(below, rel=1e-9)
        assert rescaled.above == pytest.approx((above, above), rel=1e-9)
        assert entropic.above == pytest.approx((entropy, entropy), rel=1e-9)
    unknown = ErrorCurve(sigma, curve.eps2)
    loose = unknown.tails("rescaled")
    assert math.isinf(loose.below[1]) and math.isinf(loose.above[1])
    assert loose.above[0] == pytest.approx(curve.eps2[-1].item() / high, rel=1e-12)
    assert loose.above[0] <= rescaled.above[0] * slack


@pytest.mark.parametrize("mixture", [THREE, POINTS], ids=["Gaussians", "points"])
@pytest.mark.parametrize(("low", "high"), [(0.1, 5.0), (0.4, 20.0)])
def test_tails_of_mixtures_hold_the_exact_values(mixture, low, high):
    variance = mixture.covariance().item()
    sigma = _levels(1e-3, 1e4, 400)
    wide = ErrorCurve(sigma, mixture.eps2(sigma), dim=1, total_variance=variance)
    sigma = _levels(low, high, 32)
    curve = ErrorCurve(sigma, mixture.eps2(sigma), dim=1, total_variance=variance)
    for kind in ("rescaled", "entropic"):
        time, ends, bounds = wide.time(kind), wide.tails(kind), curve.tails(kind)
        above = time.phi[-1] - time.phi_at(high) + ends.above[0]
        # The wide curve is integrated to 1e-9, which counts where the bounds are as close as that.
        assert bounds.above[0] - 1e-9 <= above <= bounds.above[1] + 1e-9
        # Useful, not only true: a relative width of order (c / high)^2.
        assert bounds.above[1] - bounds.above[0] <= 2 * variance / high**2 * above
    # The part between 1e-3 and low, of a bound that never exceeds D low.
    assert 0 <= wide.rescaled().phi_at(low) <= curve.tails("rescaled").below[1] <= low


# Error bars


@functools.cache
def _noisy():
    sigma = _levels(0.02, 50.0, 24)
    eps2 = THREE.eps2(sigma)
    return sigma, eps2, 0.002 * eps2 * (1 + torch.rand(24, generator=_generator(8), dtype=F64))


# phi is linear in eps2 (the noise here is too small to change a branch): its response to each level's
# error, found by moving one level at a time, must combine to the standard errors. Exact but for roundings
# of 1e-16 / 1e-3. Placed levels respond with curvature; central differences leave the relative square of
# the step, 1e-6, times some tens.
@pytest.mark.parametrize(
    ("kind", "rule", "rough"),
    [
        ("rescaled", "spline", False),
        ("entropic", "spline", False),
        ("rescaled", "left", False),
        ("entropic", "spline", True),
    ],
)
def test_standard_errors_combine_the_responses_to_each_level(kind, rule, rough):
    sigma, eps2, stderr = _noisy()
    if rough:  # a spline so low beside the spike that Fritsch and Carlson's limit sets the slopes there
        sigma = _levels(0.02, 50.0, 5)
        eps2 = torch.tensor([1.0, 1.0, 4.0, 1.0, 1.0], dtype=F64) * sigma**2
        stderr = 1e-3 * eps2
        assert (ErrorCurve(sigma, eps2).time(kind).rate_at(sigma) < 0.7 * eps2 / sigma**3).any()
    between = _levels(0.03, 40.0, 7)

    def measured(eps2):
        time = ErrorCurve(sigma, eps2).time(kind, rule)
        return time.phi, time.phi_at(between), time.place(9, 0.03, 40.0)

    responses = []
    for step in torch.diag(stderr):
        pairs = zip(measured(eps2 + step), measured(eps2 - step), strict=True)
        responses.append([(up - down) / 2 for up, down in pairs])
    phi, inner, placed = (torch.stack(parts).square().sum(0).sqrt() for parts in zip(*responses, strict=True))
    time = ErrorCurve(sigma, eps2, stderr).time(kind, rule)
    assert time.stderr[0] == 0
    torch.testing.assert_close(phi, time.stderr, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(inner, time.stderr_at(between), rtol=1e-10, atol=1e-14)
    expected = time.place_stderr(9, 0.03, 40.0)
    assert expected[0] == expected[-1] == 0 and (expected[1:-1] > 0).all()
    torch.testing.assert_close(placed, expected, rtol=1e-4, atol=1e-14)


def test_common_samples_bound_the_error_of_any_correlation():
    sigma, eps2, stderr = _noisy()
    bound = ErrorCurve(sigma, eps2, stderr, common_samples=True).rescaled()
    # Errors that move together: phi is linear, so its change is exactly that of a curve moved by one
    # error.
    change = ErrorCurve(sigma, eps2 + stderr).rescaled().phi - bound.phi
    assert (change.abs() <= bound.stderr * (1 + 1e-12)).all()
    # At the far end every weight is positive but those of the spline's ends, which are small: nearly
    # attained.
    assert change[-1] >= 0.97 * bound.stderr[-1]
    assert (ErrorCurve(sigma, eps2, stderr).rescaled().stderr <= bound.stderr).all()


# A covariance as any estimate of it has: of 40 draws of a curve, correlated from level to level.
def _correlated(n=24):
    sigma, eps2, stderr = _noisy()
    draws = stderr * torch.randn(40, n, generator=_generator(21), dtype=F64).cumsum(1) / n**0.5
    return sigma, eps2, torch.cov(draws.T), draws - draws.mean(0)


# The standard error of a linear functional w is the spread of w over the draws themselves, exactly: phi moves with
# each draw by a difference of two curves. Levels to first order: the relative square of a step of 2e-3, times some
# tens.
@pytest.mark.parametrize("rule", ["spline", "left"])
def test_a_covariance_propagates_exactly(rule):
    sigma, eps2, covariance, draws = _correlated()
    curve = ErrorCurve(sigma, eps2, covariance=covariance)
    torch.testing.assert_close(curve.stderr, covariance.diagonal().sqrt(), rtol=0, atol=0)
    time, between = curve.rescaled(rule), _levels(0.03, 40.0, 7)

    def measured(eps2):
        moved = ErrorCurve(sigma, eps2).rescaled(rule)
        return torch.cat([moved.phi[1:], moved.phi_at(between)]), moved.place(9, 0.03, 40.0)

    pairs = [(measured(eps2 + d), measured(eps2 - d)) for d in draws]
    linear, placed = (torch.stack([(up[i] - down[i]) / 2 for up, down in pairs]) for i in (0, 1))

    def spread(moves):
        return (moves.square().sum(0) / 39).sqrt()

    stated = torch.cat([time.stderr[1:], time.stderr_at(between)])
    torch.testing.assert_close(spread(linear), stated, rtol=1e-9, atol=0)
    torch.testing.assert_close(spread(placed), time.place_stderr(9, 0.03, 40.0), rtol=1e-4, atol=1e-14)
    # Neither of the two that stand in where it is not known.
    diagonal = ErrorCurve(sigma, eps2, curve.stderr).rescaled(rule).stderr
    bound = ErrorCurve(sigma, eps2, curve.stderr, common_samples=True).rescaled(rule).stderr
    assert (time.stderr[6:] > 1.2 * diagonal[6:]).all() and (time.stderr[6:] < 0.99 * bound[6:]).all()


def test_diagonal_and_perfect_correlation_are_the_two_known_cases():
    sigma, eps2, stderr = _noisy()
    for covariance, common in ((torch.diag(stderr.square()), False), (stderr[:, None] * stderr, True)):
        found = ErrorCurve(sigma, eps2, covariance=covariance).rescaled("left").stderr
        expected = ErrorCurve(sigma, eps2, stderr, common_samples=common).rescaled("left").stderr
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


# Spectral time (section 5.4)


def _spectrum(n=512):
    """Gaussian data with four variances of several directions each: the error by variance, exactly."""
    c = torch.tensor([3.0, 1.0, 0.2, 0.05], dtype=F64)
    count = torch.tensor([1.0, 4.0, 20.0, 50.0], dtype=F64)
    sigma = _levels(1e-3, 1e3, n)[:, None]
    parts = count * (c * sigma).square() / (c.square() + sigma.square())
    return c, count, ErrorCurve(sigma[:, 0], parts.sum(1), directions=parts)


# Each direction's rescaled entropy is c arctan(sigma / c), normalised by its end; h = 0.027 leaves h^4 / 720 times a
# third derivative of at most 2 of each (see above), from 1e-9 up.
def test_spectral_time_of_gaussian_data_is_a_sum_of_arctangents():
    c, _, curve = _spectrum()
    amplitudes = torch.tensor([5.0, 2.0, 0.0, 1.0], dtype=F64)
    time = curve.spectral(amplitudes)
    low, high = curve.sigma[0], curve.sigma[-1]

    def exact(sigma):
        rise = (sigma[:, None] / c).atan() - (low / c).atan()
        return (rise / ((high / c).atan() - (low / c).atan())) @ amplitudes

    assert time.phi[-1].item() == pytest.approx(8.0, rel=1e-14) and time.stderr is None
    torch.testing.assert_close(time.phi, exact(curve.sigma), rtol=0, atol=1e-8)
    between = _levels(2e-3, 500.0, 401)
    torch.testing.assert_close(time.phi_at(between), exact(between), rtol=0, atol=1e-7)
    # Of order 1 the left sum: h / 2 of the largest rate 1/2 of each amplitude's share.
    assert (curve.spectral(amplitudes, "left").phi - exact(curve.sigma)).abs().max() < 8 * 0.027 / 2


def test_one_direction_is_the_rescaled_time_and_entropies_as_weights_give_it_back():
    _, _, many = _spectrum(64)
    sigma, total = many.sigma, many.eps2
    for rule in ("spline", "left"):
        rescaled = many.rescaled(rule)
        one = ErrorCurve(sigma, total, directions=total[:, None]).spectral([2.0], rule)
        torch.testing.assert_close(one.phi / 2, rescaled.phi / rescaled.phi[-1], rtol=1e-14, atol=0)
        torch.testing.assert_close(one.place(17), rescaled.place(17), rtol=1e-10, atol=0)
        ends = [ErrorCurve(sigma, part).rescaled(rule).phi[-1].item() for part in many.directions.T]
        again = many.spectral(ends, rule)
        torch.testing.assert_close(again.phi, rescaled.phi, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(again.place(17), rescaled.place(17), rtol=1e-10, atol=0)


def test_a_direction_without_error_adds_no_time():
    _, _, curve = _spectrum(64)
    parts = torch.cat([curve.directions, torch.zeros(64, 1, dtype=F64)], 1)
    padded = ErrorCurve(curve.sigma, curve.eps2, directions=parts)
    expected = curve.spectral([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(
        padded.spectral([1.0, 2.0, 3.0, 4.0, 9.0]).phi, expected.phi, rtol=1e-15, atol=0
    )
    with pytest.raises(ValueError, match="all 0 where there is an error"):
        padded.spectral([0.0, 0.0, 0.0, 0.0, 9.0])


# Monotone, invertible, scale-free

errors = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 10.0)), min_size=6, max_size=12)


@given(errors, st.sampled_from(["entropic", "rescaled"]), st.sampled_from(["spline", "left"]))
@settings(max_examples=50, deadline=None)
def test_time_is_monotone_and_inverts_itself_even_on_rough_curves(eps2, kind, rule):
    assume(max(eps2[:-1]) > 0)
    n = len(eps2)
    time = ErrorCurve(_levels(0.05, 20.0, n), eps2, [0.1] * n).time(kind, rule)
    assert (time.phi.diff() >= 0).all() and torch.isfinite(time.stderr).all()
    sigma = _levels(0.05, 20.0, 301)
    phi = time.phi_at(sigma)
    scale = phi[-1]
    # A cubic evaluated in floating point may fall by some roundings where it is flat.
    assert (phi.diff() >= -8e-16 * scale).all()
    assert (time.rate_at(sigma) >= -1e-12 * scale / sigma).all()
    # phi(sigma(phi)) = phi to roundings of phi; sigma itself where phi is steep, and off the values of its flat
    # parts, whose edges rounding cannot tell from their upper ends.
    assert ((time.phi_at(time.sigma_at(phi)) - phi).abs() <= 1e-14 * scale).all()
    back = time.sigma_at(phi)
    flat = time.phi[:-1][time.phi.diff() <= 1e-6 * scale]
    steep = time.rate_at(sigma) * sigma > 1e-3 * scale
    steep &= ((phi[:, None] - flat).abs() > 1e-5 * scale).all(1)
    assert ((back / sigma - 1).abs()[steep] <= 1e-11).all()
    levels = time.place(9)
    assert levels[0] == time.sigma[-1] and levels[-1] == time.sigma[0]
    assert (levels.diff() <= 0).all()
    fractions = time.phi_at(levels[1:-1]) / scale
    expected = torch.linspace(1, 0, 9, dtype=F64)[1:-1]
    torch.testing.assert_close(fractions, expected, rtol=0, atol=1e-13)


def test_inverse_is_exact_to_rounding_on_a_smooth_curve():
    sigma = _levels(0.002, 80.0, 64)
    query = _levels(0.002, 80.0, 1001)
    for kind in ("entropic", "rescaled"):
        time = ErrorCurve(sigma, THREE.eps2(sigma)).time(kind)
        # phi carries a rounding eps phi, which the slope turns into eps phi / (dphi / dlog sigma).
        condition = 1 + time.phi_at(query) / (time.rate_at(query) * query)
        error = (time.sigma_at(time.phi_at(query)) / query - 1).abs()
        assert (error <= 1e-15 * condition).all()
        torch.testing.assert_close(time.sigma_at(time.phi), sigma, rtol=1e-15, atol=0)


def test_flat_ends_and_plateaus_keep_placement_well_defined():
    # Two scales of points: eps2 vanishes below the small one, and phi is flat between the two.
    mixture = GaussianMixture.points([-1.001, -0.999, 0.999, 1.001])
    sigma = _levels(1e-6, 100.0, 512)
    time = ErrorCurve(sigma, mixture.eps2(sigma)).entropic()
    assert (time.phi[:90] == 0).all()
    levels = time.place(4, 1e-6, 100.0)
    assert (levels.diff() < 0).all()
    assert torch.isfinite(levels).all()
    # One bit at each scale, so that 2/3 and 1/3 of the way lie within the coarse and the fine split.
    assert 0.1 < levels[1] < 1.0 and 1e-4 < levels[2] < 3e-3
    # The inverse of a flat part is its upper end.
    assert Time([1.0, 2.0, 4.0, 8.0], [0.0, 1.0, 1.0, 2.0]).sigma_at([0.5, 1.0, 1.5]).tolist() == [1.5, 4, 6]
    with pytest.raises(ValueError, match="no information is lost"):
        time.place(4, 1e-6, 2e-6)


@given(st.floats(1e-3, 1e3))
@settings(max_examples=15, deadline=None)
def test_times_scale_with_the_data(k):
    sigma, eps2, _ = _noisy()
    small, large = ErrorCurve(sigma, eps2), ErrorCurve(k * sigma, k**2 * eps2)
    close = {"rtol": 1e-10, "atol": 0}  # rounding of log(k sigma), times the number of levels
    torch.testing.assert_close(large.entropic().phi, small.entropic().phi, **close)
    torch.testing.assert_close(large.rescaled().phi, k * small.rescaled().phi, **close)
    for kind in ("entropic", "rescaled"):
        torch.testing.assert_close(large.time(kind).place(9), k * small.time(kind).place(9), **close)


def test_rule_is_exact_for_cubic_integrands_on_uneven_levels():
    x = torch.tensor([-1.0, -0.7, 0.1, 0.4, 1.3, 1.5], dtype=F64)
    integrand = 3 + x - 0.5 * x**2 + 0.3 * x**3
    antiderivative = 3 * x + x**2 / 2 - x**3 / 6 + 0.075 * x**4
    for kind, power in (("rescaled", 1), ("entropic", 2)):
        phi = ErrorCurve(x.exp(), integrand * (power * x).exp()).time(kind).phi
        torch.testing.assert_close(phi, antiderivative - antiderivative[0], rtol=1e-13, atol=1e-14)


def test_rough_increments_fall_back_to_the_trapezoid():
    # A spline through four points is one polynomial, here A + B (x - 3/2)^2, with a negative middle
    # integral.
    x = torch.arange(4.0, dtype=F64)
    integrand = torch.tensor([8.0, 0.001, 0.001, 8.0], dtype=F64)
    b = 7.999 / 2
    a = 0.001 - b / 4
    assert a + b / 12 < 0
    outer = a + b * 13 / 12
    phi = ErrorCurve(x.exp(), integrand * x.exp()).rescaled().phi
    expected = torch.tensor([0.0, outer, outer + 0.001, 2 * outer + 0.001], dtype=F64)
    torch.testing.assert_close(phi, expected, rtol=1e-13, atol=0)
    # Without error at both ends nothing is added, whatever a spline would do between them.
    phi = ErrorCurve(_levels(0.1, 10.0, 7), [0.0, 0.0, 5.0, 0.0, 0.0, 1.0, 1.0]).rescaled().phi
    assert phi[1] == 0 and phi[4] == phi[3]


# Bad input

LEVELS = [0.1, 0.2, 0.4, 0.8]
ONES = [1.0, 1.0, 1.0, 1.0]


def _curve(**changes):
    return ErrorCurve(**{"sigma": LEVELS, "eps2": ONES, **changes})


def _halves():
    return _curve(directions=[[0.5, 0.5]] * 4)


BAD = {
    "eps2[1] = nan": lambda: _curve(eps2=[1.0, math.nan, 1.0, 1.0]),
    "eps2 = -1.0": lambda: _curve(eps2=[1.0, -1.0, 1.0, 1.0]),
    "eps2 has shape (3,)": lambda: _curve(eps2=[1.0, 1.0, 1.0]),
    "eps2 = 'x' is not numeric": lambda: _curve(eps2="x"),
    "stderr has shape (2,)": lambda: _curve(stderr=[1.0, 1.0]),
    "stderr = -1.0": lambda: _curve(stderr=[1.0, -1.0, 1.0, 1.0]),
    "stderr[0] = inf": lambda: _curve(stderr=[math.inf, 1.0, 1.0, 1.0]),
    "sigma[1:3] = [0.4, 0.2] does not ascend": lambda: _curve(sigma=[0.1, 0.4, 0.2, 0.8]),
    "sigma[0:2] = [0.1, 0.1] does not ascend": lambda: _curve(sigma=[0.1, 0.1, 0.2, 0.8]),
    "sigma = 0.0": lambda: _curve(sigma=[0.0, 0.1, 0.2, 0.8]),
    "sigma has shape (2, 2)": lambda: _curve(sigma=[[0.1, 0.2], [0.4, 0.8]]),
    "sigma has shape (3,)": lambda: _curve(sigma=[0.1, 0.2, 0.4], eps2=[1.0, 1.0, 1.0]),
    "covariance has shape (2, 2); 4 levels need (4, 4)": lambda: _curve(covariance=torch.eye(2)),
    "covariance[0, 0] = nan": lambda: _curve(covariance=torch.full((4, 4), math.nan)),
    "covariance differs from its transpose": lambda: _curve(covariance=torch.ones(4, 4).triu()),
    "covariance has the eigenvalue -1": lambda: _curve(covariance=2 * torch.ones(4, 4) - torch.eye(4)),
    "covariance given beside stderr": lambda: _curve(covariance=torch.eye(4), stderr=ONES),
    "and common_samples = True": lambda: _curve(covariance=torch.eye(4), common_samples=True),
    "directions has shape (4,)": lambda: _curve(directions=ONES),
    "directions[2] sum to 1.5, but eps2[2] = 1.0": lambda: _curve(directions=[[1.0], [1.0], [1.5], [1.0]]),
    "directions = -1.0": lambda: _curve(directions=[[-1.0, 2.0]] * 4),
    "directions = None in this curve": lambda: _curve().spectral([1.0]),
    "pass one of at least 0 for each of the 2 directions": lambda: _halves().spectral([1.0]),
    "amplitudes = tensor([ 1., -1.]": lambda: _halves().spectral([1.0, -1.0]),
    "amplitudes[1] = nan": lambda: _halves().spectral([1.0, math.nan]),
    "rule = 'trapezoid'": lambda: _halves().spectral([1.0, 1.0], "trapezoid"),
    "dim = 0": lambda: _curve(dim=0),
    "total_variance = -2.0": lambda: _curve(total_variance=-2.0),
    "phi = 0.0 at every level": lambda: _curve(eps2=[0.0] * 4).entropic(),
    "rule = 'simpson'": lambda: _curve().entropic("simpson"),
    "kind = 'spectral'": lambda: _curve().time("spectral"),
    "kind = 'other'": lambda: _curve().tails("other"),
    "entropy = -1.0": lambda: _curve().tails("entropic", entropy=-1.0),
    "n = 1": lambda: _curve().rescaled().place(1),
    "sigma_min = 0.5 is not below sigma_max = 0.5": lambda: _curve().rescaled().place(4, 0.5, 0.5),
    "which covers [0.1, 0.8]": lambda: _curve().rescaled().place(4, 0.05, 0.5),
    "sigma = 0.9 is outside": lambda: _curve().rescaled().phi_at(0.9),
    "phi = 100.0; this time runs from 0.0": lambda: _curve().rescaled().sigma_at(100.0),
    "phi[] = nan": lambda: _curve().rescaled().sigma_at(math.nan),
    "pass ErrorCurve the standard error": lambda: _curve().rescaled().place_stderr(4),
    "must ascend together": lambda: Time(LEVELS, [0.0, 2.0, 1.0, 3.0]),
    "pass one phi a level": lambda: Time(LEVELS, [0.0, 1.0]),
    "slope = -1.0": lambda: Time(LEVELS, [0.0, 1.0, 2.0, 3.0], [1.0, -1.0, 1.0, 1.0]),
    "slope has shape": lambda: Time(LEVELS, [0.0, 1.0, 2.0, 3.0], [1.0, 1.0]),
    "loss = -3.0": lambda: eps2_from_v_loss(-3.0, 1.0),
    "sigma_data = 0.0": lambda: eps2_from_edm_loss(1.0, 1.0, 0.0),
    "sigma = -1.0": lambda: eps2_from_epsilon_loss(1.0, -1.0),
    "dim = 2.5": lambda: rate_from_marginal_score(edm(), 1.0, 0.5, 2.5),
    "marginal = nan": lambda: rate_from_scores(edm(), 1.0, 1.0, math.nan),
    "rate(t)[0] = nan": lambda: time_from_rate(edm(), lambda t: t * math.nan, LEVELS),
    "the mixture has 16 dimensions": lambda: score_norms(edm(), HIGH["points, D = 16"], [1.0]),
    "order = 0": lambda: time_from_rate(edm(), lambda t: t, LEVELS, order=0),
    "sigma[0:2] = [2.0, 1.0] does not ascend": lambda: time_from_rate(edm(), lambda t: t, [2.0, 1.0]),
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_named(words):
    with pytest.raises(ValueError) as error:
        BAD[words]()
    assert words in str(error.value).replace("marginal[] =", "marginal =")


# What no good denoiser exceeds


@pytest.mark.parametrize("name", ONE_DIMENSION)
def test_the_best_denoiser_is_no_worse_than_a_constant_nor_than_the_identity(name):
    """By a second route: the errors of these two, by quadrature over the law of x, and the mixture's own."""
    mixture, sigma = ONE_DIMENSION[name], _levels(1e-5, 1e5, 41)
    eps2, variance = mixture.eps2(sigma), mixture.covariance().item()
    for level, error in zip(sigma[5:-5:5], eps2[5:-5:5], strict=True):
        nodes, weights = mixture.quadrature(level)
        mass = weights * mixture.log_density(nodes, level).exp()
        denoised = mixture.denoiser(nodes, level.item())
        posterior = (
            mass * (denoised - mixture.mean())[:, 0].square()
        ).sum()  # of the means; eps2 is what is left of V
        moved = (mass * (nodes - denoised)[:, 0].square()).sum()  # E (x - D)^2 = sigma^2 - eps2
        assert error + posterior == pytest.approx(variance, rel=1e-9)
        assert error + moved == pytest.approx(level.item() ** 2, rel=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error"
        )  # and rounding at either end, where the bounds are reached, is no excess
        curve = ErrorCurve(sigma, eps2, dim=1, total_variance=variance)
    assert torch.equal(curve.eps2, eps2)


def test_an_error_beyond_its_bound_is_the_bound_and_all_that_belongs_to_it_is_scaled():
    sigma, variance, dim = _levels(0.01, 80.0, 12), 3.0, 2
    bound = (dim * sigma.square()).clamp_max(variance)
    times = torch.ones(12, dtype=F64)
    times[[0, 1, 10, 11]] = torch.tensor([2.0, 1.05, 1.1, 6.0], dtype=F64)
    share = torch.tensor([0.25, 0.75], dtype=F64)
    eps2 = times * bound
    stderr = 0.02 * bound  # the second level is 2.5 of them too high, which may be chance; the eleventh 5
    root = torch.randn(12, 12, generator=_generator(3), dtype=F64)
    covariance = root @ root.T
    scale = stderr / covariance.diagonal().sqrt()
    covariance = scale * covariance * scale[:, None]
    arguments = {"dim": dim, "total_variance": variance}
    told = r"at sigma = 35.3, 80 it is up to 6 times total_variance = 3, so that .* worse there than a constant.*; "
    told += r"at sigma = 0.01 it is up to 2 times dim \* sigma\^2, so that .* worse .* than one that returns its input"
    with pytest.warns(UserWarning, match=told) as warned:
        curve = ErrorCurve(sigma, eps2, covariance=covariance, directions=eps2[:, None] * share, **arguments)
    assert len(warned) == 1 and warned[0].filename == __file__
    expected = eps2.clone()
    expected[[0, 10, 11]] = bound[[0, 10, 11]]
    factor = expected / eps2
    assert torch.equal(curve.eps2, expected)
    torch.testing.assert_close(curve.directions, expected[:, None] * share, rtol=1e-14, atol=0)
    torch.testing.assert_close(curve.stderr, factor * stderr, rtol=1e-12, atol=0)
    torch.testing.assert_close(curve.covariance, factor * covariance * factor[:, None], rtol=1e-12, atol=0)
    torch.testing.assert_close(curve.covariance.diagonal().sqrt(), curve.stderr, rtol=1e-14, atol=0)
    assert torch.equal(eps2, times * bound)  # the caller's
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Once is enough, so that a saved curve is read back as it was.
        again = ErrorCurve(sigma, curve.eps2, covariance=curve.covariance, **arguments)
        assert torch.equal(again.eps2, curve.eps2)
        # What is not known bounds nothing.
        assert torch.equal(ErrorCurve(sigma, eps2, stderr).eps2, eps2)
        assert torch.equal(ErrorCurve(sigma[:9], eps2[:9], total_variance=variance).eps2, eps2[:9])
    # Without a standard error the numbers are meant as they are.
    with pytest.warns(UserWarning, match=r"sigma = 35\.3, 80 .*; at sigma = 0\.01, 0\.0226 "):
        assert torch.equal(ErrorCurve(sigma, eps2, **arguments).eps2, bound)


# In words


def test_a_curve_and_its_times_are_shown_in_one_line():
    sigma = _levels(0.002, 80.0, 32)
    eps2 = 3 / (1 + sigma**-2)
    parts = eps2[:, None] * torch.tensor([0.5, 0.5], dtype=F64)
    curve = ErrorCurve(sigma, eps2, 0.01 * eps2, dim=3, total_variance=3.0, directions=parts)
    bare, covariance = ErrorCurve(sigma, eps2), ErrorCurve(sigma, eps2, covariance=torch.eye(32))
    common = ErrorCurve(sigma, eps2, eps2, common_samples=True)
    start = "32 levels from 0.002 to 80, "
    assert repr(curve) == (
        f"ErrorCurve({start}eps2 1.2e-05 to 3, dim 3, total_variance 3, stderr, 2 directions)"
    )
    assert repr(bare) == f"ErrorCurve({start}eps2 1.2e-05 to 3)"
    assert repr(covariance).endswith("to 3, covariance)") and repr(common).endswith(
        "stderr of common samples)"
    )
    # arctan(80) - arctan(0.002), three times
    assert repr(curve.rescaled()) == f"Time({start}phi 0 to 4.669, cubic in log sigma, stderr)"
    assert repr(Time([1.0, 2.0], [0.0, 1.0])) == "Time(2 levels from 1 to 2, phi 0 to 1, linear in sigma)"
