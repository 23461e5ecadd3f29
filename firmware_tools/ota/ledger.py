"""What a board remembers of commands, over restarts and power cuts: none runs twice.

Knows nothing about MQTT or slots.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from firmware_tools.durable import write_file
from firmware_tools.ota.messages import Report

__all__ = ["Ledger"]

_KEPT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The last commands that ended, and the one whose new slot is on trial.

    Attributes:
        ended: reports of commands that are over, oldest first.
        pending: id of the command that restarted the board, "" for none.
        release: what it put there.
    """

    path: Path
    ended: tuple[Report, ...] = field(default=())
    pending: str = ""
    release: int = 0

    @classmethod
    def load(cls, path: Path) -> Ledger:
        """Read the ledger; one that is missing or damaged is empty."""
        try:
            found = json.loads(path.read_bytes())
            ended = tuple(Report(**each) for each in found["ended"])
            return cls(path=path, ended=ended, pending=found["pending"], release=found["release"])
        except (OSError, ValueError, TypeError, KeyError):
            return cls(path=path)

    def result(self, command_id: str) -> Report | None:
        """Return how this command ended, or None if it did not."""
        return next((report for report in self.ended if report.id == command_id), None)

    def end(self, report: Report) -> Ledger:
        """Keep how a command ended."""
        kept = (*self.ended, report)[-_KEPT:]
        return replace(self, ended=kept, pending="", release=0)._write()

    def await_trial(self, command_id: str, release: int) -> Ledger:
        """Keep that the board restarts into this release for this command."""
        return replace(self, pending=command_id, release=release)._write()

    def _write(self) -> Ledger:
        content = {
            "ended": [asdict(report) for report in self.ended],
            "pending": self.pending,
            "release": self.release,
        }
        write_file(self.path, json.dumps(content).encode())
        return self
