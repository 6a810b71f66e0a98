"""Images to fit and to sample: an embedded Fashion-MNIST subset, or whole sets, found on disk or downloaded."""

import csv
import gzip
import hashlib
import io
import pickle
import tarfile
import warnings
import zlib
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from entropic import _check
from entropic.files import cache, environment_path, keep_arrays
from entropic.images.downloads import download

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


# What images, states and labels are. Every entrance that takes one of them calls its check.


def check_images(images, shape=None, name="images"):
    """Return `images`; ValueError unless they are a tensor uint8 (N, C, H, W) of one or more grey or colour images.

    C is 1 or 3; `shape` (C, H, W) asks for one size.
    """
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8:
        raise ValueError(
            f"{name} is {_described(images)}; pass a tensor uint8 (N, C, H, W) of values 0 to 255, "
            "as load_images(...).images is (to_uint8 makes it of floats in [-1, 1])"
        )
    wanted = f"(N, {', '.join(map(str, shape))})" if shape else "(N, C, H, W) with C = 1 or 3"
    fits = images.ndim == 4 and images.numel() > 0
    if not fits or (
        images.shape[1] not in (1, 3) if shape is None else images.shape[1:] != torch.Size(shape)
    ):
        turned = "; permute(0, 3, 1, 2) takes colours from the last place to the second"
        last = turned if images.ndim == 4 and images.shape[3] in (1, 3) else ""
        raise ValueError(f"{name} has shape {tuple(images.shape)}; pass {wanted}, N >= 1{last}")
    return images


def check_states(x, shape=None, name="x"):
    """Return `x`; ValueError unless it is a tensor of finite floats (N, C, H, W), of `shape` (C, H, W) where given.

    States are what a network denoises: pixels in [-1, 1] or latents, with or without noise. Under torch.compile
    and on the meta device there are no values to look at.
    """
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise ValueError(
            f"{name} is {_described(x)}; pass a tensor of floats, of which pixels lie in [-1, 1] "
            "(to_pixels makes them of uint8)"
        )
    if x.ndim != 4 or (shape is not None and x.shape[1:] != torch.Size(shape)):
        wanted = "N, C, H, W" if shape is None else f"N, {', '.join(map(str, shape))}"
        raise ValueError(f"{name} has shape {tuple(x.shape)}; pass floats ({wanted})")
    return _check.check_finite(name, x) if has_values(x) else x


def check_labels(labels, count, num_classes, name="labels"):
    """Return `labels`; ValueError unless they are a tensor int64 (count,) of classes from 0 to num_classes - 1."""
    if not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64 or tuple(labels.shape) != (count,):
        one_hot = isinstance(labels, torch.Tensor) and labels.ndim == 2
        raise ValueError(
            f"{name} is {_described(labels)}; pass one int64 class for each of {count} rows"
            + (", as argmax(1) makes them of one-hot rows" if one_hot else "")
        )
    if has_values(labels) and count and (labels.min() < 0 or labels.max() >= max(num_classes, 1)):
        raise ValueError(
            f"{name} range from {labels.min()} to {labels.max()}; there are {num_classes} classes, from 0"
        )
    return labels


def has_values(tensor):
    """Whether the values of a tensor can be looked at: not under torch.compile, and not on the meta device."""
    return not (torch.compiler.is_compiling() or tensor.is_meta)


def load_states(path, shape, num_classes):
    """States x (N, C, H, W) float32 and labels (N,) int64 of a file *.npz of numpy's that holds "x" and "labels".

    x are floats as a network sees them: pixels in [-1, 1] or latents. `shape` (C, H, W) and `num_classes` are those
    of the network; where num_classes is 0 the file needs no labels, which are then 0. ValueError: a damaged file,
    one without these arrays, or arrays that do not fit, with the path. FileNotFoundError: no such file.
    """
    content = io.BytesIO(Path(path).read_bytes())
    try:
        with np.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x", "labels") if name in file}
    except Exception as error:  # a damaged zip raises whatever the damage leads to
        raise ValueError(f"{path} is not a whole file of np.savez ({error!r}); write it again") from error
    missing = {"x", "labels"} - arrays.keys() - ({"labels"} if num_classes == 0 else set())
    if missing:
        raise ValueError(
            f"{path} lacks {' and '.join(sorted(missing))}; write np.savez(path, x=states, labels=classes)"
        )
    x = _tensor(arrays["x"])
    labels = _tensor(arrays.get("labels", np.zeros(arrays["x"].shape[:1], np.int64)))
    if isinstance(labels, torch.Tensor) and labels.dtype in _INTEGERS:
        labels = labels.long()
    try:
        x = _check.check_scale(check_states(x, shape))
        x = check_states(x.float())
        labels = check_labels(labels, len(x), num_classes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return x, labels


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32)


def _tensor(array):
    """A tensor of an array, or the array itself where torch has no such numbers: the checks then refuse it."""
    try:
        return torch.from_numpy(array)
    except TypeError:
        return array


def _described(value):
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return repr(value)


@torch.inference_mode(False)
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
    return ImageSet(
        torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels.astype(np.int64)), title
    )


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
    """uint8 images as `dtype` in [-1, 1]: x / 127.5 - 1, which takes 0 to -1 and 255 to 1.

    It is computed in float32 or wider and rounded once. ValueError: images that are not uint8, a `dtype` without
    fractions.
    """
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8:
        raise ValueError(f"images are {_described(images)}; pass uint8, as `load_images` gives them")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype = {dtype}; pass torch.float32 or another type of floats")
    return (images.to(wide(dtype)) / 127.5 - 1).to(dtype)


def to_uint8(x):
    """Pixels in [-1, 1] as uint8: 127.5 x + 128 clamped and truncated, as EDM does; the inverse of `to_pixels`.

    It is computed in float32 or wider: float16 and bfloat16 would round 127.5 x + 128 up to the next whole number.
    ValueError: x that is not a tensor of finite floats.
    """
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise ValueError(f"x is {_described(x)}; pass floats in [-1, 1], which uint8 and counts are not")
    return (_check.check_finite("x", x.to(wide(x.dtype))) * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def wide(dtype):
    """The type in which numbers of a type of floats are computed: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _folders(name, *others):
    """Where a set may lie, in the order in which it is looked for."""
    named = environment_path("ENTROPIC_DATA")
    own = [] if named is None else [named / name]
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
    except (EOFError, OSError, ValueError, zlib.error) as error:
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
    except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
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
    return _kept(kept, len(files)) or _decoded(files, kept)


def _kept(path, count):
    """Images and labels that `_decoded` kept at `path`, or None where they are absent or damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
        if (images.shape, labels.shape, images.dtype) == ((count, 3, 32, 32), (count,), np.uint8):
            return images, labels
        problem = f"images {images.dtype} {images.shape}, labels {labels.shape}"
    except Exception as error:  # a damaged zip raises whatever the damage leads to
        problem = repr(error)
    warnings.warn(f"{path} is damaged ({problem}); the images are decoded again", stacklevel=2)
    return None


def _decoded(files, kept):
    """Images and labels of the JPEG files; kept at `kept`, if the cache can be written."""
    images = np.stack([_decode(path) for path, _ in files])
    labels = np.array([label for _, label in files], np.uint8)
    keep_arrays(kept, images=images, labels=labels)
    return images, labels


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
