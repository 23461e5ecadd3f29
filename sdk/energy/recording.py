"""A meter's samples in a file: one JSON value a line.

The first line describes the meter, `[t_s, value, lost]` is a sample, `["draft", t_s]` the begin of
a phase and `{"window": [t0_s, t1_s], "tokens": {…}}` what was generated when; times are seconds
from the recording's start. A plain CSV with the columns t_s,power_w is read too. Knows nothing of
meters at work.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from sdk.energy.calibration import Calibration
from sdk.energy.interface import Kind, MeterInfo, Sample, Scope
from sdk.energy.phases import Phase, PhaseLog
from sdk.energy.ring import Trace
from sdk.energy.tokens import Tokens
from sdk.errors import EnergyError

__all__ = [
    "Recording",
    "RecordingWriter",
    "info_from_json",
    "info_to_json",
    "read_recording",
    "write_recording",
]

SCHEMA = "multispin.energy-recording/1"
_MAX_SAMPLES = 20_000_000


@dataclass(slots=True)
class Recording:
    """Samples and phases of one meter; times from the recording's start."""

    info: MeterInfo
    samples: list[Sample] = field(default_factory=list)
    phases: PhaseLog = field(default_factory=PhaseLog)
    window: tuple[float, float] | None = None
    tokens: Tokens | None = None

    @property
    def span_s(self) -> tuple[float, float]:
        """Return the window, or the times of the first and the last sample."""
        if self.window is not None or not self.samples:
            return self.window or (0.0, 0.0)
        return self.samples[0].time_s, self.samples[-1].time_s


class RecordingWriter:
    """Writes a recording as it comes; every line is whole or missing."""

    def __init__(self, *, path: Path, info: MeterInfo, start_s: float) -> None:
        """Create the file; `start_s` on the monotonic clock becomes time 0.

        Raises:
            EnergyError: if the file cannot be written.
        """
        try:
            self._file: IO[str] = path.open("w", encoding="utf-8")
        except OSError as error:
            raise EnergyError(f"write recording {path}: {error.strerror}") from error
        self._start_s = start_s
        self._line({"schema": SCHEMA, "meter": info_to_json(info)})

    def samples(self, samples: Iterable[tuple[float, float, int]]) -> None:
        """Append samples."""
        for time_s, value, lost in samples:
            self._line([round(time_s - self._start_s, 6), value, lost])

    def phase(self, phase: Phase, time_s: float) -> None:
        """Append the begin of a phase."""
        self._line([phase.value, round(time_s - self._start_s, 6)])

    def generated(self, tokens: Tokens, t0_s: float, t1_s: float) -> None:
        """Append what was generated in a window."""
        window = [round(t0_s - self._start_s, 6), round(t1_s - self._start_s, 6)]
        self._line({"window": window, "tokens": asdict(tokens)})

    def _line(self, value: Any) -> None:
        self._file.write(json.dumps(value) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> RecordingWriter:
        """Write on."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()


def write_recording(
    path: Path, trace: Trace, phases: PhaseLog, tokens: Tokens, t0_s: float, t1_s: float
) -> None:
    """Write the samples, phases and tokens of a window that has been measured.

    Raises:
        EnergyError: if the file cannot be written.
    """
    rows = zip(trace.times_s, trace.values, trace.lost, strict=True)
    with RecordingWriter(path=path, info=trace.info, start_s=t0_s) as writer:
        writer.samples(Sample(float(at_s), float(value), int(lost)) for at_s, value, lost in rows)
        for span in phases.spans(t0_s, t1_s):
            writer.phase(span.phase, span.start_s)
        writer.generated(tokens, t0_s, t1_s)


def read_recording(path: Path) -> Recording:
    """Read a recording, or a CSV of t_s,power_w.

    Raises:
        EnergyError: if the file is missing or is neither; the message names the line.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return _from_csv(file, path) if path.suffix == ".csv" else _from_lines(file, path)
    except (OSError, UnicodeDecodeError) as error:
        raise EnergyError(f"read recording {path}: {error}") from error


def _from_lines(file: Iterable[str], path: Path) -> Recording:
    recording: Recording | None = None
    for number, line in enumerate(file, start=1):
        try:
            value = json.loads(line)
            if recording is None:
                if value["schema"] != SCHEMA:
                    raise ValueError(f"schema {value['schema']!r}, not {SCHEMA}")
                recording = Recording(info=info_from_json(value["meter"]))
            elif isinstance(value, dict):
                recording.window = (float(value["window"][0]), float(value["window"][1]))
                recording.tokens = Tokens(**value["tokens"])
            elif isinstance(value[0], str):
                recording.phases.enter(value[0], now_s=float(value[1]))
            else:
                recording.samples.append(Sample(float(value[0]), float(value[1]), int(value[2])))
        except (ValueError, TypeError, KeyError, IndexError, EnergyError) as error:
            raise EnergyError(f"read recording {path}, line {number}: {error}") from error
        if len(recording.samples) > _MAX_SAMPLES:
            raise EnergyError(f"read recording {path}: more than {_MAX_SAMPLES} samples")
    if recording is None:
        raise EnergyError(f"read recording {path}: the file is empty")
    return recording


def _from_csv(file: Iterable[str], path: Path) -> Recording:
    samples: list[Sample] = []
    try:
        rows = csv.DictReader(file)
        samples.extend(Sample(float(row["t_s"]), float(row["power_w"])) for row in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise EnergyError(
            f"read {path}: every row needs numbers in the columns t_s and power_w ({error})"
        ) from error
    return Recording(info=_csv_info(samples, path), samples=samples)


def _csv_info(samples: Sequence[Sample], path: Path) -> MeterInfo:
    if len(samples) < 2 or samples[-1].time_s <= samples[0].time_s:
        raise EnergyError(f"read {path}: fewer than two rows at different times")
    rate_hz = (len(samples) - 1) / (samples[-1].time_s - samples[0].time_s)
    return MeterInfo(
        driver="csv", label=str(path), kind=Kind.INSTANT, scope=Scope.NONE, rate_hz=rate_hz
    )


def info_to_json(info: MeterInfo) -> dict[str, Any]:
    """Return a meter's description as JSON values."""
    return {**asdict(info), "kind": info.kind.value, "scope": info.scope.value}


def info_from_json(value: dict[str, Any]) -> MeterInfo:
    """Return the description that `info_to_json` wrote; raise ValueError or TypeError."""
    fields = dict(value)
    calibration = fields.pop("calibration", None)
    return MeterInfo(
        **{
            **fields,
            "kind": Kind(fields["kind"]),
            "scope": Scope(fields["scope"]),
            "rails": tuple(fields.get("rails", ())),
            "sources": tuple((str(rail), str(path)) for rail, path in fields.get("sources", ())),
            "calibration": None if calibration is None else Calibration(**calibration),
        }
    )
