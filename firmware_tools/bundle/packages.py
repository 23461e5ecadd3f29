"""A board's Python packages: locked per Python version, fetched by `uv`, checked for the board.

The locks are committed under `firmware_tools/locks/`; `lock` renews one. Knows nothing about
bundles.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from firmware_tools.bundle import elf
from firmware_tools.errors import BundleError

__all__ = ["LOCKS", "glibc_needed", "install", "libraries_needed", "lock", "version_of"]

LOCKS = Path(__file__).parent.parent / "locks"
PLATFORM = "aarch64-manylinux_2_28"
_REQUIREMENTS = "board.in"
_OVERRIDES = "overrides.txt"
_TIMEOUT_S = 600
_MANYLINUX = re.compile(r"^Tag: \S+-(manylinux\S*|linux_\S+)$", re.MULTILINE)
_OLD_TAGS = {"manylinux1": 5, "manylinux2010": 12, "manylinux2014": 17}
_ALWAYS_THERE = re.compile(r"(libc|libm|libdl|libpthread|librt|libutil|ld-linux-aarch64)\.so.*")


def lock(python: str, folder: Path = LOCKS) -> Path:
    """Resolve the board's requirements for `python`, with hashes, and write the lock file."""
    path = folder / f"board-py{python}.txt"
    _uv(
        *("pip", "compile", str(LOCKS / _REQUIREMENTS), "--override", str(LOCKS / _OVERRIDES)),
        *("--generate-hashes", "--no-annotate", "--no-header", "--quiet", "-o", str(path)),
        *_target(python),
    )
    return path


def install(python: str, folder: Path) -> None:
    """Unpack the locked aarch64 wheels for `python` into `folder`.

    Raises:
        BundleError: if `uv` is missing, there is no lock, or a hash differs.
    """
    path = LOCKS / f"board-py{python}.txt"
    if not path.exists():
        raise BundleError(f"bundle build: no lock for Python {python} ({path})")
    _uv(
        *("pip", "install", "--require-hashes", "--no-deps", "--quiet", "--link-mode", "copy"),
        *("-r", str(path), "--target", str(folder)),
        *_target(python),
    )


def version_of(package: str, folder: Path) -> str:
    """Return the version of a package in `folder`; "" where it is not there."""
    found = sorted(folder.glob(f"{package}-*.dist-info"))
    return found[0].name.removeprefix(f"{package}-").removesuffix(".dist-info") if found else ""


def glibc_needed(folder: Path) -> str:
    """Return the oldest glibc that every wheel in `folder` runs on, from the wheels' own tags."""
    minors = [17]
    for wheel in folder.glob("*.dist-info/WHEEL"):
        tags = _MANYLINUX.findall(wheel.read_text(encoding="utf-8"))
        wheel_minors = [minor for tag in tags for minor in _glibc_minors(tag)]
        if wheel_minors:
            minors.append(min(wheel_minors))
    return f"2.{max(minors)}"


def libraries_needed(folder: Path) -> tuple[str, ...]:
    """Return the libraries that the objects in `folder` need and neither they nor glibc have.

    Raises:
        BundleError: for an object that is not for aarch64.
    """
    needed: set[str] = set()
    provided: set[str] = set()
    for path in sorted(folder.rglob("*.so*")):
        found = elf.parse(path.read_bytes())
        if found is None:
            continue
        if found.machine != elf.AARCH64:
            raise BundleError(f"bundle build: {path.name} is not for aarch64; delete {folder}")
        needed.update(found.needed)
        provided.update((found.name, path.name))
    missing = needed - provided
    return tuple(sorted(name for name in missing if not _ALWAYS_THERE.fullmatch(name)))


def _glibc_minors(tag: str) -> list[int]:
    parts = tag.split(".")
    minors = [int(found[1]) for part in parts if (found := re.match(r"manylinux_2_(\d+)_", part))]
    return minors + [minor for part in parts for old, minor in _OLD_TAGS.items() if old in part]


def _target(python: str) -> list[str]:
    return ["--python-platform", PLATFORM, "--python-version", python, "--only-binary", ":all:"]


def _uv(*arguments: str) -> None:
    beside = Path(sys.executable).with_name("uv")
    program = str(beside) if beside.exists() else shutil.which("uv")
    if program is None:
        raise BundleError("bundle build: 'uv' is not installed; run: pip install uv")
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise BundleError(f"bundle build: uv {arguments[1]} failed: {' '.join(lines)[:400]}")
