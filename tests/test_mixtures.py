"""Mixtures: density, score, denoiser and covariance against independent routes; moments; quadrature; bad input."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from entropic import mixtures
from entropic.mixtures import GaussianMixture

SIGMA = 0.5


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _kinds():
    g = _generator()
    a = torch.randn(4, 5, 5, generator=g, dtype=torch.float64)
    means = torch.randn(4, 5, generator=g, dtype=torch.float64)
    weights = [0.1, 0.2, 0.3, 0.4]
    return {
        "points": GaussianMixture.points(means, weights),
        "isotropic": GaussianMixture.isotropic(means, [0.1, 0.2, 0.3, 1.0], weights),
        "full": GaussianMixture.full(means, a @ a.mT, weights),
        "low rank": GaussianMixture.low_rank(means, a[:, :, :2], 0.1, weights),
    }


KINDS = _kinds()


def _component_covariance(mixture):
    eye = torch.eye(mixture.dim, dtype=torch.float64)
    along = torch.einsum("kir,kr,kjr->kij", mixture.basis, mixture.eigenvalues, mixture.basis)
    return mixture.noise[:, None, None] * eye + along


@pytest.fixture(params=KINDS, name="mixture")
def _mixture(request):
    return KINDS[request.param]


@pytest.fixture(name="x")
def _x(mixture):
    g = _generator(1)
    return mixture.sample(6, g) + SIGMA * torch.randn(6, 5, generator=g, dtype=torch.float64)


# Tolerance 1e-11: a few hundred roundings of 1e-16 in numbers of order 10 to 100.
def test_log_density_agrees_with_torch_distributions(mixture, x):
    noised = _component_covariance(mixture) + SIGMA**2 * torch.eye(5, dtype=torch.float64)
    reference = MixtureSameFamily(
        Categorical(mixture.weights), MultivariateNormal(mixture.means, covariance_matrix=noised)
    )
    torch.testing.assert_close(mixture.log_density(x, SIGMA), reference.log_prob(x), rtol=0, atol=1e-11)


def test_score_is_the_gradient_and_tweedie_gives_denoiser_and_covariance(mixture, x):
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(x, SIGMA).sum(), x)
    x = x.detach()
    torch.testing.assert_close(mixture.score(x, SIGMA), gradient, rtol=0, atol=1e-11)
    torch.testing.assert_close(mixture.denoiser(x, SIGMA), x + SIGMA**2 * gradient, rtol=0, atol=1e-11)
    hessian = torch.stack(
        [
            torch.autograd.functional.hessian(lambda v: mixture.log_density(v[None], SIGMA)[0], row)
            for row in x
        ]
    )
    tweedie = SIGMA**2 * (torch.eye(5, dtype=torch.float64) + SIGMA**2 * hessian)
    torch.testing.assert_close(mixture.posterior_covariance(x, SIGMA), tweedie, rtol=0, atol=1e-11)
    trace = tweedie.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(mixture.posterior_variance(x, SIGMA), trace, rtol=0, atol=1e-11)


def test_denoiser_is_the_conditional_mean_of_each_component(mixture, x):
    covariance = _component_covariance(mixture)
    gain = torch.linalg.solve(covariance + SIGMA**2 * torch.eye(5, dtype=torch.float64), covariance)
    means = mixture.means + torch.einsum("kij,nkj->nki", gain.mT, x[:, None] - mixture.means)
    expected = (mixture.responsibilities(x, SIGMA)[:, :, None] * means).sum(1)
    torch.testing.assert_close(mixture.denoiser(x, SIGMA), expected, rtol=0, atol=1e-11)


def test_sigma_may_differ_from_row_to_row(mixture, x):
    sigma = torch.linspace(0.1, 3, len(x), dtype=torch.float64)
    rows = [mixture.denoiser(row[None], s) for row, s in zip(x, sigma, strict=True)]
    torch.testing.assert_close(mixture.denoiser(x, sigma), torch.cat(rows), rtol=0, atol=1e-12)
    rows = [mixture.posterior_variance(row[None], s) for row, s in zip(x, sigma, strict=True)]
    torch.testing.assert_close(mixture.posterior_variance(x, sigma), torch.cat(rows), rtol=0, atol=1e-12)


def test_samples_have_the_exact_moments(mixture):
    n = 200_000
    x = mixture.sample(n, _generator(2))
    covariance = mixture.covariance()
    deviation = (x.mean(0) - mixture.mean()) / (covariance.diagonal() / n).sqrt()
    assert deviation.abs().max() < 4.5
    products = (x - mixture.mean())[:, :, None] * (x - mixture.mean())[:, None, :]
    deviation = (products.mean(0) - covariance) / (products.std(0) / math.sqrt(n))
    # 25 entries, two-sided 4.5 standard errors: a false alarm has a chance below 2e-4, and the seed is fixed.
    assert deviation.abs().max() < 4.5


def test_standardised_has_mean_zero_and_unit_mean_variance(mixture):
    scaled = mixture.standardised()
    assert scaled.mean().abs().max() < 1e-13
    assert abs(scaled.covariance().trace() / 5 - 1) < 1e-13


def test_high_dimension_uses_the_same_formulas():
    g = _generator(3)
    dim = 80  # above 64 the squared distances come from a matrix product
    means = torch.randn(3, dim, generator=g, dtype=torch.float64)
    factors = torch.randn(3, dim, 4, generator=g, dtype=torch.float64)
    mixture = GaussianMixture.low_rank(means, factors, 0.2)
    x = mixture.sample(4, g)
    full = GaussianMixture.full(means, _component_covariance(mixture))
    # Condition numbers of about 1e3 in eigh cost three digits of 1e-16 times values of order 1e2.
    torch.testing.assert_close(mixture.log_density(x, 0.3), full.log_density(x, 0.3), rtol=0, atol=1e-9)
    torch.testing.assert_close(mixture.denoiser(x, 0.3), full.denoiser(x, 0.3), rtol=0, atol=1e-10)
    torch.testing.assert_close(mixture.score(x, 0.3), full.score(x, 0.3), rtol=0, atol=1e-9)


def test_fit_low_rank_recovers_the_model_and_its_likelihood_beats_neighbours():
    g = _generator(4)
    basis = torch.linalg.qr(torch.randn(2, 12, 3, generator=g, dtype=torch.float64)).Q
    factors = basis * torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    means = 5 * torch.randn(2, 12, generator=g, dtype=torch.float64)
    truth = GaussianMixture.low_rank(means, factors, 0.04, [0.25, 0.75])
    x = truth.sample(40_000, g)
    labels = truth.responsibilities(x, 0).argmax(1)
    fit = GaussianMixture.fit_low_rank(x, labels, 3)
    # Relative standard error of a variance from 10,000 samples: sqrt(2 / 10^4) = 0.014; of the pooled floor less.
    torch.testing.assert_close(fit.noise, truth.noise, rtol=0.06, atol=0)
    torch.testing.assert_close(
        fit.eigenvalues.sort().values, truth.eigenvalues.sort().values, rtol=0.06, atol=0
    )
    torch.testing.assert_close(fit.weights, truth.weights, rtol=0, atol=4 * math.sqrt(0.1875 / 40_000))
    for noise, stretch in ((1.01, 1), (0.99, 1), (1, 1.01), (1, 0.99)):
        other = GaussianMixture(
            fit.weights, fit.means, fit.noise * noise, fit.basis, fit.eigenvalues * stretch
        )
        # Maximum likelihood holds class by class; compare within one.
        rows = x[labels == 0]
        component = [
            GaussianMixture([1.0], m.means[:1], m.noise[:1], m.basis[:1], m.eigenvalues[:1])
            for m in (fit, other)
        ]
        assert component[0].log_density(rows).sum() > component[1].log_density(rows).sum()


def test_shared_noise_is_the_weighted_mean_and_splits_off_a_subspace():
    g = _generator(6)
    x, labels = torch.randn(300, 12, generator=g, dtype=torch.float64), torch.arange(300) % 3 // 2
    apart, shared = (GaussianMixture.fit_low_rank(x, labels, 2, shared) for shared in (False, True))
    assert (shared.noise == apart.weights @ apart.noise).all()
    torch.testing.assert_close(
        shared.noise[:, None] + shared.eigenvalues,
        apart.noise[:, None] + apart.eigenvalues,
        rtol=1e-14,
        atol=0,
    )
    reduced, frame = shared.reduced()
    assert frame.shape == (12, 6)  # two means and twice two directions
    z = x[:5]
    rest = z - z @ frame @ frame.T
    wiener = shared.noise[0] / (shared.noise[0] + SIGMA**2)
    split = reduced.denoiser(z @ frame, SIGMA) @ frame.T + wiener * rest
    torch.testing.assert_close(shared.denoiser(z, SIGMA), split, rtol=0, atol=1e-13)
    variance = reduced.posterior_variance(z @ frame, SIGMA) + 6 * SIGMA**2 * wiener
    torch.testing.assert_close(shared.posterior_variance(z, SIGMA), variance, rtol=0, atol=1e-13)
    torch.testing.assert_close(
        frame.T @ shared.covariance() @ frame, reduced.covariance(), rtol=0, atol=1e-13
    )


def test_samples_do_not_depend_on_the_signs_of_eigenvectors(monkeypatch):
    g = _generator(7)
    x, labels = torch.randn(100, 6, generator=g, dtype=torch.float64), torch.arange(100) % 2

    def drawn():
        fit = GaussianMixture.fit_low_rank(x, labels, 2, shared_noise=True)
        return fit.sample(3, _generator(8)), fit.reduced()[0].sample(3, _generator(8))

    first = drawn()
    eigh, svd = torch.linalg.eigh, torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: (eigh(a)[0], -eigh(a)[1]))
    monkeypatch.setattr(
        torch.linalg, "svd", lambda a, **k: [-u if i == 0 else u for i, u in enumerate(svd(a, **k))]
    )
    for ours, theirs in zip(first, drawn(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


ONE_D = {
    "points": GaussianMixture.points([-1.3, -0.2, 0.1, 1.9], [0.1, 0.2, 0.3, 0.4]),
    "narrow in wide": GaussianMixture.isotropic([0.0, 0.3], [1.0, 0.003], [0.6, 0.4]),
    "wide": GaussianMixture.isotropic([-1.0, 0.5, 2.0], [0.4, 0.2, 0.7]),
}


@pytest.mark.parametrize("name", ONE_D)
@pytest.mark.parametrize("sigma", [0.02, 0.3, 5.0])
def test_quadrature_integrates_mass_and_variance(name, sigma):
    mixture = ONE_D[name]
    x, weight = mixture.quadrature(sigma)
    p = weight * mixture.log_density(x, sigma).exp()
    assert abs(p.sum() - 1) < 1e-12
    variance = p @ (x[:, 0] - mixture.mean()).square()
    assert abs(variance / (mixture.covariance()[0, 0] + sigma**2) - 1) < 1e-12
    # Law of total variance: eps2 = Var[x0] - Var[E[x0 | x]].
    explained = p @ (mixture.denoiser(x, sigma)[:, 0] - mixture.mean()).square()
    total = mixture.covariance()[0, 0]
    assert abs(mixture.eps2(sigma) - (total - explained)) < 1e-12 * total


@pytest.mark.parametrize("name", ONE_D)
def test_monte_carlo_eps2_agrees_with_quadrature(name):
    sigma = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    mean, stderr = ONE_D[name].eps2_monte_carlo(sigma, 100_000, _generator(5))
    assert ((mean - ONE_D[name].eps2(sigma)).abs() < 4 * stderr).all()
    assert (stderr < 0.02 * mean).all()


def test_eps2_and_entropy_of_one_gaussian_are_closed_forms():
    c, sigma = 0.7, torch.tensor([0.01, 0.4, 9.0], dtype=torch.float64)
    gaussian = GaussianMixture.isotropic([0.3], c)
    variance = c**2 * sigma**2 / (c**2 + sigma**2)
    torch.testing.assert_close(gaussian.eps2(sigma), variance, rtol=1e-13, atol=0)
    entropy = 0.5 * (2 * math.pi * math.e * variance).log()
    torch.testing.assert_close(gaussian.conditional_entropy(sigma), entropy, rtol=0, atol=1e-12)


def test_entropy_of_points_runs_from_zero_to_that_of_the_weights():
    mixture = ONE_D["points"]
    weights = mixture.weights
    limit = -(weights * weights.log()).sum()
    entropy = mixture.conditional_entropy([0.01, 1e4])
    assert 0 <= entropy[0] < 1e-12
    # At sigma = 1e4 what is still known is I = Var / (2 sigma^2), about 1e-8.
    assert abs(entropy[1] + 0.5 * mixture.covariance()[0, 0] / 1e8 - limit) < 1e-12


BAD = {
    "weights": lambda: GaussianMixture.points([0.0, 1.0], [0.5, 0.6]),
    "weights = ": lambda: GaussianMixture.points([0.0, 1.0], [0.0, 1.0]),
    "weights has shape": lambda: GaussianMixture.points([0.0, 1.0], [1.0]),
    "means": lambda: GaussianMixture.points([0.0, math.nan]),
    "means has shape": lambda: GaussianMixture.points(torch.zeros(2, 2, 2)),
    "std": lambda: GaussianMixture.isotropic([0.0], -1.0),
    "noise": lambda: GaussianMixture.low_rank(torch.zeros(1, 3), torch.ones(1, 3, 1), -0.1),
    "noise has shape": lambda: GaussianMixture.low_rank(torch.zeros(1, 3), torch.ones(1, 3, 1), [0.1, 0.1]),
    "covariances": lambda: GaussianMixture.full(torch.zeros(1, 2), [[[1.0, 0.5], [0.0, 1.0]]]),
    "covariances have": lambda: GaussianMixture.full(torch.zeros(1, 2), [[[1.0, 2.0], [2.0, 1.0]]]),
    "covariances (": lambda: GaussianMixture.full(torch.zeros(1, 2), [[1.0]]),
    "factors": lambda: GaussianMixture.low_rank(torch.zeros(1, 3), torch.ones(1, 3, 3), 0.1),
    "noise = [": lambda: GaussianMixture.isotropic([[0.0, 0.0]] * 2, [1.0, 2.0]).reduced(),
    "rank": lambda: GaussianMixture.fit_low_rank(torch.randn(9, 3), torch.zeros(9), 3),
    "labels": lambda: GaussianMixture.fit_low_rank(torch.randn(9, 3), torch.arange(9), 1),
    "x (9, 3) and labels": lambda: GaussianMixture.fit_low_rank(torch.randn(9, 3), torch.zeros(8), 1),
    "sigma": lambda: GaussianMixture.points([0.0, 1.0]).denoiser(torch.zeros(1, 1), 0.0),
    "sigma = -1": lambda: GaussianMixture.points([0.0, 1.0]).denoiser(torch.zeros(1, 1), -1.0),
    "sigma has 2": lambda: GaussianMixture.points([0.0, 1.0]).denoiser(torch.zeros(3, 1), [1.0, 2.0]),
    "sigma[]": lambda: GaussianMixture.points([0.0, 1.0]).denoiser(torch.zeros(1, 1), math.nan),
    "x has shape": lambda: GaussianMixture.points([0.0, 1.0]).denoiser(torch.zeros(3, 2), 1.0),
    "x[0, 0]": lambda: GaussianMixture.points([0.0, 1.0]).denoiser([[math.nan]], 1.0),
    "n = 0": lambda: GaussianMixture.points([0.0, 1.0]).sample(0, _generator()),
    "n = 1;": lambda: GaussianMixture.points([0.0, 1.0]).eps2_monte_carlo(1.0, 1, _generator()),
    "dimensions": lambda: GaussianMixture.points(torch.eye(2)).eps2(1.0),
    "variance 0": lambda: GaussianMixture.points([1.0]).standardised(),
    "joins points": lambda: GaussianMixture.isotropic([0.0, 1.0], [0.0, 1.0]).conditional_entropy(1.0),
    "only at sigma > 0": lambda: GaussianMixture.points([0.0, 1.0]).marginal_entropy(0.0),
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_named(words):
    with pytest.raises(ValueError) as error:
        BAD[words]()
    assert words in str(error.value)


# The fast routes against the plain formulas


def _plain(mixture, x, sigma):
    """log(weight_k N(x; mean_k, C_k + sigma^2 I)), and sum_k gamma_k (mean_k + C_k (C_k + sigma^2 I)^-1 (x - mean_k)).

    By Cholesky factors of whole matrices, for one level after the other.
    """
    sigma = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1).expand(len(x))
    within, eye = _component_covariance(mixture), torch.eye(mixture.dim, dtype=torch.float64)
    terms, denoised = x.new_zeros(len(x), len(mixture.weights)), torch.zeros_like(x)
    for level in sigma.unique():
        rows = sigma == level
        gap = x[rows] - mixture.means[:, None]  # (K, rows, D)
        factor = torch.linalg.cholesky(within + level.square() * eye)
        white = torch.linalg.solve_triangular(factor, gap.mT, upper=False).square().sum(1)
        log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)[:, None]
        joint = mixture.weights.log()[:, None] - (white + log_det + mixture.dim * math.log(2 * math.pi)) / 2
        pull = (within @ torch.cholesky_solve(gap.mT, factor)).mT
        terms[rows] = joint.T
        denoised[rows] = (joint.softmax(0)[:, :, None] * (mixture.means[:, None] + pull)).sum(0)
    return terms, denoised


def _shapes():
    """Rank 0, r < D and D; point masses; D = 1 and D = 784."""
    g = _generator(5)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    line, square = normal(6, 1), normal(3, 4, 4)
    wide, factors = normal(5, 784), 0.3 * normal(5, 784, 3)
    return {
        "line, points": GaussianMixture.points(line),
        "line, widths": GaussianMixture.isotropic(line, torch.linspace(0.05, 0.4, 6)),
        "line, full": GaussianMixture.full(line, 0.1 + normal(6, 1, 1).square()),
        "plane of 4, full": GaussianMixture.full(normal(3, 4), square @ square.mT, [0.2, 0.3, 0.5]),
        "784, points": GaussianMixture.points(wide),
        "784, isotropic": GaussianMixture.isotropic(wide, 0.2),
        "784, low rank": GaussianMixture.low_rank(wide, factors, 0.05),
    }


SHAPES = _shapes()


# Tolerances: numbers of order D with condition numbers up to 1e4 (noise 0.05^2 against 1), each rounded at 1e-16.
@pytest.mark.parametrize("levels", ["low", "middle", "high", "one a row"])
@pytest.mark.parametrize("name", SHAPES)
def test_fast_routes_agree_with_the_plain_formulas(name, levels):
    mixture, g = SHAPES[name], _generator(6)
    rows = torch.tensor([0.1, 0.7, 30.0], dtype=torch.float64).repeat(4)
    sigma = {"low": 0.05, "middle": 0.5, "high": 20.0, "one a row": rows}[levels]
    noise = torch.randn(12, mixture.dim, generator=g, dtype=torch.float64)
    x = mixture.sample(12, g) + torch.as_tensor(sigma).reshape(-1, 1) * noise
    terms, denoised = _plain(mixture, x, sigma)
    scale = float(terms.abs().max())
    torch.testing.assert_close(mixture.log_density(x, sigma), terms.logsumexp(1), rtol=0, atol=1e-13 * scale)
    torch.testing.assert_close(
        mixture.responsibilities(x, sigma), terms.softmax(1), rtol=0, atol=1e-13 * scale
    )
    torch.testing.assert_close(mixture.denoiser(x, sigma), denoised, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name, mixture in SHAPES.items() if mixture.dim < 784])
def test_posterior_variance_is_the_trace_of_the_covariance(name):
    mixture, g = SHAPES[name], _generator(10)
    for sigma in (0.05, 20.0, torch.tensor([0.1, 0.7, 30.0], dtype=torch.float64).repeat(4)):
        noise = torch.randn(12, mixture.dim, generator=g, dtype=torch.float64)
        x = mixture.sample(12, g) + torch.as_tensor(sigma).reshape(-1, 1) * noise
        trace = mixture.posterior_covariance(x, sigma).diagonal(dim1=1, dim2=2).sum(1)
        torch.testing.assert_close(mixture.posterior_variance(x, sigma), trace, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [name for name in SHAPES if name.startswith("line")])
def test_eps2_is_the_average_of_the_posterior_variance(name):
    mixture = SHAPES[name]
    for sigma in (0.01, 0.3, 50.0):
        x, weight = mixture.quadrature(sigma)
        plain = weight @ (mixture.log_density(x, sigma).exp() * mixture.posterior_variance(x, sigma))
        torch.testing.assert_close(mixture.eps2(sigma), plain, rtol=1e-13, atol=0)


@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.5, 5.0, torch.logspace(-2, 1, 300, dtype=torch.float64)])
def test_loop_and_single_product_give_the_same_denoiser_and_score(sigma, monkeypatch):
    """Which of the two runs depends on how many (row, component) pairs matter; no value may depend on it."""
    g = _generator(7)
    factors = torch.randn(10, 80, 4, generator=g, dtype=torch.float64)
    means = torch.randn(10, 80, generator=g, dtype=torch.float64)
    mixture = GaussianMixture.low_rank(means, factors, 0.01)
    noise = torch.randn(300, 80, generator=g, dtype=torch.float64)
    x = mixture.sample(300, g) + torch.as_tensor(sigma).reshape(-1, 1) * noise
    found = {}
    for way, share in {"product": -1.0, "loop": 2.0}.items():
        monkeypatch.setattr(mixtures, "_SHARE", share)
        found[way] = mixture.denoiser(x, sigma), mixture.score(x, sigma)
    for product, loop in zip(*found.values(), strict=True):
        torch.testing.assert_close(product, loop, rtol=0, atol=1e-13 * float(loop.abs().max()))


def _kernels(case):
    g = _generator(8)
    n = 3000
    centres = torch.randn(n, generator=g, dtype=torch.float64)
    weights = None
    if case == "clusters":
        centres = (centres * 1e-3) + torch.randint(-3, 4, (n,), generator=g).double()
    elif case == "repeated":
        centres = (centres * 4).round() / 4
    elif case == "unequal weights":
        weights = (20 * torch.rand(n, generator=g, dtype=torch.float64)).exp()
        weights = weights / weights.sum()
    elif case == "few":
        centres = centres[:64]
    return GaussianMixture.isotropic(centres, 0.01, weights)


# In the tails the exponent is up to 1e9 nats and its rounding is 1e-16 of it, for both formulas.
@pytest.mark.parametrize("case", ["plain", "clusters", "repeated", "unequal weights", "few"])
@pytest.mark.parametrize("sigma", [0.0, 0.02, 3.0])
def test_window_of_a_kernel_density_gives_the_whole_sum(case, sigma):
    kernel = _kernels(case)
    x = torch.cat([torch.linspace(-6, 6, 500).double(), torch.tensor([-5e2, -40.0, 40.0, 3e2]).double()])
    x = torch.cat([x, kernel.means[::7, 0]])[
        torch.randperm(504 + len(kernel.means[::7]), generator=_generator(9))
    ]
    whole = kernel._joint(x[:, None], torch.tensor([sigma], dtype=torch.float64))[0].logsumexp(1)
    torch.testing.assert_close(kernel.log_density(x[:, None], sigma), whole, rtol=4e-15, atol=4e-14)
    assert len(kernel.log_density(x[:0, None], sigma)) == 0


def test_window_of_a_kernel_density_is_right_in_extreme_tails():
    """Against forty digits, at points up to 50,000 widths away from every sample."""
    mpmath = pytest.importorskip("mpmath")
    kernel = _kernels("unequal weights")
    centres = [mpmath.mpf(c) for c in kernel.means[:, 0].tolist()]
    weights = [mpmath.mpf(w) for w in kernel.weights.tolist()]
    x = torch.tensor([-500.0, -6.0, -3.7, 0.1, 3.9, 8.0, 120.0], dtype=torch.float64)
    with mpmath.workdps(40):
        width = mpmath.sqrt(mpmath.mpf(kernel.noise[0].item()))
        exact = []
        for point in x.tolist():
            terms = [
                w * mpmath.exp(-(((point - c) / width) ** 2) / 2)
                for w, c in zip(weights, centres, strict=True)
            ]
            exact.append(float(mpmath.log(mpmath.fsum(terms) / width / mpmath.sqrt(2 * mpmath.pi))))
    found = kernel.log_density(x[:, None])
    torch.testing.assert_close(found, torch.tensor(exact, dtype=torch.float64), rtol=2e-15, atol=2e-14)


def test_a_mixture_keeps_copies_of_what_it_was_made_from():
    means, weights = torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([0.3, 0.7]).double()
    noise, basis = torch.tensor([0.1, 0.1]).double(), torch.ones(2, 1, 1).double()
    eigenvalues, x = torch.tensor([[0.2], [0.3]]).double(), torch.linspace(-2, 2, 5).double()[:, None]
    mixture = GaussianMixture(weights, means, noise, basis, eigenvalues)
    before = mixture.denoiser(x, 0.5)
    for tensor in (means, weights, noise, basis, eigenvalues):
        tensor.mul_(3)
    assert torch.equal(mixture.denoiser(x, 0.5), before)
