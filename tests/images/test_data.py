"""Images: shape, range, balance; whole sets in miniature from folders and from a server; nothing unverified."""

import gzip
import hashlib
import io
import pickle
import re
import struct
import tarfile
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from entropic.images import data
from tests.images.test_downloads import Server


def test_embedded_subset_is_balanced_and_in_range():
    for split, per_class in (("train", 700), ("test", 100)):
        images, labels = data.fashion_mnist(split)
        assert images.shape == (10 * per_class, 784)
        assert images.dtype == torch.float64
        assert images.min() == -1
        assert images.max() == 1
        assert torch.bincount(labels).tolist() == [per_class] * 10
    assert len(data.fashion_mnist_classes()) == len(data.cifar10_classes()) == 10


def test_image_set_holds_the_same_pixels_as_the_mixtures_get():
    loaded = data.load_images("fashion-mnist", "test")
    assert loaded.images.shape == (1000, 1, 28, 28)
    assert loaded.images.dtype == torch.uint8
    assert loaded.labels.dtype == torch.int64
    pixels, labels = data.fashion_mnist("test")
    assert torch.equal(data.to_pixels(loaded.images, torch.float64).flatten(1), pixels)
    assert torch.equal(loaded.labels, labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_to_uint8_inverts_to_pixels_and_agrees_with_truncation(dtype):
    every = torch.arange(256).to(torch.uint8)
    assert torch.equal(data.to_uint8(data.to_pixels(every, dtype)), every)
    x = 3 * torch.randn(100_000, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert torch.equal(data.to_uint8(x), (x.double() * 127.5 + 128).clip(0, 255).to(torch.uint8))
    with pytest.raises(ValueError, match="x\\[1\\] = nan"):
        data.to_uint8(torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match=r"float32 of shape \(3,\); pass uint8"):
        data.to_pixels(torch.zeros(3))


# Sets in miniature, in the original formats


def _fashion_files(seed=0):
    """Name -> decompressed content, 20 images a split."""
    rng = np.random.default_rng(seed)
    files = {}
    for prefix in ("train", "t10k"):
        files[f"{prefix}-images-idx3-ubyte"] = bytes(16) + rng.bytes(20 * 784)
        files[f"{prefix}-labels-idx1-ubyte"] = bytes(8) + bytes(range(10)) * 2
    return files


def _batch(images, labels):
    """A batch of CIFAR-10 as Python 2 pickled it: short strings, arrays by numpy.core.multiarray."""
    return b"".join(
        [
            b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01",
            b"K"
            + bytes([len(images)])
            + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN",
            b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
            + struct.pack("<i", images.nbytes)
            + images.tobytes(),
            b"tbU\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"eu.",
        ]
    )


def _cifar_files():
    """Name -> content, 4 images a batch, the first of each all of one colour."""
    rng = np.random.default_rng(1)
    files = {}
    for k, name in enumerate(["data_batch_1", "data_batch_2", "test_batch"]):
        images = rng.integers(0, 256, (4, 3072), np.uint8)
        images[0] = np.repeat(np.array([10 + k, 20, 30], np.uint8), 1024)
        files[name] = _batch(images, [k, 1, 2, 9])
    return files


def _archive(files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture(name="sets")
def _sets(tmp_path, monkeypatch):
    """Empty folders to look in, and checksums of the sets in miniature."""
    monkeypatch.setenv("ENTROPIC_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ENTROPIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "_DEBIAN", tmp_path / "debian")
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in _fashion_files().items()}
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in _cifar_files().items()}
    monkeypatch.setattr(data, "_FASHION_SHA256", sha256)
    monkeypatch.setattr(data, "_CIFAR_MD5", md5)
    return tmp_path


def _write(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _gzipped(files):
    return {f"{name}.gz": gzip.compress(content) for name, content in files.items()}


@pytest.fixture(name="server")
def _server(sets, monkeypatch):
    server = Server()
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(data, "_FASHION_URL", server.url)
    monkeypatch.setattr(data, "_CIFAR_URL", server.url)
    server.files = {**_gzipped(_fashion_files()), "cifar-10-python.tar.gz": _archive(_cifar_files())}
    yield server
    server.close()


def _is_fashion(loaded, split):
    prefix = "train" if split == "train" else "t10k"
    files = _fashion_files()
    assert loaded.name == "Fashion-MNIST"
    assert loaded.images.shape == (20, 1, 28, 28)
    assert loaded.images.numpy().tobytes() == files[f"{prefix}-images-idx3-ubyte"][16:]
    assert bytes(loaded.labels.tolist()) == files[f"{prefix}-labels-idx1-ubyte"][8:]


def _is_cifar(loaded, split):
    batches = [0, 1] if split == "train" else [2]
    assert loaded.name == "CIFAR-10"
    assert loaded.images.shape == (4 * len(batches), 3, 32, 32)
    assert loaded.labels.tolist() == [label for k in batches for label in (k, 1, 2, 9)]
    for row, k in zip(loaded.images[::4], batches, strict=True):
        assert (row == torch.tensor([10 + k, 20, 30])[:, None, None]).all()


@pytest.mark.parametrize("place", ["data/fashion-mnist", "debian", "cache/fashion-mnist"])
def test_fashion_mnist_is_read_from_each_folder(sets, place):
    _write(sets / place, _gzipped(_fashion_files()))
    for split in ("train", "test"):
        _is_fashion(data.load_images("fashion-mnist", split, "full"), split)
    assert data.fashion_mnist("test", "full")[0].shape == (20, 784)


@pytest.mark.parametrize("place", ["data/cifar10", "data/cifar10/cifar-10-batches-py", "cache/cifar10"])
@pytest.mark.parametrize("packed", [True, False])
def test_cifar10_is_read_packed_and_unpacked(sets, place, packed):
    files = _cifar_files()
    if packed:
        place, files = place.removesuffix("/cifar-10-batches-py"), {"cifar-10-python.tar.gz": _archive(files)}
    _write(sets / place, files)
    for split in ("train", "test"):
        _is_cifar(data.load_images("cifar10", split, "full"), split)


def test_own_folder_comes_first_and_altered_content_is_refused_with_both_checksums(sets):
    _write(sets / "debian", _gzipped(_fashion_files()))
    altered = _fashion_files(seed=1)
    _write(sets / "data" / "fashion-mnist", _gzipped(altered))
    name = "t10k-images-idx3-ubyte"
    found, expected = hashlib.sha256(altered[name]).hexdigest(), data._FASHION_SHA256[name]
    with pytest.raises(ValueError, match=rf"data/fashion-mnist/{name}.gz.*{found}, expected {expected}"):
        data.load_images("fashion-mnist", "test", "full")
    (sets / "data" / "fashion-mnist" / f"{name}.gz").write_bytes(gzip.compress(altered[name])[:-9])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        data.load_images("fashion-mnist", "test", "full")


def test_altered_batches_are_refused(sets):
    files = _cifar_files()
    files["data_batch_2"] = files["data_batch_2"].replace(b"]K", b"]K\x01K", 1) + b"."
    _write(sets / "data" / "cifar10", {"cifar-10-python.tar.gz": _archive(files)})
    with pytest.raises(ValueError, match=f"data_batch_2: md5.*expected {data._CIFAR_MD5['data_batch_2']}"):
        data.load_images("cifar10", "train", "full")
    _is_cifar(data.load_images("cifar10", "test", "full"), "test")
    del files["test_batch"]
    (sets / "data/cifar10/cifar-10-python.tar.gz").write_bytes(_archive(files))
    with pytest.raises(ValueError, match="lacks test_batch"):
        data.load_images("cifar10", "test", "full")


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickle_that_would_run_code_is_refused(sets, monkeypatch, protocol):
    evil = pickle.dumps({"data": _Evil(sets / "written"), "labels": []}, protocol)
    monkeypatch.setitem(data._CIFAR_MD5, "test_batch", hashlib.md5(evil).hexdigest())
    _write(sets / "data" / "cifar10", {"test_batch": evil})
    with pytest.raises(ValueError, match="open is not allowed"):
        data.load_images("cifar10", "test", "full")
    assert not (sets / "written").exists()
    pickle.loads(evil)  # what the refusal is good for
    assert (sets / "written").exists()


# Downloads


@pytest.mark.parametrize(("name", "check"), [("fashion-mnist", _is_fashion), ("cifar10", _is_cifar)])
def test_download_once_into_the_cache(sets, server, name, check):
    for split in ("test", "train", "test"):
        check(data.load_images(name, split, "full"), split)
    assert sorted(name for name, _ in server.asked) == sorted({name for name, _ in server.asked})
    kept = [path.name for path in (sets / "cache" / name).iterdir()]
    assert sorted(kept) == sorted({name for name, _ in server.asked})


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_download_goes_on_or_starts_again(sets, server, ranges):
    server.cut, server.ranges = 2000, ranges
    with pytest.raises(FileNotFoundError, match=r"after 2000 of \d+ bytes; run again"):
        data.load_images("cifar10", "train", "full")
    server.cut = None
    _is_cifar(data.load_images("cifar10", "train", "full"), "train")
    assert server.asked[1] == ("cifar-10-python.tar.gz", "bytes=2000-")
    kept = sets / "cache" / "cifar10" / "cifar-10-python.tar.gz"
    assert kept.read_bytes() == server.files["cifar-10-python.tar.gz"]
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_leftover_longer_than_the_file_is_thrown_away(sets, server):
    _write(sets / "cache" / "cifar10", {"cifar-10-python.tar.gz.part": bytes(100_000)})
    _is_cifar(data.load_images("cifar10", "test", "full"), "test")
    assert [span for _, span in server.asked] == [None]  # nothing says of which file it is a part


def test_altered_download_is_refused_and_not_kept(sets, server):
    name = "t10k-labels-idx1-ubyte"
    right = server.files[f"{name}.gz"]
    server.files[f"{name}.gz"] = gzip.compress(bytes(28))
    found, expected = hashlib.sha256(bytes(28)).hexdigest(), data._FASHION_SHA256[name]
    with pytest.raises(ValueError, match=rf"{server.url}/{name}.gz: .*{found}, expected {expected}"):
        data.load_images("fashion-mnist", "test", "full")
    assert not (sets / "cache" / "fashion-mnist" / f"{name}.gz").exists()
    server.files[f"{name}.gz"] = right
    _is_fashion(data.load_images("fashion-mnist", "test", "full"), "test")


def test_several_at_once_fetch_once(server):
    server.delay = 0.2
    threads = [threading.Thread(target=data.load_images, args=("cifar10", "test", "full")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1
    _is_cifar(data.load_images("cifar10", "test", "full"), "test")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "fashion-mnist",
            ["dataset-fashion-mnist", "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"],
        ),
        ("cifar10", ["cifar-10-python.tar.gz", "data_batch_1, data_batch_2"]),
    ],
)
def test_absent_set_says_what_to_do(sets, server, name, words):
    server.files = {}
    with pytest.raises(FileNotFoundError) as caught:
        data.load_images(name, "train", "full")
    message = str(caught.value)
    for word in [*words, server.url, str(sets / "cache" / name), f"$ENTROPIC_DATA/{name}", "404"]:
        assert word in message


def test_server_that_does_not_listen(sets, monkeypatch):
    with pytest.raises(FileNotFoundError, match="cannot be had"):  # nothing listens on port 1
        monkeypatch.setattr(data, "_CIFAR_URL", "http://127.0.0.1:1")
        data.load_images("cifar10", "test", "full")


# The copy as JPEG files


@pytest.fixture(name="jpegs")
def _jpegs(sets):
    for split in ("train", "test"):
        for k, kind in enumerate(data.cifar10_classes()):
            folder = sets / "data" / "cifar10" / split / kind
            folder.mkdir(parents=True)
            for j in range(2):
                Image.new("RGB", (32, 32), (20 * k, 100 * j, 128)).save(folder / f"000{j}.jpg", quality=100)
    return sets / "data" / "cifar10"


def test_jpeg_copy_has_its_own_name_and_is_decoded_once(sets, jpegs, monkeypatch):
    first = data.load_images("cifar10", "train", "full")
    assert first.name == "CIFAR-10 (JPEG copy)"
    assert first.labels.tolist() == [k for k in range(10) for _ in range(2)]
    wanted = torch.tensor([[20 * k, 100 * j, 128] for k in range(10) for j in range(2)])[:, :, None, None]
    assert (first.images.int() - wanted).abs().max() <= 3  # JPEG rounds in YCbCr, even of one colour
    decode = data._decode
    monkeypatch.setattr(data, "_decode", lambda path: pytest.fail("decoded again"))
    assert torch.equal(data.load_images("cifar10", "train", "full").images, first.images)
    monkeypatch.setattr(data, "_decode", decode)
    Image.new("RGB", (32, 32), (255, 255, 255)).save(jpegs / "train" / "cat" / "0001.jpg")
    assert data.load_images("cifar10", "train", "full").images[7].min() > 250
    assert not list((sets / "cache").rglob("*.part"))


def test_original_comes_before_its_jpeg_copy(jpegs):
    (jpegs / "cifar-10-python.tar.gz").write_bytes(_archive(_cifar_files()))
    _is_cifar(data.load_images("cifar10", "test", "full"), "test")


def test_torn_jpeg_copies_are_refused(jpegs):
    (jpegs / "train" / "cat" / "0001.jpg").unlink()
    with pytest.raises(ValueError, match="cat 1"):
        data.load_images("cifar10", "train", "full")
    path = jpegs / "test" / "frog" / "0000.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        data.load_images("cifar10", "test", "full")
    Image.new("RGB", (16, 32)).save(path)
    with pytest.raises(ValueError, match="16 x 32"):
        data.load_images("cifar10", "test", "full")
    path.unlink()
    (path.parent / "0001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="frog holds no"):
        data.load_images("cifar10", "test", "full")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mnist",), "name = 'mnist'"),
        (("cifar10", "all"), "split = 'all'"),
        (("cifar10", "train", "x"), "source = 'x'"),
        (("cifar10", "train"), "source = 'embedded', but cifar10 is not in the package; pass source='full'"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        data.load_images(*arguments)


def test_paper_tables_hold_complete_rows():
    """Table 3: two solvers, three schedules, three numbers of calls; the values as printed in the paper."""
    rows = data.paper_table(3)
    assert len(rows) == 2 * 3 * 3 and {row["dataset"] for row in rows} == {"CIFAR-10"}
    first = [
        r["value"] for r in rows if (r["solver"], r["schedule"], r["nfe"]) == ("stochastic DDIM", "EDM", "16")
    ]
    assert first == ["33.3"]
    with pytest.raises(ValueError, match="number = 7"):
        data.paper_table(7)
