"""The doctor: what this board has and lacks for its slot, one finding per line with what to do.

Knows nothing about how findings are shown. It only looks; it changes nothing.
"""

from __future__ import annotations

import ctypes
import grp
import os
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from firmware_tools.board.install import Host
from firmware_tools.board.paths import BoardPaths
from firmware_tools.board.slots import Slots
from firmware_tools.board.state import GOOD
from sdk.config import BrokerConfig, load_config
from sdk.errors import ConfigError, FirmwareError, MultispinError

__all__ = ["Finding", "examine"]

_BUILD_YEAR_S = 1_700_000_000  # 2023-11-14: a clock before this has never been set
_SPARE = 1.5
_TIMEOUT_S = 5.0
_GROUPS = (("/dev/vcio", "video"), ("/dev/ttyUSB0", "dialout"), ("/dev/dri/card0", "video"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was looked at, whether it is well, what was found and what to do."""

    name: str
    well: bool
    found: str
    todo: str = ""


def examine(paths: BoardPaths, host: Host) -> list[Finding]:
    """Return every finding, in a fixed order."""
    checks: tuple[Callable[[], Iterable[Finding]], ...] = (
        lambda: _slots(paths),
        lambda: _host(paths, host),
        lambda: _libraries(paths),
        lambda: [_space(paths)],
        lambda: [_clock(time.time())],
        _devices,
        _meters,
        lambda: [_broker(paths)],
    )
    return [finding for check in checks for finding in check()]


def _slots(paths: BoardPaths) -> Iterable[Finding]:
    state = Slots(paths).load()
    running = state.running
    yield Finding(
        name="slot",
        well=running.status == GOOD,
        found=f"{state.active or 'none'}: {running.version or 'empty'} ({running.status})",
        todo="" if running.status == GOOD else "see: multispin board status",
    )


def _host(paths: BoardPaths, host: Host) -> Iterable[Finding]:
    found = f"{host.machine}, Python {host.python}, glibc {'.'.join(map(str, host.glibc))}"
    try:
        slots = Slots(paths)
        host.check(slots.manifest(slots.load().active))
    except (FirmwareError, ValueError) as error:
        yield Finding(name="host", well=False, found=found, todo=str(error))
    else:
        yield Finding(name="host", well=True, found=found)


def _libraries(paths: BoardPaths) -> Iterable[Finding]:
    slots = Slots(paths)
    active = slots.load().active
    for name in slots.manifest(active).libraries if active else ():
        there = _loads(name)
        yield Finding(
            name=name,
            well=there,
            found="present" if there else "missing",
            todo="" if there else "install the package that has it",
        )


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _space(paths: BoardPaths) -> Finding:
    slots = Slots(paths)
    active = slots.load().active
    needed = int(slots.manifest(active).unpacked_bytes * _SPARE) if active else 0
    free = shutil.disk_usage(paths.home if paths.home.exists() else paths.root).free
    return Finding(
        name="space",
        well=free >= needed,
        found=f"{free >> 20} MiB free, an update needs {needed >> 20}",
        todo="" if free >= needed else "delete files, or use a larger card",
    )


def _clock(now_s: float) -> Finding:
    well = now_s >= _BUILD_YEAR_S
    todo = "" if well else "connect it to a network with NTP; updates work meanwhile"
    return Finding(
        name="clock", well=well, found=time.strftime("%Y-%m-%d", time.gmtime(now_s)), todo=todo
    )


def _devices() -> Iterable[Finding]:
    for device, group in _GROUPS:
        if not Path(device).exists():
            continue
        well = os.access(device, os.R_OK | os.W_OK)
        members = _members(group)
        todo = "" if well else f"add this user to group {group} (members: {members or 'none'})"
        yield Finding(name=device, well=well, found="open" if well else "no permission", todo=todo)


def _members(group: str) -> str:
    try:
        return ", ".join(grp.getgrnam(group).gr_mem)
    except KeyError:
        return ""


def _meters() -> Iterable[Finding]:
    # Names as in sdk.energy: a Raspberry Pi 5's PMIC and a Jetson's INA3221.
    hwmon = [path.read_text().strip() for path in Path("/sys/class/hwmon").glob("*/name")]
    found = [name for name in hwmon if name.startswith(("ina", "rp1", "rpi"))]
    if Path("/dev/vcio").exists():
        found.append("vcio")
    yield Finding(
        name="meters",
        well=bool(found),
        found=", ".join(found) or "none",
        todo="" if found else "energy is not measured here; see: multispin energy list",
    )


def _broker(paths: BoardPaths) -> Finding:
    try:
        broker = load_config(paths.config / "multispin.toml").broker
    except ConfigError as error:
        return Finding(name="broker", well=False, found="not configured", todo=str(error))
    try:
        with _connect(broker) as channel:
            kind = channel.version() if isinstance(channel, ssl.SSLSocket) else "no TLS"
    except (OSError, MultispinError) as error:
        todo = "check address, network and certificate; drafting goes on without it"
        return Finding(name="broker", well=False, found=f"{broker.address}: {error}", todo=todo)
    return Finding(name="broker", well=True, found=f"{broker.address} ({kind})")


def _connect(broker: BrokerConfig) -> socket.socket:
    channel = socket.create_connection((broker.host, broker.port), _TIMEOUT_S)
    if not broker.tls:
        return channel
    context = ssl.create_default_context(cafile=str(broker.ca_file))
    if broker.cert_file and broker.key_file:
        context.load_cert_chain(broker.cert_file, broker.key_file)
    return context.wrap_socket(channel, server_hostname=broker.host)
