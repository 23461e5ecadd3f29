"""Reads the probes, fuses them and tells the server, in the background.

One thread a probe, because a modem may take seconds to answer, and one that fuses and publishes.
Knows nothing of sessions and of drafts.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from sdk.link.interface import LinkProbe, LinkReading
from sdk.link.probes import available_probes
from sdk.link.report import LinkReport
from sdk.link.state import LinkState
from sdk.protocol.topics import up
from sdk.transport.interface import Transport

__all__ = ["LinkReporter"]

_LOG = logging.getLogger(__name__)

_MAX_WAITING: Final = 256  # readings not yet fused; beyond, the newest is dropped
_LEAST_GAP_S: Final = 0.1  # between two reports, however much the link changes
_JOIN_S: Final = 5.0


class LinkReporter:
    """Publishes a `LinkReport` every `interval_s`, and at once when the rate changed by `change`.

    A context manager. Reports go out at QoS 0 and not retained: the next one is a second away, and
    the server heeds no retained uplink message. Nothing that a probe does ends the reporter.
    """

    def __init__(
        self,
        transport: Transport,
        device_id: str,
        *,
        probes: Sequence[LinkProbe] | None = None,
        interval_s: float = 1.0,
        change: float = 0.15,
        on_report: Callable[[LinkReport], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is read before `__enter__`.

        Args:
            transport: where reports are published, and whose socket is measured.
            device_id: whose reports these are.
            probes: closed on exit; None: `available_probes(transport)`.
            interval_s: longest time between reports; above 0.
            change: relative change of the rate that is reported at once; above 0.
            on_report: called with each report, in the reporter's thread.
            clock: monotonic seconds.

        Raises:
            ConfigError: if the id is not one.
            ValueError: if a number is out of its range.
        """
        if not interval_s > 0.0 or not change > 0.0:
            raise ValueError(f"interval_s and change must be above 0, got {interval_s}, {change}")
        self._transport = transport
        self._topic = up(device_id, "report")
        self.probes = tuple(available_probes(transport) if probes is None else probes)
        self.latest: LinkReport | None = None
        self._interval_s = interval_s
        self._change = math.log1p(change)
        self._on_report = on_report
        self._clock = clock
        self._state = LinkState(
            device_id=device_id, sources=tuple(probe.name for probe in self.probes)
        )
        self._readings: queue.Queue[tuple[str, LinkReading]] = queue.Queue(_MAX_WAITING)
        self._closing = threading.Event()
        self._reported_at_s = -math.inf
        self._threads = [
            threading.Thread(
                target=self._read, args=(probe,), name=f"link {probe.name}", daemon=True
            )
            for probe in self.probes
        ]
        self._threads.append(threading.Thread(target=self._run, name="link", daemon=True))

    def __enter__(self) -> LinkReporter:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads and close the probes; harmless when repeated."""
        self._closing.set()
        deadline_s = time.monotonic() + _JOIN_S
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, deadline_s - time.monotonic()))
        for probe in self.probes:
            probe.close()

    def _read(self, probe: LinkProbe) -> None:
        while not self._closing.wait(probe.period_s):
            self._read_once(probe)

    def _read_once(self, probe: LinkProbe) -> None:
        try:
            reading = probe.read(self._clock())
            if reading is not None:
                self._readings.put_nowait((probe.name, reading))
        except queue.Full:
            _LOG.debug("link: %s reads faster than readings are fused", probe.name)
        except Exception:  # a probe's bug costs its readings, not the session
            _LOG.exception("link: probe %s", probe.name)

    def _run(self) -> None:
        while not self._closing.is_set():
            due_s = self._reported_at_s + self._interval_s - self._clock()
            try:
                source, reading = self._readings.get(timeout=min(max(due_s, 0.0), 0.2))
                self._state.add(source, reading)
            except queue.Empty:
                pass
            try:
                self._report_if_due()
            except Exception:  # likewise
                _LOG.exception("link: report")

    def _report_if_due(self) -> None:
        now_s = self._clock()
        silent_s = now_s - self._reported_at_s
        if silent_s < self._interval_s and not (silent_s >= _LEAST_GAP_S and self._changed(now_s)):
            return
        self._reported_at_s = now_s
        self.latest = report = self._state.report(now_s)
        self._transport.publish(self._topic, report.to_json().encode())
        if self._on_report is not None:
            self._on_report(report)

    def _changed(self, now_s: float) -> bool:
        """Return whether the rate is no longer the one that was last reported."""
        rate_bps = self._state.rate_bps(now_s)
        reported_bps = self.latest.uplink_bps if self.latest else None
        if rate_bps is None or reported_bps is None:
            return rate_bps is not reported_bps
        return abs(math.log(rate_bps / reported_bps)) > self._change
