"""What the kernel knows of a TCP connection: TCP_INFO read, cut into fields and judged.

The kernel returns as many bytes as it knows fields for, so every field may be missing. Offsets from
include/uapi/linux/tcp.h, the same on x86-64 and aarch64. Parsing is pure.
"""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final

from sdk.link.iface import interface_of, kind_of
from sdk.link.interface import LinkReading, Method
from sdk.link.socket_rate import socket_of

__all__ = ["TcpInfo", "TcpProbe", "parse_tcp_info", "read_tcp_info"]

_TCP_INFO: Final = 11
_MOST_BYTES: Final = 512
_LEAST_BYTES: Final = 104  # everything up to pacing_rate: kernels since 3.15 have it
_UNLIMITED: Final = (1 << 64) - 1
_FIELDS: Final[dict[str, tuple[int, str]]] = {
    "state": (0, "B"),
    "snd_mss": (16, "I"),
    "unacked": (24, "I"),
    "rtt_us": (68, "I"),
    "rtt_var_us": (72, "I"),
    "snd_cwnd": (80, "I"),
    "total_retrans": (100, "I"),
    "max_pacing_rate": (112, "Q"),
    "bytes_acked": (120, "Q"),
    "segs_out": (136, "I"),
    "notsent_bytes": (144, "I"),
    "min_rtt_us": (148, "I"),
    "delivery_rate": (160, "Q"),
    "busy_time_us": (168, "Q"),
    "rwnd_limited_us": (176, "Q"),
    "sndbuf_limited_us": (184, "Q"),
    "bytes_sent": (200, "Q"),
    "bytes_retrans": (208, "Q"),
}
_APP_LIMITED: Final = (7, 1)  # byte, bit mask
_ESTABLISHED: Final = 1

_BUSY_SHARE: Final = 0.8  # of an interval, to call the link saturated
_LEAST_BYTES_ACKED: Final = 16_384  # in an interval, to speak of a rate
_CAPPED_SHARE: Final = 0.8  # of the cap: nearer to it we see the cap, not the link
_REAL_RTT_US: Final = 1000  # below, the "link" is a cable inside a machine and rates are bursts


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpInfo:
    """Fields of TCP_INFO under the kernel's names, units added; None: this kernel has it not.

    Rates are in bytes/s, `snd_cwnd` and `unacked` in segments.
    """

    state: int
    snd_mss: int
    unacked: int
    rtt_us: int
    rtt_var_us: int
    snd_cwnd: int
    total_retrans: int
    app_limited: bool
    max_pacing_rate: int | None = None
    bytes_acked: int | None = None
    segs_out: int | None = None
    notsent_bytes: int | None = None
    min_rtt_us: int | None = None
    delivery_rate: int | None = None
    busy_time_us: int | None = None
    rwnd_limited_us: int | None = None
    sndbuf_limited_us: int | None = None
    bytes_sent: int | None = None
    bytes_retrans: int | None = None


def parse_tcp_info(raw: bytes) -> TcpInfo | None:
    """Return the fields in the kernel's answer; None if it is too short to be one."""
    if len(raw) < _LEAST_BYTES:
        return None
    values: dict[str, int] = {}
    for name, (offset, code) in _FIELDS.items():
        if offset + struct.calcsize(code) <= len(raw):
            (values[name],) = struct.unpack_from(f"={code}", raw, offset)
    return TcpInfo(app_limited=bool(raw[_APP_LIMITED[0]] & _APP_LIMITED[1]), **values)


def read_tcp_info(sock: socket.socket | None) -> TcpInfo | None:
    """Ask the kernel about a connected socket; None where that is not possible."""
    if sock is None or not sys.platform.startswith("linux"):
        return None
    try:
        return parse_tcp_info(sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _MOST_BYTES))
    except (OSError, ValueError):
        return None


class TcpProbe:
    """The connection that drafts go over: round trips, losses, queue; its rate while saturated."""

    name = "tcp"
    period_s = 0.5

    def __init__(self, transport: object) -> None:
        self._transport = transport
        self._before: tuple[socket.socket, float, TcpInfo] | None = None

    def available(self) -> bool:
        """Return whether there is a socket and the kernel speaks of it."""
        return read_tcp_info(socket_of(self._transport)) is not None

    def read(self, now_s: float) -> LinkReading | None:
        """Return the connection's state; the rate only where it is the link's and not ours."""
        sock = socket_of(self._transport)
        info = read_tcp_info(sock)
        if sock is None or info is None or info.state != _ESTABLISHED:
            self._before = None
            return None
        before, self._before = self._before, (sock, now_s, info)
        rate_bps = None
        if before is not None and before[0] is sock and now_s > before[1]:
            rate_bps = saturated_rate_bps(before[2], info, now_s - before[1])
        iface = interface_of(sock)
        return LinkReading(
            at_s=now_s,
            iface=iface,
            kind=kind_of(iface),
            rate_bps=rate_bps,
            method=Method.DELIVERY if rate_bps is not None else None,
            deviation=0.05 if rate_bps is not None else 0.0,
            rtt_s=info.rtt_us * 1e-6,
            rtt_min_s=None if info.min_rtt_us is None else info.min_rtt_us * 1e-6,
            rtt_var_s=info.rtt_var_us * 1e-6,
            loss=_loss(info),
            queue_bytes=info.notsent_bytes,
            cap_bps=None if cap_bytes_s(info) is None else 8.0 * (cap_bytes_s(info) or 0),
            saturated=rate_bps is not None,
        )

    def close(self) -> None:
        """Forget the connection; it is not ours."""
        self._before = None


def cap_bytes_s(info: TcpInfo) -> int | None:
    """Return what SO_MAX_PACING_RATE holds the socket to, or None if nothing does."""
    cap = info.max_pacing_rate
    return None if cap is None or cap in (_UNLIMITED, 0xFFFF_FFFF) else cap


def saturated_rate_bps(before: TcpInfo, after: TcpInfo, elapsed_s: float) -> float | None:
    """Return the link's rate between two looks, or None if the link was not what held us back.

    Bytes acknowledged over busy time is the link's rate only while the sender never ran dry, was
    not held by the receiver's window, by its own buffer or by a pacing bound, and stayed busy.
    """
    if after.app_limited or (after.min_rtt_us or 0) < _REAL_RTT_US:
        return None
    acked = _difference(before.bytes_acked, after.bytes_acked)
    busy_us = _difference(before.busy_time_us, after.busy_time_us)
    held_us = [
        _difference(before.rwnd_limited_us, after.rwnd_limited_us),
        _difference(before.sndbuf_limited_us, after.sndbuf_limited_us),
    ]
    if acked is None or busy_us is None or None in held_us or acked < _LEAST_BYTES_ACKED:
        return None
    if busy_us < _BUSY_SHARE * elapsed_s * 1e6 or sum(each or 0 for each in held_us) > busy_us / 10:
        return None
    rate_bytes_s = acked / (busy_us * 1e-6)
    cap = cap_bytes_s(after)
    if cap is not None and rate_bytes_s > _CAPPED_SHARE * cap:
        return None
    return 8.0 * rate_bytes_s


def _difference(before: int | None, after: int | None) -> int | None:
    if before is None or after is None or after < before:
        return None
    return after - before


def _loss(info: TcpInfo) -> float | None:
    if not info.bytes_sent or info.bytes_retrans is None:
        return None
    return info.bytes_retrans / info.bytes_sent
