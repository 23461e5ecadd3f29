"""The server's side: real records summed, and its own energy split by verified rows."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_server.energy import EnergyLedger
from edge_server.server_energy import ServerEnergy, meter_server
from sdk.energy import PhaseLog, available, energy_per_token, open_meter
from sdk.energy.interface import Kind, MeterInfo, Scope
from sdk.energy.ring import Trace
from sdk.energy.window import measure
from sdk.errors import EnergyError
from sdk.transport.memory import MemoryHub
from tests.fakes.cell import connect_device, generate, opening, serve_in_memory, serving
from tests.fakes.hash_model import HashDrafter, HashVerifier


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


def settle(energy: ServerEnergy, rows: dict[str, int], spent_j: float | None) -> dict[str, float]:
    for device, count in rows.items():
        energy.verified(device, rows=count, accepted=count // 2)
    energy.settle(energy.take(), spent_j)
    return {device: work.joules for device, work in energy.devices().items()}


def test_the_server_s_energy_is_split_by_rows() -> None:
    energy = ServerEnergy(meter="test", scope="gpu")
    assert settle(energy, {"pi-1": 6, "pi-2": 2}, 80.0) == {"pi-1": 60.0, "pi-2": 20.0}
    settle(energy, {}, 10.0)
    settle(energy, {"pi-1": 100}, None)  # the meter was away: no rows without joules in the sums
    told = energy.as_json()
    assert (told["idle_j"], told["unmetered_rows"]) == (10.0, 100)
    assert json.loads(json.dumps(told))["devices"]["pi-1"] == {
        "rows": 6,
        "accepted": 3,
        "j": 60.0,
        "j_per_accepted": 20.0,
    }


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), min_size=1),
    st.floats(0, 1e6),
)
def test_no_energy_is_lost_or_made(rows: list[tuple[str, int]], spent_j: float) -> None:
    energy = ServerEnergy(meter="test", scope="gpu")
    for device, count in rows:
        energy.verified(device, rows=count, accepted=0)
    energy.settle(energy.take(), spent_j)
    assert sum(work.joules for work in energy.devices().values()) == pytest.approx(spent_j)


def test_without_a_card_there_is_no_share() -> None:
    with meter_server("none") as energy:
        assert energy is None
    with meter_server("auto") as energy:
        assert (energy is not None) == available(open_meter("nvml")).ok
    with pytest.raises(EnergyError), meter_server("replay:/nowhere.csv"):
        pass


def test_a_meter_s_joules_reach_the_devices_whose_rows_were_verified(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("t_s,power_w\n" + "".join(f"{n / 50:.2f},40\n" for n in range(1000)))
    hub = MemoryHub()
    with meter_server(f"replay:{trace}") as energy:
        assert energy is not None
        started_s = time.monotonic()
        with serving(serve_in_memory(hub), HashVerifier(), energy=energy) as server:
            generate(connect_device(hub, "pi"), "pi", opening(), HashDrafter())
    elapsed_s = time.monotonic() - started_s
    work = energy.devices()["pi"]
    assert work.rows == server.engine.counters.rows
    assert work.accepted == server.engine.counters.accepted > 0
    spent_j = energy.idle_j + sum(work.joules for work in energy.devices().values())
    assert 0.0 < spent_j <= 40.0 * (elapsed_s + 0.1)
