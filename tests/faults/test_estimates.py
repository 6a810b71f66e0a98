"""An estimate is of the denoiser that was passed, in full precision, whatever that does with its buffers."""

import functools
import os
import threading
import warnings

import numpy as np
import pytest
import torch

from entropic import files
from entropic.bases import amplitudes, fourier_basis, pca_basis
from entropic.estimate import estimate
from entropic.files import ArrayStore
from tests.modes import default_dtype

SIGMA = torch.tensor([0.02, 0.1, 1.0, 10.0, 80.0], dtype=torch.float64)


def _x(dtype=torch.float64, n=64):
    noise = np.random.default_rng(3).standard_normal((n, 2, 6, 6))
    return torch.from_numpy(noise).to(torch.bfloat16).to(dtype)  # the same numbers in every type


def _linear(x, sigma):
    return x / (1 + sigma**2)


class Gain(torch.nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, x, sigma):
        return self.gain * x / (1 + sigma**2)


# Precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_data_give_the_curve_of_the_same_numbers(dtype):
    found = estimate(_linear, _x(dtype), SIGMA, samples=64).errors
    expected = estimate(_linear, _x(), SIGMA, samples=64).errors
    # Float32 rounds noise and state by 2^-24 of sigma z or x0, and an error of sigma x0 by as much in units of itself
    # over sigma: at sigma = 0.02 the largest of 72 entries of x0 is below 5, so 5 / .02 2^-23 = 3e-5.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_the_ambient_dtype_changes_nothing():
    expected = estimate(_linear, _x(torch.float32), SIGMA, samples=20).errors
    for dtype in (torch.float64, torch.bfloat16):
        with default_dtype(dtype):
            assert torch.equal(estimate(_linear, _x(torch.float32), SIGMA, samples=20).errors, expected)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_mode_of_gradients_changes_nothing(mode):
    expected = estimate(_linear, _x(), SIGMA, samples=20).errors
    x = _x().requires_grad_()
    with mode():
        assert torch.equal(estimate(_linear, x, SIGMA, samples=20).errors, expected)


# Buffers


def _reuses(x, sigma, kept={}):  # noqa: B006
    """Gives the memory of its last answer again."""
    out = kept.setdefault(tuple(x.shape), torch.empty_like(x))
    out.copy_(_linear(x, sigma))
    return out


def _writes(x, sigma):
    """Writes its answer into its input."""
    return x.div_(1 + sigma**2)


def _spoils(x, sigma):
    answer = _linear(x, sigma)
    x.fill_(float("nan"))
    return answer


@pytest.mark.parametrize("denoiser", [_reuses, _writes, _spoils])
@pytest.mark.parametrize("common", [True, False])
def test_what_a_denoiser_does_with_its_memory_changes_nothing(denoiser, common):
    x = _x()
    bases = {"frequency": fourier_basis((2, 6, 6))}
    found = estimate(denoiser, x, SIGMA, samples=40, batch=16, bases=bases, common_noise=common)
    expected = estimate(_linear, _x(), SIGMA, samples=40, batch=16, bases=bases, common_noise=common)
    assert torch.equal(found.errors, expected.errors) and torch.equal(x, _x())
    assert torch.equal(found.directions["frequency"][0], expected.directions["frequency"][0])


def test_what_a_basis_does_with_the_errors_changes_nothing():
    def writes(error):
        return error.square_().flatten(1)

    def reads(error):
        return error.square().flatten(1)

    found = estimate(_linear, _x(), SIGMA, samples=40, bases={"first": writes, "second": reads})
    expected = estimate(_linear, _x(), SIGMA, samples=40, bases={"first": reads, "second": reads})
    for name in ("first", "second"):
        assert torch.equal(found.directions[name][0], expected.directions[name][0])


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda x, s: None, "returned NoneType"),
        (lambda x, s: (x,), "returned tuple"),
        (lambda x, s: {"sample": x}, "returned dict"),
        (lambda x, s: x.numpy(), "returned ndarray"),
        (lambda x, s: x * 1j, "returned torch.complex128"),
        (lambda x, s: x > 0, "returned torch.bool"),
        (lambda x, s: x.long(), "returned torch.int64"),
        (lambda x, s: x[:-1], "must return"),
        (lambda x, s: x.flatten(1), "must return"),
        (lambda x, s: x / 0, "NaN or infinity"),
    ],
)
def test_an_answer_that_is_no_denoised_state_is_named(answer, told):
    with pytest.raises(ValueError, match=r"denoiser at sigma = 0\.02 returned") as caught:
        estimate(answer, _x(), SIGMA, samples=20)
    assert told in str(caught.value)


