"""Counters that wrap, are reset, jump or nest lose no energy silently."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.energy.curve import energy_curve
from sdk.energy.interface import MeterNotFoundError, Sample, available
from sdk.energy.meters.counter import RisingCounter
from sdk.energy.meters.rapl import RaplMeter
from sdk.energy.ring import Trace

RANGE_UJ = 262_143_328_850


@given(st.lists(st.floats(0.0, 99.0), min_size=1, max_size=200), st.floats(0, 999))
def test_wraps_are_counted_exactly(steps_j: list[float], start_j: float) -> None:
    counter = RisingCounter(range_j=1000.0, max_power_w=100.0)
    truth_j = start_j
    assert counter.add(start_j, 0.0).total_j == start_j
    for second, step_j in enumerate(steps_j, start=1):
        truth_j += step_j
        step = counter.add(truth_j % 1000.0, float(second))
        assert not step.lost
        assert step.total_j == pytest.approx(truth_j)


def test_a_reset_is_no_wrap_and_is_marked() -> None:
    counter = RisingCounter(range_j=65_000.0, max_power_w=100.0)
    counter.add(40_000.0, 0.0)
    assert counter.add(40_005.0, 0.1) == (40_005.0, False)
    reset = counter.add(3.0, 0.2)  # a wrap would be 250 kW
    assert reset == (40_005.0, True)
    assert counter.add(8.0, 0.3) == (40_010.0, False)


@pytest.mark.parametrize(
    ("range_j", "readings"),
    [
        (None, [(100.0, 0.0), (50.0, 1.0)]),  # backwards with an unknown range
        (1000.0, [(100.0, 0.0), (150.0, 60.0)]),  # so long that it may have wrapped unseen
        (None, [(100.0, 0.0), (1e9, 1.0)]),  # more than can flow
    ],
    ids=["backwards", "double wrap", "jump"],
)
def test_what_cannot_be_known_is_marked_lost(
    range_j: float | None, readings: list[tuple[float, float]]
) -> None:
    counter = RisingCounter(range_j=range_j, max_power_w=100.0)
    steps = [counter.add(raw_j, time_s) for raw_j, time_s in readings]
    assert [step.lost for step in steps] == [False, True]
    assert steps[1].total_j == steps[0].total_j


def rapl_tree(root: Path, *, dram: bool = True, psys: bool = True) -> Path:
    powercap = root / "sys/class/powercap"
    zones = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "uncore",
        "intel-rapl:1": "package-1",
        "intel-rapl:1:0": "core",
        "intel-rapl-mmio:0": "package-0",
    }
    if dram:
        zones["intel-rapl:0:2"] = "dram"
    if psys:
        zones["intel-rapl:2"] = "psys"
    for folder, name in zones.items():
        zone = powercap / folder
        zone.mkdir(parents=True)
        (zone / "name").write_text(name + "\n")
        (zone / "energy_uj").write_text("1000000\n")
        (zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    return powercap


def read_one(meter: RaplMeter) -> Sample:
    (sample,) = meter.read()
    return sample


def ticking(start_s: float = 0.0, step_s: float = 0.05) -> Callable[[], float]:
    now_s = [start_s]

    def clock() -> float:
        now_s[0] += step_s
        return now_s[0]

    return clock


def test_rapl_sums_packages_and_memory_and_nothing_that_they_contain(tmp_path: Path) -> None:
    powercap = rapl_tree(tmp_path)
    meter = RaplMeter(root=tmp_path, clock=ticking())
    meter.open()
    assert meter.info.rails == ("package-0", "package-0 dram", "package-1")
    first = read_one(meter)
    for folder in ("intel-rapl:0", "intel-rapl:0:2", "intel-rapl:1", "intel-rapl:2"):
        (powercap / folder / "energy_uj").write_text("3000000\n")
    (powercap / "intel-rapl:0:0" / "energy_uj").write_text("9000000\n")
    assert read_one(meter).value - first.value == pytest.approx(6.0)  # 3 × 2 J
    meter.close()


def test_rapl_unwraps_each_domain_on_its_own(tmp_path: Path) -> None:
    powercap = rapl_tree(tmp_path, dram=False)
    (powercap / "intel-rapl:0" / "energy_uj").write_text(f"{RANGE_UJ - 1_000_000}\n")
    meter = RaplMeter(root=tmp_path, clock=ticking())
    meter.open()
    first = read_one(meter)
    (powercap / "intel-rapl:0" / "energy_uj").write_text("500000\n")  # wrapped: 1.5 J
    (powercap / "intel-rapl:1" / "energy_uj").write_text("1250000\n")  # 0.25 J
    second = read_one(meter)
    assert second.value - first.value == pytest.approx(1.75)
    assert second.lost == 0
    meter.close()


def test_rapl_without_its_range_drops_the_wrap_and_the_curve_bridges_it(tmp_path: Path) -> None:
    powercap = rapl_tree(tmp_path, dram=False)
    for zone in powercap.iterdir():
        (zone / "max_energy_range_uj").unlink()
    meter = RaplMeter(root=tmp_path, clock=ticking(step_s=0.1))
    meter.open()
    samples: list[Sample] = []
    for total_uj in (5_000_000, 6_000_000, 10, 1_000_010, 2_000_010):
        (powercap / "intel-rapl:0" / "energy_uj").write_text(f"{total_uj}\n")
        samples += meter.read()
    meter.close()
    assert [sample.lost for sample in samples] == [0, 0, 1, 0, 0]
    curve = energy_curve(Trace.of(meter.info, samples))
    assert curve.between(samples[0].time_s, samples[-1].time_s) == pytest.approx(4.0)
    assert curve.bridged_s.sum() > 0


def test_rapl_says_why_it_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MeterNotFoundError, match="no package"):
        RaplMeter(root=tmp_path).open()
    rapl_tree(tmp_path)
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    availability = available(RaplMeter(root=tmp_path))
    assert not availability.ok
    assert "energy_uj" in availability.reason


def test_a_counter_that_reads_zero_is_not_available(tmp_path: Path) -> None:
    powercap = rapl_tree(tmp_path)
    for zone in powercap.iterdir():
        (zone / "energy_uj").write_text("0\n")
    availability = available(RaplMeter(root=tmp_path), timeout_s=0.1)
    assert not availability.ok
    assert "reads only 0" in availability.reason
