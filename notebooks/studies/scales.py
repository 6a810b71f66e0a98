"""Eight exact models in 64 dimensions whose samples differ in scale, place or number of parts.

No Gaussian describes such data, although their error curve may be that of a Gaussian spectrum: how large a sample is
becomes known only on its way to sigma = 0, and the denoiser bends there. Every denoiser here is exact, E[x0 | x].

    models() -> {name: Model(denoiser, sample, variances, about)}
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

__all__ = ["Model", "blobs", "models", "scale_mixture", "sparse"]

SIDE = 8
DIM = SIDE**2  # dimensions of every model: pixels of an image of 8 by 8


class Model(NamedTuple):
    """Data with an exact denoiser.

    denoiser(x, sigma) -> E[x0 | x] for x (N, 64) floating, worked out in float64. sample(n, generator) -> (n, 64),
    float64. variances: of the data along their principal directions, (64,), descending. about: what the data are.
    """

    denoiser: Callable
    sample: Callable
    variances: torch.Tensor
    about: str


def models():
    """The eight `Model`s by name."""
    even, law = torch.ones(DIM, dtype=torch.float64), 1 / torch.arange(1, DIM + 1, dtype=torch.float64)
    radial = 1 / (1 + _frequencies())
    return {
        "isotropic, spread 0.5": scale_mixture(even, 0.5),
        "isotropic, spread 1": scale_mixture(even, 1.0),
        "power law, spread 0.5": scale_mixture(law, 0.5),
        "power law, spread 1": scale_mixture(law, 1.0),
        "blobs": blobs([2.0]),
        "blobs, bright and faint": blobs([0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]),
        "sparse pixels": sparse(even, None),
        "sparse waves": sparse(radial, _cosines()),
    }


def scale_mixture(variances, spread, step=0.06):
    """x0 = r z with z ~ N(0, diag(variances)) and log r ~ N(0, spread^2): bright and faint samples of one shape.

    Given r the data are Gaussian, so that E[x0 | x] = x sum_r p(r | x) r^2 c^2 / (r^2 c^2 + sigma^2). The integral over
    log r is the trapezoid rule over 9 standard deviations to either side. The integrand is smooth: in D dimensions the
    law of log r given x is no narrower than about 1 / sqrt(2 D) = 0.088, for which a `step` of 0.06 leaves a relative
    error of exp(-2 pi^2 (0.088 / 0.06)^2) < 1e-18.
    """
    count = 2 * math.ceil(9 * spread / step) + 1
    logs = torch.linspace(-9 * spread, 9 * spread, count, dtype=torch.float64)
    weights = -(logs / spread).square() / 2
    scaled = (2 * logs).exp()[:, None] * variances  # (Q, D)

    def denoiser(x, sigma):
        state, noised = x.double(), scaled + sigma**2
        share = weights - (noised.log().sum(1) + state.square() @ (1 / noised).T) / 2
        return ((share.softmax(1) @ (scaled / noised)) * state).to(x.dtype)

    def sample(n, generator):
        r = (spread * torch.randn(n, 1, generator=generator, dtype=torch.float64)).exp()
        return r * variances.sqrt() * torch.randn(n, DIM, generator=generator, dtype=torch.float64)

    shape = "white noise" if (variances == variances[0]).all() else "Gaussian with variances 1/k"
    return Model(
        denoiser,
        sample,
        math.exp(2 * spread**2) * variances,
        f"{shape}, each sample times a factor r, log r ~ N(0, {spread:g}^2)",
    )


def blobs(amplitudes, width=1.2, noise=0.05):
    """One Gaussian bump at one of the 64 pixels, on a torus, of one of some heights, plus white noise.

    It is a mixture of Gaussians N(a b_p, noise^2 I) with equal weights: posterior shares times means, then the noise.
    """
    at = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"), -1).reshape(
        DIM, 2
    )
    apart = (at[:, None] - at).abs()
    apart = torch.minimum(apart, SIDE - apart).double()
    shapes = (-apart.square().sum(2) / (2 * width**2)).exp()  # (position, pixel)
    heights = torch.tensor(amplitudes, dtype=torch.float64)
    square = shapes[0].square().sum()  # of every bump: they are shifts of one another

    def denoiser(x, sigma):
        state, noised = x.double(), noise**2 + sigma**2
        along = (state @ shapes.T)[:, :, None]  # (N, position, height)
        share = ((along * heights - heights.square() * square / 2) / noised).flatten(1).softmax(1)
        mean = (share.reshape(len(x), DIM, -1) @ heights) @ shapes
        return (mean + noise**2 / noised * (state - mean)).to(x.dtype)

    def sample(n, generator):
        place = torch.randint(DIM, (n,), generator=generator)
        height = heights[torch.randint(len(heights), (n,), generator=generator)]
        grain = torch.randn(n, DIM, generator=generator, dtype=torch.float64)
        return height[:, None] * shapes[place] + noise * grain

    mean = heights.mean() * shapes.mean(0)
    covariance = heights.square().mean() * shapes.T @ shapes / DIM - torch.outer(mean, mean)
    variances = torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0) + noise**2
    many = (
        "height 2"
        if len(heights) == 1
        else f"one of {len(heights)} heights from {min(amplitudes):g} to {max(amplitudes):g}"
    )
    return Model(
        denoiser,
        sample,
        variances,
        f"a bump of {many} at a random pixel of a torus, plus noise of deviation {noise:g}",
    )


def sparse(variances, basis, share=0.1, faint=0.02):
    """Independent coefficients, few of them large: N(0, variance) with probability `share`, else faint^2 times that.

    basis (D, D) orthonormal, its rows the directions of the coefficients; None for pixels. Each coefficient has a
    mixture of two Gaussians for its law, so that the denoiser works coefficient by coefficient.
    """
    scaled = torch.stack([variances, faint**2 * variances])  # (2, D)
    weights = torch.tensor([[share], [1 - share]], dtype=torch.float64).log()

    def denoiser(x, sigma):
        state, noised = x.double(), scaled + sigma**2
        state = state if basis is None else state @ basis.T
        logits = weights - (noised.log() + state[:, None].square() / noised) / 2
        state = (logits.softmax(1) * (scaled / noised)).sum(1) * state
        return (state if basis is None else state @ basis).to(x.dtype)

    def sample(n, generator):
        large = torch.rand(n, DIM, generator=generator, dtype=torch.float64) < share
        x = torch.where(large, 1.0, faint) * variances.sqrt()
        x = x * torch.randn(n, DIM, generator=generator, dtype=torch.float64)
        return x if basis is None else x @ basis

    total = (share + (1 - share) * faint**2) * variances
    what = "pixels" if basis is None else "cosine waves of variance 1 / (1 + frequency^2)"
    return Model(
        denoiser,
        sample,
        total.sort(descending=True).values,
        f"independent {what}: one in {1 / share:.0f} is large, the others {1 / faint:.0f} times smaller",
    )


def _frequencies():
    """The squared spatial frequency (64,) of each row of `_cosines`."""
    k = torch.arange(SIDE, dtype=torch.float64)
    return (k[:, None].square() + k.square()).flatten()


def _cosines():
    """The orthonormal cosine transform of an image of 8 by 8, (64, 64): one wave a row."""
    k = torch.arange(SIDE, dtype=torch.float64)
    waves = (math.pi / SIDE * k[:, None] * (k + 0.5)).cos() * math.sqrt(2 / SIDE)
    waves[0] /= math.sqrt(2)
    return torch.kron(waves, waves)
