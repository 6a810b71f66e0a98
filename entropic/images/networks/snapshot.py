"""NVIDIA's published networks: official EDM and EDM2 pickles, read as data, without running anything in them.

A pickle is a program, and these carry the Python source of their classes besides. Here it is read by a machine of
its own, not by Python's `pickle`: it knows the opcodes that make data, and the few names that stand in such a file
(`_MAKERS`) are tags to it, not functions or classes. So nothing of the file can be imported, called, written to or
overridden; whatever else a file asks for is refused.
"""

import contextlib
import inspect
import io
import math
import mmap
import re
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from entropic.files import cache as cache_folder
from entropic.images.networks.edm import Unsupported
from entropic.images.networks.weights import load_weights, remember_sha256, remembered_sha256, save_weights

__all__ = ["SnapshotError", "Stub", "load_snapshot", "read_pickle"]

_REMEDY = "fetch it again from NVIDIA (https://nvlabs-fi-cdn.nvidia.com/edm/ or /edm2/)"
_NOT_READ = (
    "the file may be whole, but this package reads EDM's networks with a SongUNet of the DDPM++ kind, and EDM2's; "
    "pass one of those that `python -m entropic.images.networks.published` lists"
)
_MAX_STEPS = 500_000  # opcodes; a network has 20,000 to 100,000
_PIECE = 1 << 20  # bytes: after a tensor of so many the pages of the mapped file are given back
_MAX_DEPTH = 100  # objects inside one another; a network has some 20


class SnapshotError(ValueError):
    """A file that is no published network, is damaged, or asks for more than data; the message says which."""


class _UnsupportedError(SnapshotError):
    """A network of an architecture that is not read here: another copy of the file would be refused as well."""


@dataclass
class Stub:
    """What stands for an object of a class that is not loaded: the name of its class, and its attributes."""

    class_name: str
    state: object = None


def load_snapshot(path, *, dtype=torch.float32, device="cpu", cache=None):
    """The network of an official EDM or EDM2 snapshot (*.pkl), or of a conversion of one (*.safetensors).

    In eval mode, without gradients, channels last; `network.config` is its configuration, `network.info` holds
    the `sha256` of the pickle, `dataset_kwargs`, `encoder` (the name of the class that made its latents; None:
    RGB) and `source`, the file's name. EDM2 is published in float16: `dtype` = torch.float32 casts all of it up,
    which moves D by 1e-4 to 4e-4, since its gains are no longer rounded; None keeps the published precision.

    Nothing in the pickle is run. The first call writes a conversion, in the published precision, to
    `cache`/snapshots/<sha256 of the pickle>.safetensors (`cache`: default $ENTROPIC_CACHE or ~/.cache/entropic), or
    warns that it cannot; later calls read that. A conversion that is damaged is made anew, with a warning. The sha256
    of either file is computed again only when the file has changed (`remembered_sha256`, in `cache`/checked.json).
    SnapshotError, a ValueError: the file is damaged, malicious, or another kind of file; then nothing of it is kept.
    FileNotFoundError: it is missing.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype = {dtype!r}; pass a floating torch.dtype, or None for the published one")
    path = Path(path)
    if path.suffix == ".safetensors":
        network, tensors, info = _read_conversion(path, "convert the snapshot again", dtype)
    else:
        folder = Path(cache) if cache is not None else cache_folder()
        record = folder / "checked.json"
        digest = remembered_sha256(path, record)
        conversion = folder / "snapshots" / f"{digest}.safetensors"
        try:
            network, tensors, info = _read_conversion(conversion, "it is made anew", dtype, digest, record)
        except (SnapshotError, OSError) as error:
            if isinstance(error, SnapshotError):
                warnings.warn(f"the conversion of {path.name} in the cache: {error}", stacklevel=2)
            with _mapped(path) as data, _refusals(path, _REMEDY):
                network, tensors, info = _read_snapshot(data)
            kept = {"class": type(network).__name__, "config": network.config, "pickle_sha256": digest}
            try:
                made = save_weights(conversion, tensors, {**kept, **info, "source": path.name})
                remember_sha256(conversion, record, made)
            except OSError as error:
                warnings.warn(
                    f"{path.name} is loaded, but its conversion is not kept ({error}), and each call reads the "
                    "pickle again; pass a `cache`, or set ENTROPIC_CACHE, to a folder that can be written",
                    stacklevel=2,
                )
            tensors = {name: _held(tensors.pop(name), dtype) for name in list(tensors)}  # one at a time twice
        info |= {"sha256": digest, "source": path.name}
    network.load_state_dict(tensors, assign=True)
    network.info = info
    return network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


def read_pickle(path):
    """What a pickle holds, as plain data, without running anything in it: also NVIDIA's reference statistics.

    dict, list, tuple, set, str, int, float, bool, None, numpy arrays, tensors, and a `Stub` for an object of a
    class. SnapshotError: the file is damaged, or asks for anything else. FileNotFoundError: it is missing.
    """
    path = Path(path)
    with _mapped(path) as data, _refusals(path, _REMEDY):
        return _read(data)


def _held(value, dtype):
    """A copy of a tensor as the network holds it: in `dtype` (None: its own), convolutions channels last."""
    if not value.is_floating_point():
        return value.clone()  # refused by `_network`
    form = torch.channels_last if value.ndim == 4 else torch.contiguous_format
    return value.to(dtype or value.dtype, copy=True, memory_format=form)


@contextlib.contextmanager
def _mapped(path):
    """The bytes of a file, mapped: gigabytes of tensors are read in place."""
    with path.open("rb") as file:
        if file.seek(0, io.SEEK_END) == 0:
            raise SnapshotError(f"{path.name} is empty; {_REMEDY}")
        # Not closed here: views of it may live as long as an error's traceback.
        yield mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@contextlib.contextmanager
def _refusals(path, remedy):
    """Whatever goes wrong with untrusted content, in our checks or beneath them, is a SnapshotError."""
    try:
        yield
    except SnapshotError as error:
        if remedy is _REMEDY and isinstance(error, _UnsupportedError):
            remedy = _NOT_READ
        raise SnapshotError(f"{path.name} {_printable(error)}; {remedy}") from None
    except Exception as error:
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise SnapshotError(f"{path.name} is damaged ({_printable(said)}); {remedy}") from error


def _printable(said):
    """Text that may hold names out of the file, fit for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(said)[:400])


