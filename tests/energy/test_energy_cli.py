"""`multispin energy` and `bench energy`, from the command line down to files."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from energy_recordings import recorded

from sdk import cli
from sdk.energy import (
    Phase,
    PhaseLog,
    Tokens,
    open_meter,
)
from sdk.energy.bench import BenchResult, Repeats, measure_windows, run_bench, summarise
from sdk.energy.recording import read_recording
from sdk.energy.window import Verdict
from sdk.errors import ConfigError, EnergyError

pytestmark = pytest.mark.alone


# the command


def test_energy_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["energy", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["meter"] for row in rows} >= {"jetson", "pi5-pmic", "rapl", "um25c", "null"}
    assert all(row["available"] or row["reason"] for row in rows)
    assert cli.main(["energy", "list"]) == 0
    assert "um25c" in capsys.readouterr().out


def test_energy_record_then_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = recorded(tmp_path / "source.rec", [5.0] * 100)
    target = tmp_path / "target.rec"
    arguments = ["energy", "record", f"replay:{source}", "-o", str(target), "--seconds", "0.6"]
    assert cli.main([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["mean_w"] == pytest.approx(5.0)
    assert len(read_recording(target).samples) == pytest.approx(30, abs=6)
    assert cli.main(["energy", "report", str(target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"]["driver"] == "bench"


def test_energy_report_draws_and_tabulates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watts = [8.0 if index // 50 % 2 == 0 else 3.0 for index in range(1000)]
    path, picture = recorded(tmp_path / "a.rec", watts), tmp_path / "a.png"
    assert cli.main(["energy", "report", str(path), "--png", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "draft" in out
    assert "verdict: ok" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["energy", "report", str(tmp_path / "none")]) == EnergyError.exit_code
    assert "read recording" in capsys.readouterr().err


def test_energy_calibrate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loads = [2.0 + index / 50 for index in range(500)]  # a ramp: replays may start apart
    meter = recorded(tmp_path / "meter.rec", loads)
    reference = recorded(tmp_path / "reference.rec", [1.2 * watts + 0.4 for watts in loads])
    arguments = ["energy", "calibrate", f"replay:{meter}", "--reference", f"replay:{reference}"]
    assert cli.main([*arguments, "--seconds", "3", "--interval", "0.1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["gain"] == pytest.approx(1.2, rel=0.02)
    assert found["scope"] == "dc_input"
    assert Path(found["file"]).exists()


def test_the_command_refuses_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["energy", "record", "null", "-o", "x", "--seconds", "-1"]) == 2
    assert cli.main(["energy", "record", "nothing", "-o", "x"]) == EnergyError.exit_code
    assert capsys.readouterr().err.count("\n") == 2


# bench


def bench(tmp_path: Path, watts: list[float]) -> BenchResult:
    path = recorded(tmp_path / "b.rec", watts)

    def workload(seconds: float, phases: PhaseLog) -> Tokens:
        phases.enter(Phase.DRAFT)
        time.sleep(seconds)
        return Tokens(drafted=100, accepted=60, emitted=80)

    return measure_windows(
        workload,
        meter=open_meter(f"replay:{path}"),
        windows=5,
        window_s=0.3,
        idle_s=0.3,
        on_step=lambda _step: None,
    )


def test_bench_measures_idle_windows_idle(tmp_path: Path) -> None:
    result = bench(tmp_path, [5.0] * 100)
    assert len(result.records) == 5
    # Windows of a third of a second are too short to be quoted, and are not.
    assert result.verdict is Verdict.INVALID
    assert result.gross["emitted"] is None
    assert result.to_json()["schema"] == "multispin.energy-bench/1"


def test_bench_sums_up_with_student_s_interval() -> None:
    figures = Repeats.of([1.0, 1.1, 0.9, 1.05, 0.95], gain_rel=0.0)
    assert figures is not None
    assert figures.median == 1.0
    assert figures.high - 1.0 == pytest.approx(2.776 * 0.0790569 / 5**0.5, rel=1e-4)
    widened = Repeats.of([1.0, 1.1, 0.9, 1.05, 0.95], gain_rel=0.02)
    assert widened is not None
    assert widened.high > figures.high
    assert Repeats.of([1.0], gain_rel=0.0) is None
    assert summarise([]).verdict is Verdict.OK


def test_bench_refuses_short_or_few_windows() -> None:
    def workload(seconds: float, phases: PhaseLog) -> Tokens:
        raise AssertionError("must not run")

    for wrong in ({"windows": 4}, {"window_s": 9.0}, {"idle_s": 1.0}):
        with pytest.raises(ConfigError, match="at least 5 of 10 s"):
            run_bench(workload, meter=open_meter("null"), **wrong)
