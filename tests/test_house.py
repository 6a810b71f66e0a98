"""The house: which part of the repository may import which, and that nobody opens another's drawers."""

import ast
import re

import pytest
import torch

import entropic
from studies.pages import pages
from studies.sources import Tree
from tests.conftest import ROOT

LAYERS = [
    "_check",
    "files",
    "core",
    "rivals",
    "images",
    "commands",
    "studies",
]  # each imports only itself and those before it
TREE = Tree()
MODULES = TREE.all()


def layer(name):
    parts = name.split(".")
    part = "studies" if parts[0] == "studies" else parts[1] if len(parts) > 1 else "core"
    part = "commands" if part == "__main__" else part  # the command line
    return LAYERS.index(part if part in LAYERS else "core")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_imports_follow_the_arrows(module):
    used = {name for found in module.imports for name in TREE.definers(*found)}
    assert [name for name in sorted(used) if layer(name) > layer(module.name)] == []
    if layer(module.name) <= LAYERS.index("rivals"):
        outside = {name.partition(".")[0] for name, _ in module.imports}
        assert outside & {"matplotlib", "PIL", "safetensors", "torchvision"} == set()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_private_names_stay_at_home(module):
    ours = [(of, name) for of, name in module.imports if of.partition(".")[0] in TREE.roots]
    private = [
        f"{of}.{name}"
        for of, name in ours
        if name and name.startswith("_") and (of, name) != ("entropic", "_check")
    ]
    modules = {name.rpartition(".")[2] for of in ours for name in TREE.definers(*of)}
    bound = {
        alias.asname or alias.name
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(module.tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules & bound
        ):
            if node.attr.startswith("_") and not node.attr.startswith("__"):
                private.append(f"{node.value.id}.{node.attr}")
    assert private == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_what_is_imported_exists(module):
    ours = [found for found in module.imports if found[0].partition(".")[0] in TREE.roots]
    assert [found for found in ours if not TREE.definers(*found)] == []


def test_distances_of_samples_come_by_the_function_that_knows_of_the_floor():
    """`frechet_distance` is between moments; studies and pages pass samples to `distance`, and show the floor."""
    # Real images: closed-form moments inside a subspace, with the floor as a dashed line.
    sources = {page.name: str(page.notebook()) for page in pages().values() if page.name != "real_images"}
    sources |= {one.name: ast.unparse(one.tree) for one in MODULES if one.name.startswith("studies")}
    assert [name for name, text in sources.items() if "frechet_distance" in text] == []


@pytest.mark.parametrize("page", pages().values(), ids=lambda page: page.name)
def test_what_a_notebook_imports_exists(page):
    cells = [cell["source"] for cell in page.notebook()["cells"] if cell["cell_type"] == "code"]
    for node in ast.walk(ast.parse("\n".join(cells))):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in TREE.roots:
            assert [one.name for one in node.names if not TREE.definers(node.module, one.name)] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_scipy_is_imported_where_it_is_used(module):
    """At the top of a module it would add a fifth to what torch costs every start of Python."""
    names = [
        getattr(node, "module", None) or alias.name
        for node in module.tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    ]
    late = not any(name.partition(".")[0] == "scipy" for name in names)
    assert late or not module.name.startswith("entropic")


def test_what_the_readme_calls_by_its_public_name_is_public():
    text = (ROOT / "README.md").read_text("utf-8")
    named = {
        *re.findall(r"`entropic\.(\w+)`", text),
        *(
            name
            for line in re.findall(r"^from entropic import (.+)$", text, re.M)
            for name in line.split(", ")
        ),
    }
    named |= {"KL", "W2", "Weighted"}
    assert named >= {"plan", "solver_aware_sigmas"}
    assert named - {*entropic.__all__} == set() and all(hasattr(entropic, name) for name in entropic.__all__)
    assert entropic.plan(4, entropic.ErrorCurve(*_gaussian_curve()), "ddim", entropic.KL).sigmas[-1] == 0


def _gaussian_curve():
    sigma = torch.logspace(-3, 2, 50, dtype=torch.float64)
    return sigma, sigma**2 / (1 + sigma**2)
