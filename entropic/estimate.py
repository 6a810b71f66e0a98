"""The error curve of any denoiser over any data: by Monte Carlo (Algorithm 2), or from its training log."""

import hashlib
import json
import math
import os
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from entropic._check import as_float64, integer
from entropic.curve import ErrorCurve, eps2_from_edm_loss

_PAUSE = 5.0  # seconds between two writes of a store
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, zipfile.BadZipFile)


class Estimate(NamedTuple):
    """What `estimate` measured; float64, levels ascending.

    sigma (n,); errors (samples, n), the squared error of each sample at each level; rows (samples, n), the rows
    of x that they are of; directions: by name of a basis, mean squared errors (n, m) and their standard
    errors (n, m); dim D.
    """

    sigma: torch.Tensor
    errors: torch.Tensor
    rows: torch.Tensor
    directions: dict
    dim: int

    @property
    def eps2(self):
        """Mean squared error of each level, (n,)."""
        return self.errors.mean(0)

    @property
    def stderr(self):
        """Standard error of each level's eps2, (n,)."""
        return self.errors.std(0) / len(self.errors) ** 0.5

    @property
    def covariance(self):
        """Covariance of eps2 between levels, (n, n): levels vary together by the rows that they share."""
        samples, levels = self.errors.shape
        rows, place = self.rows.unique(return_inverse=True)
        deviation = torch.zeros(len(rows), levels, dtype=torch.float64)
        deviation[place, torch.arange(levels)] = self.errors - self.eps2
        return deviation.T @ deviation / (samples * (samples - 1))

    def curve(self, basis=None, total_variance=None):
        """The `ErrorCurve`, its directions those of `basis` (a name) if given."""
        if basis is not None and basis not in self.directions:
            raise ValueError(f"basis = {basis!r}; this estimate has {sorted(self.directions)}")
        return ErrorCurve(
            self.sigma,
            self.eps2,
            dim=self.dim,
            total_variance=total_variance,
            covariance=self.covariance,
            directions=None if basis is None else self.directions[basis][0],
        )


def estimate(
    denoiser,
    x,
    sigmas,
    *,
    labels=None,
    samples=1024,
    seed=0,
    batch=128,
    bases=None,
    common_noise=True,
    store=None,
    tag="",
    progress=False,
):
    """Mean squared error of `denoiser` at noise levels `sigmas`, an `Estimate`; Algorithm 2.

    denoiser(x, sigma), or denoiser(x, sigma, labels) where `labels` (N, ...) are given, maps (B, ...) and a float
    to (B, ...). x (N, ...) floating, on the denoiser's device; sigmas (n,) ascending, above 0, n >= 4.
    `samples` rows of x are drawn without replacement, one noise each, the same at all levels; with
    `common_noise=False` every level draws rows and noise of its own, as the paper does: the curve is rougher but
    sees more samples for the same number of calls, and so places a grid better. A larger `samples` extends the
    draw. Standard errors refer to the law that x was drawn from.

    `bases`: by name, a `Basis` or any map from errors (B, ...) to (B, m) parts that sum to their squared norms.
    `store`: a path (.npz) where partial results are kept every few seconds; the same call continues from it
    to the same result. It knows the arguments by content and the denoiser by `tag` (say, its weights' sha256).
    Noise depends on seed, level and row only; `batch` changes no draw, only the order of float64 sums.

    ValueError: bad arguments; a store of other arguments; a denoiser that returns NaN or another shape.
    """
    sigma = as_float64("sigmas", sigmas).cpu()
    sigma = ErrorCurve(sigma, torch.zeros_like(sigma)).sigma
    if not torch.is_tensor(x) or not x.is_floating_point() or x.ndim < 2:
        found = f"{x.dtype} {tuple(x.shape)}" if torch.is_tensor(x) else type(x).__name__
        raise ValueError(f"x is {found}; pass a floating tensor (N, ...), scaled as the denoiser expects it")
    samples, batch = integer("samples", samples, 2), integer("batch", batch, 1)
    seed = integer("seed", seed, 0)
    if samples > len(x):
        raise ValueError(f"samples = {samples}; x has only {len(x)} rows to draw from without replacement")
    if labels is not None:
        labels = torch.as_tensor(labels, device=x.device)
        if labels.shape[:1] != x.shape[:1]:
            raise ValueError(f"labels has shape {tuple(labels.shape)}; x has {len(x)} rows")
    bases = {} if bases is None else dict(bases)

    levels = len(sigma)
    draws = [_Draw(len(x), samples, [seed, k]) for k in range(1 if common_noise else levels)]
    probe = _normal(np.random.default_rng(0), 2, x).double()
    probes = {name: _parts(name, basis, probe).cpu().numpy() for name, basis in bases.items()}
    state = {"done": np.zeros(levels, np.int64), "errors": np.zeros((samples, levels))}
    for name, parts in probes.items():
        state[f"moments/{name}"] = np.zeros((2, levels, parts.shape[1]))
    key = {
        "sigmas": hashlib.sha256(sigma.numpy().tobytes()).hexdigest(),
        "samples": samples,
        "seed": seed,
        "common_noise": bool(common_noise),
        "x": _fingerprint("x", x, draws),
        "labels": None if labels is None else _fingerprint("labels", labels, draws),
        "tag": str(tag),
    }
    store = _Store(store, key, probes, state)

    # Every level counts its finished samples, so that a run may stop anywhere and go on with another batch.
    done, errors = state["done"], state["errors"]
    bar = tqdm(total=levels * samples, initial=int(done.sum()), disable=not progress, unit="call")
    with bar, torch.no_grad():
        while (start := int(done.min())) < samples:
            stop = min([start + batch, samples, *done[done > start].tolist()])
            drawn = None
            for k in np.flatnonzero(done == start).tolist():
                if drawn is None or not common_noise:
                    drawn = draws[0 if common_noise else k].take(start, stop, x)
                error, squared = _error_at(denoiser, x, *drawn, sigma[k].item(), labels)
                errors[start:stop, k] = squared.cpu().numpy()
                for name, basis in bases.items():
                    parts = _parts(name, basis, error, squared)
                    moments = torch.stack([parts.sum(0), parts.square().sum(0)])
                    state[f"moments/{name}"][:, k] += moments.cpu().numpy()
                done[k] = stop
                store.save()
                bar.update(stop - start)
    store.save(now=True)

    directions = {}
    for name in bases:
        mean, square = torch.from_numpy(state[f"moments/{name}"]) / samples
        variance = (square - mean.square()).clamp_min(0) / (samples - 1)
        directions[name] = (mean, variance.sqrt())
    rows = torch.from_numpy(np.stack([draw.rows for draw in draws], 1)).expand(-1, levels)
    return Estimate(sigma, torch.from_numpy(errors), rows, directions, x[0].numel())


