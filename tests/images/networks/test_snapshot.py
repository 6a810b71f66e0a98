"""Reading NVIDIA's snapshots: what is read is exact, and nothing in a file is ever run."""

import builtins
import collections
import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from entropic.images.networks import snapshot, weights
from entropic.images.networks.edm import EDMPrecond, VPPrecond
from entropic.images.networks.edm2 import Precond
from entropic.images.networks.snapshot import SnapshotError, Stub, load_snapshot, read_pickle
from tests.images.networks import snapshots as s

ROOT = Path(__file__).parents[3]
ORACLE = os.environ.get("ENTROPIC_ORACLE")
oracle = pytest.mark.skipif(not ORACLE, reason="no reference arrays")
EDM2 = {
    **{"img_resolution": 8, "img_channels": 4, "label_dim": 3, "model_channels": 16, "dropout": 0.1},
    **{"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 16},
}
EDM = {
    **{"img_resolution": 8, "img_channels": 3, "label_dim": 0, "model_type": "SongUNet", "augment_dim": 9},
    **{"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]},
}


def make(kind, kwargs, dtype=torch.float32):
    """A network whose every parameter and buffer is random, in a published precision."""
    network, generator = kind(**kwargs), torch.Generator().manual_seed(1)
    for value in network.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=generator) * 0.5)
    return network.to(dtype).eval()


@pytest.fixture(scope="module")
def edm2():
    return make(Precond, EDM2, torch.float16)


def written(path, *values, **options):
    path.write_bytes(s.pickled(*values, **options))
    return path


def denoised(network):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, *network.shape, generator=generator).contiguous(memory_format=torch.channels_last)
    label = torch.tensor([0, network.num_classes - 1]) if network.num_classes else None
    with torch.inference_mode():
        return network(x, torch.tensor([0.3, 2.0]), label)


