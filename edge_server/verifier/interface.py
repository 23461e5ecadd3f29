"""The seam between the engine and whatever runs the large model.

A verifier owns the keys and values of its sessions, in slots. Beside the weights it knows nothing:
no devices, no rounds, no wire. The engine serialises all calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sdk.model.proposal import Proposal
from sdk.model.sampling import SamplingParameters

__all__ = ["Verifier", "VerifyOutcome", "VerifyRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequest:
    """One session's rows in a pass.

    Attributes:
        slot: as `Verifier.open` returned it.
        pending: committed ids whose keys are not in the slot yet; at least one.
        draft: ids to verify behind them; may be empty.
        proposals: in ratio mode, the distribution that each drafted id was drawn from.
    """

    slot: int
    pending: tuple[int, ...]
    draft: tuple[int, ...] = ()
    proposals: tuple[Proposal, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOutcome:
    """What the target says of one draft.

    Attributes:
        accepted: length of the accepted prefix, in [0, len(draft)].
        token: the target's own token behind that prefix.
    """

    accepted: int
    token: int


class Verifier(Protocol):
    """Run the target over many sessions' rows."""

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""

    @property
    def context_length(self) -> int:
        """The most tokens that one sequence can hold."""

    @property
    def tokenizer_hash(self) -> str:
        """Hash of the tokenizer, hexadecimal."""

    @property
    def target_hash(self) -> str:
        """Hash of the weights, hexadecimal."""

    def open(self, *, parameters: SamplingParameters, max_tokens: int) -> int:
        """Reserve room for a sequence of `max_tokens` ids and return its slot.

        Raises:
            CapacityError: if there is no room.
        """

    def prefill(self, slot: int, token_ids: Sequence[int]) -> None:
        """Append committed ids to a slot without scoring them.

        Raises:
            CapacityError: if a pass has no room in memory; the slot can only be closed then.
        """

    def verify(self, requests: Sequence[VerifyRequest]) -> list[VerifyOutcome]:
        """Score all rows in one pass; each slot then holds its pending ids and accepted prefix.

        Raises:
            CapacityError: if a pass has no room in memory; the slots hold what they held before.
        """

    def close(self, slot: int) -> None:
        """Free a slot."""
