"""The edge server's loop: what arrived, one pass, what is due; one thread owns all state."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from edge_server.engine import Engine
from edge_server.gateway import Gateway, GatewayLimits
from edge_server.scheduler.interface import Controller, Policy
from edge_server.server_energy import ServerEnergy
from edge_server.sessions import SessionTable
from edge_server.verifier.interface import Verifier
from sdk.transport.interface import Transport

__all__ = ["EdgeServer"]

_IDLE_WAIT_S = 0.5  # how soon an idle server notices that it should stop
_EXPIRE_EVERY_S = 1.0
_MESSAGES_PER_TURN = 256  # read between two passes, so that a flood cannot stop verification


class EdgeServer:
    """Join gateway and engine over one transport."""

    def __init__(
        self,
        *,
        transport: Transport,
        verifier: Verifier,
        controller: Controller,
        policy: Policy,
        limits: GatewayLimits | None = None,
        energy: ServerEnergy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is served before `run`. `energy` splits the server's own meter."""
        self._transport = transport
        self._clock = clock
        self.energy = energy
        self.sessions = SessionTable()
        self.gateway = Gateway(
            transport=transport,
            verifier=verifier,
            controller=controller,
            sessions=self.sessions,
            limits=limits or GatewayLimits(),
            clock=clock,
        )
        self.engine = Engine(
            verifier=verifier,
            controller=controller,
            policy=policy,
            sessions=self.sessions,
            send=self.gateway.send,
            refuse=self.gateway.refuse,
            clock=clock,
            energy=energy,
        )
        self.gateway.attach(self.engine)
        self._expire_at_s = 0.0

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set."""
        while not stop.is_set():
            self.turn()

    def turn(self) -> None:
        """Take in what arrived, run one pass; wait where there was nothing to do."""
        self._take_in()
        if not self.engine.step():
            wake_s = self.engine.wake_s()
            wait_s = _IDLE_WAIT_S if wake_s is None else min(wake_s, _IDLE_WAIT_S)
            message = self._transport.receive(wait_s)
            if message is not None:
                self.gateway.handle(message)
        if self._clock() >= self._expire_at_s:
            self.gateway.expire()
            self._expire_at_s = self._clock() + _EXPIRE_EVERY_S

    def _take_in(self) -> None:
        for _ in range(_MESSAGES_PER_TURN):
            message = self._transport.receive(0.0)
            if message is None:
                return
            self.gateway.handle(message)
