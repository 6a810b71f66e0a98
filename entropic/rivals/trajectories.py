"""Schedules from paths of the denoiser: states at sigma_max are walked down a fine grid, then levels are chosen."""

from itertools import pairwise

import torch

from entropic import _check
from entropic._check import integer, positive
from entropic.noise import flow_matching
from entropic.rivals.model import Placed, cheapest_path, equal_shares, euler, frame
from entropic.schedules import edm_sigmas, ending_in_zero
from entropic.solvers import DDIM
from entropic.times import cumulative
from entropic.types import Denoiser

_CHUNK = 2**21  # numbers in a block of landings: 16 MB of float64


def gits_sigmas(
    n,
    denoiser: Denoiser,
    x: torch.Tensor,
    *,
    sigma_min=0.002,
    sigma_max=80.0,
    levels=61,
    rho=7.0,
    discount=1.15,
    batch=None,
) -> Placed:
    """GITS: n levels of a fine grid, by a dynamic programme on how paths curve. It is meant for Euler and iPNDM.

    x (N, ...) are states at sigma_max, 256 in the source. The teacher is Euler over `levels` levels of EDM, which costs
    (levels - 1) N calls. A jump i -> j is one Euler step from the teacher's state at i. It costs the distance of where
    it lands from the chord (the line from the first to the last state), less the teacher's own distance at j, averaged
    over x. V[j, k] = min_i C_ji + discount V[i, k-1] chooses n levels, both ends among them. ValueError: see
    `entropic.rivals`. Source: Chen et al. (2024), On the Trajectory Regularity of ODE-based Diffusion Sampling, and its
    public code, whose teacher is iPNDM.
    """
    n, discount = integer("n", n, 2), positive("discount", discount)
    levels = integer("levels", levels, n)
    grid = edm_sigmas(levels, sigma_min, sigma_max, rho)[:-1]
    sigmas = grid.tolist()
    model, states, denoised = euler(denoiser, x, batch, sigmas)
    states = states.flatten(2)
    end = states[-1]
    chord = end - states[0]
    chord = chord / chord.norm(dim=1, keepdim=True).clamp_min(torch.finfo(chord.dtype).tiny)

    def across(state):
        """From the chord to a state. The map is affine, so an Euler step may be taken before it or after it."""
        vector = end - state
        return vector - (vector * chord).sum(-1, keepdim=True) * chord

    own = across(states)
    distance = own.norm(dim=2).double().mean(1).cpu()
    cost = torch.full((levels, levels), torch.inf, dtype=torch.float64)
    for i, answer in enumerate(denoised):
        answer = across(answer.flatten(1))
        for later in torch.arange(i + 1, levels).split(max(1, _CHUNK // end.numel())):
            landed = _jump(own[i], answer, sigmas[i], grid[later])
            cost[i, later] = landed.norm(dim=2).double().mean(1).cpu() - distance[later]
    _check.check_finite("the denoiser's cost", cost[cost < torch.inf])
    path = cheapest_path(discount**step * cost for step in range(n - 1))
    return Placed(ending_in_zero(grid[path]), model.calls)


def oss_sigmas(
    n,
    denoiser: Denoiser,
    x: torch.Tensor,
    *,
    sigma_min=0.002,
    sigma_max=80.0,
    levels=200,
    rho=7.0,
    batch=None,
) -> Placed:
    """OSS: the levels whose n Euler steps end nearest to a fine teacher, by a dynamic programme. Meant for Euler.

    x (N, ...) are states at sigma_max. The teacher is Euler over `levels` levels of EDM and 0; its states are all kept.
    The student may begin at any level sigma of the teacher, with the state (sigma / sigma_max) x: there the sampler
    draws N(0, sigma^2 I). It reaches every level in k steps, from the state that k - 1 steps left at some level above.
    Of these ways the one that lands nearest to the teacher, by the squared error averaged over x, is kept. That is
    greedy (a state that is not the nearest may end better), so that only n = 2 gives the best of all choices. The
    first level is sigma_max or below, the last one sigma_min or above. It takes
    N (levels + n (levels - n + 1) - 1) calls. ValueError: see `entropic.rivals`.
    Source: Pei et al. (2025), Optimal Stepsize for Diffusion Sampling, and its public code. What differs: the code
    searches for one sample at a time and takes medians over samples, which on data of separate modes ends further off
    than one search for all; it lets fewer steps win, which they did not do here; its frame is flow matching, and its
    teacher has 200 uniform flow times.
    """
    n = integer("n", n, 2)
    levels = integer("levels", levels, n)
    grid = edm_sigmas(levels, sigma_min, sigma_max, rho)
    sigmas = grid.tolist()
    model, teacher, denoised = euler(denoiser, x, batch, sigmas)
    reached = {i: model.x * (sigmas[i] / sigmas[0]) for i in range(levels - n + 1)}
    choices = []
    for step in range(n):
        remaining = n - step - 1
        first, last = step + 1 if remaining else levels, levels - remaining
        least = torch.full((levels + 1,), torch.inf, dtype=torch.float64)
        choice = torch.full((levels + 1,), -1)
        answers = {}
        for i, state in reached.items():
            answers[i] = model(state, sigmas[i]) if step or i else denoised[0]
            start, stride = max(first, i + 1), max(1, _CHUNK // state.numel())
            for part in (slice(at, min(at + stride, last + 1)) for at in range(start, last + 1, stride)):
                missed = teacher[part] - _jump(state, answers[i], sigmas[i], grid[part])
                error = missed.flatten(1).square().double().mean(1).cpu()
                nearer = error < least[part]
                least[part] = torch.where(nearer, error, least[part])
                choice[part] = torch.where(nearer, i, choice[part])
        _check.check_finite("the denoiser's error", least[first : last + 1])
        choices.append(choice.tolist())
        reached = {
            j: _jump(reached[i], answers[i], sigmas[i], sigmas[j])
            for j, i in enumerate(choices[-1])
            if i >= 0
        }
    path = [levels]
    for choice in reversed(choices):
        path.append(choice[path[-1]])
    return Placed(grid[path[::-1]], model.calls)


def _jump(state, denoised, sigma, following):
    """Where an Euler step lands; for levels `following` (m,), an array (m, *state.shape)."""
    if isinstance(following, torch.Tensor):
        following = following.to(state).reshape(-1, *[1] * state.ndim)
    return DDIM.step(lambda *_: denoised, state, sigma, following).mean


def sharpeuler_sigmas(
    n,
    denoiser: Denoiser,
    x: torch.Tensor,
    *,
    sigma_min=0.002,
    sigma_max=80.0,
    process=None,
    levels=128,
    window=5,
    power=0.5,
    batch=None,
) -> Placed:
    """SharpEuler: the density of levels in t is a power of the mean ||dv/dt|| along a pilot run. Meant for Euler in t.

    x (N, ...) are states at sigma_max, in the frame s = 1. v is the probability-flow velocity dx_t/dt of `process`,
    flow matching unless given. (There, Euler in t is deterministic DDIM, too, yet the density differs from that in
    sigma, because absolute errors differ.) The pilot is Euler over `levels` levels of EDM. The differences of v are
    averaged over x, then over `window` (odd) intervals, then raised to `power`. It takes N levels calls.
    ValueError: see `entropic.rivals`. Source: Gupta et al. (2026), Sharpen Your Flow.
    """
    n, levels = integer("n", n, 2), integer("levels", levels, 3)
    power = positive("power", power)
    window = integer("window", window, 1)
    if window % 2 == 0:
        raise ValueError(f"window = {window}; an average centred on an interval takes an odd number of them")
    process = frame(process, flow_matching)
    grid = edm_sigmas(levels, sigma_min, sigma_max)[:-1]
    time = process.t(grid)
    model, states, denoised = euler(denoiser, x, batch, grid.tolist())
    denoised.append(model(states[-1], grid[-1].item()))
    s, drift, scale = process.s(time), process.drift(time), process.s(time) * process.sigma_rate(time)
    velocities = (
        (drift[i] * s[i]).item() * states[i] + scale[i].item() * ((states[i] - answer) / grid[i].item())
        for i, answer in enumerate(denoised)
    )
    change = [(b - a).flatten(1).norm(dim=1).double().mean().cpu() for a, b in pairwise(velocities)]
    half = window // 2
    total = cumulative((torch.stack(change) / -time.diff())[:, None])[:, 0]
    at = torch.arange(levels - 1)
    left, right = (at - half).clamp_min(0), (at + half + 1).clamp_max(levels - 1)
    smoothed = (total[right] - total[left]).clamp_min(0) / (right - left)
    return Placed(equal_shares(n, grid, -time.diff() * smoothed**power), model.calls)
