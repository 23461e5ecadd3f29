"""Energy per token of a workload on this board: idle, windows of work, idle.

    result = run_bench(workload, meter=open_meter("auto"), windows=5, window_s=10.0)

The method of MLPerf Tiny: at least five windows of at least ten seconds, the median reported;
joined by an idle before and after and Student's interval over the windows. The workload is a
callable; nothing here knows of models.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from sdk.energy.interface import EnergyMeter
from sdk.energy.monitor import EnergyMonitor
from sdk.energy.phases import Phase, PhaseLog
from sdk.energy.record import EnergyRecord, energy_per_token, idle_between
from sdk.energy.student import t_95
from sdk.energy.tokens import Tokens
from sdk.energy.window import Verdict, worst
from sdk.errors import ConfigError

__all__ = ["BenchResult", "Repeats", "Workload", "configure", "run_bench", "run_with"]

SCHEMA = "multispin.energy-bench/1"
MIN_WINDOWS = 5
MIN_WINDOW_S = 10.0
_COUNTED = ("drafted", "accepted", "emitted")


class Workload(Protocol):
    """Something that makes tokens for a while."""

    def __call__(self, seconds: float, phases: PhaseLog) -> Tokens:
        """Work for at least `seconds`, mark phases, and return what was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """A figure over several windows.

    Attributes:
        n: how many windows gave it.
        median, mean, std: of the windows.
        t_crit: Student's factor.
        low, high: 95 % interval of the mean, the meter's own gain included.
    """

    n: int
    median: float
    mean: float
    std: float
    t_crit: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], gain_rel: float) -> Repeats | None:
        """Sum up at least two values; `gain_rel` does not average out."""
        if len(values) < 2:
            return None
        mean, std = statistics.fmean(values), statistics.stdev(values)
        t_crit = t_95(len(values) - 1)
        half = math.hypot(t_crit * std / math.sqrt(len(values)), 1.96 * gain_rel * mean)
        return cls(
            n=len(values),
            median=statistics.median(values),
            mean=mean,
            std=std,
            t_crit=t_crit,
            low=mean - half,
            high=mean + half,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """The windows' records and what they say together."""

    records: tuple[EnergyRecord, ...]
    gross: dict[str, Repeats | None]
    net: dict[str, Repeats | None]
    verdict: Verdict
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""

        def listed(figures: dict[str, Repeats | None]) -> dict[str, Any]:
            return {name: asdict(value) if value else None for name, value in figures.items()}

        return {
            "schema": SCHEMA,
            "verdict": self.verdict.value,
            "reasons": list(self.reasons),
            "j_per_token": {"gross": listed(self.gross), "net": listed(self.net)},
            "records": [record.to_json() for record in self.records],
        }


def run_bench(
    workload: Workload,
    *,
    meter: EnergyMeter,
    windows: int = MIN_WINDOWS,
    window_s: float = MIN_WINDOW_S,
    idle_s: float = MIN_WINDOW_S,
    on_step: Callable[[str], None] = lambda _step: None,
) -> BenchResult:
    """Measure idle, the workload in several windows, and idle again.

    Args:
        workload: called once to warm up and once a window; everything it needs is loaded already,
            so that idle is the idle of a board that is ready to work.
        meter: opened and closed here.
        windows: at least 5; window_s: at least 10 seconds each; idle_s: of each idle.
        on_step: told what comes next.

    Raises:
        ConfigError: for fewer or shorter windows.
        EnergyError: if the meter cannot be opened or gives nothing while idle.
    """
    if windows < MIN_WINDOWS or window_s < MIN_WINDOW_S or idle_s < MIN_WINDOW_S:
        raise ConfigError(
            f"bench energy: {windows} windows of {window_s:g} s and {idle_s:g} s idle; "
            f"at least {MIN_WINDOWS} of {MIN_WINDOW_S:g} s each are needed"
        )
    return measure_windows(
        workload, meter=meter, windows=windows, window_s=window_s, idle_s=idle_s, on_step=on_step
    )


def measure_windows(
    workload: Workload,
    *,
    meter: EnergyMeter,
    windows: int,
    window_s: float,
    idle_s: float,
    on_step: Callable[[str], None],
) -> BenchResult:
    """Do what `run_bench` says, however short the windows are."""
    phases = PhaseLog()
    with EnergyMonitor(meter=meter) as monitor:
        on_step("warm up")
        workload(min(window_s / 5, 2.0), phases)
        phases.enter(Phase.IDLE)
        on_step("idle")
        with monitor.window("idle before") as before:
            time.sleep(idle_s)
        work = []
        for number in range(windows):
            on_step(f"window {number + 1} of {windows}")
            with monitor.window(f"window {number + 1}") as window:
                tokens = workload(window_s, phases)
            phases.enter(Phase.IDLE)
            assert window.measurement is not None
            work.append((window.measurement, tokens))
        on_step("idle")
        with monitor.window("idle after") as after:
            time.sleep(idle_s)
    assert before.measurement is not None
    assert after.measurement is not None
    idle = idle_between(before.measurement, after.measurement)
    return summarise(
        [
            energy_per_token(measurement, phases, **asdict(tokens), idle=idle)
            for measurement, tokens in work
        ]
    )


def summarise(records: Sequence[EnergyRecord]) -> BenchResult:
    """Sum up the records of several windows; invalid ones are left out and said."""
    return BenchResult(
        records=tuple(records),
        gross={counted: _repeats(records, counted, net=False) for counted in _COUNTED},
        net={counted: _repeats(records, counted, net=True) for counted in _COUNTED},
        verdict=worst([record.verdict for record in records]),
        reasons=tuple(dict.fromkeys(reason for record in records for reason in record.reasons)),
    )


def _repeats(records: Sequence[EnergyRecord], counted: str, *, net: bool) -> Repeats | None:
    figures = [record.per_token(counted, net=net) for record in records]
    gains = [
        record.measurement.uncertainty.gain_j / record.measurement.gross_j
        for record in records
        if record.measurement.uncertainty is not None and record.measurement.gross_j
    ]
    values = [figure.value for figure in figures if figure is not None]
    return Repeats.of(values, max(gains, default=0.0))


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the method."""
    parser.add_argument("--energy", default="auto", help="auto, DRIVER or DRIVER:TARGET")
    parser.add_argument("--windows", type=int, default=MIN_WINDOWS, help="at least 5")
    parser.add_argument("--window-s", type=float, default=MIN_WINDOW_S, help="at least 10")
    parser.add_argument("--idle-s", type=float, default=MIN_WINDOW_S, help="at least 10")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_with(args: argparse.Namespace, workload: Workload) -> int:
    """Run the method with the parsed options, print the result and return the exit code."""
    from rich.console import Console
    from rich.table import Table

    from sdk.energy.registry import open_meter

    console = Console(stderr=True)
    result = run_bench(
        workload,
        meter=open_meter(args.energy),
        windows=args.windows,
        window_s=args.window_s,
        idle_s=args.idle_s,
        on_step=lambda step: None if args.json else console.print(step),
    )
    if args.json:
        print(json.dumps(result.to_json()))
        return 0
    table = Table("J per token", "n", "median", "mean", "95 % interval")
    for name, figures in (("gross", result.gross), ("net", result.net)):
        for counted, figure in figures.items():
            if figure is not None:
                interval = f"[{figure.low:.4g}, {figure.high:.4g}]"
                cells = f"{figure.n}", f"{figure.median:.4g}", f"{figure.mean:.4g}", interval
                table.add_row(f"{counted}, {name}", *cells)
    Console().print(table)
    print(f"verdict: {result.verdict.value}")
    for reason in result.reasons:
        print(f"  {reason}")
    return 0
