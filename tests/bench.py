"""Ratios from one run: this tree against an old one, placing, exact law against Monte Carlo, integration.

    python tests/bench.py [NOTEBOOK]        `make bench`; with a notebook, its whole run is compared, too

The old tree is commit `BASE` of this repository, unpacked into a temporary folder. A process of its own imports the
package from each tree and does the same work; the trees take turns, and a ratio is that of the medians.
"""

import io
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from entropic import (
    ErrorCurve,
    GaussianMixture,
    deterministic_law,
    gaussian_optimal_sigmas,
    rescaled_sigmas,
    sample_ddim_stochastic,
    solver_aware_sigmas,
    stochastic_law,
)

PATHS, REPEATS, TEST_POINTS, KERNEL = 10_000, 100, 1_000, 0.01  # the paper's protocol (section H.2)
STEPS = 32
LEVELS = torch.logspace(math.log10(0.002), math.log10(80), 64, dtype=torch.float64)

ROOT = Path(__file__).resolve().parent.parent
BASE, TURNS = "56449b1", 3  # the commit of the figures to beat; how often each tree has its turn


def workloads(folder):
    """Name -> function without arguments: the same work with the package of either tree."""
    try:
        from entropic.images.data import fashion_mnist
        from entropic.images.metrics import extract
        from entropic.images.networks import load_network, load_snapshot
    except ImportError:  # the names of `BASE`
        from entropic.data import fashion_mnist
        from entropic.metrics import extract
        from entropic.networks import load_network, load_snapshot

    generator = torch.Generator().manual_seed(0)

    def normal(*shape, dtype=torch.float64):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    work = {}
    kernel, test = GaussianMixture.isotropic(normal(PATHS, 1), KERNEL), normal(TEST_POINTS, 1)
    work["kernel density, 1,000 points of 10,000"] = partial(kernel.log_density, test)

    points, paths = GaussianMixture.points(normal(15)), normal(PATHS, 1)
    work["denoiser, 15 points on a line, 10,000 rows"] = partial(points.denoiser, paths, 0.3)
    work["error curve, 15 points on a line"] = partial(points.eps2, LEVELS)

    images, labels = fashion_mnist("train", "embedded")
    mixture = GaussianMixture.fit_low_rank(images, labels, 16, shared_noise=True).reduced()[0]
    for sigma in (0.01, 0.5, 5.0):
        x = mixture.sample(1000, generator) + sigma * normal(1000, mixture.dim)
        work[f"denoiser, images, sigma = {sigma:g}"] = partial(mixture.denoiser, x, sigma)

    variances = torch.arange(1, 101, dtype=torch.float64) ** -1.5
    for solver, counts in (("dpmpp_2m", (8, 16, 32)), ("heun", (8,)), ("ddim", (16,))):
        for n in counts:
            search = partial(gaussian_optimal_sigmas, variances, n, solver, "w2", free_end=True)
            work[f"search with a free end, {solver}, n = {n}"] = search

    narrow = GaussianMixture.isotropic(torch.linspace(-1.6, 1.6, 15, dtype=torch.float64), 0.05)
    sigmas = rescaled_sigmas(16, ErrorCurve(LEVELS, narrow.eps2(LEVELS)))
    work["law on a line, deterministic, n = 16"] = partial(deterministic_law, narrow, sigmas)
    work["law on a line, stochastic, n = 16"] = partial(stochastic_law, narrow, sigmas)

    grey = torch.randint(0, 256, (64, 1, 28, 28), generator=generator, dtype=torch.uint8)
    work["features of 64 images, efficientnet-lite0"] = partial(extract, grey, "efficientnet-lite0")

    network, label = load_network("fashion-mnist"), torch.arange(16) % 10
    x = normal(16, 1, 28, 28, dtype=torch.float32)

    @torch.inference_mode()
    def call():
        return network(x, 1.0, label)

    work["small network, 16 images"] = call
    snapshot = Path(folder, "snapshot.pkl")
    if snapshot.is_file():
        cache = tempfile.mkdtemp(dir=folder)
        work["snapshot read for the first time"] = lambda: load_snapshot(
            snapshot, cache=tempfile.mkdtemp(dir=folder)
        )
        work["snapshot loaded again"] = partial(load_snapshot, snapshot, cache=cache)
    return work


def measured(folder):
    """Seconds of processor time of every workload: the median of three once warm, the first where that is long."""
    found = {}
    for name, work in workloads(folder).items():
        seconds = []
        while len(seconds) < 4 and sum(seconds) < 1:
            begin = time.process_time()
            work()
            seconds.append(time.process_time() - begin)
        found[name] = statistics.median(seconds[1:] or seconds)
    return found


def unpacked(folder):
    """The tree of `BASE` in `folder`; None where the repository's history is absent."""
    command = ["git", "-C", str(ROOT), "archive", BASE, "entropic", "notebooks", "book"]
    try:
        archive = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return Path(folder)


