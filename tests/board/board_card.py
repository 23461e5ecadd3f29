"""A card of the test's own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from board_image import Kit


def copy_card(kit: Kit, target: Path) -> Path:
    """Copy the kit's card, holes kept."""
    subprocess.run(["cp", "--sparse=always", str(kit.card), str(target)], check=True)
    return target
