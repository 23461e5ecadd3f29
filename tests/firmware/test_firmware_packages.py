"""What a bundle's packages need of a board, and the locks that they come from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firmware_tools.bundle import elf
from firmware_tools.bundle.packages import LOCKS, glibc_needed, install, libraries_needed
from firmware_tools.errors import BundleError


def test_shared_objects_are_read() -> None:
    import numpy

    library = next(Path(str(numpy.__file__)).parent.rglob("_multiarray_umath*.so"))
    found = elf.parse(library.read_bytes())
    assert found is not None
    assert any(name.startswith("libc.so") for name in found.needed)
    assert elf.parse(b"#!/bin/sh\n") is None


def test_a_foreign_shared_object_is_refused(tmp_path: Path) -> None:
    own = next(Path(os.__file__).parent.glob("lib-dynload/_json*.so"))
    (tmp_path / "x.so").write_bytes(own.read_bytes())
    if elf.parse(own.read_bytes()).machine != elf.AARCH64:  # type: ignore[union-attr]
        with pytest.raises(BundleError, match="aarch64"):
            libraries_needed(tmp_path)


def test_the_oldest_c_library_comes_from_the_wheels_tags(tmp_path: Path) -> None:
    for number, tag in enumerate(("manylinux2014_aarch64", "manylinux_2_34_aarch64", "any")):
        (tmp_path / f"{number}.dist-info").mkdir()
        (tmp_path / f"{number}.dist-info" / "WHEEL").write_text(f"Tag: cp311-cp311-{tag}\n")
    assert glibc_needed(tmp_path) == "2.34"


def test_every_board_s_lock_covers_what_the_package_needs() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    block = text[text.index("dependencies = [") : text.index("[project.optional")]
    needed = {line.strip(' ",').split(">")[0].split(";")[0] for line in block.splitlines()[1:-2]}
    for python in ("3.10", "3.11", "3.13"):
        lines = (LOCKS / f"board-py{python}.txt").read_text().splitlines()
        locked = {line.split("==")[0] for line in lines if "==" in line}
        missing = {name for name in needed if name not in locked}
        assert missing <= ({"tomli"} if python != "3.10" else set())
        assert {"tuf", "cryptography", "zstandard", "pyserial"} <= locked


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
def test_the_locks_install_for_the_board(tmp_path: Path, python: str) -> None:
    install(python, tmp_path)
    assert int(glibc_needed(tmp_path).split(".")[1]) <= 28
    assert "libstdc++.so.6" in libraries_needed(tmp_path)
    tag = f"cpython-{python.replace('.', '')}-aarch64"
    assert any(tag in path.name for path in (tmp_path / "numpy").rglob("*.so"))
