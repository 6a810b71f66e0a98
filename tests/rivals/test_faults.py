"""Rivals in every mode of torch, for denoisers that write where they should not, and for what is no answer."""

import math

import numpy as np
import pytest
import torch

from entropic.curve import ErrorCurve
from entropic.noise import flow_matching, vp_linear
from entropic.rivals import (
    ays_sigmas,
    beta_sigmas,
    cos_sigmas,
    crs_sigmas,
    dmn_objective,
    dmn_sigmas,
    gits_sigmas,
    klub,
    laplace_sigmas,
    marginal_entropy_rate,
    marginal_entropy_sigmas,
    oss_sigmas,
    sharpeuler_sigmas,
    simple_sigmas,
    tuned_edm_sigmas,
)
from tests.modes import default_dtype
from tests.rivals.test_rivals import F64, PLANE

LEVELS = torch.logspace(-4, 4, 200, dtype=F64)
CURVE = ErrorCurve(LEVELS, LEVELS.square() / (LEVELS.square() + 1))
DATA = PLANE.sample(16, torch.Generator().manual_seed(0))


def _generator():
    return torch.Generator().manual_seed(1)


def _denoise(x, sigma):
    return (x + 0.1 * sigma**2 * x.tanh()) / (1 + sigma**2)


# Name -> function(denoiser, x, **options) of a tensor.
SEARCHES = {
    "gits": lambda d, x, **o: gits_sigmas(5, d, x, levels=12, **o).sigmas,
    "oss": lambda d, x, **o: oss_sigmas(4, d, x, levels=12, **o).sigmas,
    "sharpeuler": lambda d, x, **o: sharpeuler_sigmas(5, d, x, levels=12, **o).sigmas,
    "cos": lambda d, x, **o: cos_sigmas(5, d, x, _generator(), levels=9, process=vp_linear(), **o).sigmas,
    "crs": lambda d, x, **o: crs_sigmas(5, d, x, _generator(), levels=12, **o).sigmas,
    "marginal": lambda d, x, **o: marginal_entropy_sigmas(5, d, x, _generator(), levels=12, **o).sigmas,
    "exact": lambda d, x, **o: (
        marginal_entropy_sigmas(5, d, x, _generator(), levels=12, divergence="exact", **o).sigmas
    ),
    "rate": lambda d, x, **o: marginal_entropy_rate(
        d, x, [0.1, 1.0, 10.0], _generator(), process=flow_matching(), **o
    ),
}
STARTS_HIGH = {"gits", "oss", "sharpeuler"}
WITHOUT_DENOISER = {
    "laplace": lambda: laplace_sigmas(7),
    "simple": lambda: simple_sigmas(7),
    "beta": lambda: beta_sigmas(7),
    "klub": lambda: klub(CURVE, laplace_sigmas(7, 0.01, 50.0)),
    "ays": lambda: ays_sigmas(7, CURVE, 0.002, 80),
    "dmn": lambda: dmn_sigmas(7),
    "tuned": lambda: tuned_edm_sigmas(4, torch.tensor([1.0, 0.1], dtype=F64)),
    "objective": lambda: dmn_objective(laplace_sigmas(7)),
}


def _states(name, dtype=F64):
    return ((80 if name in STARTS_HIGH else 1) * DATA).to(dtype)


ALL = WITHOUT_DENOISER | {
    name: lambda place=place, name=name: place(PLANE.denoiser, _states(name))
    for name, place in SEARCHES.items()
}


# The modes of torch


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", sorted(ALL))
def test_every_mode_gives_the_same_and_no_graph(name, mode):
    expected = ALL[name]()
    with mode():
        found = ALL[name]()
    assert torch.equal(found, expected) and not found.requires_grad


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, F64])
@pytest.mark.parametrize("name", sorted(ALL))
def test_the_default_dtype_changes_nothing(name, default):
    expected = ALL[name]()
    with default_dtype(default):
        found = ALL[name]()
    assert found.dtype == F64 and torch.equal(found, expected)


@pytest.mark.parametrize("name", sorted(SEARCHES))
def test_a_network_leaves_no_graph_and_no_gradient(name):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    graphs = []

    def denoiser(x, sigma):
        denoised = (x + sigma**2 * network(x / (1 + sigma))) / (1 + sigma**2)
        graphs.append(denoised.requires_grad)
        return denoised

    x = _states(name).detach().requires_grad_()
    found = SEARCHES[name](denoiser, x)
    # Only the marginal entropy asks for a derivative, and it keeps none.
    assert any(graphs) == (name in {"marginal", "exact", "rate"})
    assert not found.requires_grad and x.grad is None
    assert all(weight.grad is None for weight in network.parameters())
    with torch.inference_mode():
        made = _states(name)
        assert torch.equal(SEARCHES[name](denoiser, made), found)
    assert torch.equal(SEARCHES[name](denoiser, made), found)


# Denoisers that write into their argument or into their last answer


def _buffered():
    buffer = {}

    def denoiser(x, sigma):
        denoised = buffer.setdefault(x.shape, torch.empty_like(x))
        return denoised.detach_().copy_(_denoise(x, sigma))

    return denoiser


def _in_place():
    def denoiser(x, sigma):
        return x.copy_(_denoise(x, sigma))

    return denoiser


