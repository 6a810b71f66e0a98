"""Gaussian mixtures and point masses whose denoiser, score and squared error are known exactly."""

from __future__ import annotations

import math

import numpy as np
import torch

from entropic._check import as_float64, integer
from entropic.types import Numbers

# Quadrature of p(x; sigma) in one dimension: panels of half a standard deviation of every component, to nine
# of them (the density left out is below 1e-18), eight Gauss-Legendre nodes a panel.
_REACH, _PANELS, _NODES = 9.0, 36, 8

# A sum of K exponentials keeps its value to the last bit (2^-53 = e^-36.7) where terms are left out that lie
# this many nats, and log K more, below the largest.
_DEPTH = 37.0

# One matrix product over all components is faster than a loop over components with their rows where more
# than this share of the (row, component) pairs matters: measured at 10 components, rank 16, 170 dimensions.
_SHARE = 0.15


class GaussianMixture:
    """Mixture of N(mean_k, noise_k I + basis_k diag(eigenvalues_k) basis_k^T), observed as x = x0 + sigma z.

    Build one with `points`, `isotropic`, `full`, `low_rank` or `fit_low_rank`. A point mass is a component
    without variance. All densities go through log-sum-exp; `sigma` is a number or one value a row of x.

    weights (K,), means (K, D), noise (K,) variances, basis (K, D, r) orthonormal, eigenvalues (K, r) >= 0.
    """

    def __init__(
        self,
        weights: Numbers | None,
        means: Numbers,
        noise: Numbers,
        basis: torch.Tensor | None = None,
        eigenvalues: torch.Tensor | None = None,
    ) -> None:
        means = as_float64("means", means)
        if means.ndim == 1:
            means = means[:, None]
        if means.ndim != 2 or means.numel() == 0:
            raise ValueError(f"means has shape {tuple(means.shape)}; pass (components, dimensions)")
        k, dim = means.shape
        weights = (
            torch.full((k,), 1 / k, dtype=torch.float64)
            if weights is None
            else as_float64("weights", weights)
        )
        if weights.shape != (k,):
            raise ValueError(f"weights has shape {tuple(weights.shape)}; {k} means need ({k},)")
        if not (weights > 0).all():
            raise ValueError(f"weights = {weights.tolist()}; each must be above 0, drop empty components")
        if abs(weights.sum().item() - 1) > 1e-9:
            raise ValueError(f"weights sum to {weights.sum().item()}; divide them by their sum")
        noise = as_float64("noise", noise)
        if noise.shape not in {(), (k,)}:
            raise ValueError(f"noise has shape {tuple(noise.shape)}; pass one variance or ({k},)")
        if not (noise >= 0).all():
            raise ValueError(f"noise = {noise.tolist()}; a variance is at least 0")
        if basis is None:
            basis, eigenvalues = means.new_zeros(k, dim, 0), means.new_zeros(k, 0)
        # Copies: what the caller does to its tensors later is of no effect here.
        self.weights, self.means, self.noise = weights.clone(), means.clone(), noise.expand(k).clone()
        self.basis, self.eigenvalues = basis.clone(), eigenvalues.clone()
        self.dim, self.rank = dim, basis.shape[2]
        self._flat_basis = self.basis.permute(1, 0, 2).reshape(dim, -1)
        self._centres = torch.einsum("kd,kdr->kr", self.means, self.basis)
        # On a line, many components of one width (a kernel density) are summed over a window of the sorted ones.
        self._line = dim == 1 and k >= 64 and self.rank == 0 and bool((self.noise == self.noise[0]).all())

    @classmethod
    def points(cls, means: Numbers, weights: Numbers | None = None) -> GaussianMixture:
        """Point masses at `means` (K, D) or (K,), with equal weights unless given."""
        return cls(weights, means, 0.0)

    @classmethod
    def isotropic(cls, means: Numbers, std: Numbers, weights: Numbers | None = None) -> GaussianMixture:
        """Gaussians N(means_k, std_k^2 I); `std` is one number or (K,), in data units."""
        std = as_float64("std", std)
        if not (std >= 0).all():
            raise ValueError(f"std = {std.tolist()}; a standard deviation is at least 0")
        return cls(weights, means, std.square())

    @classmethod
    def full(cls, means: Numbers, covariances: Numbers, weights: Numbers | None = None) -> GaussianMixture:
        """Gaussians N(means_k, covariances_k); `covariances` (K, D, D) symmetric, positive semidefinite."""
        covariances = as_float64("covariances", covariances)
        means = as_float64("means", means)
        if means.ndim != 2 or covariances.shape != (*means.shape, means.shape[1]):
            expected = "(K, D) and (K, D, D)"
            raise ValueError(
                f"means {tuple(means.shape)} and covariances {tuple(covariances.shape)}: pass {expected}"
            )
        asymmetry = (covariances - covariances.mT).abs().max().item()
        scale = covariances.abs().max().item()
        if asymmetry > 1e-10 * scale:
            raise ValueError(f"covariances differ from their transposes by {asymmetry}; symmetrise them")
        eigenvalues, basis = torch.linalg.eigh(covariances)
        if eigenvalues.min() < -1e-10 * scale:
            raise ValueError(
                f"covariances have the eigenvalue {eigenvalues.min().item()}; none may be below 0"
            )
        return cls(weights, means, 0.0, _signed(basis), eigenvalues.clamp_min(0))

    @classmethod
    def low_rank(
        cls, means: Numbers, factors: Numbers, noise: Numbers, weights: Numbers | None = None
    ) -> GaussianMixture:
        """Gaussians N(means_k, noise_k I + factors_k factors_k^T); `factors` (K, D, r) with r < D."""
        means, factors = as_float64("means", means), as_float64("factors", factors)
        if (
            factors.ndim != 3
            or factors.shape[:2] != means.shape
            or not 0 < factors.shape[2] < factors.shape[1]
        ):
            raise ValueError(
                f"factors has shape {tuple(factors.shape)}; means {tuple(means.shape)} need (K, D, r), r < D"
            )
        basis, singular, _ = torch.linalg.svd(factors, full_matrices=False)
        return cls(weights, means, noise, _signed(basis), singular.square())

    @classmethod
    def fit_low_rank(
        cls, x: Numbers, labels: Numbers, rank: int, shared_noise: bool = False
    ) -> GaussianMixture:
        """Fit one probabilistic PCA a class by maximum likelihood, in closed form.

        x (N, D), labels (N,) integers; `rank` < D leading directions are kept and the mean of the other
        eigenvalues becomes the isotropic variance: one a class, or with `shared_noise` one for all classes
        (their mean, weighted by size). Weights are the shares of the classes.
        Source: Tipping and Bishop (1999), eqs. 7 and 8.
        """
        x, labels = as_float64("x", x), torch.as_tensor(labels)
        if x.ndim != 2 or labels.shape != x.shape[:1]:
            raise ValueError(f"x {tuple(x.shape)} and labels {tuple(labels.shape)}: pass (N, D) and (N,)")
        rank = integer("rank", rank, 1)
        if rank >= x.shape[1]:
            raise ValueError(f"rank = {rank}; it must be below the {x.shape[1]} dimensions of x")
        means, noise, basis, eigenvalues, weights = [], [], [], [], []
        for label in labels.unique():
            members = x[labels == label]
            if len(members) < 2:
                raise ValueError(f"labels: class {label.item()} has {len(members)} member; two are needed")
            mean = members.mean(0)
            values, vectors = torch.linalg.eigh((members - mean).T @ (members - mean) / len(members))
            means.append(mean)
            noise.append(values[:-rank].mean().clamp_min(0))
            basis.append(_signed(vectors[:, -rank:]))
            eigenvalues.append(values[-rank:])
            weights.append(len(members) / len(x))
        weights, noise = torch.tensor(weights, dtype=torch.float64), torch.stack(noise)
        if shared_noise:
            noise = (weights @ noise).expand(len(noise))
        eigenvalues = (torch.stack(eigenvalues) - noise[:, None]).clamp_min(0)
        return cls(weights, torch.stack(means), noise, torch.stack(basis), eigenvalues)

    # Moments and samples of the data

    def mean(self) -> torch.Tensor:
        """Mean of the data, (D,)."""
        return self.weights @ self.means

    def covariance(self) -> torch.Tensor:
        """Covariance of the data, (D, D): within plus between components."""
        centred = self.means - self.mean()
        scaled = self.basis * (self.weights[:, None] * self.eigenvalues)[:, None, :]
        within = torch.einsum("kir,kjr->ij", scaled, self.basis)
        isotropic = (self.weights @ self.noise) * torch.eye(self.dim, dtype=torch.float64)
        return within + isotropic + (self.weights[:, None] * centred).T @ centred

    def standardised(self) -> GaussianMixture:
        """The same mixture shifted and scaled to mean 0 and mean variance 1 a dimension."""
        scale = (self.covariance().trace() / self.dim).sqrt()
        if scale == 0:
            raise ValueError("the mixture has variance 0; a single point cannot be standardised")
        means = (self.means - self.mean()) / scale
        return GaussianMixture(
            self.weights, means, self.noise / scale**2, self.basis, self.eigenvalues / scale**2
        )

    def reduced(self) -> tuple[GaussianMixture, torch.Tensor]:
        """The mixture in the subspace that holds its means and bases, and that subspace's frame (D, q).

        Only for components that share one isotropic variance: orthogonal to the frame the data is then
        N(0, noise I), independent of the rest, for which every sampler's law is known in closed form.
        """
        if not (self.noise == self.noise[0]).all():
            raise ValueError(f"noise = {self.noise.tolist()}; only a shared isotropic variance splits off")
        span = torch.cat([self.means.T, self._flat_basis], 1)
        frame, singular, _ = torch.linalg.svd(span, full_matrices=False)
        frame = _signed(frame[:, singular > 1e-12 * singular[0]])
        basis = torch.einsum("dq,kdr->kqr", frame, self.basis)
        return GaussianMixture(self.weights, self.means @ frame, self.noise, basis, self.eigenvalues), frame

    def sample(self, n: int, generator: torch.Generator | None) -> torch.Tensor:
        """Draw `n` data points, (n, D), with the given torch generator."""
        n = integer("n", n, 1)
        label = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        x = torch.randn(n, self.dim, dtype=torch.float64, generator=generator)
        along = torch.randn(n, self.rank, dtype=torch.float64, generator=generator)
        x = self.means[label] + self.noise[label].sqrt()[:, None] * x
        for k in range(len(self.weights)) if self.rank else ():
            rows = label == k
            x[rows] += (along[rows] * self.eigenvalues[k].sqrt()) @ self.basis[k].T
        return x

    # What a diffusion model learns, exactly

    def log_density(self, x: Numbers, sigma: Numbers = 0.0) -> torch.Tensor:
        """log p(x; sigma) of the noised data, nats; x (N, D) -> (N,).

        On a line, with one width for all components and one sigma, a point sums only the components that
        matter to the last bit: a kernel density, `isotropic(samples, width)`, costs milliseconds.
        """
        x, sigma = self._inputs(x, sigma)
        if self._line and len(sigma) == 1 and len(x):
            return self._log_density_on_line(x[:, 0], sigma)
        return self._joint(x, sigma)[0].logsumexp(1)

    def responsibilities(self, x: Numbers, sigma: Numbers) -> torch.Tensor:
        """Posterior probability of every component given x, (N, K)."""
        return self._joint(*self._inputs(x, sigma))[0].softmax(1)

    def score(self, x: Numbers, sigma: Numbers) -> torch.Tensor:
        """Gradient of log p(x; sigma), (N, D)."""
        x, sigma = self._inputs(x, sigma)
        joint, along = self._joint(x, sigma)
        isotropic, directions = self._variances(sigma)
        inverse = 1 / isotropic if self.rank < self.dim else torch.zeros_like(isotropic)
        return self._combine(
            x, joint.softmax(1), along, torch.zeros_like(self.means), -inverse, -1 / directions
        )

    def denoiser(self, x: Numbers, sigma: Numbers) -> torch.Tensor:
        """D(x; sigma) = E[x0 | x], (N, D)."""
        x, sigma = self._inputs(x, sigma)
        joint, along = self._joint(x, sigma)
        return self._combine(x, joint.softmax(1), along, self.means, *self._gains(sigma))

    def posterior_covariance(self, x: Numbers, sigma: Numbers) -> torch.Tensor:
        """Cov[x0 | x], (N, D, D). By Tweedie's second identity (App. G) sigma^2 (I + sigma^2 Hess log p)."""
        x, sigma = self._inputs(x, sigma)
        joint, along = self._joint(x, sigma)
        gamma = joint.softmax(1)
        isotropic, directions = self._gains(sigma)
        isotropic = sigma[:, None].square() * isotropic
        directions = sigma[:, None, None].square() * directions
        excess = gamma[:, :, None] * (directions - isotropic[:, :, None])
        within = torch.einsum("nkr,kir,kjr->nij", excess, self.basis, self.basis)
        within = within + (gamma * isotropic).sum(1)[:, None, None] * torch.eye(self.dim, dtype=torch.float64)
        centred = self._centred_means(x, gamma, along, sigma)
        return within + torch.einsum("nk,nki,nkj->nij", gamma, centred, centred)

    def posterior_variance(self, x: Numbers, sigma: Numbers) -> torch.Tensor:
        """Trace of Cov[x0 | x], (N,): the squared error that no denoiser can undercut at x."""
        x, sigma = self._inputs(x, sigma)
        rows = max(1, 2**24 // (len(self.weights) * self.dim))
        parts = []
        for chunk, at in zip(x.split(rows), sigma.expand(len(x)).split(rows), strict=True):
            at = sigma if len(sigma) == 1 else at
            joint, along = self._joint(chunk, at)
            parts.append(self._posterior_variance(chunk, joint.softmax(1), along, at))
        return torch.cat(parts)

    # Averages over p(x; sigma)

    def quadrature(self, sigma: Numbers) -> tuple[torch.Tensor, torch.Tensor]:
        """Nodes (n, 1) and weights (n,) that integrate smooth functions times p(x; sigma); one dimension.

        Composite Gauss-Legendre whose panels follow every component's own width, so that a narrow
        component inside a wide one is resolved. `sigma` is one number.
        """
        if self.dim != 1:
            raise ValueError(
                f"the mixture has {self.dim} dimensions; quadrature needs 1, use eps2_monte_carlo"
            )
        variance = self._variances(self._sigma(sigma))
        width = (variance[1][0, :, 0] if self.rank else variance[0][0]).sqrt()
        if not (width > 0).all():
            raise ValueError(f"sigma = {float(sigma)}; point masses have a density only at sigma > 0")
        offsets = torch.linspace(-_REACH, _REACH, _PANELS + 1, dtype=torch.float64)
        edges = (self.means + width[:, None] * offsets).flatten().sort().values
        # Where components overlap, panels of a quarter of the narrowest width, end to end, are fewer.
        even = math.ceil(float((edges[-1] - edges[0]) / width.min()) * _PANELS / _REACH)
        if even < len(edges) - 1:
            edges = torch.linspace(float(edges[0]), float(edges[-1]), even + 1, dtype=torch.float64)
        node, weight = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(_NODES))
        half, middle = edges.diff() / 2, (edges[1:] + edges[:-1]) / 2
        keep = half > 0
        half, middle = half[keep, None], middle[keep, None]
        return (middle + half * node).reshape(-1, 1), (half * weight).flatten()

    def eps2(self, sigma: Numbers) -> torch.Tensor:
        """E||x0 - D(x; sigma)||^2 by quadrature, shaped like `sigma`; one dimension."""

        def error(x, sigma):
            x, sigma = self._inputs(x, sigma)
            joint, along = self._joint(x, sigma)
            top = joint.amax(1, keepdim=True)
            share = (joint - top).exp()
            total = share.sum(1, keepdim=True)
            density = (total * top.exp())[:, 0]
            return density * self._posterior_variance(x, share / total, along, sigma)

        return self._integrate(error, sigma)

    def eps2_monte_carlo(
        self, sigma: Numbers, n: int, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """E||x0 - D(x; sigma)||^2 and its standard error from `n` samples, both shaped like `sigma`.

        Averages the posterior variance (less noisy than the squared error), with the same samples
        and noise at every sigma, so that the curve is smooth.
        """
        sigma = as_float64("sigma", sigma)
        n = integer("n", n, 2)
        x0 = self.sample(n, generator)
        z = torch.randn(n, self.dim, dtype=torch.float64, generator=generator)
        values = torch.stack([self.posterior_variance(x0 + s * z, s) for s in sigma.reshape(-1)])
        return values.mean(1).reshape(sigma.shape), (values.std(1) / n**0.5).reshape(sigma.shape)

    def marginal_entropy(self, sigma: Numbers) -> torch.Tensor:
        """H[x] of the noised data by quadrature, nats, shaped like `sigma`; one dimension."""

        def surprise(x, sigma):
            log_density = self.log_density(x, sigma)
            return -log_density * log_density.exp()

        return self._integrate(surprise, sigma)

    def conditional_entropy(self, sigma: Numbers) -> torch.Tensor:
        """H[x0 | x] at noise sigma by quadrature, nats, shaped like `sigma`; one dimension.

        Discrete for point masses, differential for Gaussians. Source: eq. 7.
        """
        sigma = as_float64("sigma", sigma)
        points = (self.noise == 0) & (self.eigenvalues == 0).all(1)
        if points.all():

            def surprise(x, sigma):
                joint = self._joint(*self._inputs(x, sigma))[0]
                log_gamma = joint.log_softmax(1)
                return -(log_gamma.exp() * log_gamma).sum(1) * joint.logsumexp(1).exp()

            return self._integrate(surprise, sigma)
        if points.any():
            raise ValueError("the mixture joins points and Gaussians; its entropy has no density to refer to")
        noise_entropy = 0.5 * math.log(2 * math.pi * math.e) + sigma.log()
        return self.marginal_entropy(0.0) + noise_entropy - self.marginal_entropy(sigma)

    def _integrate(self, function, sigma):
        sigma = as_float64("sigma", sigma)
        totals = []
        for s in sigma.reshape(-1):
            x, weight = self.quadrature(s)
            totals.append(weight @ function(x, s))
        return torch.stack(totals).reshape(sigma.shape)

    # Pieces that the quantities above share; K components, r directions, S = 1 or N values of sigma

    def _sigma(self, sigma):
        sigma = as_float64("sigma", sigma).reshape(-1)
        if not (sigma >= 0).all():
            raise ValueError(f"sigma = {sigma.min().item()}; a noise level is at least 0")
        return sigma

    def _inputs(self, x, sigma):
        x = as_float64("x", x)
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x has shape {tuple(x.shape)}; the mixture needs (N, {self.dim})")
        sigma = self._sigma(sigma)
        if len(sigma) not in {1, len(x)}:
            raise ValueError(f"sigma has {len(sigma)} entries; pass one or {len(x)}, one a row of x")
        isotropic, directions = self._variances(sigma)
        smallest = directions.min() if self.rank == self.dim else isotropic.min()
        if not smallest > 0:
            raise ValueError(f"sigma = {sigma.min().item()}; a component without variance needs sigma > 0")
        return x, sigma

    def _variances(self, sigma):
        """Variances of the noised components: (S, K) off the basis, (S, K, r) along it."""
        isotropic = self.noise + sigma[:, None].square()
        return isotropic, isotropic[:, :, None] + self.eigenvalues

    def _gains(self, sigma):
        """Wiener gains data variance / noised variance; posterior variances are sigma^2 times these."""
        isotropic, directions = self._variances(sigma)
        along = (self.noise[:, None] + self.eigenvalues) / directions
        return (self.noise / isotropic if self.rank < self.dim else torch.zeros_like(isotropic)), along

    def _joint(self, x, sigma):
        """log(weight_k N(x; ...)) (N, K) and the coordinates of x - mean_k in each basis (N, K, r)."""
        isotropic = self.noise + sigma[:, None].square()
        k, r = self.eigenvalues.shape
        along = x.new_zeros(len(x), k, 0)
        exponent = log_det = 0.0
        if r < self.dim:
            off = self._squared_distance(x)
        if r:
            directions = isotropic[:, :, None] + self.eigenvalues
            along = (x @ self._flat_basis).reshape(len(x), k, r) - self._centres
            squares = along.square()
            exponent, log_det = (squares / directions).sum(2), directions.log().sum(2)
            if r < self.dim:
                off = (off - squares.sum(2)).clamp_min(0)
        if r < self.dim:
            exponent = exponent + off / isotropic
            log_det = log_det + (self.dim - r) * isotropic.log()
        constant = self.weights.log() - 0.5 * self.dim * math.log(2 * math.pi)
        return (constant - 0.5 * log_det) - 0.5 * exponent, along

    def _squared_distance(self, x):
        if self.dim == 1:
            return (x - self.means[:, 0]).square()
        if self.dim <= 64:
            return (x[:, None, :] - self.means).square().sum(2)
        # One matrix product: for images the difference itself would fill the memory.
        cross = x @ self.means.T
        return x.square().sum(1)[:, None] - 2 * cross + self.means.square().sum(1)

    def _log_density_on_line(self, x, sigma):
        """log p(x; sigma) (N,) for points x (N,): each sums the components within reach of it and its neighbours.

        The terms left out lie `_DEPTH` + log K nats below that of the nearest component, so that all of them
        together change the sum by less than its rounding.
        """
        variance = self.noise[0] + sigma[0].square()
        centres, order = self.means[:, 0].sort()
        log_weight, last = self.weights.log()[order], len(centres) - 1
        x, back = x.sort()
        above = torch.searchsorted(centres, x).clamp(max=last)
        below = (above - 1).clamp_min(0)
        # The squared distance from the nearest component; exponents are taken relative to it.
        smallest = torch.minimum((x - centres[below]).square(), (x - centres[above]).square())
        depth = _DEPTH + math.log(len(centres)) + log_weight.max() - log_weight.min()
        reach = (smallest + 2 * variance * depth).sqrt() + 1e-15 * x.abs()
        first = torch.minimum(torch.searchsorted(centres, x - reach), below)
        end = torch.maximum(torch.searchsorted(centres, x + reach, right=True), above + 1)
        totals = []
        for rows in torch.arange(len(x)).split(max(1, 2**18 // len(centres))):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            near = slice(int(first[part].min()), int(end[part].max()))
            further = (x[part, None] - centres[near]).square() - smallest[part, None]
            totals.append((log_weight[near] - 0.5 / variance * further).exp().sum(1))
        found = torch.cat(totals).log() - 0.5 * (smallest / variance + (2 * math.pi * variance).log())
        return found[back.argsort()]

    def _combine(self, x, gamma, along, offset, isotropic, directions):
        """sum_k gamma_k (offset_k + A_k (x - mean_k)), A_k = isotropic_k off the basis, directions_k along it."""
        pull = gamma * isotropic
        result = pull.sum(1, keepdim=True) * x + gamma @ offset - pull @ self.means
        if not self.rank:
            return result
        change = directions - isotropic[:, :, None]
        # A component that has no part in a point, to the last bit, costs nothing there.
        matters = gamma > 2.0**-60
        if matters.sum() > _SHARE * matters.numel():
            return result + (gamma[:, :, None] * change * along).flatten(1) @ self._flat_basis.T
        for k, rows in enumerate(matters.T):
            rows = rows.nonzero()[:, 0]
            factor = change[0, k] if len(change) == 1 else change[rows, k]
            part = factor * gamma[rows, k, None] * along[rows, k]
            result.index_add_(0, rows, part @ self.basis[k].T)
        return result

    def _posterior_variance(self, x, gamma, along, sigma):
        """Trace of Cov[x0 | x] (N,). Deviations from the mean, not a difference of two moments, keep it exact."""
        isotropic, directions = self._gains(sigma)
        if self.dim == 1:
            gain = directions[:, :, 0] if self.rank else isotropic
            means = self.means[:, 0] + gain * (x - self.means[:, 0])
            within = sigma[:, None].square() * gain
            between = (means - (gamma * means).sum(1, keepdim=True)).square()
        else:
            within = sigma[:, None].square() * ((self.dim - self.rank) * isotropic + directions.sum(2))
            between = self._centred_means(x, gamma, along, sigma).square().sum(2)
        return (gamma * (within + between)).sum(1)

    def _centred_means(self, x, gamma, along, sigma):
        """Posterior mean of every component less that of the mixture, (N, K, D)."""
        isotropic, directions = self._gains(sigma)
        change = (directions - isotropic[:, :, None]) * along
        pull = isotropic[:, :, None] * (x[:, None, :] - self.means)
        means = self.means + pull + torch.einsum("nkr,kdr->nkd", change, self.basis)
        return means - (gamma[:, :, None] * means).sum(1, keepdim=True)


def _signed(vectors):
    """Columns (..., D, r) with their largest entry positive, so that samples are the same on every machine."""
    largest = vectors.abs().argmax(-2, keepdim=True)
    return vectors * vectors.gather(-2, largest).sign()
