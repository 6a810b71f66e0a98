"""Embedded images: shape, range, balance; the full set where installed; errors that say what to do."""

import gzip

import numpy as np
import pytest
import torch

from entropic import data


def test_embedded_subset_is_balanced_and_in_range():
    for split, per_class in (("train", 700), ("test", 100)):
        images, labels = data.fashion_mnist(split)
        assert images.shape == (10 * per_class, 784)
        assert images.dtype == torch.float64
        assert images.min() == -1
        assert images.max() == 1
        assert torch.bincount(labels).tolist() == [per_class] * 10
    assert len(data.fashion_mnist_classes()) == 10


@pytest.fixture(name="folder")
def _folder(tmp_path, monkeypatch):
    """A full set in miniature, in the original file format, made from the embedded test images."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    images, labels = data.fashion_mnist("test")
    pixels = ((images + 1) * 127.5).round().to(torch.uint8).numpy()
    for prefix in ("train", "t10k"):
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels.tobytes()))
        label_bytes = labels.numpy().astype(np.uint8).tobytes()
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + label_bytes))
    monkeypatch.setenv("ENTROPIC_DATA", str(tmp_path))
    return folder


def test_full_set_is_read_from_entropic_data(folder):
    embedded, labels = data.fashion_mnist("test")
    full, full_labels = data.fashion_mnist("test", "full")
    assert torch.equal(full, embedded)
    assert torch.equal(full_labels, labels)


def test_full_set_with_a_missing_label_is_refused(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8 + 999)))
    with pytest.raises(ValueError, match="1000 t10k images but 999 labels"):
        data.fashion_mnist("test", "full")


def test_absent_full_set_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "_DEBIAN", tmp_path)
    monkeypatch.delenv("ENTROPIC_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        data.fashion_mnist(source="full")


@pytest.mark.parametrize(
    ("arguments", "words"), [(("all",), "split = 'all'"), (("train", "x"), "source = 'x'")]
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        data.fashion_mnist(*arguments)
