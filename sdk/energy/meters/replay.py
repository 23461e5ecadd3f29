"""Plays a recording as if its meter were connected now, over and over.

Each round begins one nominal period after the last sample of the round before; counters go on
counting. Knows nothing of how the recording was made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sdk.energy.interface import Kind, MeterInfo, MeterNotFoundError, Sample
from sdk.energy.recording import Recording, read_recording
from sdk.energy.registry import Driver
from sdk.errors import EnergyError

__all__ = ["DRIVER", "ReplayMeter"]


class ReplayMeter:
    """A meter whose samples come from a file, on time."""

    def __init__(
        self, *, path: Path, repeat: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the recording.

        Args:
            path: a recording, or a CSV of t_s,power_w.
            repeat: whether to begin again after the last sample.
            clock: the monotonic clock.

        Raises:
            MeterNotFoundError: if the file holds no recording.
        """
        try:
            self._recording = read_recording(path)
        except EnergyError as error:
            raise MeterNotFoundError(f"open replay meter: {error}") from error
        if not self._recording.samples:
            raise MeterNotFoundError(f"open replay meter: {path} holds no sample")
        self._repeat = repeat
        self._clock = clock
        self._info = replace(self._recording.info, label=f"replay of {path}")
        self._start_s = 0.0
        self._next = 0

    @property
    def info(self) -> MeterInfo:
        """Return the recorded meter's description."""
        return self._info

    @property
    def recording(self) -> Recording:
        """Return what is played."""
        return self._recording

    @property
    def start_s(self) -> float:
        """Return the time, on the clock, of the recording's first sample."""
        return self._start_s

    def open(self) -> None:
        """Start playing now."""
        self._start_s = self._clock()
        self._next = 0

    def read(self) -> Sequence[Sample]:
        """Return the samples that are due."""
        now_s = self._clock()
        due: list[Sample] = []
        while (sample := self._sample(self._next)) is not None and sample.time_s <= now_s:
            due.append(sample)
            self._next += 1
        return due

    def _sample(self, number: int) -> Sample | None:
        samples = self._recording.samples
        turn, index = divmod(number, len(samples))
        if turn and not self._repeat:
            return None
        first, last, sample = samples[0], samples[-1], samples[index]
        turn_s = last.time_s - first.time_s + self._info.period_s
        value = sample.value
        if self._info.kind is Kind.COUNTER:
            value += (
                turn * (last.value - first.value) * turn_s / max(turn_s - self._info.period_s, 1e-9)
            )
        return Sample(
            self._start_s + turn * turn_s + sample.time_s - first.time_s, value, sample.lost
        )

    def close(self) -> None:
        """Stop playing."""


def _open(target: str) -> ReplayMeter:
    if not target:
        raise MeterNotFoundError("open replay meter: name the file, replay:FILE")
    return ReplayMeter(path=Path(target))


DRIVER = Driver(
    name="replay",
    summary="plays a recording or a CSV of t_s,power_w",
    open=_open,
    hint="name a file: replay:FILE",
)