def run_in(tree, *words):
    """Run Python with the package of `tree`; its output, and the processor seconds of it and its children."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tree), str(tree / "notebooks")])}
    environment["OMP_NUM_THREADS"] = "1"
    before = os.times()
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, cwd=tree, stdout=subprocess.PIPE, text=True
    )
    after = os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} failed in {tree}:\n{done.stdout}")
    return done.stdout, sum(after[2:4]) - sum(before[2:4])


def against_base(notebook=None):
    """Print this tree's processor seconds, those of `BASE`, and how many times faster this tree is."""
    with tempfile.TemporaryDirectory() as folder:
        old = unpacked(Path(folder, "old"))
        if old is None:
            print(f"No comparison with {BASE}: git or the repository's history is absent here.\n", flush=True)
            return
        write_snapshot(Path(folder, "snapshot.pkl"))
        seconds = {old: [], ROOT: []}
        print("The two trees take turns, of about half a minute each.", flush=True)
        with tqdm(total=2 * TURNS, desc="turns", unit="turn", disable=None) as bar:
            for turn, tree in itertools.product(range(TURNS), seconds):
                said, _ = run_in(tree, Path(__file__).resolve(), "--measure", folder)
                found = json.loads(said.splitlines()[-1])
                if notebook and not turn:
                    book = Path(tempfile.mkdtemp(dir=folder))
                    words = [tree / "notebooks" / "run.py", "run", notebook, "--book", book]
                    found[f"notebook {notebook}"] = run_in(tree, *words)[1]
                seconds[tree].append(found)
                bar.update()
        print(f"Processor seconds against commit {BASE}, medians of {TURNS} turns")
        print(f"{'':<46}{'then':>11}{'now':>11}{'times faster':>14}")
        for name in seconds[ROOT][0]:
            then, now = (
                statistics.median(found[name] for found in seconds[tree] if name in found) for tree in seconds
            )
            print(f"{name:<46}{then:>10.4f}s{now:>10.4f}s{then / now:>13.2f}x")
        print(flush=True)


def write_snapshot(path):
    """A pickle as NVIDIA publishes them, of a network with random weights."""
    from entropic.images.networks.edm2 import Precond
    from tests.images.networks import snapshots

    kwargs = {"img_resolution": 16, "img_channels": 4, "label_dim": 10, "model_channels": 64}
    kwargs |= {"channel_mult": [1, 2], "num_blocks": 2, "attn_resolutions": [8]}
    path.write_bytes(snapshots.pickled(snapshots.snapshot(Precond(**kwargs), kwargs)))


def protocol(mixture, sigmas, halfwidth, generator):
    """One Monte-Carlo estimate of KL(data || generated), as the paper makes it."""
    start = sigmas[0] * torch.randn(PATHS, 1, generator=generator, dtype=torch.float64)
    samples = sample_ddim_stochastic(mixture.denoiser, start, sigmas, generator=generator)
    if mixture.noise.min() == 0:
        counts = ((samples - mixture.means[:, 0]).abs() <= halfwidth).sum(0).clamp_min(0.5)
        return (mixture.weights * (mixture.weights * PATHS / counts).log()).sum().item()
    test = mixture.sample(TEST_POINTS, generator)
    kernel = GaussianMixture.isotropic(samples, KERNEL)
    log_estimate = torch.cat([kernel.log_density(part) for part in test.split(100)])
    return (mixture.log_density(test) - log_estimate).mean().item()


def exact(mixture, sigmas, halfwidth, resolution=1.0):
    """The same divergence from the exact law."""
    law = stochastic_law(mixture, sigmas, resolution=resolution)
    return float(law.kl(mixture) if mixture.noise.min() > 0 else law.kl_bins(mixture, halfwidth))