CASES = {
    "edm2, torch 2": (Precond, EDM2, torch.float16, {}, {}),
    "edm2, torch 1.13": (Precond, EDM2, torch.float16, {"containers": OrderedDict}, {"torch1": True}),
    "edm2, protocol 5": (Precond, EDM2, torch.float16, {}, {"protocol": 5}),
    "edm2, RGB, no labels": (Precond, EDM2 | {"label_dim": 0}, torch.float16, {"encoder": None}, {}),
    "edm": (EDMPrecond, EDM, torch.float32, {"encoder": None, "sigma_min": 0, "sigma_max": float("inf")}, {}),
    "vp": (
        VPPrecond,
        EDM | {"label_dim": 2},
        torch.float32,
        {"encoder": None, "M": 1000, "beta_d": 19.9},
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_network_is_the_one_that_was_written(name, tmp_path):
    kind, kwargs, dtype, options, form = CASES[name]
    network = make(kind, kwargs, dtype)
    tree = s.snapshot(network, kwargs, **options)
    if kind is not Precond:
        filters = {"_parameters": {}, "_buffers": {"Hz_fbank": torch.ones(4)}, "_modules": {}}
        tree["augment_pipe"] = s.Persistent("AugmentPipe", {"xflip": np.float64(1e8), **filters})
        tree = dict(tree)
    path = written(tmp_path / "a.pkl", tree, **form)
    for _ in range(2):  # the pickle, then its conversion
        loaded = load_snapshot(path, cache=tmp_path, dtype=None)
        assert type(loaded) is kind and loaded.config == network.config and not loaded.training
        assert not any(value.requires_grad for value in loaded.parameters())
        state = loaded.state_dict()
        assert state.keys() == network.state_dict().keys()
        for key, value in network.state_dict().items():
            assert state[key].dtype == value.dtype and torch.equal(state[key], value), key
        upcast = load_snapshot(path, cache=tmp_path)
        assert {value.dtype for value in upcast.state_dict().values()} == {torch.float32}
        weights = [value for value in upcast.parameters() if value.ndim == 4 and value.shape[2] > 1]
        assert all(value.is_contiguous(memory_format=torch.channels_last) for value in weights)
        network_there = network.to(memory_format=torch.channels_last)
        assert torch.equal(denoised(loaded), denoised(network_there))
        again = make(kind, kwargs, dtype).float().to(memory_format=torch.channels_last)
        assert torch.equal(denoised(upcast), denoised(again))
    assert loaded.info["encoder"] == ("StabilityVAEEncoder" if "encoder" not in options else None)
    assert loaded.info["dataset_kwargs"]["use_labels"] is True and loaded.info["source"] == "a.pkl"


@oracle
@pytest.mark.parametrize("torch1", [False, True])
def test_published_structure_and_outputs(tmp_path, torch1):
    folder = Path(ORACLE)
    meta = json.loads((folder / "tiny-meta.json").read_text())
    with np.load(folder / "tiny-state.npz") as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    network = Precond(**meta["init_kwargs"])
    network.load_state_dict(state, assign=True)
    containers = OrderedDict if torch1 else dict
    tree = s.snapshot(network, meta["init_kwargs"], containers=containers)
    path = written(tmp_path / "a.pkl", tree, torch1=torch1)
    arrays = np.load(folder / "tiny-forward.npz")
    x, sigma, label = (torch.from_numpy(arrays[name]) for name in ("x", "sigma", "class_idx"))
    for dtype, name in ((None, "D_as_published"), (torch.float32, "D_upcast_fp32")):
        with torch.inference_mode():
            found = load_snapshot(path, cache=tmp_path, dtype=dtype)(x.float(), sigma, label)
        wanted = torch.from_numpy(arrays[name])
        assert dtype is not None or (found - torch.from_numpy(arrays["D_upcast_fp32"])).abs().max() < 1e-3
        # Rounding of the gains moves D by 1e-4 and more; float32 sums in another order, by less than 2e-5.
        assert (found - wanted).abs().max() < 2e-5 * wanted.abs().max()


@oracle
def test_published_structure_and_output_of_edm(tmp_path):
    folder = Path(ORACLE)
    kwargs = json.loads((folder / "edm-tiny-uncond-meta.json").read_text())["init_kwargs"]
    network = EDMPrecond(**kwargs)
    with np.load(folder / "edm-tiny-uncond-state.npz") as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    network.load_state_dict(state, assign=True)
    limits = {"sigma_min": 0, "sigma_max": float("inf"), "sigma_data": 0.5}
    tree = dict(s.snapshot(network, dict(kwargs), containers=OrderedDict, encoder=None, **limits))
    path = written(tmp_path / "a.pkl", tree | {"augment_pipe": None}, torch1=True)
    arrays = np.load(folder / "edm-tiny-uncond.npz")
    x, sigma, wanted = (torch.from_numpy(arrays[name]) for name in ("x", "sigma", "D"))
    for dtype in (None, torch.float32):
        with torch.inference_mode():
            found = load_snapshot(path, cache=tmp_path, dtype=dtype)(x, sigma)
        assert (found - wanted).abs().max() < 2e-5 * max(1, wanted.abs().max())


def test_the_second_load_reads_the_conversion(tmp_path, edm2, monkeypatch):
    path = written(tmp_path / "a.pkl", s.snapshot(edm2, EDM2))
    first = load_snapshot(path, cache=tmp_path)
    (folder,) = [entry for entry in tmp_path.iterdir() if entry.is_dir()]
    digest = first.info["sha256"]
    assert sorted(file.name for file in folder.iterdir()) == [f"{digest}.json", f"{digest}.safetensors"]

    def read(data):
        raise AssertionError("the pickle was read again")

    monkeypatch.setattr(snapshot, "_read", read)
    renamed = path.rename(tmp_path / "b.pkl")
    second = load_snapshot(renamed, cache=tmp_path)
    assert second.info == first.info | {"source": "b.pkl"} and torch.equal(denoised(second), denoised(first))
    direct = load_snapshot(folder / f"{digest}.safetensors")
    assert direct.info == first.info and torch.equal(denoised(direct), denoised(first))


@pytest.mark.parametrize("damage", ["tensors", "json", "no json", "other", "class", "config"])
def test_a_damaged_conversion_is_made_anew(tmp_path, edm2, damage):
    path = written(tmp_path / "a.pkl", s.snapshot(edm2, EDM2))
    first = load_snapshot(path, cache=tmp_path)
    tensors = tmp_path / "snapshots" / f"{first.info['sha256']}.safetensors"
    beside = tensors.with_suffix(".json")
    good, kept = tensors.read_bytes(), json.loads(beside.read_text())
    if damage == "tensors":
        tensors.write_bytes(good[:-1] + b"\0\0")
    elif damage == "json":
        beside.write_text("[" * 100_000)
    elif damage == "no json":
        beside.unlink()
    else:
        change = {"other": {"pickle_sha256": "0"}, "class": {"class": "os.system"}, "config": {"config": EDM}}
        beside.write_text(json.dumps(kept | change[damage]))
    if damage != "other":  # which is whole in itself
        with pytest.raises(SnapshotError, match=r"convert the snapshot again"):
            load_snapshot(tensors)
    with pytest.warns(UserWarning, match=r"conversion of a\.pkl in the cache: .*; it is made anew"):
        again = load_snapshot(path, cache=tmp_path)
    assert torch.equal(denoised(again), denoised(first))
    assert tensors.read_bytes() == good and json.loads(beside.read_text()) == kept


def test_the_cache_is_that_of_the_environment(tmp_path, edm2, monkeypatch):
    monkeypatch.setenv("ENTROPIC_CACHE", str(tmp_path / "cache"))
    load_snapshot(written(tmp_path / "a.pkl", s.snapshot(edm2, EDM2)))
    assert len(list((tmp_path / "cache" / "snapshots").iterdir())) == 2


def test_without_a_cache_to_write_to_a_snapshot_is_still_loaded(tmp_path, edm2):
    path = written(tmp_path / "a.pkl", s.snapshot(edm2, EDM2))
    first = load_snapshot(path, cache=tmp_path / "cache")
    for cache in (path, tmp_path / ("a" * 300)):  # no folder, no possible name
        with pytest.warns(
            UserWarning, match=r"a\.pkl is loaded, but .*; pass a `cache`, or set ENTROPIC_CACHE"
        ):
            loaded = load_snapshot(path, cache=cache)
        assert torch.equal(denoised(loaded), denoised(first)) and loaded.info == first.info


def test_two_conversions_at_once(tmp_path, edm2, monkeypatch):
    path, save = written(tmp_path / "a.pkl", s.snapshot(edm2, EDM2)), snapshot.save_weights
    other = written(tmp_path / "b.pkl", s.snapshot(edm2, EDM2))

    def after_another(*arguments):
        monkeypatch.setattr(snapshot, "save_weights", save)
        load_snapshot(other, cache=tmp_path)
        return save(*arguments)

    monkeypatch.setattr(snapshot, "save_weights", after_another)
    first = load_snapshot(path, cache=tmp_path)
    assert len(list((tmp_path / "snapshots").iterdir())) == 2
    assert torch.equal(denoised(load_snapshot(other, cache=tmp_path)), denoised(first))


def test_reference_statistics_are_plain_data(tmp_path):
    sets = {
        "num_images": 50_000,
        "fid": {"mu": np.arange(3.0), "sigma": np.asfortranarray(np.arange(9.0).reshape(3, 3))},
        "fd_dinov2": {"mu": np.arange(2.0).astype(">f8"), "sigma": np.eye(2, dtype=np.float32)},
        "other": [
            1,
            -2,
            2**40,
            0.5,
            None,
            True,
            "é",
            (),
            (1, (2,)),
            {},
            {"a"},
            np.float32(0.25),
            np.array(7),
        ],
    }
    for protocol in (3, 4):
        if protocol == 3:  # which writes a set by a name that is not on the list
            sets["other"].remove({"a"})
        found = read_pickle(written(tmp_path / "a.pkl", sets, protocol=protocol))
        assert found["num_images"] == 50_000 and type(found["fid"]["sigma"]) is np.ndarray
        for name in ("fid", "fd_dinov2"):
            for key, value in sets[name].items():
                assert np.array_equal(found[name][key], value) and found[name][key].dtype.itemsize in (4, 8)
                assert found[name][key].flags.writeable
        assert found["other"] == sets["other"]


def test_objects_are_stubs_and_tensors_keep_their_layout(tmp_path):
    value = torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    tree = {"a": s.Persistent("UNet", {"x": value, "empty": torch.zeros(0, 3), "gain": torch.tensor(2.0)})}
    found = read_pickle(written(tmp_path / "a.pkl", tree))["a"]
    assert type(found) is Stub and found.class_name == "UNet"
    assert torch.equal(found.state["x"], value) and found.state["x"].stride() == value.stride()
    assert found.state["empty"].shape == (0, 3) and found.state["gain"] == 2


def test_ordinary_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.pkl"):
        load_snapshot(tmp_path / "a.pkl")
    with pytest.raises(FileNotFoundError, match=r"a\.safetensors"):
        load_snapshot(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="dtype"):
        load_snapshot(tmp_path / "a.pkl", dtype=torch.int8)


# Files to be refused: bytes, or a function (canary, network) -> bytes


class Reduced:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


class Extended(OrderedDict):
    pass


def system(canary):
    return s.named("os", "system"), s.text(f"touch {canary}")


def tree(network, kwargs=None, **options):
    return s.snapshot(network, EDM2 if kwargs is None else kwargs, **options)


def changed(network, change):
    """A snapshot whose `ema` was changed by `change(state)`."""
    made = tree(network)
    change(made["ema"].meta["state"])
    return s.pickled(made)


def tensors_changed(name, value):
    def change(state):
        state["_modules"]["logvar_linear"].meta["state"]["_parameters"] |= {name: value}

    return lambda canary, network: changed(network, change)


def kwargs_changed(**kwargs):
    return lambda canary, network: s.pickled(tree(network, {**EDM2, **kwargs}))


def truncated(share):
    def cut(canary, network):
        whole = s.pickled(tree(network))
        return whole[: int(len(whole) * share)]

    return cut


def with_module(name):
    """One part of the network, many times under other names: 2^28 of them, if each were followed."""

    def change(state):
        part = s.Persistent("Block", s.module_state(torch.nn.Module()))
        for _ in range(28):
            outer = s.module_state(torch.nn.Module())
            outer["_modules"] = {"a": part, "b": part}
            part = s.Persistent("Block", outer)
        state["_modules"][name] = part

    return lambda canary, network: changed(network, change)


FLOATS = s.legacy_storage(torch.ones(8))
STORAGE = s.call(s.named("torch.storage", "_load_from_bytes"), s.content(FLOATS))
OTHER_COUNT = FLOATS[:-40] + struct.pack("<q", 9) + FLOATS[-32:]
LARGE = s.content(s.legacy_storage(torch.ones(10_000))) + b"q\x000]"
MEMOIZED = s.call(s.named("torch.storage", "_load_from_bytes"), b"h\x00")
EMPTY = s.named("collections", "OrderedDict") + b")R"
F8 = (
    s.call(s.named("numpy", "dtype"), s.text("f8"), b"\x89", b"\x88")
    + b"(K\x03"
    + s.text("<")
    + b"NNN"
    + (b"J\xff\xff\xff\xff" * 2 + b"K\x00tb")
)
ARRAY = s.call(
    s.named("numpy.core.multiarray", "_reconstruct"), s.named("numpy", "ndarray"), b"K\x00\x85", b"C\x01b"
)


def tensor(offset=0, size=(8,), stride=(1,), hooks=EMPTY, storage=STORAGE):
    size, stride = (b"(" + b"".join(map(s.integer, numbers)) + b"t" for numbers in (size, stride))
    return s.call(
        *(s.named("torch._utils", "_rebuild_tensor_v2"), storage, s.integer(offset)),
        *(size, stride, b"\x89", hooks),
    )


def array(shape, content, dtype=F8):
    shape = b"(" + b"".join(map(s.integer, shape)) + b"t"
    content = b"h\x00" if content is None else s.content(content)
    return ARRAY + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb"


NESTED = b")q\x000" + b"h\x00h\x00\x86q\x000" * 60 + b"h\x00"  # 2^60 tuples, if each were followed


def stored(value):
    """A pickle in the bytes of a storage, which torch.load would run."""
    return s.program(s.call(s.named("torch.storage", "_load_from_bytes"), s.content(value)))


HOSTILE = {
    # what would run
    "os.system by reduce": lambda c, _: pickle.dumps(Reduced(os.system, (f"touch {c}",)), 4),
    "os.system by protocol 0": lambda c, _: pickle.dumps(Reduced(os.system, (f"touch {c}",)), 0),
    "os.system by GLOBAL": lambda c, _: b"\x80\x02cos\nsystem\n(" + s.text(f"touch {c}") + b"tR.",
    "posix.system": lambda c, _: s.program(s.call(s.named("posix", "system"), s.text(f"touch {c}"))),
    "eval": lambda c, _: s.program(s.call(s.named("builtins", "eval"), s.text(f"open({str(c)!r}, 'w')"))),
    "getattr": s.program(s.call(s.named("builtins", "getattr"), EMPTY, s.text("__class__"))),
    "import": lambda c, _: s.program(s.call(s.named("builtins", "__import__"), s.text("antigravity"))),
    "INST": lambda c, _: s.program(b"(", s.text(f"touch {c}"), b"ios\nsystem\n"),
    "OBJ": lambda c, _: s.program(b"(", *system(c), b"o"),
    "NEWOBJ": s.program(s.named("subprocess", "Popen"), s.text("true"), b"\x85\x81"),
    "NEWOBJ of a listed name": s.program(s.named("numpy", "ndarray"), b"K\x04\x85\x85\x81"),
    "NEWOBJ_EX": s.program(s.named("subprocess", "Popen"), s.text("true"), b"\x85}\x92"),
    "NEWOBJ_EX of a listed name": s.program(s.named("collections", "OrderedDict"), b")}\x92"),
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x01.",
    "EXT4": b"\x80\x02\x84\x01\x01\x01\x01.",
    "persistent id": s.program(s.text("x"), b"Q"),
    "persistent id, text": b"\x80\x02Px\n.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "BUILD of a class": s.program(s.named("collections", "OrderedDict"), b"}", s.text("x"), b"K\x01sb"),
    "BUILD of a function": s.program(
        s.named("torch._utils", "_rebuild_tensor_v2"), b"N}", s.text("__code__"), b"Ns\x86b"
    ),
    "BUILD of a function, dict": s.program(
        s.named("torch_utils.persistence", "_reconstruct_persistent_obj"), b"}", s.text("x"), b"K\x01sb"
    ),
    "BUILD of a dict": s.program(EMPTY, b"}", s.text("clear"), b"K\x01sb"),
    "dotted name": s.program(s.named("collections", "OrderedDict.__init__.__globals__")),
    "dotted module": s.program(s.named("torch", "_utils._rebuild_tensor_v2")),
    "name that is no text": s.program(b"]K\x01\x93"),
    "name of nested parts": s.program(NESTED, s.text("x"), b"\x93"),
    "call of a dict": s.program(b"})R"),
    "a class of ours": lambda c, _: pickle.dumps(Extended(a=1), 4),
    "a module of ours": s.program(s.named("tests.images.networks.snapshots", "pickled")),
    "OrderedDict with arguments": s.program(s.call(s.named("collections", "OrderedDict"), b"]")),
    "torch.load of the system": lambda c, _: stored(pickle.dumps(Reduced(os.system, (f"touch {c}",)), 2)),
    "torch.load of a tensor": stored(s.legacy_storage(torch.ones(2))[:-1]),
    "storage of a system call": lambda c, _: stored(
        s.legacy_storage(torch.ones(2), storage_type=Reduced(os.system, (f"touch {c}",)))
    ),
    "storage that claims to be huge": stored(s.legacy_storage(torch.ones(2), numel=1 << 40)),
    "storage that claims 4 GB": stored(s.legacy_storage(torch.ones(2), numel=1 << 30)),
    "storage with more": stored(FLOATS + b"more"),
    "storage of a web page": stored(b"<html>"),
    "storage of another name": stored(FLOATS.replace(b"storage", b"default")),
    "storage of an unknown type": stored(FLOATS.replace(b"FloatStorage", b"FlootStorage")),
    "storage not of bytes": s.program(s.call(s.named("torch.storage", "_load_from_bytes"), s.text("x"))),
    "torch.save of a dict": lambda c, _: stored(saved({"a": torch.ones(2)})),
    # tensors and arrays
    "negative offset": s.program(tensor(offset=-1)),
    "offset past the end": s.program(tensor(offset=1)),
    "huge size": s.program(tensor(size=(1 << 62,))),
    "huge stride": s.program(tensor(size=(2, 2), stride=(1 << 62, 1))),
    "negative stride": s.program(tensor(stride=(-1,))),
    "stride of 0": s.program(tensor(size=(1 << 40,), stride=(0,))),
    "overlapping strides": s.program(tensor(size=(4, 6), stride=(1, 1))),
    "two strides for one size": s.program(tensor(size=(8,), stride=(1, 1))),
    "tensor with hooks": s.program(tensor(hooks=b"}K\x01" + b"K\x01s")),
    "tensor without a storage": s.program(tensor(storage=b"K\x01")),
    "array of objects": lambda c, _: pickle.dumps(np.array([None, {}], dtype=object), 4),
    "array of records": lambda c, _: pickle.dumps(np.zeros(2, dtype=[("a", "f8")]), 4),
    "array of strings": lambda c, _: pickle.dumps(np.array(["a"]), 4),
    "array of times": lambda c, _: pickle.dumps(np.array([0], dtype="M8[s]"), 4),
    "array larger than its bytes": s.program(array((1 << 40,), b"12345678")),
    "array of negative size": s.program(array((-1, -1), b"12345678")),
    "array of code O": s.program(array((1,), b"12345678", F8.replace(s.text("f8"), s.text("O8")))),
    "array never filled": s.program(ARRAY),
    "a dtype alone": s.program(F8),
    "bytes alone": s.program(b"C\x01a"),
    "a name alone": s.program(s.named("collections", "OrderedDict")),
    "bytes used a thousand times": s.program(
        s.content(FLOATS),
        b"q\x000",
        b"]",
        (s.named("torch.storage", "_load_from_bytes") + b"h\x00\x85Ra") * 1000,
    ),
    # pickles that are none, or never end
    "empty": b"",
    "a web page": b"<!DOCTYPE html><html><body>403 Forbidden</body></html>",
    "noise": bytes(range(256)) * 4,
    "a zip file": lambda c, _: saved({"a": torch.ones(2)}),
    "protocol 9": b"\x80\x09N.",
    "only a start": b"\x80\x04",
    "trailing garbage": lambda c, network: s.pickled(tree(network)) + b"more",
    "trailing pickle": lambda c, _: s.program(b"N") + pickle.dumps(Reduced(os.system, (f"touch {c}",)), 4),
    **{f"truncated to {share}": truncated(share) for share in (0.001, 0.1, 0.5, 0.9, 0.99999)},
    "no stack": s.program(b"R"),
    "no mark": s.program(b"t"),
    "open mark": s.program(b"(N"),
    "two values": s.program(b"NN"),
    "unknown memo": s.program(b"h\x07"),
    "memo bomb": s.program(b"Nr\xff\xff\xff\xff0j\xfe\xff\xff\xff"),
    "huge bytes": s.program(b"\x8e" + struct.pack("<Q", 1 << 62)),
    "huge text": s.program(b"\x8d" + struct.pack("<Q", 1 << 62)),
    "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "huge integer": s.program(b"\x8b\xff\xff\xff\x7f"),
    "deep lists": s.program(b"]" * 100_000 + b"a" * 99_999),
    "deep tuples": s.program(b")" + b"\x85" * 100_000),
    "deep dicts": s.program((b"}" + s.text("a")) * 100_000 + b"N" + b"s" * 100_000),
    "deep keys": s.program(b"}", b")" + b"\x85" * 100_000, b"Ns"),
    "nested keys": s.program(b"}", NESTED, b"Ns"),
    "nested keys of a set": s.program(b"\x8f(", NESTED, b"\x90"),
    "nested keys in a storage": stored(b"\x80\x02}" + NESTED + b"Ns." + FLOATS),
    "nested sizes": s.program(tensor()[:-1], NESTED, b"R"),
    "nested shape": s.program(ARRAY, b"(K\x01", NESTED, F8, b"\x89C\x00tb"),
    "dtype of nested parts": s.program(s.named("numpy", "dtype"), NESTED, b"\x85R"),
    "cycle": s.program(b"]q\x00h\x00a"),
    "cycle of dicts": s.program(b"}q\x00", s.text("ema"), b"h\x00s"),
    "many objects": b"\x80\x04" + b"]" * 3_000_000 + b".",
}
MISFITS = {  # plain data, and no network
    "a list": s.program(b"]"),
    "nested network": s.program(b"}", s.text("ema"), NESTED, b"s"),
    "no ema": lambda c, network: s.pickled({k: v for k, v in tree(network).items() if k != "ema"}),
    "ema is a tensor": lambda c, network: s.pickled({**tree(network), "ema": torch.ones(2)}),
    "unknown class": lambda c, network: s.pickled({"ema": s.Persistent("Unet", {"_init_kwargs": {}})}),
    "state is none": lambda c, network: s.pickled({"ema": s.Persistent("Precond", None)}),
    "state is empty": lambda c, network: s.pickled({"ema": s.Persistent("Precond", {})}),
    "statistics": lambda c, network: s.pickled({"fid": {"mu": np.zeros(2)}}),
    # states and configurations that do not fit
    "missing tensor": lambda c, network: changed(
        network, lambda state: state["_modules"].pop("logvar_linear")
    ),
    "unknown tensor": tensors_changed("other", torch.zeros(3)),
    "tensor of another shape": tensors_changed("weight", torch.zeros(1, 64, dtype=torch.float16)),
    "tensor of integers": tensors_changed("weight", torch.zeros(1, 128, dtype=torch.int64)),
    "NaN": tensors_changed("weight", torch.full((1, 128), torch.nan)),
    "infinity": tensors_changed("weight", torch.full((1, 128), torch.inf)),
    "a number for a tensor": tensors_changed("weight", 1.0),
    "a dotted name": tensors_changed("a.b", torch.zeros(1)),
    "parts within parts": with_module("other"),
    "huge resolution": lambda c, network: s.pickled(
        tree(network, EDM2 | {"img_resolution": 10**9}, img_resolution=10**9)
    ),
    "another resolution": lambda c, network: s.pickled(
        tree(network, EDM2 | {"img_resolution": 1 << 20}, img_resolution=1 << 20)
    ),
    "huge width": kwargs_changed(model_channels=10**18),
    "wide, within bounds": kwargs_changed(model_channels=1 << 20),
    "many blocks": kwargs_changed(num_blocks=10**9),
    "many levels": kwargs_changed(channel_mult=[1] * 99),
    "another width": kwargs_changed(model_channels=32),
    "label_dim against its attribute": kwargs_changed(label_dim=4),
    "label_dim against its weights": lambda c, network: s.pickled(
        tree(network, EDM2 | {"label_dim": 4}, label_dim=4)
    ),
    "unknown setting": kwargs_changed(command="x"),
    "setting of a tensor": kwargs_changed(dropout=torch.ones(1)),
    "setting of text": kwargs_changed(model_channels="16"),
    "setting NaN": kwargs_changed(clip_act=float("nan")),
    "attribute against its argument": lambda c, network: s.pickled(tree(network, img_resolution=16)),
    "too many arguments": lambda c, network: s.pickled(
        tree(network, dict(list(EDM2.items())[3:]), args=(8, 4, 3, True, 0.5, 128, 16))
    ),
    "infinite sigma_data": kwargs_changed(sigma_data=float("inf")),
    "arguments twice": lambda c, network: s.pickled(tree(network, args=(8,))),
    "encoder of text": lambda c, network: s.pickled({**tree(network), "encoder": "VAE"}),
    "dataset_kwargs of a tensor": lambda c, network: s.pickled(
        {**tree(network), "dataset_kwargs": {"a": torch.ones(1)}}
    ),
}


UNSUPPORTED = {"unknown class", "unknown setting"}


# Files that one check alone keeps out: what it says, and the file
REASONS = {
    "offset": ("offset 1 in a storage of 8 numbers", s.program(tensor(offset=1))),
    "size": ("in a storage of 8 numbers", s.program(tensor(size=(9,)))),
    "strides": ("in a storage of 8 numbers", s.program(tensor(size=(3, 2), stride=(3, 2)))),
    "number of strides": ("in a storage of 8 numbers", s.program(tensor(size=(2,), stride=(1, 1)))),
    "repeated numbers": ("more numbers than bytes", s.program(tensor(size=(1 << 40,), stride=(0,)))),
    "skipped numbers": (
        "more numbers than bytes",
        s.program(LARGE, b"(", tensor(size=(2,), stride=(9_999,), storage=MEMOIZED) * 100, b"e"),
    ),
    "repeated storage": (
        "more numbers than bytes",
        s.program(LARGE, b"(", tensor(size=(10_000,), storage=MEMOIZED) * 100, b"e"),
    ),
    "repeated header": (
        "more numbers than bytes",
        s.program(
            s.content(b"\x80\x02" + s.text("x" * 100_000) + b"0" + FLOATS[2:]),
            b"q\x000",
            (MEMOIZED + b"0") * 100,
        ),
    ),
    "repeated steps": (
        "too many steps",
        s.program(
            s.content(b"\x80\x02" + b"N0" * 10_000 + FLOATS[2:]),
            b"q\x000",
            (MEMOIZED + b"0") * 60,
            s.content(bytes(1 << 21)),
        ),
    ),
    "repeated array": (
        "more numbers than bytes",
        s.program(s.content(bytes(800)), b"q\x000](", array((100,), None) * 100, b"e"),
    ),
    "another count": (
        "announces 8 numbers",
        s.program(s.named("torch.storage", "_load_from_bytes"), s.content(OTHER_COUNT), b"\x85R"),
    ),
    "complex array": ("not of plain numbers", pickle.dumps(np.zeros(2, dtype=np.complex64), 4)),
    "array of text": ("not of plain numbers", pickle.dumps(np.array(["a"]), 4)),
    "array of nothing known": ("not of plain numbers", pickle.dumps(np.zeros(2, dtype=np.longdouble), 4)),
    "call of a dict": ("calls what is no function", s.program(b"})R")),
    "arguments in a list": (
        "calls what is no function",
        s.program(s.named("collections", "OrderedDict"), b"]R"),
    ),
    "reference": ("refers to an object outside", s.program(b")Q")),
    "reference to text": ("refers to an object outside", s.program(s.text("x"), b"Q")),
}


@pytest.mark.parametrize("name", REASONS)
def test_refusal_for_its_own_reason(name, tmp_path):
    reason, content = REASONS[name]
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match=reason):
        read_pickle(path)


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@contextlib.contextmanager
def at_most(millions):
    """The body takes no more processor time than to add up so many million squares, on this machine and now.

    Thirteen million took a second where the bounds were set.
    """
    start = time.process_time()
    yield
    taken = time.process_time() - start
    if taken > 0.5:  # what is quicker is within every bound
        start = time.process_time()
        sum(i * i for i in range(2_000_000))
        assert taken < millions / 2 * (time.process_time() - start)


