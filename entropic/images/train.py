"""Train the small networks: EDM's loss, EMA, resumable to the bit, logged by noise level.

`python -m entropic.images.train fashion-mnist --out FOLDER` trains, or goes on where a stopped run in FOLDER was;
`torchrun --nproc-per-node N -m entropic.images.train ...` spreads each batch over N devices.
"""

import argparse
import contextlib
import copy
import dataclasses
import io
import json
import math
import os
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from entropic.files import only_writer, replaced, write_atomically
from entropic.images import data
from entropic.images.networks.small import SmallUNet, save_network, training_log


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that fixes a training run: two runs of one recipe on one machine give the same weights, bit for bit.

    ln(sigma) ~ N(p_mean, p_std^2); `steps` of `batch` images; Adam at `lr` after `warmup` steps, then decayed
    as a half cosine to 0; weights averaged with a half-life of `ema_images`, shorter at the start. The log has
    a line every `log_every` steps, the checkpoint is written every `save_every`. Karras et al. 2022, table 1.
    """

    dataset: str
    network: dict
    steps: int
    batch: int
    lr: float
    p_mean: float = -1.2
    p_std: float = 1.2
    warmup: int = 500
    ema_images: int = 50_000
    source: str = "full"
    dtype: str = "float32"
    seed: int = 0
    log_every: int = 100
    save_every: int = 500


RECIPES = {
    # The noise is spread more widely than EDM's: the error curve is wanted from sigma = 0.002 to 80.
    "fashion-mnist": Recipe(
        dataset="fashion-mnist",
        network={
            "resolution": 28,
            "image_channels": 1,
            "num_classes": 10,
            "sigma_data": 0.7,
            "patch": 2,
            "channels": (48, 96),
            "blocks": 1,
            "attention": (),
        },
        steps=6_000,
        batch=128,
        lr=2e-3,
        p_mean=-0.8,
        p_std=1.6,
    ),
    "cifar10": Recipe(
        dataset="cifar10",
        network={
            "resolution": 32,
            "image_channels": 3,
            "num_classes": 10,
            "sigma_data": 0.5,
            "patch": 1,
            "channels": (96, 192, 192),
            "blocks": 2,
            "attention": (1,),
            "dropout": 0.1,
        },
        # 20 GFLOP an image: half an hour at 80 TFLOP/s, which an H100-class GPU should reach.
        steps=14_000,
        batch=512,
        lr=1e-3,
        warmup=1000,
        ema_images=500_000,
        dtype="float16",
    ),
}

# What a line of the log holds for each bin.
_SUMS = ("count", "loss", "loss2", "log_sigma")
# Edges of the log's bins: three to a factor of two, over the range of the schedules.
SIGMA_EDGES = np.geomspace(0.002, 80.0, 47)


@torch.inference_mode(False)
@torch.enable_grad()
def train(recipe, folder, images=None, labels=None, device=None, progress=True):
    """Train by `recipe` in `folder`, from its checkpoint if there is one; returns the averaged network.

    folder: checkpoint.pt; weights.log.jsonl (a header, then for each noise bin the counts and sums since the line
    before: loss = EDM's weighted error summed over dimensions, its square, log sigma); at the end
    weights.safetensors and weights.json. images uint8 (N, C, H, W) and labels (N,) are the recipe's data
    unless given. Every draw depends on the seed and the step alone, so a run may be killed at any moment:
    started again it ends as if it had never stopped, bit for bit on the CPU with the same number of threads.
    One training at a time writes in a folder: its lock goes with its process, so a killed one blocks nobody.
    ValueError: a folder of another recipe, or in which another training runs; a damaged checkpoint or log, with its
    path; images or labels that do not fit the network; a loss that is not finite, with its step.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rank = int(os.environ.get("RANK", 0))
    with only_writer(folder, "training") if rank == 0 else contextlib.nullcontext():
        return _train(recipe, folder, images, labels, device, progress)


def _train(recipe, folder, images, labels, device, progress):
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if recipe.batch % world:
        raise ValueError(f"batch = {recipe.batch} cannot be shared by {world} processes; take a multiple")
    if images is None:
        loaded = data.load_images(recipe.dataset, "train", recipe.source)
        images, labels = loaded.images, loaded.labels
    with torch.device("cpu"):
        torch.manual_seed(recipe.seed)
        network = SmallUNet(**recipe.network)
    data.check_images(images, network.shape)
    data.check_labels(labels, len(images), network.num_classes)
    cuda = device.type == "cuda"
    if cuda:
        device = device if device.index is not None else torch.device("cuda", torch.cuda.current_device())
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    images, labels = images.to(device), labels.to(device)
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")

    network = network.to(device, memory_format=torch.channels_last)
    average = copy.deepcopy(network).requires_grad_(False).eval()
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.lr, betas=(0.9, 0.99), fused=True)
    log = _Log(folder / "weights.log.jsonl", recipe, images[0].numel(), device)
    step, seconds = _resume(folder / "checkpoint.pt", recipe, network, average, optimiser, log, rank)
    if rank == 0:
        log.rewind(step)

    forward = torch.compile(network) if cuda else network
    if world > 1:
        forward = torch.nn.parallel.DistributedDataParallel(forward)
    start = time.monotonic() - seconds
    bar = tqdm(total=recipe.steps, initial=step, disable=not progress or rank > 0, unit="step", mininterval=2)
    while step < recipe.steps:
        rows, sigma, noise = _draw(recipe, step, images, rank, world)
        x0 = images[rows].to(torch.float32) / 127.5 - 1
        sd = network.sigma_data
        weight = (sigma.square() + sd**2) / (sigma * sd).square()
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(recipe, step)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            denoised = forward(x0 + sigma[:, None, None, None] * noise, sigma, labels[rows])
        loss = weight * (denoised.float() - x0).square().sum((1, 2, 3))
        optimiser.zero_grad()
        (loss.mean() / images[0].numel()).backward()
        optimiser.step()
        _average(average, network, recipe, step)
        log.add(sigma, loss.detach())
        step += 1
        bar.update()
        if step % recipe.log_every == 0 or step == recipe.steps:
            value = log.write(step, rank, world)
            if not math.isfinite(value):
                raise ValueError(f"the loss is {value} by step {step}; lower lr = {recipe.lr}")
            bar.set_postfix(loss=f"{value / images[0].numel():.4f}")
        saving = step % recipe.save_every == 0 or step == recipe.steps
        sums = log.total(world) if saving else None
        if rank == 0 and saving:
            state = {
                "recipe": _plain(recipe),
                "step": step,
                "seconds": time.monotonic() - start,
                "network": network.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "log": sums,
            }
            with replaced(folder / "checkpoint.pt") as temporary:
                torch.save(state, temporary)
    bar.close()
    if rank == 0:
        seconds = time.monotonic() - start
        info = {
            "recipe": _plain(recipe),
            "images": len(images),
            "seconds": round(seconds, 1),
            "images_per_second": round(recipe.steps * recipe.batch / seconds, 1),
            "device": torch.cuda.get_device_name(device)
            if cuda
            else f"CPU, threads: {torch.get_num_threads()}",
            "processes": world,
            "torch": torch.__version__,
        }
        save_network(folder / "weights.safetensors", average, info, getattr(torch, recipe.dtype))
    return average


