"""Prompts from held-out modules: the beginnings of their functions and classes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass

from tokenizers import Tokenizer

from models.corpus import Module

__all__ = ["Prompt", "choose", "find_prompts"]

SHORTEST, LONGEST = 40, 120  # tokens
BEGINNING = re.compile(r"^(?=(?:async )?def |class |@)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Text cut at a line's end, and the held-out module it comes from."""

    module: str
    text: str

    def as_dict(self) -> dict[str, str]:
        """Return the prompt as JSON stores it."""
        return asdict(self)


def find_prompts(modules: list[Module], tokenizer: Tokenizer) -> list[Prompt]:
    """Return the prompts, one a top-level definition where it is long enough, ordered by hash."""
    found = []
    for module in modules:
        for match in BEGINNING.finditer(module.text):
            text = _cut(module.text[match.start() :], module.name, tokenizer)
            if text:
                found.append(Prompt(module.name, text))
    return sorted(found, key=lambda prompt: hashlib.sha256(prompt.text.encode()).digest())


def choose(prompts: list[Prompt], count: int) -> list[Prompt]:
    """Take `count` prompts, of as many different modules as there are."""
    seen: dict[str, int] = {}
    ranked: list[tuple[int, int, Prompt]] = []
    for prompt in prompts:
        ranked.append((seen.setdefault(prompt.module, 0), len(ranked), prompt))
        seen[prompt.module] += 1
    return [prompt for _, _, prompt in sorted(ranked, key=lambda entry: entry[:2])[:count]]


def _cut(text: str, name: str, tokenizer: Tokenizer) -> str:
    """Cut `text` at a line's end, at a length between the limits that its module's name sets."""
    wanted = SHORTEST + hashlib.sha256((name + text[:80]).encode()).digest()[0] % (
        LONGEST - SHORTEST
    )
    taken, best = "", ""
    for line in text.splitlines(keepends=True)[:LONGEST]:
        taken += line
        length = len(tokenizer.encode(taken).ids)
        if length > LONGEST:
            break
        if length >= SHORTEST and line.strip():
            best = taken
            if length >= wanted:
                break
    return best
