"""Files of numbers: another layout is refused with what was found, and no damaged file escapes as another error."""

import json
import os
import stat
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from entropic import __main__ as cli
from entropic import _check
from entropic.commands import schedule
from entropic.curve import ErrorCurve
from entropic.estimate import curve_from_training_log
from entropic.files import load_arrays
from entropic.saved import load_curve, load_schedule, save_curve, save_schedule
from entropic.schedules import edm_sigmas
from tests.conftest import ROOT

SIGMA = torch.logspace(-3, 2, 40, dtype=torch.float64)


def _refused(capsys, path):
    with pytest.raises(SystemExit) as stop:
        cli.main(["schedule", "rescaled", "-n", "4", "--variances", str(path)])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and not out and err.count("\n") == 1
    return err


def _printed(capsys, path):
    assert cli.main(["schedule", "rescaled", "-n", "4", "--variances", str(path)]) == 0
    return capsys.readouterr().out


# Layout


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0,4.0\n1,0.5\n2,0.01\n", "line 1 of 3 is '0,4.0', with 2 numbers or a decimal comma"),
        ("0\t4.0\n1\t0.5\n", "line 1 of 2 is '0\\t4.0', with 2 numbers"),
        ("0;4,0\n1;0,5\n", "with 3 numbers or a decimal comma"),
        ("4,0\n0,5\n", "with 2 numbers or a decimal comma"),
        ("4.0\n0.5 0.1\n", "line 2 of 2 is '0.5 0.1', with 2 numbers"),
        ("1 2\n3 4\n", "line 1 of 2"),
        ("4,0;0,5;0,1\n", "may be read in two ways"),
        ("4,0 0,5\n", "may be read in two ways"),
        ("4,0, 0,5\n", "may be read in two ways"),
        ("4,5\n", "may be read in two ways"),
        ("4.0,\n0.5,\n", "line 1 of 2"),
        ("4.0 0.5;0.1\n", "may be read in two ways"),
        ("variance\n4.0\n", "could not convert string to float: 'variance'"),
        ("1_000 2.0\n", "could not convert string to float: '1_000'"),
        ("4.0,,0.5\n", "could not convert string to float: ''"),
        ("# 4.0\n", "#"),
    ],
)
def test_another_layout_is_refused(capsys, tmp_path, text, told):
    (tmp_path / "v.csv").write_text(text)
    error = _refused(capsys, tmp_path / "v.csv")
    assert told in error and str(tmp_path / "v.csv") in error and "one a line" in error


@pytest.mark.parametrize(
    "text",
    [
        "4.0\n0.5\n0.01\n",
        "4.0 0.5 0.01",
        "4.0,0.5,0.01\n",
        "4.0, 0.5, 0.01\n",
        "4.0;0.5;0.01",
        "\ufeff4.0\r\n.5\r\n\r\n1e-2\r\n",
    ],
)
def test_one_number_a_line_or_one_line(capsys, tmp_path, text):
    (tmp_path / "v.txt").write_bytes(text.encode())
    np.save(tmp_path / "v.npy", np.array([4.0, 0.5, 0.01]))
    assert _printed(capsys, tmp_path / "v.txt") == _printed(capsys, tmp_path / "v.npy")


@pytest.mark.parametrize(
    "array", [np.eye(2), np.ones((3, 1)), np.ones((1, 3)), np.array(1.0), np.ones((2, 2, 2))]
)
def test_an_array_of_rows_and_columns_is_refused(capsys, tmp_path, array):
    np.save(tmp_path / "v.npy", array)
    assert f"shape {array.shape}; pass one dimension" in _refused(capsys, tmp_path / "v.npy")


# Damage


def _line(step, count=40):
    x = [0.1 * step + k for k in range(4)]
    return {"step": step, "count": [count] * 4, "loss": x, "loss2": x, "log_sigma": [k * 10.0 for k in x]}


def _curve_file(path):
    parts = torch.stack([1 / (1 + SIGMA**-2), 3 / (0.5 + SIGMA**-2)], 1)
    curve = ErrorCurve(SIGMA, parts.sum(1), dim=4, directions=parts)
    save_curve(path, curve, multiplicity=[1.0, 3.0], amplitudes=[1.0, 2.0], note="text")


def _log_file(path):
    header = {"sigma_edges": [0.1, 1, 2, 3, 4], "sigma_data": 0.5, "dim": 4}
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, _line(1), _line(2))))


def _variances(path):
    return schedule._numbers(path)


