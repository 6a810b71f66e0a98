"""Frechet distance against closed forms and torch-fidelity's implementation; moments; bad input."""

import sys

import numpy as np
import pytest
import torch

from entropic.metrics import frechet_distance, moments


def _gaussian(dim, seed, rank=None):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, rank or 2 * dim, generator=g, dtype=torch.float64)
    return torch.randn(dim, generator=g, dtype=torch.float64), root @ root.T / root.shape[1]


@pytest.fixture(name="torchvision")
def _torchvision():
    """torchvision, which torch-fidelity imports: beside a torch without CUDA its wheel lacks two declarations.

    They are made only where the import has failed for want of them: elsewhere a second one would abort Python.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        yield library
    else:
        yield torchvision


def test_agrees_with_torch_fidelity(torchvision):
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    (mean_a, a), (mean_b, b) = _gaussian(30, 0), _gaussian(30, 1)
    stats = [{"mu": m.numpy(), "sigma": c.numpy()} for m, c in ((mean_a, a), (mean_b, b))]
    reference = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    # The reference takes roots of unsymmetric eigenvalues: errors of 1e-16 times conditioning, below 1e-10.
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(reference, rel=1e-9)


def test_commuting_covariances_have_a_closed_form():
    mean, rotation = torch.zeros(4, dtype=torch.float64), torch.linalg.qr(_gaussian(4, 2)[1]).Q
    a, b = torch.tensor([1.0, 4.0, 9.0, 0.0]).double(), torch.tensor([4.0, 1.0, 0.0, 16.0]).double()
    expected = (a.sqrt() - b.sqrt()).square().sum().item() + 4 * 0.25
    found = frechet_distance(mean, rotation * a @ rotation.T, mean + 0.5, rotation * b @ rotation.T)
    # A zero eigenvalue comes out as 1e-16 and its root as 1e-8.
    assert found == pytest.approx(expected, abs=1e-6)


def test_is_symmetric_and_zero_on_itself_also_when_singular():
    (mean_a, a), (mean_b, b) = _gaussian(10, 3, rank=4), _gaussian(10, 4)
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(
        frechet_distance(mean_b, b, mean_a, a), abs=1e-6
    )
    assert frechet_distance(mean_b, b, mean_b, b) == pytest.approx(0, abs=1e-12 * float(b.trace()) * 100)


def test_moments_are_numpys():
    x = np.random.default_rng(0).normal(size=(50, 3))
    mean, covariance = moments(x)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(covariance, np.cov(x.T), rtol=1e-13)


@pytest.mark.parametrize("x", [[[1.0, 2.0]], [1.0, 2.0], [[1.0], [float("nan")]]])
def test_moments_refuse_bad_samples(x):
    with pytest.raises(ValueError, match="x"):
        moments(x)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="covariance_b"):
        frechet_distance(torch.zeros(2), torch.eye(2), torch.zeros(2), torch.eye(3))
