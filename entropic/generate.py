"""Images from seeds: any network, any schedule, any sampler; resumable, and shared among processes."""

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from entropic import _check
from entropic.data import to_uint8
from entropic.samplers import sample_ddim

__all__ = ["Generated", "generate", "load_generated"]

_OUTPUTS = {"uint8": np.uint8, "float32": np.float32}


class Generated(NamedTuple):
    """Images (N, C, H, W), uint8 or float32, and their classes int64 (N,), in the order of the seeds."""

    images: torch.Tensor
    labels: torch.Tensor


def generate(
    network,
    sigmas,
    seeds,
    *,
    sampler=sample_ddim,
    labels=None,
    batch=64,
    chunk=16,
    out=None,
    shard=64,
    output="uint8",
    device=None,
    progress=False,
):
    """One image for each seed: `sampler` down `sigmas` with `network(x, sigma, label)` as its denoiser.

    `network` is a module in evaluation mode with `num_classes` and `config`'s "image_channels" and "resolution";
    it is moved to `device` where one is given. Every seed has a generator of its own, on the CPU: the first draw is
    the noise of sigmas[0] (float64), the second the class, uniform over `num_classes` (drawn though `labels`
    (N,) replaces it; 0 where num_classes = 0), then what the sampler draws. The state is float64 on the CPU.
    The network always gets `chunk` rows, the last ones padded, so that the arithmetic of an image is the same
    however many are made: bit for bit for any `batch` (images in memory together, in whole chunks), and for any
    order, subset or neighbours too where the network treats all rows of a call alike, as convolutions do on a
    CPU (a matrix product over few, odd positions may not; chunk=1 is then the remedy). Another `chunk` or device
    moves the last bits of the network's arithmetic. Output: "uint8" by `entropic.data.to_uint8`, or "float32",
    the state itself.

    With `out`, a folder, each `shard` of seeds is a pair of files, and manifest.json holds the arguments: a
    killed run goes on, and ends with the same bytes. Under torchrun (RANK, WORLD_SIZE) rank r makes shards r,
    r + WORLD_SIZE, … and returns only these; `load_generated` reads them all. Without `out` those are ignored.
    ValueError: arguments that do not fit, a folder made with others, a state that is not finite, with its seed.
    Order of draws as in Karras et al. 2024 (EDM2).
    """
    sigmas = _check.schedule(sigmas)
    seeds = _seeds(seeds)
    batch, chunk = _check.integer("batch", batch, 1), _check.integer("chunk", chunk, 1)
    shard = _check.integer("shard", shard, 1)
    batch += -batch % chunk  # else the place of an image within its chunk would hang on `batch`
    if output not in _OUTPUTS:
        raise ValueError(f"output = {output!r}; pass 'uint8' or 'float32'")
    if network.training:
        raise ValueError("network is in training mode, where dropout draws; call network.eval() first")
    if labels is not None:
        labels = _labels(labels, len(seeds), network.num_classes)
    if device is None:
        device = next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
    else:
        network, device = network.to(device), torch.device(device)

    def make(part, bar):
        pieces = []
        for start in range(part.start, part.stop, batch):
            rows = slice(start, min(start + batch, part.stop))
            given = None if labels is None else labels[rows]
            state, kinds = _sample(network, sigmas, seeds[rows], sampler, given, chunk, device)
            pieces.append((to_uint8(state) if output == "uint8" else state.to(torch.float32), kinds))
            bar.update(len(state))
        return Generated(*map(torch.cat, zip(*pieces, strict=True)))

    from tqdm import tqdm

    bar = functools.partial(tqdm, unit="image", disable=not progress)
    if out is None:
        with torch.no_grad(), bar(total=len(seeds)) as shown:
            return make(range(len(seeds)), shown)
    out = Path(out)
    arguments = {
        "network": {"sha256": _fingerprint(network), "config": network.config},
        "sigmas": sigmas.tolist(),
        "sampler": _name(sampler),
        "output": output,
        "chunk": chunk,
        "device": device.type,
        "shard": shard,
        "seeds": seeds,
        "labels": None if labels is None else labels.tolist(),
    }
    rank, world = _rank()
    _claim(out, arguments, rank)
    parts = [range(len(seeds))[start : start + shard] for start in range(0, len(seeds), shard)]
    mine = range(rank, len(parts), world)
    waiting = [index for index in mine if not _path(out, "images", index).is_file()]
    total, left = (sum(len(parts[index]) for index in those) for those in (mine, waiting))
    with torch.no_grad(), bar(total=total, initial=total - left) as shown:
        for index in waiting:
            made = make(parts[index], shown)
            _write(_path(out, "labels", index), made.labels)
            _write(_path(out, "images", index), made.images)  # last: a shard with images is whole
    return _read(out, arguments, mine)


