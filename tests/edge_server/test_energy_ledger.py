"""What the server makes of devices' energy records."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge_server.energy import EnergyLedger
from sdk.errors import MalformedFrameError
from sdk.protocol import up
from sdk.transport.memory import MemoryHub
from tests.fakes.cell import connect_device, generate, opening, serve_in_memory, serving
from tests.fakes.hash_model import HashDrafter, HashVerifier


def record(verdict: str = "ok", gross_j: float | None = 6.0, accepted: int = 10) -> dict[str, Any]:
    gross = None if gross_j is None else {"value": gross_j, "low": 5.0, "high": 7.0}
    return {
        "verdict": verdict,
        "tokens": {"drafted": 20, "accepted": accepted, "emitted": 15},
        "energy": {"gross_j": gross, "net_j": None},
    }


def test_trusted_records_are_summed_and_others_counted() -> None:
    ledger = EnergyLedger()
    ledger.add("pi", record())
    ledger.add("pi", record("degraded", gross_j=4.0))
    ledger.add("pi", record("invalid", gross_j=100.0))
    ledger.add("pi", record(gross_j=None))
    sums = ledger.devices["pi"].as_json()
    assert sums["j_per_accepted"] == pytest.approx(0.5)
    assert (sums["records"], sums["refused"], sums["accepted"]) == (2, 2, 20)


def test_without_accepted_tokens_there_is_no_figure() -> None:
    ledger = EnergyLedger()
    ledger.add("pi", record(accepted=0))
    assert ledger.devices["pi"].as_json()["j_per_accepted"] is None


@pytest.mark.parametrize(
    "broken",
    [
        {},
        record() | {"tokens": {"drafted": -1, "accepted": 0, "emitted": 0}},
        record() | {"tokens": {"drafted": True, "accepted": 0, "emitted": 0}},
        record(gross_j=float("nan")),
        record() | {"energy": {"gross_j": {"value": "5"}}},
    ],
)
def test_a_broken_record_changes_nothing(broken: dict[str, Any]) -> None:
    ledger = EnergyLedger()
    with pytest.raises(MalformedFrameError, match="energy record"):
        ledger.add("pi", broken)
    assert not ledger.devices


def test_records_reach_the_ledger_over_the_wire() -> None:
    hub = MemoryHub()
    with serving(serve_in_memory(hub), HashVerifier()) as server:
        device = connect_device(hub, "pi")
        device.publish(up("pi", "energy"), json.dumps(record()).encode(), qos=1)
        device.publish(up("pi", "energy"), b"[]", qos=1)
        generate(device, "pi", opening(), HashDrafter())
    assert server.gateway.energy.devices["pi"].records == 1
    assert server.gateway.counters["rejected_malformed"] == 1
