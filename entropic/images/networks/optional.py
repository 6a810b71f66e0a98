"""Packages that are imported only where they are used, and that need a hand."""

import functools
import sys

import torch

__all__ = ["load_torchvision"]

_LIBRARIES = []


@functools.cache
def load_torchvision():
    """The package torchvision.

    Its wheel, beside a torch without CUDA, lacks declarations. They are made only where the import has failed for want
    of them: elsewhere a second one would abort Python. ModuleNotFoundError: it is not installed.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        _LIBRARIES.append(library)  # declarations vanish with their library
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision
