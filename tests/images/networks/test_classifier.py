"""The Fashion-MNIST classifier: shipped weights, what they reach, training that a seed fixes, bad input."""

import math
import shutil

import pytest
import torch

from entropic.images.data import fashion_mnist
from entropic.images.networks.classifier import (
    FEATURES,
    FashionClassifier,
    accuracy,
    load_classifier,
    main,
    train_classifier,
    weights_path,
)
from entropic.images.networks.weights import load_weights, save_weights


@pytest.fixture(name="shipped", scope="module")
def _shipped():
    return load_classifier()


def test_shipped_weights_reach_their_stated_accuracy(shipped):
    _, info = load_weights(weights_path())
    stated = info["test_accuracy"]
    assert stated >= 0.91
    # The embedded test images are 1,000 of the 10,000 behind the stated accuracy: hypergeometric spread, four of it.
    spread = math.sqrt(stated * (1 - stated) / 1000 * (10_000 - 1000) / 9999)
    assert accuracy(shipped, *fashion_mnist("test")) == pytest.approx(stated, abs=4 * spread)


def test_it_is_small():
    assert sum(p.numel() for p in FashionClassifier().parameters()) < 300_000
    assert weights_path().stat().st_size < 1_000_000


def test_logits_are_linear_in_features_and_no_feature_is_idle(shipped):
    x = fashion_mnist()[0][:500].float().reshape(-1, 1, 28, 28)
    with torch.inference_mode():
        features = shipped.features(x)
        torch.testing.assert_close(shipped(x), shipped.logits(features))
    assert features.shape == (500, FEATURES)
    values = torch.linalg.eigvalsh(torch.cov(features.double().T))
    assert values[0] > 1e-6 * values[-1]  # far above float32's rounding: 96 features, not fewer


def test_a_seed_fixes_the_training():
    images, labels = fashion_mnist("test")
    runs = []
    for state, seed in enumerate((1, 1, 2)):
        torch.manual_seed(state)  # the global generator has no say
        runs.append(train_classifier(images[:100], labels[:100], epochs=2, batch=50, seed=seed))
    first, again, other = (list(run.state_dict().values()) for run in runs)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))
    trained = train_classifier(images, labels, epochs=2, batch=50, seed=1)
    assert accuracy(trained, images, labels) > 0.6  # ten classes: 0.1 without learning


def test_the_command_writes_what_load_classifier_reads(tmp_path, monkeypatch):
    from entropic.images.networks import classifier

    monkeypatch.setattr(classifier, "fashion_mnist", lambda split, source: fashion_mnist("test"))
    main(["--out", str(tmp_path / "c.safetensors"), "--epochs", "1"])
    found = accuracy(load_classifier(tmp_path / "c.safetensors"), *fashion_mnist("test"))
    assert found == load_weights(tmp_path / "c.safetensors")[1]["test_accuracy"]


def test_altered_and_foreign_weights_are_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    for suffix in (".safetensors", ".json"):
        shutil.copy(weights_path().with_suffix(suffix), path.with_suffix(suffix))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="sha256"):
        load_classifier(path)
    save_weights(path, {"other": torch.zeros(2)}, {})
    with pytest.raises(ValueError, match="not the weights of a FashionClassifier"):
        load_classifier(path)


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 784), torch.zeros(2, 3, 28, 28), torch.zeros(2, 1, 28, 28, dtype=torch.uint8)]
)
def test_wrong_images_are_named(x):
    with pytest.raises(ValueError, match=r"x (is|has)"):
        FashionClassifier().features(x)


def test_training_refuses_what_does_not_fit():
    images, labels = fashion_mnist("test")
    with pytest.raises(ValueError, match=r"labels is .*\(999,\); pass one int64 class for each of 1000 rows"):
        train_classifier(images, labels[1:])
    with pytest.raises(ValueError, match="epochs"):
        train_classifier(images, labels, epochs=0)
    with pytest.raises(ValueError, match="labels range from 1 to 10; there are 10 classes"):
        train_classifier(images, labels + 1)
    with pytest.raises(ValueError, match=r"images\[.*nan"):
        train_classifier(images.log(), labels)
