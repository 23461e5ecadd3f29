"""Where the shipped pair lies. Imports neither numpy nor torch, so a board may use it."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["PAIR", "pair_dir", "prompts"]

PAIR = Path(__file__).parent / "pair"


def pair_dir(name: str) -> Path:
    """Return the folder of the shipped `target` or `drafter`; ValueError for any other name."""
    if name not in ("target", "drafter"):
        raise ValueError(f"the shipped pair has a target and a drafter, no {name!r}")
    folder = PAIR / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the shipped {name} is missing from {PAIR}: make it with python -m models.train"
        )
    return folder


def prompts() -> list[dict[str, str]]:
    """Return the demo prompts, each with `module` (held out in training) and `text`."""
    loaded: list[dict[str, str]] = json.loads((PAIR / "prompts.json").read_text("utf-8"))
    return loaded
