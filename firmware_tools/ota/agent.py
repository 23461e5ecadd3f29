"""The board's update agent: takes a command, pulls, verifies, installs, restarts, reports.

It has a connection of its own. What it reports changes nothing: a good update stays good when
nobody hears of it. Everything that it refuses leaves the board as it was.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from firmware_tools.board.install import Host
from firmware_tools.board.paths import BoardPaths
from firmware_tools.board.slots import Slots
from firmware_tools.board.space import check_space
from firmware_tools.board.state import BAD, GOOD, State
from firmware_tools.bundle.manifest import Manifest
from firmware_tools.bundle.signed import SignedBundle, open_bundle
from firmware_tools.bundle.trust import BoardClock, ReleaseTrust, Target
from firmware_tools.errors import RefusedError
from firmware_tools.keys.signing import VerifyKey
from firmware_tools.ota.ledger import Ledger
from firmware_tools.ota.messages import Command, Report, decode, encode
from firmware_tools.ota.part import PartFile, remove_part
from firmware_tools.ota.puller import Pace, Puller
from sdk.config import load_config
from sdk.errors import FirmwareError, MalformedFrameError, MultispinError
from sdk.protocol import topics
from sdk.transport.interface import Message, Transport

__all__ = ["Agent", "ThreadedAgent", "make_agent"]

_LOG = logging.getLogger(__name__)
_IDLE_S = 1.0
_REPORT_EVERY = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFiles:
    """What the agent trusts and where it keeps things."""

    paths: BoardPaths
    device: str
    keys: tuple[VerifyKey, ...]
    root: bytes

    @property
    def downloads(self) -> Path:
        """Where bundles arrive."""
        return self.paths.data / "download"


class Agent:
    """One board's agent over one transport; `run_once` handles one thing at a time."""

    def __init__(self, *, files: AgentFiles, transport: Transport, host: Host) -> None:
        self.files = files
        self.transport = transport
        self.restart_wanted = False
        self._host = host
        self._slots = Slots(files.paths)
        self._ledger = Ledger.load(files.paths.data / "updates.json")
        self._report: Report | None = None
        self._connections = 0
        self._puller = Puller(
            transport=transport,
            device=files.device,
            pace=Pace(rate_bytes_s=1 << 20),
            cancelled=self._is_cancelled,
        )
        clock = BoardClock(path=files.paths.data / "clock")
        self._trust = ReleaseTrust(root=files.root, state=files.paths.data / "release", clock=clock)

    def run_once(self, timeout_s: float = _IDLE_S) -> None:
        """Say what has to be said, then take one message and act on it; during a trial, keep it."""
        self._settle_trial()
        self._say_again()
        waiting = self._puller.other
        if self._slots.load().trying:
            # The guard judges within moments: a command that comes before that is no mistake.
            early = self.transport.receive(timeout_s)
            waiting.extend([early] if early is not None else [])
            return
        message = waiting.popleft() if waiting else self.transport.receive(timeout_s)
        if message is not None and message.topic == topics.down(self.files.device, "update"):
            self._take(message)

    def _take(self, message: Message) -> None:
        if not message.payload:
            return  # the operator cleared the command
        try:
            command = decode(Command, message.payload)
        except MalformedFrameError as error:
            _LOG.warning("update: %s", error)
            return
        known = self._ledger.result(command.id)
        if known is not None:
            self._publish(known)
        elif command.id != self._ledger.pending:
            self._obey(command)

    def _obey(self, command: Command) -> None:
        """Carry out one command to its end; a failure is reported, never raised."""
        self._puller.pace.rate_bytes_s = command.rate_bytes_s
        self._puller.block_bytes = command.block_bytes
        try:
            state = self._slots.load()
            if state.running.version == command.version and state.running.status == GOOD:
                self._end(command.id, "successful", "already at this version")
                return
            self._say(command.id, "accepted")
            self._update(command, state)
        except (MultispinError, OSError) as error:
            self._end(command.id, "failed", str(error))

    def _update(self, command: Command, state: State) -> None:
        mine = self._slots.manifest(state.active)
        name = f"{mine.board}-py{mine.python}-{command.version}.bundle"
        target = self._trust.find(name, self._puller.fetch)
        self._check(target, mine)
        check_space(self.files.paths.data, target.size_bytes)
        path = self._download(command, target)
        bundle = open_bundle(path, self.files.keys)
        self._check_bundle(bundle, target)
        self._say(command.id, "installing", target)
        bundle.verify()
        self._ledger = self._ledger.await_trial(command.id, target.release)
        changed = self._slots.install(bundle.manifest, bundle.unpack)
        remove_part(path)
        if not changed:
            self._end(command.id, "successful", "already at this version")
            return
        self._say(command.id, "restarting", target)
        self.restart_wanted = True

    def _check(self, target: Target, mine: Manifest) -> None:
        """Refuse what is not for this board before any of it is pulled."""
        if (target.board, target.python) != (mine.board, mine.python):
            raise RefusedError(
                "board",
                f"{target.name} is for {target.board} with Python {target.python}, this is "
                f"{mine.board} with {mine.python}",
            )
        if target.release < mine.release:
            raise RefusedError(
                "older", f"release {target.release} is below the running {mine.release}"
            )

    def _check_bundle(self, bundle: SignedBundle, target: Target) -> None:
        manifest = bundle.manifest
        promised = (target.board, target.python, target.version, target.release)
        found = (manifest.board, manifest.python, manifest.version, manifest.release)
        if promised != found:
            raise RefusedError("tampered", f"{target.name} holds {found}, not {promised}")
        self._host.check(manifest)

    def _download(self, command: Command, target: Target) -> Path:
        """Pull what is missing and check the whole; a wrong whole is pulled anew, once."""
        path = self.files.downloads / "bundle"
        for attempt in range(2):
            with PartFile(
                path=path,
                sha256=target.file.hashes["sha256"],
                size_bytes=target.size_bytes,
                block_bytes=command.block_bytes,
            ) as part:
                self._pull(command.id, target, part)
                part.flush()
                try:
                    target.verify(path)
                except RefusedError:
                    part.discard()
                    if attempt:
                        raise
                else:
                    return path
        raise AssertionError("unreachable")

    def _pull(self, command_id: str, target: Target, part: PartFile) -> None:
        said = -1.0

        def progress(done_bytes: int) -> None:
            nonlocal said
            share = done_bytes / target.size_bytes
            if share - said >= _REPORT_EVERY:
                said = share
                self._say(command_id, "downloading", target, done_bytes)

        progress(part.done_bytes)
        self._puller.download(f"targets/{target.name}", part, progress)

    def _settle_trial(self) -> None:
        """Report how the trial of a new slot ended, once it did."""
        pending = self._ledger.pending
        if not pending or self.restart_wanted:
            return
        state = self._slots.load()
        if state.running.release == self._ledger.release and state.trying:
            return
        other = state.slots[state.other]
        if state.running.release == self._ledger.release and state.running.status == GOOD:
            self._end(pending, "successful", "")
        elif other.release == self._ledger.release and other.status == BAD:
            self._end(pending, "failed", f"rolled back: {other.reason}")
        else:  # the power went before it was installed: the command, if it still holds, runs anew
            self._ledger = self._ledger.await_trial("", 0)

    def _is_cancelled(self) -> bool:
        topic = topics.down(self.files.device, "update")
        last = [message for message in self._puller.other if message.topic == topic][-1:]
        return bool(last) and not last[0].payload

    def _say_again(self) -> None:
        """After every reconnection: the broker may have forgotten."""
        if self.transport.connection_count != self._connections:
            self._connections = self.transport.connection_count
            if self._report is not None:
                self._publish(self._report)

    def _say(
        self, command_id: str, status: str, target: Target | None = None, done_bytes: int = 0
    ) -> None:
        self._publish(
            Report(
                id=command_id,
                status=status,
                version=self._slots.load().running.version,
                done_bytes=done_bytes,
                size_bytes=target.size_bytes if target else 0,
            )
        )

    def _end(self, command_id: str, status: str, reason: str) -> None:
        version = self._slots.load().running.version
        report = Report(id=command_id, status=status, reason=reason[:500], version=version)
        self._ledger = self._ledger.end(report)
        self._publish(report)

    def _publish(self, report: Report) -> None:
        self._report = report
        topic = topics.up(self.files.device, "update")
        self.transport.publish(topic, encode(report), qos=1, retain=True)


