"""`multispin energy`: list, record, calibrate and report energy meters."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import date
from pathlib import Path

import numpy as np

from sdk.errors import ConfigError, EnergyError

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands and their options."""
    commands = parser.add_subparsers(dest="energy_command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="what is connected, and why the others are not")
    record = commands.add_parser("record", help="write a meter's samples to a file")
    record.add_argument("meter", nargs="?", default="auto", help="auto, DRIVER or DRIVER:TARGET")
    record.add_argument("--output", "-o", type=Path, required=True, help="file to write")
    record.add_argument("--seconds", type=float, default=60.0, help="how long (default 60)")
    calibrate = commands.add_parser("calibrate", help="fit gain and offset against a better meter")
    calibrate.add_argument("meter", help="the meter to calibrate")
    calibrate.add_argument("--reference", required=True, help="the meter taken as true")
    calibrate.add_argument("--seconds", type=float, default=180.0, help="how long (default 180)")
    calibrate.add_argument("--interval", type=float, default=2.0, help="seconds per point")
    report = commands.add_parser("report", help="table and picture of a recording")
    report.add_argument("file", type=Path, help="a recording, or a CSV of t_s,power_w")
    report.add_argument("--png", type=Path, help="write the picture here")
    for command in (listing, record, calibrate, report):
        command.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit code."""
    commands = {"list": _list, "record": _record, "calibrate": _calibrate, "report": _report}
    return commands[args.energy_command](args)


def _list(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from sdk.energy.registry import find_meters

    found = list(find_meters())
    if args.json:
        rows = [
            {
                "meter": meter.spec,
                "available": meter.availability.ok,
                "reason": meter.availability.reason,
                "scope": meter.info.scope.value if meter.info else None,
                "kind": meter.info.kind.value if meter.info else None,
                "rate_hz": meter.info.rate_hz if meter.info else None,
                "leaves_out": meter.info.leaves_out if meter.info else None,
            }
            for meter in found
        ]
        print(json.dumps(rows))
        return 0
    table = Table("meter", "there", "scope", "kind", "Hz", "what it is, or why it is not there")
    for meter in found:
        ok, info = meter.availability.ok, meter.info
        table.add_row(
            meter.spec,
            "yes" if ok else "no",
            info.scope.value if ok and info else "",
            info.kind.value if ok and info else "",
            f"{info.rate_hz:g}" if ok and info else "",
            f"{meter.summary}; leaves out: {info.leaves_out}"
            if ok and info
            else meter.availability.reason,
        )
    Console().print(table)
    return 0


def _record(args: argparse.Namespace) -> int:
    from sdk.energy.interface import Sample
    from sdk.energy.monitor import EnergyMonitor
    from sdk.energy.recording import RecordingWriter
    from sdk.energy.registry import open_meter

    _check_seconds(args.seconds)
    writers: list[RecordingWriter] = []

    def keep(samples: Sequence[Sample]) -> None:
        for writer in writers:
            writer.samples(samples)

    monitor = EnergyMonitor(meter=open_meter(args.meter), on_samples=keep)
    with monitor, ExitStack() as owned:
        info, t0_s = monitor.meter.info, time.monotonic()
        writer = owned.enter_context(RecordingWriter(path=args.output, info=info, start_s=t0_s))
        owned.callback(monitor.close)  # before the file that its thread writes to
        writers.append(writer)
        _wait(args.seconds, f"recording {info.driver}", quiet=args.json)
        measurement = monitor.measure(t0_s, time.monotonic(), key="record")
    summary = {
        "file": str(args.output),
        "meter": info.driver,
        "verdict": measurement.verdict.value,
        "reasons": list(measurement.reasons),
        "gross_j": measurement.gross_j,
        "mean_w": measurement.mean_w,
        **asdict(measurement.sampling),
    }
    _print(summary, args.json)
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from sdk.energy.calibration import calibration_path, fit, save
    from sdk.energy.monitor import EnergyMonitor
    from sdk.energy.registry import open_meter

    _check_seconds(args.seconds)
    meter = EnergyMonitor(meter=open_meter(args.meter, calibrated=False))
    reference = EnergyMonitor(meter=open_meter(args.reference))
    with meter, reference:
        t0_s = time.monotonic()
        _wait(args.seconds, "calibrating; alternate idle and full load", quiet=args.json)
        edges_s = np.arange(t0_s, time.monotonic(), args.interval)
        time.sleep(1.0)
        windows = np.column_stack((edges_s[:-1], edges_s[1:]))
        read = [meter.measure(float(a_s), float(b_s)).mean_w for a_s, b_s in windows]
        true = [reference.measure(float(a_s), float(b_s)).mean_w for a_s, b_s in windows]
        info, reference_info = meter.meter.info, reference.meter.info
    pairs = np.array(
        [(a, b) for a, b in zip(read, true, strict=True) if a is not None and b is not None]
    ).reshape(-1, 2)
    calibration = fit(
        pairs[:, 0],
        pairs[:, 1],
        reference=f"{reference_info.driver} {reference_info.label}",
        scope=reference_info.scope.value,
        date=date.today().isoformat(),
    )
    path = calibration_path(info.driver, info.label)
    save(path, calibration)
    _print({"file": str(path), **asdict(calibration)}, args.json)
    return 0


def _report(args: argparse.Namespace) -> int:
    from rich.console import Console

    from sdk.energy.recording import read_recording
    from sdk.energy.report import draw, record_of, table

    recording = read_recording(args.file)
    if len(recording.samples) < 2:
        raise EnergyError(f"report {args.file}: fewer than two samples; record again")
    record = record_of(recording)
    if args.png:
        draw(args.png, record, recording.phases)
    if args.json:
        print(json.dumps(record.to_json()))
        return 0
    console = Console()
    console.print(table(record))
    console.print(f"verdict: {record.verdict.value}")
    for reason in record.reasons:
        console.print(f"  {reason}")
    return 0


def _check_seconds(seconds: float) -> None:
    if not 0 < seconds <= 24 * 3600:
        raise ConfigError(f"--seconds {seconds}: state more than 0 and at most a day")


def _wait(seconds: float, what: str, *, quiet: bool) -> None:
    """Wait, with a bar of progress."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:
        task = progress.add_task(what, total=seconds)
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.25))
            progress.update(task, completed=seconds - left_s)


def _print(values: dict[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(values))
        return
    for name, value in values.items():
        print(f"{name:>14}  {value if not isinstance(value, float) else f'{value:.6g}'}")
