"""What a board knows of its two slots, and every move between such states, as pure functions.

    install:  begin → (files are written) → finish → activate → started × n → good | failed
    failed:   a slot on trial goes bad and the other, if good, becomes active, with the reason kept

Standard library only; knows nothing about files or systemd.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from firmware_tools.board.paths import SLOTS
from firmware_tools.errors import SlotError

__all__ = [
    "BAD",
    "EMPTY",
    "GOOD",
    "INSTALLED",
    "TRIES",
    "Slot",
    "State",
    "activate",
    "begin",
    "failed",
    "finish",
    "good",
    "rollback",
    "started",
    "stopped",
]

TRIES = 3
EMPTY, INSTALLED, GOOD, BAD = "empty", "installed", "good", "bad"
_MAX_REASON = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One slot: "empty", "installed" (not proven), "good" or "bad", and why it is bad."""

    status: str = EMPTY
    version: str = ""
    release: int = 0
    reason: str = ""

    def __post_init__(self) -> None:
        if self.status not in (EMPTY, INSTALLED, GOOD, BAD):
            raise ValueError(f"no slot status {self.status!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Both slots.

    Attributes:
        active: the slot that runs, "" before the first installation.
        trying: whether it has yet to prove itself; tries_left: starts it has left for that.
        last_failure: how its latest start ended.
        reason: why the board rolled back last, "" if the last update went well.
    """

    active: str = ""
    trying: bool = False
    tries_left: int = 0
    last_failure: str = ""
    reason: str = ""
    slots: dict[str, Slot] = field(default_factory=lambda: {name: Slot() for name in SLOTS})

    def __post_init__(self) -> None:
        if self.active not in ("", *SLOTS) or tuple(sorted(self.slots)) != SLOTS:
            raise ValueError("slots other than a and b")

    @property
    def other(self) -> str:
        """The slot that does not run: where the next update goes."""
        return "b" if self.active == "a" else "a"

    @property
    def running(self) -> Slot:
        """The active slot."""
        return self.slots[self.active] if self.active else Slot()

    def to_bytes(self) -> bytes:
        """Return the state as JSON."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, encoded: bytes) -> State:
        """Read a state; fields that a later version added are ignored.

        Raises:
            SlotError: if it is none.
        """
        try:
            found = json.loads(encoded)
            slots = {name: Slot(**_known(Slot, slot)) for name, slot in found["slots"].items()}
            return cls(**_known(cls, found) | {"slots": slots})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SlotError(
                f"slots: state.json is damaged: {error}; restart the board, its guard makes it anew"
            ) from error


def begin(state: State) -> State:
    """Give up what the other slot holds, to write a new installation there.

    A slot that is bad and runs for want of a better one does not stand in the way.

    Raises:
        SlotError: while the running slot is on trial, or if the other is the only good one.
    """
    if state.trying and state.running.status != BAD:
        raise SlotError(
            f"slots: release {state.running.release} is on trial; wait until it is good or bad"
        )
    if state.slots[state.other].status == GOOD and state.running.status != GOOD:
        raise SlotError(
            f"slots: {state.other} holds the only good installation; mark {state.active} good or "
            "roll back first"
        )
    return _with_slot(state, state.other, Slot())


def finish(state: State, *, version: str, release: int) -> State:
    """Note that the other slot now holds all files of this version."""
    return _with_slot(state, state.other, Slot(status=INSTALLED, version=version, release=release))


def activate(state: State) -> State:
    """Let the other slot run, on trial.

    Raises:
        SlotError: if nothing was installed there.
    """
    if state.slots[state.other].status not in (INSTALLED, GOOD):
        raise SlotError(f"slots: {state.other} holds nothing to run")
    return replace(
        state, active=state.other, trying=True, tries_left=TRIES, last_failure="", reason=""
    )


def started(state: State) -> State:
    """Count one start of a slot on trial; without starts left, it has failed."""
    if not state.trying:
        return state
    if state.tries_left < 1:
        last = state.last_failure or "the power went, or the board stood still"
        return failed(state, f"not good after {TRIES} starts; the last ended with: {last}")
    return replace(state, tries_left=state.tries_left - 1)


def stopped(state: State, how: str) -> State:
    """Keep how a start of a slot on trial ended."""
    return replace(state, last_failure=how[:_MAX_REASON]) if state.trying else state


def good(state: State) -> State:
    """Note that the running slot has drafted with its model."""
    if not state.active:
        raise SlotError("slots: nothing is installed; run: multispin flash")
    slot = replace(state.running, status=GOOD, reason="")
    return replace(
        _with_slot(state, state.active, slot), trying=False, tries_left=0, last_failure=""
    )


def failed(state: State, reason: str) -> State:
    """Give up the running slot and return to the other if that is good."""
    if not state.active:
        raise SlotError("slots: nothing is installed; run: multispin flash")
    reason = reason[:_MAX_REASON]
    bad = _with_slot(state, state.active, replace(state.running, status=BAD, reason=reason))
    if state.slots[state.other].status != GOOD:
        # Nothing better to go to: go on trying this one.
        return replace(bad, trying=True, tries_left=TRIES, reason=reason)
    return replace(bad, active=state.other, trying=False, tries_left=0, reason=reason)


def rollback(state: State, reason: str) -> State:
    """Return to the other slot because somebody wants to.

    Raises:
        SlotError: if the other slot is not good.
    """
    if state.slots[state.other].status != GOOD:
        raise SlotError(
            f"slots: cannot roll back, slot {state.other} is {state.slots[state.other].status}"
        )
    return failed(state, reason)


def _with_slot(state: State, name: str, slot: Slot) -> State:
    return replace(state, slots=state.slots | {name: slot})


def _known(kind: type, found: dict[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in found.items() if name in names}
