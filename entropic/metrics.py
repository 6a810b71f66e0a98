"""Frechet distances between sets of images, from float64 moments."""

import torch

from entropic._check import as_float64


def moments(x):
    """Mean (D,) and covariance (D, D; divided by N - 1) of the rows of x (N, D), N >= 2, in float64."""
    x = as_float64("x", x)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; pass at least two rows (N, D)")
    return x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1])


def frechet_distance(mean_a, covariance_a, mean_b, covariance_b):
    """||mean_a - mean_b||^2 + tr(A + B - 2 (A B)^(1/2)), in squared data units.

    With B = L L^T the trace of the root is taken from the symmetric eigenvalues of L^T A L: real, and stable
    also for singular covariances. Between Gaussians it is the squared 2-Wasserstein distance (Dowson and
    Landau 1982). Fastest when the reference, B, is positive definite.
    """
    mean_a, mean_b = as_float64("mean_a", mean_a), as_float64("mean_b", mean_b)
    a, b = as_float64("covariance_a", covariance_a), as_float64("covariance_b", covariance_b)
    expected = (len(mean_a), len(mean_a))
    if mean_a.shape != mean_b.shape or a.shape != expected or b.shape != expected:
        shapes = [tuple(t.shape) for t in (mean_a, a, mean_b, b)]
        raise ValueError(
            f"mean_a, covariance_a, mean_b, covariance_b have shapes {shapes}; pass (D,) and (D, D)"
        )
    root, failed = torch.linalg.cholesky_ex(b)
    if failed:
        values, vectors = torch.linalg.eigh(b)
        root = vectors * values.clamp_min(0).sqrt()
    overlap = torch.linalg.eigvalsh(root.T @ a @ root).clamp_min(0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * overlap)
