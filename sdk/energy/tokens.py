"""What the energy of a window was spent on, in tokens."""

from __future__ import annotations

from dataclasses import dataclass

from sdk.errors import EnergyError

__all__ = ["Tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Counts of one generation.

    Attributes:
        drafted: proposed by the small model.
        accepted: of those, verified by the large one.
        emitted: in the output, the large model's own included.
        prompt: in the prompt; rounds: how often the server was asked.
    """

    drafted: int
    accepted: int
    emitted: int
    prompt: int = 0
    rounds: int = 0

    def __post_init__(self) -> None:
        if min(self.drafted, self.accepted, self.emitted, self.prompt, self.rounds) < 0:
            raise EnergyError("energy per token: counts must not be below 0")
        if self.accepted > self.drafted:
            raise EnergyError(
                f"energy per token: {self.accepted} accepted of {self.drafted} drafted tokens"
            )
