"""Which network interface a connection leaves by, and what kind of link that is (Linux).

Reads addresses with `SIOCGIFADDR` and two files a question; None where they do not say.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import sys
from pathlib import Path
from typing import Final

from sdk.link.interface import LinkKind

__all__ = ["interface_of", "kind_of", "wireless_interfaces"]

_SIOCGIFADDR: Final = 0x8915
_ETHERNET: Final = "1"  # ARPHRD_ETHER
_SYSFS: Final = Path("/sys/class/net")
_IF_INET6: Final = Path("/proc/net/if_inet6")


def interface_of(sock: socket.socket) -> str | None:
    """Return the interface that has the socket's local address."""
    try:
        address = ipaddress.ip_address(str(sock.getsockname()[0]).partition("%")[0])
    except (OSError, ValueError, IndexError):
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return _interface_of_v6(address)
        address = address.ipv4_mapped
    return _interface_of_v4(address)


def kind_of(iface: str | None, *, sysfs: Path = _SYSFS) -> LinkKind | None:
    """Return what kind of link an interface is; None for the loopback and the unknown.

    A modem (DEVTYPE=wwan) counts as LTE until its own probe knows better.
    """
    if iface is None:
        return None
    folder = sysfs / iface
    if (folder / "wireless").exists() or (folder / "phy80211").exists():
        return LinkKind.WIFI
    if "DEVTYPE=wwan" in _text(folder / "uevent").split():
        return LinkKind.LTE
    return LinkKind.ETHERNET if _text(folder / "type").strip() == _ETHERNET else None


def wireless_interfaces(*, sysfs: Path = _SYSFS) -> list[str]:
    """Return the Wi-Fi interfaces, sorted."""
    with contextlib.suppress(OSError):
        return sorted(
            each.name
            for each in sysfs.iterdir()
            if kind_of(each.name, sysfs=sysfs) is LinkKind.WIFI
        )
    return []


def _interface_of_v4(address: ipaddress.IPv4Address) -> str | None:
    if not sys.platform.startswith("linux"):
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without an IPv4 address
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(query.fileno(), _SIOCGIFADDR, request)
                if answer[20:24] == address.packed:
                    return name
    return None


def _interface_of_v6(address: ipaddress.IPv6Address) -> str | None:
    for line in _text(_IF_INET6).splitlines():
        columns = line.split()
        if len(columns) == 6 and columns[0] == address.packed.hex():
            return columns[5]
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
