"""Entropic time schedules for diffusion models: estimate an error curve, place the steps, sample, measure."""

from entropic import noise
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
