"""A drafter that takes its time, as a slower board would: for demos and tests on one machine."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sdk.draft.drafter import Drafter
from sdk.model.sampling import Sampler

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

    def draft_token(self, sequence: Sequence[int], sampler: Sampler) -> int:
        """Return the token that follows `sequence`, not before its time."""
        due_s = time.monotonic() + self._seconds_per_token
        token = self._drafter.draft_token(sequence, sampler)
        time.sleep(max(0.0, due_s - time.monotonic()))
        return token