# From bytes to a tree of plain data


def _read(data):
    if not data[:1] == b"\x80":
        page = data[:4096].lstrip()[:1] == b"<"
        if page:
            raise SnapshotError("is a web page, not a pickle")
        raise SnapshotError(
            "is not a pickle of protocol 2 to 5 (one of your own: write it with pickle.dump(..., protocol=4))"
        )
    machine = _Machine(data, _MAKERS, _MAX_STEPS)
    value = machine.run()
    if machine.at != len(data):
        raise SnapshotError(f"goes on for {len(data) - machine.at} bytes after its end")
    return _plain(value, {}, 0)


def _plain(value, done, depth):
    """`value` without what only the machine knows. `done` keeps shared parts shared, and finds cycles."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str, torch.Tensor):
        return value
    if kind is _Array and value.array is not None:
        return value.array
    if kind not in (dict, list, tuple, set, Stub):
        raise SnapshotError(f"holds {_KINDS.get(kind, 'an unfinished object')} where data should stand")
    if id(value) in done:
        if done[id(value)] is None:
            raise SnapshotError("holds an object that contains itself")
        return done[id(value)]
    if depth > _MAX_DEPTH:
        raise SnapshotError(f"holds objects nested more than {_MAX_DEPTH} deep")
    done[id(value)] = None
    if kind is dict:
        made = {key: _plain(part, done, depth + 1) for key, part in value.items()}
    elif kind is Stub:
        made = Stub(value.class_name, _plain(value.state, done, depth + 1))
    else:
        made = kind(_plain(part, done, depth + 1) for part in value)
    done[id(value)] = made
    return made


@dataclass(eq=False)
class _Global:
    """A name on the list, as the machine holds it: a tag."""

    module: str
    name: str


@dataclass(eq=False)
class _Storage:
    content: memoryview
    dtype: torch.dtype


@dataclass(eq=False)
class _Dtype:
    code: str
    order: str | None = None

    def __call__(self, view):
        """The numbers in `view`, copied. Booleans come from bytes of any value."""
        found = np.dtype("u1" if self.code == "b1" else self.code).newbyteorder(self.order)
        return np.frombuffer(view, found).astype(self.code)


@dataclass(eq=False)
class _Array:
    array: np.ndarray | None = None


_KINDS = {memoryview: "bytes", _Global: "a class or function", _Storage: "a storage", _Dtype: "a dtype"}
_NUMBERS = re.compile("b1|f[248]|[iu][1248]")
_MAGIC = 0x1950A86A20F9469CFC6C  # of torch.save
_STORAGES = {
    ("torch", f"{name}Storage"): dtype
    for name, dtype in {
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Float": torch.float32,
        "Double": torch.float64,
        "Byte": torch.uint8,
        "Char": torch.int8,
        "Short": torch.int16,
        "Int": torch.int32,
        "Long": torch.int64,
    }.items()
}


class _Machine:
    """Runs the data opcodes of a pickle; `run` returns what it holds. `names`: the (module, name) it may use."""

    def __init__(self, data, names, steps):
        self.data, self.at = memoryview(data), 0
        self.names, self.steps = names, steps
        # bytes that may still be read as tensors and arrays, and be made of text: as many as the file has
        self.left = self.spelt = len(data)

    def run(self):
        self.stack, self.below, self.memo = [], [], {}
        first = self.at
        while self.steps:
            self.steps -= 1
            start = self.at
            code = self.take(1)[0]
            if code == 0x2E:  # STOP
                return self.stop()
            if code not in _OPCODES or (code == 0x80) != (start == first):
                raise SnapshotError(f"asks for more than data (opcode {code:#04x} at byte {start})")
            _OPCODES[code](self)
        raise SnapshotError("takes too many steps to read")

    def stop(self):
        (value,) = self.stack
        if self.below:
            raise SnapshotError("ends inside an object")
        return value

    def take(self, count):
        end = self.at + count
        if end > len(self.data):
            raise SnapshotError(f"is truncated: {len(self.data)} bytes, and at least {end} are announced")
        piece, self.at = self.data[self.at : end], end
        return piece

    def number(self, count, signed=False):
        return int.from_bytes(self.take(count), "little", signed=signed)

    def push(self, value):
        self.stack.append(value)

    def charge(self, size):
        self.left -= size
        if self.left < 0:
            raise SnapshotError("holds more numbers than bytes: it uses some twice")

    # Scalars, strings and bytes

    def protocol(self):
        if not 2 <= (found := self.number(1)) <= 5:
            raise SnapshotError(f"is a pickle of protocol {found}, not 2 to 5")

    def frame(self):
        count = self.number(8)
        self.take(count)
        self.at -= count

    def long(self):
        if (count := self.number(1)) > 10:
            raise SnapshotError(f"holds an integer of {count} bytes")
        self.push(self.number(count, signed=True))

    def text(self, width):
        self.push(str(self.take(self.number(width)), "utf-8"))

    def line(self):
        for end in range(self.at, min(self.at + 200, len(self.data))):
            if self.data[end] == 10:
                text = str(self.take(end - self.at), "ascii")
                self.at += 1
                return text
        raise SnapshotError("holds a name without an end")

    # Containers

    def marked(self):
        values, self.stack = self.stack, self.below.pop()
        return values

    def mark(self):
        self.below.append(self.stack)
        self.stack = []

    def tuple(self, count):
        values = [self.stack.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def extend(self, values):
        self.top(list).extend(values)

    def update(self, values):
        target = self.top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_key(key)] = value

    def add(self, values):
        self.top(set).update(map(_key, values))

    def top(self, kind):
        if type(self.stack[-1]) is not kind:
            raise SnapshotError(f"changes what is not a {kind.__name__}")
        return self.stack[-1]

    # Names, and what is made with them

    def name(self, module, name):
        if not type(module) is type(name) is str:
            raise SnapshotError("asks for something by a name that is no text")
        if (module, name) not in self.names:
            raise SnapshotError(f"asks for {module[:60]}.{name[:60]}, which no published network needs")
        self.push(_Global(module, name))

    def reference(self):
        """A storage's description of itself stays the tuple it is; elsewhere nothing is referred to."""
        if self.names is not _STORAGES:
            raise SnapshotError("refers to an object outside")
        self.top(tuple)

    def reduce(self):
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Global or type(arguments) is not tuple:
            raise SnapshotError("calls what is no function")
        self.push(_MAKERS[function.module, function.name](self, *arguments))

    def build(self):
        state, target = self.stack.pop(), self.stack[-1]
        match target:
            case dict() if state is None or state == {}:
                pass
            case Stub(class_name="ModuleDict", state=None) if type(state) is dict:
                target.state = state
            case _Dtype(order=None) if type(state) is tuple:
                _, order, *rest = state
                if (
                    type(order) is not str
                    or order not in tuple("<>|=")
                    or rest != [None, None, None, -1, -1, 0]
                ):
                    raise SnapshotError("holds an array that is not of plain numbers")
                target.order = order
            case _Array(array=None) if type(state) is tuple:
                _, shape, dtype, fortran, content = state
                target.array = self.numbers(dtype, content, shape).reshape(
                    shape, order="F" if fortran else "C"
                )
            case _:
                raise SnapshotError("changes an object that is not its own")

    def numbers(self, dtype, content, shape=()):
        if type(dtype) is not _Dtype or dtype.order is None or type(content) is not memoryview:
            raise SnapshotError("holds an array that is not of plain numbers")
        if math.prod(_lengths(shape)) * int(dtype.code[1:]) != len(content):
            raise SnapshotError(f"holds an array of shape {shape} in {len(content)} bytes")
        self.charge(len(content))
        return dtype(content)

    def scalar(self, dtype, content):
        return self.numbers(dtype, content).item()

    def dtype(self, code, *flags):
        if type(code) is not str or not _NUMBERS.fullmatch(code):
            raise SnapshotError("holds an array that is not of plain numbers")
        return _Dtype(code)

    def storage(self, content):
        """Numbers as torch.save(…, _use_new_zipfile_serialization=False) lays them out: behind five small pickles."""
        if type(content) is not memoryview:
            raise SnapshotError("holds a tensor without bytes")
        # Not by torch.load(weights_only=True): it runs nothing, but 400 bytes can keep it busy for ever.
        inner = _Machine(content, _STORAGES, self.steps)
        magic, version, system, reference, keys = (inner.run() for _ in range(5))
        self.steps = inner.steps
        self.charge(inner.at)
        tag, kind, key, _, numel, view = reference
        if not (magic == _MAGIC and version == 1001 and tag == "storage" and view is None and keys == [key]):
            raise SnapshotError("holds a tensor whose bytes are no storage")
        if type(kind) is not _Global or type(numel) is not int or system["little_endian"] is not True:
            raise SnapshotError("holds a tensor whose bytes are no storage")
        dtype = _STORAGES[kind.module, kind.name]
        if numel != inner.number(8) or inner.at + numel * dtype.itemsize != len(content):
            raise SnapshotError(f"holds a tensor of {len(content)} bytes that announces {numel} numbers")
        return _Storage(content[inner.at :], dtype)

    def tensor(self, storage, offset, size, stride, requires_grad, hooks, metadata=None):
        if type(storage) is not _Storage or type(hooks) is not dict or hooks or metadata:
            raise SnapshotError("holds a tensor with hooks or without a storage")
        _lengths((offset, *_lengths(size), *_lengths(stride)))
        numel, held = math.prod(size), len(storage.content) // storage.dtype.itemsize
        reach = (
            1 + sum((length - 1) * skip for length, skip in zip(size, stride, strict=False)) if numel else 0
        )
        if len(size) != len(stride) or offset + reach > held:
            raise SnapshotError(
                f"holds a tensor of size {size}, stride {stride}, offset {offset} in a storage of {held} numbers"
            )
        self.charge(max(numel, reach) * storage.dtype.itemsize)
        if not numel:
            return torch.empty(size, dtype=storage.dtype)
        start, end = (n * storage.dtype.itemsize for n in (offset, offset + reach))
        numbers = torch.frombuffer(bytearray(storage.content[start:end]), dtype=storage.dtype)
        if (
            end - start >= _PIECE
            and isinstance(storage.content.obj, mmap.mmap)
            and hasattr(mmap, "MADV_DONTNEED")
        ):
            storage.content.obj.madvise(mmap.MADV_DONTNEED)  # what was copied need not stay in memory twice
        return numbers.as_strided(size, stride)

    def array(self, content, dtype, shape, order, axes=None):
        """An array of protocol 5. `axes`, where order is "K": the order of the axes, of lengths `shape` in memory."""
        numbers = self.numbers(dtype, content, shape)
        if order in ("C", "F") and axes is None:
            return _Array(numbers.reshape(shape, order=order))
        if order != "K" or sorted(_lengths(axes)) != list(range(len(shape))):
            raise SnapshotError("holds an array whose axes are in no order")
        return _Array(numbers.reshape(shape).transpose(axes))

    def encode(self, value, encoding):
        """Bytes of protocol 2, which writes them as text."""
        if type(value) is not str or encoding not in ("latin1", "latin-1"):
            raise SnapshotError("holds text where bytes should stand")
        self.spelt -= len(value)
        if self.spelt < 0:
            raise SnapshotError("holds more numbers than bytes: it uses some twice")
        return memoryview(value.encode("latin-1"))

    def parameter(self, tensor, requires_grad, hooks):
        if type(tensor) is not torch.Tensor or type(hooks) is not dict or hooks:
            raise SnapshotError("holds a parameter with hooks or without a tensor")
        return tensor

    def persistent(self, meta):
        """An object with the source of its class, `module_src`, which is left where it is."""
        if type(meta) is not dict or meta.get("type") != "class" or type(meta.get("class_name")) is not str:
            raise SnapshotError("holds a persistent object that is not of a class")
        return Stub(meta["class_name"], meta.get("state"))


