"""The package itself: its public names, what an import costs, its version and its command."""

import ast
import inspect
import pickle
import time
import typing

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


def public_functions():
    """(name, function) of every public function and of the public methods of public classes and of what they return."""
    from entropic.exact.data import Law
    from entropic.solvers import Move, Step

    members = {name: getattr(entropic, name) for name in entropic.__all__ if name != "noise"}
    members |= {
        f"noise.{name}": value
        for name, value in vars(entropic.noise).items()
        if name[0] != "_" and getattr(value, "__module__", "") == "entropic.noise"
    }
    members |= {one.__name__: one for one in (Law, Move, Step, type(entropic.KL))}
    for name, value in members.items():
        if not getattr(value, "__module__", "").startswith("entropic"):
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for of, method in vars(value).items():
                method = getattr(method, "__func__", getattr(method, "fget", method))
                if inspect.isfunction(method) and (
                    of[0] != "_" or (of == "__init__" and not issubclass(value, tuple))
                ):
                    yield f"{name}.{of}", method


@pytest.mark.parametrize(
    ("name", "function"), [*public_functions()], ids=[name for name, _ in public_functions()]
)
def test_public_functions_are_annotated(name, function):
    hints = typing.get_type_hints(function)  # each name in them exists
    assert {*inspect.signature(function).parameters} - {"self", "cls"} <= {*hints} and "return" in hints
