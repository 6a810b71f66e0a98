"""Estimates: closed forms within standard errors, exact resumption, bases, training logs, bad input."""

import json
import math
import os
import time

import numpy as np
import pytest
import torch

from entropic import files
from entropic.bases import Basis, amplitudes, fourier_basis, pca_basis
from entropic.curve import ErrorCurve, eps2_from_edm_loss
from entropic.estimate import curve_from_logvar, curve_from_training_log, estimate
from entropic.gaussian import gaussian_deviation, implied_spectrum
from entropic.images.data import load_images, to_pixels
from entropic.images.networks import load_network
from entropic.mixtures import GaussianMixture
from entropic.placement import DEFAULT, plan
from entropic.schedules import edm_sigmas
from entropic.solvers import find_solver
from tests.conftest import start_process

F64 = torch.float64


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _levels(low, high, n):
    return torch.logspace(math.log10(low), math.log10(high), n, dtype=F64)


SIGMA = _levels(0.05, 20.0, 12)


def _line_in_space(dim):
    """A mixture along one oblique axis, Gaussian across it: its error is one in one dimension plus the rest."""
    axis = torch.randn(dim, generator=_generator(dim), dtype=F64)
    positions, weights, variance = torch.tensor([-1.2, 0.1, 1.4], dtype=F64), [0.5, 0.2, 0.3], 0.09
    mixture = GaussianMixture(weights, positions[:, None] * axis / axis.norm(), variance)
    along = GaussianMixture.isotropic(positions, variance**0.5, weights)
    across = (dim - 1) * variance * SIGMA.square() / (variance + SIGMA.square())
    return mixture, along.eps2(SIGMA) + across


def _linear(x, sigma):
    """The denoiser of N(0, I), element by element, hence the same in every batch to the bit."""
    return x / (1 + sigma**2)


def _images(n=64, shape=(2, 6, 6), dtype=F64):
    return torch.randn(n, *shape, generator=_generator(1), dtype=dtype)


# Closed forms


# Means of 4,000 are normal to a few per cent in the tails: 4.5 standard errors are exceeded once in 1.5e5, by any
# of twelve levels once in 1.2e4; phi's 4 once in 1.6e4.
@pytest.mark.parametrize("dim", [2, 16])
@pytest.mark.parametrize("common", [True, False])
def test_estimates_meet_the_exact_error(dim, common):
    mixture, exact = _line_in_space(dim)
    x = mixture.sample(6000, _generator(2))
    found = estimate(mixture.denoiser, x, SIGMA, samples=4000, batch=1000, seed=3, common_noise=common)
    assert found.dim == dim and found.errors.shape == found.rows.shape == (4000, 12)
    # Useful, not only true: the spread of chi-square of dim degrees, sqrt(2 / dim / 4000), and the mixture's.
    assert (found.stderr < 0.06 * exact).all()
    assert ((found.eps2 - exact).abs() < 4.5 * found.stderr).all()
    torch.testing.assert_close(found.covariance.diagonal(), found.stderr.square(), rtol=1e-12, atol=0)
    measured, truth = found.curve().rescaled("left"), ErrorCurve(SIGMA, exact).rescaled("left")
    assert ((measured.phi - truth.phi).abs()[1:] < 4 * measured.stderr[1:]).all()


# phi of a mean is the mean of the samples' phi, as the left sum is linear: its standard error is theirs. Roundings
# of the covariance, 1e-16 of its diagonal, times the number of levels squared.
def test_covariance_gives_the_standard_error_of_time():
    mixture, _ = _line_in_space(2)
    found = estimate(mixture.denoiser, mixture.sample(500, _generator(4)), SIGMA, samples=500)
    curve = found.curve(total_variance=2.0)
    each = torch.stack([ErrorCurve(SIGMA, e).rescaled("left").phi for e in found.errors])
    measured = curve.rescaled("left").stderr
    torch.testing.assert_close(measured, each.std(0) / 500**0.5, rtol=1e-10, atol=1e-14)
    assert curve.dim == 2 and curve.total_variance == 2.0
    bound = ErrorCurve(SIGMA, found.eps2, found.stderr, common_samples=True).rescaled("left").stderr
    assert (measured[2:] < bound[2:]).all()


# An error that depends on the row alone: where all levels draw all rows they are wrong together, where they share a
# fifth of them by a fifth of it. 3 of 4 pairs of levels over 2,000 of 10,000 rows: 400 shared, give or take 18.
def test_levels_vary_together_by_the_rows_that_they_share():
    x = torch.randn(10_000, 3, generator=_generator(14), dtype=F64)

    def shrunk(noisy, sigma, labels):  # what it is told, a tenth too small
        return 0.9 * labels

    drawn = {"common_noise": False, "samples": 500, "batch": 500}
    whole = estimate(shrunk, x[:500], SIGMA[:4], labels=x[:500], **drawn)
    expected = whole.stderr.square().mean().expand(4, 4)
    torch.testing.assert_close(whole.covariance, expected, rtol=1e-10, atol=0)
    part = estimate(shrunk, x, SIGMA[:4], labels=x, **drawn | {"samples": 2000, "batch": 2000})
    relative = part.covariance / part.stderr / part.stderr[:, None]
    shared = relative[~torch.eye(4, dtype=torch.bool)]
    # The mean of 400 products of chi-square deviations, of relative spread sqrt(15 / 400) at most.
    assert ((shared - 0.2).abs() < 5 * 0.2 * (15 / 400) ** 0.5).all()