def load_generated(out):
    """All images and classes of a folder that `generate` filled, in the order of its seeds.

    FileNotFoundError: no such folder, or shards that are still to be made. ValueError: files that do not fit.
    """
    out = Path(out)
    arguments = json.loads((out / "manifest.json").read_text("utf-8"))
    count = -(-len(arguments["seeds"]) // arguments["shard"])
    missing = [index for index in range(count) if not _path(out, "images", index).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{out} lacks {len(missing)} of {count} shards, the first {_path(out, 'images', missing[0]).name}; "
            "call generate(…, out=…) again with the same arguments"
        )
    return _read(out, arguments, range(count))


def _sample(network, sigmas, seeds, sampler, given, chunk, device):
    """States float64 at sigma 0 and classes of a few seeds."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    side = network.config["resolution"]
    shape = (network.config["image_channels"], side, side)
    noise = torch.stack([torch.randn(shape, generator=one, dtype=torch.float64) for one in generators])
    labels = torch.zeros(len(seeds), dtype=torch.int64)
    if network.num_classes:
        labels = torch.stack([torch.randint(network.num_classes, (), generator=one) for one in generators])
    if given is not None:
        labels = given
    pad = -len(seeds) % chunk
    padded = torch.cat([labels, labels[-1:].expand(pad)]).to(device)

    def denoiser(x, sigma):
        rows = torch.cat([x, x[-1:].expand(pad, *shape)]).to(device)
        pieces = [
            network(rows[start : start + chunk], sigma, padded[start : start + chunk])
            for start in range(0, len(rows), chunk)
        ]
        denoised = torch.cat(pieces)[: len(x)].to("cpu", torch.float64)
        return _finite(denoised, seeds, f"the network's answer at sigma = {sigma:g}")

    state = sampler(denoiser, noise * sigmas[0], sigmas, generator=generators)
    return _finite(state, seeds, "the state"), labels


def _finite(x, seeds, what):
    bad = ~torch.isfinite(x.flatten(1)).all(1)
    if bad.any():
        seed = seeds[int(bad.nonzero()[0])]
        raise ValueError(f"seed {seed}: {what} is not finite; look at the network and at sigmas")
    return x


def _seeds(seeds):
    seeds = seeds.tolist() if isinstance(seeds, (torch.Tensor, np.ndarray)) else seeds
    seeds = [_check.integer("seeds", seed, 0) for seed in seeds]
    if not seeds or max(seeds) >= 2**63:
        raise ValueError(
            f"seeds = {_short(seeds)}; pass one or more whole numbers below 2**63, as in range(64)"
        )
    return seeds


def _labels(labels, count, num_classes):
    labels = torch.as_tensor(labels).cpu()
    if labels.shape != (count,) or labels.dtype != torch.int64:
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; pass one int64 class for each of {count} seeds"
        )
    if labels.min() < 0 or labels.max() >= max(num_classes, 1):
        raise ValueError(
            f"labels range from {labels.min()} to {labels.max()}; this network knows {num_classes} classes, from 0"
        )
    return labels


def _fingerprint(network):
    """sha256 of names, types, shapes and bytes of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _name(sampler):
    """A sampler's full name and bound keywords; ValueError where it has none."""
    keywords, function = {}, sampler
    while isinstance(function, functools.partial) and not function.args:
        keywords, function = {**function.keywords, **keywords}, function.func
    name = getattr(function, "__qualname__", "<")
    if "<" in name:
        raise ValueError(
            f"sampler = {sampler!r} has no name by which `out` could tell it from another; pass a module's function, "
            "or functools.partial of one with keywords"
        )
    bound = ", ".join(f"{key}={value!r}" for key, value in sorted(keywords.items()))
    return f"{function.__module__}.{name}({bound})"


def _rank():
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < world:
        raise ValueError(f"RANK = {rank} with WORLD_SIZE = {world}; ranks go from 0 to WORLD_SIZE - 1")
    return rank, world


def _claim(out, arguments, rank):
    """Write the folder's manifest, or compare with the one that is there."""
    path = out / "manifest.json"
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(arguments, separators=(",", ":"))
    if not path.is_file():
        part = path.with_name(f"{path.name}.{rank}.part")
        part.write_text(text, "utf-8")
        os.replace(part, path)
    kept, ours = json.loads(path.read_text("utf-8")), json.loads(text)
    for name in ours:
        if kept.get(name) != ours[name]:
            raise ValueError(
                f"{name} = {_short(ours[name])}, but {out} was made with {_short(kept.get(name))}; "
                "pass what it was made with, or another folder"
            )


def _short(value):
    text = str(value)
    return text if len(text) <= 200 else f"{text[:150]} … ({len(text)} characters)"


def _path(out, kind, index):
    return out / f"{kind}-{index:06d}.npy"


def _write(path, array):
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        np.save(file, array.numpy())
    os.replace(part, path)


def _read(out, arguments, shards):
    """The shards' images and labels; an empty share keeps its shape."""
    config = arguments["network"]["config"]
    shape = (config["image_channels"], config["resolution"], config["resolution"])
    images = [np.empty((0, *shape), _OUTPUTS[arguments["output"]])]
    labels = [np.empty(0, np.int64)]
    for index in shards:
        start = index * arguments["shard"]
        count = min(arguments["shard"], len(arguments["seeds"]) - start)
        for kind, kept in (("images", images), ("labels", labels)):
            path = _path(out, kind, index)
            try:
                array = np.load(path, allow_pickle=False)
            except (OSError, EOFError, ValueError) as error:
                raise ValueError(f"{path} cannot be read ({error}); delete it and generate again") from error
            if array.shape != (count, *kept[0].shape[1:]) or array.dtype != kept[0].dtype:
                raise ValueError(
                    f"{path} holds {array.dtype} of shape {array.shape}; delete it and generate again"
                )
            kept.append(array)
    return Generated(torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels)))
