"""The command line: what it prints is what the functions give, and bad input is one line and exit code 2."""

import json
import math
import runpy
import sys

import numpy as np
import pytest
import torch

from entropic import __main__ as cli
from entropic.curve import ErrorCurve
from entropic.gaussian import gaussian_deviation
from entropic.placement import gaussian_optimal_sigmas, solver_aware_sigmas
from entropic.saved import curve_sha256, load_schedule, save_curve
from entropic.schedules import (
    arctan_sigmas,
    cosine_sigmas,
    edm_sigmas,
    entropic_sigmas,
    linear_sigmas,
    log_sigmas,
    rescaled_sigmas,
    spectral_sigmas,
    vp_sigmas,
)
from tests.conftest import run_python

F64 = torch.float64
SIGMA = torch.logspace(-3, 2, 300, dtype=F64)
VARIANCES, COUNT = torch.tensor([4.0, 0.01], dtype=F64), torch.tensor([1.0, 3.0], dtype=F64)
PARTS = COUNT * VARIANCES * SIGMA[:, None] ** 2 / (VARIANCES + SIGMA[:, None] ** 2)
CURVE = ErrorCurve(SIGMA, PARTS.sum(1), dim=4, directions=PARTS)
AMPLITUDES = COUNT * VARIANCES.sqrt()


@pytest.fixture(name="curve")
def _curve(tmp_path):
    save_curve(tmp_path / "curve.npz", CURVE, multiplicity=COUNT, amplitudes=AMPLITUDES)
    return tmp_path / "curve.npz"


def _sigmas(capsys, *words):
    """What `python -m entropic schedule ...` prints, read back."""
    assert cli.main(["schedule", *map(str, words)]) == 0
    out, err = capsys.readouterr()
    assert not err
    return torch.tensor([float(line) for line in out.splitlines()], dtype=F64)


def _refused(capsys, *words):
    """The one line of an error."""
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, words)])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and not out
    assert err.count("\n") == 1 and err.endswith("\n") and ": error: " in err
    return err


# Printed as computed


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("edm", edm_sigmas),
        ("log", log_sigmas),
        ("linear", linear_sigmas),
        ("cosine", cosine_sigmas),
        ("vp", vp_sigmas),
        ("arctan", arctan_sigmas),
    ],
)
def test_a_schedule_without_data_is_that_of_its_function(capsys, name, function):
    assert torch.equal(_sigmas(capsys, name, "-n", 7), function(7))
    found = _sigmas(capsys, name, "-n", 7, "--sigma-min", 0.03, "--sigma-max", 20)
    assert torch.equal(found, function(7, 0.03, 20.0))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("entropic",), lambda: entropic_sigmas(9, CURVE)),
        (("rescaled",), lambda: rescaled_sigmas(9, CURVE)),
        (("spectral",), lambda: spectral_sigmas(9, CURVE, AMPLITUDES)),
        (
            ("solver-aware", "--solver", "heun"),
            lambda: solver_aware_sigmas(CURVE, 9, "heun", multiplicity=COUNT),
        ),
        (
            ("solver-aware", "--solver", "ddim", "--metric", "kl"),
            lambda: solver_aware_sigmas(CURVE, 9, "ddim", "kl", multiplicity=COUNT),
        ),
        (
            ("solver-aware", "--solver", "ddim_stochastic", "--alpha", 0.75),
            lambda: solver_aware_sigmas(CURVE, 9, "ddim_stochastic", alpha=0.75, multiplicity=COUNT),
        ),
        (
            ("solver-aware", "--solver", "heun", "--free-end"),
            lambda: solver_aware_sigmas(CURVE, 9, "heun", multiplicity=COUNT, free_end=True),
        ),
    ],
)
def test_a_schedule_of_a_curve_is_that_of_its_function(capsys, curve, words, expected):
    assert torch.equal(_sigmas(capsys, *words, "-n", 9, "--curve", curve), expected())


