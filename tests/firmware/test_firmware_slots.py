"""Slots: every move, and the power cut before every single write."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from firmware_power import power_for
from hypothesis import given
from hypothesis import strategies as st

from firmware_tools.board import state as moves
from firmware_tools.board.paths import BoardPaths
from firmware_tools.board.slots import Slots
from firmware_tools.board.state import BAD, EMPTY, GOOD, INSTALLED, TRIES, State
from firmware_tools.bundle import archive
from firmware_tools.bundle.archive import Member
from firmware_tools.bundle.manifest import FileEntry, GoldenDraft, Manifest
from firmware_tools.bundle.tree import check_folder, unpack_members
from firmware_tools.errors import RefusedError, SlotError


def version(release: int) -> tuple[Manifest, Callable[[Path], None]]:
    """Return a small manifest and what unpacks it."""
    files = {"bin/multispin": b"#!/bin/sh\n", "lib/x.py": b"x = %d\n" % release, "model/m": b"m"}
    entries = tuple(
        FileEntry(
            path=path,
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            mode=0o755 if path.startswith("bin") else 0o644,
        )
        for path, content in files.items()
    )
    manifest = Manifest(
        board="pi5",
        python="3.11",
        glibc="2.28",
        libraries=(),
        version=f"{release}.0",
        release=release,
        model_sha256="",
        tokenizer_sha256="",
        golden=GoldenDraft(prompt=(1,), tokens=(2,), min_equal=1),
        payload_bytes=0,
        payload_sha256="0" * 64,
        files=entries,
    )
    packed = io.BytesIO()
    members = [Member(each.path, each.size_bytes, each.mode) for each in entries]
    archive.write(packed, [(member, [files[member.name]]) for member in members])

    def unpack(folder: Path) -> None:
        unpack_members(io.BytesIO(packed.getvalue()), manifest, folder)

    return manifest, unpack


def running_release(slots: Slots) -> int:
    """Return the release that the link leads to, having checked its every file."""
    folder = slots.paths.current.resolve()
    manifest = Manifest.from_bytes((folder / "manifest.json").read_bytes())
    assert check_folder(manifest, folder) == ""
    return manifest.release


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    """A board that runs release 1 and holds it good."""
    slots = Slots(BoardPaths(root=tmp_path / "board"))
    slots.install(*version(1))
    slots.started()
    slots.good()
    return slots


def test_an_update_that_proves_itself_stays(slots: Slots) -> None:
    assert slots.install(*version(2))
    assert slots.load().trying
    slots.started()
    slots.good()
    assert running_release(slots) == 2
    for _ in range(10):
        slots.started()
    assert running_release(slots) == 2


def test_an_update_that_never_proves_itself_is_taken_back_with_the_reason(slots: Slots) -> None:
    slots.install(*version(2))
    for _ in range(TRIES):
        slots.started()
        assert running_release(slots) == 2
        slots.stopped("it stood still (watchdog)")
    state = slots.started()
    assert running_release(slots) == 1
    assert "watchdog" in state.reason
    assert state.slots["b"].status == BAD
    assert not state.trying


def test_the_same_release_again_is_no_work_and_an_older_one_refused(slots: Slots) -> None:
    assert slots.install(*version(1)) is False
    slots.install(*version(3))
    slots.good()
    with pytest.raises(RefusedError, match="older"):
        slots.install(*version(2))
    assert running_release(slots) == 3


def test_an_update_during_a_trial_is_refused_and_the_good_slot_kept(slots: Slots) -> None:
    slots.install(*version(2))
    with pytest.raises(SlotError, match="on trial"):
        slots.install(*version(3))
    assert slots.load().slots["a"].status == GOOD
    slots.failed("no")
    assert running_release(slots) == 1
    assert slots.install(*version(3))


def test_the_only_good_slot_is_never_overwritten(slots: Slots) -> None:
    slots.install(*version(2))
    slots.good()
    slots.install(*version(3))
    slots.failed("first")  # back to 2; a is bad
    state = slots.failed("second")  # nothing good is left: 2 goes on being tried
    assert running_release(slots) == 2
    assert state.trying
    for _ in range(3 * TRIES):
        slots.started()
        assert running_release(slots) == 2


def test_a_board_without_a_good_slot_takes_a_new_installation(slots: Slots, tmp_path: Path) -> None:
    bare = Slots(BoardPaths(root=tmp_path / "bare"))
    bare.install(*version(1))
    slots.install(*version(2))
    slots.good()
    slots.rollback("by hand")
    for board, runs in ((bare, 1), (slots, 1)):
        board.failed("it ended with exit code 1")  # nothing good is left
        assert board.load().reason == "it ended with exit code 1"
        assert running_release(board) == runs
        assert board.install(*version(1))  # the very same, mended outside the slots
        board.failed("again")
        assert board.install(*version(3))
        board.started()
        board.good()
        assert running_release(board) == 3


def test_the_same_release_again_during_its_trial_is_no_work(slots: Slots) -> None:
    slots.install(*version(2))
    before = slots.load()
    assert slots.install(*version(2)) is False
    assert slots.load() == before


def test_going_back_by_hand(slots: Slots) -> None:
    with pytest.raises(SlotError, match="cannot roll back"):
        slots.rollback("by hand")
    slots.install(*version(2))
    slots.good()
    slots.rollback("by hand")
    assert running_release(slots) == 1


def test_a_damaged_state_is_made_anew_from_whole_slots(slots: Slots) -> None:
    slots.install(*version(2))
    slots.good()
    slots.paths.state.write_bytes(b'{"active": ')
    slots.started()
    assert running_release(slots) == 2
    (slots.paths.slot("b") / "model/m").write_bytes(b"?")
    slots.paths.state.write_bytes(b"")
    slots.started()
    assert running_release(slots) == 1


def cut_at_every_write(
    slots: Slots, tmp_path: Path, act: Callable[[Slots], object], check: Callable[[Slots], object]
) -> int:
    """Run `act` on a copy of the board with one more write each time, until it needs no more."""
    board = slots.paths.root
    for changes in range(1000):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(board, copy, symlinks=True)
        again = Slots(BoardPaths(root=copy))
        with power_for(copy, changes) as mains:
            act(again)
        finished = mains.seen <= changes
        again.started()  # the next boot
        check(again)
        if finished:
            return changes
    raise AssertionError("never finished")


def test_the_power_cut_before_any_write_of_an_update(slots: Slots, tmp_path: Path) -> None:
    found: set[int] = set()

    def check(again: Slots) -> None:
        release = running_release(again)
        found.add(release)
        assert release in (1, 2)
        state = again.load()
        assert release == state.running.release
        if not state.trying:
            again.install(*version(2))  # the update is simply asked for again
        assert running_release(again) == 2
        again.good()
        assert again.load().slots["a"].status == GOOD

    steps = cut_at_every_write(slots, tmp_path, lambda again: again.install(*version(2)), check)
    assert found == {1, 2}
    assert steps > 15


def test_the_power_cut_before_any_write_over_an_old_installation(
    slots: Slots, tmp_path: Path
) -> None:
    slots.install(*version(2))
    slots.good()

    def check(again: Slots) -> None:
        assert running_release(again) in (2, 3)
        if not again.load().trying:
            again.install(*version(3))
        assert running_release(again) == 3

    cut_at_every_write(slots, tmp_path, lambda again: again.install(*version(3)), check)


@pytest.mark.parametrize("verb", ["good", "failed", "rolled back"])
def test_the_power_cut_before_any_write_of_a_verdict(
    slots: Slots, tmp_path: Path, verb: str
) -> None:
    slots.install(*version(2))
    if verb == "rolled back":
        slots.good()
    acts: dict[str, Callable[[Slots], object]] = {
        "good": lambda again: again.good(),
        "failed": lambda again: again.failed("it ended with exit code 1"),
        "rolled back": lambda again: again.rollback("by hand"),
    }

    def check(again: Slots) -> None:
        state = again.load()
        assert running_release(again) == state.running.release
        assert state.running.status == GOOD or state.trying

    assert cut_at_every_write(slots, tmp_path, acts[verb], check) >= 2


def test_the_first_installation_survives_a_power_cut(tmp_path: Path) -> None:
    slots = Slots(BoardPaths(root=tmp_path / "bare"))
    slots.paths.root.mkdir()

    def check(again: Slots) -> None:
        if not again.load().active:
            again.install(*version(1))
        assert running_release(again) == 1

    cut_at_every_write(slots, tmp_path, lambda again: again.install(*version(1)), check)


MOVES: dict[str, Callable[[State], State]] = {
    "begin": moves.begin,
    "finish": lambda state: moves.finish(state, version="9.0", release=9),
    "activate": moves.activate,
    "started": moves.started,
    "stopped": lambda state: moves.stopped(state, "it ended"),
    "good": moves.good,
    "failed": lambda state: moves.failed(state, "no"),
    "rollback": lambda state: moves.rollback(state, "by hand"),
}


@given(st.lists(st.sampled_from(sorted(MOVES)), max_size=40))
def test_no_order_of_moves_loses_the_board(order: list[str]) -> None:
    """Installing is begin, finish, activate: a finish without begin is not offered."""
    state = State(active="a", slots={"a": moves.Slot(status=GOOD), "b": moves.Slot()})
    began = False
    for name in order:
        if name == "finish" and not began:
            continue
        had_good = GOOD in {slot.status for slot in state.slots.values()}
        try:
            after = MOVES[name](state)
        except SlotError:
            continue
        began = (began or name == "begin") and name != "finish"
        assert State.from_bytes(after.to_bytes()) == after
        assert after.running.status != EMPTY
        if name in ("begin", "activate", "started", "stopped") and had_good:
            spared = {slot.status for slot in after.slots.values()}
            assert GOOD in spared or after.running.status == BAD
        if after.running.status in (INSTALLED, BAD):
            assert after.trying
        assert 0 <= after.tries_left <= TRIES
        state = after


def test_fields_of_a_later_version_are_ignored_and_rubbish_is_not(slots: Slots) -> None:
    found = json.loads(slots.load().to_bytes())
    found["later"] = found["slots"]["a"]["later"] = 1
    assert State.from_bytes(json.dumps(found).encode()) == slots.load()
    for rubbish in (b"", b"{}", b"[]", b'{"slots": {"c": {}}}', b'{"slots": {"a": {"status": 1}}}'):
        with pytest.raises(SlotError):
            State.from_bytes(rubbish)