def _key(key):
    # Short integers only: Python hashes long ones, and nested tuples, in no bounded time.
    if type(key) not in (str, int, bool):
        raise SnapshotError("holds a key that is neither a string nor an integer")
    # Integers that differ by multiples of 2^61 - 1 have the same hash: a dict of n such keys takes n^2 steps.
    if type(key) is int and abs(key) >= 1 << 31:
        raise SnapshotError(f"holds the key {str(key)[:40]}; integers as keys are below 2^31 here")
    return key


def _lengths(values):
    if type(values) is not tuple or len(values) > 20:
        raise SnapshotError("holds a shape that is no tuple of sizes")
    for value in values:
        if type(value) is not int or value < 0:
            raise SnapshotError("holds a size or offset that is not a whole number of at least 0")
    return values


_MAKERS = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Machine.persistent,
    ("dnnlib.util", "EasyDict"): lambda machine: {},
    ("collections", "OrderedDict"): lambda machine: {},
    ("torch.nn.modules.container", "ModuleDict"): lambda machine: Stub("ModuleDict"),
    ("torch._utils", "_rebuild_parameter"): _Machine.parameter,
    ("torch._utils", "_rebuild_tensor_v2"): _Machine.tensor,
    ("torch.storage", "_load_from_bytes"): _Machine.storage,
    ("_codecs", "encode"): _Machine.encode,
    ("__builtin__", "bytes"): lambda machine: memoryview(b""),  # as protocol 2 writes no bytes
    ("numpy", "dtype"): _Machine.dtype,
    ("numpy", "ndarray"): lambda machine: _Array(),
    **{
        (f"numpy.{core}.multiarray", name): maker
        for core in ("core", "_core")  # numpy 1 and 2
        for name, maker in (("_reconstruct", lambda machine, *_: _Array()), ("scalar", _Machine.scalar))
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Machine.array for core in ("core", "_core")},
}
_OPCODES = {
    b"\x80": _Machine.protocol,
    b"\x95": _Machine.frame,
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number(4, signed=True)),
    b"K": lambda m: m.push(m.number(1)),
    b"M": lambda m: m.push(m.number(2)),
    b"\x8a": _Machine.long,
    b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    b"\x8c": lambda m: m.text(1),
    b"X": lambda m: m.text(4),
    b"\x8d": lambda m: m.text(8),
    b"C": lambda m: m.push(m.take(m.number(1))),
    b"B": lambda m: m.push(m.take(m.number(4))),
    b"\x8e": lambda m: m.push(m.take(m.number(8))),
    b"\x96": lambda m: m.push(m.take(m.number(8))),
    b"(": _Machine.mark,
    b"0": lambda m: m.stack.pop(),
    b"]": lambda m: m.push([]),
    b"}": lambda m: m.push({}),
    b"\x8f": lambda m: m.push(set()),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.marked())),
    b"\x85": lambda m: m.tuple(1),
    b"\x86": lambda m: m.tuple(2),
    b"\x87": lambda m: m.tuple(3),
    b"a": lambda m: m.extend([m.stack.pop()]),
    b"e": lambda m: m.extend(m.marked()),
    b"s": lambda m: m.update([m.stack.pop(), m.stack.pop()][::-1]),
    b"u": lambda m: m.update(m.marked()),
    b"\x90": lambda m: m.add(m.marked()),
    b"h": lambda m: m.push(m.memo[m.number(1)]),
    b"j": lambda m: m.push(m.memo[m.number(4)]),
    b"q": lambda m: m.memo.__setitem__(m.number(1), m.stack[-1]),
    b"r": lambda m: m.memo.__setitem__(m.number(4), m.stack[-1]),
    b"\x94": lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    b"c": lambda m: m.name(m.line(), m.line()),
    b"\x93": lambda m: m.name(*[m.stack.pop(), m.stack.pop()][::-1]),
    b"R": _Machine.reduce,
    b"Q": _Machine.reference,
    b"\x81": _Machine.reduce,
    b"b": _Machine.build,
}
_OPCODES = {code[0]: step for code, step in _OPCODES.items()}


