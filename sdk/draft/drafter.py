"""The drafter: given the whole sequence so far, the small model's view of what follows.

The caller never manages the KV cache. The drafter remembers which ids its cache holds; what the
sequence no longer shares with them is rolled back by lowering an integer; what it has beyond them
is fed in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sdk.model.decoder import Decoder

__all__ = ["Drafter", "OnnxDrafter"]


class Drafter(Protocol):
    """Look one token ahead."""

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""

    @property
    def context_length(self) -> int:
        """The most tokens that one sequence can hold."""

    @property
    def tokenizer_hash(self) -> str:
        """Hash of the tokenizer, hexadecimal."""

    def next_logits(self, sequence: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits [vocab] of what follows `sequence`, which is not empty."""


class OnnxDrafter:
    """Draft with an exported ONNX model on this board."""

    def __init__(self, *, decoder: Decoder) -> None:
        """Wrap a decoder; one sequence at a time."""
        self._decoder = decoder
        self._cache = decoder.new_cache()
        self._fed: list[int] = []

    @classmethod
    def load(
        cls, folder: Path, *, threads: int | None = None, provider: str = "cpu"
    ) -> OnnxDrafter:
        """Load an exported model.

        Raises:
            ModelLoadError: if the folder holds none that can be run.
        """
        return cls(decoder=Decoder.load(folder, threads=threads, provider=provider))

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""
        return self._decoder.vocabulary_size

    @property
    def context_length(self) -> int:
        """The most tokens that one sequence can hold."""
        return self._decoder.context_length

    @property
    def tokenizer_hash(self) -> str:
        """Hash of the tokenizer, hexadecimal."""
        return self._decoder.manifest.tokenizer_hash

    def next_logits(self, sequence: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits [vocab] of what follows `sequence`; new ids cost one call together."""
        kept = min(_shared_prefix(self._fed, sequence), len(sequence) - 1)
        self._cache.rollback(kept)
        new = list(sequence[kept:])
        self._fed[kept:] = new
        logits: NDArray[np.float32] = self._decoder.run(self._cache, new, score=1)[-1]
        return logits


def _shared_prefix(fed: list[int], sequence: Sequence[int]) -> int:
    """Return how many leading ids two sequences share."""
    if fed == sequence[: len(fed)]:  # the usual case, at the speed of a memory comparison
        return len(fed)
    pairs = zip(fed, sequence, strict=False)
    differing = (index for index, (left, right) in enumerate(pairs) if left != right)
    return next(differing, min(len(fed), len(sequence)))
