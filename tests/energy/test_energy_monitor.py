"""Windows over a meter that is being read: nested, overlapping, asked for afterwards, refused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from sdk.energy import EnergyMonitor, Verdict, WindowError, open_meter
from sdk.energy.board import BoardState
from sdk.energy.interface import Kind, MeterInfo, MeterLostError, MeterNotFoundError, Sample, Scope
from sdk.energy.monitor import Window

pytestmark = pytest.mark.alone


class SteadyMeter:
    """Counts 5 J a second at 20 Hz; goes away between `lost_from_s` and `lost_until_s`."""

    info = MeterInfo(
        driver="steady", label="test", kind=Kind.COUNTER, scope=Scope.MODULE, rate_hz=20.0
    )

    def __init__(self, lost_from_s: float = 1e9, lost_until_s: float = 1e9) -> None:
        self.start_s = time.monotonic()
        self.lost_from_s, self.lost_until_s = lost_from_s, lost_until_s
        self.opened = 0

    def open(self) -> None:
        if self._away():
            raise MeterNotFoundError("open steady meter: unplugged")
        self.opened += 1

    def read(self) -> Sequence[Sample]:
        if self._away():
            raise MeterLostError("read steady meter: unplugged")
        now_s = time.monotonic()
        return [Sample(now_s, 5.0 * (now_s - self.start_s))]

    def _away(self) -> bool:
        return self.lost_from_s <= time.monotonic() - self.start_s < self.lost_until_s

    def close(self) -> None:
        pass


def no_board() -> BoardState:
    return BoardState()


def energy(window: Window) -> float:
    assert window.measurement is not None
    assert window.measurement.gross_j is not None
    return window.measurement.gross_j


def besides_sampler(window: Window) -> list[str]:
    """Return what a window is reproached with, less what a busy machine brings."""
    assert window.measurement is not None
    return [reason for reason in window.measurement.reasons if not reason.startswith("sampler")]


def test_nested_and_overlapping_windows_add_up() -> None:
    with EnergyMonitor(meter=SteadyMeter(), board=no_board) as monitor:
        with monitor.window("outer") as outer:
            with monitor.window("inner") as inner:
                time.sleep(0.6)
                monitor.begin_window("overlap")
            time.sleep(0.6)
        overlap = monitor.end_window("overlap")
    assert outer.measurement is not None
    assert energy(outer) == pytest.approx(5.0 * outer.measurement.duration_s, rel=0.01)
    assert energy(inner) < energy(outer)
    assert overlap.gross_j == pytest.approx(5.0 * overlap.duration_s, rel=0.01)
    assert not besides_sampler(outer)


def test_a_window_of_the_past_is_answered_from_the_ring() -> None:
    with EnergyMonitor(meter=SteadyMeter(), board=no_board) as monitor:
        t0_s = time.monotonic()
        time.sleep(0.4)
        measurement = monitor.measure(t0_s + 0.05, t0_s + 0.25, key="past")
    assert measurement.gross_j == pytest.approx(1.0, rel=0.02)
    assert monitor.measure(t0_s + 0.05, t0_s + 0.25).gross_j == measurement.gross_j  # once closed


def test_a_ring_that_has_moved_on_says_so() -> None:
    with EnergyMonitor(meter=SteadyMeter(), board=no_board, capacity=10) as monitor:
        t0_s = time.monotonic()
        time.sleep(1.5)
        measurement = monitor.measure(t0_s, time.monotonic())
    assert measurement.verdict is Verdict.INVALID
    assert any("left the ring" in reason for reason in measurement.reasons)


def test_keys_are_used_once_at_a_time() -> None:
    with EnergyMonitor(meter=SteadyMeter(), board=no_board) as monitor:
        monitor.begin_window("a")
        with pytest.raises(WindowError, match="begun already"):
            monitor.begin_window("a")
        monitor.begin_window("a", restart=True)
        monitor.end_window("a")
        with pytest.raises(WindowError, match="not begun"):
            monitor.end_window("a")
        with pytest.raises(WindowError, match="before it begins"):
            monitor.measure(10.0, 9.0)


def test_a_meter_that_goes_away_comes_back_with_a_gap() -> None:
    meter = SteadyMeter(lost_from_s=0.3, lost_until_s=0.6)
    with EnergyMonitor(meter=meter, board=no_board) as monitor:
        monitor.begin_window("all")
        time.sleep(1.6)
        measurement = monitor.end_window("all")
    assert meter.opened == 2
    assert measurement.sampling.gaps >= 1
    assert measurement.verdict is not Verdict.OK
    assert any("unplugged" in reason for reason in measurement.reasons)
    assert measurement.gross_j == pytest.approx(5.0 * measurement.duration_s, rel=0.02)


def test_the_null_meter_measures_nothing_and_says_so() -> None:
    monitor = EnergyMonitor(meter=open_meter("null"), board=no_board)
    with monitor, monitor.window("nothing") as window:
        pass
    assert window.measurement is not None
    assert window.measurement.gross_j is None
    assert window.measurement.verdict is Verdict.INVALID
    assert "0 samples" in window.measurement.reasons[0]


def test_a_short_window_of_an_instantaneous_source_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("t_s,power_w\n" + "".join(f"{i / 10},5\n" for i in range(100)))
    monitor = EnergyMonitor(meter=open_meter(f"replay:{trace}"), board=no_board)
    with monitor, monitor.window("short") as window:
        time.sleep(0.5)
    assert window.measurement is not None
    assert window.measurement.verdict is Verdict.INVALID
    assert "too short" in window.measurement.reasons[0]
    assert energy(window) == pytest.approx(5.0 * window.measurement.duration_s)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([0x0, 0x0], []),
        ([0x50000, 0x50000], []),  # long ago, not in this window
        ([0x0, 0x50000], ["throttled"]),
        ([0x50005, 0x50005], ["throttled"]),
    ],
)
def test_throttle_flags_go_with_every_window(states: list[int], expected: list[str]) -> None:
    flags = iter(states)
    latest = states[-1]

    def board() -> BoardState:
        return BoardState(throttled=next(flags, latest))

    monitor = EnergyMonitor(meter=SteadyMeter(), board=board)
    with monitor, monitor.window("w") as window:
        time.sleep(0.6)
    assert [reason.split(":")[0] for reason in besides_sampler(window)] == expected
