"""What a page's results depend on, each part with a hash of its content.

A page depends on the code of its notebook and on its parameters, on the modules that it imports and those that they
import, on the data files that these name, and on what `notebooks/book.yml` says that it reads. Python modules are
hashed without comments, docstrings and layout, and notebooks without their prose, so that a better sentence makes no
page out of date: the prose of a page is taken from its notebook whenever the html is built.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from studies.pages import NOTEBOOKS, ROOT, Page

__all__ = ["Module", "Tree", "inputs"]


def inputs(page: Page, parameters: dict, results: Path, tree: Tree) -> dict[str, str]:
    """Name of each part that the results of a page depend on -> its sha256.

    parameters: all that the run has; results: the folder with one folder of results a page
    """
    notebook = page.notebook(parameters)
    cells = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    found = {
        _name(page.source): _sha256(cells),
        "parameters": _sha256(parameters),
    }
    code = "\n".join(map(_python, cells))
    for module in tree.needed(ast.parse(code)):
        found[_name(module.path)] = module.sha256
        for path in module.data_files:
            found[_name(path)] = tree.file(path)
    for folder in page.recorded:
        for path in sorted((ROOT / "book" / "results" / folder).glob("*")):
            found[_name(path)] = tree.file(path)
    for pattern in page.files:
        for path in sorted(ROOT.glob(pattern)):
            found[_name(path)] = tree.file(path)
    for pattern in page.results:
        for path in sorted(results.glob(pattern)):
            if path.parent.name != page.name:
                found[f"results/{path.relative_to(results).as_posix()}"] = tree.file(path)
    return found


class Module:
    """One Python file of the repository.

    root: the folder of its outermost package, which data files are looked for in
    """

    def __init__(self, name: str, path: Path, root: Path):
        self.name, self.path, self.root = name, path, root
        self.is_package = path.name == "__init__.py"

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_bytes(), str(self.path))

    @cached_property
    def sha256(self) -> str:
        """Of what the module does: its syntax tree without docstrings, unless it reads one (``__doc__``)."""
        kept = ast.parse(self.path.read_bytes())
        names = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(kept)}
        if "__doc__" not in names:
            for node in ast.walk(kept):
                for part in ("body", "orelse", "finalbody"):
                    lines = getattr(node, part, None)
                    if isinstance(lines, list):
                        setattr(node, part, [line for line in lines if not _is_text(line)])
        return _sha256(ast.dump(kept))

    @cached_property
    def is_plain(self) -> bool:
        """Whether a package's file only imports and names things, so that running it changes nothing else."""
        return all(_is_plain(line) for line in self.tree.body)

    @cached_property
    def imports(self) -> list[tuple[str, str | None]]:
        """Every (module, name) that it imports from; name None where the module itself is imported."""
        package = self.name if self.is_package else self.name.rpartition(".")[0]
        return list(_imports(self.tree, package))

    def bound(self, name: str) -> Iterator[tuple[str, str | None]]:
        """Where a package has `name` from, as (module, name); itself where it defines it."""
        package, found = self.name, False
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for alias in node.names:
                    if (alias.asname or alias.name) in (name, "*"):
                        for module, original in _imports(ast.Module([node], []), package):
                            if original in (alias.name, None, "*"):
                                yield module, name if original == "*" else original
                                found = found or original != "*"
            elif name in _defined(node):
                yield self.name, None
                found = True
        if not found and any("__getattr__" in _defined(node) for node in self.tree.body):
            yield self.name, "*"

    @cached_property
    def data_files(self) -> list[Path]:
        """Files that a text in it names, 'assets/weights.npz', or all of a folder, 'assets', of its packages."""
        found, folders = [], [self.path.parent, *self.path.parent.parents]
        folders = folders[: folders.index(self.root) + 1]
        texts = {node.value for node in ast.walk(self.tree) if isinstance(node, ast.Constant)}
        for text in sorted(text for text in texts if isinstance(text, str) and 0 < len(text) < 200):
            first = text.partition("/")[0]
            if not first.isidentifier():
                continue
            for folder in folders:
                inside = folder / first
                if inside.is_dir() and not any(inside.glob("*.py")):
                    named = folder / text
                    within = sorted(path for path in inside.rglob("*") if path.is_file())
                    found += [named] if named.is_file() else within
        return found


