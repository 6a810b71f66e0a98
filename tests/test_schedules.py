"""Schedules: shape and ends of all of them, spacing of each, the Gaussian optimum, range and input checks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entropic.curve import ErrorCurve
from entropic.noise import edm, flow_matching, iddpm, ve_geometric, vp_cosine
from entropic.schedules import (
    arctan_sigmas,
    cosine_sigmas,
    edm_sigmas,
    entropic_sigmas,
    linear_sigmas,
    log_sigmas,
    rescaled_sigmas,
    spectral_sigmas,
    time_sigmas,
    uniform_sigmas,
    vp_sigmas,
)
from entropic.times import Time

F64 = torch.float64


def _gaussian_curve(c=1.0, low=1e-4, high=1e4, n=512):
    sigma = torch.logspace(math.log10(low), math.log10(high), n, dtype=F64)
    return ErrorCurve(sigma, (c * sigma).square() / (sigma.square() + c**2))


def _two_scales(low=1e-4, high=1e4):
    """Gaussian data of standard deviations 2 and 0.1, one direction each."""
    sigma = torch.logspace(math.log10(low), math.log10(high), 512, dtype=F64)[:, None]
    parts = torch.cat([(c * sigma).square() / (sigma.square() + c**2) for c in (2.0, 0.1)], 1)
    return ErrorCurve(sigma[:, 0], parts.sum(1), directions=parts)


def _share(s, c, low=1e-4, high=1e4):
    return (s / c).atan() / (math.atan(high / c) - math.atan(low / c))


CURVE, SPECTRAL = _gaussian_curve(), _two_scales()
SCHEDULES = {
    "edm": edm_sigmas,
    "linear": linear_sigmas,
    "log": log_sigmas,
    "cosine": cosine_sigmas,
    "vp": vp_sigmas,
    "arctan": arctan_sigmas,
    "entropic": lambda n, *span: entropic_sigmas(n, CURVE, *span),
    "rescaled": lambda n, *span: rescaled_sigmas(n, CURVE, *span),
    "spectral": lambda n, *span: spectral_sigmas(n, SPECTRAL, [3.0, 1.0], *span),
    "time": lambda n, *span: time_sigmas(n, CURVE.rescaled("left"), *span),
    "flow": lambda n, *span: uniform_sigmas(n, flow_matching(), *span),
    "iddpm": lambda n, *span: uniform_sigmas(n, iddpm(), *span),
}


@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(2, 300),
    st.floats(0.0065, 0.5),
    st.floats(1.0, 150.0),
)
@settings(max_examples=200, deadline=None)
def test_every_schedule_descends_from_sigma_max_to_sigma_min_and_ends_in_zero(name, n, low, high):
    sigmas = SCHEDULES[name](n, low, high)
    assert sigmas.dtype == F64 and sigmas.shape == (n + 1,)
    assert sigmas[0] == high and sigmas[-2] == low and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"iddpm"}))  # its table starts above 0.006
def test_the_range_is_that_of_the_curve_or_else_edm_s_unless_given(name):
    curve = {"entropic": CURVE, "rescaled": CURVE, "spectral": SPECTRAL, "time": CURVE}.get(name)
    low, high = (0.002, 80) if curve is None else (curve.sigma[0], curve.sigma[-1])
    sigmas = SCHEDULES[name](5)
    assert sigmas[0] == high and sigmas[-2] == low
    if curve is not None:
        assert SCHEDULES[name](5, 0.5)[0] == high and SCHEDULES[name](5, None, 0.5)[-2] == low


def test_edm_schedule_is_that_of_karras():
    # As NVlabs writes it, for 18 steps.
    i = torch.arange(18, dtype=F64)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(edm_sigmas(18)[:-1], expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(edm_sigmas(18, rho=1), linear_sigmas(18), rtol=1e-12, atol=0)


# Steps are equal to rounding: 1e-16 of the variable's largest value, over a step of 1/32 of its range.
@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("edm", lambda s: s ** (1 / 7)),
        ("linear", lambda s: s),
        ("log", torch.log),
        ("arctan", torch.atan),
        ("cosine", vp_cosine().t),
        ("vp", lambda s: ((0.01 + 39.8 * s.square().log1p()).sqrt() - 0.1) / 19.9),
        ("flow", lambda s: s / (1 + s)),
        ("entropic", lambda s: -(1 / s.square()).log1p()),
        ("rescaled", torch.atan),
        # Section 5.4: each scale's arctangent over its rise from the first level of the curve to the last.
        ("spectral", lambda s: 3 * _share(s, 2.0) + _share(s, 0.1)),
    ],
)
def test_every_schedule_is_uniform_in_its_own_variable(name, variable):
    step = variable(SCHEDULES[name](33)[:-1]).diff()
    # CURVE has h = 0.036 in log sigma: an error of h^4 / 384 = 4e-9 over a step of 1/32.
    tolerance = 1e-6 if name in ("entropic", "rescaled", "spectral") else 1e-11
    torch.testing.assert_close(step, step.mean().expand(32), rtol=tolerance, atol=0)


def test_process_schedules_agree_with_the_named_ones():
    close = {"rtol": 1e-12, "atol": 0}
    torch.testing.assert_close(uniform_sigmas(20, edm()), linear_sigmas(20), **close)
    torch.testing.assert_close(uniform_sigmas(20, ve_geometric()), log_sigmas(20), **close)
    # The cosine process without offset is the arctangent for unit variance.
    torch.testing.assert_close(uniform_sigmas(20, vp_cosine(0)), arctan_sigmas(20), **close)


def test_vp_schedule_follows_its_betas():
    # sigma^2 + 1 = exp(beta_d t^2 / 2 + beta_min t) with beta_d = 10, beta_min = 2 at three uniform times.
    sigmas = torch.tensor([math.expm1(5 * t * t + 2 * t) ** 0.5 for t in (0.9, 0.5, 0.1)], dtype=F64)
    placed = vp_sigmas(3, sigmas[2].item(), sigmas[0].item(), beta_d=10.0, beta_min=2.0)
    torch.testing.assert_close(placed[:-1], sigmas, rtol=1e-13, atol=0)


# Appendix E: rescaled entropic time of N(0, c^2 I) is eq. 6. phi is good to 1e-11 of its range with 2048
# levels (see test_entropy); near sigma_max a level moves by 80 / c times that, relatively.
@pytest.mark.parametrize("c", [0.5, 1.0, 2.0])
def test_rescaled_schedule_of_a_gaussian_is_the_arctangent(c):
    curve = _gaussian_curve(c, 1e-3, 1e2, 2048)
    for n in (4, 16, 64):
        torch.testing.assert_close(
            rescaled_sigmas(n, curve, 0.002, 80), arctan_sigmas(n, c=c), rtol=1e-11 * 80 / c, atol=0
        )
    assert (entropic_sigmas(16, curve, 0.002, 80)[1:-2] / arctan_sigmas(16, c=c)[1:-2] < 0.5).any()


def test_left_rule_places_by_linear_interpolation():
    # phi = 0, 1, 2, 3 at sigma = 1, 2, 4, 8: Algorithm 1 by hand.
    time = Time([1.0, 2.0, 4.0, 8.0], [0.0, 1.0, 2.0, 3.0])
    expected = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0], dtype=F64)
    torch.testing.assert_close(time_sigmas(4, time, 1.0, 8.0), expected, rtol=1e-15, atol=0)
    expected = torch.tensor([8.0, 6.0, 4.0, 3.0, 2.0, 1.5, 1.0, 0.0], dtype=F64)
    torch.testing.assert_close(time_sigmas(7, time, 1.0, 8.0), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((1,), "n = 1;"),
        ((0,), "n = 0;"),
        ((2.0,), "n = 2.0;"),
        ((True,), "n = True;"),
        ((4, 2.0, 1.0), "sigma_min = 2.0 is not below sigma_max = 1.0"),
        ((4, 1.0, 1.0), "sigma_min = 1.0 is not below sigma_max = 1.0"),
        ((4, 1.0, math.inf), "sigma_max"),
        ((4, math.nan, 1.0), "nan"),
        ((4, "low", 1.0), "sigma_min = 'low' is not numeric"),
    ],
)
def test_bad_counts_and_ranges_are_named(name, arguments, words):
    with pytest.raises(ValueError) as error:
        SCHEDULES[name](*arguments)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: linear_sigmas(4, 0.0, 1.0), "sigma_min = 0.0; it must be above 0"),
        (lambda: log_sigmas(4, -0.1, 1.0), "sigma_min = -0.1; it must be above 0"),
        (lambda: edm_sigmas(4, rho=0), "rho = 0.0"),
        (lambda: edm_sigmas(4, rho=math.nan), "rho[] = nan"),
        (lambda: arctan_sigmas(4, c=-1.0), "c = -1.0"),
        (lambda: vp_sigmas(4, beta_d=0.0), "beta_d = 0.0"),
        (lambda: vp_sigmas(4, 0.002, 500.0), "noise from 0 to 152"),
        (lambda: uniform_sigmas(4, iddpm(), 0.002, 80.0), "noise from 0.00642541"),
        (
            lambda: entropic_sigmas(4, _gaussian_curve(low=0.01), 0.002),
            "sigma = 0.002 is outside the curve, which covers",
        ),
        (lambda: rescaled_sigmas(4, _gaussian_curve(high=50.0), 0.002, 80), "which covers [0.0001, 50]"),
        (
            lambda: spectral_sigmas(4, _two_scales(high=50.0), [1.0, 1.0], sigma_max=80),
            "which covers [0.0001, 50]",
        ),
        (lambda: spectral_sigmas(4, CURVE, [1.0]), "directions = None in this curve"),
        (lambda: linear_sigmas(4, 1.0, 1.0 + 4e-16), "closer than float64 resolves"),
    ],
)
def test_bad_parameters_and_uncovered_ranges_are_named(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)
