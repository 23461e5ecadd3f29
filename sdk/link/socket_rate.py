"""The kernel's own bound on a connection's rate, and what it has not sent yet (Linux).

Where a transport has no socket, or the platform no such option, both are simply absent.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from typing import Final

__all__ = ["SocketRate", "socket_of"]

_SO_MAX_PACING_RATE: Final = 47  # asm-generic/socket.h; bytes/s; Python has no name for it
_SIOCOUTQNSD: Final = 0x894B  # linux/sockios.h: bytes not sent even once
_UNLIMITED: Final = 0xFFFF_FFFF


def socket_of(transport: object) -> socket.socket | None:
    """Return the connected socket beneath a transport, or None where there is none."""
    owner = getattr(transport, "socket", None)
    found = owner() if callable(owner) else None
    return found if isinstance(found, socket.socket) else None


class SocketRate:
    """Holds whatever socket a transport has now; a new connection is noticed by itself."""

    def __init__(self, transport: object) -> None:
        self._transport = transport
        self._held: tuple[socket.socket, float | None] | None = None

    def hold(self, bound_bps: float | None) -> None:
        """Bound the socket's rate from now on; None lifts the bound. Does nothing if unchanged.

        TCP paces itself by this; UDP would need the `fq` queueing discipline.
        """
        sock = socket_of(self._transport)
        if sock is None or not sys.platform.startswith("linux"):
            return
        if self._held is None or self._held[0] is not sock:
            self._held = (sock, None)
        if self._held[1] == bound_bps:
            return
        rate = _UNLIMITED if bound_bps is None else min(max(round(bound_bps / 8), 1), _UNLIMITED)
        with contextlib.suppress(OSError, ValueError):  # closed a moment ago, or no such option
            sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("@I", rate))
        self._held = (sock, bound_bps)

    def unsent_bytes(self) -> int | None:
        """Return what the kernel has taken from us and not sent once, or None if it cannot say."""
        sock = socket_of(self._transport)
        if sock is None or not sys.platform.startswith("linux"):
            return None
        import fcntl

        try:
            raw = fcntl.ioctl(sock.fileno(), _SIOCOUTQNSD, b"\0" * 4)
        except (OSError, ValueError):
            return None
        return int(struct.unpack("@i", raw)[0])
