"""A broker of our own: mosquitto where there is one, else amqtt; gone when we are gone.

It listens on loopback unless told otherwise, keeps nothing on disk once it runs, and is killed by
the kernel if this process ends without ending it (Linux). Knows nothing of topics.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import logging
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from edge_server.mosquitto_conf import private_conf
from edge_server.with_parent import wrap
from sdk.config import BrokerConfig
from sdk.errors import BrokerError, ConfigError

__all__ = ["BrokerProcess", "find_mosquitto", "start_broker", "unprivileged_user"]

_LOG = logging.getLogger(__name__)

_START_TIMEOUT_S = 15.0
_STOP_TIMEOUT_S = 3.0
_PORT_ATTEMPTS = 5
_KEPT_LINES = 50
_TROUBLES = ("Error", "failed", "dropped", "denied")
_PLACES = ("/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/opt/homebrew/sbin/mosquitto")


def start_broker(
    kind: str = "auto",
    *,
    port: int = 0,
    host: str = "127.0.0.1",
    conf: str | None = None,
    conf_file: Path | None = None,
    on_loss: Callable[[str], None] = lambda _why: None,
) -> BrokerProcess:
    """Start a private broker and return it once it answers; a context manager that ends it.

    Args:
        kind: "mosquitto", "amqtt", or "auto" for the first of them that is installed.
        port: 0 for any free one.
        host: address to listen on; beyond loopback anybody on the network may join.
        conf: mosquitto's configuration in place of the private one; needs `port`.
        conf_file: the same as a file that stays while the broker runs, which `reload` needs.
        on_loss: called from a thread, with a sentence, when the broker ends without being told to.

    Raises:
        BrokerError: if there is none, or it does not start.
    """
    if kind not in ("auto", "mosquitto", "amqtt"):
        raise ConfigError(f"broker {kind!r}: use auto, mosquitto or amqtt")
    chosen = _choose(kind)
    attempts = 1 if port else _PORT_ATTEMPTS
    for attempt in range(attempts):
        broker = BrokerProcess(
            kind=chosen,
            host=host,
            port=port or _free_port(host),
            conf=conf,
            conf_file=conf_file,
            on_loss=on_loss,
        )
        try:
            broker.start()
        except BrokerError:
            if attempt + 1 == attempts:
                raise
        else:
            return broker
    raise AssertionError("unreachable")


def find_mosquitto() -> str | None:
    """Return mosquitto's path; Debian keeps it where users do not look."""
    found = shutil.which("mosquitto")
    return found or next((place for place in _PLACES if os.access(place, os.X_OK)), None)


