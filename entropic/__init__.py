"""Entropic time schedules for diffusion models: estimate an error curve, place the steps, sample, measure.

A public name is imported when it is first used: `import entropic.files` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from entropic._version import version as __version__

if TYPE_CHECKING:  # for type checkers, and for whoever reads which module a name is of
    from entropic import adapters, noise
    from entropic.curve import ErrorCurve
    from entropic.exact import deterministic_law, stochastic_law
    from entropic.gaussian import KL, W2, Weighted, gaussian_kl, gaussian_law, gaussian_w2
    from entropic.mixtures import GaussianMixture
    from entropic.placement import Plan, Policy, gaussian_optimal_sigmas, plan, solver_aware_sigmas
    from entropic.schedules import (
        arctan_sigmas,
        cosine_sigmas,
        edm_sigmas,
        entropic_sigmas,
        linear_sigmas,
        log_sigmas,
        rescaled_sigmas,
        spectral_sigmas,
        uniform_sigmas,
        vp_sigmas,
    )
    from entropic.solvers import (
        Solver,
        find_solver,
        sample_ddim,
        sample_ddim_stochastic,
        sample_dpmpp_2m,
        sample_heun,
    )
    from entropic.times import Time

__all__ = [
    "KL",
    "W2",
    "ErrorCurve",
    "GaussianMixture",
    "Plan",
    "Policy",
    "Solver",
    "Time",
    "Weighted",
    "__version__",
    "adapters",
    "arctan_sigmas",
    "cosine_sigmas",
    "deterministic_law",
    "edm_sigmas",
    "entropic_sigmas",
    "find_solver",
    "gaussian_kl",
    "gaussian_law",
    "gaussian_optimal_sigmas",
    "gaussian_w2",
    "linear_sigmas",
    "log_sigmas",
    "noise",
    "plan",
    "rescaled_sigmas",
    "sample_ddim",
    "sample_ddim_stochastic",
    "sample_dpmpp_2m",
    "sample_heun",
    "solver_aware_sigmas",
    "spectral_sigmas",
    "stochastic_law",
    "uniform_sigmas",
    "vp_sigmas",
]

_NAMES = {
    "adapters": (),
    "curve": ("ErrorCurve",),
    "exact": ("deterministic_law", "stochastic_law"),
    "gaussian": ("KL", "W2", "Weighted", "gaussian_kl", "gaussian_law", "gaussian_w2"),
    "mixtures": ("GaussianMixture",),
    "placement": ("Plan", "Policy", "gaussian_optimal_sigmas", "plan", "solver_aware_sigmas"),
    "schedules": (
        "arctan_sigmas",
        "cosine_sigmas",
        "edm_sigmas",
        "entropic_sigmas",
        "linear_sigmas",
        "log_sigmas",
        "rescaled_sigmas",
        "spectral_sigmas",
        "uniform_sigmas",
        "vp_sigmas",
    ),
    "solvers": (
        "Solver",
        "find_solver",
        "sample_ddim",
        "sample_ddim_stochastic",
        "sample_dpmpp_2m",
        "sample_heun",
    ),
    "times": ("Time",),
    "noise": (),
}

if not TYPE_CHECKING:  # else a type checker would believe in any name

    def __getattr__(name):
        if name in _NAMES:
            return import_module(f"entropic.{name}")
        for module, names in _NAMES.items():
            if name in names:
                found = globals()[name] = getattr(import_module(f"entropic.{module}"), name)
                return found
        raise AttributeError(f"module 'entropic' has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__, *_NAMES})
