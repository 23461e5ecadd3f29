"""Updates over MQTT: against a real broker with TLS and ACL, and over a link that loses blocks."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from firmware_fleet import TO_TWO, Fleet, Machine, Noise, Wire, memory_agent, obey, replace_id
from hypothesis import given
from hypothesis import strategies as st

from firmware_tools.board.paths import BoardPaths
from firmware_tools.board.slots import Slots
from firmware_tools.board.state import GOOD
from firmware_tools.ota.agent import ThreadedAgent, make_agent
from firmware_tools.ota.messages import (
    BLOCK_BYTES,
    Block,
    Command,
    Report,
    Request,
    decode,
)
from firmware_tools.ota.part import PartFile
from firmware_tools.ota.puller import Pace, Puller
from firmware_tools.ota.rollout import Rollout
from firmware_tools.ota.shop import Shop
from sdk.cli import main
from sdk.errors import MalformedFrameError
from sdk.protocol import topics
from sdk.transport.interface import Transport
from sdk.transport.memory import Faults, MemoryHub


def test_a_fleet_is_updated_and_the_same_again_is_success(fleet: Fleet, wire: Wire) -> None:
    devices = ("ota-1", "ota-2", "ota-3")
    with ExitStack() as stack:
        machines = [
            stack.enter_context(Machine(fleet, each, lambda each=each: wire.board(each)))  # type: ignore[misc]
            for each in devices
        ]
        transport = stack.enter_context(wire.operator())
        assert fleet.operator(transport, fleet.rollout(*devices)).run()
        assert [each.slots.load().running.version for each in machines] == ["2.0.0"] * 3
        assert all(each.slots.load().running.status == GOOD for each in machines)
        starts = [machine.starts for machine in machines]
        again = replace_id(fleet.rollout(*devices), "again")
        assert fleet.operator(transport, again).run()
        reasons = {board.report.reason for board in again.boards.values() if board.report}
        assert reasons == {"already at this version"}
        assert [machine.starts for machine in machines] == starts


def test_the_broker_and_the_agent_may_restart_in_the_middle(fleet: Fleet, wire: Wire) -> None:
    with ExitStack() as stack:
        machine = Machine(fleet, "ota-4", lambda: wire.board("ota-4"))
        transport = stack.enter_context(wire.operator())
        rollout = fleet.rollout("ota-4")
        operator = fleet.operator(transport, rollout, rate=400_000)
        pulled: list[int] = []
        shop_answer = operator.shop.answer
        served = [0]

        def answer(transport: Transport, device: str, payload: bytes) -> int:
            request = decode(Request, payload)
            sent = shop_answer(transport, device, payload)
            if request.file.startswith("targets/"):
                served[0] += sent
                pulled.append(request.first)
            return sent

        operator.shop = type("Spy", (), {"answer": staticmethod(answer)})()  # type: ignore[assignment]
        stack.enter_context(machine)
        while served[0] < 300_000:
            operator.step(0.1)
        wire.stop()
        wire.start()  # a broker without memory
        while served[0] < 600_000:
            operator.step(0.1)
        machine.restart()
        while not rollout.over:
            operator.step(0.1)
        assert rollout.failures == []
        assert machine.slots.load().running.version == "2.0.0"
        size = (fleet.folder / "release/targets/pi5-py3.11-2.0.0.bundle").stat().st_size
        assert served[0] < size + 12 * BLOCK_BYTES  # it went on where it was


@pytest.mark.parametrize(
    ("proves", "reason"),
    [
        (lambda slots: slots.failed("its drafter answers wrongly"), "answers wrongly"),
        (lambda slots: [slots.stopped("it crashed")] + [slots.started() for _ in "abc"], "crashed"),
    ],
)
def test_an_update_that_rolls_back_is_reported_with_its_reason(
    fleet: Fleet, wire: Wire, proves: Callable[[Slots], object], reason: str
) -> None:
    with ExitStack() as stack:
        machine = Machine(fleet, "ota-5", lambda: wire.board("ota-5"), proves)
        stack.enter_context(machine)
        transport = stack.enter_context(wire.operator())
        rollout = fleet.rollout("ota-5", "ota-6")
        assert not fleet.operator(transport, rollout).run()
        report = rollout.boards["ota-5"].report
        assert report is not None
        assert reason in report.reason
        assert machine.slots.load().running.version == "1.0.0"
        assert rollout.stopped == "canary ota-5 failed"
        assert rollout.boards["ota-6"].asked_s is None


def test_blocks_lost_doubled_and_reordered_still_make_the_bundle(fleet: Fleet) -> None:
    faults = Faults(loss=0.2, duplicate=0.2, reorder=0.3, reorder_s=0.08, seed=3)
    with memory_agent(fleet, "mem-1", faults) as (agent, boss, slots):
        assert obey(fleet, agent, boss, TO_TWO).status == "restarting"
        assert agent.restart_wanted
        assert slots.load().running.version == "2.0.0"


def test_rubbish_and_cleared_commands_do_nothing(fleet: Fleet) -> None:
    with memory_agent(fleet, "mem-5") as (agent, boss, slots):
        topic = topics.down("mem-5", "update")
        for payload in (b"", b"{}", b"\xff", b'{"id": 7}', b"[" * 5000, b'{"id": "../x"}'):
            boss.publish(topic, payload, qos=1)
            agent.run_once(0.05)
        assert agent._report is None
        assert slots.load().running.version == "1.0.0"


def test_a_cleared_command_ends_a_download(fleet: Fleet) -> None:
    with memory_agent(fleet, "mem-6") as (agent, boss, slots):

        class Clears(Shop):
            def answer(self, transport: Transport, device: str, payload: bytes) -> int:
                if b"targets/" in payload:
                    transport.publish(topics.down(device, "update"), b"", qos=1, retain=True)
                return Shop.answer(self, transport, device, payload)

        report = obey(fleet, agent, boss, TO_TWO, Clears(release=fleet.folder / "release"))
        assert "cancelled" in report.reason
        assert slots.load().running.version == "1.0.0"


def test_a_board_without_a_broker_in_its_configuration_only_waits(tmp_path: Path) -> None:
    worker = make_agent(BoardPaths(root=tmp_path))
    assert worker.step(0.01) is False
    assert not isinstance(worker, ThreadedAgent)


def test_the_command_line_rolls_out_to_a_group(
    fleet: Fleet, wire: Wire, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = tmp_path / "group"
    group.write_text("ota-7  # the first\n\nota-8\n")
    options = ["flash", "ota", "--broker", f"localhost:{wire.port}", "--group", str(group)]
    options += ["--release-dir", str(fleet.folder / "release"), "--keys", str(wire.keys.public)]
    with ExitStack() as stack:
        for each in ("ota-7", "ota-8"):
            wire.certify(each)  # not in the board's own thread: the command looks first
            connect = lambda each=each: wire.board(each)  # noqa: E731
            stack.enter_context(Machine(fleet, each, connect))  # type: ignore[arg-type]
        assert main([*options, "--json", "--rate-kib-s", "100000"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert lines[-1] == {"version": "2.0.0", "stopped": "", "failed": []}
        assert lines[0] == {"device": "ota-7", "status": "asked"}
        ends = {line["device"]: line["status"] for line in lines[:-1]}
        assert ends == {"ota-7": "successful", "ota-8": "successful"}
        assert main(options) == 0
        assert "already at this version" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--device ota-7 --version 9.9", "has no version 9.9; it has 1.0.0, 2.0.0"),
        ("--device ota-99", "ota-99 has no certificate under"),
        ("--device ota-7 --rate-kib-s 0", "--rate-kib-s is 1 or more"),
        ("--device ota-7 --silence-s 0", "--silence-s above 0"),
        ("--device ota-7 --parallel 0", "parallel at least 1"),
        ("--group /dev/null", "a rollout needs devices"),
        ("--group /nowhere", "/nowhere: No such file"),
    ],
)
def test_a_rollout_that_could_only_wait_is_refused(
    options: str, told: str, fleet: Fleet, wire: Wire, capsys: pytest.CaptureFixture[str]
) -> None:
    wire.certify("ota-7")
    common = ["--broker", "localhost:1", "--release-dir", str(fleet.folder / "release")]
    keys = ["--keys", str(wire.keys.public)]
    assert main(["flash", "ota", *common, *keys, *options.split()]) == 2
    assert told in capsys.readouterr().err


def test_a_silent_board_fails_the_rollout(fleet: Fleet) -> None:
    hub = MemoryHub()
    boss = hub.connect(client_id="edge", subscriptions=[("sd/1/+/up/update", 1)])
    rollout = Rollout(
        id="c", devices=("gone",), canaries=1, max_failures=0, parallel=1, silence_s=0.3
    )
    assert not fleet.operator(boss, rollout).run()
    assert "no word" in (rollout.boards["gone"].report or Report(id="x", status="failed")).reason
    late = hub.connect(client_id="gone", subscriptions=[(topics.down("gone", "update"), 1)])
    assert late.receive(0.1) is None  # the command was cleared: nobody obeys it later
    boss.close()
    late.close()


@given(
    st.integers(1, 12),
    st.integers(0, 4),
    st.integers(0, 4),
    st.integers(1, 5),
    st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_no_rollout_goes_past_its_canaries_or_its_failures(
    count: int, canaries: int, max_failures: int, parallel: int, well: list[bool]
) -> None:
    devices = [f"d{number}" for number in range(count)]
    rollout = Rollout(
        id="r",
        devices=devices,
        canaries=min(canaries, count),
        max_failures=max_failures,
        parallel=parallel,
        silence_s=10,
    )
    now_s, at_work, asked = 0.0, [], []
    while not rollout.over:
        fresh = rollout.next(now_s)
        asked += fresh
        at_work += fresh
        assert len(at_work) <= parallel
        if len(asked) > canaries:
            assert all(well[:canaries][:count])
        device = at_work.pop(0)
        status = "successful" if well[devices.index(device)] else "failed"
        assert rollout.hear(device, Report(id="r", status=status), now_s)
        assert not rollout.hear(device, Report(id="r", status="accepted"), now_s)
        now_s += 1
    assert len(rollout.failures) <= max_failures + parallel
    if all(well[:count]):
        assert asked == devices


@given(st.binary(max_size=200))
def test_a_block_survives_the_wire_and_no_bytes_break_the_reader(data: bytes) -> None:
    block = Block(nonce=7, index=3, file_bytes=9, data=data)
    frame = block.to_bytes()
    assert Block.from_bytes(frame) == block
    for at in range(len(frame)):
        with pytest.raises(MalformedFrameError):
            Block.from_bytes(frame[:at])
    if data:
        with pytest.raises(MalformedFrameError):
            Block.from_bytes(frame[:-1] + bytes([frame[-1] ^ 1]))
    for kind in (Command, Report, Request):
        with pytest.raises(MalformedFrameError):
            decode(kind, data)


@given(order=st.permutations(range(5)), first=st.integers(0, 5))
def test_a_part_file_goes_on_after_a_restart(
    order: list[int], first: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = Noise(1).bytes(4 * 1024 + 100)
    path = tmp_path_factory.mktemp("part") / "bundle"
    options = {"path": path, "size_bytes": len(content), "block_bytes": 1024}
    with PartFile(sha256="a", **options) as part:  # type: ignore[arg-type]
        for index in order[:first]:
            assert part.put(index, content[index * 1024 : (index + 1) * 1024])
            assert not part.put(index, content[index * 1024 : (index + 1) * 1024])
        assert not part.put(5, b"")
        assert not part.put(0, b"short")
    with PartFile(sha256="a", **options) as part:  # type: ignore[arg-type]
        assert sorted(order[first:]) == part.missing
        for index in part.missing:
            part.put(index, content[index * 1024 : (index + 1) * 1024])
        assert part.done_bytes == len(content)
    assert path.read_bytes() == content
    with PartFile(sha256="b", **options) as part:  # type: ignore[arg-type]
        assert len(part.missing) == 5  # another file: from the beginning


def test_pulling_keeps_to_the_rate() -> None:
    slept: list[float] = []
    pace = Pace(rate_bytes_s=1000, clock=lambda: sum(slept), sleep=slept.append)
    for _ in range(5):
        pace.spend(500)
    assert sum(slept) == pytest.approx(2.5)


def test_a_request_cannot_leave_the_release(tmp_path: Path) -> None:
    for file in ("targets/../../etc/passwd", "/etc/passwd", "targets/", "targets/.x", "keys/a"):
        with pytest.raises(ValueError, match="file"):
            Request(file=file, nonce=1, first=0, count=1, block_bytes=1024)
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/link").symlink_to("/etc/passwd")
    request = Request(file="targets/link", nonce=1, first=0, count=1, block_bytes=1024)
    assert Shop(release=tmp_path).blocks(request)[0].data is None


def test_a_puller_ignores_blocks_of_another_request(fleet: Fleet) -> None:
    hub = MemoryHub()
    board = hub.connect(client_id="b", subscriptions=[(topics.down("b", "block"), 0)])
    boss = hub.connect(client_id="e", subscriptions=[("sd/1/+/up/block", 0)])
    puller = Puller(
        transport=board, device="b", pace=Pace(rate_bytes_s=1 << 30), timeout_s=0.05, patience_s=0.2
    )
    boss.publish(
        topics.down("b", "block"), Block(nonce=1, index=0, file_bytes=4, data=b"evil").to_bytes()
    )
    with pytest.raises(Exception, match="nobody sends"):
        list(puller.fetch("metadata/timestamp.json"))
    board.close()
    boss.close()
