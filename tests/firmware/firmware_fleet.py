"""A fleet in a folder: a release, boards that run its first version, agents, and wires to them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from firmware_broker import NOW, free_port, run_broker
from firmware_bundles import make_recipe

from firmware_tools.board.install import Host
from firmware_tools.board.paths import BoardPaths
from firmware_tools.board.slots import Slots
from firmware_tools.bundle.build import build
from firmware_tools.bundle.release import Release
from firmware_tools.bundle.signed import open_bundle, sign
from firmware_tools.keys import KeyStore
from firmware_tools.ota.agent import Agent, AgentFiles
from firmware_tools.ota.messages import Command, Report, decode, encode
from firmware_tools.ota.operator import SUBSCRIPTIONS, Operator
from firmware_tools.ota.rollout import Rollout
from firmware_tools.ota.shop import Shop
from sdk.config import BrokerConfig
from sdk.protocol import topics
from sdk.transport.interface import Transport
from sdk.transport.memory import Faults, MemoryHub
from sdk.transport.mqtt import MqttTransport

PI = Host(machine="aarch64", python="3.11", glibc=(2, 36))


class Fleet:
    """A release with versions 1 to 3, and boards that run version 1."""

    def __init__(self, folder: Path, keys: KeyStore) -> None:
        self.folder, self.keys = folder, keys
        self.release = Release(folder=folder / "release", keys=keys, now=NOW)
        root = self.release.first_root()
        self.root = root
        self.first = self.bundle(1)
        self.release.add([self.first, self.bundle(2)])

    def bundle(self, release: int) -> Path:
        # Padding that does not compress makes several windows of blocks.
        folder = self.folder / "inputs"
        recipe = make_recipe(folder, version=f"{release}.0.0", release=release)
        (folder / "packages/noise.bin").write_bytes(Noise(release).bytes(900_000))
        path = self.folder / f"{release}.bundle"
        build(recipe, path)
        sign(path, self.keys.signing_key("bundle"))
        return path

    def board(self, device: str) -> Slots:
        """Return a board with version 1, proven, and its identity."""
        slots = Slots(BoardPaths(root=self.folder / device))
        bundle = open_bundle(self.first, [self.keys.verify_key("bundle")])
        slots.install(bundle.manifest, bundle.unpack)
        slots.good()
        return slots

    def files(self, slots: Slots, device: str) -> AgentFiles:
        keys = (self.keys.verify_key("bundle"),)
        return AgentFiles(paths=slots.paths, device=device, keys=keys, root=self.root)

    def rollout(self, *devices: str, **options: int) -> Rollout:
        chosen = {"canaries": 1, "max_failures": 0, "parallel": 4} | options
        return Rollout(id="c0ffee", devices=devices, silence_s=60, **chosen)  # type: ignore[arg-type]

    def operator(
        self, transport: Transport, rollout: Rollout, version: str = "2.0.0", rate: int = 1 << 30
    ) -> Operator:
        return Operator(
            transport=transport,
            rollout=rollout,
            shop=Shop(release=self.folder / "release"),
            version=version,
            rate_bytes_s=rate,
        )


def replace_id(rollout: Rollout, name: str) -> Rollout:
    rollout.id = name
    return rollout


class Noise:
    """Bytes that do not compress, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        import random

        self._random = random.Random(seed)

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)


class Machine:
    """A board as systemd runs it: restarts the agent, and lets the new slot prove itself or not."""

    def __init__(
        self,
        fleet: Fleet,
        device: str,
        connect: Callable[[], Transport],
        proves: Callable[[Slots], object] = Slots.good,
    ) -> None:
        self.slots = fleet.board(device)
        self.starts = 0
        self._fleet, self._device, self._connect, self._proves = fleet, device, connect, proves
        self._off = threading.Event()
        self._restart = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def restart(self) -> None:
        """End the agent as a crash would."""
        self._restart.set()

    def _run(self) -> None:
        while not self._off.is_set():
            self.starts += 1
            self._restart.clear()
            state = self.slots.started()
            if state.trying:
                self._proves(self.slots)
            transport = self._connect()
            agent = Agent(
                files=self._fleet.files(self.slots, self._device), transport=transport, host=PI
            )
            # A crash in the middle of a download: the next message is the last.
            agent._puller.cancelled = partial(self._die_or, agent)
            try:
                while not (agent.restart_wanted or self._off.is_set() or self._restart.is_set()):
                    agent.run_once(0.1)
            except AgentCrashError:
                pass
            finally:
                transport.close()

    def _die_or(self, agent: Agent) -> bool:
        if self._restart.is_set() or self._off.is_set():
            raise AgentCrashError
        return agent._is_cancelled()

    def __enter__(self) -> Machine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._off.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


