"""What another weight type costs: how often drafts stay the same, and stay accepted.

Greedy: the likeliest token. Coupled: the likeliest after the same Gumbel noise was added on both
sides, which is how drafts are accepted when sampling at temperature 1. Knows nothing about files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdk.export.parity import draw_text
from sdk.model.decoder import Decoder

__all__ = ["Choices", "choices", "draw_texts", "measured_quality"]

TEXTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """The token that a model would put after every token of the texts, [tokens] each."""

    greedy: NDArray[np.int64]
    coupled: NDArray[np.int64]


def draw_texts(decoder: Decoder, *, first_seed: int = 100) -> list[NDArray[np.int64]]:
    """Draw texts of at least 256 tokens, context permitting, at temperature 1."""
    return [draw_text(decoder, seed=first_seed + number)[0] for number in range(TEXTS)]


def choices(decoder: Decoder, texts: list[NDArray[np.int64]]) -> Choices:
    """Return what a model chooses after every token; the noise is the same for every model."""
    noise = np.random.default_rng(0)
    greedy, coupled = [], []
    for text in texts:
        fitting = text[: decoder.context_length]
        for row in decoder.run(decoder.new_cache(capacity=len(fitting)), fitting):
            greedy.append(int(row.argmax()))
            coupled.append(int((row + noise.gumbel(size=row.shape)).argmax()))
    return Choices(greedy=np.array(greedy), coupled=np.array(coupled))


def measured_quality(before: Choices, after: Choices, target: Choices | None) -> dict[str, float]:
    """Return agreement with the graph in single precision, and acceptance by a target if given."""
    found = {
        "tokens": float(len(before.greedy)),
        "greedy_agreement": same(before.greedy, after.greedy),
        "coupled_agreement": same(before.coupled, after.coupled),
    }
    if target is not None:
        for name, drafter in (("before", before), ("after", after)):
            found[f"greedy_acceptance_{name}"] = same(drafter.greedy, target.greedy)
            found[f"coupled_acceptance_{name}"] = same(drafter.coupled, target.coupled)
    return found


def same(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    return float((a == b).mean())
