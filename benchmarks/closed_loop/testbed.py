"""What runs: mosquitto, the edge server in a thread, and boards behind links of their own."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Sequence

from benchmarks.closed_loop.known import DRAFT_S, PORT, VERIFY
from benchmarks.namespaces import board_link, broker, child
from edge_server.scheduler.interface import Controller, Policy
from edge_server.server import EdgeServer
from edge_server.verifier.interface import Verifier, VerifyOutcome, VerifyRequest
from edge_server.verifier.onnx import OnnxVerifier
from sdk.config import BrokerConfig
from sdk.protocol import UP_FILTER
from sdk.transport.mqtt import MqttTransport

__all__ = ["KnownTime", "serve", "start_boards"]


def start_boards(stack: contextlib.ExitStack) -> list[int]:
    """Start a broker and the boards, each behind its own link; return the boards' processes."""
    stack.enter_context(broker(PORT))
    boards = []
    for number, draft_s in enumerate(DRAFT_S, start=1):
        program = [sys.executable, "-m", "benchmarks.closed_loop.board", str(number), str(draft_s)]
        pid = stack.enter_context(child(program, own_network=True))
        board_link(
            pid,
            name=f"down{number}",
            board=f"10.99.{number}.1/24",
            server=f"10.99.{number}.2/24",
            server_pid=os.getpid(),
        )
        boards.append(pid)
    return boards


def serve(
    stack: contextlib.ExitStack, verifier: Verifier, control: Controller, policy: Policy
) -> None:
    """Serve in a thread until the stack unwinds."""
    transport = stack.enter_context(
        MqttTransport(
            broker=BrokerConfig(host="127.0.0.1", port=PORT),
            client_id="edge",
            subscriptions=[(UP_FILTER, 1)],
        )
    )
    transport.connect()
    server = EdgeServer(transport=transport, verifier=verifier, controller=control, policy=policy)
    stop = threading.Event()
    thread = threading.Thread(target=server.run, args=(stop,), name="edge-server")
    thread.start()
    stack.callback(thread.join)
    stack.callback(stop.set)


class KnownTime(OnnxVerifier):
    """The real verifier, with passes that take exactly what `VERIFY` says, as a known GPU's."""

    def verify(self, requests: Sequence[VerifyRequest]) -> list[VerifyOutcome]:
        """Verify, not before the time."""
        rows = sum(1 + len(request.draft) for request in requests)
        due_s = time.monotonic() + (
            VERIFY.fixed_s + VERIFY.per_request_s * len(requests) + VERIFY.per_row_s * rows
        )
        outcomes = super().verify(requests)
        time.sleep(max(0.0, due_s - time.monotonic()))
        return outcomes
