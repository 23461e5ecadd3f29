"""The seam between the engine and whatever decides lengths, shares and batches.

Sessions are named by a key of the server's own: devices choose their ids, and may choose the same.

The engine reports what it measured and asks two questions: what may this device draft next
(`Controller`), and which waiting drafts go into the next pass (`Policy`). It knows no solver; the
solvers know no engine. Time is always passed in, on the server's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from sdk.protocol import Mode

__all__ = ["Controller", "Grant", "Mode", "Policy", "RoundReport", "VerifyReport", "Waiting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a device may do in its next round.

    Attributes:
        length: tokens to draft at most; 0 means that the server decodes alone.
        share: part of the uplink granted, in (0, 1].
        mode: how the draft will be verified.
        support: in ratio mode, how many tokens each uploaded distribution keeps; else 0.
    """

    length: int
    share: float = 1.0
    mode: Mode = Mode.COUPLED
    support: int = 0

    def __post_init__(self) -> None:
        if self.length < 0:
            raise ValueError(f"grant length must be at least 0, got {self.length}")
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"grant share must be in (0, 1], got {self.share}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """What one finished round of one session taught the server.

    Attributes:
        drafted: tokens in the draft; 0 in a round that the server decoded alone.
        accepted: how many of them the target accepted.
        draft_s: the device's own drafting time for this draft, in seconds; 0.0 where unknown.
        uplink_bytes: the draft's whole PUBLISH packet.
        turnaround_s: from the last verdict sent to this draft's arrival; None in a first round.
        distribution_bytes: in ratio mode, what the draft's distributions took of it; else 0.
    """

    device: str
    session: int
    drafted: int
    accepted: int
    draft_s: float
    uplink_bytes: int
    turnaround_s: float | None
    now_s: float
    distribution_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What one verification pass cost: `requests` sessions, `rows` = Σ(k_i + 1) token rows."""

    requests: int
    rows: int
    context_tokens: int
    duration_s: float
    now_s: float


class Controller(Protocol):
    """Decide each device's next grant from what was measured."""

    def opened(self, device: str, session: int, *, mode: Mode, now_s: float) -> Grant:
        """Return a new session's first grant."""

    def observe(self, report: RoundReport) -> None:
        """Take in one finished round."""

    def observe_verify(self, report: VerifyReport) -> None:
        """Take in one verification pass."""

    def observe_link(self, device: str, report: dict[str, object], *, now_s: float) -> None:
        """Take in a device's own link report, already checked to be a JSON object."""

    def observe_energy(
        self,
        device: str,
        *,
        draft_j_per_token: float | None,
        tx_j_per_bit: float | None,
        wait_w: float | None,
    ) -> None:
        """Take in what a device measured of itself; None is not known, and changes nothing."""

    def grant(self, device: str, session: int, *, now_s: float) -> Grant:
        """Return the session's next grant."""

    def closed(self, device: str, session: int, *, now_s: float) -> None:
        """Forget a session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A draft that waits for a pass: at most one per session, oldest first."""

    device: str
    session: int
    arrived_s: float
    rows: int


class Policy(Protocol):
    """Pick which waiting drafts go into the next pass."""

    def pick(
        self, waiting: Sequence[Waiting], *, active: Collection[int], now_s: float
    ) -> list[int]:
        """Return the sessions to verify now; empty means wait.

        Args:
            waiting: in order of arrival, at most one per session.
            active: every session that is open and expected to draft, waiting or not.
            now_s: the server's monotonic clock.
        """

    def wake_s(self, waiting: Sequence[Waiting], *, now_s: float) -> float | None:
        """Return how many seconds from now to ask again if nothing arrives; None for never."""
