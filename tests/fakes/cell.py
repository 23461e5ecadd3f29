"""One edge server and any number of devices, joined by whatever transport a test brings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edge_server.gateway import GatewayLimits
from edge_server.scheduler.adaptive import AdaptiveLength
from edge_server.scheduler.interface import Controller, Grant, RoundReport
from edge_server.scheduler.policies import make_policy
from edge_server.scheduler.unmoved import Unmoved
from edge_server.server import EdgeServer
from edge_server.server_energy import ServerEnergy
from edge_server.verifier.interface import Verifier
from sdk.draft.drafter import Drafter
from sdk.model.sampling import SamplingParameters
from sdk.protocol import UP_FILTER, Mode, Open, down
from sdk.round_trip import RoundTrip
from sdk.session import Session
from sdk.session_options import SessionOptions
from sdk.transport.interface import Transport
from sdk.transport.memory import Faults, MemoryHub

__all__ = [
    "FixedLength",
    "connect_device",
    "generate",
    "generate_all",
    "opening",
    "serving",
]


class FixedLength(Unmoved):
    """A controller that always grants the same length, or walks through a list of them."""

    def __init__(self, *lengths: int) -> None:
        self._lengths = lengths
        self._rounds: dict[int, int] = {}
        self.reports: list[RoundReport] = []

    def observe(self, report: RoundReport) -> None:
        self.reports.append(report)

    def grant(self, device: str, session: int, *, now_s: float) -> Grant:
        count = self._rounds[session] = self._rounds.get(session, -1) + 1
        return Grant(length=self._lengths[count % len(self._lengths)])

    def closed(self, device: str, session: int, *, now_s: float) -> None:
        self._rounds.pop(session, None)


@contextmanager
def serving(
    transport: Transport,
    verifier: Verifier,
    *,
    controller: Controller | None = None,
    limits: GatewayLimits | None = None,
    energy: ServerEnergy | None = None,
) -> Iterator[EdgeServer]:
    """Run an edge server in a thread; an error in it fails the test."""
    server = EdgeServer(
        transport=transport,
        verifier=verifier,
        controller=controller or AdaptiveLength(max_length=8),
        policy=make_policy("continuous"),
        limits=limits,
        energy=energy,
    )
    stop = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            server.run(stop)
        except BaseException as error:
            errors.append(error)
            raise

    thread = threading.Thread(target=run, name="edge-server")
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]


def serve_in_memory(hub: MemoryHub) -> Transport:
    return hub.connect("edge", subscriptions=[(UP_FILTER, 1)])


def connect_device(
    hub: MemoryHub, device: str, *, uplink: Faults | None = None, downlink: Faults | None = None
) -> Transport:
    return hub.connect(
        device,
        subscriptions=[(down(device, "verdict"), 0), (down(device, "control"), 1)],
        uplink=uplink,
        downlink=downlink,
    )


def opening(
    *,
    session: int = 1,
    prompt: tuple[int, ...] = (1, 2, 3, 4, 5),
    committed: tuple[int, ...] = (),
    parameters: SamplingParameters | None = None,
    max_tokens: int = 60,
    stop_ids: tuple[int, ...] = (),
    tokenizer: str = "hash-tokenizer",
    vocabulary_size: int = 97,
) -> Open:
    parameters = parameters or SamplingParameters()
    return Open(
        session=session,
        prompt=prompt,
        committed=committed,
        sampling=parameters,
        mode=Mode.GREEDY if parameters.greedy else Mode.COUPLED,
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        tokenizer=tokenizer,
        vocabulary_size=vocabulary_size,
    )


def generate(
    transport: Transport,
    device: str,
    request: Open,
    drafter: Drafter,
    *,
    options: SessionOptions | None = None,
    on_tokens: Callable[[list[int]], None] = lambda _tokens: None,
) -> tuple[list[int], Session]:
    """Run one session to its end; return its delivered ids and the session."""
    session = Session(
        device=device,
        opening=request,
        drafter=drafter,
        transport=transport,
        options=options or SessionOptions(),
    )
    session.round_trip = RoundTrip(least_timeout_s=0.05, first_timeout_s=0.2)
    delivered: list[int] = []
    for delivery in session.run():
        delivered += delivery.token_ids
        on_tokens(delivered)
    return delivered, session


def generate_all(jobs: dict[str, Callable[[], list[int]]]) -> dict[str, list[int]]:
    """Run one generation per device, at once; return what each delivered."""
    results: dict[str, list[int]] = {}
    threads = [
        threading.Thread(target=lambda name=name, job=job: results.update({name: job()}))
        for name, job in jobs.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