LOADERS = {
    "schedule": ("s.json", lambda path: save_schedule(path, edm_sigmas(6), note="text"), load_schedule),
    "curve": ("c.npz", _curve_file, load_curve),
    "training log": ("log.jsonl", _log_file, curve_from_training_log),
    "variances, text": ("v.txt", lambda path: path.write_text("4.0\n0.5\n1e-2\n"), _variances),
    "variances, npy": ("v.npy", lambda path: np.save(path, np.array([4.0, 0.5, 0.01])), _variances),
    "arrays": ("a.npz", lambda path: np.savez(path, a=np.arange(5), b=np.array("text")), load_arrays),
}
WORDS = [
    b"nan",
    b"null",
    b"-1",
    b"1e999",
    b"9" * 400,
    b"[" * 3000,
    b"{}",
    b'"\\ud800"',
    b"true",
    b"\x00",
    b"\n",
    b"1j",
    b"0",
]


def _mutated(content, draw):
    content = bytearray(content)
    for _ in range(draw.integers(1, 4)):
        at = int(draw.integers(len(content) + 1)) if len(content) else 0
        kind = draw.integers(5)
        if kind == 0:
            del content[at:]
        elif kind == 1 and at < len(content):
            content[at] ^= 1 << int(draw.integers(8))
        elif kind == 2:
            content[at:at] = draw.bytes(int(draw.integers(1, 9)))
        elif kind == 3:
            content[at : at + int(draw.integers(1, 20))] = WORDS[draw.integers(len(WORDS))]
        else:
            del content[at : at + int(draw.integers(1, 40))]
    return bytes(content)


@pytest.mark.parametrize("kind", LOADERS)
def test_a_damaged_file_is_one_documented_error_with_its_path(tmp_path, kind):
    name, make, load = LOADERS[kind]
    path = tmp_path / name
    make(path)
    load(path)
    good, draw, refused = path.read_bytes(), np.random.default_rng(len(kind)), 0
    for _ in range(400):
        path.write_bytes(_mutated(good, draw))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load(path)
            except ValueError as error:
                refused += 1
                assert str(path) in str(error)
    assert refused > 100


# Entrances


@pytest.mark.parametrize(
    "value",
    [
        1j,
        [1j],
        np.array([1j]),
        np.complex64(1),
        torch.tensor([1 + 0j]),
        [torch.tensor(1j)],
        [[1.0, 1j]],
        (np.complex128(1),),
    ],
)
def test_complex_numbers_are_refused_and_not_cast(value):
    with pytest.raises(ValueError, match="sigma is complex; pass real numbers"):
        _check.as_float64("sigma", value)


@pytest.mark.parametrize("value", [True, [1.0, 2.0], [], "1", None, 10**400, {}, torch.ones(2)])
def test_a_number_above_0_is_one_number(value):
    with pytest.raises(ValueError, match=r"^c = "):
        _check.positive("c", value)


# What is written


def test_a_long_name_is_written_like_any_other(tmp_path, capsys):
    out = tmp_path / f"{'a' * 250}.json"
    assert cli.main(["schedule", "edm", "-n", "4", "--out", str(out)]) == 0
    assert torch.equal(load_schedule(out)[0], edm_sigmas(4)) and os.listdir(tmp_path) == [out.name]
    assert capsys.readouterr().out.count("\n") == 5


def test_an_ascii_terminal_loses_nothing(tmp_path):
    path = tmp_path / "varianzen-é-σ.txt"
    path.write_text("4.0\n0.5\n")
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = (
        "import sys; from entropic.__main__ import main\n"
        "for style in 'text', 'json', 'python':\n"
        "    for path in sys.argv[1:]:\n"
        "        words = ['schedule', 'rescaled', '-n', '4', '--format', style, '--variances', path]\n"
        "        try: print(f'{style}:', main(words))\n"
        "        except SystemExit as stop: print(f'{style}: stopped with', stop.code)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, path, path.with_name("ö.txt")],
        cwd=ROOT,
        env=os.environ | ascii_only,
        capture_output=True,
        encoding="ascii",
    )
    assert found.returncode == 0, found.stderr
    for style in ("text", "json", "python"):
        made, told = found.stdout.split(f"{style}: 0\n", 1)
        assert "80.0" in made and told.startswith(f"{style}: stopped with 2\n")
    assert found.stderr.count("\n") == 3 == found.stderr.count(".txt")


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_saved_files_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_schedule(tmp_path / "s.json", edm_sigmas(4))
        _curve_file(tmp_path / "c.npz")
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
