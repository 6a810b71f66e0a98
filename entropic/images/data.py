"""Images to fit and to sample: an embedded Fashion-MNIST subset, or whole sets, found on disk or downloaded."""

import csv
import gzip
import hashlib
import io
import os
import pickle
import tarfile
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from entropic import _check
from entropic.files import cache, download

_FASHION_CLASSES = (
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
_CIFAR_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_CIFAR_URL = "https://www.cs.toronto.edu/~kriz"
_CIFAR_ARCHIVE = "cifar-10-python.tar.gz"
# Of the decompressed content: whoever compresses it again, as Debian does, changes only the gzip layer.
_FASHION_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_CIFAR_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


class ImageSet(NamedTuple):
    """Images uint8 (N, C, H, W), labels int64 (N,), and the name by which a page calls them."""

    images: torch.Tensor
    labels: torch.Tensor
    name: str


def load_images(name, split="train", source="embedded"):
    """The images of "fashion-mnist" (1, 28, 28) or "cifar10" (3, 32, 32), split "train" or "test", as an ImageSet.

    `source` is "embedded" (Fashion-MNIST only: 7,000 training and 1,000 test images, in the package: the first
    700 and 100 of every class) or "full" (60,000 and 10,000; CIFAR-10 50,000 and 10,000), read from
    $ENTROPIC_DATA/<name>, from Debian's package dataset-fashion-mnist, or from the cache $ENTROPIC_CACHE/<name>
    (~/.cache/entropic/<name>), into which the original is downloaded where there is none. The choice is never
    made from what happens to be installed, so that a default run gives the same numbers everywhere.
    $ENTROPIC_DATA/cifar10/{train,test}/<class>/*.jpg is read as well: other pixels, so another name.
    FileNotFoundError: no set and no server, and what to do. ValueError: content that is not the original's.
    Sources: Xiao, Rasul and Vollgraf (2017), MIT licence; Krizhevsky (2009).
    """
    if name not in {"fashion-mnist", "cifar10"}:
        raise ValueError(f"name = {name!r}; pass 'fashion-mnist' or 'cifar10'")
    if split not in {"train", "test"}:
        raise ValueError(f"split = {split!r}; pass 'train' or 'test'")
    if source not in {"embedded", "full"}:
        raise ValueError(f"source = {source!r}; pass 'embedded' or 'full'")
    if source == "embedded":
        if name != "fashion-mnist":
            raise ValueError(f"source = 'embedded', but {name} is not in the package; pass source='full'")
        with (
            resources.files("entropic.images").joinpath("assets/fashion_mnist_subset.npz").open("rb") as file
        ):
            arrays = np.load(file)
            images, labels = arrays[f"{split}_images"].reshape(-1, 1, 28, 28), arrays[f"{split}_labels"]
        title = "Fashion-MNIST (embedded subset)"
    elif name == "fashion-mnist":
        (images, labels), title = _fashion_mnist(split), "Fashion-MNIST"
    else:
        images, labels, title = _cifar10(split)
    return ImageSet(torch.tensor(images, dtype=torch.uint8), torch.tensor(labels, dtype=torch.int64), title)


def fashion_mnist(split="train", source="embedded"):
    """Fashion-MNIST as (images (N, 784) float64 in [-1, 1], labels (N,) int64); as `load_images` otherwise."""
    images, labels, _ = load_images("fashion-mnist", split, source)
    return to_pixels(images, torch.float64).flatten(1), labels


def fashion_mnist_classes():
    """Names of the ten classes, in the order of their labels."""
    return _FASHION_CLASSES


def cifar10_classes():
    """Names of the ten classes, in the order of their labels."""
    return _CIFAR_CLASSES


def paper_table(number):
    """The published numbers of one of the paper's tables 1 to 6: a list of rows, column -> text.

    Tables 2 and 4: solver and network are read off the order of the rows. Source: arXiv:2504.13612.
    """
    text = resources.files("entropic.images").joinpath("assets/paper_tables.csv").read_text("utf-8")
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["table"] == str(number)]
    if not rows:
        raise ValueError(f"number = {number!r}; the paper's tables of results are 1 to 6")
    return rows


def to_pixels(images, dtype=torch.float32):
    """uint8 images as `dtype` in [-1, 1]: x / 127.5 - 1, which takes 0 to -1 and 255 to 1."""
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}; pass uint8, as `load_images` gives them")
    return images.to(dtype) / 127.5 - 1