def test_noise_is_normal_and_independent_of_rows_and_levels():
    x = torch.zeros(20_000, 3, dtype=F64)
    seen = []

    def nothing(noisy, sigma):
        seen.append(noisy / sigma)
        return torch.zeros_like(noisy)

    estimate(nothing, x, SIGMA[:4], samples=20_000, batch=20_000, common_noise=False)
    noise = torch.stack(seen)
    # Standard errors of mean, variance and correlation: 1, sqrt(2) and 1, over sqrt(20000); 66 + 12 + 12 of them.
    flat = noise.permute(1, 0, 2).flatten(1)
    assert flat.mean(0).abs().max() < 4.5 / 20_000**0.5
    off = torch.cov(flat.T) - torch.eye(12, dtype=F64)
    assert off.diagonal().abs().max() < 4.5 * (2 / 20_000) ** 0.5
    assert (off - torch.diag(off.diagonal())).abs().max() < 4.5 / 20_000**0.5


# The paper's draws differ from level to level, the common ones do not; both without replacement.
@pytest.mark.parametrize("common", [True, False])
def test_draws_are_common_or_independent_and_never_repeat_a_row(common):
    x = torch.arange(30, dtype=F64)[:, None] * 1e6
    rows = {}

    def record(noisy, sigma):
        rows.setdefault(sigma, []).extend((noisy[:, 0] / 1e6).round().long().tolist())
        return noisy

    estimate(record, x, SIGMA[:4], samples=20, batch=7, common_noise=common)
    drawn = list(rows.values())
    assert list(rows) == SIGMA[:4].tolist()
    assert all(len(set(each)) == 20 for each in drawn)
    assert all((each == drawn[0]) == common for each in drawn[1:])


def _pixels(error):
    """Every entry is a direction of its own."""
    return error.flatten(1).square()


# What does not change a number


@pytest.mark.parametrize("common", [True, False])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_batch_changes_nothing_and_more_samples_extend(common, dtype):
    x = _images(dtype=dtype)
    bases = {"frequency": fourier_basis((2, 6, 6))}
    arguments = {"bases": bases, "common_noise": common, "seed": 5}
    reference = estimate(_linear, x, SIGMA, samples=40, batch=40, **arguments)
    for batch in (1, 7, 1000):
        found = estimate(_linear, x, SIGMA, samples=40, batch=batch, **arguments)
        assert torch.equal(found.errors, reference.errors)
        # Sums of 40 positive numbers in another order, and FFTs of another batch: 2^-53 (40 + some tens).
        for a, b in zip(found.directions["frequency"], reference.directions["frequency"], strict=True):
            torch.testing.assert_close(a, b, rtol=100 * 2**-53 * 10, atol=0)
    more = estimate(_linear, x, SIGMA, samples=64, batch=9, **arguments)
    assert torch.equal(more.errors[:40], reference.errors)
    other = estimate(_linear, x, SIGMA, samples=40, **{**arguments, "seed": 6})
    assert not torch.equal(other.errors, reference.errors)


def test_labels_follow_their_rows():
    x = torch.arange(20, dtype=F64)[:, None] * torch.ones(3, dtype=F64)

    def told(noisy, sigma, labels):
        return labels.to(noisy)[:, None].expand(-1, 3)

    found = estimate(told, x, SIGMA, labels=torch.arange(20), samples=15, batch=4)
    assert (found.errors == 0).all()
    shifted = estimate(told, x, SIGMA, labels=(torch.arange(20) + 1).tolist(), samples=15, batch=4)
    assert (shifted.errors == 3).all()


# Resumption


def slow_estimate(store, common):
    """What the killed process runs."""
    files._PAUSE = 0.0

    def slow(x, sigma):
        time.sleep(0.05)
        return _linear(x, sigma)

    arguments = {"bases": {"frequency": fourier_basis((2, 6, 6))}, "common_noise": common}
    estimate(slow, _images(), SIGMA, samples=50, batch=5, seed=7, store=store, tag="linear", **arguments)


