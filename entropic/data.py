"""Images to fit and to sample: an embedded Fashion-MNIST subset, or the whole set where it is installed."""

import gzip
import os
from importlib import resources
from pathlib import Path

import numpy as np
import torch

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def fashion_mnist(split="train", source="embedded"):
    """Fashion-MNIST as (images (N, 784) float64 in [-1, 1], labels (N,) int64).

    `source` is "embedded" (7,000 training and 1,000 test images, in the package: the first 700 and 100 of
    every class) or "full" (60,000 and 10,000), read from $ENTROPIC_DATA/fashion-mnist or from Debian's package
    dataset-fashion-mnist. The choice is never made from what happens to be installed, so that a
    default run gives the same numbers everywhere. FileNotFoundError says how to get the full set.
    Source: Xiao, Rasul and Vollgraf (2017), MIT licence.
    """
    if split not in {"train", "test"}:
        raise ValueError(f"split = {split!r}; pass 'train' or 'test'")
    if source == "embedded":
        with resources.files("entropic").joinpath("assets/fashion_mnist_subset.npz").open("rb") as file:
            arrays = np.load(file)
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    elif source == "full":
        images, labels = _read_idx(_folder(), "train" if split == "train" else "t10k")
    else:
        raise ValueError(f"source = {source!r}; pass 'embedded' or 'full'")
    pixels = torch.from_numpy(images.reshape(len(images), -1).astype(np.float64))
    return pixels / 127.5 - 1, torch.from_numpy(labels.astype(np.int64))


def fashion_mnist_classes():
    """Names of the ten classes, in the order of their labels."""
    return _CLASSES


def _folder():
    candidates = [_DEBIAN]
    if os.environ.get("ENTROPIC_DATA"):
        candidates.insert(0, Path(os.environ["ENTROPIC_DATA"]) / "fashion-mnist")
    for folder in candidates:
        if (folder / "train-images-idx3-ubyte.gz").is_file():
            return folder
    looked = ", ".join(map(str, candidates))
    raise FileNotFoundError(
        f"Fashion-MNIST is not in {looked}. Install Debian's package dataset-fashion-mnist, or put the four "
        "*-ubyte.gz files into $ENTROPIC_DATA/fashion-mnist, or pass source='embedded'."
    )


def _read_idx(folder, prefix):
    with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    if len(images) != len(labels):
        raise ValueError(
            f"{folder}: {len(images)} {prefix} images but {len(labels)} labels; fetch the files again"
        )
    return images, labels