def to_uint8(x):
    """Pixels in [-1, 1] as uint8: 127.5 x + 128 clamped and truncated, as EDM does; the inverse of `to_pixels`.

    ValueError: NaN or infinity.
    """
    return (_check.check_finite("x", x) * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def _folders(name, *others):
    """Where a set may lie, in the order in which it is looked for."""
    own = [Path(os.environ["ENTROPIC_DATA"]) / name] if os.environ.get("ENTROPIC_DATA") else []
    return [*own, *others, cache() / name]


def _fashion_mnist(split):
    prefix = "train" if split == "train" else "t10k"
    names = [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
    folders = _folders("fashion-mnist", _DEBIAN)
    for folder in folders:
        paths = [folder / f"{name}.gz" for name in names]
        if all(path.is_file() for path in paths):
            break
    else:  # the last folder is the cache
        remedy = (
            f"install Debian's package dataset-fashion-mnist, or put {names[0]}.gz and {names[1]}.gz from "
            f"{_FASHION_URL} into {folders[-1]} or $ENTROPIC_DATA/fashion-mnist, or pass source='embedded'"
        )
        for path in paths:
            download(f"{_FASHION_URL}/{path.name}", path, _read_idx, remedy)
    images, labels = map(_read_idx, paths)
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28), np.frombuffer(
        labels, np.uint8, offset=8
    )


def _read_idx(path, name=None):
    """Bytes of one gzipped file of Fashion-MNIST, or ValueError."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}); delete it and run again") from error
    stem = (name or path.name).removesuffix(".gz")
    return _verified(path, content, "sha256", _FASHION_SHA256[stem])


def _verified(path, content, kind, expected):
    found = hashlib.new(kind, content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path}: {kind} of the content is {found}, expected {expected}; delete it and run again"
        )
    return content


def _cifar10(split):
    names = [name for name in _CIFAR_MD5 if name.startswith("data" if split == "train" else "test")]
    folders = _folders("cifar10")
    for folder in folders:
        for unpacked in (folder, folder / "cifar-10-batches-py"):
            if all((unpacked / name).is_file() for name in names):
                contents = [
                    _verified(unpacked / name, (unpacked / name).read_bytes(), "md5", _CIFAR_MD5[name])
                    for name in names
                ]
                return *_batches(contents), "CIFAR-10"
        archive = folder / _CIFAR_ARCHIVE
        if archive.is_file():
            break
        if (folder / split).is_dir():
            return *_jpeg_folder(folder / split), "CIFAR-10 (JPEG copy)"
    else:  # the last folder is the cache
        url = f"{_CIFAR_URL}/{_CIFAR_ARCHIVE}"
        remedy = (
            f"put {_CIFAR_ARCHIVE} from {url}, or the files {', '.join(names)} unpacked from it, "
            f"into {folders[-1]} or $ENTROPIC_DATA/cifar10"
        )
        download(url, archive, lambda path, name: _read_archive(path, list(_CIFAR_MD5)), remedy)
    return *_batches(_read_archive(archive, names)), "CIFAR-10"


def _read_archive(path, names):
    """Contents of the batches `names` out of the original archive, or ValueError."""
    found = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                if name in names and member.isfile():
                    found[name] = _verified(
                        f"{path}: {name}", archive.extractfile(member).read(), "md5", _CIFAR_MD5[name]
                    )
    except (EOFError, OSError, tarfile.TarError) as error:
        raise ValueError(f"{path} is not a whole archive ({error}); delete it and run again") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; delete it and run again")
    return [found[name] for name in names]


_ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArraysOnly(pickle.Unpickler):
    """Plain values and numpy arrays: a pickle can otherwise run any code."""

    def find_class(self, module, name):
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed, only numpy's arrays are")
        return _ARRAYS[module, name]


def _batches(contents):
    """Images and labels of CIFAR-10's batches, pickles that Python 2 wrote."""
    batches = []
    for content in contents:
        try:
            batch = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
            batches.append((batch["data"].reshape(-1, 3, 32, 32), batch["labels"]))
        except (pickle.UnpicklingError, EOFError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"a CIFAR-10 batch is not as its authors wrote it: {error!r}; fetch it again"
            ) from error
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _jpeg_folder(folder):
    """Images and labels of <class>/*.jpg, by class and file name, decoded once and kept in the cache."""
    files = [(path, label) for label, kind in enumerate(_CIFAR_CLASSES) for path in _jpegs(folder / kind)]
    counts = np.bincount([label for _, label in files], minlength=len(_CIFAR_CLASSES))
    if counts.min() != counts.max():
        listed = ", ".join(f"{kind} {count}" for kind, count in zip(_CIFAR_CLASSES, counts, strict=True))
        raise ValueError(
            f"{folder} is not a whole copy, its classes differ in size ({listed}); unpack it again"
        )
    listing = hashlib.sha256()
    for path, _ in files:
        state = path.stat()
        listing.update(f"{path.relative_to(folder)} {state.st_size} {state.st_mtime_ns}\n".encode())
    kept = cache() / "cifar10" / f"jpeg-{folder.name}-{listing.hexdigest()[:16]}.npz"
    if not kept.is_file():
        images = np.stack([_decode(path) for path, _ in files])
        labels = np.array([label for _, label in files], np.uint8)
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f"{kept.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                np.savez(file, images=images, labels=labels)
            os.replace(part, kept)
        finally:
            part.unlink(missing_ok=True)
    with np.load(kept) as arrays:
        return arrays["images"], arrays["labels"]


def _jpegs(folder):
    files = sorted(folder.glob("*.jpg"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.jpg files; unpack the whole JPEG copy there")
    return files


def _decode(path):
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise ValueError(f"{path} is not a JPEG image ({error}); unpack the copy again") from error
    if pixels.shape != (32, 32, 3):
        raise ValueError(f"{path} is {pixels.shape[1]} x {pixels.shape[0]}; CIFAR-10 is 32 x 32")
    return pixels.transpose(2, 0, 1)