class ThreadedAgent:
    """The agent in a thread of its own, so that pulling never starves the watchdog."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="update agent", daemon=True)
        self._thread.start()

    def step(self, timeout_s: float) -> bool:
        """Wait; return whether the service shall restart. A dead agent is restarted that way."""
        return self._ended.wait(timeout_s)

    def _run(self) -> None:
        try:
            while not self._agent.restart_wanted:
                self._agent.run_once()
        except Exception:
            _LOG.exception("update: the agent ended")
        finally:
            self._agent.transport.close()
            self._ended.set()


class NoAgent:
    """A board without a configured broker: nothing to do but live."""

    def __init__(self, wait: Callable[[float], object]) -> None:
        self._wait = wait

    def step(self, timeout_s: float) -> bool:
        """Wait."""
        self._wait(timeout_s)
        return False


def make_agent(paths: BoardPaths) -> ThreadedAgent | NoAgent:
    """Return the agent of this board, or a null if no broker, key or root is configured."""
    from sdk.transport.mqtt import MqttTransport

    try:
        config = load_config(paths.config / "multispin.toml")
        keys = (VerifyKey.from_pem((paths.config / "bundle.pub").read_bytes()),)
        root = (paths.config / "root.json").read_bytes()
        device = topics.check_device_id(config.device.id or "")
    except (FirmwareError, MultispinError, OSError) as error:
        _LOG.warning("update: no agent: %s", error)
        return NoAgent(threading.Event().wait)
    transport = MqttTransport(
        broker=config.broker,
        client_id=f"{device}-update",
        subscriptions=[(topics.down(device, "update"), 1), (topics.down(device, "block"), 0)],
    )
    files = AgentFiles(paths=paths, device=device, keys=keys, root=root)
    return ThreadedAgent(Agent(files=files, transport=transport, host=Host.present()))
