"""The session table: what every device has been told, and which drafts wait for a pass.

Pure state, time passed in. A session's committed tokens are all that counts: a repeated round is
answered from them, so nothing else needs to be remembered to make rounds idempotent (wire rules
W-SESSION-*). Knows nothing of MQTT and of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from edge_server.scheduler.interface import Grant
from sdk.protocol import Draft, End, Open

__all__ = ["Arrival", "Session", "SessionTable"]


class Arrival(Enum):
    """What becomes of a draft that has arrived."""

    WAITS = auto()  # for the next pass
    CREDIT = auto()  # the server may decode on alone
    BEHIND = auto()  # the device lacks committed tokens: answer at once
    ENDED = auto()  # nothing is left to verify: answer at once
    AHEAD = auto()  # it claims tokens that were never committed: reject
    DUPLICATE = auto()  # drop
    STALE = auto()  # drop


@dataclass(slots=True, kw_only=True)
class Session:
    """One sequence that is being generated.

    Attributes:
        tokens: prompt and committed ids.
        prefilled: how many of them the verifier has been given.
        draft: the draft that waits for a pass, if any.
        credit_until: the server may decode alone up to this length.
        round: the newest round seen.
        verdict_sent_s: when the last verdict left; None before the first.
    """

    device: str
    id: int
    opening: Open
    slot: int
    tokens: list[int]
    capacity: int
    grant: Grant
    seen_s: float
    prefilled: int = 0
    draft: Draft | None = None
    arrived_s: float = 0.0
    credit_until: int = 0
    round: int = 0
    end: End = End.NO
    verdict_sent_s: float | None = None
    turnaround_s: float | None = None
    uplink_bytes: int = 0
    distribution_bytes: int = 0

    @property
    def prefilling(self) -> bool:
        """Whether the verifier lacks more than the one pending token."""
        return self.prefilled < len(self.tokens) - 1

    @property
    def decoding_alone(self) -> bool:
        """Whether a pass may add a token without a draft."""
        return self.end is End.NO and not self.prefilling and self.credit_until > len(self.tokens)

    @property
    def room(self) -> int:
        """How many more tokens the sequence may get."""
        generated = len(self.tokens) - len(self.opening.prompt)
        return min(self.opening.max_tokens - generated, self.capacity - len(self.tokens))

    def resumes(self, opening: Open) -> bool:
        """Whether an open asks for this very sequence, and this one is not behind the device."""
        same = replace(opening, committed=(), boot=0) == replace(self.opening, committed=(), boot=0)
        return same and len(opening.prompt) + len(opening.committed) <= len(self.tokens)

    def restart_rounds(self, *, now_s: float) -> None:
        """Let a device that restarted count its rounds anew; its next token needs no draft."""
        self.round = 0
        self.draft = None
        self.credit_until = self.position + 1
        self.seen_s = now_s

    def arrive(self, draft: Draft, *, now_s: float) -> Arrival:
        """Take in a draft and say what becomes of it."""
        self.seen_s = now_s
        if draft.position > len(self.tokens):
            return Arrival.AHEAD
        if draft.round < self.round and not draft.retry:
            return Arrival.STALE
        if self.draft is not None and draft.round == self.round and draft.position == self.position:
            return Arrival.DUPLICATE
        if draft.round > self.round:
            self.turnaround_s = None if self.verdict_sent_s is None else now_s - self.verdict_sent_s
        self.round = draft.round
        if self.end is not End.NO:
            return Arrival.ENDED
        if draft.credit:
            self.draft = None
            self.credit_until = max(self.credit_until, draft.position + draft.credit)
            return Arrival.BEHIND if draft.retry and self.is_behind(draft) else Arrival.CREDIT
        if self.is_behind(draft):
            return Arrival.BEHIND
        self.draft = draft
        self.arrived_s = now_s
        return Arrival.WAITS

    @property
    def position(self) -> int:
        """Index of the next token."""
        return len(self.tokens)

    def is_behind(self, draft: Draft) -> bool:
        """Whether the device lacks tokens that are committed here."""
        return draft.position < len(self.tokens)

    def commit(self, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Append a verdict's tokens up to a stop token or the last that fits; return those kept."""
        kept: list[int] = []
        for token in token_ids[: self.room]:
            kept.append(token)
            if token in self.opening.stop_ids:
                self.end = End.STOP_TOKEN
                break
        self.tokens += kept
        if self.end is End.NO and self.room == 0:
            full = len(self.tokens) >= self.capacity
            limit = len(self.opening.prompt) + self.opening.max_tokens
            self.end = End.CONTEXT_FULL if full and limit > self.capacity else End.MAX_TOKENS
        return tuple(kept)


@dataclass(slots=True)
class SessionTable:
    """Every open session, by the device that owns it."""

    _sessions: dict[tuple[str, int], Session] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._sessions.values()))

    def find(self, device: str, session: int) -> Session | None:
        """Return a device's own session, never another's."""
        return self._sessions.get((device, session))

    def of_device(self, device: str) -> list[Session]:
        """Return every session of one device."""
        return [session for session in self if session.device == device]

    def add(self, session: Session) -> None:
        """Take in a new session."""
        self._sessions[session.device, session.id] = session

    def remove(self, session: Session) -> None:
        """Forget a session."""
        self._sessions.pop((session.device, session.id), None)

    def idle(self, *, since_s: float) -> list[Session]:
        """Return the sessions that were last heard of before `since_s`."""
        return [session for session in self if session.seen_s < since_s]
