"""The drafter and the target that the emulated board and its server use: the shipped pair.

Where it is not built yet, untrained models take its place: drafting is then rarely right, and the
text must be the target's all the same.
"""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["make_pair"]


def make_pair(folder: Path) -> tuple[Path, Path]:
    """Put `drafter` and `target` into `folder` and return both."""
    from models.registry import PAIR

    roles = ("drafter", "target")
    for role in roles:
        shipped = PAIR / role
        if (shipped / "model.onnx").is_file():
            shutil.copytree(shipped, folder / role)
        else:
            _untrained(folder, role)
    return folder / roles[0], folder / roles[1]


def _untrained(folder: Path, role: str) -> None:
    from models.pair import DRAFTER, TARGET, build, save
    from models.tokenizer import train_tokenizer
    from sdk.cli import main

    text = [Path(__file__).read_text(encoding="utf-8")]
    tokenizer = train_tokenizer(text, 512)
    plain = folder / f"{role}-plain"
    shape = DRAFTER if role == "drafter" else TARGET
    save(build(shape, seed=3, vocabulary=tokenizer.get_vocab_size()), tokenizer, plain)
    assert main(["model", "export", "--model", str(plain), "--out", str(folder / role)]) == 0
