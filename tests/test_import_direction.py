"""Who may import whom, read from the syntax trees of all our modules; nothing is executed."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sdk", "edge_server", "firmware_tools", "models")

# What the server may use of the board's side. Its meters are shared: the server's own card is read
# as a board's is.
SHARED = ("sdk.protocol", "sdk.transport", "sdk.model", "sdk.errors", "sdk.config", "sdk.energy")

# What the pure core must not touch: it reads no file, opens no socket, starts no thread.
INPUT_OUTPUT = frozenset(
    {"aiohttp", "amqtt", "asyncio", "concurrent", "http", "multiprocessing", "paho", "queue"}
    | {
        "requests",
        "select",
        "serial",
        "signal",
        "socket",
        "ssl",
        "subprocess",
        "threading",
        "urllib",
    }
)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, *, is_package: bool) -> set[str]:
    """Return the absolute names that a module imports, at any depth of its code."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from sdk import session` may name a module: keep both readings.
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
IMPORTS = {
    module_of(path): imports(
        path.read_text(encoding="utf-8"), module_of(path), is_package=path.stem == "__init__"
    )
    for path in FILES
}


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def offenders(importers: tuple[str, ...], forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        if within(module, *importers)
        for name in sorted(names)
        if within(name, *forbidden)
    ]


def test_every_package_was_read() -> None:
    assert {module.split(".")[0] for module in IMPORTS} >= {"sdk", "edge_server", "firmware_tools"}
    assert "sdk.errors" in IMPORTS["sdk.protocol.frames"]
    assert "sdk.protocol.frames" in IMPORTS["sdk.protocol"]


@pytest.mark.parametrize(
    ("importers", "forbidden"),
    [
        # The board's side runs without the server's; sdk.cli names modules as strings only.
        (("sdk",), ("edge_server", "firmware_tools")),
        (("edge_server",), ("firmware_tools",)),
        (("firmware_tools",), ("edge_server",)),
        (PACKAGES, ("tests", "examples")),
    ],
    ids=lambda names: "+".join(names),
)
def test_no_one_imports_against_the_direction(
    importers: tuple[str, ...], forbidden: tuple[str, ...]
) -> None:
    found = offenders(importers, forbidden)
    assert not found, "\n".join(found)


def test_the_server_uses_only_the_shared_part_of_the_sdk() -> None:
    used = {
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        if within(module, "edge_server")
        for name in names
        if within(name, "sdk") and name != "sdk" and not within(name, *SHARED)
    }
    assert not used, "\n".join(sorted(used))


@pytest.mark.parametrize("core", ["sdk.protocol", "sdk.model"])
def test_the_core_does_no_input_or_output(core: str) -> None:
    assert offenders((core,), tuple(sorted(INPUT_OUTPUT))) == []


def test_the_wire_needs_numpy_and_the_standard_library_only() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "sdk"}
    foreign = {
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        if within(module, "sdk.protocol", "sdk.errors", "sdk.model.noise", "sdk.model.sampling")
        for name in names
        if name.split(".")[0] not in allowed
    }
    assert foreign == set()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import edge_server.engine as e", {"edge_server.engine"}),
        ("from sdk import session", {"sdk", "sdk.session"}),
        ("from . import frames", {"sdk.protocol", "sdk.protocol.frames"}),
        ("from ..model.noise import Stream", {"sdk.model.noise", "sdk.model.noise.Stream"}),
        ("def f():\n  if True:\n    import paho.mqtt", {"paho.mqtt"}),
        ("COMMANDS = {'serve': 'edge_server.serve'}", set()),
    ],
)
def test_how_imports_are_read(source: str, expected: set[str]) -> None:
    assert imports(source, "sdk.protocol.control", is_package=False) == expected
