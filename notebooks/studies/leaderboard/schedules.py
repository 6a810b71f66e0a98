"""Every schedule that is compared: the rivals, and ours by each route."""

import functools

import torch

from entropic import rivals
from entropic.gaussian import implied_spectrum
from entropic.placement import gaussian_optimal_sigmas, plan, solver_aware_sigmas
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
CALLS = 8192  # evaluations of the denoiser that a search may take for up to 16 levels; in proportion for more


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


def _measured(work, n, solver, space=None):
    """Ours, from the solver's own paths: of pilots whose noises no work is measured on.

    space: of `work.maps`, where the distances of the paths' ends are taken; that of the data unless given.
    """
    if SOLVERS[solver].stochastic:
        raise ValueError(f"solver = {solver!r}: a stochastic solver has no path to measure")
    generator = torch.Generator().manual_seed(2**20)
    x = work.data(32, generator)
    x = x + HIGH * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    ends = {"sigma_min": LOW, "sigma_max": HIGH, "free_start": True, "free_end": True}
    transform = None if space is None else work.maps[space]
    found = plan(n, work.denoiser, SOLVERS[solver], x=x, curve=work.curve, transform=transform, **ends)
    return rivals.Placed(found.sigmas, found.calls)


def _tuned(work, n, solver, rho=7.0, metric="kl", alpha=None):
    """EDM's family, tuned on what ours knows: the spectrum that the error curve implies."""
    data, name = implied_spectrum(work.curve), SOLVERS[solver].name
    return rivals.tuned_edm_sigmas(
        n, data.variances, name, metric, LOW, HIGH, alpha=alpha, multiplicity=data.multiplicity, rho=rho
    )


def rows(n, calls):
    """How many samples a search for n levels may have that evaluates the denoiser `calls` times for each."""
    return max(1, int(CALLS * max(1.0, n / 16) / calls))


def _from_start(function, work, n, calls):
    """The schedule of a search that runs the denoiser, `calls` times a sample, from noisy states at HIGH."""
    generator = torch.Generator().manual_seed(2**20)
    x = work.data(rows(n, calls), generator)
    x = x + HIGH * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return function(n, work.denoiser, x, sigma_min=LOW, sigma_max=HIGH)


def _from_data(function, work, n, calls):
    """The schedule of a search that adds noise to data itself, and runs the denoiser `calls` times a sample."""
    generator = torch.Generator().manual_seed(2**20)
    data = work.data(rows(n, calls), generator)
    return function(n, work.denoiser, data, generator, sigma_min=LOW, sigma_max=HIGH)


def _gits(work, n, solver):
    # GITS takes n levels of a fine grid of 61; the grid is finer where n is larger than 30.
    levels = max(61, 2 * n)
    return _from_start(functools.partial(rivals.gits_sigmas, levels=levels), work, n, levels - 1)


def _oss(work, n, solver):
    # The teacher's levels: a search of few levels has more samples, one of many a finer choice.
    levels = max(61, 2 * n)
    calls = levels + n * (levels - n + 1) - 1
    return _from_start(functools.partial(rivals.oss_sigmas, levels=levels), work, n, calls)


# Name -> function(work, n, solver) that returns sigmas or `rivals.Placed`. All run from HIGH to LOW, with these
# exceptions: "simple" and "Beta" take the levels of a table of training levels, "OSS", "measured" and "free start"
# choose their first and last level, and ours and the tuned EDMs choose their last level.
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
    "OSS": _oss,
    "SharpEuler": lambda work, n, solver: _from_start(rivals.sharpeuler_sigmas, work, n, 128),
    "COS": lambda work, n, solver: _from_data(rivals.cos_sigmas, work, n, 2 * 63 * 3),
    "CRS": lambda work, n, solver: _from_data(rivals.crs_sigmas, work, n, 128),
}
# Those that ask nothing of the data.
FORMULAS = ("EDM", "log", "linear", "cosine", "VP", "simple", "Beta", "Laplace", "DMN")
# What a schedule may be made for: KL, W2, or a power alpha of the variance.
GOALS = {"KL": {"metric": "kl"}, "0.5": {"alpha": 0.5}, "0.75": {"alpha": 0.75}, "W2": {"metric": "w2"}}
# Rivals that know what ours know: the goal, too. In a contest each is one rival, made for the same goal as ours.
TUNED = {"EDM, end tuned": 7.0, "EDM, end and rho tuned": None}  # name -> rho
TUNED_FOR = {
    f"{name}, {goal}": functools.partial(_tuned, rho=rho, **GOALS[goal])
    for name, rho in TUNED.items()
    for goal in ("KL", "0.75", "W2")
}
# Ours, from the error curve or from the data's own spectrum, for a goal.
OURS = {
    f"{route}, {name}": functools.partial(function, **goal)
    for route, function in (("curve", _aware), ("spectrum", _spectrum))
    for name, goal in GOALS.items()
}
for _goal in ("KL", "0.75", "W2"):
    OURS[f"curve, {_goal}, fixed end"] = functools.partial(_aware, free_end=False, **GOALS[_goal])
for _goal in ("KL", "0.75"):
    OURS[f"curve, {_goal}, no spread"] = functools.partial(_aware, spread=0, **GOALS[_goal])
for _goal in ("KL", "W2"):  # right where the mean of the data is 0
    OURS[f"curve, {_goal}, free start"] = functools.partial(_aware, free_start=True, **GOALS[_goal])
OURS["measured"] = _measured
# The same, where a feature network sees the ends: works that have the map alone.
MAPPED = {f"measured, {space}": space for space in ("FD-FashionCNN", "FD-EffNetLite0")}
OURS |= {name: functools.partial(_measured, space=space) for name, space in MAPPED.items()}
SCHEDULES = RIVALS | TUNED_FOR | OURS


def of_gaussians(schedule):
    """Whether it is measured on Gaussian data: not for other goals than KL and W2, nor without the spread, 0 there."""
    return not {"0.5", "0.75", "no spread"} & set(schedule.split(", "))


def asks(schedule, work, solver):
    """What a schedule depends on besides the number of levels: cells for which this is equal share one search."""
    if schedule in FORMULAS:
        return None
    if schedule.startswith("spectrum"):
        return solver, tuple(work.variances.tolist()), tuple(work.counts.tolist())
    return work.name, None if schedule in RIVALS else solver


# Commits that measured lines of the record before searches had one budget, before DMN and OSS were as their authors run
# them, before a schedule that begins at another level than HIGH began there with noise of that level, and before every
# curve got the recursion with spread scales.
_BEFORE = frozenset(
    "056b95041410 3118d38bce42 3197c6c1244a 3e4060d4026f 4d136b35a948 500410cc02ee 60274a2b53f7 70cd5e5b257e "
    "7b10a3b27125 8de7691f69c8-dirty c97a62c0a0a6 d64fd9fc8326".split()
)


def outdated(group, schedule, commit):
    """Whether a line of the record counts no more: its schedule or its measure has changed since, or is not asked."""
    if group.startswith("Gaussian") and not of_gaussians(schedule):
        return True
    elsewhere = schedule in ("simple", "Beta") and group.startswith("image mixture")
    changed = schedule in ("DMN", "GITS", "OSS", "SharpEuler", "COS", "CRS") or schedule.startswith("curve")
    return commit in _BEFORE and (changed or elsewhere)
