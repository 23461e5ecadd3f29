"""The board's service: prove the slot by drafting, say so, then feed the watchdog and work.

The proof needs nothing but the slot: no network, broker or server can make a good update look bad.
Knows nothing about slots' states; systemd and the guard act on how this ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from firmware_tools.board.guard import EXIT_WRONG_ANSWER
from firmware_tools.board.notify import Notifier
from firmware_tools.bundle.manifest import Manifest
from firmware_tools.errors import SlotError
from firmware_tools.probe import draft_greedily

__all__ = ["Worker", "drafts_rightly", "serve"]

_IDLE_S = 5.0


class Worker(Protocol):
    """Whatever goes on beside the watchdog: the update agent, or nothing."""

    def step(self, timeout_s: float) -> bool:
        """Work for up to `timeout_s`; return whether the service shall restart."""
        ...


def drafts_rightly(slot: Path, manifest: Manifest) -> bool:
    """Say whether the slot's drafter answers what its bundle says."""
    golden = manifest.golden
    tokens = draft_greedily(slot / "model", golden.prompt, len(golden.tokens))
    return tokens[: golden.min_equal] == golden.tokens[: golden.min_equal]


def serve(
    slot: Path,
    notifier: Notifier,
    make_worker: Callable[[], Worker],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run until the worker wants a restart; return the exit code."""
    try:
        manifest = Manifest.from_bytes((slot / "manifest.json").read_bytes())
    except FileNotFoundError as error:
        raise SlotError(
            f"board serve: nothing is installed at {slot}; 'multispin flash' puts it there"
        ) from error
    if not drafts_rightly(slot, manifest):
        notifier.status("its drafter answers wrongly")
        return EXIT_WRONG_ANSWER
    notifier.ready(f"version {manifest.version}, drafting")
    worker = make_worker()
    beat_s = notifier.watchdog_s / 3 or _IDLE_S
    next_beat_s = clock()
    while True:
        if clock() >= next_beat_s:
            notifier.alive()
            next_beat_s = clock() + beat_s
        if worker.step(min(beat_s, _IDLE_S)):
            return 0
