"""Updates over MQTT that meet each other, wrong blocks, a full disk, or nobody to report to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from firmware_broker import NOW
from firmware_disk import small_disk
from firmware_fleet import (
    PI,
    TO_TWO,
    Fleet,
    Machine,
    Wire,
    memory_agent,
    obey,
    replace_id,
    run_until_told,
    serving,
    wish,
)
from firmware_power import power_for

from firmware_tools.board.slots import Slots
from firmware_tools.board.space import size_of
from firmware_tools.board.state import GOOD
from firmware_tools.bundle.release import Release
from firmware_tools.ota.agent import Agent
from firmware_tools.ota.messages import Block, Command, Request
from firmware_tools.ota.operator import SUBSCRIPTIONS
from firmware_tools.ota.shop import Shop
from sdk.protocol import topics
from sdk.transport.interface import Transport
from sdk.transport.memory import MemoryHub

TO_THREE = Command(id="w3", version="3.0.0", rate_bytes_s=1 << 30)
TARGET = "targets/pi5-py3.11-2.0.0.bundle"


@pytest.fixture
def third(fleet: Fleet) -> Fleet:
    """A fleet whose release has a version 3.0.0 as well."""
    release = Release(folder=fleet.folder / "release", keys=fleet.keys, now=NOW)
    release.add([fleet.bundle(3)])
    return fleet


class Wrong(Shop):
    """A shop that changes the blocks of the bundle."""

    change: Callable[[Block], Block]
    times: int

    def __init__(self, release: Path, change: Callable[[Block], Block], times: int = 1000) -> None:
        Shop.__init__(self, release=release)
        object.__setattr__(self, "change", change)
        object.__setattr__(self, "times", times)

    def blocks(self, request: Request) -> list[Block]:
        found = Shop.blocks(self, request)
        if not request.file.startswith("targets/") or self.times < 1:
            return found
        object.__setattr__(self, "times", self.times - 1)
        return [self.change(block) for block in found]


def other_bytes(block: Block) -> Block:
    return replace(block, data=bytes(byte ^ 1 for byte in block.data or b""))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_bytes, "refused (tampered)"),
        (lambda block: replace(block, data=(block.data or b"")[:-1]), "bytes, not"),
        (lambda block: replace(block, data=b""), "bytes, not"),
        (lambda block: replace(block, file_bytes=block.file_bytes + 1), "changed while"),
        (lambda block: replace(block, data=None), "no longer offered"),
    ],
    ids=["of another bundle", "short", "empty", "of a longer bundle", "gone"],
)
def test_wrong_blocks_end_the_update_and_change_nothing(
    fleet: Fleet, change: Callable[[Block], Block], reason: str
) -> None:
    with memory_agent(fleet, "odd-1") as (agent, boss, slots):
        before = slots.load()
        report = obey(fleet, agent, boss, TO_TWO, Wrong(fleet.folder / "release", change))
        assert (report.status, agent.restart_wanted) == ("failed", False)
        assert reason in report.reason
        assert slots.load() == before


def test_a_window_of_another_bundle_is_pulled_again(fleet: Fleet) -> None:
    with memory_agent(fleet, "odd-2") as (agent, boss, slots):
        shop = Wrong(fleet.folder / "release", other_bytes, times=2)
        assert obey(fleet, agent, boss, TO_TWO, shop).status == "restarting"
        assert slots.load().running.version == "2.0.0"


def test_a_bundle_that_became_shorter_is_said_at_once(fleet: Fleet) -> None:
    """Nobody could send the blocks beyond its new end."""
    path = fleet.folder / "release" / TARGET

    class Cut(Shop):
        def blocks(self, request: Request) -> list[Block]:
            if request.file == TARGET and request.first:
                path.write_bytes(path.read_bytes()[:1000])
            return Shop.blocks(self, request)

    with memory_agent(fleet, "odd-3") as (agent, boss, _):
        report = obey(fleet, agent, boss, TO_TWO, Cut(release=fleet.folder / "release"))
        assert "changed while it was pulled" in report.reason


def test_a_second_command_waits_for_the_first_and_its_trial(third: Fleet) -> None:
    shop = Shop(release=third.folder / "release")
    with memory_agent(third, "two-1") as (agent, boss, slots), serving(boss, "two-1", shop) as told:
        wish(boss, "two-1", TO_TWO)
        wish(boss, "two-1", TO_THREE)
        assert run_until_told(agent, TO_TWO.id).status == "restarting"
        agent.restart_wanted = False  # the next start of the service; the guard has not judged yet
        for _ in range(3):
            agent.run_once(0)
        assert slots.load().running.version == "2.0.0"
        slots.good()
        assert run_until_told(agent, TO_THREE.id).status == "restarting"
        slots.failed("it was not ready in time")
        agent.restart_wanted = False
        assert "not ready in time" in run_until_told(agent, TO_THREE.id).reason
        assert slots.load().running.version == "2.0.0"
    ends = {report.id: report.status for report in told}
    assert ends == {"w1": "successful", "w3": "failed"}


def test_two_rollouts_of_one_board_both_hear_the_truth(third: Fleet) -> None:
    hub = MemoryHub()

    def connect() -> Transport:
        leaves = (("update", 1), ("block", 0))
        wanted = [(topics.down("both-1", leaf), qos) for leaf, qos in leaves]
        return hub.connect(client_id="both-1", subscriptions=wanted)

    started = threading.Event()
    with Machine(third, "both-1", connect) as machine, ExitStack() as stack:
        rollouts, threads = [], []
        for number, version in enumerate(("2.0.0", "3.0.0")):
            boss = stack.enter_context(hub.connect(f"boss-{number}", subscriptions=SUBSCRIPTIONS))
            rollout = replace_id(third.rollout("both-1"), f"r{number}")
            operator = third.operator(boss, rollout, version)
            operator.show = lambda *_: started.set()
            threads.append(threading.Thread(target=operator.run, daemon=True))
            threads[-1].start()
            assert started.wait(10)  # the second one comes while the first is at work
            rollouts.append(rollout)
        for thread in threads:
            thread.join(20)
        reports = [rollout.boards["both-1"].report for rollout in rollouts]
        assert [(each.status, each.reason) for each in reports if each] == [("successful", "")] * 2
        assert machine.slots.load().running.version == "3.0.0"


def test_a_rollout_hears_another_s_command_by_production_s_rules(wire: Wire) -> None:
    with wire.operator("one") as one, wire.operator("two") as two:
        for each in (one, two):
            each.connect(10)
        wish(two, "both-1", TO_TWO)
        heard = one.receive(10)
        assert heard is not None
        assert heard.topic == topics.down("both-1", "update")


def test_an_update_that_nobody_hears_of_stays(fleet: Fleet, wire: Wire) -> None:
    """The broker goes away after the slot was switched, and comes back after the verdict."""
    with ExitStack() as stack:
        judged = threading.Event()

        def prove(slots: Slots) -> None:
            wire.stop()
            slots.good()
            judged.set()

        machine = Machine(fleet, "deaf-1", lambda: wire.board("deaf-1"), prove)
        rollout = fleet.rollout("deaf-1")
        operator = fleet.operator(stack.enter_context(wire.operator()), rollout)
        stack.enter_context(machine)
        while not judged.is_set():
            operator.step(0.1)
        for _ in range(5):
            operator.step(0.05)
            assert machine.slots.load().running.status == GOOD
        assert machine.slots.load().running.version == "2.0.0"
        wire.start()
        while not rollout.over:
            operator.step(0.1)
        assert rollout.failures == []
        state = machine.slots.load()
        assert (state.running.version, state.running.status) == ("2.0.0", GOOD)


def test_the_power_cut_before_every_ninth_write_of_an_update_over_the_air(fleet: Fleet) -> None:
    """Those of the slots are cut one by one in test_firmware_slots.py."""
    shop = Shop(release=fleet.folder / "release")
    for changes in range(0, 1000, 9):
        device = f"cut-{changes}"
        with memory_agent(fleet, device) as (agent, boss, slots), serving(boss, device, shop):
            home = slots.paths.home / "slots"
            wish(boss, device, TO_TWO)
            with power_for(slots.paths.root, changes, spared=home) as mains:
                run_until_told(agent, TO_TWO.id)
            if slots.started().trying:  # the next boot
                slots.good()
            again = Agent(files=agent.files, transport=agent.transport, host=PI)
            again._puller.timeout_s = 0.05
            wish(boss, device, TO_TWO)  # retained: the broker gives it to every connection
            if run_until_told(again, TO_TWO.id).status == "restarting":
                slots.good()
                again.restart_wanted = False
                assert run_until_told(again, TO_TWO.id).status == "successful"
            state = slots.load()
            assert (state.running.version, state.running.status) == ("2.0.0", GOOD)
            assert state.slots["a"].status == GOOD
            if mains.seen <= changes:
                return
    raise AssertionError("never finished")


@pytest.mark.parametrize("folder", ["opt/multispin", "var/lib/multispin"])
def test_a_full_disk_refuses_the_update_before_anything_changes(
    fleet: Fleet, tmp_path: Path, folder: str
) -> None:
    root = tmp_path / "full-1"
    slot_bytes = size_of(fleet.board("model").paths.slot("a"))
    room_bytes = {"opt/multispin": slot_bytes * 2, "var/lib/multispin": 300_000}[folder]
    with (
        small_disk(root / folder, room_bytes),
        memory_agent(fleet, "full-1") as (agent, boss, slots),
    ):
        before = slots.load()
        report = obey(fleet, agent, boss, TO_TWO)
        assert report.status == "failed"
        assert f"disk with {root / folder}" in report.reason
        assert "make room" in report.reason
        assert slots.load() == before
