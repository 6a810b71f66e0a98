"""Damaged files: a few hundred mutations of each kind give the original's content or one ValueError with the path."""

import dataclasses
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from entropic import edm_sigmas
from entropic.images import data
from entropic.images.generate import generate, load_generated, load_manifest, missing_shards
from entropic.images.networks.classifier import load_classifier
from entropic.images.networks.small import SmallUNet, load_network, save_network
from entropic.images.train import compare_logs, train
from tests.images.test_train import TINY, noise_images


def mutations(content, count, seed=0):
    """Copies of `content` that were cut, or in which bytes were changed, put in, taken out or set to 0."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            place, width = int(rng.integers(len(changed))), int(rng.integers(1, 9))
            kind = rng.integers(5)
            if kind == 0:
                del changed[place:]
            elif kind == 1:
                del changed[place : place + width]
            elif kind == 2:
                changed[place:place] = rng.bytes(width)
            elif kind == 3:
                changed[place : place + width] = bytes(width)
            else:
                changed[place] ^= 1 << int(rng.integers(8))
            if not changed:
                break
        if changed != content:
            yield bytes(changed)


def _fuzz(path, read, same, count=300):
    """How many mutations of the file at `path` were refused by `read`; all others gave what is the `same`."""
    content, refused = path.read_bytes(), 0
    for changed in mutations(content, count):
        path.write_bytes(changed)
        try:
            found = read()
        except ValueError as error:
            assert str(path.parent) in str(error) or path.name in str(error), error
            refused += 1
        else:
            assert same(found)
    path.write_bytes(content)
    assert same(read())
    return refused


@pytest.fixture(name="network", scope="module")
def _network():
    with torch.random.fork_rng():
        return SmallUNet(8, 1, 3, channels=(8,), blocks=1, patch=2).eval().requires_grad_(False)


@pytest.fixture(name="folder")
def _folder(network, tmp_path):
    generate(network, edm_sigmas(2), range(6), shard=2, out=tmp_path / "made")
    return tmp_path / "made"


def test_manifests(folder):
    wanted = load_manifest(folder)
    read = lambda: (load_manifest(folder), len(missing_shards(folder)))  # noqa: E731
    assert _fuzz(folder / "manifest.json", read, lambda found: found == (wanted, 0)) > 280


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": None},
        {"seeds": [1.5]},
        {"seeds": []},
        {"shard": 0},
        {"shard": "2"},
        {"output": "x"},
        {"output": []},
        {"features": {"../x": "f"}},
        {"features": 3},
        {"seeds": [0, 1]},
    ],
)
def test_altered_manifests(folder, network, change):
    path = folder / "manifest.json"
    kept = json.loads(path.read_text())
    unsigned = {name: value for name, value in (kept | change).items() if name != "sha256"}
    documents = [kept | change] + ([unsigned] if change != {"seeds": [0, 1]} else [])
    for document in [*documents, [], 3, None, {}]:
        path.write_text(json.dumps(document))
        for call in (
            lambda: load_manifest(folder),
            lambda: load_generated(folder),
            lambda: missing_shards(folder),
            lambda: generate(network, edm_sigmas(2), range(6), shard=2, out=folder),
        ):
            with pytest.raises(ValueError, match=r"manifest.json is damaged .*generate again"):
                call()


def test_a_manifest_without_a_sha256_is_read(folder):
    path = folder / "manifest.json"
    wanted = load_manifest(folder)
    path.write_text(json.dumps(wanted))
    assert load_manifest(folder) == wanted and "sha256" not in wanted


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_shards(folder, kind):
    wanted = load_generated(folder)

    def same(found):
        return torch.equal(found.images, wanted.images) and torch.equal(found.labels, wanted.labels)

    path = folder / f"{kind}-000001.npy"
    assert _fuzz(path, lambda: load_generated(folder), same) > 280
    assert np.array_equal(np.load(path), getattr(wanted, kind)[2:4].numpy())  # numpy's own reader is content


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"x" * 300])
def test_what_is_no_shard(folder, content):
    (folder / "images-000000.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"images-000000.npy cannot be read .*delete it and generate again"):
        load_generated(folder)


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_weights(network, tmp_path, suffix):
    path = tmp_path / "w.safetensors"
    save_network(path, network, {"recipe": {"steps": 3}})
    wanted = network.state_dict()

    def same(found):
        state = found.state_dict()
        return state.keys() == wanted.keys() and all(torch.equal(state[k], wanted[k]) for k in wanted)

    refused = _fuzz(path.with_suffix(f".{suffix}"), lambda: load_network(path), same)
    assert refused > 200


@pytest.mark.parametrize(
    "config",
    [
        None,
        {"blocks": 10**9},
        {"channels": [8] * 1000},
        {"channels": [10**6]},
        {"channels": 3},
        {"resolution": "8"},
        {"sigma_data": float("nan")},
        {"other": 1},
        {"num_classes": 4},
    ],
)
def test_weights_of_an_altered_configuration(network, tmp_path, config):
    path = tmp_path / "w.safetensors"
    save_network(path, network, {})
    info = json.loads(path.with_suffix(".json").read_text())
    info["config"] = None if config is None else info["config"] | config
    path.with_suffix(".json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"w\.safetensors cannot be read .*fetch or train them again"):
        load_network(path)


def test_classifiers(tmp_path, network):
    save_network(tmp_path / "c.safetensors", network, {})
    with pytest.raises(
        ValueError, match=r"c\.safetensors cannot be read .* not the weights of a FashionClassifier"
    ):
        load_classifier(tmp_path / "c.safetensors")
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(ValueError, match=r"c\.json cannot be read .*no sha256"):
        load_classifier(tmp_path / "c.safetensors")


SHORT = dataclasses.replace(
    TINY, steps=6, log_every=2, save_every=3, network=TINY.network | {"channels": [8, 8]}
)


@pytest.fixture(name="trained", scope="module")
def _trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with torch.random.fork_rng():
        train(SHORT, folder, *noise_images(), device="cpu", progress=False)
    return folder


def _again(folder):
    with torch.random.fork_rng():
        return train(SHORT, folder, *noise_images(), device="cpu", progress=False)


def test_checkpoints(trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    wanted = load_network(trained / "weights.safetensors").state_dict()

    def same(average):
        state = average.state_dict()
        return all(torch.equal(state[name], wanted[name]) for name in wanted)

    assert _fuzz(folder / "checkpoint.pt", lambda: _again(folder), same, count=60) > 30


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"\x80\x02."])
def test_what_is_no_checkpoint(trained, tmp_path, content):
    shutil.copytree(trained, tmp_path / "c")
    (tmp_path / "c" / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint.pt is damaged .*another folder"):
        _again(tmp_path / "c")


def test_checkpoint_of_another_kind(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "c")
    for state in ({}, [1], {"step": 1}, torch.load(trained / "checkpoint.pt") | {"network": {}}):
        torch.save(state, tmp_path / "c" / "checkpoint.pt")
        with pytest.raises(ValueError, match=r"checkpoint.pt is damaged"):
            _again(tmp_path / "c")


def test_logs(trained, tmp_path):
    path, other = tmp_path / "weights.log.jsonl", tmp_path / "whole.log.jsonl"
    header, *lines = map(json.loads, (trained / path.name).read_text().splitlines())
    for line in lines:  # enough images to compare, of errors that vary
        line["count"] = [100 + one for one in line["count"]]
        line["loss"], line["loss2"] = [[value] * len(line["count"]) for value in (200.0, 500.0)]
    other.write_text("".join(json.dumps(one) + "\n" for one in (header, *lines)))
    shutil.copy(other, path)
    # Digits that were changed are other numbers, which nothing tells from the right ones.
    assert _fuzz(path, lambda: compare_logs(path, other, share=1.0), lambda found: True) > 100


def test_a_log_that_does_not_belong_to_its_checkpoint(trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    log = folder / "weights.log.jsonl"
    header, *lines = log.read_text().splitlines(keepends=True)
    for text in (
        "",
        header,
        header + lines[0],
        header + "".join(lines[1:]),
        header + lines[0] + lines[2] + lines[1],
        header.replace("0.002", "0.003") + "".join(lines),
        header + "".join(lines)[:-200],
        header + "".join(lines).replace('"count"', '"counts"'),
    ):
        log.write_text(text)
        with pytest.raises(ValueError, match=r"weights.log.jsonl"):
            _again(folder)
    log.unlink()
    with pytest.raises(ValueError, match=r"weights.log.jsonl is missing"):
        _again(folder)


def test_files_of_states(tmp_path):
    path = tmp_path / "states.npz"
    x = torch.linspace(-1, 1, 64).reshape(4, 1, 4, 4)
    np.savez_compressed(path, x=x.numpy(), labels=np.arange(4))
    same = lambda found: torch.equal(found[0], x) and found[1].tolist() == [0, 1, 2, 3]  # noqa: E731
    assert _fuzz(path, lambda: data.load_states(path, (1, 4, 4), 4), same) > 200


def test_a_damaged_cache_of_jpegs_is_made_anew_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTROPIC_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ENTROPIC_CACHE", str(tmp_path / "cache"))
    for k, kind in enumerate(data.cifar10_classes()):
        folder = tmp_path / "data" / "cifar10" / "test" / kind
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32), (20 * k, 0, 128)).save(folder / "0.jpg")
    wanted = data.load_images("cifar10", "test", "full")
    (kept,) = (tmp_path / "cache").rglob("*.npz")
    whole = kept.read_bytes()
    warned = 0
    for changed in mutations(whole, 60):
        kept.write_bytes(changed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = data.load_images("cifar10", "test", "full")
        warned += any(f"{kept} is damaged" in str(one.message) for one in caught)
        assert torch.equal(found.images, wanted.images) and torch.equal(found.labels, wanted.labels)
    assert warned > 30
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.parent.rmdir()
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="is not kept"):
        again = data.load_images("cifar10", "test", "full")
    assert torch.equal(again.images, wanted.images)
