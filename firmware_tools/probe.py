"""What a drafter answers to a fixed prompt: computed where a bundle is built,
compared on the board.

Knows nothing about bundles or slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["draft_greedily"]


def draft_greedily(model: Path, prompt: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the `count` tokens that the drafter in `model` puts after `prompt`, greedily.

    Raises:
        ModelLoadError: if the folder holds no model that can be run.
    """
    from sdk.model.decoder import Decoder

    decoder = Decoder.load(model)
    cache = decoder.new_cache(capacity=len(prompt) + count)
    fed, tokens = list(prompt), []
    for _ in range(count):
        fed = [int(decoder.run(cache, fed, score=1)[-1].argmax())]
        tokens += fed
    return tuple(tokens)