class Tree:
    """The modules of the repository's packages; each file is read once."""

    def __init__(self, roots: dict[str, Path] | None = None):
        self.roots = roots or {"entropic": ROOT / "entropic", "studies": NOTEBOOKS / "studies"}
        self._modules: dict[str, Module | None] = {}
        self._files: dict[Path, str] = {}

    def file(self, path: Path) -> str:
        """The sha256 of a file."""
        if path not in self._files:
            self._files[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._files[path]

    def module(self, name: str) -> Module | None:
        """The module of that full name; None where it is none of ours."""
        if name not in self._modules:
            first, *rest = name.split(".")
            found = None
            if first in self.roots:
                path = self.roots[first].joinpath(*rest)
                for file in (path / "__init__.py", path.parent / f"{path.name}.py"):
                    if found is None and file.is_file():
                        found = Module(name, file, self.roots[first])
            self._modules[name] = found
        return self._modules[name]

    def all(self) -> list[Module]:
        """Every module that there is."""
        found = []
        for first, root in self.roots.items():
            for path in sorted(root.rglob("*.py")):
                parts = [first, *path.relative_to(root).with_suffix("").parts]
                found.append(self.module(".".join(part for part in parts if part != "__init__")))
        return found

    def definers(self, module: str, name: str | None) -> set[str]:
        """The modules that must be read to know what `from module import name` gives; none where it is not ours."""
        return self._definers(module, name, set())

    def _definers(self, module, name, seen) -> set[str]:
        found = self.module(module)
        if found is None or (module, name) in seen:
            return set()
        seen.add((module, name))
        if name is None or not found.is_package:
            return {module}
        if name == "*":  # anything: the package with all that it holds
            inside = [one.name for one in self.all() if one.name.startswith(f"{module}.")]
            return {module, *inside}
        names = {f"{module}.{name}"} if self.module(f"{module}.{name}") else set()
        for origin, original in found.bound(name):
            names |= (
                {module} if (origin, original) == (module, None) else self._definers(origin, original, seen)
            )
        return names

    def needed(self, code: ast.AST, package: str = "") -> list[Module]:
        """The modules that some code depends on, directly or through others, by name.

        A package's own file counts where it does more than import, or where the package itself is imported.
        """
        names, todo = set(), [*_imports(code, package)]
        while todo:
            for name in self.definers(*todo.pop()):
                parts = name.split(".")
                parents = [".".join(parts[:i]) for i in range(1, len(parts))]
                for one in (name, *(p for p in parents if self.module(p) and not self.module(p).is_plain)):
                    if one not in names:
                        names.add(one)
                        todo += self.module(one).imports
        return [self.module(name) for name in sorted(names)]


def _imports(code: ast.AST, package: str) -> Iterator[tuple[str, str | None]]:
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
                if alias.asname is None and "." in alias.name:  # `import a.b` gives the name a
                    yield alias.name.partition(".")[0], None
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, base] if base else parts)
            for alias in node.names:
                yield base, alias.name
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value, None


def _defined(node: ast.AST) -> set[str]:
    """The names that a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    if not isinstance(node, (ast.Assign, ast.AnnAssign)):
        return set()
    return {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}


def _is_plain(line: ast.stmt) -> bool:
    if _is_text(line) or isinstance(line, (ast.Import, ast.ImportFrom)):
        return True
    if isinstance(line, ast.If):  # TYPE_CHECKING
        return all(map(_is_plain, [*line.body, *line.orelse]))
    if isinstance(line, ast.FunctionDef):
        return line.name in ("__getattr__", "__dir__")
    if isinstance(line, (ast.Assign, ast.AnnAssign)):
        return not any(isinstance(node, (ast.Call, ast.Attribute)) for node in ast.walk(line))
    return False


def _is_text(line: ast.AST) -> bool:
    return (
        isinstance(line, ast.Expr)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    )


def _python(source: str) -> str:
    """A cell without what only a notebook understands: lines that begin with % or !."""
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _sha256(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