class BrokerProcess:
    """A broker that belongs to this process."""

    def __init__(
        self,
        *,
        kind: str,
        host: str,
        port: int,
        conf: str | None = None,
        conf_file: Path | None = None,
        on_loss: Callable[[str], None] = lambda _why: None,
    ) -> None:
        """Prepare; nothing runs before `start`."""
        self._on_loss = on_loss
        self._serving = False  # started, and not told to end
        self.kind = kind
        self.config = BrokerConfig(host=host, port=port)
        self._conf = conf
        self._conf_file = conf_file
        self._process: subprocess.Popen[str] | None = None
        self._keeper: threading.Thread | None = None
        self._started = threading.Event()
        self._start_error: OSError | None = None
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)

    @property
    def pid(self) -> int:
        """Process id of the broker.

        Raises:
            BrokerError: if it does not run.
        """
        if self._process is None:
            raise BrokerError(f"{self.kind} does not run")
        return self._process.pid

    @property
    def log(self) -> list[str]:
        """The latest lines that the broker wrote."""
        return list(self._lines)

    def start(self) -> None:
        """Start and wait until the port answers.

        Raises:
            BrokerError: if it ends or does not answer; nothing is left behind.
        """
        self._lines.clear()
        _check_free(self.config)
        with tempfile.TemporaryDirectory(prefix="multispin-broker-") as folder:
            try:
                self._spawn(self._command(Path(folder)))
                self._await_port()
            except BaseException:  # Ctrl-C too
                self.kill()
                raise
        self._serving = True
        # The broker has read its files; nothing is left on disk that a crash could leave behind.

    def restart(self) -> None:
        """Kill it if it runs, and start again on the same port."""
        self.kill()
        self.start()

    def reload(self) -> None:
        """Have mosquitto read its configuration, certificates and access rules again.

        Raises:
            BrokerError: if its configuration was not given as a file that stays: without it,
                mosquitto would go on without access rules.
        """
        if self._conf_file is None or self._process is None:
            raise BrokerError(f"{self.kind} cannot be reloaded")
        self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """End it as a power cut would; clients learn from their sockets only."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in an orderly way; harmless when repeated."""
        self._end(signal.SIGTERM)

    def __enter__(self) -> BrokerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _command(self, folder: Path) -> list[str]:
        host, port = self.config.host, self.config.port
        if self.kind == "amqtt":
            module = [sys.executable, "-m", "edge_server.amqtt_broker"]
            return wrap([*module, "--host", host, "--port", str(port)])
        program = find_mosquitto()
        if program is None:  # gone since it was chosen
            raise BrokerError(_NONE_FOUND)
        user_id, group_id = unprivileged_user()
        conf = self._conf_file or folder / "mosquitto.conf"
        if self._conf_file is None:
            conf.write_text(self._conf or private_conf(host=host, port=port))
            if user_id >= 0:
                os.chown(folder, user_id, group_id)
                os.chown(conf, user_id, group_id)
        return wrap([program, "-c", str(conf)], user_id=user_id, group_id=group_id)

    def _spawn(self, command: list[str]) -> None:
        """Start the command from a thread that lasts as long as it, to which its life is bound."""
        self._started.clear()
        self._start_error = None
        self._keeper = threading.Thread(
            target=self._keep, args=(command,), name=f"{self.kind} keeper", daemon=True
        )
        self._keeper.start()
        self._started.wait()
        if self._start_error is not None:
            raise BrokerError(f"{command[0]} cannot be started: {self._start_error}")

    def _keep(self, command: list[str]) -> None:
        try:
            self._process = process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C is for us; we end the broker after our goodbyes
            )
        except OSError as error:
            self._start_error = error
            return
        finally:
            self._started.set()
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self._lines.append(line.rstrip())
                _LOG.log(self._level(line), "%s: %s", self.kind, _without_time(line.rstrip()))
        process.wait()
        if self._serving:
            words = "; ".join(list(self._lines)[-2:]) or "it said nothing"
            self._on_loss(f"{self.kind} on {self.config.address} ended by itself: {words}")

    def _level(self, line: str) -> int:
        """Rank a line: a broker for a network tells everything, one for this machine troubles."""
        told = self._conf_file is not None or any(word in line for word in _TROUBLES)
        return logging.INFO if told else logging.DEBUG

    def _await_port(self) -> None:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        assert self._process is not None
        while not _answers(self.config):
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline_s:
                self.kill()  # also waits for its last words
                words = "; ".join(list(self._lines)[-2:]) or "it said nothing"
                what = "ended at once" if ended else f"is silent for {_START_TIMEOUT_S:g} s"
                raise BrokerError(f"{self.kind} on {self.config.address} {what}: {words}")
            time.sleep(0.01)

    def _end(self, number: signal.Signals) -> None:
        self._serving = False
        process, keeper = self._process, self._keeper
        if process is None or keeper is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        keeper.join()
        self._process = self._keeper = None


def _without_time(line: str) -> str:
    time_, colon, rest = line.partition(": ")
    return rest if colon and time_.isdecimal() else line


_NONE_FOUND = (
    "no broker is installed: apt install mosquitto, or pip install 'multispin[broker]' for a "
    "small one; or name a running one with --broker HOST:PORT"
)


def _choose(kind: str) -> str:
    if kind != "amqtt" and find_mosquitto():
        return "mosquitto"
    if kind == "mosquitto" or importlib.util.find_spec("amqtt") is None:
        raise BrokerError(_NONE_FOUND)
    if kind == "auto":
        print(
            "multispin: mosquitto is not installed, so the small broker amqtt serves instead: "
            "for this machine and for trials only ('apt install mosquitto')",
            file=sys.stderr,
        )
    return "amqtt"


def unprivileged_user() -> tuple[int, int]:
    """Return (user id, group id) to run mosquitto as: root's broker is nobody's wish."""
    if os.geteuid() != 0:
        return -1, -1
    for name in ("mosquitto", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    return -1, -1


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise BrokerError(
                f"cannot listen on {host}: {error.strerror}; --listen takes an address of this "
                "machine, 0.0.0.0 for all of them"
            ) from error
        return int(probe.getsockname()[1])


def _check_free(config: BrokerConfig) -> None:
    """Raise BrokerError if somebody else listens: his broker must not be taken for ours."""
    with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise BrokerError(
                    f"cannot listen on {config.address}: {error.strerror}; give an address of "
                    "this machine with --listen, and a --port that this user may open"
                ) from error
            raise BrokerError(
                f"cannot listen on {config.address}: {error.strerror}; join the broker that runs "
                f"there (--broker {config.address}, with certificates --config), or choose "
                "another --port"
            ) from error


def _answers(config: BrokerConfig) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)  # noqa: S104
    try:
        with socket.create_connection((host, config.port), timeout=1.0):
            return True
    except OSError:
        return False
