"""The device's view of one sequence: what is committed, and what a verdict adds to it.

Pure state. A verdict states what the sequence holds from a position on; only what follows the
committed tokens without a gap is taken, so that doubled, stale and reordered verdicts change
nothing (wire rules W-VERDICT-*).
"""

from __future__ import annotations

from collections.abc import Sequence as Ids
from dataclasses import dataclass
from enum import Enum, auto

from sdk.protocol import End, Verdict

__all__ = ["Reception", "Sequence"]


class Reception(Enum):
    """What a verdict was to this sequence."""

    ADVANCED = auto()  # tokens were committed, or the sequence ended
    REPEATED = auto()  # nothing that was not committed already
    GAP = auto()  # something between is missing: ask again
    STALE = auto()  # it speaks of a draft that is no longer ours


@dataclass(slots=True)
class Sequence:
    """Prompt and committed ids of one generation."""

    tokens: list[int]
    prompt_length: int
    end: End = End.NO

    @classmethod
    def start(cls, prompt: Ids[int], committed: Ids[int] = ()) -> Sequence:
        """Begin with a prompt, and with what an earlier run has committed behind it."""
        return cls([*prompt, *committed], len(prompt))

    @property
    def position(self) -> int:
        """Index of the next token."""
        return len(self.tokens)

    @property
    def generated(self) -> list[int]:
        """The committed ids behind the prompt."""
        return self.tokens[self.prompt_length :]

    def receive(self, verdict: Verdict, *, round_: int, draft: Ids[int]) -> Reception:
        """Commit what a verdict adds.

        Args:
            verdict: any verdict of this session.
            round_: the round that the device is in.
            draft: that round's draft, as it was sent.
        """
        if verdict.accepted and (verdict.round != round_ or verdict.position != self.position):
            return Reception.STALE if verdict.position <= self.position else Reception.GAP
        if verdict.accepted > len(draft):
            return Reception.STALE
        if verdict.position > self.position:
            return Reception.GAP
        stated = (*draft[: verdict.accepted], *verdict.token_ids)
        new = stated[self.position - verdict.position :]
        if verdict.next_position < self.position or not (new or verdict.end):
            return Reception.REPEATED
        self.tokens += new
        self.end = verdict.end
        return Reception.ADVANCED
