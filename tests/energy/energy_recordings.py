"""Recordings of a meter that never was."""

from __future__ import annotations

from pathlib import Path

from sdk.energy import Phase
from sdk.energy.interface import Kind, MeterInfo, Sample, Scope
from sdk.energy.recording import RecordingWriter


def info(kind: Kind = Kind.INSTANT, rate_hz: float = 50.0) -> MeterInfo:
    return MeterInfo(
        driver="bench", label="shunt", kind=kind, scope=Scope.DC_INPUT, rate_hz=rate_hz
    )


def recorded(path: Path, watts: list[float], *, rate_hz: float = 50.0) -> Path:
    """Write a recording of instantaneous powers with drafts and waits of a second."""
    writer = RecordingWriter(path=path, info=info(rate_hz=rate_hz), start_s=0.0)
    writer.samples(Sample(index / rate_hz, power_w) for index, power_w in enumerate(watts))
    for second in range(int(len(watts) / rate_hz)):
        writer.phase((Phase.DRAFT, Phase.WAIT)[second % 2], float(second))
    writer.close()
    return path
