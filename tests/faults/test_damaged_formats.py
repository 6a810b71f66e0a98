"""Damaged weights, statistics and caches: one documented error with the file's path, or a new start with a warning."""

import json
import shutil
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from entropic.files import environment_path
from entropic.images import metrics
from entropic.images.metrics import EXTRACTORS, load_reference, statistics
from entropic.images.networks import vae
from entropic.images.networks.classifier import load_classifier, weights_path
from entropic.images.networks.dinov2 import DINOv2, load_dinov2
from entropic.images.networks.vae import load_vae
from entropic.images.networks.weights import load_weights, save_weights

MUTATIONS = 200


def mutated(content, seed):
    """`content` with one to three bytes changed, pieces cut out, doubled or cut off."""
    rng, made = np.random.default_rng(seed), bytearray(content)
    for _ in range(rng.integers(1, 4)):
        # Half of the places lie in the first or last kilobyte, where the structure of a file stands.
        ends = [0, max(0, len(made) - 1000)]
        at = (
            int(rng.integers(len(made)))
            if rng.integers(2)
            else ends[rng.integers(2)] + int(rng.integers(1000))
        )
        at, length = min(at, len(made) - 1), int(rng.integers(1, 9))
        how = rng.integers(5)
        if how < 2:
            made[at] = rng.integers(256)
        elif how == 2:
            del made[at : at + length]
        elif how == 3:
            made[at:at] = made[at : at + length]
        else:
            made[at:] = b""
        made = made or bytearray(b"\0")
    return bytes(made)


def refused_or_read(path, content, load, seeds=range(MUTATIONS)):
    """How many mutations of a file were refused, each by a ValueError that names it; the others were read."""
    refused = 0
    for seed in seeds:
        path.write_bytes(mutated(content, seed))
        try:
            load()
        except ValueError as error:
            refused += 1
            assert path.stem in str(error), error
    path.write_bytes(content)
    load()
    return refused


@pytest.fixture(name="weights")
def _weights(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.arange(300.0), "b": torch.ones(4, 4).half()}, {"config": {"x": 1}})
    return path


def test_mutated_weights(weights):
    assert refused_or_read(weights, weights.read_bytes(), lambda: load_weights(weights)) > MUTATIONS * 0.9
    beside = weights.with_suffix(".json")
    assert refused_or_read(beside, beside.read_bytes(), lambda: load_weights(weights)) > MUTATIONS / 3


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"sha256": 5}', '{"sha256": null}', "{" * 99_999, "\xff"]
)
def test_what_stands_beside_weights(weights, text):
    beside = weights.with_suffix(".json")
    beside.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"w\.json cannot be read .*; fetch or train the weights again"):
        load_weights(weights)


def test_content_with_its_own_sha256_that_holds_no_tensors(weights):
    import hashlib

    for content in (b"", b"{}", b"\xff" * 16, b"<html>404</html>"):
        weights.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        weights.with_suffix(".json").write_text(json.dumps({"sha256": digest}))
        with pytest.raises(ValueError, match=r"w\.safetensors cannot be read .*; fetch or train it again"):
            load_weights(weights)


def test_the_classifier_s_weights(tmp_path):
    path = tmp_path / "c.safetensors"
    for suffix in (".safetensors", ".json"):
        shutil.copy(weights_path().with_suffix(suffix), path.with_suffix(suffix))
    content = path.read_bytes()
    assert refused_or_read(path, content, lambda: load_classifier(path), range(30)) == 30


@pytest.fixture(name="small")
def _small(monkeypatch):
    monkeypatch.setitem(
        EXTRACTORS, "inception-v3-compat", EXTRACTORS["inception-v3-compat"]._replace(dimension=4)
    )


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_mutated_references(tmp_path, save):
    path = tmp_path / "cifar.npz"
    save(path, mu=np.arange(4.0), sigma=np.eye(4))
    assert refused_or_read(path, path.read_bytes(), lambda: load_reference(path)) > MUTATIONS / 2


def _reheaded(path, old, new):
    """A zip file with another method of compression, or flag of encryption, in both of its headers."""
    path.write_bytes(path.read_bytes().replace(*old).replace(*new))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("flag", ["method", "encrypted", "header"])
def test_a_zip_that_asks_for_what_is_not_there(tmp_path, monkeypatch, flag):
    monkeypatch.setenv("ENTROPIC_CACHE", str(tmp_path / "cache"))
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    first = statistics(x)
    (kept,) = (tmp_path / "cache").iterdir()
    reference = tmp_path / "cifar.npz"
    np.savez(reference, mu=np.arange(4.0), sigma=np.eye(4))
    for path in (kept, reference):
        content = bytearray(path.read_bytes())
        for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            place = content.find(magic)
            while place >= 0:
                if flag == "method":
                    content[place + at + 2] = 99  # NotImplementedError
                elif flag == "encrypted":
                    content[place + at] |= 1  # RuntimeError
                place = content.find(magic, place + 1)
        if flag == "header":  # SyntaxError, in numpy's header; zip's checksum is made anew
            with zipfile.ZipFile(path) as old:
                parts = {name: old.read(name).replace(b"'descr'", b"'descr\"") for name in old.namelist()}
            with zipfile.ZipFile(path, "w") as new:
                for name, part in parts.items():
                    new.writestr(name, part)
        else:
            path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cifar\.npz is no \.npz of arrays .*; fetch it again"):
        load_reference(reference)
    with pytest.warns(UserWarning, match=r"\.npz is damaged .* computed anew"):
        again = statistics(x)
    assert torch.equal(first.covariance, again.covariance)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        statistics(x)