def attributes():
    """What a pickle could overwrite."""
    modules = (
        builtins,
        collections,
        torch._utils,
        torch.storage,
        torch.nn.modules.container,
        snapshot,
        np,
        s,
    )
    return [{name: id(value) for name, value in vars(module).items()} for module in modules] + [
        dict(vars(kind))
        for kind in (OrderedDict, torch.nn.ModuleDict, Stub, snapshot._Array, snapshot._Global)
    ]


@pytest.mark.parametrize("name", [*HOSTILE, *MISFITS])
def test_refusal(name, tmp_path, edm2, monkeypatch):
    monkeypatch.chdir(tmp_path)
    canary, path, cache = tmp_path / "canary", tmp_path / "file.pkl", tmp_path / "cache"
    made = (HOSTILE | MISFITS)[name]
    made = made(canary, edm2) if callable(made) else made
    path.write_bytes(made)
    modules, before = set(sys.modules), attributes()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    remedy = "the file may be whole, but" if name in UNSUPPORTED else "fetch it again from NVIDIA"
    with at_most(26), pytest.raises(SnapshotError, match=rf"^file\.pkl .*; {remedy}") as caught:
        load_snapshot(path, cache=cache)
    if name in HOSTILE:
        with pytest.raises(SnapshotError, match=re.escape(str(caught.value))):
            read_pickle(path)
    else:
        read_pickle(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2**20  # KiB, on Linux
    assert len(str(caught.value)) < 600
    assert sorted(tmp_path.iterdir()) == [path]  # no canary, no cache
    assert attributes() == before
    assert not {new.partition(".")[0] for new in set(sys.modules) - modules} & {
        "dnnlib",
        "torch_utils",
        "antigravity",
    }


@pytest.mark.parametrize("count", [0, 3, 4, 6])
def test_positional_arguments_and_hidden_buffers(tmp_path, edm2, count):
    names = ("img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_data", "logvar_channels")
    rest = {name: value for name, value in EDM2.items() if name not in names[:count]}
    made = tree(edm2, rest, args=tuple(edm2.config[name] for name in names[:count]))
    state = made["ema"].meta["state"]
    state["_buffers"]["scratch"] = torch.ones(3)
    state["_non_persistent_buffers_set"].add("scratch")
    loaded = load_snapshot(written(tmp_path / "a.pkl", made), cache=tmp_path)
    assert loaded.config == edm2.config


def test_settings_as_numpy_and_infinity(tmp_path):
    numbers = {"dropout": np.float64(0.13), "label_dim": np.int32(2), "use_fp16": np.bool_(False)}
    limits = {"sigma_min": 0, "sigma_max": np.float64("inf"), "sigma_data": np.float32(0.5)}
    network = make(EDMPrecond, {**EDM, "dropout": 0.13, "label_dim": 2})
    made = s.snapshot(network, {**EDM, **numbers, **limits}, encoder=None, sigma_max=float("inf"))
    made = {**made, "dataset_kwargs": None, "augment_pipe": None}
    for _ in range(2):
        loaded = load_snapshot(written(tmp_path / "a.pkl", made), cache=tmp_path)
        assert loaded.config == network.config and loaded.info["dataset_kwargs"] == {}


def test_sigma_data_is_what_the_object_says(tmp_path, edm2):
    path = written(tmp_path / "a.pkl", tree(edm2, sigma_data=0.25))
    assert load_snapshot(path, cache=tmp_path).sigma_data == 0.25


def test_the_source_of_the_classes_is_carried_and_ignored(tmp_path, edm2, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "a.pkl", tree(edm2))
    assert s.SOURCE.encode() in path.read_bytes()
    load_snapshot(path, cache=tmp_path / "cache")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.pkl", "cache"]


def test_tensors_that_share_or_cut_a_storage_are_loaded(tmp_path, edm2):
    def share(state):
        unet = state["_modules"]["unet"].meta["state"]
        blocks = unet["_modules"]["enc"].__dict__["_modules"]
        wide = torch.arange(9, dtype=torch.float16)
        unet["_parameters"]["out_gain"] = torch.nn.Parameter(wide[3], False)
        for name in ("8x8_block0", "4x4_block0"):
            blocks[name].meta["state"]["_parameters"]["emb_gain"] = unet["_parameters"]["out_gain"]

    path = tmp_path / "a.pkl"
    path.write_bytes(changed(edm2, share))
    for _ in range(2):
        loaded = load_snapshot(path, cache=tmp_path).unet
        for gain in (loaded.out_gain, loaded.enc["8x8_block0"].emb_gain, loaded.enc["4x4_block0"].emb_gain):
            assert gain.item() == 3


def test_tensors_of_any_layout_are_loaded(tmp_path, edm2):
    wide = torch.randn(128, dtype=torch.float32)
    layouts = {
        "spread": torch.stack([wide, wide], 1)[:, 0][None],
        "in the midst": torch.cat([wide, wide, wide])[128:256][None],
        "repeated": wide[:1].expand(1, 128),
        "bfloat16": wide.bfloat16()[None],
        "turned": wide[:, None].T,
    }
    for name, value in layouts.items():
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(tensors_changed("weight", torch.nn.Parameter(value, False))(None, edm2))
        for _ in range(2):
            loaded = load_snapshot(path, cache=tmp_path, dtype=None).logvar_linear.weight
            assert torch.equal(loaded, value) and loaded.dtype == value.dtype


def test_names_of_the_file_are_shown_without_control_characters(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(s.program(s.named("os\x1b[2J", "sys\ntem" * 100)))
    with pytest.raises(SnapshotError, match=r"os\?\[2J\.sys\?tem") as caught:
        read_pickle(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


def test_one_tensor_under_a_thousand_names_is_refused(tmp_path, edm2):
    def share(state):
        unet = state["_modules"]["unet"].meta["state"]["_modules"]
        weight = torch.zeros(1 << 20, dtype=torch.float16)
        unet["emb_noise"].meta["state"]["_parameters"] |= {f"w{i}": weight for i in range(1000)}

    path = tmp_path / "a.pkl"
    path.write_bytes(changed(edm2, share))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SnapshotError, match="more numbers than bytes"):
        load_snapshot(path, cache=tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2**20  # KiB, on Linux


# Statistics of every protocol


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_every_protocol_are_read(tmp_path, protocol):
    rng = np.random.default_rng(0)
    arrays = {
        "C": rng.normal(size=(3, 4)),
        "Fortran": np.asfortranarray(rng.normal(size=(3, 4))),
        "turned": rng.normal(size=(2, 3, 4)).transpose(1, 2, 0),
        "cut": rng.normal(size=(6, 4))[::2],
        "integers": np.arange(300, dtype=np.int16),
        "one": np.array(7.0),
        "none": np.zeros((0, 3)),
        "other order": rng.normal(size=5).astype(">f8"),
    }
    found = read_pickle(written(tmp_path / "a.pkl", {"count": np.int64(50), **arrays}, protocol=protocol))
    assert found.pop("count") == 50 and found.keys() == arrays.keys()
    for name, value in arrays.items():
        assert np.array_equal(found[name], value) and found[name].shape == value.shape, name
        assert found[name].flags.writeable


@pytest.mark.parametrize("protocol", [0, 1])
def test_older_protocols_say_what_to_do(tmp_path, protocol):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"mu": 1}, protocol))
    with pytest.raises(SnapshotError, match=r"not a pickle of protocol 2 to 5 .*protocol=4"):
        read_pickle(path)


