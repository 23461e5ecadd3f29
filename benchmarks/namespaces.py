"""Network namespaces with a shaped uplink, for benchmarks that need a known link. Root only.

Everything here ends with the program that made it, however that one ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = [
    "GOODPUT_SHARE",
    "board_link",
    "broker",
    "child",
    "enter_own_network",
    "ip",
    "shape",
    "timer_lateness",
    "wait_until",
]

GOODPUT_SHARE = 1448 / 1514  # of a link's rate: what full segments carry, the unit of reports
_INSIDE = "MULTISPIN_OWN_NETWORK"
_PR_SET_PDEATHSIG = 1
# A process that changes its user forgets that it is to die with its parent: stay root.
_CONFIG = """listener {port}
allow_anonymous true
set_tcp_nodelay true
persistence false
log_dest none
user root
"""


def enter_own_network(module: str) -> str | None:
    """Run the calling program (`python -m module`) again in a namespace of its own.

    Returns None once inside; where that cannot be had, what is missing.
    """
    if os.geteuid() != 0 or not shutil.which("unshare") or not _mosquitto():
        return "needs root, unshare, tc and mosquitto"
    if os.environ.get(_INSIDE) != "1":
        # exec keeps the process id, so whoever started us can still end us.
        command = ["unshare", "--net", sys.executable, "-m", module, *sys.argv[1:]]
        os.execvpe("unshare", command, os.environ | {_INSIDE: "1"})  # noqa: S606
    return None


def board_link(pid: int, *, name: str, board: str, server: str, server_pid: int) -> None:
    """Join two processes' namespaces by a veth pair: `up0` at the board, `name` at the server."""
    end_at_server = ("peer", "name", name, "netns", str(server_pid))
    ip("link", "add", "up0", "netns", str(pid), "type", "veth", *end_at_server)
    for where, device, address in ((pid, "up0", board), (server_pid, name, server)):
        ip("address", "add", address, "dev", device, inside=where)
        ip("link", "set", device, "up", inside=where)


def shape(rate_mbps: float, *, inside: int | None = None) -> None:
    """Set the rate of the uplink `up0`, ours or that of another process's namespace.

    The burst is a frame and a half: less, and a shaper whose timer is late on a busy machine runs
    slower than it says; much more, and a train passes before it is shaped.
    """
    command = f"tc qdisc replace dev up0 root tbf rate {rate_mbps}mbit burst 1600 latency 50ms"
    _run([*_enter(inside), *command.split()])


def ip(*arguments: str, inside: int | None = None) -> None:
    """Run `ip`, in another process's namespace if one is given."""
    _run([*_enter(inside), "ip", *arguments])


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=10)


def _enter(pid: int | None) -> list[str]:
    return [] if pid is None else ["nsenter", "-t", str(pid), "-n"]


@contextlib.contextmanager
def child(command: Sequence[str], *, own_network: bool = False, **options: Any) -> Iterator[int]:
    """Run a command, in a network namespace of its own if asked; yield its process id.

    It ends with the block, and also when this program goes, even by SIGKILL.
    """
    unshare = ["unshare", "--net"] if own_network else []
    process = subprocess.Popen([*unshare, *command], preexec_fn=_die_with_parent, **options)
    try:
        if own_network:
            wait_until(lambda: _network(process.pid) != _network(os.getpid()))
        yield process.pid
    finally:
        process.kill()
        process.wait(10)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _network(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for a condition."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError("the testbed was not ready in time")
        time.sleep(0.01)


@contextlib.contextmanager
def broker(port: int, *, own_network: bool = False) -> Iterator[int]:
    """Run mosquitto, which leaves nothing behind; yield its process id."""
    config = os.memfd_create("mosquitto.conf", 0)
    try:
        os.write(config, _CONFIG.format(port=port).encode())
        command = [_mosquitto() or "mosquitto", "-c", f"/dev/fd/{config}"]
        quiet = {"pass_fds": [config], "stderr": subprocess.DEVNULL}
        with child(command, own_network=own_network, **quiet) as pid:
            yield pid
    finally:
        os.close(config)


def _mosquitto() -> str | None:
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextlib.contextmanager
def timer_lateness() -> Iterator[list[float]]:
    """Yield a list that fills with how late 10 ms sleeps end.

    A software shaper whose timers are late by more than a frame takes (1.5 ms at 8 Mbit/s) is no
    longer the link that it is set to be.
    """
    lateness_s: list[float] = []
    done = threading.Event()

    def sample() -> None:
        while not done.is_set():
            before_s = time.monotonic()
            time.sleep(0.01)
            lateness_s.append(time.monotonic() - before_s - 0.01)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield lateness_s
    finally:
        done.set()
        thread.join()
