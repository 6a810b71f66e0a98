"""What the experiments of the paper's tables cost: operations and memory, counted; hours, from a GPU's speed."""

import dataclasses
import time

import torch

from entropic.images import cost
from entropic.images.metrics import fidelity
from entropic.images.networks import dinov2, edm2
from studies.report import read_recorded, save_table

__all__ = ["show_costs"]


def show_costs(experiments, *, gpu_tflops, float32_tflops, memory_batch, timed_calls):
    """Tables of the networks' size, of the hours of each row, and of the hours of each experiment.

    gpu_tflops: 10^12 operations a second that a GPU sustains on EDM2's networks in float16, unless `make bench-gpu` has
    measured it. float32_tflops: the same in float32. memory_batch: images a call in the column of memory. timed_calls:
    calls of EDM2-XS that are timed on this machine.
    """
    measured = read_recorded("bench_gpu", "throughput")
    if measured:
        gpu_tflops = max(measured[1]["TFLOP a second"])
        speed = f"measured on {measured[0]['device']}: {gpu_tflops:.0f} TFLOP a second"
    else:
        speed = f"an assumption, not a measurement: {gpu_tflops:.0f} TFLOP a second (make bench-gpu measures yours)"
    operations = _show_networks(experiments, memory_batch)
    cpu_tflops = operations["ImageNet-512", "EDM2-XS"] / _seconds_a_call(timed_calls) / 1e12
    hours, totals = [], []
    for experiment in experiments:
        whole, after = 0.0, _operations_after(experiment)
        for name in experiment.networks:
            snapshots = len(dataclasses.replace(experiment, networks=[name]).snapshots)
            for calls in experiment.nfe:
                sampling = calls * operations[experiment.dataset, name]
                sustained = gpu_tflops if name.startswith("EDM2") else float32_tflops
                gpu = experiment.images * (sampling / sustained + after / float32_tflops) / 3.6e15
                rows = snapshots * len(experiment.solvers) * len(experiment.schedules) * experiment.runs
                whole += gpu * rows
                hours.append(
                    {
                        "data": experiment.dataset,
                        "network": name,
                        "nfe": calls,
                        "tflop": (sampling + after) / 1e12,
                        "gpu_hours": _two_digits(gpu),
                        "cpu_days": experiment.images * (sampling + after) / cpu_tflops / 8.64e16,
                        "rows": rows,
                    }
                )
        totals.append(
            {"data": experiment.dataset, "hours": _two_digits(whole), "command": experiment.command}
        )
    one = experiments[0]
    save_table(
        totals,
        "cost-experiments",
        f"Whole experiments: {one.runs} runs of {one.images:,} images for every row, on one GPU; {speed}.",
        columns={"data": "data", "hours": "GPU hours", "command": "command"},
    )
    save_table(
        hours,
        "cost-rows",
        f"Cost of a row of {one.images:,} images, one run. GPU: {speed}; what runs in float32 (EDM's networks, "
        f"autoencoder, features) at {float32_tflops:.0f}, assumed. CPU: EDM2-XS with random weights, in float32, one "
        f"image a call, on this machine: {cpu_tflops:.2f} TFLOP a second.",
        columns={
            "data": "data",
            "network": "network",
            "nfe": "NFE",
            "tflop": "TFLOP an image",
            "gpu_hours": "GPU hours a row",
            "cpu_days": "days on this CPU",
            "rows": "rows and runs",
        },
        shown=9,
    )


def _two_digits(hours):
    """More digits would pretend that the speed of a GPU, which is assumed, is known."""
    return float(f"{hours:.2g}")


def _show_networks(experiments, memory_batch):
    """The table of the networks; (data set, network) -> operations of a call."""
    sizes, operations = [], {}
    for experiment in experiments:
        for name in experiment.networks:
            network = cost.architecture(experiment.dataset, name)
            half = torch.float16 if network.use_fp16 else torch.float32
            level = torch.ones((), device="meta")
            operations[experiment.dataset, name] = cost.flops(
                lambda x, network=network, level=level: network(x, level), (1, *network.shape)
            )
            needed = cost.memory(network.to(half), memory_batch, half)
            sizes.append(
                {
                    "data": experiment.dataset,
                    "network": name,
                    "parameters": f"{cost.parameters(network) / 1e6:,.1f} M",
                    "gflop": operations[experiment.dataset, name] / 1e9,
                    "weights": needed.weights / 2**30,
                    "peak": needed.peak / 2**30,
                }
            )
    save_table(
        sizes,
        "cost-networks",
        f"Size of each network. Memory at {memory_batch} images a call, counted, not measured.",
        columns={
            "data": "data",
            "network": "network",
            "parameters": "parameters",
            "gflop": "GFLOP a call",
            "weights": "weights, GiB",
            "peak": "peak, GiB",
        },
    )
    return operations


def _seconds_a_call(timed_calls):
    """The shortest of some calls of EDM2-XS with random weights, in float32, one image a call, on this machine."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = edm2.Precond(64, 4, 1000, model_channels=edm2.SIZES["xs"]).eval()
        x, label, seconds = torch.randn(1, 4, 64, 64), torch.zeros(1, dtype=torch.int64), []
    with torch.no_grad():
        for _ in range(1 + timed_calls):
            began = time.perf_counter()
            network(x, 1.0, label)
            seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _operations_after(experiment):
    """Operations an image after sampling: the decoder of latents, and the features."""
    fidelity()  # before torchvision, whose wheel may lack declarations
    from torchvision.models import inception_v3  # FID's network differs from it in its pooling only

    decoder = cost.flops(cost.vae_decoder(), (1, 4, 64, 64)) if experiment.dataset == "ImageNet-512" else 0
    with torch.device("meta"):
        vit = dinov2.DINOv2()
        inception = inception_v3(weights=None, aux_logits=False, init_weights=False).eval()
    features = {
        True: cost.flops(lambda x: vit(x), (1, 3, 224, 224), dtype=torch.uint8),
        False: cost.flops(inception, (1, 3, 299, 299)),
    }
    return decoder + sum(features["dino" in name] for name in experiment.extractors)
