"""The verify loop: pick → run → commit.

The engine owns the verifier and the order of its work. Waiting drafts come first; prompts are
prefilled in chunks between passes, so that a long prompt delays nobody's verdict by more than one
chunk. Knows nothing of MQTT: verdicts leave through a function.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from edge_server.scheduler.interface import (
    Controller,
    Policy,
    RoundReport,
    VerifyReport,
    Waiting,
)
from edge_server.server_energy import ServerEnergy
from edge_server.sessions import Session, SessionTable
from edge_server.verifier.interface import Verifier, VerifyOutcome, VerifyRequest
from sdk.errors import CapacityError
from sdk.protocol import Draft, End, Verdict, bits_per_id

__all__ = ["Engine", "EngineCounters"]

_PREFILL_CHUNK_TOKENS = 128


@dataclass(slots=True)
class EngineCounters:
    """What the engine has done since it started."""

    passes: int = 0
    requests: int = 0
    rows: int = 0
    drafted: int = 0
    accepted: int = 0
    emitted: int = 0
    prefilled: int = 0
    verify_s: float = 0.0


class Engine:
    """Verify whatever the policy picks, one pass at a time."""

    def __init__(
        self,
        *,
        verifier: Verifier,
        controller: Controller,
        policy: Policy,
        sessions: SessionTable,
        send: Callable[[Session, Verdict], None],
        refuse: Callable[[Session, CapacityError], None],
        clock: Callable[[], float],
        energy: ServerEnergy | None = None,
    ) -> None:
        """Join the parts.

        Args:
            send: delivers a verdict.
            refuse: ends a session that the verifier has no memory for.
            clock: monotonic seconds.
            energy: the server's own meter, told whose rows were verified.
        """
        self._verifier = verifier
        self._controller = controller
        self._policy = policy
        self._sessions = sessions
        self._send = send
        self._refuse = refuse
        self._clock = clock
        self._energy = energy
        self._id_bits = bits_per_id(verifier.vocabulary_size)
        self._to_prefill: deque[Session] = deque()
        self.counters = EngineCounters()

    def admit(self, session: Session) -> None:
        """Queue a new session's prompt for prefilling."""
        self._to_prefill.append(session)

    def step(self) -> bool:
        """Run one pass over what waits, and one chunk of prefill; return whether work was done."""
        batch = self._pick()
        if batch:
            self._pass(batch)
        return self._prefill() or bool(batch)

    def wake_s(self) -> float | None:
        """Return in how many seconds to step again though nothing arrives; None for never."""
        if self._to_prefill:
            return 0.0
        return self._policy.wake_s(self._waiting(), now_s=self._clock())

    def _waiting(self) -> list[Waiting]:
        waiting = [
            Waiting(
                device=session.device,
                session=session.slot,  # ids are the devices' own and may be equal
                arrived_s=session.arrived_s,
                rows=1 + (len(session.draft.token_ids) if session.draft else 0),
            )
            for session in self._sessions
            if not session.prefilling and (session.draft is not None or session.decoding_alone)
        ]
        return sorted(waiting, key=lambda item: item.arrived_s)

    def _pick(self) -> list[Session]:
        waiting = self._waiting()
        if not waiting:
            return []
        active = {session.slot: session for session in self._sessions if not session.end}
        picked = self._policy.pick(waiting, active=active.keys(), now_s=self._clock())
        return [active[slot] for slot in picked]

    def _pass(self, batch: list[Session]) -> None:
        """Verify a batch; what has no room in it goes alone, and ends where it has none then."""
        started_s = self._clock()
        try:
            outcomes = self._run(batch)
        except CapacityError as error:
            if len(batch) == 1:
                self._refuse(batch[0], error)
            else:
                for session in batch:
                    self._pass([session])
            return
        self._commit(batch, outcomes, started_s=started_s, ended_s=self._clock())

    def _run(self, batch: list[Session]) -> list[VerifyOutcome]:
        requests = [
            VerifyRequest(
                slot=session.slot,
                pending=tuple(session.tokens[session.prefilled :]),
                draft=(draft := _useful_draft(session)),
                proposals=session.draft.proposals[: len(draft)] if session.draft else (),
            )
            for session in batch
        ]
        outcomes = self._verifier.verify(requests)
        self.counters.passes += 1
        self.counters.requests += len(requests)
        self.counters.rows += sum(1 + len(request.draft) for request in requests)
        return outcomes

    def _commit(
        self,
        batch: list[Session],
        outcomes: list[VerifyOutcome],
        *,
        started_s: float,
        ended_s: float,
    ) -> None:
        compute_s = ended_s - started_s
        self.counters.verify_s += compute_s
        self._controller.observe_verify(
            VerifyReport(
                requests=len(batch),
                rows=sum(1 + len(_useful_draft(session)) for session in batch),
                context_tokens=sum(session.prefilled for session in batch),
                duration_s=compute_s,
                now_s=ended_s,
            )
        )
        for session, outcome in zip(batch, outcomes, strict=True):
            self._commit_one(session, outcome, started_s=started_s, ended_s=ended_s)

    def _commit_one(
        self, session: Session, outcome: VerifyOutcome, *, started_s: float, ended_s: float
    ) -> None:
        rows = 1 + len(_useful_draft(session))
        draft, session.draft = session.draft, None
        position = session.position
        drafted = draft.token_ids if draft else ()
        kept = session.commit((*drafted[: outcome.accepted], outcome.token))
        session.prefilled = session.position - 1
        accepted = min(outcome.accepted, len(kept))
        self.counters.drafted += len(drafted)
        self.counters.accepted += accepted
        self.counters.emitted += len(kept)
        if self._energy is not None:
            self._energy.verified(session.device, rows=rows, accepted=accepted)
        self._controller.observe(
            RoundReport(
                device=session.device,
                session=session.slot,
                drafted=len(drafted),
                accepted=accepted,
                draft_s=draft.draft_s if draft else 0.0,
                uplink_bytes=session.uplink_bytes if draft else 0,
                turnaround_s=session.turnaround_s if draft else None,
                now_s=ended_s,
                distribution_bytes=session.distribution_bytes if draft else 0,
            )
        )
        session.grant = self._controller.grant(session.device, session.slot, now_s=ended_s)
        if session.grant.length:
            session.credit_until = 0  # the device drafts from here on
        queue_s = started_s - session.arrived_s
        self.send_verdict(
            session,
            draft=draft,
            position=position,
            accepted=accepted,
            token_ids=kept[accepted:],
            queue_s=queue_s,
            compute_s=ended_s - started_s,
        )
        session.arrived_s = ended_s  # a session that decodes alone queues up again, behind others

    def send_verdict(
        self,
        session: Session,
        *,
        draft: Draft | None,
        position: int,
        accepted: int,
        token_ids: tuple[int, ...],
        queue_s: float = 0.0,
        compute_s: float = 0.0,
    ) -> None:
        """Tell a device what the sequence holds from `position` on, and what it may do next."""
        last = position + accepted + len(token_ids) == session.position
        verdict = Verdict(
            session=session.id,
            round=session.round,
            position=position,
            echo_us=draft.sent_us if draft else 0,
            queue_us=round(queue_s * 1e6),
            compute_us=round(compute_s * 1e6),
            accepted=accepted,
            token_ids=token_ids,
            id_bits=self._id_bits,
            grant_length=session.grant.length,
            grant_share=session.grant.share,
            grant_mode=session.grant.mode,
            grant_support=session.grant.support,
            end=session.end if last else End.NO,
            stream=draft is None,
        )
        self._send(session, verdict)
        session.verdict_sent_s = self._clock()

    def _prefill(self) -> bool:
        """Prefill one chunk of the oldest new prompt."""
        while self._to_prefill:
            session = self._to_prefill[0]
            alive = self._sessions.find(session.device, session.id) is session
            if alive and session.prefilling:
                last = len(session.tokens) - 1
                chunk = session.tokens[session.prefilled : last][:_PREFILL_CHUNK_TOKENS]
                try:
                    self._verifier.prefill(session.slot, chunk)
                except CapacityError as error:
                    self._refuse(session, error)
                    return True
                session.prefilled += len(chunk)
                self.counters.prefilled += len(chunk)
                return True
            self._to_prefill.popleft()
        return False


def _useful_draft(session: Session) -> tuple[int, ...]:
    """Return the part of a draft that can be accepted: one token of room is the target's own."""
    return session.draft.token_ids[: session.room - 1] if session.draft else ()
