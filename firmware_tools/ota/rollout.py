"""Which boards of a fleet may update now: canaries first, then the rest, until too many fail. Pure.

Knows nothing about MQTT; time is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from firmware_tools.ota.messages import Report

__all__ = ["Progress", "Rollout"]


@dataclass(slots=True, kw_only=True)
class Progress:
    """One board: what it last said, and when."""

    report: Report | None = None
    asked_s: float | None = None
    heard_s: float = 0.0

    @property
    def over(self) -> bool:
        """Whether it ended, well or not."""
        return self.report is not None and self.report.final

    @property
    def failed(self) -> bool:
        """Whether it ended badly."""
        return self.report is not None and self.report.status == "failed"


@dataclass(slots=True, kw_only=True)
class Rollout:
    """The state of one rollout.

    Attributes:
        devices: in the order in which they are asked.
        canaries: so many of them go first, and all must succeed before any other is asked.
        max_failures: with more failures than these, nobody else is asked.
        parallel: most boards at work at once.
        silence_s: a board that says nothing for so long has failed.
    """

    id: str
    devices: Sequence[str]
    canaries: int
    max_failures: int
    parallel: int
    silence_s: float
    boards: dict[str, Progress] = field(init=False)

    def __post_init__(self) -> None:
        if not self.devices or len(set(self.devices)) != len(self.devices):
            raise ValueError("a rollout needs devices, each once")
        if self.canaries < 0 or self.max_failures < 0 or self.parallel < 1:
            raise ValueError("canaries and max_failures are 0 or more, parallel at least 1")
        self.boards = {device: Progress() for device in self.devices}

    @property
    def failures(self) -> list[str]:
        """Boards that failed."""
        return [device for device, board in self.boards.items() if board.failed]

    @property
    def stopped(self) -> str:
        """Why nobody else is asked; "" while somebody may be."""
        first = self.devices[: self.canaries]
        bad = [device for device in first if self.boards[device].failed]
        if bad:
            return f"canary {bad[0]} failed"
        if len(self.failures) > self.max_failures:
            return f"{len(self.failures)} boards failed, {self.max_failures} were allowed"
        return ""

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        asked = [board for board in self.boards.values() if board.asked_s is not None]
        at_work = any(not board.over for board in asked)
        return not at_work and (bool(self.stopped) or len(asked) == len(self.devices))

    def next(self, now_s: float) -> list[str]:
        """Return the boards to ask now, and note that they were."""
        self._give_up(now_s)
        if self.stopped:
            return []
        first = self.devices[: self.canaries]
        proven = all(self.boards[device].over for device in first)
        allowed = self.devices if proven else first
        free = self.parallel - sum(
            board.asked_s is not None and not board.over for board in self.boards.values()
        )
        fresh = [device for device in allowed if self.boards[device].asked_s is None][
            : max(free, 0)
        ]
        for device in fresh:
            self.boards[device].asked_s = self.boards[device].heard_s = now_s
        return fresh

    def hear(self, device: str, report: Report, now_s: float) -> bool:
        """Take a board's report; False if it is not about this rollout, or comes after its end."""
        board = self.boards.get(device)
        if board is None or report.id != self.id or board.asked_s is None or board.over:
            return False
        board.report, board.heard_s = report, now_s
        return True

    def _give_up(self, now_s: float) -> None:
        for board in self.boards.values():
            silent = board.asked_s is not None and now_s - board.heard_s > self.silence_s
            if silent and not board.over:
                last = board.report.status if board.report else "asked"
                reason = f"no word for {self.silence_s:g} s after '{last}'"
                board.report = Report(id=self.id, status="failed", reason=reason)
