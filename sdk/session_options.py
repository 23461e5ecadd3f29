"""How a device behaves in a session, and what the session did. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from sdk.model.proposal import MAX_WEIGHT_BITS

__all__ = ["Offline", "SessionOptions", "SessionStats"]


class Offline(Enum):
    """What to do when the server does not answer."""

    WAIT = "wait"  # and resume
    LOCAL = "local"  # go on with the small model alone, marking those tokens unverified
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How a device behaves in a session.

    Attributes:
        offline: what to do when the server does not answer.
        lost_after_s: without any answer for so long, the link counts as lost.
        give_up_s: with Offline.WAIT, how long to wait for it to come back.
        optimistic: whether to draft on while a verdict is awaited.
        weight_bits: of every weight of an uploaded distribution in ratio mode, 1 to 16; more of
            them keep unlikelier ids and cost uplink.
        early_stop: whether to end a draft before the granted length where, by the drafter's own
            confidence, one more token no longer pays for its time.
    """

    offline: Offline = Offline.WAIT
    lost_after_s: float = 15.0
    give_up_s: float = 3600.0
    optimistic: bool = True
    weight_bits: int = 8
    early_stop: bool = False

    def __post_init__(self) -> None:
        if not (self.lost_after_s > 0 and self.give_up_s > 0):
            raise ValueError("lost_after_s and give_up_s must be above 0")
        if not 1 <= self.weight_bits <= MAX_WEIGHT_BITS:
            raise ValueError(f"weight_bits must be 1 to {MAX_WEIGHT_BITS}, got {self.weight_bits}")


@dataclass(slots=True)
class SessionStats:
    """What a session did; `saved` and `wasted` count tokens that were drafted ahead."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    emitted: int = 0
    unverified: int = 0
    saved: int = 0
    wasted: int = 0
    retries: int = 0
    reopened: int = 0
    stale: int = 0
    malformed: int = 0
    draft_s: float = 0.0
    wait_s: float = 0.0
    server_queue_s: float = 0.0
    server_compute_s: float = 0.0
    sent_bytes: int = 0  # whole PUBLISH packets, as all of these
    sent_payload_bytes: int = 0
    received_bytes: int = 0
    received_payload_bytes: int = 0