FROM_BUFFER = s.named("numpy._core.numeric", "_frombuffer")
ENCODE = s.named("_codecs", "encode")


def from_buffer(shape, order, *axes, content=bytes(48)):
    shape = b"(" + b"".join(map(s.integer, shape)) + b"t"
    axes = [b"(" + b"".join(map(s.integer, numbers)) + b"t" for numbers in axes]
    return s.program(s.call(FROM_BUFFER, s.content(content), F8, shape, s.text(order), *axes))


@pytest.mark.parametrize(
    "made",
    [
        from_buffer((2, 4), "C"),
        from_buffer((1 << 40,), "C"),
        from_buffer((2, 3), "A"),
        from_buffer((2, 3), "K"),
        from_buffer((2, 3), "K", (0,)),
        from_buffer((2, 3), "K", (0, 2)),
        from_buffer((2, 3), "K", (0, 0)),
        s.program(s.call(FROM_BUFFER, s.text("x"), F8, b")", s.text("C"))),
        s.program(s.call(ENCODE, s.text("é"), s.text("utf-8"))),
        s.program(s.call(ENCODE, s.text("x"), s.text("rot13"))),
        s.program(s.call(ENCODE, s.text("☃"), s.text("latin1"))),
        s.program(s.call(ENCODE, b"K\x01", s.text("latin1"))),
        s.program(
            s.text("x" * 1000), b"q\x000](", (ENCODE + b"h\x00" + s.text("latin1") + b"\x86R") * 20, b"e"
        ),
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b"N.",
    ],
)
def test_arrays_and_bytes_that_do_not_fit_are_refused(made, tmp_path):
    (tmp_path / "a.pkl").write_bytes(made)
    with pytest.raises(SnapshotError):
        read_pickle(tmp_path / "a.pkl")


