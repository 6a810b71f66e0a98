"""Images from seeds: any network, any schedule, any sampler; resumable, and shared among processes."""

import contextlib
import functools
import hashlib
import inspect
import io
import json
import os
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from entropic import _check
from entropic.files import write_atomically
from entropic.identity import content_sha256
from entropic.images.data import check_labels, to_uint8
from entropic.solvers import sample_ddim

__all__ = ["Generated", "generate", "load_generated", "load_manifest", "local_device", "missing_shards"]

_OUTPUTS = {"uint8": np.uint8, "float32": np.float32, "none": None}
# What a manifest holds, besides its own sha256.
_ARGUMENTS = {
    *("network", "sigmas", "seeds", "labels", "sampler", "chunk", "device"),
    *("output", "decode", "features", "shard", "contents"),
}


class Generated(NamedTuple):
    """What was made of the seeds, in their order.

    images (N, C, H, W) uint8 or float32, or None where output="none"; labels int64 (N,); features: by name, float32
    (N, F).
    """

    images: torch.Tensor | None
    labels: torch.Tensor
    features: dict


@torch.inference_mode(False)
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
    decode=to_uint8,
    features=None,
    device=None,
    progress=False,
):
    """One image for each seed: `sampler` down `sigmas` with `network(x, sigma, label)` as its denoiser.

    `network` is a module in evaluation mode with `shape` (C, H, W), `num_classes` (where that is 0 it gets no label)
    and `config`; it is moved to `device` where one is given, and the state follows it, in float64. Every seed has
    a generator of its own, on the CPU: the first draw is the noise of sigmas[0], the second the class, uniform over
    `num_classes` (drawn though `labels` (N,) replaces it; 0 where num_classes = 0), then what the sampler draws.
    The noise is drawn in `network.noise_dtype`, float64 where the network has no such attribute, and the arithmetic
    goes on in float64. The published networks of EDM and EDM2 say float32: a seed then has the noise and the class
    that the official samplers give it on a CPU. What the sampler draws is drawn in `network.step_noise_dtype`, float64
    where there is none. EDM2 says float32, as its own sampler draws; EDM says float64, but its own sampler draws also
    at steps without churn, so that the samples agree only where every step has churn.
    The network always gets `chunk` rows, the last ones padded, so that the arithmetic of an image is the same
    however many are made, and a compiled network sees one shape: bit for bit for any `batch` (images in memory
    together, in whole chunks), and for any order, subset or neighbours too where the network treats all rows of a
    call alike, as convolutions do on a CPU (a matrix product over few, odd positions may not; chunk=1 is then the
    remedy). Another `chunk` or device moves the last bits of the network's arithmetic.

    `decode` makes uint8 images (n, ...) of states: pixels in [-1, 1], or an autoencoder's `decode`. `features`, by
    name: functions of uint8 images (n, C, H, W) that return (n, F), as `metrics.feature_network` makes them:
    computed while the next images are sampled. Output: "uint8", the decoded images; "float32", the states
    themselves; "none", where only features and classes are kept.

    With `out`, a folder, each `shard` of seeds is a set of files, and manifest.json holds the arguments: a
    killed run goes on, and ends with the same bytes. Several runs of the same arguments may fill one folder at
    once: each file is written whole and holds the same bytes, whoever writes it. A run is recognised by content:
    the network, `sampler`, `decode` and `features` by the sha256 of their code, settings and arrays
    (`entropic.identity.content_sha256`). What cannot be told by its content needs a class with a `__repr__` of its
    own, which then names it, as the objects of `metrics.feature_network` and `vae.load_vae` do. Under torchrun
    (RANK, WORLD_SIZE) rank r makes shards r, r + WORLD_SIZE, … and returns only these; `load_generated` reads them
    all. The number of processes may change between runs. Without `out` those are ignored.
    ValueError: arguments that do not fit, a folder made with others, damaged files, a state that is not finite,
    with its seed. Order of draws as in Karras et al. 2024 (EDM2).
    """
    with torch.device("cpu"):
        sigmas = _check.schedule(sigmas)
    seeds = _seeds(seeds)
    batch, chunk = _check.integer("batch", batch, 1), _check.integer("chunk", chunk, 1)
    shard = _check.integer("shard", shard, 1)
    batch += -batch % chunk  # else the place of an image within its chunk would hang on `batch`
    features = {} if features is None else dict(features)
    for name in features:
        if not _is_feature(name):
            raise ValueError(f"features has the name {name!r}; pass names that can be part of a file's name")
    if output not in _OUTPUTS or (output == "none" and not features):
        raise ValueError(f"output = {output!r}; pass 'uint8' or 'float32', or 'none' with features")
    if network.training:
        raise ValueError("network is in training mode, where dropout draws; call network.eval() first")
    if labels is not None:
        labels = torch.as_tensor(labels, device="cpu")
        labels = check_labels(labels, len(seeds), network.num_classes)
    if device is None:
        device = next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
    else:
        network, device = network.to(device), torch.device(device)

    def sample(rows):
        given = None if labels is None else labels[rows.start : rows.stop]
        return _sample(network, sigmas, seeds[rows.start : rows.stop], sampler, given, chunk, device)

    def finish(state, kinds):
        """Images and features of one batch, on the CPU."""
        images = decode(state) if output == "uint8" or features else None
        found = {name: _rows(name, function(images), len(state)) for name, function in features.items()}
        kept = {"uint8": images, "float32": state.to(torch.float32), "none": None}[output]
        return Generated(None if kept is None else kept.cpu(), kinds, found)

    from tqdm import tqdm

    bar = functools.partial(tqdm, unit="image", disable=not progress)
    pieces, ends = [], {}  # batches made so far; where a shard ends, and which

    def keep(made, end):
        pieces.append(made)
        if end in ends:
            _write_shard(out, ends[end], _join(pieces))
            pieces.clear()

    if out is None:
        with bar(total=len(seeds)) as shown:
            _overlapped(_split(range(len(seeds)), batch), sample, finish, keep, device, shown)
        return _join(pieces)
    out = Path(out)
    arguments = {
        "network": {"sha256": _content("network", network), "config": network.config},
        "sigmas": sigmas.tolist(),
        "sampler": _name(sampler),
        "output": output,
        "decode": _name(decode),
        "features": {name: _name(function) for name, function in features.items()},
        "contents": {
            "sampler": _content("sampler", sampler),
            "decode": _content("decode", decode),
            "features": {name: _content(f"features[{name!r}]", one) for name, one in features.items()},
        },
        "chunk": chunk,
        "device": device.type,
        "shard": shard,
        "seeds": seeds,
        "labels": None if labels is None else labels.tolist(),
    }
    rank, world = _rank()
    _claim(out, arguments)
    parts = _split(range(len(seeds)), shard)
    mine = range(rank, len(parts), world)
    waiting = [index for index in mine if not _whole(out, arguments, index)]
    total, left = (sum(len(parts[index]) for index in those) for those in (mine, waiting))
    ends |= {parts[index].stop: index for index in waiting}
    work = [rows for index in waiting for rows in _split(parts[index], batch)]
    with bar(total=total, initial=total - left) as shown:
        _overlapped(work, sample, finish, keep, device, shown)
    return _read(out, arguments, mine)


