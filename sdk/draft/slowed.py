"""A drafter that takes its time, as a slower board would: for demos and tests on one machine."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sdk.draft.drafter import Drafter

__all__ = ["SlowedDrafter"]


class SlowedDrafter:
    """Wrap a drafter so that no token takes less than `seconds_per_token`."""

    def __init__(self, *, drafter: Drafter, seconds_per_token: float) -> None:
        """Wrap `drafter`; 0 seconds changes nothing."""
        self._drafter = drafter
        self._seconds_per_token = seconds_per_token

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""
        return self._drafter.vocabulary_size

    @property
    def context_length(self) -> int:
        """The most tokens that one sequence can hold."""
        return self._drafter.context_length

    @property
    def tokenizer_hash(self) -> str:
        """Hash of the tokenizer, hexadecimal."""
        return self._drafter.tokenizer_hash

    def next_logits(self, sequence: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits of what follows `sequence`, not before their time."""
        due_s = time.monotonic() + self._seconds_per_token
        logits = self._drafter.next_logits(sequence)
        time.sleep(max(0.0, due_s - time.monotonic()))
        return logits