def _draw(recipe, step, images, rank, world):
    """This process's share of a step: rows of the data, noise levels and noise, from (seed, step) alone."""
    n, batch = len(images), recipe.batch
    position = np.arange(step * batch, (step + 1) * batch)
    order = {
        epoch: np.random.default_rng([recipe.seed, 1, epoch]).permutation(n) for epoch in set(position // n)
    }
    rows = np.array([order[p // n][p % n] for p in position])
    seed = int(np.random.SeedSequence([recipe.seed, 2, step]).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator(images.device).manual_seed(seed)
    drawn = {"generator": generator, "device": images.device, "dtype": torch.float32}
    sigma = torch.randn(batch, **drawn) * recipe.p_std + recipe.p_mean
    noise = torch.randn(batch, *images.shape[1:], **drawn)
    torch.manual_seed(seed + rank)  # dropout
    share = slice(rank, None, world)
    return torch.from_numpy(rows[share]).to(images.device), sigma.exp()[share], noise[share]


def _learning_rate(recipe, step):
    warm = min(1.0, (step + 1) / recipe.warmup)
    done = max(0.0, (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup))
    return recipe.lr * warm * (1 + math.cos(math.pi * done)) / 2


@torch.no_grad()
def _average(average, network, recipe, step):
    """EMA with a half-life of `ema_images`, or of a twentieth of the images seen so far where that is less."""
    half = min(recipe.ema_images, (step + 1) * recipe.batch / 20)
    keep = 0.5 ** (recipe.batch / half)
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - keep)


class _Log:
    """Sums by noise bin since the last line of the log, and the log itself."""

    def __init__(self, path, recipe, dim, device):
        self.path, self.edges = path, torch.from_numpy(SIGMA_EDGES).to(device)
        self.header = {
            "sigma_edges": SIGMA_EDGES.tolist(),
            "sigma_data": recipe.network["sigma_data"],
            "dim": dim,
            "recipe": _plain(recipe),
        }
        # Rows: count, loss, loss squared, log sigma. The first and last columns lie outside the edges.
        self.sums = torch.zeros(4, len(SIGMA_EDGES) + 1, dtype=torch.float64, device=device)

    def add(self, sigma, loss):
        column = torch.bucketize(sigma.double(), self.edges)
        loss = loss.double()
        rows = torch.stack([torch.ones_like(loss), loss, loss.square(), sigma.double().log()])
        self.sums.index_add_(1, column, rows)

    def total(self, world):
        """The sums of all processes."""
        sums = self.sums.clone()
        if world > 1:
            dist.all_reduce(sums)
        return sums

    def write(self, step, rank, world):
        """Append a line if its loss is finite, empty the sums, and return the mean loss since the line before."""
        sums = self.total(world)
        self.sums.zero_()
        mean = float(sums[1].sum() / sums[0].sum())
        if rank == 0 and math.isfinite(mean):
            count, loss, square, log_sigma = sums[:, 1:-1].tolist()
            line = {"step": step, **dict(zip(_SUMS, (count, loss, square, log_sigma), strict=True))}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())  # before the checkpoint that counts on this line
        return mean

    def rewind(self, step):
        """Drop the lines that a killed run wrote after its last checkpoint.

        ValueError: a damaged log, or one that lacks lines from before the checkpoint.
        """
        lines = []
        if step > 0:
            header, lines = _read_log(self.path)
            lines = [line for line in lines if line["step"] <= step]
            every, steps = self.header["recipe"]["log_every"], self.header["recipe"]["steps"]
            wanted = [k for k in range(1, step + 1) if k % every == 0 or k == steps]
            if header != self.header or [line["step"] for line in lines] != wanted:
                raise ValueError(
                    f"{self.path} is not the log of the checkpoint beside it, which has seen {step} steps; put the "
                    "log of that run back, or delete both to train from the beginning"
                )
        text = "".join(json.dumps(line) + "\n" for line in [self.header, *lines])
        write_atomically(self.path, text.encode())


def _resume(path, recipe, network, average, optimiser, log, rank):
    """Load a checkpoint where there is one: (step, seconds so far)."""
    if not path.is_file():
        return 0, 0.0
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            altered = file.testzip()  # torch.load does not compare the checksums
        if altered:
            raise ValueError(f"the checksum of {altered} is not that of its content")
        state = torch.load(io.BytesIO(content), map_location=log.sums.device, weights_only=True)
        step, seconds, trained = int(state["step"]), float(state["seconds"]), dict(state["recipe"])
    except Exception as error:  # what a damaged file leads to is not documented, and changes with torch
        raise _damaged(path, error) from error
    for name, value in _plain(recipe).items():
        found = trained.get(name)
        if found != value:
            raise ValueError(
                f"{path} was trained with {name} = {found!r}, not {value!r}; take another folder"
            )
    try:
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        if rank == 0:  # they are everybody's
            log.sums.copy_(state["log"])
    except Exception as error:
        raise _damaged(path, error) from error
    return step, seconds


def _damaged(path, error):
    return ValueError(
        f"{path} is damaged ({error!r}); put a whole copy back, or train from the beginning in another folder"
    )


def _plain(recipe):
    """The recipe as JSON would give it back: tuples are lists."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


class Agreement(NamedTuple):
    """Two training logs: mean log ratio of their losses, its standard error, root mean square z over noise bins."""

    log_ratio: float
    stderr: float
    rms_z: float


def compare_logs(path, other, share=0.2):
    """How far the losses of two runs lie apart over the last `share` of their steps, as `Agreement`.

    Bin by bin, over bins that hold 100 images or more in both; z is a bin's log ratio over its standard error, and
    1 is what runs that differ by their draws alone have. ValueError: logs of other bins.
    """
    ours, theirs = _merged(path, share), _merged(other, share)
    if ours[0] != theirs[0]:
        raise ValueError(f"{path} and {other} have other noise bins; compare logs of one version")
    both = (ours[1][0] >= 100) & (theirs[1][0] >= 100)
    logs, errors = [], []
    for count, loss, square in (ours[1][:, both], theirs[1][:, both]):
        mean = loss / count
        logs.append(np.log(mean))
        errors.append(np.maximum(square / count - mean**2, 0) / (count - 1) / mean**2)
    ratio, variance = logs[0] - logs[1], errors[0] + errors[1]
    if not both.any():
        raise ValueError(
            f"{path} and {other} share no noise bin of 100 images in share = {share}; train longer"
        )
    weight = 1 / variance
    return Agreement(
        float((weight * ratio).sum() / weight.sum()),
        float(weight.sum() ** -0.5),
        float(np.sqrt((ratio**2 / variance).mean())),
    )


def _merged(path, share):
    header, lines = _read_log(path)
    if not lines:
        raise ValueError(f"{path} has no line after its header yet; train longer")
    late = [line for line in lines if line["step"] > (1 - share) * lines[-1]["step"]]
    return header["sigma_edges"], np.sum([[line[k] for k in ("count", "loss", "loss2")] for line in late], 0)


def _read_log(path):
    """Header and lines of a training log; a last line that a kill cut short is left out.

    ValueError: no such log, or an altered one, with its path.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path} is missing; put the log back, or delete the checkpoint beside it to train anew"
        )
    content = path.read_bytes()
    try:
        whole = content[: content.rindex(b"\n")].decode("utf-8").split("\n")
        header, *lines = [json.loads(line) for line in whole]
        bins, before = len(header["sigma_edges"]) - 1, 0
        for line in lines:
            table = np.array([line[name] for name in _SUMS], np.float64)
            if table.shape != (len(_SUMS), bins) or not np.isfinite(table).all():
                raise ValueError(f"step {line['step']} does not hold {bins} finite sums of each kind")
            if not before < line["step"]:
                raise ValueError(f"step {line['step']} comes after step {before}")
            before = line["step"]
    except Exception as error:  # an altered line may be no JSON, lack a key, or hold anything under it
        raise _damaged(path, error) from error
    return header, lines


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m entropic.images.train", description=__doc__.splitlines()[0]
    )
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--out", required=True, type=Path, help="folder of the run; resumed if it holds one")
    parser.add_argument("--steps", type=int, help="another number of steps")
    parser.add_argument("--seed", type=int, help="another seed")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all)")
    options = parser.parse_args(arguments)
    changes = {
        name: getattr(options, name) for name in ("steps", "seed") if getattr(options, name) is not None
    }
    torch.set_num_threads(options.threads)
    train(dataclasses.replace(RECIPES[options.recipe], **changes), options.out)
    shipped = training_log(options.recipe)
    if shipped.is_file() and options.steps is None and int(os.environ.get("RANK", 0)) == 0:
        found = compare_logs(options.out / "weights.log.jsonl", shipped)
        print(
            f"Loss against the shipped run's, last fifth of the steps: log ratio {found.log_ratio:+.4f}, standard "
            f"error {found.stderr:.4f}; root mean square z over noise bins {found.rms_z:.2f} (1 for another "
            "seed, less for the same)"
        )
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
