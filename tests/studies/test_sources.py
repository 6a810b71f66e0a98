"""What a page depends on: the modules that it imports, wherever they are named, and no others; by content."""

import ast

import pytest

from studies.pages import ROOT, pages
from studies.sources import Tree, inputs

FILES = {
    "lib/__init__.py": "from lib.a import f\nfrom .b import g as h\nfrom lib.deep import *\n__all__ = ['f']\n",
    "lib/a.py": '"""A."""\nimport math\n\ndef f(x):\n    """Doubles."""\n    return 2 * x  # twice\n',
    "lib/b.py": "def g():\n    from lib.a import f\n    return f\n",
    "lib/c.py": "from . import a\nPATH = 'assets/one.csv'\n",
    "lib/d.py": "import importlib\nc = importlib.import_module('lib.c')\nFOLDER = 'assets'\n",
    "lib/deep/__init__.py": "from lib.deep.inner import i\n",
    "lib/deep/inner.py": "i = 1\n",
    "lib/lazy/__init__.py": "def __getattr__(name):\n    raise AttributeError\n",
    "lib/lazy/j.py": "j = 1\n",
    "lib/busy/__init__.py": "from lib import a\na.f(1)\n",
    "lib/busy/k.py": "k = 1\n",
    "lib/assets/one.csv": "1",
    "lib/assets/two.csv": "2",
}


@pytest.fixture
def tree(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return Tree({"lib": tmp_path / "lib"})


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("from lib import f", "lib.a"),  # who defines it, and not what else the package imports
        ("from lib import h", "lib.a lib.b"),
        ("from lib import i", "lib.deep.inner"),
        ("from lib.deep import inner", "lib.deep.inner"),
        ("from lib import b", "lib.a lib.b"),
        ("def f():\n    import lib.c as c", "lib.a lib.c"),
        ("from lib.d import c", "lib.a lib.c lib.d"),
        ("from lib.lazy import j2", "lib.lazy lib.lazy.j"),
        ("from lib.busy.k import k", "lib.a lib.busy lib.busy.k"),  # its package does more than import
        ("import lib", "lib lib.a lib.b lib.deep lib.deep.inner"),
        ("import math, numpy.linalg", ""),
    ],
)
def test_imports_are_followed_to_who_defines_the_name(tree, code, names):
    assert [module.name for module in tree.needed(ast.parse(code))] == names.split()


def test_data_files_are_those_that_a_module_names(tree):
    assert [path.name for path in tree.module("lib.c").data_files] == ["one.csv"]
    assert [path.name for path in tree.module("lib.d").data_files] == ["one.csv", "two.csv"]
    assert tree.module("lib.a").data_files == []


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("Doubles.", "Gives twice x.", True),
        ("  # twice", "", True),
        ("2 * x", "(2   *   x)", True),
        ("2 * x", "3 * x", False),
        ("import math\n", "import math\nprint(f.__doc__)\n", False),
    ],
)
def test_a_hash_is_that_of_what_a_module_does(tree, old, new, same):
    path = tree.module("lib.a").path
    before = tree.module("lib.a").sha256
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    assert (Tree(tree.roots).module("lib.a").sha256 == before) is same


def test_a_docstring_counts_where_it_is_read(tree):
    path = tree.module("lib.a").path
    found = set()
    for text in ("Doubles.", "Gives twice x."):
        path.write_text(f'def f():\n    """{text}"""\n\nprint(f.__doc__)\n', "utf-8")
        found.add(Tree(tree.roots).module("lib.a").sha256)
    assert len(found) == 2


def test_the_pages_depend_on_what_they_use(tmp_path):
    tree, found = Tree(), {}
    for name, page in pages().items():
        found[name] = inputs(page, page.parameters(), tmp_path, tree)
    exact = found["one_dimension"]
    assert "entropic/curve.py" in exact and any(part.startswith("entropic/exact/") for part in exact)
    assert not [part for part in exact if "rivals" in part or "images" in part or "leaderboard" in part]
    assert "entropic/images/assets/fashion-mnist.safetensors" in found["trained_network"]
    recorded = {
        f"book/results/leaderboard/{path.name}" for path in (ROOT / "book/results/leaderboard").iterdir()
    }
    assert recorded and recorded <= set(found["which_schedule"])
    needed = tree.needed(ast.parse("from studies import looks; from studies.claims import read_claims"))
    assert set(found["claims"]) == {
        "notebooks/claims.ipynb",
        "parameters",
        *(str(module.path.relative_to(ROOT)) for module in needed),
    }
    assert "notebooks/studies/claims.py" not in found["take_home"]  # which records no claim


def test_only_the_parameters_of_the_run_count(tmp_path):
    page, tree = pages()["entropic_time_by_example"], Tree()
    one, other = (inputs(page, page.chosen(profile), tmp_path, tree) for profile in ("default", "smoke"))
    assert {part for part in one if one[part] != other[part]} == {
        "notebooks/entropic_time_by_example.ipynb",
        "parameters",
    }
    assert inputs(page, page.chosen("recorded"), tmp_path, tree) == one  # the same values
