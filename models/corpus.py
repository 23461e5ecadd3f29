"""The training text: the CPython standard library's own source, split by module.

Left out: generated tables (encodings, character tables, pydoc topics, named HTML entities), data
written as code (more than one character in eleven is a digit or a hex escape), very long lines,
and files that are broken on purpose.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from models.tokenizer import END

__all__ = ["Module", "is_held_out", "looks_like_code", "read_modules", "split", "tokenize"]

HELD_OUT_SHARE = 0.05
MAX_LINE = 400
MIN_BYTES = 200
MAX_DATA_SHARE = 0.09
LEFT_OUT = re.compile(
    r"(^|/)(site-packages|__pycache__|encodings|cjkencodings|encoded_modules|tokenizedata|bad_coding[^/]*|badsyntax[^/]*)(/|$)"
    r"|^pydoc_data/|^lib2to3/tests/data/|^html/entities\.py$|^stringprep\.py$|^re/_casefix\.py$|^_sysconfigdata"
    r"|^test/test_(unicode|codec|multibytecodec|ucn|stringprep|unicodedata|source_encoding|bz2|lzma|zlib)[^/]*\.py$"
)
DATA = re.compile(r"\\x[0-9a-fA-F]{2}|\\[uU][0-9a-fA-F]{4,8}|\d")


@dataclass(frozen=True, slots=True)
class Module:
    """One source file: its dotted name and its text."""

    name: str
    text: str


def is_held_out(name: str) -> bool:
    """Say whether a module is held out; a hash of its name alone decides."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def looks_like_code(text: str) -> bool:
    """Say whether a file reads as code rather than as a table written in code."""
    if len(text) < MIN_BYTES or max(map(len, text.splitlines())) > MAX_LINE:
        return False
    return len(DATA.findall(text)) / len(text) <= MAX_DATA_SHARE


def read_modules(root: Path | None = None) -> list[Module]:
    """Read the library under `root` (default: this interpreter's own), sorted by name."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    modules = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root).as_posix()
        if LEFT_OUT.search(relative):
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        if looks_like_code(text):
            modules.append(
                Module(
                    relative.removesuffix(".py").removesuffix("/__init__").replace("/", "."), text
                )
            )
    return modules


def split(modules: list[Module]) -> tuple[list[Module], list[Module]]:
    """Return (training, held out)."""
    return [m for m in modules if not is_held_out(m.name)], [
        m for m in modules if is_held_out(m.name)
    ]


def tokenize(modules: list[Module], tokenizer: Tokenizer) -> npt.NDArray[np.uint16]:
    """Encode modules one after the other, each preceded by the end-of-text token."""
    end = tokenizer.token_to_id(END)
    ids: list[int] = []
    for encoding in tokenizer.encode_batch([m.text for m in modules], add_special_tokens=False):
        ids.append(end)
        ids.extend(encoding.ids)
    return np.array(ids, dtype=np.uint16)
