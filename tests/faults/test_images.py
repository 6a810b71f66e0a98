"""What images, states, noise levels and labels are: each entrance refuses what is none, and says what would do."""

import math

import numpy as np
import pytest
import torch

from entropic import edm_sigmas
from entropic.estimate import estimate
from entropic.images import data
from entropic.images.generate import generate
from entropic.images.networks.classifier import FashionClassifier, accuracy, train_classifier
from entropic.images.networks.small import SmallUNet, load_network
from entropic.images.train import train
from tests.images.test_train import TINY, noise_images

HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(name="network", scope="module")
def _network():
    network = SmallUNet(8, 1, 3, channels=(8,), blocks=1, patch=2).eval().requires_grad_(False)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    return network


@pytest.mark.parametrize("dtype", HALVES)
def test_to_uint8_of_half_numbers_is_that_of_their_values(dtype):
    x = torch.linspace(-1.2, 1.2, 20_001).to(dtype)
    exact = (x.double() * 127.5 + 128).clamp(0, 255).floor().to(torch.uint8)
    assert torch.equal(data.to_uint8(x), exact)


@pytest.mark.parametrize("dtype", HALVES)
def test_to_pixels_in_half_numbers_is_rounded_once(dtype):
    every = torch.arange(256, dtype=torch.uint8)
    exact = every.double() / 127.5 - 1
    assert (data.to_pixels(every, dtype).double() - exact).abs().max() <= torch.finfo(dtype).eps / 2
    # float32 is rounded twice before, which moves nothing by more than 2^-23
    assert torch.equal(data.to_pixels(every, dtype), data.to_pixels(every).to(dtype))
    with pytest.raises(ValueError, match=r"dtype = torch.int64; pass torch.float32"):
        data.to_pixels(every, torch.int64)


@pytest.mark.parametrize(
    "x",
    [
        torch.tensor([128], dtype=torch.uint8),
        torch.ones(1, dtype=torch.int64),
        torch.ones(1, dtype=torch.bool),
        torch.ones(1, dtype=torch.complex64),
        [0.5],
        np.zeros(3),
    ],
)
def test_to_uint8_takes_floats_alone(x):
    with pytest.raises(ValueError, match=r"x is .*pass floats in"):
        data.to_uint8(x)


X, LABEL = torch.zeros(2, 1, 8, 8), torch.tensor([0, 2])


@pytest.mark.parametrize(
    "sigma",
    [
        *(0, -1.0, math.nan, math.inf, "1", None, 1j, [1.0, 2.0, 3.0]),
        *(torch.tensor([1.0, 0.0]), torch.tensor([math.nan, 1.0]), torch.ones(2, 1), torch.ones(3)),
    ],
)
def test_network_refuses_noise_levels(network, sigma):
    with pytest.raises(ValueError, match="sigma"):
        network(X, sigma, LABEL)


@pytest.mark.parametrize(
    "x",
    [
        X.to(torch.uint8),
        X.long(),
        X.to(torch.complex64),
        X.log(),
        X * math.nan,
        X.permute(0, 2, 3, 1),
        X[0],
        X.expand(2, 3, 8, 8),
        X.numpy(),
    ],
)
def test_network_refuses_states(network, x):
    with pytest.raises(ValueError, match=r"^x(\[| )"):
        network(x, 1.0, LABEL)


BAD_LABELS = [
    torch.eye(3)[:2].long(),
    torch.tensor([0.0, 1.0]),
    torch.tensor([True, False]),
    torch.tensor([0, 3]),
    torch.tensor([-1, 0]),
    torch.tensor([0]),
    torch.tensor(0),
    torch.tensor([[0], [1]]),
    None,
]


@pytest.mark.parametrize("label", [*BAD_LABELS, [0, 1]])
def test_network_refuses_labels(network, label):
    with pytest.raises(ValueError, match="label"):
        network(X, 1.0, label)


@pytest.mark.parametrize("label", BAD_LABELS[:-1])
def test_generate_refuses_labels(network, label):
    with pytest.raises(ValueError, match="labels"):
        generate(network, edm_sigmas(3), [1, 2], labels=label)


