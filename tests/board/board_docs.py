"""The commands of docs/flashing.md, section by section, so that a test runs what people read."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

__all__ = ["commands"]

DOCUMENT = Path(__file__).parents[2] / "docs" / "flashing.md"


def commands(heading: str) -> list[list[str]]:
    """Return the commands under a heading, in order, as words."""
    text = DOCUMENT.read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    section = next(each for each in sections if each.startswith(heading + "\n"))
    blocks = re.findall(r"^```sh\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]
