"""Ratios from one run: placing a grid, exact law against Monte Carlo, rules of integration. `make bench`."""

import math
import time

import torch

from entropic import (
    ErrorCurve,
    GaussianMixture,
    gaussian_optimal_sigmas,
    rescaled_sigmas,
    sample_ddim_stochastic,
    solver_aware_sigmas,
    stochastic_law,
)

PATHS, REPEATS, TEST_POINTS, KERNEL = 10_000, 100, 1_000, 0.01  # the paper's protocol (section H.2)
STEPS = 32
LEVELS = torch.logspace(math.log10(0.002), math.log10(80), 64, dtype=torch.float64)


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
        runs = torch.tensor([protocol(mixture, sigmas, halfwidth, generator) for _ in range(REPEATS)])
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
    placing()
    against_monte_carlo()
    integration_rules()
