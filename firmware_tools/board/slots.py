"""The slots on disk: `state.json` is the truth, written whole; the link follows it.

Standard library only; knows nothing about bundles, MQTT or systemd.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from firmware_tools.board import state as moves
from firmware_tools.board.paths import SLOTS, BoardPaths
from firmware_tools.board.space import check_space, size_of
from firmware_tools.board.state import Slot, State
from firmware_tools.bundle.manifest import Manifest
from firmware_tools.bundle.tree import check_folder
from firmware_tools.durable import remove_tree, replace_link, write_file
from firmware_tools.errors import RefusedError, SlotError

__all__ = ["Slots"]

_BLOCK_BYTES = 4096  # what a file wastes of the disk at most


class Slots:
    """Reads and changes the slots of one board."""

    def __init__(self, paths: BoardPaths) -> None:
        self.paths = paths

    def load(self) -> State:
        """Return the state; a board that never had one has two empty slots."""
        try:
            return State.from_bytes(self.paths.state.read_bytes())
        except FileNotFoundError:
            return State()

    def admits(self, manifest: Manifest) -> bool:
        """Say whether installing this release changes anything; changes nothing itself.

        Returns:
            False if the running slot holds this very release already, proven or on trial.

        Raises:
            RefusedError: older, if a newer release runs.
            SlotError: as `firmware_tools.board.state.begin`, or if the disk is too full for it.
        """
        state = self.load()
        running = state.running
        if running.release == manifest.release and running.status in (moves.GOOD, moves.INSTALLED):
            return False
        if running.release >= manifest.release and running.status == moves.GOOD:
            raise RefusedError(
                "older",
                f"release {manifest.release} ({manifest.version}) is below the running "
                f"{running.release} ({running.version})",
            )
        moves.begin(state)
        replaced = self.paths.slot(state.other)
        blocks_bytes = _BLOCK_BYTES * len(manifest.files)
        check_space(replaced, manifest.unpacked_bytes + blocks_bytes - size_of(replaced))
        return True

    def install(self, manifest: Manifest, unpack: Callable[[Path], None]) -> bool:
        """Unpack a verified bundle into the slot that does not run, and let it run, on trial.

        Returns and raises as `admits`.
        """
        if not self.admits(manifest):
            return False
        state = self._save(moves.begin(self.load()))
        folder = self.paths.slot(state.other)
        remove_tree(folder)
        unpack(folder)
        state = self._save(moves.finish(state, version=manifest.version, release=manifest.release))
        self._switch(moves.activate(state))
        return True

    def started(self) -> State:
        """Count a start, roll back if there were too many, and mend the link.

        A state file that cannot be read is made anew from the slots that are whole.
        """
        try:
            state = self.load()
        except SlotError:
            state = self._rebuild()
        return self._switch(moves.started(state))

    def stopped(self, how: str) -> State:
        """Keep how a start ended."""
        return self._save(moves.stopped(self.load(), how))

    def good(self) -> State:
        """Mark the running slot good."""
        return self._save(moves.good(self.load()))

    def failed(self, reason: str) -> State:
        """Mark the running slot bad and return to the other if that is good."""
        return self._switch(moves.failed(self.load(), reason))

    def rollback(self, reason: str) -> State:
        """Return to the other slot, which must be good."""
        return self._switch(moves.rollback(self.load(), reason))

    def manifest(self, name: str) -> Manifest:
        """Return the manifest of an installed slot.

        Raises:
            SlotError: if there is none.
        """
        try:
            return Manifest.from_bytes((self.paths.slot(name) / "manifest.json").read_bytes())
        except OSError as error:
            raise SlotError(f"slots: {name} holds no installation") from error

    def _rebuild(self) -> State:
        """Return a state from what lies in the slots; the one that ran last runs again."""
        slots = {name: self._whole(name) for name in SLOTS}
        linked = self.paths.current.readlink().name if self.paths.current.is_symlink() else ""
        whole = [name for name in SLOTS if slots[name].status == moves.GOOD]
        active = linked if linked in whole else next(iter(whole), "")
        return State(active=active, slots=slots, reason="state.json was damaged")

    def _whole(self, name: str) -> Slot:
        try:
            manifest = self.manifest(name)
        except (SlotError, RefusedError):
            return Slot()
        if check_folder(manifest, self.paths.slot(name)):
            return Slot()
        return Slot(status=moves.GOOD, version=manifest.version, release=manifest.release)

    def _switch(self, state: State) -> State:
        """Write the state, then let the link follow; `started` mends a link left behind."""
        self._save(state)
        target = f"slots/{state.active}"
        link = self.paths.current
        if state.active and not (link.is_symlink() and str(link.readlink()) == target):
            replace_link(link, target)
        return state

    def _save(self, state: State) -> State:
        encoded = state.to_bytes()
        if not self.paths.state.exists() or self.paths.state.read_bytes() != encoded:
            write_file(self.paths.state, encoded)
        return state