@pytest.mark.parametrize("common", [True, False])
def test_a_killed_run_ends_with_the_same_arrays(tmp_path, common):
    store = tmp_path / "deep" / "store.npz"
    child = start_process(slow_estimate, store, common)
    total, done = 50 * 12, 0
    while done < 100:
        assert child.is_alive()
        time.sleep(0.02)
        if store.exists():
            with np.load(store) as file:
                done = int(file["done"].sum())
    child.kill()
    child.join()
    with np.load(store) as file:
        done = int(file["done"].sum())
        assert len(set(file["done"].tolist())) == 2 or done % 60 == 0
    assert 100 <= done < total
    rows = []

    def counted(x, sigma):
        rows.append(len(x))
        return _linear(x, sigma)

    bases = {"frequency": fourier_basis((2, 6, 6))}
    arguments = {"samples": 50, "batch": 5, "seed": 7, "bases": bases, "common_noise": common}
    resumed = estimate(counted, _images(), SIGMA, store=store, tag="linear", **arguments)
    assert sum(rows) == total - done
    whole = estimate(_linear, _images(), SIGMA, **arguments)
    assert torch.equal(resumed.errors, whole.errors)
    for a, b in zip(resumed.directions["frequency"], whole.directions["frequency"], strict=True):
        assert torch.equal(a, b)
    # Finished: no call more.
    again = estimate(None, _images(), SIGMA, store=store, tag="linear", **arguments)
    assert torch.equal(again.errors, whole.errors)


def test_a_run_goes_on_in_another_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PAUSE", 0.0)
    calls = iter(range(20))

    def failing(x, sigma):
        if next(calls) == 17:
            raise RuntimeError("out of memory")
        return _linear(x, sigma)

    arguments = {"samples": 50, "store": tmp_path / "store.npz", "tag": "linear"}
    with pytest.raises(RuntimeError):
        estimate(failing, _images(), SIGMA, batch=16, **arguments)
    resumed = estimate(_linear, _images(), SIGMA, batch=3, **arguments)
    assert torch.equal(resumed.errors, estimate(_linear, _images(), SIGMA, samples=50).errors)


