"""The error curve of any denoiser over any data: by Monte Carlo (Algorithm 2), or from its training log."""

import hashlib
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from entropic._check import as_float64, ascending, check_finite, check_scale, integer, positive
from entropic.adapters import labels_of, rows_of, tensors_of
from entropic.curve import ErrorCurve, eps2_from_edm_loss
from entropic.files import ArrayStore
from entropic.identity import content_sha256

__all__ = ["Estimate", "curve_from_logvar", "curve_from_training_log", "estimate", "told_by"]


class Estimate(NamedTuple):
    """What `estimate` measured; float64, levels ascending.

    sigma (n,); errors (samples, n), the squared error of each sample at each level; rows (samples, n), the rows
    of x that they are of; directions: by name of a basis, mean squared errors (n, m) and their standard
    errors (n, m); dim D; total_variance V, the trace of the covariance of the rows of x that were drawn, or None where
    it says too little: of fewer than 16 rows, or of rows that are all alike.
    """

    sigma: torch.Tensor
    errors: torch.Tensor
    rows: torch.Tensor
    directions: dict
    dim: int
    total_variance: float | None = None

    def __repr__(self):
        drawn = len(self.rows.unique())
        parts = "".join(f", directions {name!r}" for name in self.directions)
        return (
            f"Estimate({len(self.sigma)} levels from {self.sigma[0]:.4g} to {self.sigma[-1]:.4g}, dim {self.dim}, "
            f"{len(self.errors)} samples a level from {drawn} rows{parts})"
        )

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
        """The `ErrorCurve`, its directions those of `basis` (a name) if given.

        It knows `dim` and `total_variance` (that of the estimate unless given), and so takes min(V, D sigma^2) for an
        error that is beyond it, with a warning; see `ErrorCurve`. `errors` and `eps2` stay as they were measured. V
        and the errors are of the same rows: what chance adds to the one it adds to the other.
        """
        if basis is not None and basis not in self.directions:
            raise ValueError(f"basis = {basis!r}; this estimate has {sorted(self.directions)}")
        return ErrorCurve(
            self.sigma,
            self.eps2,
            dim=self.dim,
            total_variance=self.total_variance if total_variance is None else total_variance,
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

    denoiser(x, sigma), or denoiser(x, sigma, labels) where `labels` are given, maps (B, ...) and a float to (B, ...);
    labels is a tensor (N, ...), or mappings and tuples of such tensors. x (N, ...) floating, on the denoiser's device;
    sigmas (n,) ascending, above 0, n >= 4.
    The denoiser gets noisy states of x's dtype, at least float32: x = x0 + sigma z rounded to bfloat16 or float16
    would have other noise than the error is counted for (eps2 up to 5 % off). A network in half precision casts its
    input itself. Its answer may have any real floating dtype; errors and sums are float64. It may write into its
    input and use the memory of its answer again.
    `samples` rows of x are drawn without replacement, one noise each, the same at all levels; with
    `common_noise=False` every level draws rows and noise of its own, as the paper does: the curve is rougher but
    sees more samples for the same number of calls, and so places a grid better. A larger `samples` extends the
    draw. Standard errors refer to the law that x was drawn from.

    `bases`: by name, a `Basis` or any map from errors (B, ...) to (B, m) parts that sum to their squared norms.
    `store`: a path (.npz) where partial results are kept every few seconds; the same call continues from it
    to the same result. It knows the arguments and the denoiser by content (`entropic.identity.content_sha256`); a
    `tag` (say, the weights' sha256) names the denoiser instead, where its content cannot be told or changes as it
    computes. A damaged store is computed anew, and a folder that cannot be written is left, each with a warning.
    Noise depends on seed, level and row only; `batch` changes no draw, only the order of float64 sums.

    A network that predicts something else is found out after the first 32 samples of each level, by no further call: a
    denoiser returns x0 where there is little noise, and not its input where there is much. Below a fifth of the data's
    standard deviation (D sigma^2 <= V / 25) the constant mean errs by V and the identity by V / 25; an error above
    V / 2 at all these levels is no denoiser's. Nor is an answer that holds the noise once at all levels far above it.
    The message says what the answers are like: noise, v, a velocity, a score, a constant, x, or none of these.

    ValueError: bad arguments; pixels in [0, 1] or from 0 to 255 for an image network of this package; a store of
    other arguments, or a file that is no store; a denoiser that cannot be told by content, with a store and no tag; a
    denoiser that returns NaN, another shape, or no real floating tensor; a network that is no denoiser of these data.
    """
    sigma = ascending(as_float64("sigmas", sigmas).cpu(), 4)
    if not torch.is_tensor(x) or not x.is_floating_point() or x.ndim < 2:
        found = f"{x.dtype} {tuple(x.shape)}" if torch.is_tensor(x) else type(x).__name__
        raise ValueError(f"x is {found}; pass a floating tensor (N, ...), scaled as the denoiser expects it")
    # An image network of this package, unless its data are no pixels.
    if hasattr(denoiser, "shape") and not getattr(denoiser, "nonnegative", False):
        check_scale(x)
    samples, batch = integer("samples", samples, 2), integer("batch", batch, 1)
    seed = integer("seed", seed, 0)
    if samples > len(x):
        raise ValueError(f"samples = {samples}; x has only {len(x)} rows to draw from without replacement")
    labels = labels_of(labels, x)
    bases = {} if bases is None else dict(bases)

    levels = len(sigma)
    draws = [_Draw(len(x), samples, [seed, k]) for k in range(1 if common_noise else levels)]
    probe = torch.from_numpy(_normal(np.random.default_rng(0), 2, x)).to(x.device, x.dtype).double()
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
        "labels": _labels(labels, draws),
        "tag": told_by(denoiser, tag, store),
    }
    store = ArrayStore(store, key, state, probes=probes, what="an estimate")

    total, drawn_rows = _variance(x, draws)
    seen = _Seen(sigma, x[0].numel(), total) if total > 0 else None

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
                if seen is not None:
                    seen.add(k, error, x[drawn[0]], drawn[1])
                errors[start:stop, k] = squared.cpu().numpy()
                for name, basis in bases.items():
                    parts = _parts(name, basis, error, squared)
                    moments = torch.stack([parts.sum(0), parts.square().sum(0)])
                    state[f"moments/{name}"][:, k] += moments.cpu().numpy()
                done[k] = stop
                store.save()
                bar.update(stop - start)
            if seen is not None and seen.count.min() >= min(_ENOUGH, samples):
                try:
                    seen.judge()
                except ValueError:
                    for array in state.values():  # else the store would be gone on with, without a word
                        array[...] = 0
                    store.save(now=True)
                    raise
                seen = None
    store.save(now=True)

    directions = {}
    for name in bases:
        mean, square = torch.from_numpy(state[f"moments/{name}"]) / samples
        variance = (square - mean.square()).clamp_min(0) / (samples - 1)
        directions[name] = (mean, variance.sqrt())
    rows = torch.from_numpy(np.stack([draw.rows for draw in draws], 1)).expand(-1, levels)
    known = total > 0 and drawn_rows >= _FEWEST_ROWS
    return Estimate(sigma, torch.from_numpy(errors), rows, directions, x[0].numel(), total if known else None)


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
    content = Path(path).read_bytes()
    try:
        # A last line without its end is still being written.
        lines = content[: content.rfind(b"\n") + 1].decode("utf-8").split("\n")[:-1]
        header, *lines = map(json.loads, lines)
        edges, data, dim = (header[name] for name in ("sigma_edges", "sigma_data", "dim"))
        edges, data, dim = (
            as_float64("sigma_edges", edges),
            positive("sigma_data", data),
            integer("dim", dim, 1),
        )
        lines = [line for line in lines if line["step"] > first_step]
        names = ("count", "loss", "loss2", "log_sigma")
        table = np.array([[line[name] for name in names] for line in lines], np.float64)
        if edges.ndim != 1 or not len(table) or table.shape[1:] != (4, len(edges) - 1):
            raise ValueError(
                f"it has {len(table)} lines of shape {table.shape[1:]} after first_step = {first_step}; "
                f"{len(edges)} edges need at least one of {(4, len(edges) - 1)}"
            )
        return _curve_of_sums(torch.from_numpy(table.sum(0)), data, dim)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is not a training log ({type(error).__name__}: {error})") from error


def _curve_of_sums(table, data, dim):
    """The `ErrorCurve` of the sums (4, K) of count, loss, squared loss and log sigma in each bin."""
    check_finite("sums", table)
    count, loss, square, log_sigma = table
    if (table[:3] < 0).any():
        raise ValueError("a count, a loss or a squared loss is below 0")
    kept = count >= 2
    count, loss, square, log_sigma = (each[kept] for each in (count, loss, square, log_sigma))
    mean = loss / count
    stderr = ((square / count - mean.square()).clamp_min(0) / (count - 1)).sqrt()
    sigma = (log_sigma / count).exp()
    eps2, stderr = (eps2_from_edm_loss(each, sigma, data) for each in (mean, stderr))
    return ErrorCurve(sigma, eps2, stderr, dim=dim)


def curve_from_logvar(network, sigmas):
    """The `ErrorCurve` that an EDM2 network carries: its learned uncertainty, without data or a call of the network.

    EDM2 divides its loss, the mean over pixels, by exp(u(sigma)) and adds u(sigma); the best u is the logarithm of
    the loss. sigmas (n,) ascending. AttributeError: a network without `logvar`. Karras et al. 2024, eq. 15.
    """
    sigma, dim = as_float64("sigmas", sigmas), math.prod(network.shape)
    with torch.no_grad():
        loss = dim * network.logvar(sigma).double().cpu().exp()
    return ErrorCurve(sigma, eps2_from_edm_loss(loss, sigma, network.sigma_data), dim=dim)


# What a network predicts

_ENOUGH = 32  # samples of each level, before it is said what a network predicts
_FLAT = 1e-3  # of the variance of data or noise: answers that vary less do not depend on x
_FEWEST_ROWS = 16  # of which a variance is taken for that of the data
# For each prediction: the adapter that makes a denoiser of it, and (p, q) such that D(x; sigma) = p x + q answer.
_PREDICTIONS = {
    "the data": (None, lambda s: (0 * s, 0 * s + 1)),
    "the noise": ("from_epsilon", lambda s: (0 * s + 1, -s)),
    "v = alpha noise - beta x0": ("from_v", lambda s: (1 / (1 + s**2), -s / (1 + s**2).sqrt())),
    "a velocity, noise - x0": ("from_flow", lambda s: (1 / (1 + s), -s / (1 + s))),
    "a velocity, x0 - noise": ("from_flow", lambda s: (1 / (1 + s), s / (1 + s))),
    "the score, -noise / sigma": ("from_score", lambda s: (0 * s + 1, s**2)),
    "the score of x / sqrt(1 + sigma^2)": ("from_score", lambda s: (0 * s + 1, s**2 / (1 + s**2).sqrt())),
}


class _Seen:
    """What the first answers at each level are made of: sums of products of x0, noise and answer, float64.

    A kind of prediction is judged by the error of the denoiser that it implies. The exact denoiser has the least error
    of all functions of x at every level, so an exact network of one kind errs more when it is taken for another.
    """

    def __init__(self, sigma, dim, variance):
        self.sigma, self.dim, self.variance = sigma, dim, variance
        self.count = np.zeros(len(sigma), np.int64)
        self.products = torch.zeros(len(sigma), 3, 3, dtype=torch.float64)
        self.flat = torch.ones(len(sigma), dtype=torch.bool)  # whether the answers were all alike so far

    def add(self, k, error, x0, noise):
        """The answers, error + x0, at level k."""
        x0 = x0.double()
        answer = error + x0
        parts = torch.stack([x0, noise.to(x0), answer]).flatten(1)
        self.products[k] += (parts @ parts.T).cpu()
        spread = (answer - answer.mean(0)).square().sum() / max(1, len(x0) - 1)
        self.flat[k] &= len(x0) > 1 and spread.item() <= _FLAT * min(self.variance, self.dim)
        self.count[k] += len(x0)

    def judge(self):
        """ValueError where the answers are no denoiser's."""
        if self.count.min() * self.dim < _ENOUGH:
            return
        sigma, identity, variance = self.sigma, self.dim * self.sigma.square(), self.variance
        each = self.products / torch.from_numpy(self.count)[:, None, None]

        def squared(p, q, target):
            """Mean squared norm (n,) of p x + q answer - target x0."""
            form = torch.stack([p - target, p * sigma, 0 * p + q], 1)
            return (each * form[:, :, None] * form[:, None, :]).sum((1, 2)).clamp_min(0)

        errors = {name: squared(*make(sigma), 1) for name, (_, make) in _PREDICTIONS.items()}
        low, high = identity <= variance / 25, identity >= 4 * variance
        lost = low & (errors["the data"] > variance / 2)
        if not (low.any() and (lost == low).all()):
            # A denoiser's answer holds eps2 / (D sigma) <= V / (D sigma) times the noise; noise, a velocity and the
            # score of VP hold it once. What a poor denoiser leaves of it grows with sigma, and so is not between 0.6
            # and 1.4 at levels that are more than 1.4 / 0.6 apart.
            left = (torch.linalg.pinv(each[:, :2, :2], hermitian=True) @ each[:, :2, 2:])[:, 1, 0]
            lost = high & (sigma >= 4 * variance / self.dim)
            once = ((left.abs() - 1).abs() < 0.4) & (left.sign() == left[-1].sign())
            if not (lost.any() and once[lost].all() and sigma[lost][-1] > 2.4 * sigma[lost][0]):
                one = torch.ones_like(sigma)
                if high.any() and (squared(-one, one, 0) <= identity / 100)[high].all():
                    raise ValueError(
                        f"denoiser returns its input, noise and all, at sigma = {sigma[high][0]:.3g} and above; pass "
                        "a function of (x, sigma) that returns the expected data"
                    )
                return
        misses = {}
        for name, (_, make) in _PREDICTIONS.items():
            # Beside its bound an error of a tenth in the answer is forgiven: some are multiplied at high noise.
            forgiven = squared(make(sigma)[0], 0, 1) / 100
            misses[name] = (
                ((errors[name] + forgiven) / (identity.clamp_max(variance) + forgiven)).log().mean()
            )
        best = min(misses, key=misses.get)
        if self.flat.all():
            says = (
                "What it returns does not depend on x: are its weights loaded? If it predicts v, which is 0 for data "
                "of unit variance in every direction, wrap it by entropic.adapters.from_v"
            )
        elif best != "the data" and misses[best] <= math.log(2):
            # Of data far smaller than the noise, which is of variance 1, the noise and a velocity are nearly the same.
            alike = [name for name in misses if misses[name] < misses[best] + 0.01 and name != "the data"]
            wrap = dict.fromkeys(f"entropic.adapters.{_PREDICTIONS[name][0]}" for name in alike)
            says = f"What it returns looks like {' or '.join(alike)}: wrap it by {' or '.join(wrap)}"
        else:
            says = (
                "Nor does it return noise, v, a velocity or a score in the frame x = x0 + sigma noise: check the "
                "scale of x, what it expects for sigma, and its weights; if it predicts one of these in a frame of "
                "its own, wrap it by from_epsilon, from_v, from_flow or from_score of entropic.adapters"
            )
        k = int(lost.nonzero()[0])
        raise ValueError(
            f"denoiser does not return the data: at sigma = {sigma[k]:.3g} it errs by eps2 = "
            f"{errors['the data'][k]:.3g}, where the data's mean errs by {variance:.3g} and x itself by "
            f"{identity[k]:.3g}. {says}"
        )


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
        noise = torch.from_numpy(_normal(self._stream, stop - start, x))
        return torch.from_numpy(self.rows[start:stop]).to(x.device), noise


def _normal(stream, n, x):
    # NumPy's stream, unlike torch's, does not depend on how many are drawn at once.
    return stream.standard_normal((n, *x.shape[1:]))


def _error_at(denoiser, x, rows, noise, sigma, labels):
    x0 = x[rows]
    given = () if labels is None else (rows_of(labels, rows),)
    # Noise and sum in float32 at least, and a sum of its own for each call: the denoiser may write into it.
    exact = torch.promote_types(x.dtype, torch.float32)
    denoised = denoiser(x0.to(exact) + sigma * noise.to(x.device, exact), sigma, *given)
    if not torch.is_tensor(denoised) or not denoised.is_floating_point():
        found = f"{denoised.dtype}" if torch.is_tensor(denoised) else type(denoised).__name__
        raise ValueError(
            f"denoiser at sigma = {sigma} returned {found}; it must return one tensor of real floating numbers"
        )
    if denoised.shape != x0.shape:
        raise ValueError(
            f"denoiser at sigma = {sigma} returned {tuple(denoised.shape)}; it must return {tuple(x0.shape)}"
        )
    error = denoised.double() - x0.double()
    squared = error.flatten(1).square().sum(1)
    bad = ~torch.isfinite(squared)
    if bad.any():
        raise ValueError(
            f"denoiser at sigma = {sigma} returned NaN or infinity in {int(bad.sum())} of {len(bad)} samples"
        )
    return error, squared


def told_by(denoiser, tag, store):
    """What a store knows a denoiser by: its content, or the `tag` that names it; the tag where `store` is None."""
    if not isinstance(tag, str):
        raise ValueError(f"tag = {tag!r}; pass text, say the sha256 of the denoiser's weights")
    if tag or store is None:
        return tag
    try:
        return content_sha256(denoiser, "denoiser")
    except ValueError as error:
        raise ValueError(f"{error}; with `store`, pass a `tag` that names this denoiser") from error


def _parts(name, basis, error, squared=None):
    parts = basis(error.clone())  # it may write into what it gets
    squared = error.flatten(1).square().sum(1) if squared is None else squared
    if parts.ndim != 2 or len(parts) != len(error):
        raise ValueError(f"bases[{name!r}] returned {tuple(parts.shape)}; it must return ({len(error)}, m)")
    if not ((parts.sum(1) - squared).abs() <= 1e-9 * squared).all():
        raise ValueError(f"bases[{name!r}]: its parts do not sum to the squared norm; is it orthonormal?")
    return parts


def _labels(labels, draws):
    """What the store knows the labels by."""
    found = {name: _fingerprint(name, one, draws) for name, one in tensors_of(labels, "labels").items()}
    return found.get("labels", found or None)


def _variance(x, draws):
    """The total variance of the rows of x that were drawn, and their number."""
    rows = torch.from_numpy(np.unique(np.stack([draw.rows for draw in draws]))).to(x.device)
    x = x.detach()
    mean = sum(x[part].double().sum(0) for part in rows.split(1024)) / len(rows)
    total = sum((x[part].double() - mean).square().sum().item() for part in rows.split(1024))
    return total / (len(rows) - 1), len(rows)


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