def load_generated(out):
    """All images, classes and features of a folder that `generate` filled, in the order of its seeds.

    FileNotFoundError: no such folder, or shards that are still to be made. ValueError: damaged files, with the path.
    """
    arguments = load_manifest(out)
    count, missing = _count(arguments), _missing(Path(out), arguments)
    if missing:
        raise FileNotFoundError(
            f"{out} lacks {len(missing)} of {count} shards, the first is number {missing[0]}; "
            "call generate(…, out=…) again with the same arguments"
        )
    return _read(Path(out), arguments, range(count))


def load_manifest(out):
    """The arguments of `generate` that filled a folder: seeds, sigmas, the network's hash and so on.

    FileNotFoundError: no such folder, or nothing was begun there. ValueError: a damaged manifest, with its path.
    """
    path = Path(out) / "manifest.json"
    content = path.read_bytes()
    try:
        arguments = json.loads(content.decode("utf-8"))
        found = arguments.pop("sha256", None)
        if found is not None and found != _digest(arguments):
            raise ValueError("its content is not that of its sha256")
        if set(arguments) != _ARGUMENTS:
            raise ValueError(f"it lacks, or has too many: {', '.join(sorted(set(arguments) ^ _ARGUMENTS))}")
        _seeds(arguments["seeds"])
        _check.integer("shard", arguments["shard"], 1)
        if set(arguments["contents"]) != {"sampler", "decode", "features"}:
            raise ValueError("its contents are not those of generate")
        if arguments["output"] not in _OUTPUTS or not all(map(_is_feature, dict(arguments["features"]))):
            raise ValueError("its output or its features are not those of generate")
    except Exception as error:  # an altered file may lack a key or hold anything under it
        raise ValueError(
            f"{path} is damaged ({error!r}); delete its folder and generate again, or put the original back"
        ) from error
    return arguments


