"""What is believed of devices: what each has shown, across its sessions.

What a device says of itself is believed as far as the server's own clock, or what a board can be,
bears it out. Knows neither plans nor grants; time is passed in.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from edge_server.scheduler.estimators import (
    DecayedMean,
    RateEstimator,
    RoundTripEstimator,
    SurvivalEstimator,
)
from edge_server.scheduler.interface import Grant, RoundReport
from edge_server.scheduler.modes import RatioMode

__all__ = ["KnownDevice", "KnownDevices", "possible_energy"]

ROUNDS_FORGOTTEN = 35  # of a device's last text, when it begins another: half its weight
DEFAULT_DRAFT_S = 0.02
DEFAULT_RATE_BPS = 8e6
LEAST_RATE_BPS, MOST_RATE_BPS = 100.0, 1e12
REPORT_DEVIATION = 0.1  # of a reported rate that comes without its own
LEAST_DEVIATION, MOST_DEVIATION = 0.02, 1.0
MOST_ENERGY = (1e3, 1.0, 1e3)  # J per drafted token, J/bit, W: beyond it no board


@dataclass(slots=True, kw_only=True)
class KnownDevice:
    """What a device has shown; outlives its sessions.

    Attributes:
        energy: J per drafted token, J per bit sent, W while waiting; 0 where unknown.
        survival: of its last session.
        length: that its last session ended with.
    """

    energy: tuple[float, float, float] = (0.0, 0.0, 0.0)
    survival: SurvivalEstimator | None = None
    length: int | None = None
    link: RateEstimator = field(default_factory=RateEstimator)
    _draft_s: DecayedMean = field(default_factory=DecayedMean)
    _round_trip: RoundTripEstimator = field(default_factory=RoundTripEstimator)
    _link_readings: int = -1  # that stood behind the last link report
    # By support: what a token's distribution took on the wire, less where ids were left out.
    _distribution_bits: dict[int, DecayedMean] = field(default_factory=dict)

    @property
    def draft_s(self) -> float:
        """Seconds per drafted token; a usual board's before any draft."""
        return self._draft_s.value or DEFAULT_DRAFT_S

    @property
    def rate_bps(self) -> float:
        """Uplink rate at full share; a usual link's before any report."""
        return self.link.rate_bps or DEFAULT_RATE_BPS

    @property
    def round_trip_s(self) -> float:
        """What a round takes beside drafting, sending and verifying; 0 where unknown."""
        return self._round_trip.round_trip_s or 0.0

    def next_survival(self) -> SurvivalEstimator | None:
        """Return what its last text lets expect of its next, None before the first."""
        if self.survival is None:
            return None
        survival = copy.deepcopy(self.survival)
        survival.fade(rounds=ROUNDS_FORGOTTEN)
        return survival

    def measured(self, mode: RatioMode, *, bits_per_token: float) -> RatioMode:
        """Return a ratio mode with what its distributions really took, if any were sent.

        `bits_per_token` are a token's without its distribution.
        """
        seen = self._distribution_bits.get(mode.support)
        if seen is None or seen.value is None:
            return mode
        return replace(mode, bits_per_token=bits_per_token + seen.value)

    def observe_round(
        self, report: RoundReport, *, given: Grant, since_s: float, drafted_on: bool
    ) -> None:
        """Take in a round with a draft.

        Args:
            given: the grant that it was drafted under.
            since_s: how long ago the session's last round was.
            drafted_on: whether a part of this draft may have been drafted in that time.
        """
        if report.distribution_bytes and given.support:
            bits = self._distribution_bits.setdefault(given.support, DecayedMean())
            bits.add(8.0 * report.distribution_bytes / report.drafted)
        if report.turnaround_s is None or not report.draft_s > 0.0:
            return
        longest_s = report.turnaround_s + (since_s if drafted_on else 0.0)
        draft_s = min(report.draft_s, longest_s)
        self._draft_s.add(draft_s / report.drafted)
        if not drafted_on:
            sent_s = 8.0 * report.uplink_bytes / (self.rate_bps * given.share)
            self._round_trip.add(report.turnaround_s - draft_s - sent_s)

    def observe_link(self, report: dict[str, object], *, now_s: float) -> None:
        """Take in a link report, as `Controller.observe_link` has it; ignore an impossible one."""
        rate = _number(report.get("uplink_bps"))
        if rate is None or not LEAST_RATE_BPS <= rate <= MOST_RATE_BPS:
            return
        readings = _number(report.get("n"))
        if readings is not None:
            if readings == self._link_readings:
                return
            self._link_readings = int(min(readings, 2.0**53))
        sd = _number(report.get("uplink_sd_bps"))
        deviation = REPORT_DEVIATION if sd is None or sd <= 0.0 else sd / rate
        deviation = min(max(deviation, LEAST_DEVIATION), MOST_DEVIATION)
        self.link.add(rate, now_s=now_s, deviation=deviation)

    def observe_energy(self, told: tuple[float | None, float | None, float | None]) -> None:
        """Take in `energy` as a device measured it; None leaves a figure as it was."""
        draft_j, tx_j, wait = (
            old if new is None else new for old, new in zip(self.energy, told, strict=True)
        )
        self.energy = (draft_j, tx_j, wait)


class KnownDevices:
    """Devices by name; beyond `kept`, those without a session are forgotten, oldest use first."""

    def __init__(self, *, kept: int) -> None:
        self._kept = kept
        self._devices: OrderedDict[str, KnownDevice] = OrderedDict()  # last used last

    def __iter__(self) -> Iterator[str]:
        """Iterate over their names, last used last."""
        return iter(self._devices)

    def get(self, name: str) -> KnownDevice | None:
        """Return a device that is known, else None."""
        return self._devices.get(name)

    def use(self, name: str, *, sessions: Collection[tuple[str, int]]) -> KnownDevice:
        """Return a device, a new one if need be; those with `sessions` are not forgotten."""
        known = self._devices.setdefault(name, KnownDevice())
        self._devices.move_to_end(name)
        if len(self._devices) > self._kept:
            busy = {device for device, _ in sessions}
            idle = [other for other in self._devices if other not in busy and other != name]
            for other in idle[: len(self._devices) - self._kept]:
                del self._devices[other]
        return known

    def link_rates(self) -> dict[str, float]:
        """Return the uplink rate at full share of every device whose link was seen, in bit/s."""
        rates = {name: known.link.rate_bps for name, known in list(self._devices.items())}
        return {name: rate for name, rate in rates.items() if rate is not None}


def possible_energy(told: tuple[float | None, float | None, float | None]) -> bool:
    """Return whether a board can spend that much."""
    return all(
        figure is None or 0.0 <= figure <= most
        for figure, most in zip(told, MOST_ENERGY, strict=True)
    )


def _number(value: object) -> float | None:
    """Return a finite number of a report, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