@pytest.mark.parametrize(
    "level", [1, 1.0, torch.tensor(1), torch.ones(2), torch.ones(1), [1.0, 1.0], np.float64(1)]
)
def test_network_takes_every_way_to_say_a_level(network, level):
    assert torch.equal(
        network(X + 1, level, LABEL), network(X + 1, torch.ones(2, dtype=torch.float64), LABEL)
    )


@pytest.mark.parametrize("dtype", HALVES)
def test_network_computes_half_states_in_float32(network, dtype):
    x = (X + torch.linspace(-1, 1, 64).reshape(8, 8)).to(dtype)
    found = network(x, 0.1, LABEL)
    assert found.dtype == dtype
    assert torch.equal(found, network(x.float(), 0.1, LABEL).to(dtype))


IMAGES, LABELS = noise_images()


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (IMAGES / 255, LABELS, r"images is torch.float32.*pass a tensor uint8"),
        (data.to_pixels(IMAGES), LABELS, r"images is torch.float32.*to_uint8"),
        (IMAGES.permute(0, 2, 3, 1), LABELS, r"images has shape \(100, 8, 8, 1\).*permute\(0, 3, 1, 2\)"),
        (IMAGES.expand(-1, 3, -1, -1), LABELS, r"images has shape .*pass \(N, 1, 8, 8\)"),
        (IMAGES[:0], LABELS[:0], "N >= 1"),
        (IMAGES, torch.eye(3, dtype=torch.int64)[LABELS], r"labels is .*\(100, 3\).*argmax"),
        (IMAGES, LABELS + 1, "labels range from 1 to 3; there are 3 classes"),
        (IMAGES, LABELS.float(), "labels is torch.float32"),
        (IMAGES, LABELS[1:], "for each of 100 rows"),
        (IMAGES, None, "labels is None"),
        (IMAGES.numpy(), LABELS, "images is uint8"),
    ],
)
def test_training_refuses_what_are_no_images(images, labels, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        train(TINY, tmp_path, images, labels, device="cpu", progress=False)
    assert not (tmp_path / "weights.log.jsonl").exists()


def test_images_of_any_size_are_grey_or_colour():
    for shape in ((2, 1, 9, 7), (2, 3, 9, 7)):
        data.check_images(torch.zeros(shape, dtype=torch.uint8))
    for shape in ((2, 9, 7, 3), (2, 9, 7), (9, 7, 3), (0, 1, 9, 7), (2, 4, 9, 7)):
        with pytest.raises(ValueError, match="images has shape"):
            data.check_images(torch.zeros(shape, dtype=torch.uint8))


FLAT = torch.rand(300, 784, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("images", [FLAT, (255 * FLAT).round(), (255 * FLAT).to(torch.uint8), FLAT[:0]])
def test_classifier_refuses_pixels_of_another_scale(images):
    labels = torch.arange(len(images)) % 10
    for call in (
        lambda: train_classifier(images, labels, batch=2),
        lambda: accuracy(FashionClassifier(), images, labels),
    ):
        with pytest.raises(ValueError, match="images"):
            call()
    with pytest.raises(ValueError, match="labels"):
        accuracy(FashionClassifier(), 2 * FLAT - 1, torch.arange(300))


def test_classifier_takes_any_floats():
    x = (2 * FLAT[:4] - 1).reshape(-1, 1, 28, 28)
    classifier = FashionClassifier().eval()
    with torch.no_grad():
        wanted = classifier(x)
        torch.testing.assert_close(classifier(x.double()), wanted)
        assert torch.equal(classifier(x.half()), classifier(x.half().float()))
    for wrong in (x * math.nan, x.numpy(), x.byte()):
        with pytest.raises(ValueError, match=r"^x(\[| )"):
            classifier.features(wrong)


def test_an_estimate_for_an_image_network_asks_for_pixels_from_minus_1_to_1():
    network, (images, labels, _) = load_network("fashion-mnist"), data.load_images("fashion-mnist")
    sigmas, options = [0.1, 1.0, 2.0, 4.0], {"labels": labels[:16], "samples": 2}
    for wrong, words in (
        (images, "x is torch.uint8 .*pass a floating tensor"),
        (images.float(), r"x runs from 0 to 255, as pixels .*pass pixels in \[-1, 1\]"),
        (images / 255, r"x runs from 0 to 1, as pixels .*pass pixels in \[-1, 1\]"),
    ):
        with pytest.raises(ValueError, match=words):
            estimate(network, wrong[:16], sigmas, **options)
    assert estimate(network, data.to_pixels(images[:16]), sigmas, **options).eps2[0] < 784


def test_a_montage_is_of_images():
    from studies.montage import draw_montage

    for wrong in (torch.zeros(2, 1, 4, 4), torch.zeros(2, 2, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"rows (is|has)"):
            draw_montage([wrong], ["a"])


# Files of states


STATES = 2 * np.random.default_rng(0).random((6, 4, 8, 8)) - 1


def _saved(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_states_are_read(tmp_path, dtype, kind):
    path = _saved(tmp_path / "a.npz", x=STATES.astype(dtype), labels=np.arange(6).astype(kind))
    x, labels = data.load_states(path, (4, 8, 8), 6)
    assert torch.equal(x, torch.from_numpy(STATES.astype(dtype)).float())
    assert labels.dtype == torch.int64 and labels.tolist() == list(range(6))
    unlabelled = _saved(tmp_path / "b.npz", x=STATES)
    assert data.load_states(unlabelled, (4, 8, 8), 0)[1].tolist() == [0] * 6
    with pytest.raises(ValueError, match=r"b.npz lacks labels; write np.savez"):
        data.load_states(unlabelled, (4, 8, 8), 6)
    with pytest.raises(FileNotFoundError, match=r"c\.npz"):
        data.load_states(tmp_path / "c.npz", (4, 8, 8), 6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": (255 * np.abs(STATES)).astype(np.uint8)}, "x is torch.uint8"),
        ({"x": np.abs(STATES)}, r"x runs from .*\[0, 1\].*2 x - 1"),
        ({"x": 255 * np.abs(STATES)}, "x runs from"),
        ({"x": np.moveaxis(STATES, 1, 3)}, r"x has shape \(6, 8, 8, 4\); pass floats \(N, 4, 8, 8\)"),
        ({"x": STATES * np.nan}, r"x\[0, 0, 0, 0\] = nan"),
        ({"x": STATES * 1e300}, r"x\[.*inf"),
        ({"x": STATES[:0], "labels": np.arange(0)}, "empty"),
        ({"x": STATES.astype(complex)}, "x is torch.complex128"),
        ({"x": np.array(["a"])}, "x is <U1"),
        ({"x": np.array(1.0)}, "x has shape"),
        ({"labels": np.eye(6, dtype=int)}, r"labels is torch.int64 of shape \(6, 6\)"),
        ({"labels": np.arange(6) + 1}, "labels range from 1 to 6"),
        ({"labels": np.arange(6.0)}, "labels is torch.float64"),
        ({"labels": np.arange(6) > 2}, "labels is torch.bool"),
        ({"labels": np.arange(5)}, "each of 6 rows"),
    ],
)
def test_files_of_states_are_refused(tmp_path, change, words):
    path = _saved(tmp_path / "a.npz", **({"x": STATES, "labels": np.arange(6)} | change))
    with pytest.raises(ValueError, match=rf"a\.npz: .*{words}"):
        data.load_states(path, (4, 8, 8), 6)


def test_names_of_features_are_names_of_files(network, tmp_path):
    for name in ("../a", "a/b", "a\\b", "", "a\0", 3, "a" * 300):
        with pytest.raises(ValueError, match="features has the name"):
            generate(network, edm_sigmas(3), [1], out=tmp_path, features={name: lambda images: images})


def test_the_embedded_network_still_denoises():
    network = load_network("fashion-mnist")
    x = data.to_pixels(data.load_images("fashion-mnist", "test").images[:8])
    assert (network(x, 0.01, torch.arange(8) % 10) - x).abs().max() < 0.2