# Keys that collide


@pytest.mark.parametrize("container", ["dict", "set", "storage"])
@pytest.mark.parametrize("step", [2**61 - 1, 2**31, -(2**31)])
def test_large_integers_are_no_keys(tmp_path, container, step):
    count = 20_000 if abs(step) > 2**31 else 2  # which took 7 s
    numbers = [b"\x8a\x0a" + (step * (i + 1)).to_bytes(10, "little", signed=True) for i in range(count)]
    if container == "set":
        made = s.program(b"\x8f(", *numbers, b"\x90")
    else:
        made = b"}(" + b"".join(number + b"N" for number in numbers) + b"u."
        made = b"\x80\x04" + made if container == "dict" else stored(b"\x80\x02" + made)
    (tmp_path / "a.pkl").write_bytes(made)
    with at_most(13), pytest.raises(SnapshotError, match=r"integers as keys are below 2\^31"):
        read_pickle(tmp_path / "a.pkl")


def test_small_integers_are_keys_whatever_their_low_bits(tmp_path):
    numbers = {i << 15: None for i in range(2**16 - 1)} | {-(2**31) + 1: None, True: None}
    with at_most(39):
        assert read_pickle(written(tmp_path / "a.pkl", numbers)) == numbers


# Architectures that are not read here


@pytest.mark.parametrize(
    ("kind", "kwargs", "reason"),
    [
        (EDMPrecond, {"model_type": "DhariwalUNet"}, "model_type = 'DhariwalUNet'"),
        (VPPrecond, {"embedding_type": "fourier"}, "embedding_type = 'fourier'"),
        (EDMPrecond, {"encoder_type": "residual", "resample_filter": [1, 3, 3, 1]}, "encoder_type"),
        (EDMPrecond, {"resample_filter": [1, 3, 3, 1]}, "resample_filter"),
        ("VEPrecond", {}, "'VEPrecond'"),
        ("iDDPMPrecond", {}, "'iDDPMPrecond'"),
        (EDMPrecond, {"window": 7}, "window"),
    ],
)
def test_unsupported_architectures_say_so(tmp_path, kind, kwargs, reason):
    network = make(EDMPrecond if isinstance(kind, str) else kind, EDM)
    made = s.snapshot(network, EDM | kwargs, encoder=None)
    if isinstance(kind, str):
        made["ema"].meta["class_name"] = kind
    with pytest.raises(SnapshotError, match=reason) as caught:
        load_snapshot(written(tmp_path / "a.pkl", dict(made)), cache=tmp_path)
    assert "fetch" not in str(caught.value) and "networks.published" in str(caught.value)