# Directions of the data space


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


def pixel_basis(shape):
    """The `Basis` of single entries of x, each a bin of its own."""
    ones = torch.ones(torch.Size(shape).numel(), dtype=torch.float64)
    return Basis(lambda x: x.flatten(1).square(), shape, ones)


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


# From a training log


def curve_from_training_log(path, first_step=0):
    """The `ErrorCurve` of a network in training, from its log alone; appendix F.

    JSON lines: a header {"sigma_edges" (K + 1,), "sigma_data", "dim"}, then {"step", "count", "loss", "loss2",
    "log_sigma"}, for each of the K bins sums since the line before: EDM's weighted error (summed over
    dimensions), its square, and log sigma. Lines with step > first_step are merged. One level a bin, at
    its mean log sigma; bins of fewer than two samples are left out, so `curve.sigma` says which are in.

    It is the weighted error that is averaged within a bin, as it varies little there. What remains of the bin's
    width w in log sigma is a bias of at most w^2 / 24 times the loss's second derivative. The curve is that
    of the weights during training, not of their moving average. ValueError: a file that is not such a log.
    """
    with open(path, encoding="utf-8") as file:
        try:
            # A last line without its end is still being written.
            header, *lines = [json.loads(line) for line in file if line.endswith("\n")]
            edges, data, dim = (header[name] for name in ("sigma_edges", "sigma_data", "dim"))
            lines = [line for line in lines if line["step"] > first_step]
            names = ("count", "loss", "loss2", "log_sigma")
            table = np.array([[line[name] for name in names] for line in lines], np.float64)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a training log: {error!r}") from error
    if not len(table) or table.shape[1:] != (4, len(edges) - 1):
        raise ValueError(
            f"{path} has {len(table)} lines of shape {table.shape[1:]} after first_step = {first_step}; "
            f"{len(edges)} edges need at least one of {(4, len(edges) - 1)}"
        )
    count, loss, square, log_sigma = torch.from_numpy(table.sum(0))
    kept = count >= 2
    count, loss, square, log_sigma = (each[kept] for each in (count, loss, square, log_sigma))
    mean = loss / count
    stderr = ((square / count - mean.square()).clamp_min(0) / (count - 1)).sqrt()
    sigma = (log_sigma / count).exp()
    eps2, stderr = (eps2_from_edm_loss(each, sigma, data) for each in (mean, stderr))
    return ErrorCurve(sigma, eps2, stderr, dim=dim)