class AgentCrashError(BaseException):
    """Ends an agent without a word."""


class Wire:
    """The fleet's broker and everybody's connections to it."""

    def __init__(self, folder: Path, keys: KeyStore) -> None:
        self.folder, self.keys, self.port = folder, keys, free_port()
        self._broker = ExitStack()

    def start(self) -> None:
        self._broker.enter_context(run_broker(self.folder, self.keys, self.port))

    def stop(self) -> None:
        self._broker.close()

    def operator(self, client_id: str = "flash-test") -> MqttTransport:
        config = self._config(self.keys.public / "edge.crt", self.keys.secret / "edge.key")
        return MqttTransport(
            broker=config,
            client_id=client_id,
            subscriptions=SUBSCRIPTIONS,
            backlog_bytes=16 << 20,
        )

    def certify(self, device: str) -> None:
        if not (self.keys.public / "devices" / device).exists():
            self.keys.issue_device(device, now=NOW)

    def board(self, device: str) -> MqttTransport:
        self.certify(device)
        folder = self.keys.public / "devices" / device
        secret = self.keys.secret / "devices" / device
        return MqttTransport(
            broker=self._config(folder / "device.crt", secret / "device.key"),
            client_id=f"{device}-update",
            subscriptions=[(topics.down(device, "update"), 1), (topics.down(device, "block"), 0)],
        )

    def _config(self, certificate: Path, key: Path) -> BrokerConfig:
        return BrokerConfig(
            host="localhost",
            port=self.port,
            ca_file=self.keys.public / "ca.crt",
            cert_file=certificate,
            key_file=key,
        )


@contextmanager
def memory_agent(
    fleet: Fleet, device: str, faults: Faults | None = None
) -> Iterator[tuple[Agent, Transport, Slots]]:
    """An agent and an operator's transport, joined without a broker."""
    hub = MemoryHub()
    slots = fleet.board(device)
    board = hub.connect(
        client_id=device,
        subscriptions=[(topics.down(device, "update"), 1), (topics.down(device, "block"), 0)],
        downlink=faults or Faults(),
    )
    boss = hub.connect(
        client_id="edge", subscriptions=[("sd/1/+/up/update", 1), ("sd/1/+/up/block", 0)]
    )
    agent = Agent(files=fleet.files(slots, device), transport=board, host=PI)
    agent._puller.timeout_s = 0.05
    yield agent, boss, slots
    board.close()
    boss.close()


@contextmanager
def serving(boss: Transport, device: str, shop: Shop) -> Iterator[list[Report]]:
    """Answer a board's requests in a thread; yield the list of what it reports."""
    stop = threading.Event()
    reports: list[Report] = []

    def run() -> None:
        while not stop.is_set():
            message = boss.receive(0.05)
            if message is not None and message.topic.endswith("/up/block"):
                shop.answer(boss, device, message.payload)
            elif message is not None:
                reports.append(decode(Report, message.payload))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield reports
    finally:
        stop.set()
        thread.join()


def wish(boss: Transport, device: str, command: Command) -> None:
    boss.publish(topics.down(device, "update"), encode(command), qos=1, retain=True)


TO_TWO = Command(id="w1", version="2.0.0", rate_bytes_s=1 << 30)


def obey(
    fleet: Fleet, agent: Agent, boss: Transport, command: Command, shop: Shop | None = None
) -> Report:
    """Give a command, let the agent carry it out, and return its last report."""
    with serving(boss, agent.files.device, shop or Shop(release=fleet.folder / "release")):
        agent._report = None
        wish(boss, agent.files.device, command)
        return run_until_told(agent, command.id)


def run_until_told(agent: Agent, command_id: str) -> Report:
    """Run the agent until this command is over or restarts the board, and return its report."""
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        agent.run_once(0.05)
        report = agent._report
        if report and report.id == command_id and (report.final or report.status == "restarting"):
            return report
    raise AssertionError(f"no end of {command_id}: {agent._report}")