# From the tree to a network


def _read_snapshot(data):
    """(network on the meta device, its tensors as published, what is kept about it)."""
    tree = _read(data)
    if type(tree) is not dict or type(tree.get("ema")) is not Stub:
        raise SnapshotError("is a pickle, but not of a network: it is no dict with an object 'ema'")
    ema, encoder, about = tree["ema"], tree.get("encoder"), tree.get("dataset_kwargs")
    if type(encoder) not in (Stub, type(None)):
        raise SnapshotError("holds an 'encoder' that is no object of a class")
    name = _setting("encoder", encoder and encoder.class_name)
    info = {
        "dataset_kwargs": {} if about is None else _settings("dataset_kwargs", about),
        "encoder": None if name == "StandardRGBEncoder" else name,
    }
    config = _config(ema)
    return *_network(ema.class_name, config, _tensors(ema, len(data))), info


def _read_conversion(path, remedy, dtype, digest=None, record=None):
    """As `_read_snapshot`, of a conversion, tensors in `dtype`; with `digest`, of that pickle and no other."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    with _refusals(path, remedy):
        tensors, info = load_weights(path, lambda value: _held(value, dtype), record=record)
        if digest not in (None, info["pickle_sha256"]):
            raise SnapshotError("is the conversion of another snapshot")
        kept = {key: info[key] for key in ("dataset_kwargs", "encoder", "source")}
        config = _settings("config", info["config"])
        return *_network(info["class"], config, tensors), {"sha256": info["pickle_sha256"], **kept}


def _classes():
    from entropic.images.networks import edm, edm2

    return {"Precond": edm2.Precond, "EDMPrecond": edm.EDMPrecond, "VPPrecond": edm.VPPrecond}


def _class(name):
    if name not in _classes():
        raise _UnsupportedError(f"holds a {name[:60]!r}; the networks read here are {', '.join(_classes())}")
    return _classes()[name]


def _network(class_name, config, tensors):
    """The network on the meta device, where it takes no memory, and tensors that are exactly its own."""
    kind = _class(class_name)
    for name, value in config.items():
        numbers = [x for x in (value if type(value) is list else [value]) if type(x) is int]
        if any(abs(x) > (32 if name == "num_blocks" else 1 << 20) for x in numbers) or len(numbers) > 8:
            raise SnapshotError(f"has a configuration of absurd size: {name} = {str(value)[:40]}")
    try:
        with torch.device("meta"):
            network = kind(**config)
    except Unsupported as error:
        raise _UnsupportedError(f"has an architecture that is not supported: {error}") from error
    except TypeError as error:  # a setting that the class does not know
        raise _UnsupportedError(f"has a configuration that is not {class_name}'s: {error}") from error
    except (ValueError, RuntimeError) as error:
        raise SnapshotError(f"has a configuration that does not fit {class_name}: {error}") from error
    wanted = network.state_dict()
    missing, others = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or others:
        raise SnapshotError(
            f"does not hold the tensors of its configuration: {len(missing)} missing {missing[:3]}, "
            f"{len(others)} unknown {others[:3]}"
        )
    for name, value in tensors.items():
        if value.shape != wanted[name].shape or not value.is_floating_point():
            raise SnapshotError(
                f"holds {name} as {value.dtype} {tuple(value.shape)}; its configuration makes it "
                f"{tuple(wanted[name].shape)}, floating"
            )
        # NaN and infinity show in the smallest and the largest entry; this is 20 times faster than torch.isfinite.
        if value.numel() and not all(map(math.isfinite, map(float, torch.aminmax(value)))):
            raise SnapshotError(f"holds NaN or infinity in {name}")
    return network, tensors


def _config(ema):
    """Arguments of the constructor: the recorded ones, and what the object says of itself."""
    kind, state = _class(ema.class_name), ema.state
    if type(state) is not dict:
        raise SnapshotError("holds a network without attributes")
    names = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is not p.VAR_KEYWORD]
    placed, given = state.get("_init_args", ()), state.get("_init_kwargs")
    if type(placed) not in (tuple, list) or type(given) is not dict or len(placed) > len(names):
        raise SnapshotError(f"has no _init_kwargs, or _init_args other than {', '.join(names)}")
    placed = dict(zip(names, placed, strict=False))
    if twice := given.keys() & placed.keys():
        raise SnapshotError(f"has {sorted(twice)} both as positional and as keyword arguments")
    said = {name: state[name] for name in names if name in state}
    config, said = (_settings("_init_kwargs", _without_infinity(found)) for found in (placed | given, said))
    for name in ("img_resolution", "img_channels", "label_dim"):
        if name in said and config.get(name, said[name]) != said[name]:
            raise SnapshotError(f"disagrees with itself: {name} = {config[name]} and {said[name]}")
    return config | said


def _without_infinity(settings):
    """Without the default of sigma_max, which JSON has not."""
    return {name: value for name, value in settings.items() if name != "sigma_max" or value != math.inf}


def _settings(name, values):
    if type(values) is not dict or len(values) > 100:
        raise SnapshotError(f"has no {name} that is a dict of settings")
    return {_setting(name, key): _setting(str(key), value) for key, value in values.items()}


def _setting(name, value):
    """A number, a short string, None, or a short list of such: what a configuration is made of."""
    if type(value) in (list, tuple) and len(value) <= 100:
        return [_scalar(name, part) for part in value]
    return _scalar(name, value)


def _scalar(name, value):
    if (type(value) is float and not math.isfinite(value)) or (type(value) is str and len(value) > 1000):
        raise SnapshotError(f"has a setting {name[:60]} that is no finite number or short string")
    if value is not None and type(value) not in (bool, int, float, str):
        raise SnapshotError(
            f"has a setting {name[:60]} that is a {type(value).__name__}, no number or string"
        )
    return value


def _tensors(ema, size):
    """Parameters and buffers of a module and those in it, by name; `size`: the bytes that all may take."""
    found, seen = {}, set()

    def collect(module, prefix):
        state = module.state if type(module) is Stub else None
        if type(state) is not dict or id(module) in seen:
            raise SnapshotError(f"holds a module {prefix[:60]!r} without attributes, or in two places")
        seen.add(id(module))
        hidden = state.get("_non_persistent_buffers_set", ())
        for kind in ("_parameters", "_buffers", "_modules"):
            parts = state.get(kind)
            if type(parts) is not dict:
                raise SnapshotError(f"holds a module {prefix[:60]!r} without {kind}")
            for name, value in parts.items():
                if type(name) is not str or not 0 < len(name) <= 100 or "." in name:
                    raise SnapshotError(f"holds a module or tensor without a proper name in {prefix[:60]!r}")
                if value is None or (kind == "_buffers" and name in hidden):
                    continue
                if kind == "_modules":
                    collect(value, f"{prefix}{name}.")
                elif type(value) is torch.Tensor and prefix + name not in found:
                    found[prefix + name] = value
                else:
                    raise SnapshotError(f"holds {(prefix + name)[:100]!r}, which is no tensor or comes twice")

    collect(ema, "")
    if sum(value.nbytes for value in found.values()) > size:
        raise SnapshotError("holds more numbers than bytes: it uses some twice")
    for name, value in found.items():  # safetensors keeps no tensor under two names
        if id(value) in seen:
            found[name] = value.clone()
        seen.add(id(value))
    return found
