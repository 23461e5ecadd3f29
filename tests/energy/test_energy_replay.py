"""Recordings: written, read back, replayed as a meter."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from energy_recordings import info, recorded

from sdk.energy import (
    EnergyMonitor,
    Phase,
    PhaseLog,
    Tokens,
    energy_per_token,
    open_meter,
    write_recording,
)
from sdk.energy.board import BoardState
from sdk.energy.interface import Kind, MeterNotFoundError, Sample
from sdk.energy.meters.replay import ReplayMeter
from sdk.energy.recording import RecordingWriter, read_recording
from sdk.errors import EnergyError


def test_a_recording_comes_back_as_it_was(tmp_path: Path) -> None:
    path = recorded(tmp_path / "a.rec", [5.0, 5.5, 6.0])
    recording = read_recording(path)
    assert recording.info == info()
    assert recording.samples == [Sample(0.0, 5.0), Sample(0.02, 5.5), Sample(0.04, 6.0)]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.rec", "", "empty"),
        ("a.rec", '{"schema": "other"}\n', "line 1"),
        ("a.rec", "[1, 2]\n", "line 1"),
        ("a.csv", "t_s,power_w\n0,5\n", "two rows"),
        ("a.csv", "t_s,power_w\n0,5\n1,x\n", "power_w"),
        ("a.csv", "time,power\n0,5\n", "t_s and power_w"),
    ],
)
def test_files_that_are_no_recordings_are_refused(
    tmp_path: Path, name: str, text: str, problem: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(EnergyError, match=problem):
        read_recording(tmp_path / name)
    with pytest.raises(MeterNotFoundError):
        open_meter(f"replay:{tmp_path / name}")


def test_a_torn_line_is_named(tmp_path: Path) -> None:
    path = recorded(tmp_path / "a.rec", [5.0] * 10)
    path.write_text(path.read_text()[:-60] + "\n[0.2, \n")
    with pytest.raises(EnergyError, match="line "):
        read_recording(path)


def test_replay_repeats_and_counters_go_on_counting(tmp_path: Path) -> None:
    writer = RecordingWriter(path=tmp_path / "c.rec", info=info(Kind.COUNTER, 1.0), start_s=0.0)
    writer.samples([Sample(0.0, 10.0), Sample(1.0, 14.0), Sample(2.0, 18.0)])
    writer.close()
    now_s = 100.0
    meter = ReplayMeter(path=tmp_path / "c.rec", clock=lambda: now_s)
    meter.open()
    now_s = 105.5
    samples = meter.read()
    assert [sample.time_s for sample in samples] == [100, 101, 102, 103, 104, 105]
    assert [sample.value for sample in samples] == [10, 14, 18, 22, 26, 30]
    once = ReplayMeter(path=tmp_path / "c.rec", repeat=False, clock=lambda: now_s)
    once.open()
    now_s = 200.0
    assert len(once.read()) == 3


@pytest.mark.alone
def test_a_trace_in_a_file_gives_the_joules_per_token_of_the_hand(tmp_path: Path) -> None:
    """A device session in small: draft at 8 W, wait at 3 W, marked as the session marks."""
    trace = tmp_path / "trace.csv"
    rows = [(index / 100, 8.0 if index // 20 % 2 == 0 else 3.0) for index in range(400)]
    trace.write_text("t_s,power_w\n" + "".join(f"{at_s},{watts}\n" for at_s, watts in rows))
    phases = PhaseLog()
    monitor = EnergyMonitor(meter=open_meter(f"replay:{trace}"), board=BoardState)
    with monitor:
        monitor.begin_window("generate")
        t0_s = time.monotonic()
        for _ in range(4):
            phases.enter(Phase.DRAFT)
            time.sleep(0.2)
            phases.enter(Phase.WAIT)
            time.sleep(0.2)
        t1_s = time.monotonic()
        measurement = monitor.end_window("generate")
        raw = monitor.trace(t0_s, t1_s)
    inside = (raw.times_s >= measurement.t0_s) & (raw.times_s <= measurement.t1_s)
    by_hand_j = float(np.mean(raw.values[inside])) * measurement.duration_s
    record = energy_per_token(measurement, phases, drafted=32, accepted=20, emitted=24)
    per_token = record.per_token("emitted")
    assert all(reason.startswith("sampler") for reason in record.reasons), record.reasons
    assert per_token is not None
    assert per_token.value == pytest.approx(by_hand_j / 24, rel=0.01)
    assert per_token.low <= by_hand_j / 24 <= per_token.high
    write_recording(
        tmp_path / "g.rec", raw, phases, Tokens(drafted=32, accepted=20, emitted=24), t0_s, t1_s
    )
    again = read_recording(tmp_path / "g.rec")
    assert again.tokens == Tokens(drafted=32, accepted=20, emitted=24)
    assert again.window is not None
    assert again.window[1] == pytest.approx(t1_s - t0_s, abs=1e-5)
