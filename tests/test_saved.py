"""Saved schedules and curves: bit for bit there and back, and nothing damaged is taken."""

import hashlib
import json
import math
import os
import re
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entropic.curve import ErrorCurve
from entropic.estimate import estimate
from entropic.saved import curve_sha256, load_curve, load_schedule, save_curve, save_schedule
from entropic.schedules import edm_sigmas, rescaled_sigmas
from tests.conftest import ROOT

F64 = torch.float64
STRIDE = 5
SIGMA = torch.logspace(-3, 2, 60, dtype=F64)
PARTS = torch.stack([m * c**2 * SIGMA**2 / (c**2 + SIGMA**2) for m, c in ((3, 2.0), (1, 0.1))], 1)


def _curve(**more):
    return ErrorCurve(SIGMA, PARTS.sum(1), **more)


def _covariance(n=60):
    root = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=F64)
    return root @ root.T


def _altered(path, change):
    """Rewrite a saved schedule with `change` made to its content."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# Schedules


@given(st.lists(st.floats(5e-324, 1.7e308), min_size=1, max_size=40, unique=True))
@settings(max_examples=100, deadline=None)
def test_every_float64_comes_back_bit_for_bit(tmp_path_factory, levels):
    path = tmp_path_factory.mktemp("any") / "s.json"
    sigmas = torch.tensor([*sorted(levels, reverse=True), 0.0], dtype=F64)
    save_schedule(path, sigmas)
    found, provenance = load_schedule(path)
    assert found.dtype == F64 and found.numpy().tobytes() == sigmas.numpy().tobytes()
    assert provenance["n"] == len(levels)
    assert (provenance["sigma_max"], provenance["sigma_min"]) == (max(levels), min(levels))


def test_provenance_comes_back_and_tells_the_curve(tmp_path):
    path, curve = tmp_path / "s.json", _curve()
    told = {
        "schedule": "rescaled",
        "solver": "ddim",
        "alpha": None,
        "commit": "0f8e70a",
        "date": "2025-01-01",
    }
    save_schedule(path, rescaled_sigmas(8, curve, 0.01, 50.0), curve=curve, **told)
    _, provenance = load_schedule(path)
    assert told.items() <= provenance.items()
    assert provenance["curve_sha256"] == curve_sha256(curve)
    assert (provenance["n"], provenance["sigma_min"], provenance["sigma_max"]) == (8, 0.01, 50.0)
    assert "version" in provenance


def test_the_sha256_is_that_of_the_little_endian_doubles(tmp_path):
    """Anyone can check it, without this package."""
    save_schedule(tmp_path / "s.json", edm_sigmas(7))
    content = json.loads((tmp_path / "s.json").read_text())
    packed = struct.pack("<8d", *content["sigmas"])
    assert content["sha256"] == hashlib.sha256(packed).hexdigest()


def test_float32_sigmas_are_kept_as_the_doubles_they_are(tmp_path):
    sigmas = edm_sigmas(7).float()
    save_schedule(tmp_path / "s.json", sigmas)
    assert torch.equal(load_schedule(tmp_path / "s.json")[0], sigmas.double())


def _set(name, value):
    return lambda content: content.__setitem__(name, value)


def _at(index, value):
    return lambda content: content["sigmas"].__setitem__(index, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: _at(3, math.nextafter(c["sigmas"][3], 0))(c), "is altered: its sha256 is"),  # by one ulp
        (lambda c: c["sigmas"].pop(3), "is altered"),
        (_set("sha256", "0" * 64), "is altered"),
        (_set("sha256", None), "is altered"),
        (_at(2, math.nan), "sigmas[2] = nan"),
        (_at(0, math.inf), "sigmas[0] = inf"),
        (_at(0, 10**400), "too large"),
        (_at(2, 70.0), "does not descend"),
        (lambda c: c["sigmas"].reverse(), "sigmas[-1] = 80.0; append 0"),
        (lambda c: c["sigmas"].pop(), "append 0"),
        (_set("sigmas", []), "shape (0,)"),
        (_at(0, "80"), "not a list of numbers"),
        (_at(0, True), "not a list of numbers"),
        (_at(0, [80.0]), "not a list of numbers"),
        (_set("sigmas", 80.0), "not a list of numbers"),
        (_set("provenance", []), "provenance = []"),
        (lambda c: c.pop("sha256"), "lacks sigmas, sha256 or provenance"),
    ],
)
def test_an_altered_schedule_is_refused_and_named(tmp_path, change, words):
    path = tmp_path / "s.json"
    save_schedule(path, edm_sigmas(8))
    _altered(path, change)
    with pytest.raises(ValueError) as error:
        load_schedule(path)
    assert words in str(error.value) and str(path) in str(error.value)


def test_a_schedule_truncated_anywhere_is_refused(tmp_path):
    path = tmp_path / "s.json"
    save_schedule(path, edm_sigmas(4))
    whole = path.read_bytes().rstrip()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"s\.json is not whole JSON"):
            load_schedule(path)
    path.write_bytes(b"\xff\xfe" + whole)
    with pytest.raises(ValueError, match="not whole JSON"):
        load_schedule(path)
    with pytest.raises(FileNotFoundError):
        load_schedule(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("name", "sigmas", "told", "words"),
    [
        ("s.txt", [1.0, 0.0], {}, "name it *.json"),
        ("s.json", [1.0, math.nan, 0.0], {}, "sigmas[1] = nan"),
        ("s.json", [1.0, 2.0, 0.0], {}, "does not descend"),
        ("s.json", [1.0, 0.0], {"n": 2}, "n = 2, but the sigmas have 1"),
        ("s.json", [1.0, 0.0], {"sigma_max": 80.0}, "sigma_max = 80.0, but the sigmas have 1.0"),
        ("s.json", [1.0, 0.0], {"alpha": math.nan}, "alpha = nan; JSON does not hold it"),
        ("s.json", [1.0, 0.0], {"metric": torch.ones(1)}, "metric = tensor"),
    ],
)
def test_what_cannot_be_kept_leaves_the_old_file(tmp_path, name, sigmas, told, words):
    path = tmp_path / "s.json"
    save_schedule(path, edm_sigmas(4))
    before = path.read_bytes()
    with pytest.raises(ValueError) as error:
        save_schedule(tmp_path / name, sigmas, **told)
    assert words in str(error.value)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["s.json"]


@pytest.mark.parametrize("kind", ["schedule", "curve"])
def test_a_write_that_dies_leaves_the_old_file(tmp_path, monkeypatch, kind):
    path = tmp_path / {"schedule": "a.json", "curve": "a.npz"}[kind]

    def save(scale):
        if kind == "schedule":
            save_schedule(path, scale * edm_sigmas(4))
        else:
            save_curve(path, ErrorCurve(scale * SIGMA, SIGMA))

    save(1.0)
    before = path.read_bytes()

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        save(2.0)
    assert path.read_bytes() == before


# Curves

CURVES = {
    "bare": {},
    "standard errors": {"stderr": 0.01 * SIGMA},
    "common samples": {"stderr": 0.01 * SIGMA, "common_samples": True},
    "covariance": {"covariance": _covariance()},
    "all": {"covariance": _covariance(), "dim": 4, "total_variance": 12.01, "directions": PARTS},
}


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_comes_back_bit_for_bit(tmp_path, name):
    curve = _curve(**CURVES[name])
    save_curve(tmp_path / "c.npz", curve, network="a U-Net")
    saved = load_curve(tmp_path / "c.npz")
    assert vars(saved.curve).keys() == vars(curve).keys()
    for attribute, value in vars(curve).items():
        found = getattr(saved.curve, attribute)
        assert type(found) is type(value), attribute
        same = (
            found.numpy().tobytes() == value.numpy().tobytes() if torch.is_tensor(value) else found == value
        )
        assert same, attribute
    assert saved.multiplicity is None and saved.amplitudes is None
    assert saved.provenance["network"] == "a U-Net"
    assert curve_sha256(saved.curve) == curve_sha256(curve)
    # What is derived is the same too: the time, and its standard error.
    before, after = curve.rescaled(), saved.curve.rescaled()
    assert torch.equal(before.phi, after.phi)
    assert before.stderr is after.stderr is None or torch.equal(before.stderr, after.stderr)


def test_what_belongs_to_the_directions_comes_back(tmp_path):
    multiplicity, amplitudes = torch.tensor([3.0, 1.0], dtype=F64), torch.tensor([2.0, 0.1], dtype=F64)
    save_curve(tmp_path / "c.npz", _curve(directions=PARTS), multiplicity=multiplicity, amplitudes=amplitudes)
    saved = load_curve(tmp_path / "c.npz")
    assert torch.equal(saved.multiplicity, multiplicity) and torch.equal(saved.amplitudes, amplitudes)


def test_every_part_of_a_curve_is_in_its_sha256():
    found = {curve_sha256(_curve(**more)) for more in CURVES.values()}
    found |= {
        curve_sha256(_curve(dim=4)),
        curve_sha256(_curve(dim=5)),
        curve_sha256(_curve(total_variance=14.0)),
    }
    assert len(found) == len(CURVES) + 3


def _rewritten(path, change):
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)


def _ulp(arrays):
    arrays["eps2"][5] = np.nextafter(arrays["eps2"][5], 1)


def _infinite(arrays):
    arrays["eps2"][5] = np.nan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_ulp, "is altered: its sha256 is"),
        (_infinite, "is altered"),
        (lambda a: a.update(dim=np.array(5)), "is altered"),
        (lambda a: a.pop("directions"), "is altered"),
        (lambda a: a.update(more=np.ones(2)), "is altered"),
        (lambda a: a.update(provenance=np.array("{}")), "is altered"),
        (lambda a: a.pop("sha256"), "lacks sha256"),
        (lambda a: a.pop("sigma"), "lacks sigma"),
        (lambda a: a.update(eps2=np.array([None])), "no whole npz"),
    ],
)
def test_an_altered_curve_is_refused_and_named(tmp_path, change, words):
    path = tmp_path / "c.npz"
    save_curve(path, _curve(**CURVES["all"]))
    _rewritten(path, change)
    with pytest.raises(ValueError) as error:
        load_curve(path)
    assert words in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_infinite, "eps2[5] = nan"),
        (lambda a: a.update(sigma=a["sigma"][::-1].copy()), "does not ascend"),
        (lambda a: a.update(more=np.ones(2)), "more"),
        (lambda a: a.update(multiplicity=np.zeros(2)), "multiplicity = 0.0 at its lowest"),
    ],
)
def test_an_impossible_curve_is_refused_though_its_sha256_fits(tmp_path, change, words):
    from entropic import saved

    path = tmp_path / "c.npz"
    save_curve(path, _curve(**CURVES["all"]))

    def signed(arrays):
        arrays.pop("sha256")
        change(arrays)
        arrays["sha256"] = np.array(saved._digest(arrays))

    _rewritten(path, signed)
    with pytest.raises(ValueError) as error:
        load_curve(path)
    assert words in str(error.value) and str(path) in str(error.value)


def test_a_curve_truncated_or_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "c.npz"
    save_curve(path, _curve())
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"c\.npz is no whole npz"):
            load_curve(path)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ValueError, match=r"c\.npz is no whole npz"):
        load_curve(path)
    with pytest.raises(FileNotFoundError):
        load_curve(tmp_path / "none.npz")


def test_a_flipped_bit_is_refused_or_without_meaning(tmp_path):
    """Zip files have bytes that nothing reads; a flip anywhere else is told, as an error of this file."""
    path, curve = tmp_path / "c.npz", _curve(stderr=SIGMA)
    save_curve(path, curve, network="a U-Net")
    whole, provenance = path.read_bytes(), load_curve(path).provenance
    refused = 0
    flips = range(0, len(whole), STRIDE)
    for index in flips:
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 1 << index % 8]) + whole[index + 1 :])
        try:
            saved = load_curve(path)
        except ValueError as error:
            refused += str(path) in str(error)
        else:
            assert curve_sha256(saved.curve) == curve_sha256(curve) and saved.provenance == provenance
    assert refused > 0.5 * len(flips)  # three arrays of 480 bytes are more than half of the file


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: save_curve(p / "c.json", _curve()), "name it *.npz"),
        (lambda p: save_curve(p / "c.npz", PARTS), "pass an entropic.ErrorCurve"),
        (lambda p: save_curve(p / "c.npz", _curve(), multiplicity=[1.0]), "the curve has no directions"),
        (
            lambda p: save_curve(p / "c.npz", _curve(directions=PARTS), amplitudes=[1.0]),
            "amplitudes has shape (1,), but the curve has 2 directions",
        ),
        (
            lambda p: save_curve(p / "c.npz", _curve(directions=PARTS), amplitudes=[1.0, -1.0]),
            "amplitudes = -1.0 at its lowest; each must be at least 0",
        ),
        (
            lambda p: save_curve(p / "c.npz", _curve(directions=PARTS), multiplicity=[1.0, math.nan]),
            "multiplicity[1] = nan",
        ),
    ],
)
def test_a_curve_that_cannot_be_kept_is_named(tmp_path, call, words):
    with pytest.raises(ValueError) as error:
        call(tmp_path)
    assert words in str(error.value) and not os.listdir(tmp_path)


def test_the_lines_of_advice_run():
    """The Python blocks of the page *Which schedule for whom*, as they are printed, on data whose denoiser is known."""
    spread = torch.arange(1, 17, dtype=torch.float64) ** -0.5
    curve = estimate(
        lambda x, sigma: x / (1 + (sigma / spread) ** 2),
        spread * torch.randn(500, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        edm_sigmas(64).flip(0)[1:],
        samples=64,
        common_noise=False,
    ).curve()
    advice = json.loads((ROOT / "notebooks" / "which_schedule.ipynb").read_text("utf-8"))
    prose = "\n".join("".join(cell["source"]) for cell in advice["cells"] if cell["cell_type"] == "markdown")
    lines = re.findall(r"```python\n(.*?)```", prose, re.S)
    assert len(lines) == 3
    names = {"n": 4, "curve": curve, "variances": spread.square()}
    names["denoiser"] = lambda x, sigma: x / (1 + (sigma / spread) ** 2)
    # What stands for the reader's own: pilots in the dtype of the data, and the noise that a sampler starts from.
    float64 = SimpleNamespace(randn=lambda *shape: torch.randn(*shape, dtype=torch.float64))
    names |= {
        "torch": float64,
        "sigma_max": 80,
        "shape": (16,),
        "noise": torch.ones(2, 16, dtype=torch.float64),
    }
    for line, levels in zip(lines, (10, 4, 4), strict=True):
        exec("from entropic import Weighted, gaussian_optimal_sigmas, plan\n" + line, names)
        assert len(names["sigmas"]) == levels + 1 and names["sigmas"][-1] == 0
    assert names["start"].shape == names["noise"].shape
