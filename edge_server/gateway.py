"""What devices say, checked, and turned into sessions and waiting drafts.

The device's name comes from the topic, which the broker's access rules guarantee; whatever a frame
claims beyond that is checked here, and a bad frame costs its sender only.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from edge_server.energy import EnergyLedger, scheduler_figures
from edge_server.engine import Engine
from edge_server.frame_problems import problem_with_draft, problem_with_open
from edge_server.scheduler.interface import Controller
from edge_server.sessions import Arrival, Session, SessionTable
from edge_server.strikes import Strikes
from edge_server.verifier.interface import Verifier
from sdk.errors import CapacityError, MalformedFrameError
from sdk.protocol import (
    MAX_VERDICT_TOKENS,
    Close,
    Draft,
    Open,
    Opened,
    Reject,
    RejectCode,
    Verdict,
    decode_control,
    decode_draft,
    down,
    encode_control,
    encode_verdict,
    parse_up,
    up,
)
from sdk.protocol.ids import packed_bytes
from sdk.transport.interface import Message, Transport, publish_packet_bytes

__all__ = ["Gateway", "GatewayLimits"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLimits:
    """Bounds on what devices may take.

    Attributes:
        sessions_per_device: open sessions of one device; the oldest is closed for a new one.
        idle_s: a session that was silent for so long is closed.
        report_bytes: largest report that is read.
    """

    sessions_per_device: int = 4
    idle_s: float = 120.0
    report_bytes: int = 8192


class Gateway:
    """Handle one message at a time; the server's loop calls it between passes."""

    def __init__(
        self,
        *,
        transport: Transport,
        verifier: Verifier,
        controller: Controller,
        sessions: SessionTable,
        limits: GatewayLimits,
        clock: Callable[[], float],
    ) -> None:
        """Join the parts; `attach` brings the engine."""
        self._transport = transport
        self._verifier = verifier
        self._controller = controller
        self._sessions = sessions
        self._limits = limits
        self._clock = clock
        self._strikes = Strikes()
        self._engine: Engine | None = None
        self.counters: Counter[str] = Counter()
        self.energy = EnergyLedger()

    def attach(self, engine: Engine) -> None:
        """Name the engine that new sessions are admitted to."""
        self._engine = engine

    def handle(self, message: Message) -> None:
        """Take in one message; what is wrong with it is rejected or counted, never raised."""
        parsed = parse_up(message.topic)
        if parsed is None or message.retained:  # a retained frame is nobody's present wish
            self.counters["ignored"] += 1
            return
        device, leaf = parsed
        if not self._strikes.allows(device, now_s=self._clock()):
            self.counters["banned"] += 1
            if self._strikes.tell(device):
                reason = "too many frames were refused; what this device sends is ignored for now"
                self._say_reject(device, RejectCode.BUSY, reason, session=0, round_=0)
            return
        handler = {
            "draft": self._on_draft,
            "open": self._on_control,
            "close": self._on_control,
            "report": self._on_report,
            "energy": self._on_energy,
            "probe": self._on_probe,
        }.get(leaf)
        if handler is None:
            self.counters["ignored"] += 1
            return
        try:
            handler(device, message.payload)
        except MalformedFrameError as error:
            self._reject(device, RejectCode.MALFORMED, str(error))

    def send(self, session: Session, verdict: Verdict) -> None:
        """Publish a verdict."""
        self._transport.publish(down(session.device, "verdict"), encode_verdict(verdict))
        self.counters["verdicts"] += 1

    def refuse(self, session: Session, error: CapacityError) -> None:
        """End a session that the verifier has no memory for; its device is told, not blamed."""
        self._close(session)
        self._say_reject(
            session.device,
            RejectCode.CAPACITY,
            str(error),
            session=session.id,
            round_=session.round,
        )

    def expire(self) -> None:
        """Close the sessions that have been silent for too long."""
        for session in self._sessions.idle(since_s=self._clock() - self._limits.idle_s):
            _LOG.info("device %s: session %016x expired", session.device, session.id)
            self.counters["expired"] += 1
            self._close(session)

    def _on_control(self, device: str, payload: bytes) -> None:
        frame = decode_control(payload)
        if isinstance(frame, Open):
            self._open(device, frame)
        elif isinstance(frame, Close):
            session = self._sessions.find(device, frame.session)
            if session is not None:
                self._close(session)
        else:
            raise MalformedFrameError(f"a device does not send {type(frame).__name__.lower()}")

    def _open(self, device: str, opening: Open) -> None:
        now_s = self._clock()
        session = self._sessions.find(device, opening.session)
        if session is not None:
            if session.resumes(opening):
                self._reopen(session, opening)
                return
            self._close(session)
        problem = problem_with_open(opening, self._verifier)
        if problem is not None:
            self._reject(device, *problem, session=opening.session)
            return
        self._make_room(device)
        tokens = [*opening.prompt, *opening.committed]
        limit = len(opening.prompt) + opening.max_tokens
        capacity = min(limit, self._verifier.context_length)
        try:
            slot = self._verifier.open(parameters=opening.sampling, max_tokens=capacity)
        except CapacityError as error:
            self._reject(device, RejectCode.CAPACITY, str(error), session=opening.session)
            return
        session = Session(
            device=device,
            id=opening.session,
            opening=opening,
            slot=slot,
            tokens=tokens,
            capacity=capacity,
            grant=self._controller.opened(device, slot, mode=opening.mode, now_s=now_s),
            seen_s=now_s,
            arrived_s=now_s,
            credit_until=len(tokens) + 1,  # the first token needs no draft
        )
        self._sessions.add(session)
        self.counters["opened"] += 1
        self._send_opened(session)
        assert self._engine is not None
        self._engine.admit(session)

    def _reopen(self, session: Session, opening: Open) -> None:
        """Take up a session that is still here: a repeated open, or a device that restarted."""
        session.restart_rounds(now_s=self._clock())
        self._send_opened(session)
        self._send_committed(session, position=len(opening.prompt) + len(opening.committed))

    def _make_room(self, device: str) -> None:
        """Close a device's oldest session when it opens more than it may have."""
        own = self._sessions.of_device(device)
        if len(own) >= self._limits.sessions_per_device:
            self._close(min(own, key=lambda session: session.seen_s))

    def _close(self, session: Session) -> None:
        self._sessions.remove(session)
        self._verifier.close(session.slot)
        self._controller.closed(session.device, session.slot, now_s=self._clock())

    def _on_draft(self, device: str, payload: bytes) -> None:
        draft = decode_draft(payload)
        session = self._sessions.find(device, draft.session)
        if session is None:
            reason = "open the session again with its committed tokens"
            self._reject_draft(device, draft, RejectCode.UNKNOWN_SESSION, reason)
            return
        problem = problem_with_draft(draft, session.opening, self._verifier)
        if problem is not None:
            self._reject_draft(device, draft, *problem)
            return
        arrival = session.arrive(draft, now_s=self._clock())
        self.counters[arrival.name.lower()] += 1
        if arrival is Arrival.AHEAD:
            reason = f"position {draft.position} is beyond the {session.position} committed tokens"
            self._reject_draft(device, draft, RejectCode.POSITION, reason)
        elif arrival in (Arrival.BEHIND, Arrival.ENDED):
            self._send_committed(session, position=draft.position, draft=draft)
        elif arrival is Arrival.WAITS:
            topic = up(device, "draft")
            session.uplink_bytes = publish_packet_bytes(topic, len(payload), qos=0)
            ids_end = payload[2] + packed_bytes(len(draft.token_ids), draft.id_bits)  # W-DRAFT-1
            session.distribution_bytes = len(payload) - ids_end if draft.proposals else 0

    def _send_committed(
        self, session: Session, *, position: int, draft: Draft | None = None
    ) -> None:
        """Send what the device lacks: committed tokens are the last verdict, repeated."""
        assert self._engine is not None
        lacking = tuple(session.tokens[position:])
        if not lacking and not session.end:
            return  # the next pass will have something to say
        for start in range(0, max(len(lacking), 1), MAX_VERDICT_TOKENS):
            self._engine.send_verdict(
                session,
                draft=draft,
                position=position + start,
                accepted=0,
                token_ids=lacking[start : start + MAX_VERDICT_TOKENS],
            )

    def _on_report(self, device: str, payload: bytes) -> None:
        self._controller.observe_link(device, self._read_report(payload), now_s=self._clock())

    def _on_energy(self, device: str, payload: bytes) -> None:
        record = self._read_report(payload)
        figures = scheduler_figures(record)
        self.energy.add(device, record)
        if figures:
            self._controller.observe_energy(device, **figures)

    def _on_probe(self, device: str, payload: bytes) -> None:  # noqa: ARG002
        """Count it: the broker's acknowledgement was all that the board wanted."""
        self.counters["probes"] += 1

    def _read_report(self, payload: bytes) -> dict[str, object]:
        if len(payload) > self._limits.report_bytes:
            raise MalformedFrameError(f"report of {len(payload)} bytes is too large")
        try:
            report = json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise MalformedFrameError("report is not JSON") from error
        if not isinstance(report, dict):
            raise MalformedFrameError("report is not a JSON object")
        return report

    def _send_opened(self, session: Session) -> None:
        self._publish_control(
            session.device,
            Opened(
                session=session.id,
                context_length=self._verifier.context_length,
                target=self._verifier.target_hash,
            ),
        )

    def _reject_draft(self, device: str, draft: Draft, code: RejectCode, reason: str) -> None:
        self._reject(device, code, reason, session=draft.session, round_=draft.round)

    def _reject(
        self,
        device: str,
        code: RejectCode,
        reason: str,
        *,
        session: int = 0,
        round_: int = 0,
    ) -> None:
        self._strikes.add(device, now_s=self._clock())
        self._say_reject(device, code, reason, session=session, round_=round_)

    def _say_reject(
        self, device: str, code: RejectCode, reason: str, *, session: int, round_: int
    ) -> None:
        self.counters[f"rejected_{code.value}"] += 1
        _LOG.warning("device %s: rejected (%s): %s", device, code.value, reason)
        frame = Reject(session=session, round=round_, code=code, reason=reason)
        self._publish_control(device, frame)

    def _publish_control(self, device: str, frame: Opened | Reject) -> None:
        self._transport.publish(down(device, "control"), encode_control(frame), qos=1)
