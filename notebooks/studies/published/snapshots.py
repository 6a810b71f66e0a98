"""Snapshots of the structure that NVIDIA published, written without its code: for rehearsals and for tests."""

import contextlib
import io
import pickle
import struct
import sys
from collections import OrderedDict
from types import ModuleType

import torch
from torch import nn

SOURCE = (
    "import os\nos.system('touch canary')\nopen('canary', 'w').close()\n"  # stands where NVIDIA's code does
)


__all__ = ["EasyDict", "Persistent", "legacy_storage", "module_state", "pickled", "snapshot"]


class Persistent:
    """An object that is pickled as NVIDIA's `torch_utils.persistence` does."""

    def __init__(self, class_name, state, source=SOURCE):
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": source,
            "class_name": class_name,
            "state": state,
        }


class EasyDict(dict):
    """A dict that is pickled as `dnnlib.util.EasyDict`."""


EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"


def _reconstruct_persistent_obj(meta):
    raise AssertionError("the reader called a function of the file")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


@contextlib.contextmanager
def _nvidia():
    """The modules whose names stand in a snapshot, for as long as one is written."""
    made = {
        name: ModuleType(name) for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    }
    made["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    made["dnnlib.util"].EasyDict = EasyDict
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


class _Pickler(pickle.Pickler):
    def __init__(self, file, protocol, torch1):
        super().__init__(file, protocol)
        self.torch1 = torch1

    def reducer_override(self, value):
        if isinstance(value, Persistent):
            return _reconstruct_persistent_obj, (value.meta,)
        if self.torch1 and type(value) is torch.Tensor:
            storage = _Storage(value)
            return torch._utils._rebuild_tensor_v2, (
                *(storage, value.storage_offset(), tuple(value.shape), value.stride()),
                *(False, OrderedDict()),
            )
        if isinstance(value, _Storage):
            return torch.storage._load_from_bytes, (legacy_storage(value.tensor),)
        return NotImplemented


class _Storage:
    def __init__(self, tensor):
        self.tensor = tensor


def legacy_storage(tensor, numel=None, storage_type=None):
    """The bytes of a tensor's storage as torch 1 saved them: five pickles, a count, the numbers."""
    kinds = {
        torch.bfloat16: torch.BFloat16Storage,
        torch.float16: torch.HalfStorage,
        torch.float32: torch.FloatStorage,
        torch.int64: torch.LongStorage,
    }
    numbers = tensor.detach().contiguous().flatten()
    numel = len(numbers) if numel is None else numel

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if value != "storage 0":
                return None
            return ("storage", storage_type or kinds[tensor.dtype], "0", "cpu", numel, None)

    file = io.BytesIO()
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    for value in (0x1950A86A20F9469CFC6C, 1001, system, "storage 0", ["0"]):
        Pickler(file, 2).dump(value)
    return file.getvalue() + struct.pack("<q", numel) + numbers.view(torch.uint8).numpy().tobytes()


def pickled(value, *, protocol=4, torch1=False):
    """Bytes of a pickle; `torch1`: tensors as torch 1.13 wrote them."""
    file = io.BytesIO()
    with _nvidia():
        _Pickler(file, protocol, torch1).dump(value)
    return file.getvalue()


def module_state(module, containers=dict, **attributes):
    """`__dict__` of a module whose submodules are persistent, and its ModuleDicts plain."""
    hooks = ("_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks")
    parts = {}
    for name, part in module.named_children():
        if isinstance(part, nn.ModuleDict):
            parts[name] = nn.ModuleDict()
            parts[name].__dict__.update(module_state(part, containers))
        else:
            parts[name] = Persistent(type(part).__name__.strip("_"), module_state(part, containers))
    parameters = {
        name: value if value is None else nn.Parameter(value.detach(), False)
        for name, value in module._parameters.items()
    }
    return {
        "training": False,
        "_parameters": containers(parameters),
        "_buffers": containers(module._buffers),
        "_non_persistent_buffers_set": set(),
        "_is_full_backward_hook": None,
        **{name: OrderedDict() for name in hooks},
        "_modules": containers(parts),
        **attributes,
    }


def snapshot(network, kwargs, *, containers=dict, encoder="StabilityVAEEncoder", args=(), **attributes):
    """The tree of a snapshot of `network`: `kwargs` and `args` are the recorded arguments."""
    names = ("img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_data")
    own = {name: network.config[name] for name in names if name in network.config}
    own |= {"_init_args": args, "_init_kwargs": EasyDict(kwargs), **attributes}
    tree = {
        "dataset_kwargs": EasyDict(
            class_name="training.dataset.ImageFolderDataset", path="a.zip", use_labels=True
        ),
        "loss_fn": Persistent("EDM2Loss", {"P_mean": -0.4, "_init_args": (), "_init_kwargs": EasyDict()}),
        "ema": Persistent(type(network).__name__, module_state(network, containers, **own)),
    }
    if encoder is not None:
        tree["encoder"] = Persistent(encoder, {"init": None, "_init_args": (), "_init_kwargs": EasyDict()})
    return tree
