"""The exact models of varying scale: each denoiser against a second route, and against its own samples."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from entropic import GaussianMixture
from studies.scales import blobs, models, scale_mixture, sparse

MODELS = models()
LEVELS = (0.002, 0.05, 0.4, 1.0, 3.0, 80.0)


def noised(model, sigma, n=4):
    generator = torch.Generator().manual_seed(1)
    x0 = model.sample(n, generator)
    return x0, x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=torch.float64)


def close(found, wanted):
    return (found - wanted).abs().max() <= 1e-10 * wanted.abs().max()


@pytest.mark.parametrize("spread", [0.5, 1.0])
@pytest.mark.parametrize("sigma", LEVELS)
def test_a_scale_mixture_agrees_with_adaptive_quadrature(spread, sigma):
    variances = 1 / torch.arange(1, 65, dtype=torch.float64)
    model = scale_mixture(variances, spread)
    c2 = variances.numpy()
    _, x = noised(model, sigma)

    for row, found in zip(x.numpy(), model.denoiser(x, sigma), strict=True):
        total, *gains = (_integral(weight, row, c2, spread, sigma) for weight in (None, 0, 7, 63))
        for k, gain in zip((0, 7, 63), gains, strict=True):
            assert float(found[k]) == pytest.approx(gain / total * row[k], rel=1e-10)


def _integral(k, row, c2, spread, sigma):
    """The integral over s = log r of p(s) p(x | s), times the gain of coefficient k, up to a factor."""

    def exponent(s):
        total = np.exp(2 * s) * c2 + sigma**2
        return -((s / spread) ** 2 + np.log(total).sum() + (row**2 / total).sum()) / 2

    def value(s):
        gain = 1.0 if k is None else np.exp(2 * s) * c2[k] / (np.exp(2 * s) * c2[k] + sigma**2)
        return np.exp(exponent(s) - peak) * gain

    grid = np.linspace(-9 * spread, 9 * spread, 4001)
    values = np.array([exponent(s) for s in grid])
    peak, inside = values.max(), grid[values > values.max() - 45]
    return quad(value, inside[0] - 0.01, inside[-1] + 0.01, epsabs=0, epsrel=1e-13, limit=500)[0]


def test_a_scale_mixture_without_spread_is_gaussian():
    variances = 1 / torch.arange(1, 65, dtype=torch.float64)
    model = scale_mixture(variances, 1e-7)
    _, x = noised(model, 0.7)
    assert close(model.denoiser(x, 0.7), variances / (variances + 0.49) * x)


@pytest.mark.parametrize("sigma", LEVELS)
def test_blobs_are_a_gaussian_mixture(sigma):
    heights = [0.5, 2.0]
    model = blobs(heights)
    pixels = [(i, j) for i in range(8) for j in range(8)]

    def bump(place):
        apart = [
            [min(abs(a - b), 8 - abs(a - b)) for a, b in zip(place, pixel, strict=True)] for pixel in pixels
        ]
        return [math.exp(-(i * i + j * j) / (2 * 1.2**2)) for i, j in apart]

    means = [[height * value for value in bump(place)] for place in pixels for height in heights]
    mixture = GaussianMixture.isotropic(torch.tensor(means, dtype=torch.float64), 0.05)
    _, x = noised(model, sigma)
    assert close(model.denoiser(x, sigma), mixture.denoiser(x, sigma))
    assert close(model.variances, torch.linalg.eigvalsh(mixture.covariance()).flip(0))


@pytest.mark.parametrize("sigma", LEVELS)
def test_sparse_coefficients_are_mixtures_on_a_line(sigma):
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64))[0]
    variances = torch.linspace(0.1, 2, 64, dtype=torch.float64)
    model = sparse(variances, basis)
    _, x = noised(model, sigma)
    answers = []
    for variance, column in zip(variances, (x @ basis.T).T, strict=True):
        deviations = variance.sqrt() * torch.tensor([1.0, 0.02], dtype=torch.float64)
        line = GaussianMixture.isotropic(torch.zeros(2, 1), deviations, [0.1, 0.9])
        answers.append(line.denoiser(column[:, None], sigma)[:, 0])
    assert close(model.denoiser(x, sigma), torch.stack(answers, 1) @ basis)


def test_there_are_eight_and_each_is_told_in_words():
    assert len(MODELS) == 8
    assert len({model.about for model in MODELS.values()}) == 8


@pytest.mark.parametrize("name", MODELS)
def test_under_much_noise_the_denoiser_is_linear_by_the_covariance(name):
    # D(x; sigma) = mean + Cov (x - mean) / sigma^2 + O(sigma^-4)
    model, sigma = MODELS[name], 1e4
    ends = torch.eye(64, dtype=torch.float64) * sigma
    slope = (model.denoiser(ends, sigma) - model.denoiser(-ends, sigma)) / 2 * sigma
    values = torch.linalg.eigvalsh((slope + slope.T) / 2).flip(0)
    assert (values - model.variances).abs().max() < 1e-3 * model.variances[0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_no_function_of_x_explains_the_error(name, sigma):
    # E[(x0 - D(x)) f(x)] = 0 for every f: here for f = D(x), for x, and for the sign of x.
    model = MODELS[name]
    x0, x = noised(model, sigma, 4000)
    error = x0 - model.denoiser(x, sigma)
    for f in (model.denoiser(x, sigma), x, x.sign()):
        product = (error * f).sum(1)
        assert product.mean().abs() < 4.5 * product.std() / math.sqrt(len(product))


@pytest.mark.parametrize("name", MODELS)
def test_the_state_s_dtype_is_kept(name):
    model = MODELS[name]
    _, x = noised(model, 0.5)
    found = model.denoiser(x.float(), 0.5)
    assert found.dtype == torch.float32
    assert (found - model.denoiser(x, 0.5)).abs().max() < 1e-4
