"""The stand-in board's kit, built once and kept in MULTISPIN_BOARD_KIT if that is set."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest
from board_image import PROGRAMS, SYSTEM_PATH, Kit, build_kit


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """A built board; skips, naming the packages, where it cannot be built."""
    missing = {
        package
        for program, package in PROGRAMS.items()
        if shutil.which(program, path=SYSTEM_PATH) is None
    }
    if missing:
        pytest.skip(f"the stand-in board needs: apt install {' '.join(sorted(missing))}")
    if os.getuid():
        pytest.skip("the stand-in board is built by root")
    kept = os.environ.get("MULTISPIN_BOARD_KIT")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("kit")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # two runs may share it; one builds
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build_kit(folder)