def test_a_store_of_other_arguments_is_refused(tmp_path):
    x, store = _images(), tmp_path / "store.npz"
    rotated = torch.linalg.qr(torch.randn(72, 72, generator=_generator(8), dtype=F64)).Q
    given = {
        "x": x,
        "sigmas": SIGMA,
        "samples": 20,
        "seed": 0,
        "common_noise": True,
        "labels": None,
        "tag": "a",
        "bases": {"own": lambda e: (e.flatten(1) @ rotated).square()},
    }

    def call(**changes):
        return estimate(lambda x, sigma, *_: _linear(x, sigma), store=store, **{**given, **changes})

    call()
    before = store.read_bytes()
    changed = x.clone()
    changed[:, 0, 0, 0] += 1
    for name, value in {
        "x": changed,
        "sigmas": SIGMA * 1.01,
        "samples": 21,
        "seed": 1,
        "common_noise": False,
        "labels": torch.zeros(64),
        "tag": "b",
        "bases": {"own": lambda e: (e.flatten(1) @ rotated.T).square()},
    }.items():
        with pytest.raises(ValueError, match=f"was made with other .*{name}"):
            call(**{name: value})
    for bases in ({}, {"other": given["bases"]["own"]}, {**given["bases"], "pixel": _pixels}):
        with pytest.raises(ValueError, match="was made with other bases"):
            call(bases=bases)
    call()
    assert len(before) == len(store.read_bytes()) and os.listdir(tmp_path) == ["store.npz"]
    for content in (b"", before[:100], before[: len(before) // 2], before[:-9]):
        store.write_bytes(content)
        with pytest.warns(UserWarning, match="store.npz is damaged and is computed anew"):
            call()
        with np.load(store) as file:
            assert (file["done"] == 20).all()
    store.write_bytes(b"not a store")
    with pytest.raises(ValueError, match="is not the store of an estimate"):
        call()
    assert store.read_bytes() == b"not a store"
    np.savez(store, eps2=[1.0])
    with pytest.raises(ValueError, match="is not the store of an estimate"):
        call()


def test_progress_is_shown_only_where_wanted(capsys):
    estimate(_linear, _images(), SIGMA, samples=20)
    assert capsys.readouterr().err == ""
    estimate(_linear, _images(), SIGMA, samples=20, progress=True)
    assert "240/240" in capsys.readouterr().err


# Bases

BASES = {
    "Fourier": fourier_basis((3, 8, 6)),
    "Fourier, odd": fourier_basis((144, 1)),
    "Fourier, one channel": fourier_basis((12, 12)),
    "principal components": pca_basis(_images(40, (3, 8, 6))),
    "leading components": pca_basis(_images(40, (3, 8, 6)), 5),
}


# ||x||^2 from 144 squares: some tens of roundings of 1.1e-16.
@pytest.mark.parametrize("name", BASES)
def test_parts_sum_to_the_squared_norm(name):
    x = _images(20, (3, 8, 6)) * torch.logspace(-6, 6, 20, dtype=F64)[:, None, None, None]
    basis = BASES[name]
    parts = basis(x)
    assert parts.shape == (20, len(basis.multiplicity)) and (parts >= 0).all()
    assert basis.multiplicity.sum() == 144
    torch.testing.assert_close(parts.sum(1), x.flatten(1).square().sum(1), rtol=1e-14, atol=0)
    torch.testing.assert_close(basis(x.flatten(1)), parts, rtol=0, atol=0)
    # White noise fills each vector alike, sums of multiplicity chi-squares: 5 standard errors, 144 bins at most.
    noise = torch.randn(4000, 3, 8, 6, generator=_generator(9), dtype=F64)
    share = basis(noise).mean(0) / basis.multiplicity
    # A complex coefficient and its mirror image are one degree of freedom less than two: variance 4, not 2.
    assert ((share - 1).abs() < 5 * (4 / basis.multiplicity.clamp_min(1) / 4000).sqrt()).all()


def test_waves_fall_into_the_bin_of_their_radius_and_channel():
    basis = fourier_basis((2, 16, 16))
    y, x = torch.meshgrid(torch.arange(16.0, dtype=F64), torch.arange(16.0, dtype=F64), indexing="ij")
    for fy, fx, radius in [(0, 0, 0), (0, 1, 1), (3, 4, 5), (8, 8, 11), (2, 1, 2)]:
        for channel in (0, 1):
            image = torch.zeros(1, 2, 16, 16, dtype=F64)
            image[0, channel] = (2 * math.pi * (fy * y + fx * x) / 16).cos()
            parts = basis(image)[0]
            hit = (basis.radius == radius) & (basis.channel == channel)
            assert hit.sum() == 1
            torch.testing.assert_close(parts[hit].sum(), image.square().sum(), rtol=1e-13, atol=0)
    # A square grid of 16: one vector at radius 0, eight that round to 1, the corner and its four neighbours at 11.
    assert basis.multiplicity[:2].tolist() == [1, 8] and basis.multiplicity[11] == 5
    assert basis.radius[:12].tolist() == list(range(12))


def test_components_carry_the_variances_of_the_data():
    spread = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=F64)
    x = torch.randn(9000, 4, generator=_generator(10), dtype=F64) * spread + 7
    covariance = torch.cov(x.T, correction=0)
    basis, leading = pca_basis(x), pca_basis(x, 2)
    torch.testing.assert_close(basis.variance, torch.linalg.eigvalsh(covariance).flip(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(leading.variance[:2], basis.variance[:2], rtol=1e-12, atol=0)
    torch.testing.assert_close(leading.variance[2], basis.variance[2:].sum(), rtol=1e-12, atol=0)
    assert leading.multiplicity.tolist() == [1, 1, 2]
    # The mean square of centred data in each bin is its variance, and its amplitude the root.
    torch.testing.assert_close(amplitudes(basis, x), basis.variance.sqrt(), rtol=1e-10, atol=0)


def test_amplitudes_say_mean_or_sum_centred_or_not():
    basis = fourier_basis((4, 4))
    wave = torch.tensor([1.0, 0.0, -1.0, 0.0], dtype=F64).expand(4, 4)
    x = torch.stack([3 + 2 * wave, 3 - 2 * wave])  # radius 1: squared norm 4 * 8, 8 vectors; mean 3
    at = {r: int((basis.radius == r).nonzero()) for r in (0, 1)}
    assert basis.multiplicity[at[1]] == 8
    centred, raw = amplitudes(basis, x), amplitudes(basis, x, centred=False)
    assert centred[at[0]] == pytest.approx(0, abs=1e-14) and raw[at[0]] == pytest.approx(12)
    assert centred[at[1]] == raw[at[1]] == pytest.approx(2)
    assert amplitudes(basis, x, within="sum")[at[1]] == pytest.approx(16)


# Gaussian data: each principal direction has the error c^2 sigma^2 / (c^2 + sigma^2). 3 * 12 means of 4,000.
def test_directions_meet_the_exact_error_of_each():
    variance = torch.tensor([4.0, 1.0, 0.04], dtype=F64)
    frame = torch.linalg.qr(torch.randn(3, 3, generator=_generator(11), dtype=F64)).Q
    x = torch.randn(5000, 3, generator=_generator(12), dtype=F64) * variance.sqrt() @ frame.T
    mixture = GaussianMixture.full(torch.zeros(1, 3), (frame * variance @ frame.T)[None])
    basis = Basis(lambda e: (e @ frame).square(), (3,), torch.ones(3, dtype=F64))
    found = estimate(mixture.denoiser, x, SIGMA, samples=4000, bases={"axes": basis, "pixel": _pixels})
    mean, stderr = found.directions["axes"]
    exact = variance * SIGMA[:, None].square() / (variance + SIGMA[:, None].square())
    assert mean.shape == stderr.shape == (12, 3)
    assert ((mean - exact).abs() < 4.5 * stderr).all() and (stderr < 0.03 * exact).all()
    # Its own spread: c^2 sigma^2 / (c^2 + sigma^2) times a chi-square, of variance 2.
    torch.testing.assert_close(stderr, exact * (2 / 4000) ** 0.5, rtol=0.1, atol=0)
    torch.testing.assert_close(mean.sum(1), found.eps2, rtol=1e-12, atol=0)
    curve = found.curve("axes")
    torch.testing.assert_close(curve.directions, mean, rtol=0, atol=0)
    # Amplitudes of Gaussian data give back the rescaled time, but for what lies above the last level:
    # arctan(sigma_max / c) falls short of pi / 2 by c / sigma_max <= 0.1, and so each weight; 3 % is noise.
    spectral, rescaled = curve.spectral(variance.sqrt()), curve.rescaled()
    torch.testing.assert_close(
        spectral.phi / spectral.phi[-1], rescaled.phi / rescaled.phi[-1], rtol=0.1, atol=0
    )


# Training logs


def _log(path, edges, lines, sigma_data=0.5, dim=1):
    header = {"sigma_edges": edges.tolist(), "sigma_data": sigma_data, "dim": dim}
    path.write_text("\n".join(json.dumps(line) for line in [header, *lines]) + "\n", "utf-8")
    return path


def _line(step, log_sigma, loss):
    """A line from the losses (K, n) of n samples in each of K bins."""
    sums = {"count": torch.ones_like(loss), "loss": loss, "loss2": loss.square(), "log_sigma": log_sigma}
    return {"step": step, **{name: value.sum(1).tolist() for name, value in sums.items()}}


# Data N(0, c^2 I): the weighted loss is L(x) = D (c / d)^2 (1 + (d^2 - c^2) / (sigma^2 + c^2)), x = log sigma, d =
# sigma_data; L = A + B logistic(2 log c - 2 x), B = D (d^2 - c^2) / d^2, and |logistic''| <= 1 / (6 sqrt 3). By
# Taylor's theorem about the bin's mean E L - L(mean) is at most |B| 4 / (6 sqrt 3) / 2 of the variance, w^2 / 12.
# Averaged eps2 itself would be off by (2 w)^2 / 24 of its value where it grows as sigma^2, for any data.
@pytest.mark.parametrize("c", [0.2, 0.5, 1.0])
def test_weighted_loss_in_a_bin_is_nearly_its_value_at_the_middle(tmp_path, c):
    dim, data, width, n = 3, 0.5, math.log(2), 2000
    edges = 0.01 * 2.0 ** torch.arange(12, dtype=F64)
    share = (torch.arange(n, dtype=F64) + 0.5) / n
    x = edges[:-1, None].log() + width * share
    eps2 = dim * c**2 * (2 * x).exp() / (c**2 + (2 * x).exp())
    loss = eps2 * ((2 * x).exp() + data**2) / ((2 * x).exp() * data**2)
    curve = curve_from_training_log(_log(tmp_path / "log.jsonl", edges, [_line(10, x, loss)], data, dim))
    middle = (edges[:-1] * edges[1:]).sqrt()
    torch.testing.assert_close(curve.sigma, middle, rtol=1e-12, atol=0)
    exact = dim * c**2 * middle.square() / (c**2 + middle.square())
    off = eps2_from_edm_loss((eps2_from_edm_loss(1.0, middle, data)).reciprocal() * curve.eps2, middle, data)
    off = (off - exact).abs()
    bound = dim * abs(1 - (c / data) ** 2) * 4 / (6 * 3**0.5) / 2 * width**2 / 12
    assert (off <= eps2_from_edm_loss(bound + 1e-12, middle, data)).all()
    naive = (eps2.mean(1) / exact - 1)[0].item()
    assert naive == pytest.approx((2 * width) ** 2 / 24, rel=0.1)
    assert (off / exact)[0] < 0.05 * naive
    assert curve.dim == dim


def test_learned_uncertainty_is_the_curve():
    """A network that has learned the logarithm of its loss carries the exact curve of its data."""
    c, data, shape = 0.7, 0.5, (2, 3, 4)
    dim = math.prod(shape)
    sigma = _levels(0.01, 50.0, 20)
    eps2 = dim * c**2 * sigma.square() / (c**2 + sigma.square())

    class Network:
        sigma_data = data

        def logvar(self, sigma):  # of the mean over pixels of the weighted squared error
            each = c**2 * sigma.square() / (c**2 + sigma.square())
            return (each * (sigma.square() + data**2) / (sigma * data).square()).log().float()

    Network.shape = shape
    curve = curve_from_logvar(Network(), sigma)
    torch.testing.assert_close(curve.eps2, eps2, rtol=1e-5, atol=0)  # float32 logarithms
    assert curve.dim == dim


def test_log_lines_merge_and_empty_bins_are_left_out(tmp_path):
    edges = _levels(0.01, 100.0, 9)
    g = _generator(13)
    x = edges[:-1, None].log() + edges.log().diff()[:, None] * torch.rand(8, 90, generator=g, dtype=F64)
    loss = 1 + torch.rand(8, 90, generator=g, dtype=F64)
    lines = [_line(10, x, 50 * loss), *(_line(s, x[:, i::2], loss[:, i::2]) for i, s in enumerate((20, 30)))]
    for line in lines:
        for name in ("count", "loss", "loss2", "log_sigma"):
            line[name][2] = 0
    path = _log(
        tmp_path / "log.jsonl", edges, lines, 0.7, 200
    )  # 50 * loss <= 100 is below that of the identity
    curve = curve_from_training_log(path, first_step=10)
    kept = [0, 1, 3, 4, 5, 6, 7]
    sigma = x[kept].mean(1).exp()
    torch.testing.assert_close(curve.sigma, sigma, rtol=1e-12, atol=0)
    expected = eps2_from_edm_loss(loss[kept].mean(1), sigma, 0.7)
    torch.testing.assert_close(curve.eps2, expected, rtol=1e-12, atol=0)
    expected = eps2_from_edm_loss(loss[kept].std(1) / 90**0.5, sigma, 0.7)
    torch.testing.assert_close(curve.stderr, expected, rtol=1e-9, atol=0)
    assert curve_from_training_log(path).eps2[0] > 10 * curve.eps2[0]
    # A log that grows: the line being written is left for later.
    path.write_text(path.read_text("utf-8") + '{"step": 40, "count": [1', "utf-8")
    assert torch.equal(curve_from_training_log(path, first_step=10).eps2, curve.eps2)
    with pytest.raises(ValueError, match="has 0 lines"):
        curve_from_training_log(path, first_step=30)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        '{"sigma_edges": [1, 2]}',
        '{"sigma_edges": [1, 2], "sigma_data": 1, "dim": 1}\n{"step": 1}',
    ],
)
def test_what_is_no_training_log_is_said(tmp_path, text):
    path = tmp_path / "log.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(ValueError, match="is not a training log"):
        curve_from_training_log(path)


# Bad input

X = _images()
BAD = {
    "denoiser at sigma = 1.0 returned NaN or infinity in 2 of 64": lambda: _bad(
        lambda x, s: torch.where((torch.arange(64) < 2)[:, None, None, None] & (s == 1.0), math.nan, x)
    ),
    "denoiser at sigma = 0.5 returned (64, 2); it must return (64, 2, 6, 6)": lambda: _bad(
        lambda x, s: x[:, :, 0, 0]
    ),
    "denoiser at sigma = 0.5 returned tuple": lambda: _bad(lambda x, s: (x, s)),
    "x is torch.uint8 (64, 2, 6, 6); pass a floating": lambda: _bad(x=X.to(torch.uint8)),
    "x is ndarray": lambda: _bad(x=X.numpy()),
    "x[17] holds NaN": lambda: _bad(x=X.where(torch.arange(64)[:, None, None, None] != 17, math.nan)),
    "samples = 65; x has only 64 rows": lambda: _bad(samples=65),
    "samples = 1;": lambda: _bad(samples=1),
    "batch = 0;": lambda: _bad(batch=0),
    "seed = -1;": lambda: _bad(seed=-1),
    "sigma[0:2] = [1.0, 0.5] does not ascend": lambda: _bad(sigmas=[1.0, 0.5, 2.0, 3.0]),
    "sigma has shape (3,)": lambda: _bad(sigmas=[1.0, 2.0, 3.0]),
    "sigmas[1] = nan": lambda: _bad(sigmas=[1.0, math.nan, 2.0, 3.0]),
    "labels has shape (3,); x has 64 rows": lambda: _bad(labels=[1, 2, 3]),
    "bases['half']: its parts do not sum": lambda: _bad(bases={"half": lambda e: e.flatten(1).square() / 2}),
    "bases['flat'] returned (2,); it must return (2, m)": lambda: _bad(
        bases={"flat": lambda e: e.flatten(1).square().sum(1)}
    ),
    "this basis is one of (3, 3)": lambda: _bad(bases={"frequency": fourier_basis((3, 3))}),
    "basis = 'pixel'; this estimate has []": lambda: _bad().curve("pixel"),
    "rank = 73; x has 72 dimensions": lambda: pca_basis(X, 73),
    "within = 'bin'": lambda: amplitudes(fourier_basis((2, 6, 6)), X, within="bin"),
}


def _bad(denoiser=_linear, **changes):
    arguments = {"x": X, "sigmas": [0.5, 1.0, 2.0, 4.0], "samples": 64, **changes}
    return estimate(denoiser, **arguments)


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_named(words):
    with pytest.raises(ValueError) as error:
        BAD[words]()
    assert words in str(error.value)


# What no good denoiser exceeds


def _damaged():
    """Gaussian data of total variance 204, and a network of them that errs by 1156 at sigma = 80.

    The amplitude of the damage is 4 % of the noise, as that of a network that predicts noise and is 4 % off; published
    networks are like that.
    """
    variances = torch.arange(1, 769, dtype=F64) ** -1.5
    variances *= 204 / variances.sum()
    amplitude = math.sqrt(2 * (1156 - 204) / 80**2 / 768)  # of a sine: the square has mean 1/2

    def network(x, sigma):
        return x / (1 + sigma**2 / variances) + amplitude * sigma * torch.sin(1e3 * x / sigma)

    return variances, network, variances.sqrt() * torch.randn(1000, 768, generator=_generator(15), dtype=F64)


def test_a_network_that_errs_by_more_than_the_variance_of_the_data_gets_no_grid_for_data_of_its_errors():
    variances, network, x = _damaged()
    found = estimate(network, x, edm_sigmas(48)[:-1].flip(0), samples=256, bases={"each": _pixels})
    assert found.eps2[-1].item() == pytest.approx(1156, rel=0.02)  # 768 sines of 256 samples: 1 % and less
    # The relative error of a variance is sqrt(2 sum v^2) / (sum v) / sqrt(256) = 4 %.
    assert found.total_variance == pytest.approx(204, rel=0.15)
    with pytest.warns(UserWarning, match=r"up to 5\.\d+ times total_variance = 2\d\d.*worse .* a constant"):
        curve = found.curve("each")
    assert curve.total_variance == curve.eps2[-1].item() == found.total_variance < found.eps2[-1]
    torch.testing.assert_close(curve.directions.sum(1), curve.eps2, rtol=1e-12, atol=0)
    below = found.eps2 < found.total_variance
    assert torch.equal(curve.eps2[below], found.eps2[below]) and below.sum() > 30
    raw = ErrorCurve(found.sigma, found.eps2)
    widest = {
        name: implied_spectrum(each).variances[-1].sqrt() for name, each in (("raw", raw), ("cut", curve))
    }
    assert widest["raw"] > 35 and widest["cut"] < variances[0].sqrt()  # 9
    cut = ErrorCurve(
        curve.sigma, curve.eps2, dim=768
    )  # not by its directions, which are those of the damage, too
    for solver, calls in (("ddim", 10), ("heun", 10), ("dpmpp_2m", 10)):
        n = find_solver(solver).levels(calls)
        ratio = {}
        for name, each in (("raw", raw), ("cut", cut)):
            sigmas = plan(n, each, solver, free_end=False).sigmas
            ratio[name] = gaussian_deviation(
                variances, sigmas, solver, alpha=DEFAULT.alpha
            ) / gaussian_deviation(variances, edm_sigmas(n), solver, alpha=DEFAULT.alpha)
        assert ratio["cut"] < 1 and ratio["cut"] < ratio["raw"]
        assert ratio["raw"] > 1 or solver != "ddim"


def test_data_that_may_all_lie_above_0_are_no_pixels_where_the_network_says_so():
    class Network:
        shape = 1, 2, 2

        def __call__(self, x, sigma):
            return 8.5 + _linear(x - 8.5, sigma)

    x = 8 + torch.rand(100, 1, 2, 2, generator=_generator(0), dtype=F64)
    with pytest.raises(ValueError, match=r"x runs from .* to .*as pixels in"):
        estimate(Network(), x, SIGMA, samples=8)
    Network.nonnegative = True
    assert estimate(Network(), x, SIGMA, samples=8).eps2.isfinite().all()


def test_the_variance_is_that_of_the_rows_that_were_drawn_and_of_no_few():
    x = 3 + torch.randn(400, 5, generator=_generator(16), dtype=F64)
    for common in (True, False):
        found = estimate(lambda x, s: 3 + _linear(x - 3, s), x, SIGMA, samples=50, common_noise=common)
        drawn = x[found.rows.unique()]
        assert found.total_variance == pytest.approx(torch.cov(drawn.T).trace().item(), rel=1e-12)
        assert found.curve().total_variance == found.total_variance
        assert found.curve(total_variance=5.0).total_variance == 5.0
    # Fifteen rows, and rows that are all alike, say too little.
    assert estimate(lambda x, s: 3 + _linear(x - 3, s), x, SIGMA, samples=15).total_variance is None
    assert estimate(lambda x, s: 0 * x, torch.zeros(40, 2), SIGMA, samples=40).curve().total_variance is None


# What is no denoiser


def _kinds(denoiser):
    """What a network may predict, by the adapter that its message has to name."""

    def noise(x, sigma):
        return (x - denoiser(x, sigma)) / sigma

    return {
        "from_epsilon": noise,
        "from_epsilon, 4 % off": lambda x, s: noise(x, s) + 0.04 * torch.sin(1e3 * x / s),
        "from_v": lambda x, s: (noise(x, s) - s * denoiser(x, s)) / math.sqrt(1 + s**2),
        "from_flow": lambda x, s: noise(x, s) - denoiser(x, s),
        "from_flow, reversed": lambda x, s: denoiser(x, s) - noise(x, s),
        "from_score": lambda x, s: -noise(x, s) / s,
        "from_score, VP": lambda x, s: -noise(x, s) * math.sqrt(1 + s**2) / s,
    }


def _data(scale):
    centres = scale * torch.randn(5, 8, generator=_generator(17), dtype=F64)
    spread = scale * torch.arange(1, 17, dtype=F64) ** -0.5
    mixtures = {
        "clouds": GaussianMixture.isotropic(centres, 0.1 * scale),
        "clouds far from 0": GaussianMixture.isotropic(centres + 2 * scale, 0.1 * scale),
        "points": GaussianMixture.points(centres),
        "one dimension": GaussianMixture.isotropic(scale * torch.tensor([-1.0, 1.0]), 0.2 * scale),
    }
    draw = _generator(18)
    found = {name: (each.sample(200, draw), each.denoiser) for name, each in mixtures.items()}
    gaussian = spread * torch.randn(200, 16, generator=draw, dtype=F64)
    return found | {"Gaussian": (gaussian, lambda x, s: x / (1 + (s / spread) ** 2))}


WIDE, TABLE = _levels(0.002, 80.0, 16), _levels(0.0292, 14.61, 24)  # EDM's range and Stable Diffusion's


@pytest.mark.parametrize("sigma", [WIDE, TABLE], ids=["EDM", "SD"])
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_what_else_a_network_predicts_is_named_with_its_adapter(scale, sigma):
    for x, denoiser in _data(scale).values():
        assert estimate(denoiser, x, sigma, samples=64).curve().dim == x.shape[1]
        for kind, network in _kinds(denoiser).items():
            adapter = kind.partition(",")[0]
            with pytest.raises(
                ValueError, match=rf"does not return the data.*wrap it by entropic\.adapters\.{adapter}\b"
            ):
                estimate(network, x, sigma, samples=64)
        for constant in (lambda x_, s: 0 * x_, lambda x_, s, x=x: x.mean(0).expand(x_.shape)):
            with pytest.raises(ValueError, match="does not depend on x: are its weights loaded"):
                estimate(constant, x, sigma, samples=64)
        with pytest.raises(ValueError, match="returns its input, noise and all"):
            estimate(lambda x, s: x, x, sigma, samples=64)
        with pytest.raises(ValueError, match=r"Nor does it return noise, v, .*check the scale of x"):
            estimate(lambda x, s, denoiser=denoiser: 30 * denoiser(x, s), x, sigma, samples=64)


# A variance of 0.0025 or of 25 a dimension; a network without skip connection, 5 % off everywhere; one whose answers at
# high noise are much worse than a constant; one a fifth too small; one of half precision.
@pytest.mark.parametrize("sigma", [WIDE, TABLE, WIDE[-6:], WIDE[:6]], ids=["EDM", "SD", "high", "low"])
@pytest.mark.parametrize("scale", [0.05, 0.5, 1.0, 5.0])
def test_a_denoiser_good_or_poor_is_none_of_these(scale, sigma):
    for x, denoiser in _data(scale).values():
        for network in (
            denoiser,
            lambda x, s, d=denoiser: d(x, s) + 0.07 * scale * torch.sin(1e3 * x / s),
            lambda x, s, d=denoiser: d(x, s) + 0.04 * s * torch.sin(1e3 * x / s),
            lambda x, s, d=denoiser: 0.8 * d(x, s),
            lambda x, s, d=denoiser: d(x.bfloat16().to(F64), s).bfloat16(),
        ):
            assert estimate(network, x, sigma, samples=64).sigma is not None


def test_a_constant_is_a_denoiser_where_there_is_nothing_but_noise():
    x = torch.randn(200, 4, generator=_generator(19), dtype=F64)
    curve = estimate(lambda x, s: 0 * x, x, _levels(10.0, 80.0, 5), samples=64).curve()
    assert (curve.eps2 == curve.eps2[0]).all()


def test_the_shipped_network_is_one_and_its_noise_is_not():
    images, network = load_images("fashion-mnist", "train", "embedded"), load_network("fashion-mnist")
    x, labels = to_pixels(images.images[:200]), images.labels[:200]
    arguments = {"labels": labels, "samples": 16, "batch": 16}
    found = estimate(network, x, WIDE[::3], **arguments)
    assert torch.equal(found.curve().eps2, found.eps2)
    with pytest.raises(
        ValueError, match=r"looks like the noise: wrap it by entropic\.adapters\.from_epsilon$"
    ):
        estimate(lambda x, s, c: (x - network(x, s, c)) / s, x, WIDE[::3], **arguments)


def test_a_wrong_network_is_found_out_before_all_its_calls_are_made():
    x, calls = torch.randn(200, 4, generator=_generator(20), dtype=F64), []

    def noise(x, sigma):
        calls.append(len(x))
        return (x - _linear(x, sigma)) / sigma

    with pytest.raises(ValueError, match="from_epsilon"):
        estimate(noise, x, WIDE, samples=200, batch=8)
    assert sum(calls) == 32 * len(WIDE)


def test_a_wrong_network_is_told_again_where_there_is_a_store(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PAUSE", 0.0)
    x = torch.randn(40, 4, generator=_generator(22), dtype=F64)
    arguments = {"samples": 40, "store": tmp_path / "store.npz", "tag": "one", "bases": {"each": _pixels}}
    for _ in range(2):
        with pytest.raises(ValueError, match="from_epsilon"):
            estimate(lambda x, s: (x - _linear(x, s)) / s, x, WIDE, **arguments)
    # Mended under the same name, it starts anew.
    found = estimate(_linear, x, WIDE, **arguments)
    expected = estimate(_linear, x, WIDE, samples=40, bases={"each": _pixels})
    assert torch.equal(found.errors, expected.errors)
    assert torch.equal(found.directions["each"][0], expected.directions["each"][0])


def test_an_estimate_is_shown_in_one_line():
    x = torch.randn(50, 5, generator=_generator(21), dtype=F64)
    found = estimate(_linear, x, SIGMA, samples=20, bases={"each": _pixels})
    assert repr(found) == (
        "Estimate(12 levels from 0.05 to 20, dim 5, 20 samples a level from 20 rows, directions 'each')"
    )
