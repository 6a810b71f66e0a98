"""Forward processes: closed forms, derivatives, inverses, moments of the SDE, changes of time, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entropic.noise import (
    Process,
    change_of_time,
    edm,
    flow_matching,
    iddpm,
    ve_geometric,
    ve_sqrt,
    vp_constant,
    vp_cosine,
    vp_linear,
)

EPS = torch.finfo(torch.float64).eps
PROCESSES = {
    p.name: p
    for p in (
        *(edm(), ve_sqrt(), ve_geometric(), vp_linear(), vp_constant(), vp_cosine(), iddpm()),
        flow_matching(),
    )
}
PROCESSES["warped flow"] = change_of_time(flow_matching(), lambda t: t / (2 - t), lambda u: 2 * u / (1 + u))
VP = ("VP linear", "VP constant", "VP cosine", "iDDPM")


def _levels(n=101, low=0.01, high=79.0):
    return torch.logspace(math.log10(low), math.log10(high), n, dtype=torch.float64)


@pytest.fixture(params=PROCESSES, name="process")
def _process(request):
    return PROCESSES[request.param]


# Tolerance: rounding of t moves sigma by eps (1 + t sigma' / sigma), some roundings of it.
def test_t_and_sigma_are_inverse(process):
    sigma = _levels()
    t = process.t(sigma)
    condition = 1 + t * process.sigma_rate(t) / sigma
    assert ((process.sigma(t) / sigma - 1).abs() <= 32 * EPS * condition).all()
    assert (t.diff() > 0).all()


@pytest.mark.parametrize("name", ["EDM", "VE sqrt", "VP linear", "VP constant", "VP cosine", "flow matching"])
def test_inverse_keeps_relative_accuracy_at_vanishing_noise(name):
    sigma = _levels(9, 1e-9, 1e-2)
    process = PROCESSES[name]
    # Relative accuracy of t and of sigma(t) to a few roundings, where subtracting would lose every digit.
    assert (process.sigma(process.t(sigma)) / sigma - 1).abs().max() <= 16 * EPS
    assert process.sigma(process.t(0.0)) == 0


# In x_t = s x_0 + s sigma z the variance given x_0 obeys (s sigma)^2' = 2 (s'/s) (s sigma)^2 + g^2 and the
# mean s' = (s'/s) s: the moments of the SDE. Derivatives by central differences, extrapolated to order 4, in
# steps of 1e-3 of the distance to the ends: truncation 1e-12, rounding eps / 1e-3 = 2e-13, both times a few.
def test_drift_and_diffusion_give_the_kernel_its_moments(process):
    t = process.t(_levels(23, 0.03, 30.0))
    room = torch.minimum(t - process.t_min, torch.tensor(process.t_max) - t)
    h = 1e-3 * torch.minimum(room, torch.tensor(1.0))
    if len(process.knots):
        t = (t * 1000).floor().div(1000) + 0.0005  # the middle of a table interval
        h = torch.full_like(t, 1e-4)

    def derivative(f):
        def central(h):
            return (f(t + h) - f(t - h)) / (2 * h)

        return (4 * central(h / 2) - central(h)) / 3

    def variance(t):
        return (process.s(t) * process.sigma(t)).square()

    expected = 2 * process.drift(t) * variance(t) + process.diffusion(t).square()
    scale = variance(t) / h * 1e-3 + process.diffusion(t).square()
    assert ((derivative(variance) - expected).abs() <= 1e-9 * scale).all()
    assert ((derivative(process.s) - process.drift(t) * process.s(t)).abs() <= 1e-9 * (1e-3 / h + 1)).all()
    rate = process.sigma_rate(t)
    assert ((derivative(process.sigma) / rate - 1).abs() <= 1e-9).all()


# Tolerance 1e-12: some tens of roundings in well-conditioned formulas.
def test_closed_forms_of_drift_and_diffusion():
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    beta = 0.1 + 19.9 * t
    angle = math.pi / 2 * (t + 0.008) / 1.008
    span = math.log(80 / 0.002)
    expected = {
        "EDM": (0 * t, (2 * t).sqrt()),
        "VE sqrt": (0 * t, 1 + 0 * t),
        "VE geometric": (0 * t, 0.002 * (span * t).exp() * math.sqrt(2 * span)),
        "VP linear": (-beta / 2, beta.sqrt()),
        "VP constant": (0 * t - 0.5, 1 + 0 * t),
        "VP cosine": (-math.pi / 2 / 1.008 * angle.tan(), (math.pi / 1.008 * angle.tan()).sqrt()),
        "flow matching": (-1 / (1 - t), (2 * t / (1 - t)).sqrt()),
    }
    for name, (drift, diffusion) in expected.items():
        torch.testing.assert_close(PROCESSES[name].drift(t), drift, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(PROCESSES[name].diffusion(t), diffusion, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", VP)
def test_vp_processes_preserve_the_variance_of_unit_data(name):
    sigma = _levels()
    process = PROCESSES[name]
    t = process.t(sigma)
    total = process.s(t).square() * (1 + process.sigma(t).square())
    torch.testing.assert_close(total, torch.ones_like(total), rtol=4 * EPS, atol=0)
    # Unit variance in equilibrium: g^2 = -2 s'/s. Relative error: that of sigma' and s', some roundings.
    ratio = process.diffusion(t).square() / (-2 * process.drift(t))
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-11, atol=0)


@pytest.mark.parametrize("process", [ve_geometric(), vp_linear(), iddpm()], ids=lambda p: p.name)
def test_ends_may_be_reached_with_rounding(process):
    ends = process.sigma([process.t_min, process.t_max])
    t = process.t(ends * torch.tensor([1 - 1e-13, 1 + 1e-13], dtype=torch.float64))
    torch.testing.assert_close(process.sigma(t), ends, rtol=0, atol=1e-12 * ends[1].item())
    assert t[0] >= process.t_min and t[1] <= process.t_max


def test_cosine_without_offset_is_a_tangent():
    t = torch.linspace(0.0, 0.99, 100, dtype=torch.float64)
    torch.testing.assert_close(vp_cosine(0).sigma(t), (math.pi / 2 * t).tan(), rtol=64 * EPS, atol=0)


# The recursion as EDM writes it. Its rounding error is about eps a step, M eps = 2e-13, over u^2 for the
# smallest entries (u^2 + 1 - 1): 1e-9 covers u = 0.006 and up.
def test_iddpm_is_the_table_of_edm():
    M = 1000
    u = [0.0] * (M + 1)
    for j in range(M, 0, -1):
        ratio = (math.sin(math.pi / 2 * (j - 1) / M / 1.008) / math.sin(math.pi / 2 * j / M / 1.008)) ** 2
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(ratio, 0.001) - 1)
    process = iddpm(M)
    t = torch.arange(1, M + 1, dtype=torch.float64) / M
    expected = torch.tensor(u[:-1][::-1], dtype=torch.float64)
    torch.testing.assert_close(process.sigma(t), expected, rtol=1e-9, atol=0)
    assert process.sigma(1 - 8 / M) == pytest.approx(80.2, abs=0.05)  # EDM's sigma_max, entry j_0 = 8
    middle = (t[:-1] + t[1:]) / 2
    torch.testing.assert_close(
        process.sigma(middle), (process.sigma(t[:-1]) * process.sigma(t[1:])).sqrt(), rtol=1e-10, atol=0
    )
    torch.testing.assert_close(process.knots, t[1:-1], rtol=0, atol=0)
    # At a knot the derivative is that of the interval to the right.
    slope = (process.sigma(t[500] + 5e-4) / process.sigma(t[500])).log() / 5e-4
    assert process.sigma_rate(t[500]) / process.sigma(t[500]) == pytest.approx(slope.item(), rel=1e-9)


@pytest.mark.parametrize("name", ["VP linear", "iDDPM", "flow matching", "EDM"])
def test_change_of_time_keeps_the_kernel_and_scales_the_coefficients(name):
    process = PROCESSES[name]
    changed = change_of_time(process, lambda t: torch.expm1(t / 2), lambda u: 2 * torch.log1p(u))
    t = process.t(_levels(31, 0.02, 50.0))
    tau, rate = torch.expm1(t / 2), (t / 2).exp() / 2
    # Definition 4.1: f = phi' f~, g = sqrt(phi') g~. Tolerance: rounding of t through log1p(expm1), amplified
    # by t g' / g < 1e3. At iDDPM's knots the two may fall into neighbouring intervals, so stay off them.
    if name == "iDDPM":
        t = (t * 1000).floor().div(1000) + 0.0004
        tau, rate = torch.expm1(t / 2), (t / 2).exp() / 2
    close = {"rtol": 1e-11, "atol": 1e-13}
    torch.testing.assert_close(changed.s(tau), process.s(t), **close)
    torch.testing.assert_close(changed.sigma(tau), process.sigma(t), **close)
    torch.testing.assert_close(rate * changed.drift(tau), process.drift(t), **close)
    torch.testing.assert_close(rate.sqrt() * changed.diffusion(tau), process.diffusion(t), **close)
    torch.testing.assert_close(changed.t(process.sigma(t)), tau, **close)
    drift, diffusion = process.coefficients_in_time(t, rate)
    torch.testing.assert_close(drift, changed.drift(tau), **close)
    torch.testing.assert_close(diffusion, changed.diffusion(tau), **close)
    torch.testing.assert_close(changed.knots, torch.expm1(process.knots / 2), rtol=0, atol=0)


def test_log_of_noise_as_time_of_the_edm_process_is_the_geometric_one():
    # sigma = t in the time log(t / 0.002) / log(4e4): the same process as ve_geometric, on (0.002, 80).
    span = math.log(4e4)
    bounded = Process("EDM, bounded", torch.ones_like, lambda t: t, lambda sigma: sigma, 0.002, 80.0)
    changed = change_of_time(bounded, lambda t: (t / 0.002).log() / span, lambda u: 0.002 * (span * u).exp())
    tau = torch.linspace(0.01, 0.99, 21, dtype=torch.float64)
    torch.testing.assert_close(changed.sigma(tau), ve_geometric().sigma(tau), rtol=1e-13, atol=0)
    torch.testing.assert_close(changed.diffusion(tau), ve_geometric().diffusion(tau), rtol=1e-13, atol=0)


@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999), st.sampled_from(sorted(PROCESSES)))
@settings(max_examples=100, deadline=None)
def test_noise_increases_with_time(a, b, name):
    process = PROCESSES[name]
    a, b = sorted((a, b))
    if b - a < 1e-9 or a < process.t_min:
        return
    low, high = process.sigma([a, b]).tolist()
    assert 0 < low < high
    assert process.sigma_rate(a) > 0


BAD = {
    "t = 1.2": lambda: vp_linear().sigma(1.2),
    "t = -0.1": lambda: edm().s(-0.1),
    "t = 0.0001": lambda: iddpm().sigma(0.0001),
    "t[1] = nan": lambda: flow_matching().drift([0.5, math.nan]),
    "the diffusion of VP linear is not finite": lambda: vp_linear().diffusion(0.0),
    "the drift of flow matching is not finite": lambda: flow_matching().drift(1.0),
    "sigma = 100.0": lambda: ve_geometric().t(100.0),
    "sigma = -1.0": lambda: edm().t(-1.0),
    "sigma[] = nan": lambda: edm().t(math.nan),
    "sigma_min = 5.0": lambda: ve_geometric(5.0, 2.0),
    "beta_d = -1.0": lambda: vp_linear(-1.0),
    "t_max = 0.0": lambda: vp_constant(0.0),
    "offset = -0.5": lambda: vp_cosine(-0.5),
    "M = 10.0": lambda: iddpm(10.0),
    "t_min = 1.0": lambda: Process("p", torch.ones_like, torch.sqrt, torch.square, 1.0, 1.0),
    "phi does not increase": lambda: change_of_time(vp_linear(), lambda t: -t, lambda u: -u),
    "pass the inverse of phi": lambda: change_of_time(vp_linear(), lambda t: 2 * t, lambda u: u / 3),
    "rate = 0.0": lambda: edm().coefficients_in_time([1.0, 2.0], [1.0, 0.0]),
    "rate[0] = nan": lambda: edm().coefficients_in_time([1.0], [math.nan]),
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_named(words):
    with pytest.raises(ValueError) as error:
        BAD[words]()
    assert words in str(error.value)