def _written(path, variances):
    if path.suffix == ".npy":
        np.save(path, np.asarray(variances))
    else:
        path.write_text({".txt": "\n", ".csv": ","}[path.suffix].join(map(repr, variances)) + "\n")
    return path


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".npy"])
def test_a_spectrum_is_read_from_text_and_npy(capsys, tmp_path, suffix):
    """Equal variances count as often as they stand there; a variance of 0 has no error."""
    path = _written(tmp_path / f"v{suffix}", [0.01, 4.0, 0.01, 0.0, 0.01])
    found = _sigmas(
        capsys, "gaussian-optimal", "-n", 4, "--variances", path, "--solver", "heun", "--alpha", 0.75
    )
    expected = gaussian_optimal_sigmas(VARIANCES.flip(0), 4, "heun", alpha=0.75, multiplicity=COUNT.flip(0))
    assert torch.equal(found, expected)
    # The curve of the spectrum is CURVE but for its levels, of which the splines of both are good to 1e-7.
    found = _sigmas(capsys, "rescaled", "-n", 9, "--variances", path)
    torch.testing.assert_close(found, rescaled_sigmas(9, CURVE, 0.002, 80), rtol=1e-5, atol=0)
    found = _sigmas(capsys, "spectral", "-n", 9, "--variances", path)
    # A direction's share is counted from sigma_min to sigma_max.
    span = torch.logspace(math.log10(0.002), math.log10(80.0), 300, dtype=F64)
    parts = COUNT * VARIANCES * span[:, None] ** 2 / (VARIANCES + span[:, None] ** 2)
    expected = spectral_sigmas(9, ErrorCurve(span, parts.sum(1), directions=parts), AMPLITUDES)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_the_range_is_the_curve_s_own_and_edm_s_without_one(capsys, tmp_path):
    save_curve(tmp_path / "c.npz", CURVE, multiplicity=COUNT)
    save_curve(tmp_path / "low.npz", ErrorCurve(SIGMA[:100], CURVE.eps2[:100]))  # all of it below 1
    for name, more in (("rescaled", ()), ("entropic", ()), ("solver-aware", ("--solver", "ddim"))):
        words, free = (
            (name, "-n", 5, *more),
            name == "solver-aware",
        )  # whose last level is free unless it is given
        found = _sigmas(capsys, *words, "--curve", tmp_path / "c.npz")
        assert found[0] == SIGMA[-1] and (found[-2] > SIGMA[0] if free else found[-2] == SIGMA[0])
        found = _sigmas(capsys, *words, "--curve", tmp_path / "c.npz", "--sigma-max", 50)
        assert found[0] == 50 and (found[-2] > SIGMA[0] if free else found[-2] == SIGMA[0])
        found = _sigmas(capsys, *words, "--curve", tmp_path / "low.npz", "--sigma-min", 0.01)
        assert (found[0], found[-2]) == (SIGMA[99], 0.01)
        found = _sigmas(capsys, *words, "--preset", 1)
        assert found[0] == 80 and (found[-2] > 0.002 if free else found[-2] == 0.002)
    found = _sigmas(capsys, "edm", "-n", 5, "--sigma-min", 0.1)
    assert (found[0], found[-2]) == (80, 0.1)


@pytest.mark.parametrize("c", [0.5, 1.0, 30.0])
def test_a_preset_is_one_gaussian_whose_grids_are_known(capsys, c):
    """Appendix E: rescaled time is arctan(sigma / c), and so is what suits deterministic DDIM, whatever the weights."""
    expected = arctan_sigmas(16, c=c)
    assert torch.equal(_sigmas(capsys, "arctan", "-n", 16, "--preset", c), expected)
    for words in (
        ("rescaled",),
        ("solver-aware", "--solver", "ddim"),
        ("solver-aware", "--solver", "ddim", "--alpha", 0),
    ):
        found = _sigmas(capsys, *words, "-n", 16, "--preset", c, "--sigma-min", 0.002)
        # A spline of step h = 1/32: h^4 / 384 = 2.5e-9 of phi, and dlog(sigma) = dphi sigma / c near sigma_max.
        torch.testing.assert_close(found, expected, rtol=2.5e-9 * 4 * max(1.0, 80 / c), atol=0)


def test_a_spectrum_s_optimum_is_no_worse_than_any_other_schedule(capsys, tmp_path):
    path = _written(tmp_path / "v.txt", [4.0, 0.01, 0.01, 0.01])
    data = ("-n", 6, "--variances", path)
    solver = ("--solver", "heun", "--metric", "w2")

    def distance(sigmas):
        return gaussian_deviation(VARIANCES, sigmas, "heun", "w2", multiplicity=COUNT).item()

    best = distance(_sigmas(capsys, "gaussian-optimal", *data, *solver, "--free-end"))
    others = [("edm", "-n", 6), ("log", "-n", 6), ("rescaled", *data), ("solver-aware", *data, *solver)]
    assert all(best <= distance(_sigmas(capsys, *words)) * (1 + 1e-9) for words in others)


