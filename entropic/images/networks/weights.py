"""Weights on disk: safetensors with a JSON file beside it that holds their sha256 and all else about them."""

import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch

from entropic.files import write_atomically


def save_weights(path, tensors, info):
    """Write `tensors` (name -> tensor) to PATH.safetensors and `info` with their sha256 to PATH.json.

    Each file is written under a temporary name and moved. Returns the sha256. ValueError: another suffix.
    """
    path = _safetensors(path)
    content = safetensors.torch.save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    )
    digest = hashlib.sha256(content).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    text = json.dumps({**info, "sha256": digest}, indent=1) + "\n"
    write_atomically(path.with_suffix(".json"), text.encode())
    return digest


def load_weights(path):
    """(tensors, info) as `save_weights` wrote them.

    ValueError: a file whose sha256 is not the one in the JSON beside it, with both. FileNotFoundError: either
    is missing.
    """
    path = _safetensors(path)
    for file in (path, path.with_suffix(".json")):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing; weights are two files, {path.name} and {path.stem}.json"
            )
    info = json.loads(path.with_suffix(".json").read_text())
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != info["sha256"]:
        raise ValueError(
            f"{path} is truncated or altered: expected sha256 {info['sha256']}, found {found}; fetch or train it again"
        )
    return safetensors.torch.load(content), info


def fingerprint(network):
    """sha256 of names, types, shapes and bytes of all weights and buffers of a module, wherever they lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _safetensors(path):
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path = {path}; weights are named *.safetensors")
    return path
