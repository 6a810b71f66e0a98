"""The best density on a power law: EDM's family within its condition, and where the exponent stays beyond it."""

import math

import pytest
import torch

from entropic import placement
from entropic.solvers import find_solver


def exponent(solver, asked, decay=1.0):
    """1 / rho of the best density, at weights for which the formula gives `asked`."""
    solver = find_solver(solver)
    alpha = (asked * (2 * solver.order + 1) + 2 / decay) / 2
    sigma = torch.logspace(-6, 6, 601, dtype=torch.float64)
    c = torch.logspace(-5, 5, 401, dtype=torch.float64)
    u = 1 / (1 + sigma[:, None].square() / c.square())
    time = placement._density_time(sigma, u, c ** (2 * alpha - 2 / decay), solver, 1e-6, 1e6)
    middle = torch.tensor([0.3, 3.0], dtype=torch.float64)
    return ((time.rate_at(middle) * middle).log().diff() / math.log(10)).item()


# The power (p + 1)(2 alpha - 2 / a) / (2 p + 1) lies between -2 and 2 where |k(u)| falls like c^2 and c^-2, and in
# wider limits where it falls faster: in 1 / rho, -1 to 1 for DDIM, -2/3 to 2/3 for 2M, -2/3 to 4/3 for Heun.
@pytest.mark.parametrize(
    ("solver", "asked"),
    [
        *(("ddim", x) for x in (-0.5, 1 / 7, 0.8)),
        *(("ddim_stochastic", x) for x in (-1.5, 1 / 7, 0.8)),
        *(("heun", x) for x in (-0.4, 1 / 7, 1.0)),
        *(("dpmpp_2m", x) for x in (-0.4, 1 / 7, 0.5)),
    ],
)
def test_within_the_condition_the_exponent_is_the_formula_s(solver, asked):
    assert exponent(solver, asked) == pytest.approx(asked, abs=0.01)


@pytest.mark.parametrize(
    ("solver", "asked", "limit"),
    [
        *(("ddim", x, 1.0) for x in (1.5, 2.0)),
        ("ddim", -1.5, -1.0),
        ("ddim_stochastic", 1.5, 1.0),
        *(("dpmpp_2m", x, 2 / 3) for x in (1.0, 1.5)),
        ("dpmpp_2m", -1.5, -2 / 3),
        ("heun", -1.5, -2 / 3),
    ],
)
def test_beyond_the_condition_the_exponent_stays_at_its_end(solver, asked, limit):
    assert exponent(solver, asked) == pytest.approx(limit, abs=0.01)