def missing_shards(out):
    """Numbers of the shards of a folder that `generate` has still to make. Errors: as `load_manifest`."""
    return _missing(Path(out), load_manifest(out))


def local_device():
    """The GPU of this process under torchrun (LOCAL_RANK), the first one otherwise, the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


class _Generator(torch.Generator):
    """A generator that tells a sampler the type in which to draw: `noise_dtype`."""


def _sample(network, sigmas, seeds, sampler, given, chunk, device):
    """States float64 at sigma 0, on the device, and classes of a few seeds."""
    generators = [_Generator().manual_seed(seed) for seed in seeds]
    for one in generators:
        one.noise_dtype = getattr(network, "step_noise_dtype", torch.float64)
    kind, here = getattr(network, "noise_dtype", torch.float64), {"device": "cpu"}
    noise = [torch.randn(network.shape, generator=one, dtype=kind, **here) for one in generators]
    noise = torch.stack(noise).to(torch.float64)
    labels = torch.zeros(len(seeds), dtype=torch.int64, **here)
    if network.num_classes:
        labels = [torch.randint(network.num_classes, (), generator=one, **here) for one in generators]
        labels = torch.stack(labels)
    if given is not None:
        labels = given
    pad = -len(seeds) % chunk
    padded = torch.cat([labels, labels[-1:].expand(pad)]).to(device) if network.num_classes else None
    answers = []

    def denoiser(x, sigma):
        rows = torch.cat([x, x[-1:].expand(pad, *network.shape)])
        level = torch.tensor(
            sigma, dtype=torch.float64, device=device
        )  # a number would compile anew each time
        denoised = torch.empty_like(rows)
        for start in range(
            0, len(rows), chunk
        ):  # copied at once: a CUDA graph reuses the memory of its answer
            part = slice(start, start + chunk)
            denoised[part] = network(rows[part], level, None if padded is None else padded[part])
        denoised = denoised[: len(x)]
        answers.append((sigma, torch.isfinite(denoised).flatten(1).all(1)))
        return denoised

    def look():
        for sigma, finite in answers:
            _finite(finite, seeds, f"the network's answer at sigma = {sigma:g}")

    # A default device that is set elsewhere shall have no say in what a sampler makes without naming a device.
    plain = torch.get_default_device().type == "cpu"
    try:
        with contextlib.nullcontext() if plain else device:
            state = sampler(denoiser, noise.to(device) * sigmas[0].item(), sigmas, generator=generators)
    except ValueError:
        look()  # where a network or sampler refuses what is not finite, the seed is known here
        raise
    look()  # last, as each look waits for the GPU
    _finite(torch.isfinite(state).flatten(1).all(1), seeds, "the state")
    return state, labels


def _finite(finite, seeds, what):
    if not finite.all():
        seed = seeds[int((~finite).nonzero()[0])]
        raise ValueError(f"seed {seed}: {what} is not finite; look at the network and at sigmas")


def _overlapped(work, sample, finish, keep, device, bar):
    """keep(finish(*sample(rows)), rows.stop) for all `rows` in order; a batch is finished while the next is sampled."""
    side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(state, kinds, sampled, end):
        with torch.no_grad(), torch.cuda.stream(side):
            if side is not None:
                side.wait_event(sampled)
                state.record_stream(side)
            keep(finish(state, kinds), end)

    with ThreadPoolExecutor(1) as thread, torch.no_grad():
        waiting = None
        for rows in work:
            state, kinds = sample(rows)
            sampled = None if side is None else torch.cuda.current_stream(device).record_event()
            first = waiting is None
            if not first:
                waiting.result()  # at most one batch waits: memory stays bounded
            waiting = thread.submit(run, state, kinds, sampled, rows.stop)
            if first:
                waiting.result()  # alone on the device: a compiled network may have a CUDA graph to record
            bar.update(len(kinds))
        if waiting is not None:
            waiting.result()


def _split(rows, size):
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _rows(name, found, count):
    if found.ndim != 2 or len(found) != count or not torch.isfinite(found).all():
        raise ValueError(
            f"features[{name!r}] returned {found.dtype} {tuple(found.shape)} for {count} images, or NaN; "
            f"it must return finite ({count}, F)"
        )
    return found.to("cpu", torch.float32)


def _join(pieces):
    """One `Generated` of several, in order."""
    images, labels, features = zip(*pieces, strict=True)
    return Generated(
        None if images[0] is None else torch.cat(images),
        torch.cat(labels),
        {name: torch.cat([one[name] for one in features]) for name in features[0]},
    )


def _seeds(seeds):
    seeds = seeds.tolist() if isinstance(seeds, (torch.Tensor, np.ndarray)) else seeds
    seeds = [_check.integer("seeds", seed, 0) for seed in seeds]
    if not seeds or max(seeds) >= 2**63:
        raise ValueError(
            f"seeds = {_short(seeds)}; pass one or more whole numbers below 2**63, as in range(64)"
        )
    return seeds


def _name(value):
    """A function or an object as a reader of the manifest would call it; what it is, `_content` tells."""
    words, function = [], value
    while isinstance(function, functools.partial):
        words = [
            *map(repr, function.args),
            *words,
            *(f"{k}={v!r}" for k, v in sorted(function.keywords.items())),
        ]
        function = function.func
    owner = getattr(function, "__self__", function)
    if inspect.isroutine(function) and (owner is function or inspect.ismodule(owner)):
        name = f"{function.__module__}.{function.__qualname__}"
    else:
        name = repr(owner) if _names_itself(owner) else f"{type(owner).__module__}.{type(owner).__qualname__}"
        name = name if owner is function else f"{name}.{function.__name__}"
    return f"{name}({', '.join(words)})"


def _content(argument, value):
    """What tells `value` from another: the sha256 of its content, or the name that its class gives it.

    An object of this package that names itself is known by its name: that holds the sha256 of its weights, and it
    is the same on every device. ValueError: neither a content that can be told nor a name.
    """
    owner = getattr(value, "__self__", value)
    named = _name(value) if _names_itself(owner) else None
    if named is not None and type(owner).__module__.partition(".")[0] == __name__.partition(".")[0]:
        return named
    try:
        return content_sha256(value, argument)
    except ValueError as error:
        if named is None:
            raise ValueError(
                f"{argument} = {_short(repr(value))} cannot be told from another for `out` ({error}); pass a function, "
                "or an object of a class whose __repr__ names it"
            ) from error
        return named


def _names_itself(value):
    """Whether the class of an object has a `__repr__` that somebody wrote for it."""
    silent = (object, functools.partial, torch.nn.Module, torch.Tensor, np.ndarray, type(print), type(_rank))
    return type(value).__repr__ not in [kind.__repr__ for kind in silent]


def _rank():
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < world:
        raise ValueError(f"RANK = {rank} with WORLD_SIZE = {world}; ranks go from 0 to WORLD_SIZE - 1")
    return rank, world


def _claim(out, arguments):
    """Write the folder's manifest, or compare with the one that is there."""
    path = out / "manifest.json"
    out.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        _create(path, json.dumps({**arguments, "sha256": _digest(arguments)}, separators=(",", ":")))
    kept, ours = load_manifest(out), json.loads(json.dumps(arguments))
    for name in ours:
        mine, theirs = (_told(one, name) for one in (ours, kept))
        if mine != theirs:
            raise ValueError(
                f"{name} = {_short(mine)}, but {out} was made with {_short(theirs)}; "
                "pass what it was made with, or another folder"
            )


