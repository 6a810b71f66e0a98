"""What the rivals share: a counted and checked denoiser, states, noise, shares of a sum, and the cheapest path."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from entropic import _check
from entropic.noise import Process
from entropic.progress import progress_bar
from entropic.schedules import ending_in_zero
from entropic.solvers import DDIM


class Placed(NamedTuple):
    """A schedule `sigmas` (n + 1,) and the denoiser `calls` that it took: evaluations of one sample each."""

    sigmas: torch.Tensor
    calls: int


class Model:
    """A denoiser that counts its calls, sees at most `batch` rows at once, and whose answers are checked.

    `x` (N, ...) are the caller's states or data, called `name`; they are kept as float32 where they are shorter. The
    denoiser gets a copy of what it is asked, and its answer is copied: it may write into its argument and reuse its
    own memory. No graph is recorded. ValueError: x that is not floating and finite with two or more dimensions; an
    answer that is no real tensor shaped like the question, or not finite.
    """

    def __init__(self, denoiser, name, x, batch):
        if not callable(denoiser):
            raise ValueError(f"denoiser = {denoiser!r}; pass a function denoiser(x, sigma)")
        if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.ndim < 2 or x.numel() == 0:
            kind = (
                f"{x.dtype} tensor of shape {tuple(x.shape)}"
                if isinstance(x, torch.Tensor)
                else type(x).__name__
            )
            raise ValueError(
                f"{name} = a {kind}; pass a real floating tensor (N, ...), at least one row of one entry"
            )
        x = _check.check_finite(name, x.detach())
        self.denoiser, self.calls = denoiser, 0
        self.x = x.to(torch.promote_types(x.dtype, torch.float32))
        self.batch = len(x) if batch is None else _check.integer("batch", batch, 1)
        self.bar = progress_bar("calls of the denoiser", "row")  # it ends with this object

    def __call__(self, x, sigma):
        self.bar.update(len(x))
        with torch.no_grad():
            return torch.cat([self.answer(rows, sigma) for rows in x.split(self.batch)])

    def answer(self, x, sigma):
        """The answer for all rows at once, with a graph where autograd is on and x asks for one."""
        self.calls += len(x)
        return _check.denoised(self.denoiser(x.clone(), sigma), x, sigma)


def euler(denoiser, x, batch, sigmas):
    """The `Model` of a denoiser, its states (n, N, ...) by deterministic DDIM from x on, and its n - 1 answers."""
    model = Model(denoiser, "x", x, batch)
    states, denoised = [model.x], []
    for sigma, following in pairwise(sigmas):
        move = DDIM.step(model, states[-1], sigma, following)
        states.append(move.mean)
        denoised.append(move.denoised)
    return model, torch.stack(states), denoised


def standard_normal(x, generator):
    """Standard normal noise like x, drawn where the generator lives. ValueError: no torch.Generator."""
    if not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator = {generator!r}; noise is drawn: pass torch.Generator().manual_seed(...)"
        )
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)


def frame(process, default):
    """The process, or `default()` for None. ValueError: anything else."""
    process = default() if process is None else process
    if not isinstance(process, Process):
        raise ValueError(f"process = {process!r}; pass a Process of entropic.noise")
    return process


def root_mean_square(change):
    """sqrt(E||change||^2) over the rows of change (N, ...), float64."""
    return change.flatten(1).square().sum(1).double().mean().sqrt().cpu()


def interpolate(at, knots, values):
    """Linear interpolation of `values` (m,) at the ascending `knots` (m,), float64."""
    return torch.as_tensor(np.interp(at.numpy(), knots.numpy(), values.numpy()))


def between(sigma, sigma_min, sigma_max):
    """The schedule of the levels `sigma` (n,) with its ends set to sigma_max and sigma_min exactly."""
    low, high = _check.sigma_range(sigma_min, sigma_max)
    sigma = sigma.clone()
    sigma[0], sigma[-1] = high, low
    return ending_in_zero(sigma)


def equal_shares(n, grid, increments):
    """The schedule of n levels uniform in the running sum of `increments` (m - 1,) over the descending grid (m,).

    Within a step of the grid, log sigma is linear in the sum. ValueError: increments that are not finite, or all 0.
    """
    _check.check_finite("the measured change", increments)
    total = torch.cat([torch.zeros(1, dtype=torch.float64), increments.cumsum(0)])
    low, high = grid[-1].item(), grid[0].item()
    if not total[-1] > 0:
        raise ValueError(
            f"the denoiser does not change between sigma = {high:g} and {low:g}; widen the range"
        )
    share = torch.linspace(0.0, 1.0, n, dtype=torch.float64) * total[-1]
    return between(interpolate(share, total, grid.log()).exp(), low, high)


def cheapest_path(costs):
    """The path, one index a level, of least total cost; costs[step] (before, after) is infinite where not allowed.

    It starts at index 0 and ends at the last one. A dynamic programme over the steps.
    """
    value, choices = torch.zeros(1, dtype=torch.float64), []
    for step, cost in enumerate(costs):
        value, choice = (value[:, None] + (cost if step else cost[:1])).min(0)
        choices.append(choice)
    path = [len(value) - 1]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return torch.tensor(path[::-1])
