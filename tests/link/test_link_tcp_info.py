"""TCP_INFO: constructed answers of the kernel at every length, and a real socket."""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.link.iface import interface_of, kind_of
from sdk.link.interface import LinkKind
from sdk.link.socket_rate import SocketRate
from sdk.link.tcp_info import (
    TcpInfo,
    TcpProbe,
    cap_bytes_s,
    parse_tcp_info,
    read_tcp_info,
    saturated_rate_bps,
)

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="TCP_INFO is Linux's")


def answer(*, app_limited: bool = False, max_pacing_rate: int = (1 << 64) - 1) -> bytes:
    """Return 280 bytes as kernel 6.18 gives them, each field in its place."""
    raw = bytearray(280)
    raw[0], raw[7] = 1, int(app_limited)
    for offset, value in {16: 1448, 24: 3, 68: 41_800, 72: 900, 80: 10, 100: 2}.items():
        struct.pack_into("=I", raw, offset, value)
    for offset, value in {136: 77, 144: 4096, 148: 40_100}.items():
        struct.pack_into("=I", raw, offset, value)
    longs = {112: max_pacing_rate, 120: 1_000_000, 160: 956_250, 168: 5_000_000, 200: 1_050_000}
    for offset, value in (longs | {176: 10, 184: 20, 208: 21_000}).items():
        struct.pack_into("=Q", raw, offset, value)
    return bytes(raw)


WHOLE = TcpInfo(
    state=1,
    snd_mss=1448,
    unacked=3,
    rtt_us=41_800,
    rtt_var_us=900,
    snd_cwnd=10,
    total_retrans=2,
    app_limited=False,
    max_pacing_rate=(1 << 64) - 1,
    bytes_acked=1_000_000,
    segs_out=77,
    notsent_bytes=4096,
    min_rtt_us=40_100,
    delivery_rate=956_250,
    busy_time_us=5_000_000,
    rwnd_limited_us=10,
    sndbuf_limited_us=20,
    bytes_sent=1_050_000,
    bytes_retrans=21_000,
)


def test_fields_are_where_the_kernel_puts_them() -> None:
    assert parse_tcp_info(answer()) == WHOLE
    limited = parse_tcp_info(answer(app_limited=True))
    assert limited == replace(WHOLE, app_limited=True)


def test_an_older_kernel_knows_fewer_fields() -> None:
    for length in range(281):
        info = parse_tcp_info(answer()[:length])
        assert (info is None) == (length < 104)
        if info is not None:
            for name in TcpInfo.__dataclass_fields__:
                assert getattr(info, name) in (None, getattr(WHOLE, name))


@given(st.binary(max_size=300))
def test_any_answer_is_survived(raw: bytes) -> None:
    info = parse_tcp_info(raw)
    if info is not None:
        saturated_rate_bps(info, info, 1.0)


def gained(**more: int | bool) -> TcpInfo:
    """Return what a saturated second at 7.65 Mbit/s adds."""
    fields: dict[str, int | bool] = {
        "bytes_acked": 1_000_000 + 956_250,
        "busy_time_us": 6_000_000,
    }
    return replace(WHOLE, **(fields | more))  # type: ignore[arg-type]


def test_a_saturated_second_tells_the_rate() -> None:
    assert saturated_rate_bps(WHOLE, gained(), 1.0) == pytest.approx(7.65e6)


@pytest.mark.parametrize(
    "change",
    [
        {"app_limited": True},
        {"busy_time_us": 5_500_000},
        {"rwnd_limited_us": 500_000},
        {"sndbuf_limited_us": 500_000},
        {"bytes_acked": 1_001_000},
        {"bytes_acked": 1},
        {"min_rtt_us": 50},
        {"max_pacing_rate": 1_000_000},
    ],
    ids=str,
)
def test_what_is_not_the_link_tells_no_rate(change: dict[str, int | bool]) -> None:
    assert saturated_rate_bps(WHOLE, gained(**change), 1.0) is None


def test_a_cap_far_above_the_rate_does_no_harm() -> None:
    info = gained(max_pacing_rate=2_000_000)
    assert cap_bytes_s(info) == 2_000_000
    assert saturated_rate_bps(WHOLE, info, 1.0) == pytest.approx(7.65e6)


class Owner:
    def __init__(self, sock: socket.socket | None) -> None:
        self.current = sock

    def socket(self) -> socket.socket | None:
        return self.current


@linux
def test_a_real_socket() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as near,
        server.accept()[0] as far,
    ):
        near.sendall(bytes(5000))
        assert len(far.recv(5000, socket.MSG_WAITALL)) == 5000
        info = read_tcp_info(near)
        assert info is not None
        assert info.state == 1
        assert info.bytes_sent == 5000
        owner = Owner(near)
        probe = TcpProbe(owner)
        assert probe.available()
        reading = probe.read(1.0)
        assert reading is not None
        assert (reading.iface, reading.kind, reading.cap_bps) == ("lo", None, None)
        assert reading.rtt_s is not None
        SocketRate(owner).hold(2e6)
        capped = probe.read(2.0)
        assert capped is not None
        assert capped.cap_bps == 2e6
        assert interface_of(near) == "lo"
    assert probe.read(3.0) is None
    owner.current = None
    assert probe.read(4.0) is None
    assert not probe.available()
    assert TcpProbe(object()).read(5.0) is None


@linux
def test_the_socket_rate_follows_grant_and_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with (
            socket.create_connection(server.getsockname()) as one,
            socket.create_connection(server.getsockname()) as two,
        ):
            owner = Owner(one)
            rate = SocketRate(owner)

            def held(sock: socket.socket) -> int:
                return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 47, 8)[:4], "little")

            rate.hold(2e6)
            assert held(one) == 250_000
            owner.current = two
            rate.hold(2e6)
            assert held(two) == 250_000
            rate.hold(None)
            assert held(two) == 0xFFFF_FFFF
            assert rate.unsent_bytes() == 0
        assert rate.unsent_bytes() is None
        rate.hold(1e6)


def test_kinds_of_interfaces(tmp_path: object) -> None:
    from pathlib import Path

    root = Path(str(tmp_path))
    for name, files in {
        "wlan0": {"type": "1", "uevent": "", "wireless/x": ""},
        "eth0": {"type": "1", "uevent": "INTERFACE=eth0"},
        "wwan0": {"type": "65534", "uevent": "DEVTYPE=wwan\nINTERFACE=wwan0"},
        "lo": {"type": "772", "uevent": ""},
    }.items():
        for file, text in files.items():
            (root / name / file).parent.mkdir(parents=True, exist_ok=True)
            (root / name / file).write_text(text)
    kinds = {name: kind_of(name, sysfs=root) for name in ("wlan0", "eth0", "wwan0", "lo", "gone")}
    assert kinds == {
        "wlan0": LinkKind.WIFI,
        "eth0": LinkKind.ETHERNET,
        "wwan0": LinkKind.LTE,
        "lo": None,
        "gone": None,
    }
    assert kind_of(None) is None