def _told(arguments, name):
    """An argument of a manifest by which runs are compared: its content where it has one, not its printed name."""
    return arguments["contents"].get(name, arguments[name])


def _create(path, text):
    """Write a file as a whole; where another process was first, its file stays."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(text, "utf-8")
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)


def _digest(arguments):
    return hashlib.sha256(json.dumps(arguments, separators=(",", ":")).encode()).hexdigest()


def _is_feature(name):
    """Whether a name of features can be part of the name of their files."""
    return isinstance(name, str) and re.fullmatch(r"[^/\\\0]{1,200}", name) is not None


def _short(value):
    text = str(value)
    return text if len(text) <= 200 else f"{text[:150]} … ({len(text)} characters)"


def _count(arguments):
    """How many shards there are."""
    return -(-len(arguments["seeds"]) // arguments["shard"])


def _path(out, kind, index):
    return out / f"{kind}-{index:06d}.npy"


def _kinds(arguments):
    """What a shard is made of: kind of file -> type of its numbers."""
    kinds = {f"features-{name}": np.float32 for name in arguments["features"]} | {"labels": np.int64}
    output = _OUTPUTS[arguments["output"]]
    return kinds if output is None else kinds | {"images": output}


def _missing(out, arguments):
    return [index for index in range(_count(arguments)) if not _whole(out, arguments, index)]


def _whole(out, arguments, index):
    return all(_path(out, kind, index).is_file() for kind in _kinds(arguments))


def _write_shard(out, index, made):
    for name, array in made.features.items():
        _write(_path(out, f"features-{name}", index), array)
    if made.images is not None:
        _write(_path(out, "images", index), made.images)
    _write(_path(out, "labels", index), made.labels)


def _write(path, array):
    """A file of numpy's, with the sha256 of its content behind it, which `np.load` does not read."""
    content = io.BytesIO()
    np.save(content, array.numpy())
    content = content.getvalue()
    write_atomically(path, content + hashlib.sha256(content).digest())


