"""By what a computation recognises its own results: a sha256 of weights, arrays, settings and code, never of a name."""

import copyreg
import dis
import functools
import hashlib
import sys
import types
from pathlib import Path

import numpy as np
import torch

__all__ = ["content_sha256"]

_LRU = type(functools.lru_cache(abs))
_PLAIN = (type(None), type(...), type(NotImplemented), bool, int, float, complex, str, bytes, bytearray)


def content_sha256(value, name="value"):
    """The sha256 (64 hexadecimal digits) of everything that decides what `value` computes.

    A tensor or array is described by its type, shape and every byte, on whatever device it lies. A module, or any other
    object, is described by its class and all its attributes: parameters, buffers (also those that are not persistent),
    submodules, hooks, numbers, texts. A function is described by its code, defaults, closure and the global variables
    that it reads, a partial by its function and arguments, a method by its function and its object. Functions and
    classes of an installed package, and of this one, are described by their full name, so that a new version of the
    package does not change the digest.

    The order of keywords, attributes and members of a set does not matter; that of a dict does. Equal contents have
    equal digests in every process of one Python version. What a function imports, reads from a file or draws while it
    runs is not seen. An object that changes while it computes, say one that counts its calls, gets another digest.

    ValueError: the value holds something whose content cannot be read, such as a lock, an open file, a generator or a
    compiled script. The message calls the value `name` and says where in it that is.
    """
    try:
        return _Walk().digest(value, (name,)).hex()
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply for its content to be told") from error


class _Walk:
    """One walk through a value. Every part has a digest, made of its kind and of the digests of its own parts."""

    def __init__(self):
        self.done = {}  # id -> (value, digest); while the value is held, no other object gets its id
        self.open = {}  # id -> depth, of what is being described now: a part that contains itself finds itself here

    def digest(self, value, where):
        if isinstance(value, _PLAIN) and type(value) in _PLAIN:
            return _sha256(type(value).__name__, _plain(value))
        if id(value) in self.open:
            return _sha256("itself", str(self.open[id(value)]).encode())
        if id(value) not in self.done:
            self.open[id(value)] = len(self.open)
            try:
                found = self.describe(value, where)
            finally:
                del self.open[id(value)]
            self.done[id(value)] = value, found
        return self.done[id(value)][1]

    def describe(self, value, where):
        if isinstance(value, (types.FunctionType, torch.nn.Module)):
            value = _before_compilation(value)
        if isinstance(value, torch.Tensor):
            return _tensor(value, where)
        if isinstance(value, (np.ndarray, np.generic)):
            return self.array(np.asarray(value), where)
        if isinstance(value, types.ModuleType):
            return _sha256("module", value.__name__.encode())
        if isinstance(value, type):
            return self.type(value, where)
        if isinstance(value, types.FunctionType):
            return self.function(value, where)
        if isinstance(value, types.CodeType):
            return self.code(value, where)
        if isinstance(value, types.CellType):
            return self.digest(value.cell_contents, where)
        if isinstance(value, types.MethodType):
            return self.all("method", [value.__func__, value.__self__], where)
        if isinstance(value, functools.partial):
            return self.all("partial", [value.func, value.args, sorted(value.keywords.items())], where)
        if isinstance(value, property):
            return self.all("property", [value.fget, value.fset], where)
        if isinstance(value, (staticmethod, classmethod, _LRU)):
            return self.all(type(value).__name__, [value.__wrapped__], where)
        if isinstance(value, functools.cached_property):
            return self.all("cached_property", [value.func], where)
        if type(value) in (list, tuple, torch.Size):
            return self.all("sequence", value, where)
        if type(value) in (dict, types.MappingProxyType):
            return self.all("dict", [part for item in value.items() for part in item], where, value)
        if type(value) in (set, frozenset):
            return _sha256("set", *sorted(self.digest(part, (*where, "a member")) for part in value))
        return self.object(value, where)

    def all(self, kind, parts, where, keyed=None):
        """The digest of parts in their order; those of a dict are its keys and values in turn."""
        steps = range(len(parts)) if keyed is None else [key for key in keyed for _ in range(2)]
        return _sha256(
            kind,
            *(self.digest(part, (*where, f"[{step!r}]")) for part, step in zip(parts, steps, strict=True)),
        )

    def attributes(self, owner, where):
        """The digest of a dict of attributes, in which the order does not count."""
        found = [
            _plain(name) + self.digest(value, (*where, f".{name}")) for name, value in sorted(owner.items())
        ]
        return _sha256("attributes", *found)

    def array(self, array, where):
        if array.dtype.hasobject:
            return self.all("objects", [array.shape, array.ravel().tolist()], where)
        array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        about = f"{np.lib.format.dtype_to_descr(array.dtype)} {array.shape}"
        return _sha256("array", about.encode(), array.tobytes())

    def type(self, value, where):
        if _installed(value.__module__):
            return _sha256("type", f"{value.__module__}.{value.__qualname__}".encode())
        own = {
            name: part
            for name, part in vars(value).items()
            if not isinstance(part, (types.MemberDescriptorType, types.GetSetDescriptorType))
            and (not _dunder(name) or isinstance(part, (types.FunctionType, staticmethod, classmethod)))
            and name not in ("_abc_impl", "__annotate__", "__annotate_func__")
        }
        where = (*where, f"class {value.__qualname__}")
        return _sha256("class", self.all("bases", value.__bases__, where), self.attributes(own, where))

    def function(self, value, where):
        full = f"{value.__module__}.{value.__qualname__}"
        if _installed(value.__module__) and "<" not in value.__qualname__:
            return _sha256("function", full.encode())
        where = (*where, f"{value.__qualname__}()")
        closure = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
        parts = {
            "code": value.__code__,
            "defaults": value.__defaults__,
            "keywords": sorted((value.__kwdefaults__ or {}).items()),
            # An empty cell is a variable that has no value yet.
            "closure": {name: cell for name, cell in closure.items() if _filled(cell)},
            "globals": {} if _installed(value.__module__) else _globals(value),
            "attributes": {k: v for k, v in vars(value).items() if k != "__wrapped__"},
        }
        return self.attributes(parts, where)

    def code(self, value, where):
        names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        counts = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags)
        table = getattr(value, "co_exceptiontable", b"")
        return self.all("code", [value.co_code, table, names, counts, value.co_consts], where)

    def object(self, value, where):
        """Any other object, by what pickle would keep of it."""
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            kept = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except RecursionError:
            raise
        except Exception as error:
            raise ValueError(
                f"{' '.join(where)} is a {type(value).__module__}.{type(value).__qualname__}, whose content cannot be "
                f"told ({error}); name it yourself where a name can be passed, or leave it out"
            ) from error
        if isinstance(kept, str):
            return _sha256("global", f"{getattr(value, '__module__', None)}.{kept}".encode())
        make, arguments, state, items, pairs = (*kept, None, None, None)[:5]
        slots = None
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            state, slots = state
        if isinstance(state, dict):
            state = {str(k): v for k, v in state.items() if not _follows(type(value), str(k))}
        parts = [make, arguments, list(items or ()), dict(pairs or ())]
        described = [
            self.attributes(part, where) if isinstance(part, dict) else self.digest(part, where)
            for part in (state, slots)
        ]
        return _sha256("object", self.digest(type(value), where), self.all("made", parts, where), *described)


