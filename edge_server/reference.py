"""The target decoding alone: what every verified stream must equal, token for token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sdk.model.decoder import Decoder
from sdk.model.sampling import Sampler, SamplingParameters

__all__ = ["decode_alone"]


def decode_alone(
    decoder: Decoder,
    prompt: Sequence[int],
    *,
    parameters: SamplingParameters,
    max_tokens: int,
    stop_ids: Sequence[int] = (),
) -> Iterator[int]:
    """Yield the target's own tokens, one pass each, until a stop id or the last that fits."""
    limit = min(max_tokens, decoder.context_length - len(prompt))
    cache = decoder.new_cache(capacity=len(prompt) + limit)
    sampler = Sampler(parameters=parameters, vocabulary_size=decoder.vocabulary_size)
    new: Sequence[int] = prompt
    for _ in range(limit):
        logits = decoder.run(cache, new, score=1)
        token = sampler.choose(logits[-1], cache.length)
        yield token
        if token in stop_ids:
            return
        new = (token,)