def _load(path):
    """The array that `_write` wrote, or one without a sha256 behind it."""
    content = path.read_bytes()
    stream = io.BytesIO(content)
    try:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        end = stream.tell()
        if content[end:] not in (b"", hashlib.sha256(content[:end]).digest()):
            raise ValueError("its content is not that of its sha256")
    except Exception as error:  # a damaged header raises whatever the damage leads to
        raise ValueError(f"{path} cannot be read ({error!r}); delete it and generate again") from error
    return array


def _read(out, arguments, shards):
    """What the shards hold, joined; a share of none is empty."""
    kinds = _kinds(arguments)
    found = {kind: [] for kind in kinds}
    for index in shards:
        start = index * arguments["shard"]
        count = min(arguments["shard"], len(arguments["seeds"]) - start)
        for kind, dtype in kinds.items():
            path = _path(out, kind, index)
            array = _load(path)
            before = found[kind][0].shape[1:] if found[kind] else array.shape[1:]
            if array.shape != (count, *before) or array.dtype != dtype:
                raise ValueError(
                    f"{path} holds {array.dtype} of shape {array.shape}; delete it and generate again"
                )
            found[kind].append(array)
    joined = {
        kind: torch.from_numpy(np.concatenate(arrays) if arrays else np.empty(0, kinds[kind]))
        for kind, arrays in found.items()
    }
    features = {name: joined[f"features-{name}"] for name in arguments["features"]}
    return Generated(joined.get("images"), joined["labels"], features)