def test_bases_refuse_what_is_not_finite():
    x = _x()
    x[5, 1, 2, 3] = float("nan")
    for make in (pca_basis, lambda x: amplitudes(fourier_basis((2, 6, 6)), x)):
        with pytest.raises(ValueError, match=r"x\[5, 1, 2, 3\] = nan"):
            make(x)


# Identity


def _pair(kind):
    weights = torch.zeros(3000), torch.zeros(3000)
    weights[1][1500] = 1e-6
    return {
        "modules": (Gain(1.0), Gain(1.5)),
        "methods": (Gain(1.0).forward, Gain(1.5).forward),
        "closures": tuple((lambda x, s, g=g: g * _linear(x, s)) for g in (1.0, 1.5)),
        "partials": tuple(functools.partial(lambda x, s, w: _linear(x, s) * 1.0, w=w) for w in weights),
    }[kind]


@pytest.mark.parametrize("kind", ["modules", "methods", "closures", "partials"])
def test_a_store_knows_the_denoiser_by_content(tmp_path, kind):
    first, second = _pair(kind)
    arguments = {"samples": 20, "store": tmp_path / "store.npz"}
    found = estimate(first, _x(), SIGMA, **arguments)
    assert torch.equal(estimate(first, _x(), SIGMA, **arguments).errors, found.errors)
    with pytest.raises(ValueError, match="made with other tag"):
        estimate(second, _x(), SIGMA, **arguments)


def test_a_denoiser_that_cannot_be_told_needs_a_tag(tmp_path):
    lock = threading.Lock()

    def locked(x, sigma):
        with lock:
            return _linear(x, sigma)

    with pytest.raises(ValueError, match=r"denoiser .*cannot be told.*pass a `tag`"):
        estimate(locked, _x(), SIGMA, samples=20, store=tmp_path / "store.npz")
    assert os.listdir(tmp_path) == []
    named = estimate(locked, _x(), SIGMA, samples=20, store=tmp_path / "store.npz", tag="linear")
    assert torch.equal(named.errors, estimate(locked, _x(), SIGMA, samples=20).errors)
    with pytest.raises(ValueError, match="tag = 3; pass text"):
        estimate(locked, _x(), SIGMA, samples=20, tag=3)


# Stores


def _made(path, value=1.0, **changes):
    state = {"done": np.zeros(3, np.int64), "errors": np.zeros((3, 4))}
    store = ArrayStore(path, {"seed": 0, "x": "abc"} | changes, state, probes={"b": np.arange(3.0)})
    found = {name: array.copy() for name, array in state.items()}
    state["done"] += 1
    state["errors"] += value
    store.save(now=True)
    return found


def test_a_damaged_store_is_computed_anew_or_refused_never_believed(tmp_path):
    """300 mutations: every one is told, and no array of a damaged file is used."""
    path = tmp_path / "store.npz"
    _made(path)
    good = path.read_bytes()
    draw = np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(good)
        kind = draw.integers(3)
        if kind == 0:
            content = content[: draw.integers(len(good))]
        elif kind == 1:
            content[draw.integers(len(good))] ^= 1 << draw.integers(8)
        else:
            at = draw.integers(len(good))
            content[at : at + 20] = draw.bytes(draw.integers(40))
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = _made(path)
            except ValueError as error:
                assert str(path) in str(error) and path.read_bytes() == content
            else:
                assert (found["done"] == found["done"][0]).all()
                assert not found["done"].any() or (found["errors"] == 1.0).all()
        assert os.listdir(tmp_path) == ["store.npz"]


def test_another_key_is_refused_by_name(tmp_path):
    path = tmp_path / "store.npz"
    _made(path)
    with pytest.raises(ValueError, match="made with other seed"):
        _made(path, seed=1)
    with pytest.raises(ValueError, match="made with other more"):
        _made(path, more=1)
    assert _made(path)["done"].tolist() == [1, 1, 1]


def test_a_store_that_cannot_be_written_is_told_and_the_result_stays(tmp_path, monkeypatch):
    def full(*words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.warns(UserWarning, match=r"store\.npz is not kept .*No space left") as told:
        found = estimate(_linear, _x(), SIGMA, samples=20, store=tmp_path / "a" / "store.npz")
    assert len(told) == 1 and os.listdir(tmp_path / "a") == []
    assert torch.equal(found.errors, estimate(_linear, _x(), SIGMA, samples=20).errors)