def _tensor(value, where):
    if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
        raise ValueError(
            f"{' '.join(where)} is a tensor of layout {value.layout} on {value.device}, whose content cannot be told; "
            "pass a dense tensor that holds values"
        )
    flat = value.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return _sha256("tensor", f"{value.dtype} {tuple(value.shape)}".encode(), flat.view(torch.uint8).numpy())


def _sha256(kind, *parts):
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        part = memoryview(part).cast("B") if len(part) else b""
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def _plain(value):
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    return (value if isinstance(value, str) else repr(value)).encode("utf-8", "surrogatepass")


def _before_compilation(value):
    """What `torch.compile` was given, where `value` is what it returned."""
    wrapped = "_orig_mod" if isinstance(value, torch.nn.Module) else "_torchdynamo_orig_callable"
    return getattr(value, wrapped, value)


def _follows(owner, name):
    """Whether an attribute follows from the others: a `cached_property` once it was read, or torch.compile's mark."""
    return name == "_is_torch_compile" or isinstance(getattr(owner, name, None), functools.cached_property)


def _dunder(name):
    return name.startswith("__") and name.endswith("__")


def _filled(cell):
    try:
        return cell.cell_contents is cell.cell_contents
    except ValueError:
        return False


def _globals(function):
    """The global variables that a function reads, by name, and what it reads of modules that are not installed."""
    found, codes = {}, [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in function.__globals__:
                value = function.__globals__[step.argval]
                found[step.argval] = value
                if isinstance(value, types.ModuleType) and not _installed(value.__name__):
                    inside = vars(value)
                    found |= {f"{step.argval}.{n}": inside[n] for n in code.co_names if n in inside}
    return found


@functools.cache
def _installed(module):
    """Whether a module belongs to Python, to an installed package or to this one."""
    top = (module or "builtins").partition(".")[0]
    if top in sys.stdlib_module_names or top == __name__.partition(".")[0]:
        return True
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