# A later start reads little


@pytest.fixture(name="old_and_large")
def _old_and_large(monkeypatch):
    """Files of a test count as large ones that were written long ago."""
    monkeypatch.setattr(weights, "_LARGE", 0)
    monkeypatch.setattr(weights, "_SETTLED", -1.0)


@pytest.mark.usefixtures("old_and_large")
def test_unchanged_files_are_hashed_once(tmp_path, edm2, monkeypatch):
    path = written(tmp_path / "a.pkl", s.snapshot(edm2, EDM2))
    cache = tmp_path / "new"  # made by the first call, which keeps what it has hashed and what it has written
    first = load_snapshot(path, cache=cache)

    def hashed(path):
        raise AssertionError(f"{path} was hashed again")

    with monkeypatch.context() as patch:
        patch.setattr(weights, "file_sha256", hashed)
        assert torch.equal(denoised(load_snapshot(path, cache=cache)), denoised(first))
    # Another content of the same size, with the old time of change put back, is seen.
    kept, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + b"N")
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    with pytest.raises(SnapshotError):
        load_snapshot(path, cache=cache)
    path.write_bytes(content)
    (conversion,) = (cache / "snapshots").glob("*.safetensors")
    good = conversion.read_bytes()
    conversion.write_bytes(good[:-2] + b"\0\0")
    with pytest.warns(UserWarning, match="made anew"):
        load_snapshot(path, cache=cache)
    assert conversion.read_bytes() == good


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of memory is read from /proc")
def test_a_pickle_is_not_held_twice(tmp_path):
    """96 MB of tensors, copied out of the mapped file: its pages are given back on the way."""
    size, count = 12 << 20, 8
    path = written(tmp_path / "a.pkl", [torch.zeros(size // 4) for _ in range(count)])
    code = (
        "import re, torch\nfrom entropic.images.networks.snapshot import read_pickle\n"
        "def peak():\n"
        "    with open('/proc/self/status') as file:\n"
        "        return 1024 * int(re.search('VmHWM: *(\\d+)', file.read().replace('\\t', ' '))[1])\n"
        f"before = peak()\nfound = read_pickle({str(path)!r})\nprint(peak() - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    # The tensors themselves, one of them once more in the file's pages, and what Python needs for the reader.
    assert int(run.stdout) < size * (count + 2) + (8 << 20)


def test_new_files_are_hashed_again(tmp_path, monkeypatch):
    """A second write within the resolution of a time stamp would not be seen."""
    monkeypatch.setattr(weights, "_LARGE", 0)
    path, record = tmp_path / "a", tmp_path / "checked.json"
    path.write_bytes(b"a")
    weights.remembered_sha256(path, record)
    assert not record.exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"PATH": 1}', '{"PATH": [1, 2]}', "\0", "[" * 100_000])
@pytest.mark.usefixtures("old_and_large")
def test_a_damaged_record_of_checks_costs_time_only(tmp_path, content):
    path, record = tmp_path / "a", tmp_path / "checked.json"
    path.write_bytes(b"a")
    record.write_text(content.replace("PATH", str(path)))
    wanted = hashlib.sha256(b"a").hexdigest()
    assert weights.remembered_sha256(path, record) == wanted
    assert json.loads(record.read_text())[str(path)][-1] == wanted


def test_a_network_is_built_without_torchs_compiler():
    """Its import takes 1.5 s of CPU time; random numbers on the meta device ask for it."""
    code = (
        "import sys, torch\n"
        "from entropic.images.networks.edm import EDMPrecond, VPPrecond\n"
        "from entropic.images.networks.edm2 import Precond\n"
        "with torch.device('meta'):\n"
        f"    Precond(**{EDM2}), EDMPrecond(**{EDM}), VPPrecond(**{EDM})\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr


# Mutations


def test_mutated_snapshots_are_refused_or_read(tmp_path, edm2):
    """A few of the 20,000 mutations that were tried: nothing but SnapshotError comes out, and nothing hangs."""
    whole, rng = s.pickled(tree(edm2)), np.random.default_rng(0)
    statistics = [s.pickled({"fid": {"mu": np.arange(3.0), "sigma": np.eye(3)}}, protocol=p) for p in (2, 5)]
    start, refused = time.process_time(), 0
    for index in range(300):
        good = (whole, *statistics)[index % 3]
        content = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(content)))
            how = rng.integers(3)
            if how == 0:
                content[at] = rng.integers(256)
            elif how == 1:
                del content[at : at + int(rng.integers(1, 9))]
            else:
                content[at:at] = good[: int(rng.integers(1, 9))]
        path = tmp_path / "a.pkl"
        path.write_bytes(content)
        try:
            read_pickle(path)
            if index % 3 == 0:
                load_snapshot(path, cache=tmp_path / "cache")
        except SnapshotError:
            refused += 1
    assert refused > 100
    assert time.process_time() - start < 30
