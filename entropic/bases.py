"""Orthonormal bases of the data space, whose squared components tell where in it an error lies."""

import torch

from entropic._check import integer

__all__ = ["Basis", "amplitudes", "fourier_basis", "pca_basis"]


class Basis:
    """An orthonormal basis whose vectors are gathered into m bins: basis(x (B, ...)) -> (B, m).

    Returns the squared components of x summed within each bin; over all bins they sum to ||x||^2. multiplicity
    (m,) counts the vectors of a bin. By kind of basis: `radius` and `channel` (m,), or `variance` (m,).
    """

    def __init__(self, parts, shape, multiplicity, radius=None, channel=None, variance=None):
        self._parts, self.shape, self.multiplicity = parts, tuple(shape), multiplicity
        self.radius, self.channel, self.variance = radius, channel, variance

    def __call__(self, x):
        if x[0].numel() != torch.Size(self.shape).numel():
            raise ValueError(f"x has shape {tuple(x.shape)}; this basis is one of {self.shape}")
        return self._parts(x.reshape(len(x), *self.shape))


def fourier_basis(shape):
    """The `Basis` of 2-D frequencies, binned by radius in each channel; Algorithm 3.

    shape (..., H, W), leading dimensions are channels. Orthonormal FFT of the last two; the radius
    sqrt(fx^2 + fy^2), in cycles per longer side, is rounded to whole numbers. Bins run channel by channel.
    """
    *leading, height, width = shape
    channels, side = torch.Size(leading).numel(), max(height, width)
    fy, fx = (torch.fft.fftfreq(n, 1 / side, dtype=torch.float64) for n in (height, width))
    radius, index = (fy[:, None].square() + fx.square()).sqrt().round().flatten().unique(return_inverse=True)
    members = torch.nn.functional.one_hot(index).double()

    def parts(x):
        spectrum = torch.fft.fft2(x.reshape(len(x), channels, height, width), norm="ortho")
        power = spectrum.real.square() + spectrum.imag.square()
        # A product, not a scatter, which would sum in another order each time on a GPU.
        return (power.flatten(2) @ members.to(power)).flatten(1)

    channel = torch.arange(channels).repeat_interleave(len(radius))
    return Basis(parts, shape, members.sum(0).repeat(channels), radius.repeat(channels), channel)


def pca_basis(x, rank=None):
    """The `Basis` of the leading `rank` eigenvectors (all unless given) of the covariance of x (N, ...).

    Variances descend; where rank < D one last bin holds the complement and its total variance.
    """
    shape, flat = x.shape[1:], x.flatten(1)
    dim = flat.shape[1]
    rank = dim if rank is None else integer("rank", rank, 1)
    if rank > dim:
        raise ValueError(f"rank = {rank}; x has {dim} dimensions")
    mean = sum(part.double().sum(0) for part in flat.split(4096)) / len(flat)
    covariance = sum(c.T @ c for c in (part.double() - mean for part in flat.split(4096))) / len(flat)
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)[:, :rank]
    multiplicity, variance = torch.ones(rank, dtype=torch.float64), values[:rank].cpu()
    if rank < dim:
        multiplicity = torch.cat([multiplicity, torch.tensor([float(dim - rank)], dtype=torch.float64)])
        variance = torch.cat([variance, values[rank:].sum().cpu()[None]])

    def parts(x):
        x = x.flatten(1)
        along = (x @ vectors.to(x)).square()
        if rank == dim:
            return along
        rest = x.square().sum(1, keepdim=True) - along.sum(1, keepdim=True)
        return torch.cat([along, rest.clamp_min(0)], 1)

    return Basis(parts, shape, multiplicity, variance=variance)


def amplitudes(basis, x, centred=True, within="mean"):
    """Root-mean-square amplitude of data x (N, ...) in each bin of a `Basis`, (m,); weights of Algorithm 3.

    The paper takes 10,000 images and leaves open the mean and the bin. Here amplitudes are those of deviations
    from the mean of x, as a known mean costs no error (centred=False: of x itself); and `within` a bin the root
    mean square over its vectors, the amplitude of one typical vector. With within="sum" that counts once for
    each vector of the bin: for Gaussian data, where a direction of variance c^2 has the rescaled entropy
    c arctan(sigma / c), the spectral time is then the rescaled time (up to its tail above the last level).
    """
    if within not in {"mean", "sum"}:
        raise ValueError(f'within = {within!r}; use "mean" or "sum"')
    mean = sum(part.double().sum(0) for part in x.split(1024)) / len(x)
    power = sum(basis(part.double() - mean * bool(centred)).sum(0).cpu() for part in x.split(1024)) / len(x)
    each = (power / basis.multiplicity).sqrt()
    return each * basis.multiplicity if within == "sum" else each
