"""The device's round: draft → send → await verdict → commit or roll back.

    open ──► ask: send a draft (or a credit, where the server decodes alone)
              ▲        │
              │        ▼
              └── answer: draft on while waiting; commit what the verdict states

Whatever is lost, doubled, late or restarted on the way is asked for again by position; what was
drafted on is kept as long as it agrees with what gets committed. Knows nothing of text, of MQTT and
of meters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from sdk.draft.ahead import Ahead
from sdk.draft.drafter import Drafter
from sdk.energy.phases import Phase
from sdk.errors import LinkLostError, RejectedError
from sdk.model.prefix import shared
from sdk.patience import Patience
from sdk.protocol import (
    Close,
    Draft,
    End,
    Mode,
    Open,
    Opened,
    Reject,
    RejectCode,
    Verdict,
    bits_per_id,
)
from sdk.round_trip import RoundTrip
from sdk.sequence import Reception, Sequence
from sdk.session_frames import SessionFrame, SessionFrames
from sdk.session_options import Offline, SessionOptions, SessionStats
from sdk.transport.interface import Transport

__all__ = ["Delivery", "Session"]

_FIRST_LENGTH = 4  # drafted while the prompt is prefilled, before any grant
_CREDIT_TOKENS = 16
_MAX_TIMEOUT_S = 4.0
_LINK_CHECK_S = 0.25  # how often a wait looks whether the link came back


class Delivery(NamedTuple):
    """Tokens that are now part of the output, and whether the target verified them."""

    token_ids: tuple[int, ...]
    verified: bool


class Session:
    """Generate one sequence with the edge server."""

    def __init__(
        self,
        *,
        device: str,
        opening: Open,
        drafter: Drafter,
        transport: Transport,
        options: SessionOptions,
        clock: Callable[[], float] = time.monotonic,
        on_phase: Callable[[Phase], None] = lambda _phase: None,
        on_grant: Callable[[Verdict], None] = lambda _verdict: None,
    ) -> None:
        """Prepare; nothing is sent before `run`.

        Args:
            opening: the request; committed tokens in it are not delivered again.
            on_phase: told whenever the device turns to something else.
            on_grant: told of every verdict that advanced the sequence.
        """
        self.sequence = Sequence.start(opening.prompt, opening.committed)
        self.stats = SessionStats()
        self.round_trip = RoundTrip()
        self._opening = opening
        self._frames = SessionFrames(
            device=device, session=opening.session, transport=transport, stats=self.stats
        )
        self._options = options
        self._patience = Patience(options=options)
        self._clock = clock
        self._on_phase = on_phase
        self._on_grant = on_grant
        self._ahead = Ahead(  # the draft included
            drafter=drafter,
            sampling=opening.sampling,
            vocabulary_size=opening.vocabulary_size,
            weight_bits=options.weight_bits,
            early_stop=options.early_stop,
            clock=clock,
        )
        self._id_bits = bits_per_id(opening.vocabulary_size)
        self._opened = False
        self._round = 0
        self._length = _FIRST_LENGTH
        self._draft: tuple[int, ...] = ()
        self._committed_s: float | None = None  # when the last verdict came
        self._credit_until = 0
        self._capacity = min(len(opening.prompt) + opening.max_tokens, drafter.context_length)

    def run(self) -> Iterator[Delivery]:
        """Yield tokens as they are accepted, until the sequence ends.

        Raises:
            RejectedError: if the server refuses the session.
            LinkLostError: if it does not answer, as the options allow.
        """
        try:
            yield self._answer(send=True)  # the first token, which needs no draft
            while not self.sequence.end:
                yield self._answer(send=self._ask())
        except LinkLostError:
            if self._options.offline is not Offline.LOCAL:
                raise
            yield from self._decode_locally()
        finally:
            self._on_phase(Phase.IDLE)
            self._frames.send(Close(session=self._opening.session))

    # ask

    def _ask(self) -> bool:
        """Prepare the next draft or credit; return whether there is anything to send."""
        if self._length == 0:
            self._draft = ()
            if self._credit_until - self.sequence.position > _CREDIT_TOKENS // 2:
                return False  # enough is on its way
            self._credit_until = self.sequence.position + _CREDIT_TOKENS
        else:
            self._credit_until = 0
            self._draft_up_to(min(self._length, self._room - 1))
        self._round += 1
        self.stats.rounds += 1
        return True

    def _draft_up_to(self, length: int) -> None:
        self._on_phase(Phase.DRAFT)
        while len(self._ahead) < length and self._ahead.pays():
            self._draft_token()
        self._draft = tuple(drafted.token for drafted in self._ahead.first(max(length, 0)))
        self.stats.drafted += len(self._draft)

    def _draft_token(self) -> None:
        self.stats.draft_s += self._ahead.draft_token(self.sequence.tokens)

    @property
    def _room(self) -> int:
        return self._capacity - self.sequence.position

    # answer

    def _answer(self, *, send: bool) -> Delivery:
        """Send, wait, and send again until a verdict advances the sequence; commit it."""
        asked_s = self._clock()
        connection = self._frames.connection_count
        attempt = 0
        if send:
            self._send(retry=False)
        sent_s = asked_s
        while True:
            due_s = sent_s + min(self.round_trip.timeout_s(attempt=attempt), _MAX_TIMEOUT_S)
            frame = self._receive(due_s)
            now_s = self._clock()
            again = False
            if isinstance(frame, Verdict):
                position = self.sequence.position
                reception = self.sequence.receive(frame, round_=self._round, draft=self._draft)
                if reception is Reception.ADVANCED:
                    self.stats.wait_s += now_s - asked_s
                    return self._commit(frame, position)
                self.stats.stale += reception is not Reception.GAP
                # While one repetition is on its way, every later verdict shows the same gap.
                again = reception is Reception.GAP and (attempt == 0 or now_s >= due_s)
            elif isinstance(frame, Reject):
                again = self._recover(frame)
            if self._frames.connection_count != connection:
                connection = self._frames.connection_count
                again = True
            if again or now_s >= due_s:
                self._patience.check(now_s - asked_s)
                attempt += 1
                self._send(retry=True)
                sent_s = now_s

    def _receive(self, due_s: float) -> SessionFrame | None:
        """Return the next frame of this session, drafting on until it comes or is due."""
        while self._may_draft_ahead() and self._clock() < due_s:
            frame = self._read(timeout_s=0.0)
            if frame is not None:
                return frame
            self._on_phase(Phase.DRAFT)
            self._draft_token()
        self._on_phase(Phase.WAIT)
        return self._read(timeout_s=max(0.0, min(due_s - self._clock(), _LINK_CHECK_S)))

    def _may_draft_ahead(self) -> bool:
        if not self._options.optimistic or self._length == 0:
            return False
        enough = len(self._draft) + 1 + self._length  # the draft, the bonus token, the next draft
        return len(self._ahead) < min(enough, self._room - 1)

    def _read(self, *, timeout_s: float) -> SessionFrame | None:
        frame = self._frames.receive(timeout_s)
        if frame is not None:
            self._opened = self._opened or not isinstance(frame, Reject)
        if isinstance(frame, Opened):
            self._capacity = min(self._capacity, frame.context_length)
        return frame

    def _commit(self, verdict: Verdict, position: int) -> Delivery:
        """Take over a verdict that advanced the sequence; keep what was rightly drafted ahead."""
        new = tuple(self.sequence.tokens[position:])
        accepted = shared(self._draft, new)
        self._learn(accepted, len(new))
        drafted_ahead = max(len(self._ahead) - len(self._draft), 0)
        support = verdict.grant_support if verdict.grant_mode is Mode.RATIO else 0
        self._ahead.keep(new, support=support, end=bool(verdict.end))
        self.stats.saved += len(self._ahead)
        self.stats.wasted += drafted_ahead - len(self._ahead)
        self.stats.accepted += accepted
        self.stats.emitted += len(new)
        self.stats.server_queue_s += verdict.queue_us * 1e-6
        self.stats.server_compute_s += verdict.compute_us * 1e-6
        if verdict.echo_us:
            self.round_trip.add(((self._now_us() - verdict.echo_us) & 0xFFFFFFFF) * 1e-6)
        self._length = verdict.grant_length
        self._draft = ()
        self._on_grant(verdict)
        return Delivery(new, verified=True)

    def _learn(self, accepted: int, tokens: int) -> None:
        """Tell early stopping what became of a draft, and how long its round took."""
        since_s, self._committed_s = self._committed_s, self._clock()
        if self._draft and since_s is not None:
            self._ahead.learn(
                sent=len(self._draft),
                accepted=accepted,
                tokens=tokens,
                seconds=self._committed_s - since_s,
            )

    def _recover(self, reject: Reject) -> bool:
        """Return whether asking again makes sense; sessions the server lost are opened again."""
        if reject.code in (RejectCode.UNKNOWN_SESSION, RejectCode.POSITION):
            first = self._opened
            self._opened = False
            self.stats.reopened += first
            return first
        if reject.code in (RejectCode.MALFORMED, RejectCode.BUSY):
            return False  # asked again when due
        raise RejectedError(reject.code.value, reject.reason)

    # send

    def _send(self, *, retry: bool) -> None:
        self.stats.retries += retry
        if retry:
            self._committed_s = None  # how long such a round takes says nothing of the next
        self._frames.send(self._draft_frame(retry=retry) if self._opened else self._opening_now())

    def _draft_frame(self, *, retry: bool) -> Draft:
        credit = 0
        if self._length == 0:
            credit = max(self._credit_until - self.sequence.position, 1)
        sent = self._ahead.first(len(self._draft))
        return Draft(
            session=self._opening.session,
            round=self._round,
            position=self.sequence.position,
            sent_us=self._now_us(),
            draft_s=min(sum(drafted.took_s for drafted in sent), 6.5),
            token_ids=self._draft,
            id_bits=self._id_bits,
            credit=credit,
            retry=retry,
            proposals=tuple(drafted.proposal for drafted in sent if drafted.proposal),
        )

    def _opening_now(self) -> Open:
        """Return the request with everything that has been committed since."""
        committed = tuple(self.sequence.generated)
        return replace(self._opening, committed=committed)

    def _now_us(self) -> int:
        """Return the clock for the wire; never 0, which means that no draft is echoed."""
        return int(self._clock() * 1e6) & 0xFFFFFFFF or 1

    # offline

    def _decode_locally(self) -> Iterator[Delivery]:
        """Go on with the small model alone."""
        self._on_phase(Phase.DRAFT)
        self._ahead.drop()
        while not self.sequence.end:
            token = self._ahead.decode_token(self.sequence.tokens)
            self.sequence.tokens.append(token)
            self.stats.unverified += 1
            if token in self._opening.stop_ids:
                self.sequence.end = End.STOP_TOKEN
            elif self._room <= 0:
                self.sequence.end = End.MAX_TOKENS
            yield Delivery((token,), verified=False)
