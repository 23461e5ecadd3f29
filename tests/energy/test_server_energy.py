"""The server's side: real records summed, and the GPU's energy split by verified rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_energy_sysfs_meters import nvml

from edge_server.energy import EnergyLedger
from edge_server.gpu_energy import GpuCounter, GpuShare
from sdk.energy import PhaseLog, energy_per_token
from sdk.energy.interface import Kind, MeterInfo, Scope
from sdk.energy.ring import Trace
from sdk.energy.window import measure


def sent(t0_s: float, length_s: float) -> dict[str, object]:
    """Return what a device at 4 W sends of a window."""
    info = MeterInfo(
        driver="test", label="test", kind=Kind.COUNTER, scope=Scope.MODULE, rate_hz=10.0
    )
    times_s = np.arange(t0_s - 1, t0_s + length_s + 1, 0.1)
    trace = Trace(info, times_s, 4.0 * times_s, np.zeros(len(times_s)))
    measurement = measure(trace, t0_s, t0_s + length_s)
    record = energy_per_token(measurement, PhaseLog(), drafted=100, accepted=50, emitted=80)
    decoded: dict[str, object] = json.loads(json.dumps(record.to_json(), allow_nan=False))
    return decoded


def test_the_server_understands_what_devices_send() -> None:
    ledger = EnergyLedger()
    ledger.add("pi-1", sent(100.0, 20.0))
    ledger.add("pi-1", sent(200.0, 0.5))  # too short to be believed
    sums = ledger.devices["pi-1"].as_json()
    assert sums["j_per_accepted"] == pytest.approx(1.6)
    assert (sums["records"], sums["refused"]) == (1, 1)


def test_the_gpu_s_energy_is_split_by_rows() -> None:
    share = GpuShare()
    share.verified("early", 5)
    assert share.settle(1000.0) == {}  # nobody knows what was before
    share.verified("pi-1", 6)
    share.verified("pi-2", 2)
    assert share.settle(1080.0) == {"pi-1": pytest.approx(60.0), "pi-2": pytest.approx(20.0)}
    assert share.settle(1090.0) == {}
    assert share.idle_j == pytest.approx(10.0)
    share.verified("pi-1", 1)
    assert share.settle(3.0) == {}  # the driver was loaded anew
    share.verified("pi-1", 1)
    assert share.settle(None) == {}
    assert share.settle(9.0) == {}


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), min_size=1),
    st.floats(0, 1e6),
)
def test_no_gpu_energy_is_lost_or_made(rows: list[tuple[str, int]], spent_j: float) -> None:
    share = GpuShare()
    share.settle(0.0)
    for device, count in rows:
        share.verified(device, count)
    assert sum(share.settle(spent_j).values()) == pytest.approx(spent_j)


def test_the_gpu_s_counter(tmp_path: Path) -> None:
    counter = GpuCounter(library=nvml(tmp_path))
    first_j, second_j = counter.read_j(), counter.read_j()
    assert first_j is not None
    assert second_j is not None
    assert second_j - first_j == pytest.approx(0.7)
    assert GpuCounter(library=nvml(tmp_path, result=3)).read_j() is None
    assert GpuCounter(index=1, library=nvml(tmp_path)).read_j() is None
    assert GpuCounter(library=str(tmp_path / "missing.so")).read_j() is None
