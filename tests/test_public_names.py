"""Every `__all__` is sorted, true, and complete for what other packages import."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sdk", "edge_server", "firmware_tools", "models")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {
    module_of(path): ast.parse(path.read_text(encoding="utf-8"))
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def public_names(tree: ast.Module) -> list[str] | None:
    """Return the module's `__all__`, or None if it has none."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
                assert node.value is not None
                return list(ast.literal_eval(node.value))
    return None


def defined_names(tree: ast.AST) -> Iterator[str]:
    """Yield what a module binds outside of functions and classes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        else:
            yield from defined_names(node)


def isort_style(name: str) -> tuple[int, list[tuple[int, int, str]]]:
    """Return the key of ruff's RUF022: CONSTANTS, Classes, functions; numbers by value."""
    rank = 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2
    parts = (part for part in re.split(r"(\d+)", name) if part)
    return rank, [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


LISTED = {module: names for module in TREES if (names := public_names(TREES[module])) is not None}


@pytest.mark.parametrize("module", LISTED)
def test_public_names_are_sorted_and_real(module: str) -> None:
    names = LISTED[module]
    assert names == sorted(set(names), key=isort_style)
    defined = set(defined_names(TREES[module]))
    if "__getattr__" not in defined:
        submodules = {
            name.rpartition(".")[2] for name in TREES if name.rpartition(".")[0] == module
        }
        assert set(names) - defined - submodules == set()


def folder_of(module: str) -> str:
    is_package = any(name.startswith(f"{module}.") for name in TREES)
    return module if is_package else module.rpartition(".")[0]


def names_taken_from_other_packages() -> Iterator[tuple[str, str, str]]:
    """Yield (importer, module, name) for each `from module import name` across a folder."""
    for importer, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.level or node.module not in TREES:
                continue
            if folder_of(importer) == folder_of(node.module):
                continue
            for alias in node.names:
                if f"{node.module}.{alias.name}" not in TREES:
                    yield importer, node.module, alias.name


def test_what_other_packages_import_is_public() -> None:
    taken = list(names_taken_from_other_packages())
    assert ("sdk.protocol.frames", "sdk.errors", "MalformedFrameError") in taken
    private = [
        f"{importer} takes {name} from {module}, which does not list it in __all__"
        for importer, module, name in taken
        if name not in LISTED.get(module, ())
    ]
    assert not private, "\n".join(private)


def test_the_sort_is_that_of_ruff() -> None:
    shuffled = ["up", "a10", "Close", "MAX_A", "a2", "Draft", "VERSION", "bits_per_id"]
    in_order = ["MAX_A", "VERSION", "Close", "Draft", "a2", "a10", "bits_per_id", "up"]
    assert sorted(shuffled, key=isort_style) == in_order
