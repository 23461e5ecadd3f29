"""What the device was doing when: prefill, draft, wait, idle, on the monotonic clock.

    log = PhaseLog()
    log.enter(Phase.DRAFT)      # ends whatever was before; costs a microsecond

`enter` also takes any enumeration or text with the same values. Knows nothing of energy.
"""

from __future__ import annotations

import time
from collections import deque
from enum import Enum
from typing import NamedTuple

from sdk.errors import EnergyError

__all__ = ["Phase", "PhaseLog", "Span"]

_CAPACITY = 1 << 16


class Phase(str, Enum):
    """What the device spends its time on."""

    PREFILL = "prefill"
    DRAFT = "draft"
    WAIT = "wait"
    IDLE = "idle"


class Span(NamedTuple):
    """A stretch of one phase on the monotonic clock."""

    phase: Phase
    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """Return how long it lasted."""
        return self.end_s - self.start_s


class PhaseLog:
    """The marks of one device, the latest 65,536 of them; older ones are dropped.

    Entering the phase that one is in already adds no mark. One thread marks; any thread reads.
    """

    def __init__(self, *, capacity: int = _CAPACITY) -> None:
        """Start without any mark."""
        self._marks: deque[tuple[float, Phase]] = deque(maxlen=capacity)
        self._current: Phase | None = None
        self._forgotten = 0

    def enter(self, phase: Phase | Enum | str, *, now_s: float | None = None) -> None:
        """Mark that a phase begins, now or at `now_s`.

        Raises:
            EnergyError: for a phase that is none of `Phase`.
        """
        entered = phase if type(phase) is Phase else _phase(phase)
        if entered is not self._current:
            self._current = entered
            self._forgotten += len(self._marks) == self._marks.maxlen
            self._marks.append((time.monotonic() if now_s is None else now_s, entered))

    def spans(self, t0_s: float, t1_s: float) -> list[Span]:
        """Return the spans of [t0_s, t1_s], cut to it; time before the first mark is in none."""
        marks = list(self._marks)
        ends_s = [*(at_s for at_s, _ in marks[1:]), t1_s]
        cut = (
            Span(phase, max(at_s, t0_s), min(end_s, t1_s))
            for (at_s, phase), end_s in zip(marks, ends_s, strict=False)  # no mark, no span
        )
        return [span for span in cut if span.end_s > span.start_s]

    def forgot_since(self, t0_s: float) -> bool:
        """Return whether marks behind `t0_s` have been dropped."""
        return bool(self._forgotten) and self._marks[0][0] > t0_s


def _phase(phase: Enum | str) -> Phase:
    try:
        return Phase(phase.value if isinstance(phase, Enum) else phase)
    except ValueError as error:
        known = ", ".join(known.value for known in Phase)
        raise EnergyError(f"enter phase {phase!r}: not one of {known}") from error
