"""Compares an exported graph with the model it came from. Knows nothing about files.

Text is drawn from the graph itself, token by token on its own cache; the source model then scores
that text in one pass. A second and third reading of the text by the graph, in one call and in
blocks on a past, must give the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from sdk.model.decoder import Decoder

__all__ = ["Parity", "compare", "draw_text"]

TOKENS = 256
PROMPT_TOKENS = 8
BLOCK_ROWS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """What the comparison found over `tokens` rows of logits.

    Attributes:
        max_logit_difference: largest |Δ logit|, divided by the largest |logit| if that exceeds 1.
        greedy_agreement: share of rows whose most likely token is the source's.
    """

    tokens: int
    max_logit_difference: float
    greedy_agreement: float


def compare(decoder: Decoder, source: PreTrainedModel, *, seed: int = 0) -> Parity:
    """Compare a graph with its source model over at least 256 tokens, context permitting."""
    text, stepped = draw_text(decoder, seed=seed)
    with torch.no_grad():
        expected = source(torch.from_numpy(text)[None]).logits[0].float().numpy()
    readings = (stepped, read_at_once(decoder, text), read_in_blocks(decoder, text))
    scale = max(1.0, float(np.abs(expected).max()))
    return Parity(
        tokens=len(text),
        max_logit_difference=max(float(np.abs(rows - expected).max()) for rows in readings) / scale,
        greedy_agreement=min(
            float((rows.argmax(-1) == expected.argmax(-1)).mean()) for rows in readings
        ),
    )


def draw_text(decoder: Decoder, *, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw a text from the graph at temperature 1; return its ids and the logits after each id."""
    random = np.random.default_rng(seed)
    length = min(PROMPT_TOKENS + TOKENS, decoder.context_length)
    cache = decoder.new_cache(capacity=length)
    ids = list(random.integers(0, decoder.vocabulary_size, min(PROMPT_TOKENS, length)))
    rows = [decoder.run(cache, ids)]
    while len(ids) < length:
        ids.append(draw(rows[-1][-1], random))
        rows.append(decoder.run(cache, ids[-1:]))
    return np.array(ids, np.int64), np.concatenate(rows)


def draw(logits: NDArray[np.float32], random: np.random.Generator) -> int:
    return int((logits + random.gumbel(size=logits.shape)).argmax())


def read_at_once(decoder: Decoder, text: NDArray[np.int64]) -> NDArray[np.float32]:
    return decoder.run(decoder.new_cache(capacity=len(text)), text)


def read_in_blocks(decoder: Decoder, text: NDArray[np.int64]) -> NDArray[np.float32]:
    cache = decoder.new_cache(capacity=len(text))
    blocks = [text[start : start + BLOCK_ROWS] for start in range(0, len(text), BLOCK_ROWS)]
    return np.concatenate([decoder.run(cache, block) for block in blocks])
