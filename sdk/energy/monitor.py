"""Measure windows of energy with any meter: keyed, overlapping, nested, or asked for afterwards.

    with EnergyMonitor(meter=meter) as monitor:
        monitor.begin_window("answer")
        ...
        measurement = monitor.end_window("answer")

One thread reads the meter on absolute deadlines into a ring of raw samples; windows are answered
from the ring. A meter that goes away is opened again and the loss shows as a gap. Knows nothing of
tokens.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from sdk.energy.board import BoardState, read_board
from sdk.energy.interface import EnergyMeter, Sample
from sdk.energy.ring import DEFAULT_CAPACITY, SampleRing, Trace
from sdk.energy.window import Measurement, WindowError, measure
from sdk.errors import EnergyError

__all__ = ["EnergyMonitor", "Window"]

_BOARD_PERIOD_S = 5.0
_MIN_POLL_S = 0.05  # meters that send faster by themselves are read in batches
_FIRST_SAMPLE_TIMEOUT_S = 3.0
_REOPEN_FIRST_S = 0.5
_REOPEN_LIMIT_S = 15.0
_KEPT_NOTES = 4096  # of board states and of faults; the oldest are dropped


@dataclass(slots=True)
class Window:
    """A window that is being measured; `measurement` is there once it has ended."""

    key: str
    measurement: Measurement | None = None


class EnergyMonitor:
    """A meter being read in the background, and the windows over it."""

    def __init__(
        self,
        *,
        meter: EnergyMeter,
        capacity: int = DEFAULT_CAPACITY,
        board: Callable[[], BoardState] = read_board,
        on_samples: Callable[[Sequence[Sample]], None] | None = None,
    ) -> None:
        """Prepare; the meter is opened by `start` or by entering the context.

        Args:
            meter: what to read; owned from now on.
            capacity: how many samples to keep.
            board: reads the board's state, asked every few seconds.
            on_samples: told of all new samples, on the sampling thread.
        """
        self.meter = meter
        self._ring = SampleRing(capacity=capacity)
        self._read_board = board
        self._on_samples = on_samples
        self._begun: dict[str, float] = {}
        self._boards: deque[tuple[float, BoardState]] = deque(maxlen=_KEPT_NOTES)
        self._faults: deque[tuple[float, str]] = deque(maxlen=_KEPT_NOTES)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._cpu_share: float | None = None

    # owning the thread

    def start(self) -> None:
        """Open the meter and read it until `close`; wait a little for its first sample.

        Raises:
            MeterNotFoundError: if the meter cannot be opened.
        """
        self.meter.open()
        started_s = time.monotonic()
        self._note_board()
        self._thread = threading.Thread(target=self._sample, name="energy sampler", daemon=True)
        self._thread.start()
        self._ring.wait_after(started_s, min(_FIRST_SAMPLE_TIMEOUT_S, 3 * self._period_s))

    def close(self) -> None:
        """Stop reading and close the meter; what was sampled can still be asked for."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
            self._thread = None
        self.meter.close()

    def __enter__(self) -> EnergyMonitor:
        """Start reading."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop reading."""
        self.close()

    # windows

    def begin_window(self, key: str, *, restart: bool = False) -> None:
        """Begin a window now; windows may overlap and nest.

        Raises:
            WindowError: if a window of that name is being measured, unless `restart`.
        """
        if key in self._begun and not restart:
            raise WindowError(f"begin window '{key}': it has begun already; end or restart it")
        self._begun[key] = time.monotonic()

    def end_window(self, key: str) -> Measurement:
        """End a window now and return its energy.

        Raises:
            WindowError: if no window of that name has begun.
        """
        t1_s = time.monotonic()
        if key not in self._begun:
            raise WindowError(f"end window '{key}': it was not begun")
        return self.measure(self._begun.pop(key), t1_s, key=key)

    @contextmanager
    def window(self, key: str) -> Iterator[Window]:
        """Measure the block; its energy is in the window's `measurement` afterwards."""
        window = Window(key)
        self.begin_window(key)
        try:
            yield window
        finally:
            window.measurement = self.end_window(key)

    def measure(self, t0_s: float, t1_s: float, *, key: str = "") -> Measurement:
        """Return the energy of a window of the past, both ends on the monotonic clock.

        Waits for the sample behind the end, a few periods at most.
        """
        self._note_board()
        if self._thread is not None:
            averaging_s = self.meter.info.averaging_s or 0.0
            self._ring.wait_after(t1_s + averaging_s / 2, 3 * self._period_s + 0.2)
        started_utc = datetime.now(timezone.utc) - timedelta(seconds=time.monotonic() - t0_s)
        return measure(
            self.trace(t0_s, t1_s),
            t0_s,
            t1_s,
            key=key,
            t0_utc=started_utc.isoformat(timespec="milliseconds"),
            boards=self._boards_around(t0_s, t1_s),
            sampler_cpu=self._cpu_share,
            faults=self._faults_of(t0_s, t1_s),
        )

    def trace(self, t0_s: float, t1_s: float) -> Trace:
        """Return the raw samples around [t0_s, t1_s]."""
        return self._ring.trace(self.meter.info, t0_s, t1_s)

    def _boards_around(self, t0_s: float, t1_s: float) -> list[BoardState]:
        states = list(self._boards)
        before = [state for at_s, state in states if at_s <= t0_s][-1:]
        after = [state for at_s, state in states if at_s >= t1_s][:1]
        return [*before, *(state for at_s, state in states if t0_s < at_s < t1_s), *after]

    def _faults_of(self, t0_s: float, t1_s: float) -> list[str]:
        found = [text for at_s, text in list(self._faults) if t0_s <= at_s <= t1_s]
        oldest_s = self._ring.oldest_s()
        if self._ring.wrapped and oldest_s is not None and oldest_s > t0_s:
            found.append(f"the first {oldest_s - t0_s:.1f} s have left the ring of samples")
        return list(dict.fromkeys(found))

    # sampling

    @property
    def _period_s(self) -> float:
        return self.meter.info.period_s

    def _note_board(self) -> None:
        self._boards.append((time.monotonic(), self._read_board()))

    def _sample(self) -> None:
        """Read on absolute deadlines; a deadline that has passed is skipped, not caught up."""
        due_s = started_s = time.monotonic()
        board_due_s = started_s + _BOARD_PERIOD_S
        missing = 0
        while not self._stop.is_set():
            try:
                self._keep(self.meter.read(), missing)
                missing = 0
            except EnergyError as error:
                self._faults.append((time.monotonic(), str(error)))
                missing = 1
                self._reopen()
            now_s = time.monotonic()
            if now_s >= board_due_s:
                self._note_board()
                board_due_s = now_s + _BOARD_PERIOD_S
            self._cpu_share = time.thread_time() / max(now_s - started_s, 1.0)
            poll_s = max(self._period_s, _MIN_POLL_S)
            due_s += poll_s * max(1, math.ceil((now_s - due_s) / poll_s))
            self._stop.wait(max(due_s - time.monotonic(), 0.0))

    def _keep(self, samples: Sequence[Sample], missing: int) -> None:
        if not samples:
            return
        if missing:
            samples = [samples[0]._replace(lost=samples[0].lost + missing), *samples[1:]]
        self._ring.extend(samples)
        if self._on_samples is not None:
            self._on_samples(samples)

    def _reopen(self) -> None:
        """Try to open the meter until it is back or nobody wants it any more."""
        pause_s = _REOPEN_FIRST_S
        self.meter.close()
        while not self._stop.wait(pause_s) and not self._opened():
            pause_s = min(2 * pause_s, _REOPEN_LIMIT_S)

    def _opened(self) -> bool:
        try:
            self.meter.open()
        except EnergyError:
            self.meter.close()
            return False
        return True