# Formats and files


def test_formats_hold_the_same_sigmas(capsys, curve, tmp_path):
    words = ["schedule", "solver-aware", "-n", "8", "--solver", "heun", "--curve", str(curve)]
    out = tmp_path / "s.json"
    expected = _sigmas(capsys, *words[1:], "--out", out)
    assert expected.shape == (9,) and expected[-1] == 0
    saved, provenance = load_schedule(out)
    assert torch.equal(saved, expected)
    told = {"schedule": "solver-aware", "solver": "heun", "metric": None, "alpha": 0.75, "n": 8}
    assert told.items() <= provenance.items()
    assert provenance["curve_sha256"] == curve_sha256(CURVE) and provenance["data"] == "curve curve.npz"

    assert cli.main([*words, "--format", "json"]) == 0
    again = tmp_path / "again.json"
    again.write_text(capsys.readouterr().out)
    found, told = load_schedule(again)
    assert torch.equal(found, expected)
    assert told | {"date": 0} == provenance | {"date": 0}

    assert cli.main([*words, "--format", "python"]) == 0
    space = {}
    exec(capsys.readouterr().out, space)
    assert space["sigmas"] == expected.tolist()


def test_it_runs_as_a_module(tmp_path, monkeypatch, capsys):
    good = run_python("-m", "entropic", "schedule", "edm", "-n", "5")
    assert (good.returncode, good.stderr) == (0, "")
    assert [float(line) for line in good.stdout.splitlines()] == edm_sigmas(5).tolist()
    words = ["schedule", "rescaled", "-n", "5", "--curve", str(tmp_path / "none.npz")]
    monkeypatch.setattr(sys, "argv", ["entropic", *words])
    monkeypatch.delitem(sys.modules, "entropic.__main__")  # else runpy warns
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("entropic", run_name="__main__")
    out, err = capsys.readouterr()
    assert (
        stop.value.code == 2
        and out == ""
        and "none.npz" in err
        and err.count("\n") == 1
        and "Traceback" not in err
    )


