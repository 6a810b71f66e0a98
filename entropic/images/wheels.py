"""Torchvision beside a torch without CUDA: the wheel of its index lacks declarations that it then asks for."""

import sys

import torch

__all__ = ["mend_torchvision"]

_LIBRARIES = []  # declarations vanish with their library


def mend_torchvision():
    """Make `import torchvision` work, also for others who import it (torch-fidelity, transformers, diffusers).

    The declarations are made only where the import has failed for want of them: elsewhere a second one would abort
    Python. What was imported from it in vain is forgotten. Nothing happens where torchvision is not installed.
    """
    try:
        import torchvision
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] in {"torchvision", "torch_fidelity"} and module is not None:
                del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        _LIBRARIES.append(library)
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