def _spoiling():
    seen = []

    def denoiser(x, sigma):
        denoised = _denoise(x, sigma)
        with torch.no_grad():
            for old in seen:
                old.fill_(math.nan)
        seen[:] = [x, denoised]
        return denoised

    return denoiser


WRITERS = {"buffered": _buffered, "in place": _in_place, "spoiling": _spoiling}


@pytest.mark.parametrize("batch", [None, 5, 8])
@pytest.mark.parametrize("writer", sorted(WRITERS))
@pytest.mark.parametrize("name", sorted(SEARCHES))
def test_a_denoiser_may_write_where_it_likes(name, writer, batch):
    x = _states(name)
    kept = x.clone()
    expected = SEARCHES[name](_denoise, x, batch=batch)
    assert torch.equal(SEARCHES[name](WRITERS[writer](), x, batch=batch), expected)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", sorted(SEARCHES))
def test_an_answer_may_be_a_view(name):
    x = _states(name)
    found = SEARCHES[name](lambda x, sigma: _denoise(x, sigma).T.contiguous().T, x)
    assert torch.equal(found, SEARCHES[name](_denoise, x))


# What is no answer, no state, no generator


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: None, "denoiser returned a NoneType"),
        (lambda x: (x, x), "denoiser returned a tuple"),
        (lambda x: [x], "denoiser returned a list"),
        (lambda x: x.detach().numpy(), "denoiser returned a ndarray"),
        (lambda x: x.to(torch.complex128), "denoiser returned torch.complex128"),
        (lambda x: x.long(), "denoiser returned torch.int64"),
        (lambda x: x > 0, "denoiser returned torch.bool"),
        (lambda x: x[:, :1], "denoiser returned shape"),
        (lambda x: x.sum(), "denoiser returned shape"),
        (lambda x: x * math.nan, "NaN or infinity at sigma"),
        (lambda x: x / 0, "NaN or infinity at sigma"),
        (
            lambda x: torch.where(torch.arange(len(x))[:, None] == len(x) - 1, math.nan, x),
            "NaN or infinity at",
        ),
    ],
)
@pytest.mark.parametrize("name", sorted(SEARCHES))
def test_what_is_no_answer_is_refused(name, answer, message):
    with pytest.raises(ValueError, match=message):
        SEARCHES[name](lambda x, sigma: answer(x), _states(name))


@pytest.mark.parametrize("name", sorted(SEARCHES))
def test_what_is_no_state_or_no_denoiser_is_refused(name):
    for x in (_states(name) + 0j, _states(name).long(), _states(name).numpy(), [[1.0, 2.0]]):
        with pytest.raises(ValueError, match=r"x0? = .*real floating tensor"):
            SEARCHES[name](_denoise, x)
    for denoiser in (None, 3.0, DATA):
        with pytest.raises(ValueError, match="denoiser = "):
            SEARCHES[name](denoiser, _states(name))


@pytest.mark.parametrize("generator", [None, 0, "cpu", [torch.Generator()], np.random.default_rng(0)])
@pytest.mark.parametrize(
    "place",
    [
        lambda g: cos_sigmas(5, _denoise, DATA, g),
        lambda g: crs_sigmas(5, _denoise, DATA, g),
        lambda g: marginal_entropy_sigmas(5, _denoise, DATA, g),
        lambda g: marginal_entropy_rate(_denoise, DATA, [1.0], g),
    ],
    ids=["cos", "crs", "marginal", "rate"],
)
def test_what_is_no_generator_is_refused(place, generator):
    with pytest.raises(ValueError, match="generator = "):
        place(generator)


@pytest.mark.parametrize("process", ["flow", 1.0, flow_matching])
@pytest.mark.parametrize("name", ["sharpeuler", "marginal", "rate"])
def test_what_is_no_process_is_refused(name, process):
    place = {
        "sharpeuler": lambda: sharpeuler_sigmas(5, _denoise, 80 * DATA, process=process),
        "marginal": lambda: marginal_entropy_sigmas(5, _denoise, DATA, _generator(), process=process),
        "rate": lambda: marginal_entropy_rate(_denoise, DATA, [1.0], _generator(), process=process),
    }[name]
    with pytest.raises(ValueError, match="process = "):
        place()


@pytest.mark.parametrize("sigma", [[0.0], [-1.0], [math.nan], [math.inf]])
def test_a_rate_at_no_level_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma"):
        marginal_entropy_rate(_denoise, DATA, sigma, _generator())


@pytest.mark.parametrize("curve", [None, LEVELS, "curve"])
def test_what_is_no_curve_is_refused(curve):
    for call in (lambda: ays_sigmas(5, curve), lambda: klub(curve, [2.0, 1.0, 0.0])):
        with pytest.raises(ValueError, match="pass an ErrorCurve"):
            call()


# Short dtypes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(SEARCHES))
def test_short_dtypes_count_as_float32(name, dtype):
    x = _states(name, dtype)
    seen = set()

    def denoiser(x, sigma):
        seen.add(x.dtype)
        return _denoise(x, sigma)

    found = SEARCHES[name](denoiser, x)
    assert seen == {torch.float32}
    assert torch.equal(found, SEARCHES[name](_denoise, x.float()))
