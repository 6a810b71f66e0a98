"""The package itself: its public names, what an import costs, its version and its command."""

import ast
import pickle
import time

import pytest
import torch

import entropic
from tests.conftest import ROOT, run_python


def test_public_names_are_those_of_the_modules():
    """What type checkers see, what `__all__` promises and what an attribute gives are the same objects."""
    seen = {}
    (block,) = [
        node
        for node in ast.parse((ROOT / "entropic" / "__init__.py").read_text("utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    for node in block.body:
        seen |= {alias.name: node.module for alias in node.names}
    assert sorted({*seen, "__version__"}) == sorted(entropic.__all__)
    for name, module in seen.items():
        home = __import__(module, fromlist=[name])
        assert getattr(entropic, name) is getattr(home, name)
    space = {}
    exec("from entropic import *", space)
    assert {*entropic.__all__} <= {*space} and {*entropic.__all__} <= {*dir(entropic)}
    with pytest.raises(AttributeError, match="'entropic' has no attribute 'klub_sigmas'"):
        _ = entropic.klub_sigmas


def test_public_objects_can_be_pickled():
    sigma = torch.logspace(-3, 2, 20, dtype=torch.float64)
    curve = pickle.loads(pickle.dumps(entropic.ErrorCurve(sigma, sigma**2 / (1 + sigma**2))))
    assert torch.equal(curve.sigma, sigma)
    assert pickle.loads(pickle.dumps(entropic.edm_sigmas)) is entropic.edm_sigmas


LATE = "import sys; {}; print(*{{'torch', 'scipy', 'numpy'}} & {{*sys.modules}})"


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        ("import entropic; entropic.__version__", set()),
        ("import entropic.files", {"numpy"}),
        ("from entropic import edm_sigmas", {"numpy", "torch"}),
    ],
)
def test_an_import_loads_what_it_needs_and_no_more(code, loaded):
    run = run_python("-c", LATE.format(code))
    assert run.returncode == 0 and {*run.stdout.split()} == loaded, run.stderr


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["schedule", "--help"]])
def test_help_comes_at_once_and_without_torch(words):
    code = "import runpy, sys; sys.argv[1:] = {!r}\ntry: runpy.run_module('entropic', run_name='__main__')\n"
    code += "except SystemExit: print('late:', 'torch' in sys.modules)"
    run = run_python("-c", code.format(words))
    assert run.stdout.endswith("late: False\n"), run.stderr
    took = []
    for _ in range(3):  # the machine may be busy
        began = time.perf_counter()
        run = run_python("-m", "entropic", *words)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.5, took
    version, usage = f"entropic {entropic.__version__}", f"usage: {' '.join(['entropic', *words[:-1]])} "
    assert run.stdout.startswith(version if words == ["--version"] else usage)


def test_an_error_names_the_command():
    run = run_python("-m", "entropic", "schedule", "edm", "-n", "1")
    assert run.returncode == 2 and run.stderr.startswith("entropic: error: n = 1")