# Bad input


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "command"),
        (["schedule"], "NAME"),
        (["schedule", "karras", "-n", 4], "choose from"),
        (["schedule", "edm"], "-n"),
        (["schedule", "edm", "-n", "four"], "invalid int value: 'four'"),
        (["schedule", "edm", "-n", 1], "n = 1;"),
        (["schedule", "edm", "-n", -4], "n = -4;"),
        (["schedule", "edm", "-n", 10**30], "no sampler takes more"),
        (["schedule", "edm", "-n", 4, "--sigma-min", 2, "--sigma-max", 1], "sigma_min = 2.0 is not below"),
        (["schedule", "edm", "-n", 4, "--sigma-max", "nan"], "sigma_max[] = nan"),
        (["schedule", "edm", "-n", 4, "--sigma-min", 0], "sigma_min = 0.0"),
        (["schedule", "vp", "-n", 4, "--sigma-max", 1000], "noise from 0 to 152"),
        (["schedule", "edm", "-n", 4, "--preset", 1], "--preset has no effect on edm"),
        (["schedule", "edm", "-n", 4, "--solver", "heun"], "--solver has no effect on edm"),
        (["schedule", "rescaled", "-n", 4, "--alpha", 1, "--preset", 1], "--alpha has no effect on rescaled"),
        (["schedule", "rescaled", "-n", 4], "rescaled needs data"),
        (["schedule", "arctan", "-n", 4, "--variances", "v.txt"], "pass --preset C"),
        (["schedule", "arctan", "-n", 4, "--preset", -1], "c = -1.0"),
        (["schedule", "rescaled", "-n", 4, "--preset", 0], "preset = 0.0"),
        (["schedule", "rescaled", "-n", 4, "--preset", "1e200"], "variances[0] = inf"),
        (["schedule", "rescaled", "-n", 4, "--preset", 1, "--variances", "v.txt"], "both given"),
        (["schedule", "solver-aware", "-n", 4, "--preset", 1], "needs --solver"),
        (["schedule", "solver-aware", "-n", 4, "--preset", 1, "--solver", "rk4"], "solver = 'rk4'"),
        (
            ["schedule", "solver-aware", "-n", 4, "--preset", 1, "--solver", "ddim", "--metric", "fid"],
            "metric = 'fid'",
        ),
        (
            [
                "schedule",
                "solver-aware",
                "-n",
                4,
                "--preset",
                1,
                "--solver",
                "ddim",
                "--metric",
                "kl",
                "--alpha",
                1,
            ],
            "both given",
        ),
        (
            ["schedule", "gaussian-optimal", "-n", 4, "--preset", 1, "--solver", "ddim", "--alpha", "nan"],
            "alpha",
        ),
        (
            ["schedule", "solver-aware", "-n", 4, "--preset", 1, "--solver", "heun", "--alpha", "1e3"],
            "alpha = 1000.0;",
        ),
        (
            ["schedule", "solver-aware", "-n", 4, "--preset", 1, "--solver", "heun", "--alpha", "-1e3"],
            "alpha = -1000.0",
        ),
        (
            ["schedule", "solver-aware", "-n", 4, "--preset", 1, "--solver", "heun", "--alpha", "inf"],
            "alpha = inf",
        ),
        (["schedule", "edm", "-n", 4, "--sigma-min", "-1e-3"], "sigma_min = -0.001"),
        (["schedule", "edm", "-n", 4, "--out", "/none/s.json"], "/none/s.json"),
        (["schedule", "edm", "-n", 4, "--out", "/none/s.json"], "its folder does not exist; make it first"),
        (
            ["schedule", "edm", "-n", 4, "--out", f"/tmp/{'a' * 251}.json"],
            "cannot be written: File name too long",
        ),
        (["schedule", "rescaled", "-n", 4, "--variances", "/none/v.txt"], "/none/v.txt"),
        (["schedule", "rescaled", "-n", 4, "--variances", "/"], "/"),
        (["schedule", "edm", "-n", 4, "--out", "/none/s.json"], "/none"),
        (["schedule", "edm", "-n", 4, "--out", "s.txt"], "name it *.json"),
        (["schedule", "edm", "-n", 4, "--free-end"], "--free-end has no effect on edm"),
        (["schedule", "edm", "-n", 4, "--format", "yaml"], "invalid choice: 'yaml'"),
    ],
)
def test_bad_words_are_one_line_and_exit_code_2(capsys, words, told):
    assert told in _refused(capsys, *words)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("v.txt", "", "holds no number"),
        ("v.txt", "1 2 nan", "variances[2] = nan"),
        ("v.txt", "1 -2", "none below 0"),
        ("v.txt", "0 0", "one above"),
        ("v.csv", "variance\n1.0\n", "could not convert string to float: 'variance'; pass numbers only"),
        ("v.csv", b"\xff\xfe\x00", "v.csv"),
        ("v.npy", b"", "v.npy is no whole npy"),
        ("v.npy", b"\x93NUMPY", "v.npy is no whole npy"),
        ("v.npy", np.array([None, 1]), "v.npy is no whole npy"),
        ("v.npy", np.array([1j]), "holds complex128"),
        ("v.npy", np.eye(2), "shape (2, 2)"),
        ("v.npy", np.array([1.0, math.inf]), "variances[1] = inf"),
        ("v.npy", np.array([]), "holds no number"),
    ],
)
def test_a_bad_spectrum_is_one_line_and_exit_code_2(capsys, tmp_path, name, content, told):
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    error = _refused(capsys, "schedule", "rescaled", "-n", 4, "--variances", path)
    assert told in error


def test_a_bad_curve_is_one_line_and_exit_code_2(capsys, curve, tmp_path):
    optimal = ("schedule", "gaussian-optimal", "-n", 4, "--solver", "heun", "--curve", curve)
    assert "made for a spectrum" in _refused(capsys, *optimal)
    beyond = ("schedule", "rescaled", "-n", 4, "--sigma-max", 500, "--curve", curve)
    assert "outside the curve, which covers [0.001, 100]" in _refused(capsys, *beyond)
    bare = tmp_path / "bare.npz"
    save_curve(bare, ErrorCurve(SIGMA, PARTS.sum(1)))
    assert "holds no amplitudes" in _refused(capsys, "schedule", "spectral", "-n", 4, "--curve", bare)
    curve.write_bytes(curve.read_bytes()[:-9])
    assert "truncated" in _refused(capsys, "schedule", "rescaled", "-n", 4, "--curve", curve)
    (tmp_path / "s.json").write_text(json.dumps({}))
    wrong = ("schedule", "rescaled", "-n", 4, "--curve", tmp_path / "s.json")
    assert "no whole npz" in _refused(capsys, *wrong)