def against_monte_carlo():
    """Time and error of both, on 15 points and 15 Gaussians; the exact law's error is its change under refinement."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-1.6, 1.6, 15, dtype=torch.float64)
    x = x + 0.05 * torch.randn(15, generator=generator, dtype=torch.float64)
    halfwidth = float(x.sort().values.diff().min() / 2)
    print(f"Exact law against the paper's protocol: stochastic DDIM, rescaled schedule, {STEPS} steps,")
    print(f"{REPEATS} runs of {PATHS} paths, error of the protocol = root mean square over its runs")
    print(
        f"{'data':<28}{'KL exact':>11}{'RMS error':>11}{'time ratio':>12}{'error ratio':>13}{'of the mean':>13}"
    )
    for name, mixture in {
        "15 points": GaussianMixture.points(x),
        "15 Gaussians, width 0.02": GaussianMixture.isotropic(x, 0.02),
        "15 Gaussians, width 0.3": GaussianMixture.isotropic(x, 0.3),
    }.items():
        sigmas = rescaled_sigmas(STEPS, ErrorCurve(LEVELS, mixture.eps2(LEVELS)))
        exact(mixture, sigmas, halfwidth)  # once, so that nothing is loaded while the clock runs
        begin = time.perf_counter()
        value = exact(mixture, sigmas, halfwidth)
        exact_time = time.perf_counter() - begin
        error = max(abs(value - exact(mixture, sigmas, halfwidth, 2.0)), 1e-16)
        begin = time.perf_counter()
        turns = tqdm(range(REPEATS), desc=name, unit="run", disable=None, leave=False)
        runs = torch.tensor([protocol(mixture, sigmas, halfwidth, generator) for _ in turns])
        protocol_time = time.perf_counter() - begin
        rms = (runs - value).square().mean().sqrt().item()
        mean_error = abs(runs.mean().item() - value)
        ratios = f"{protocol_time / exact_time:>11.0f}x{error / rms:>13.1e}{error / mean_error:>13.1e}"
        print(f"{name:<28}{value:>11.4g}{rms:>11.2g}{ratios}", flush=True)


def points_needed(times, exact, tolerance=1e-3, largest=2**14):
    """The fewest of 8, 12, 16, 24, 32, ... levels whose time is within `tolerance` of the exact one throughout."""
    for power in range(6, 2 * int(math.log2(largest)) + 1):
        n = 2 ** (power // 2) * (2 + power % 2) // 2
        sigma = torch.logspace(math.log10(0.002), math.log10(80), n, dtype=torch.float64)
        if n > largest:
            break
        time_ = times(sigma)
        reference = exact(time_.sigma)
        if ((time_.phi - reference).abs().max() / reference[-1]) <= tolerance:
            return n
    return None


def integration_rules():
    """Levels needed for 0.1% of phi, by the spline in log sigma and by the left sum over the same levels."""
    c = 0.5
    mixture = GaussianMixture.isotropic([-1.0, 0.2, 0.8], [0.1, 0.3, 0.02]).standardised()
    dense = torch.logspace(math.log10(0.002), math.log10(80), 4097, dtype=torch.float64)
    reference = ErrorCurve(dense, mixture.eps2(dense))
    cases = {
        "N(0, 1/4), rescaled": (
            lambda s: c**2 * s**2 / (c**2 + s**2),
            lambda s: c * (torch.atan(s / c) - math.atan(0.002 / c)),
            "rescaled",
        ),
        "three Gaussians, rescaled": (mixture.eps2, reference.rescaled().phi_at, "rescaled"),
        "three Gaussians, entropic": (mixture.eps2, reference.entropic().phi_at, "entropic"),
    }
    print("\nLevels needed for 0.1% of phi, log-spaced from 0.002 to 80")
    print(f"{'curve':<28}{'spline':>9}{'left sum':>11}{'ratio':>9}")
    for name, (eps2, exact_phi, kind) in cases.items():
        needed = [
            points_needed(lambda s, rule=rule: ErrorCurve(s, eps2(s)).time(kind, rule), exact_phi)  # noqa: B023
            for rule in ("spline", "left")
        ]
        ratio = f"{needed[1] / needed[0]:.0f}x" if all(needed) else "-"
        print(
            f"{name:<28}"
            + "".join(f"{n or '>16384':>{w}}" for n, w in zip(needed, (9, 11), strict=True))
            + f"{ratio:>9}"
        )


def placing(n=32, directions=1000):
    """Seconds to place a grid for many directions: the density, and the exact optimum, against goals."""
    variances = torch.arange(1, directions + 1, dtype=torch.float64) ** -1.0
    parts = variances * LEVELS[:, None].square() / (variances + LEVELS[:, None].square())
    curve = ErrorCurve(LEVELS, parts.sum(1), dim=directions, directions=parts)
    print(f"\nPlacing {n} levels for {directions} directions, one core (goals: density 0.05 s, optimum 5 s)")
    print(f"{'solver':<28}{'density':>12}{'goal/time':>11}{'optimum':>12}{'goal/time':>11}")
    for solver in ("ddim", "ddim_stochastic", "heun", "dpmpp_2m"):
        row = f"{solver:<28}"
        for place, goal in (
            (lambda: solver_aware_sigmas(curve, n, solver, "w2", method="density"), 0.05),  # noqa: B023
            (lambda: gaussian_optimal_sigmas(variances, n, solver, "w2"), 5.0),  # noqa: B023
        ):
            begin = time.perf_counter()
            place()
            taken = time.perf_counter() - begin
            row += f"{taken:>11.3f}s{goal / taken:>10.1f}x"
        print(row, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measured(sys.argv[2])))
        sys.exit()
    started = time.perf_counter()
    against_base(*sys.argv[1:])
    placing()
    against_monte_carlo()
    integration_rules()
    print(f"\nAll this took {time.perf_counter() - started:.0f} s.")
