"""Images a second, memory and share of the peak of EDM2-XS on a GPU, random weights. `make bench-gpu`.

Left in book/results/bench_gpu, where the page of the paper's tables reads it.
Without a CUDA device it says so and measures nothing.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def seconds(call, repeats, device):
    """Median time of a call after two that warm up (compile, record a graph)."""
    found = []
    for _ in range(2 + repeats):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return sorted(found[2:])[repeats // 2]


def reachable(device, side, dtype):
    """Operations a second of a large matrix product: the peak that the device reaches, rather than its data sheet's."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, 10, device)


def measure(network, batches, repeats, device, peak, operations):
    """One row a batch size and mode."""
    rows = []
    level = torch.ones((), dtype=torch.float64, device=device)
    for mode in ("eager", "compiled"):
        if mode == "compiled":
            network.compile(mode="reduce-overhead" if device.type == "cuda" else "default")
        for batch in batches:
            torch.manual_seed(0)
            x = torch.randn(batch, *network.shape, device=device, dtype=torch.float64)
            x = x.to(memory_format=torch.channels_last)
            label = torch.zeros(batch, dtype=torch.int64, device=device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            with torch.no_grad():
                taken = seconds(lambda x=x, label=label: network(x, level, label), repeats, device)
            memory = (
                torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
            )
            rate = batch * operations / taken
            rows.append(
                {
                    "mode": mode,
                    "batch": batch,
                    "calls a second": batch / taken,
                    "images a second, 32 calls": batch / taken / 32,
                    "TFLOP a second": rate / 1e12,
                    "share of peak": rate / peak,
                    "memory, GiB": memory,
                }
            )
            print(
                "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items())
            )
    return rows


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.bench_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 64, 128, 256])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny network on any device, to try the program itself"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "book" / "results" / "bench_gpu")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not given.tiny:
        sys.exit("bench-gpu: not run here, there is no CUDA device")
    os.environ["ENTROPIC_RUN"] = json.dumps({"notebook": "bench_gpu", "out": str(given.out)})
    from entropic.images import cost
    from entropic.images.networks import edm2
    from studies.report import save_table

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    width, side = (32, 16) if given.tiny else (edm2.SIZES["xs"], 64)
    torch.manual_seed(0)
    network = edm2.Precond(side, 4, 1000, model_channels=width).eval().requires_grad_(False)
    network.to(device, memory_format=torch.channels_last)
    with torch.device("meta"):
        same = edm2.Precond(side, 4, 1000, model_channels=width).eval()
        operations = cost.flops(lambda x: same(x, torch.ones(())), (1, *same.shape))
    peak = reachable(
        device, 512 if given.tiny else 8192, torch.float16 if device.type == "cuda" else torch.float32
    )
    print(f"{name}: a large matrix product reaches {peak / 1e12:.3g} TFLOP a second")
    rows = measure(network, given.batches, given.repeats, device, peak, operations)
    caption = f"EDM2-XS with random weights on {name}, torch {torch.__version__}: calls a second, and their share of "
    caption += f"what a large matrix product reaches ({peak / 1e12:.0f} TFLOP a second)."
    save_table(rows, "throughput", caption, device=name)
    if device.type == "cuda" and not given.tiny:
        xxl(device)


def xxl(device):
    """Memory of EDM2-XXL at 8 images a call, as counted and as measured."""
    from entropic.images import cost
    from entropic.images.networks import edm2

    counted = cost.memory(cost.architecture("ImageNet-512", "EDM2-XXL").half(), 8)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    with torch.no_grad(), torch.device(device):
        network = edm2.Precond(64, 4, 1000, model_channels=edm2.SIZES["xxl"]).eval().half()
        network(torch.randn(8, *network.shape), 1.0, torch.zeros(8, dtype=torch.int64))
    found = torch.cuda.max_memory_allocated(device) / 2**30
    print(f"EDM2-XXL, 8 images a call: {counted.peak / 2**30:.2f} GiB counted, {found:.2f} GiB measured")


if __name__ == "__main__":
    main()