@pytest.mark.filterwarnings("ignore:.*is damaged.*")
def test_mutated_statistics_are_computed_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTROPIC_CACHE", str(tmp_path / "cache"))
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    first = statistics(x)
    (kept,) = (tmp_path / "cache").iterdir()
    content = kept.read_bytes()
    for seed in range(MUTATIONS):
        kept.write_bytes(mutated(content, seed))
        again = statistics(x)
        assert torch.equal(first.mean, again.mean) and torch.equal(first.covariance, again.covariance)
        assert again.count == 20


@pytest.mark.parametrize(
    "change",
    [
        {"count": 19},
        {"mean": np.zeros(3)},
        {"covariance": np.zeros((3, 3))},
        {"mean": np.full(4, np.nan)},
        {"mean": np.zeros(4, np.float32)},
        {"count": np.array([1, 2])},
    ],
)
def test_whole_statistics_of_something_else_are_computed_anew(tmp_path, monkeypatch, change):
    monkeypatch.setenv("ENTROPIC_CACHE", str(tmp_path))
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    first = statistics(x)
    (kept,) = tmp_path.iterdir()
    np.savez(kept, **({"mean": first.mean, "covariance": first.covariance, "count": 20} | change))
    with pytest.warns(UserWarning, match="is damaged"):
        assert torch.equal(statistics(x).mean, first.mean)


def test_a_cache_that_cannot_be_written_warns(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ENTROPIC_CACHE", str(tmp_path / "file"))
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="is not kept .*set ENTROPIC_CACHE"):
        assert statistics(x).count == 20


def test_kept_files_have_the_permissions_of_the_umask(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTROPIC_CACHE", str(tmp_path))
    statistics(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)))
    save_weights(tmp_path / "w.safetensors", {"a": torch.ones(2)}, {})
    (tmp_path / "plain").write_text("")
    assert len({path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}) == 1


@pytest.fixture(name="dinov2")
def _dinov2():
    network, g = DINOv2(64, 1, 3), torch.Generator().manual_seed(0)
    return {name: torch.randn(value.shape, generator=g) for name, value in network.state_dict().items()}


def test_mutated_weights_of_dinov2(tmp_path, dinov2):
    """Of a pickle, half of the mutations; of safetensors, which have no checksum, only those of its header."""
    for suffix, save in ((".pth", torch.save), (".safetensors", safetensors.torch.save_file)):
        path = tmp_path / f"d{suffix}"
        save(dinov2, path)
        refused = refused_or_read(path, path.read_bytes(), lambda path=path: load_dinov2(path), range(100))
        assert refused > 15


def test_mutated_files_of_the_vae(tmp_path):
    pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        network = vae.autoencoder_class()(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    folder = tmp_path / "folder"
    network.save_pretrained(folder)
    for name, seeds in (("config.json", range(60)), ("diffusion_pytorch_model.safetensors", range(60))):
        path, refused = folder / name, 0
        content = path.read_bytes()
        for seed in seeds:
            made = mutated(content, seed)
            if name == "config.json" and any(
                len(word) > 4 for word in made.split() if word.strip(b",").isdigit()
            ):
                continue  # a network of another size, for which the machine may be too small
            path.write_bytes(made)
            try:
                load_vae(folder)
            except ValueError as error:
                refused += 1
                assert str(folder) in str(error) or "latent channels" in str(error)
        path.write_bytes(content)
        assert refused > 10
    load_vae(folder)


def test_references_name_the_file(tmp_path):
    for name, content in (("a.pkl", b"<html>"), ("a.pkl", b""), ("a.npz", b""), ("a.npz", b"PK\x03\x04")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            load_reference(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        load_reference(tmp_path / "absent.npz")


def test_altered_extractor_weights(tmp_path):
    """Files with a published checksum: any damage is found by that."""
    (tmp_path / "inception.pth").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"inception\.pth: sha256 is"):
        metrics.EXTRACTORS["inception-v3-compat"].locate(tmp_path / "inception.pth")


def test_paths_of_the_environment_do_not_depend_on_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for value in ("~/a.pth", "a.pth", str(tmp_path / "a.pth")):
        monkeypatch.setenv("ENTROPIC_ANY", value)
        assert environment_path("ENTROPIC_ANY") == tmp_path / "a.pth"
    monkeypatch.setenv("ENTROPIC_ANY", "")
    assert environment_path("ENTROPIC_ANY") is None
    monkeypatch.setenv("ENTROPIC_DINOV2", "~/absent.pth")
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "absent.pth")):
        metrics.EXTRACTORS["dinov2-vit-l-14-bicubic"].locate()
    monkeypatch.setenv("ENTROPIC_VAE", "~/absent")
    pytest.importorskip("diffusers")
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "absent")):
        load_vae()
