"""Every schedule that is compared: the rivals, and ours by each route."""

import functools

import torch

from entropic import rivals
from entropic.placement import gaussian_optimal_sigmas, solver_aware_sigmas
from entropic.schedules import (
    cosine_sigmas,
    edm_sigmas,
    entropic_sigmas,
    linear_sigmas,
    log_sigmas,
    rescaled_sigmas,
    vp_sigmas,
)
from studies.leaderboard.names import SOLVERS

LOW, HIGH = 0.002, 80.0  # the last noise level above 0, and the first


def _aware(work, n, solver, free_end=True, **goal):
    return solver_aware_sigmas(
        work.curve,
        n,
        SOLVERS[solver].name,
        sigma_min=LOW,
        sigma_max=HIGH,
        multiplicity=work.multiplicity,
        free_end=free_end,
        **goal,
    )


def _recursion(work, n, solver, **goal):
    if SOLVERS[solver].order == 1:
        raise ValueError(f"solver = {solver!r}: its default is the recursion; measure the default instead")
    return _aware(work, n, solver, method="recursion", **goal)


def _spectrum(work, n, solver, metric="kl", alpha=None):
    return gaussian_optimal_sigmas(
        work.variances,
        n,
        SOLVERS[solver].name,
        metric,
        LOW,
        HIGH,
        alpha=alpha,
        multiplicity=work.counts,
        free_end=True,
    )


def _from_start(function, work, n, solver, count=256):
    """The schedule of a search that runs the denoiser from `count` noisy states at HIGH."""
    generator = torch.Generator().manual_seed(2**20)
    x = work.data(count, generator)
    x = x + HIGH * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return function(n, work.denoiser, x, sigma_min=LOW, sigma_max=HIGH)


def _from_data(function, work, n, solver, count=256):
    """The schedule of a search that adds noise to `count` data itself."""
    generator = torch.Generator().manual_seed(2**20)
    return function(n, work.denoiser, work.data(count, generator), generator, sigma_min=LOW, sigma_max=HIGH)


def _gits(work, n, solver):
    # GITS takes n levels of a fine grid of 61; the grid is finer where n is larger than 30.
    return _from_start(functools.partial(rivals.gits_sigmas, levels=max(61, 2 * n)), work, n, solver)


# Name -> function(work, n, solver) that returns sigmas or `rivals.Placed`. All run from HIGH to LOW, with these
# exceptions: "simple" and "Beta" take the levels of a table of training levels, and "OSS" and ours choose their last
# level.
RIVALS = {
    "EDM": lambda work, n, solver: edm_sigmas(n, LOW, HIGH),
    "log": lambda work, n, solver: log_sigmas(n, LOW, HIGH),
    "linear": lambda work, n, solver: linear_sigmas(n, LOW, HIGH),
    "cosine": lambda work, n, solver: cosine_sigmas(n, LOW, HIGH),
    "VP": lambda work, n, solver: vp_sigmas(n, LOW, HIGH),
    "simple": lambda work, n, solver: rivals.simple_sigmas(n),
    "Beta": lambda work, n, solver: rivals.beta_sigmas(n),
    "Laplace": lambda work, n, solver: rivals.laplace_sigmas(n, LOW, HIGH),
    "entropic": lambda work, n, solver: entropic_sigmas(n, work.curve, LOW, HIGH),
    "rescaled": lambda work, n, solver: rescaled_sigmas(n, work.curve, LOW, HIGH),
    "AYS": lambda work, n, solver: rivals.ays_sigmas(n, work.curve, LOW, HIGH),
    "DMN": lambda work, n, solver: rivals.dmn_sigmas(n, LOW, HIGH),
    "GITS": _gits,
    "OSS": functools.partial(_from_start, functools.partial(rivals.oss_sigmas, levels=100), count=32),
    "SharpEuler": functools.partial(_from_start, rivals.sharpeuler_sigmas),
    "COS": functools.partial(_from_data, rivals.cos_sigmas),
    "CRS": functools.partial(_from_data, rivals.crs_sigmas),
}
# Those that ask nothing of the data.
FORMULAS = ("EDM", "log", "linear", "cosine", "VP", "simple", "Beta", "Laplace", "DMN")
# Ours, from the error curve or from the data's own spectrum, for a goal: KL, W2, or a power alpha of the variance.
OURS = {
    f"{route}, {name}": functools.partial(function, **goal)
    for route, function in (("curve", _aware), ("spectrum", _spectrum))
    for name, goal in (
        ("KL", {"metric": "kl"}),
        ("0.5", {"alpha": 0.5}),
        ("0.75", {"alpha": 0.75}),
        ("W2", {"metric": "w2"}),
    )
}
OURS["curve, 0.75, fixed end"] = functools.partial(_aware, alpha=0.75, free_end=False)
OURS["curve, KL, recursion"] = functools.partial(_recursion, metric="kl")
OURS["curve, 0.75, recursion"] = functools.partial(_recursion, alpha=0.75)
SCHEDULES = RIVALS | OURS


def asks(schedule, work, solver):
    """What a schedule depends on besides the number of levels: cells for which this is equal share one search."""
    if schedule in FORMULAS:
        return None
    if schedule.startswith("spectrum"):
        return solver, tuple(work.variances.tolist()), tuple(work.counts.tolist())
    return work.name, solver if schedule in OURS else None
