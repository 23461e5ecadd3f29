"""A language model without weights: logits are a hash of the last few tokens.

The fake is sufficient because nothing around a model depends on where logits come from, only on
their being a function of the sequence. `agreement` blends the target's logits into the drafter's,
so acceptance can be set from near 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge_server.verifier.acceptance import Acceptor
from edge_server.verifier.interface import VerifyOutcome, VerifyRequest
from sdk.errors import CapacityError
from sdk.model.sampling import Sampler, SamplingParameters

ORDER = 3


def hash_logits(sequence: Sequence[int], vocabulary_size: int, weights: int) -> NDArray[np.float32]:
    """Return logits [vocab] that depend on the last ORDER tokens and on which weights."""
    return _hash_logits(tuple(sequence[-ORDER:]), vocabulary_size, weights)


@lru_cache(maxsize=4096)
def _hash_logits(
    context: tuple[int, ...], vocabulary_size: int, weights: int
) -> NDArray[np.float32]:
    generator = np.random.default_rng([weights, len(context), *context])
    logits = generator.normal(scale=2.0, size=vocabulary_size).astype(np.float32)
    logits.setflags(write=False)
    return logits


class HashDrafter:
    """A drafter whose logits are `agreement` parts the target's and the rest its own."""

    context_length = 4096
    tokenizer_hash = "hash-tokenizer"

    def __init__(self, *, vocabulary_size: int = 97, agreement: float = 0.8) -> None:
        self.vocabulary_size = vocabulary_size
        self.agreement = agreement
        self.calls = 0

    def next_logits(self, sequence: Sequence[int]) -> NDArray[np.float32]:
        self.calls += 1
        target = hash_logits(sequence, self.vocabulary_size, weights=1)
        own = hash_logits(sequence, self.vocabulary_size, weights=2)
        logits: NDArray[np.float32] = (
            np.float32(self.agreement) * target + np.float32(1 - self.agreement) * own
        )
        return logits


class HashVerifier:
    """A verifier over the same logits; counts what it was asked."""

    context_length = 4096
    tokenizer_hash = "hash-tokenizer"
    target_hash = "hash-target"

    def __init__(self, *, vocabulary_size: int = 97, max_sessions: int = 64) -> None:
        self.vocabulary_size = vocabulary_size
        self.max_sessions = max_sessions
        self.block = True
        self.slots: dict[int, tuple[list[int], Acceptor, int]] = {}
        self.batches: list[list[VerifyRequest]] = []
        self._next = 0

    def open(self, *, parameters: SamplingParameters, max_tokens: int) -> int:
        if len(self.slots) >= self.max_sessions:
            raise CapacityError("no room")
        self._next += 1
        acceptor = Acceptor(
            parameters=parameters, vocabulary_size=self.vocabulary_size, block=self.block
        )
        self.slots[self._next] = ([], acceptor, max_tokens)
        return self._next

    def prefill(self, slot: int, token_ids: Sequence[int]) -> None:
        self.slots[slot][0].extend(token_ids)

    def verify(self, requests: Sequence[VerifyRequest]) -> list[VerifyOutcome]:
        self.batches.append(list(requests))
        return [self._verify_one(request) for request in requests]

    def _verify_one(self, request: VerifyRequest) -> VerifyOutcome:
        held, acceptor, capacity = self.slots[request.slot]
        held += request.pending
        assert len(held) + len(request.draft) <= capacity, "the slot would overflow"
        rows = [
            hash_logits([*held, *request.draft[:row]], self.vocabulary_size, weights=1)
            for row in range(len(request.draft) + 1)
        ]
        outcome = acceptor.accept(np.stack(rows), request, position=len(held))
        held += request.draft[: outcome.accepted]
        return outcome

    def close(self, slot: int) -> None:
        del self.slots[slot]


def decode_plain(
    prompt: Sequence[int],
    *,
    parameters: SamplingParameters,
    max_tokens: int,
    vocabulary_size: int = 97,
    stop_ids: Sequence[int] = (),
) -> list[int]:
    """Return what the target says alone: the truth for every test."""
    sampler = Sampler(parameters=parameters, vocabulary_size=vocabulary_size)
    sequence = list(prompt)
    for _ in range(max_tokens):
        logits = hash_logits(sequence, vocabulary_size, weights=1)
        sequence.append(sampler.choose(logits, len(sequence)))
        if sequence[-1] in stop_ids:
            break
    return sequence[len(prompt) :]
