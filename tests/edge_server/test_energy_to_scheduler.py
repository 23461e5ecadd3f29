"""Energy records through the real gateway into the plan."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_server.energy import scheduler_figures
from edge_server.scheduler.control import DraftControl
from edge_server.scheduler.energy import bounded_plan, joules
from edge_server.scheduler.interface import Mode
from edge_server.scheduler.policies import make_policy
from edge_server.server import EdgeServer
from sdk.errors import MalformedFrameError
from sdk.protocol import up
from sdk.transport.memory import MemoryHub
from tests.fakes.cell import connect_device, serve_in_memory
from tests.fakes.hash_model import HashVerifier
from tests.fakes.rounds import report_round

FIGURES = {"draft_j_per_token": 0.2, "wait_w": 2.0}


def record(scheduler: object, verdict: str = "ok") -> dict[str, object]:
    return {
        "verdict": verdict,
        "tokens": {"drafted": 20, "accepted": 10, "emitted": 15},
        "energy": {"gross_j": {"value": 6.0, "low": 5.0, "high": 7.0}},
        "scheduler": scheduler,
    }


class Cell:
    """A server whose loop is turned by hand, and a controller that has seen some rounds."""

    def __init__(self, control: DraftControl, *devices: str) -> None:
        self.control = control
        self.hub = MemoryHub()
        self.server = EdgeServer(
            transport=serve_in_memory(self.hub),
            verifier=HashVerifier(),
            controller=control,
            policy=make_policy("synchronous"),
        )
        self.devices = {name: connect_device(self.hub, name) for name in devices}
        self.sessions = {name: slot for slot, name in enumerate(devices)}
        for name, slot in self.sessions.items():
            control.opened(name, slot, mode=Mode.COUPLED, now_s=0.0)
        for number in range(40):
            for name, slot in self.sessions.items():
                self._observe(name, slot, drafted=1 + number % 6, now_s=0.1 * number)
        self.now_s = 100.0

    def _observe(self, name: str, slot: int, *, drafted: int, now_s: float) -> None:
        report_round(
            self.control,
            device=name,
            session=slot,
            drafted=drafted,
            accepted=min(drafted, 3),
            draft_s=0.02 * drafted,
            turnaround_s=0.02 * drafted + 0.01,
            pass_s=0.05 + 0.001 * drafted,
            now_s=now_s,
        )

    def tell(self, device: str, told: dict[str, object]) -> None:
        self.devices[device].publish(up(device, "energy"), json.dumps(told).encode(), qos=1)
        self.server.turn()

    def plan(self) -> list[int]:
        self.now_s += 10.0
        for name, slot in self.sessions.items():
            self.control.grant(name, slot, now_s=self.now_s)
        assert self.control.plan is not None
        return [int(length) for length in self.control.plan.lengths]


@pytest.mark.parametrize("rate", [0.0, 12.0])
def test_a_record_changes_the_plan_as_the_solver_says(rate: float) -> None:
    control = DraftControl(policy="synchronous", objective="energy", rate_tokens_per_s=rate)
    cell = Cell(control, "pi-1", "pi-2")
    before = cell.plan()
    cell.tell("pi-1", record({"draft_j_per_token": 0.9, "wait_w": 0.5}))
    cell.tell("pi-2", record({"draft_j_per_token": 0.02, "wait_w": 2.0}))
    after = cell.plan()
    assert list(control.cell().draft_j) == [0.9, 0.02]
    assert list(control.cell().wait_w) == [0.5, 2.0]
    assert after == list(bounded_plan(control.cell(), efficiency=True).lengths)
    assert after != before
    assert control.plan is not None
    assert control.plan.joules_per_token is not None
    assert min(control.plan.rates) >= rate


def test_a_cap_is_kept_under_goodput_and_before_the_rate() -> None:
    for rate in (0.0, 1000.0):
        control = DraftControl(
            policy="synchronous",
            objective="goodput" if rate == 0.0 else "energy",
            energy_cap_w=4.0,
            rate_tokens_per_s=rate,
        )
        cell = Cell(control, "pi")
        free = cell.plan()
        cell.tell("pi", record({"draft_j_per_token": 0.5, "wait_w": 1.0}))
        capped = cell.plan()
        assert sum(capped) < sum(free)
        assert control.plan is not None
        lengths, believed = np.array(capped), control.cell()
        cycle_s = believed.tokens()[np.arange(1), lengths] / control.plan.rates
        assert (joules(believed, lengths, cycle_s) / cycle_s <= 4.0).all()


def test_where_no_length_keeps_the_cap_the_nearest_is_taken() -> None:
    control = DraftControl(policy="synchronous", objective="goodput", energy_cap_w=1.0)
    cell = Cell(control, "pi")
    cell.tell("pi", record({"draft_j_per_token": 2.0, "wait_w": 3.0}))
    assert cell.plan() == [0]


def test_a_record_counts_for_the_sessions_that_follow() -> None:
    """A device sends its record when a generation is over: its session may be closed by then."""
    control = DraftControl(policy="synchronous", objective="energy")
    cell = Cell(control, "pi")
    control.closed("pi", 0, now_s=5.0)
    cell.tell("pi", record(FIGURES))
    cell.tell("pi", record({"draft_j_per_token": None, "wait_w": 3.0}))
    control.opened("pi", 0, mode=Mode.COUPLED, now_s=6.0)
    believed = control.cell()
    assert (believed.draft_j[0], believed.wait_w[0]) == (0.2, 3.0)  # null is not known, not 0


def test_only_trusted_and_possible_figures_are_believed() -> None:
    control = DraftControl(policy="synchronous", objective="energy")
    cell = Cell(control, "pi")
    cell.tell("pi", record(FIGURES, verdict="invalid"))
    cell.tell("pi", record({"draft_j_per_token": 0.1, "wait_w": 1e9}))
    cell.tell("pi", record({"draft_j_per_token": "0.1"}))
    assert not control.cell().draft_j.any()
    assert cell.server.gateway.counters["rejected_malformed"] == 1


@pytest.mark.parametrize("told", [True, "1", [], float("nan"), float("inf"), 10**400])
def test_a_figure_that_is_no_number_is_malformed(told: object) -> None:
    with pytest.raises(MalformedFrameError, match=r"scheduler\.wait_w"):
        scheduler_figures(record({"wait_w": told}))


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_any_json_is_figures_or_malformed(told: object) -> None:
    try:
        figures = scheduler_figures(record({"wait_w": told, "tx_j_per_bit": told}))
    except MalformedFrameError:
        return
    assert all(value is None or 0.0 <= value < 1e300 for value in figures.values())


def test_probes_are_counted_and_are_no_offence() -> None:
    """W-TOPIC-6."""
    cell = Cell(DraftControl(), "pi")
    for _ in range(100):
        cell.devices["pi"].publish(up("pi", "probe"), bytes(1200), qos=1)
    for _ in range(3):
        cell.server.turn()
    assert cell.server.gateway.counters == {"probes": 100}