# Smoothing


def curve_from_logvar(network, sigmas):
    """The `ErrorCurve` that an EDM2 network carries: its learned uncertainty, without data or a call of the network.

    EDM2 divides its loss, the mean over pixels, by exp(u(sigma)) and adds u(sigma); the best u is the logarithm of
    the loss. sigmas (n,) ascending. AttributeError: a network without `logvar`. Karras et al. 2024, eq. 15.
    """
    sigma, dim = as_float64("sigmas", sigmas), math.prod(network.shape)
    with torch.no_grad():
        loss = dim * network.logvar(sigma).double().cpu().exp()
    return ErrorCurve(sigma, eps2_from_edm_loss(loss, sigma, network.sigma_data), dim=dim)


class Smoothed(NamedTuple):
    """A smoothed `curve`, the estimated `bias` of its eps2 (n,), and the `penalty` that was chosen."""

    curve: ErrorCurve
    bias: torch.Tensor
    penalty: float


def smooth(curve):
    """A smoothing spline through a noisy `ErrorCurve` with standard errors and `dim`, as `Smoothed`.

    Linear in eps2: the natural cubic smoothing spline in log sigma of u = eps2 (1 / sigma^2 + D / V), which for
    Gaussian data is the constant D (V: total variance, or the last eps2). The penalty minimises Mallows'
    unbiased estimate of the squared error of u, |u - A u|^2 + 2 tr(A C), from the known covariance C. Errors
    propagate by A; the bias is that of A on the smoothed u. Where A u < 0, eps2 is 0. It helps an estimate of some
    samples a level, whose levels have draws of their own; a good estimate is left almost as it is.
    """
    if curve.stderr is None or curve.dim is None:
        raise ValueError(f"curve has stderr = {curve.stderr} and dim = {curve.dim}; smoothing needs both")
    total = curve.eps2[-1].item() if curve.total_variance is None else curve.total_variance
    if not total > 0:
        raise ValueError(f"eps2[-1] = {total}; give the curve a total_variance above 0")
    scale = 1 / curve.sigma.square() + curve.dim / total
    u = scale * curve.eps2
    noise = torch.diag(curve.stderr.square()) if curve.covariance is None else curve.covariance
    noise = scale[:, None] * noise * scale

    # Green and Silverman (1994), section 2.3: the roughness, the integral of f''^2, is u^T Q R^-1 Q^T u.
    h = curve.sigma.log().diff()
    n, inside = len(u), torch.arange(len(u) - 2)
    q, r = torch.zeros(n, n - 2, dtype=torch.float64), torch.diag((h[:-1] + h[1:]) / 3)
    q[inside, inside], q[inside + 2, inside] = 1 / h[:-1], 1 / h[1:]
    q[inside + 1, inside] = -1 / h[:-1] - 1 / h[1:]
    r += torch.diag(h[1:-1] / 6, 1) + torch.diag(h[1:-1] / 6, -1)
    roughness, vectors = torch.linalg.eigh(q @ torch.linalg.solve(r, q.T))
    roughness[:2] = 0.0  # straight lines
    along, spread = vectors.T @ u, ((vectors.T @ noise) * vectors.T).sum(1)

    grid = torch.linspace(0.0, 1.2, 121, dtype=torch.float64)
    low, high = 1 / roughness[-1], 1 / roughness[2]
    penalties = torch.cat([torch.zeros(1, dtype=torch.float64), low * (high / low) ** grid])
    kept = 1 / (1 + penalties[:, None] * roughness)
    risk = ((1 - kept) * along).square().sum(1) + 2 * kept @ spread
    best = int(risk.argmin())
    a = (vectors * kept[best]) @ vectors.T
    smoothed = a @ u
    new = {"dim": curve.dim, "total_variance": curve.total_variance}
    if curve.common_samples:
        new |= {"stderr": a.abs() @ (scale * curve.stderr) / scale, "common_samples": True}
    else:
        new["covariance"] = a @ noise @ a.T / scale / scale[:, None]
    result = ErrorCurve(curve.sigma, smoothed.clamp_min(0) / scale, **new)
    return Smoothed(result, (a @ smoothed - smoothed) / scale, penalties[best].item())


# Pieces of the above


class _Draw:
    """Rows of x and their noise, in an order that the seeds fix: sample i is the same in any batch."""

    def __init__(self, n, samples, seeds):
        self._seeds, self._at = seeds, 0
        self.rows = np.random.default_rng([*seeds, 0]).permutation(n)[:samples]
        self._stream = np.random.default_rng([*seeds, 1])

    def take(self, start, stop, x):
        """Row numbers and noise of the samples start to stop, which never go back."""
        while self._at < start:
            self._at += len(_normal(self._stream, min(start - self._at, 256), x))
        self._at = stop
        return torch.from_numpy(self.rows[start:stop]).to(x.device), _normal(self._stream, stop - start, x)


def _normal(stream, n, x):
    # NumPy's stream, unlike torch's, does not depend on how many are drawn at once.
    return torch.from_numpy(stream.standard_normal((n, *x.shape[1:]))).to(x)


def _error_at(denoiser, x, rows, noise, sigma, labels):
    x0 = x[rows]
    given = () if labels is None else (labels[rows],)
    denoised = denoiser(x0 + sigma * noise, sigma, *given)
    found = tuple(denoised.shape) if torch.is_tensor(denoised) else type(denoised).__name__
    if found != tuple(x0.shape):
        raise ValueError(f"denoiser at sigma = {sigma} returned {found}; it must return {tuple(x0.shape)}")
    error = denoised.double() - x0.double()
    squared = error.flatten(1).square().sum(1)
    bad = ~torch.isfinite(squared)
    if bad.any():
        raise ValueError(
            f"denoiser at sigma = {sigma} returned NaN or infinity in {int(bad.sum())} of {len(bad)} samples"
        )
    return error, squared


def _parts(name, basis, error, squared=None):
    parts = basis(error)
    squared = error.flatten(1).square().sum(1) if squared is None else squared
    if parts.ndim != 2 or len(parts) != len(error):
        raise ValueError(f"bases[{name!r}] returned {tuple(parts.shape)}; it must return ({len(error)}, m)")
    if not ((parts.sum(1) - squared).abs() <= 1e-9 * squared).all():
        raise ValueError(f"bases[{name!r}]: its parts do not sum to the squared norm; is it orthonormal?")
    return parts


def _fingerprint(name, x, draws):
    """SHA-256 of the drawn rows of x, which must be finite."""
    drawn = np.stack([draw.rows for draw in draws])
    digest = hashlib.sha256(f"{x.dtype} {tuple(x.shape[1:])}".encode() + drawn.tobytes())
    for rows in torch.from_numpy(np.unique(drawn)).split(1024):
        part = x[rows.to(x.device)]
        if not torch.isfinite(part).all():
            bad = rows[(~torch.isfinite(part)).flatten(1).any(1).cpu()][0].item()
            raise ValueError(f"{name}[{bad}] holds NaN or infinity; every entry must be finite")
        digest.update(part.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


class _Store:
    """Keeps the arrays of `state` in an npz file with what they belong to; without a path it does nothing."""

    def __init__(self, path, key, probes, state):
        self._path, self._state = None if path is None else Path(path), state
        self._fixed = {"key": np.array(json.dumps(key))} | {f"probe/{k}": v for k, v in probes.items()}
        self._last, self._pause = time.monotonic(), _PAUSE
        if self._path is None or not self._path.exists():
            return
        try:
            with np.load(self._path) as file:
                kept = dict(file)
            found = json.loads(str(kept["key"]))
            other = [name for name in key if found.get(name) != key[name]]
        except _UNREADABLE as error:
            raise ValueError(
                f"store = {path} is not the store of an estimate; remove it ({error})"
            ) from error
        if {*kept} != {*self._fixed, *state} or not all(
            kept[name].shape == probe.shape and np.allclose(kept[name], probe, rtol=1e-6)
            for name, probe in self._fixed.items()
            if name != "key"
        ):
            other.append("bases")
        if other:
            raise ValueError(
                f"store = {path} was made with other {', '.join(other)}; pass those or another path"
            )
        for name, array in state.items():
            array[...] = kept[name]

    def save(self, now=False):
        if self._path is None or (not now and time.monotonic() - self._last < self._pause):
            return
        began = time.monotonic()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        with open(partial, "wb") as file:
            np.savez(file, **self._fixed, **self._state)
        os.replace(partial, self._path)
        self._last = time.monotonic()
        # A large store may take long to write: never more than a twentieth of the time.
        self._pause = max(_PAUSE, 20 * (self._last - began))
