"""`multispin energy` from the command line down to files, the registry, calibration and bench."""

from __future__ import annotations

import json
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from sdk import cli
from sdk.energy import (
    EnergyMonitor,
    Phase,
    PhaseLog,
    Tokens,
    energy_per_token,
    find_meters,
    open_meter,
    registry,
    write_recording,
)
from sdk.energy.bench import BenchResult, Repeats, measure_windows, run_bench, summarise
from sdk.energy.board import BoardState
from sdk.energy.calibration import Calibration, calibration_path, fit, load, save
from sdk.energy.interface import Kind, MeterInfo, MeterNotFoundError, Sample, Scope, available
from sdk.energy.meters.replay import ReplayMeter
from sdk.energy.recording import RecordingWriter, read_recording
from sdk.energy.registry import Driver
from sdk.energy.window import Verdict
from sdk.errors import ConfigError, EnergyError

pytestmark = pytest.mark.alone


@pytest.fixture(autouse=True)
def own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


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


# replay


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


# registry


def test_every_driver_is_listed_with_a_reading_or_a_reason() -> None:
    found = list(find_meters())
    assert {meter.driver for meter in found} == set(registry._BUILT_IN)
    for meter in found:
        assert meter.availability.ok != bool(meter.availability.reason)


def test_unknown_meters_are_refused_with_the_known_ones() -> None:
    with pytest.raises(MeterNotFoundError, match="um25c"):
        open_meter("voltmeter")
    for spec in ("um25c", "atorch", "ppk2", "ppk2:/dev/x@9999", "lpm01a", "nvml:x", "replay"):
        with pytest.raises(MeterNotFoundError):
            open_meter(spec)


class SolarMeter:
    """A stranger's meter."""

    info = MeterInfo(
        driver="solar", label="roof", kind=Kind.INSTANT, scope=Scope.WALL, rate_hz=20.0
    )

    def open(self) -> None: ...

    def read(self) -> list[Sample]:
        return [Sample(time.monotonic(), 230.0)]

    def close(self) -> None: ...


SOLAR = Driver(
    name="solar",
    summary="roof",
    open=lambda _target: SolarMeter(),
    targets=lambda: [""],
    automatic=True,
)


def test_others_add_meters_by_entry_point_and_cannot_take_ours_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = [
        EntryPoint("solar", "test_energy_cli:SOLAR", registry.ENTRY_POINT_GROUP),
        EntryPoint("broken", "no_such_package:DRIVER", registry.ENTRY_POINT_GROUP),
        EntryPoint("wrong", "json:dumps", registry.ENTRY_POINT_GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda **_: points)
    found = {meter.driver: meter for meter in find_meters()}
    assert found["solar"].availability.value == 230.0
    assert "loading it failed" in found["broken"].availability.reason
    assert "no Driver" in found["wrong"].availability.reason
    meter = open_meter("auto")
    meter.open()
    assert meter.info.driver == "solar"
    with pytest.raises(MeterNotFoundError, match="no_such_package"):
        open_meter("broken")


# calibration


def test_a_fit_finds_gain_and_offset_within_its_own_uncertainty() -> None:
    random = np.random.default_rng(4)
    inside = 0
    for _ in range(200):
        read_w = random.uniform(2.0, 8.0, 60)
        true_w = 1.145 * read_w + 0.588 + random.normal(0, 0.05, 60)
        found = fit(read_w, true_w, reference="UM25C", scope="usb_c", date="2026-01-01")
        inside += abs(found.gain - 1.145) <= 2 * np.sqrt(found.var_gain)
    assert inside / 200 >= 0.9
    assert found.residual_w == pytest.approx(0.05, rel=0.5)
    assert found.std_w(5.0) < found.std_w(8.0)


def test_the_stated_gain_holds_though_neighbouring_intervals_err_alike() -> None:
    """Errors that last for several intervals, as of two meters with clocks or averages apart."""
    rng = np.random.default_rng(0)
    count, held = 200, 0
    for _ in range(400):
        read_w = np.repeat(np.tile([2.0, 6.0], 10), 10) + rng.normal(0.0, 0.1, count)
        error_w = rng.normal(0.0, 0.03, count)
        for at in range(1, count):
            error_w[at] += 0.8 * error_w[at - 1]
        found = fit(
            read_w,
            1.1 * read_w + 0.2 + error_w,
            reference="UM25C",
            scope="usb_c",
            date="2026-01-01",
        )
        held += bool(abs(found.gain - 1.1) <= 1.96 * np.sqrt(found.var_gain))
    assert held >= 0.9 * 400  # taken as independent they hold 305 times


def test_a_fit_needs_points_and_a_load_that_varies() -> None:
    with pytest.raises(EnergyError, match="20 needed"):
        fit(np.ones(5), np.ones(5), reference="", scope="", date="")
    with pytest.raises(EnergyError, match="alternate idle and full load"):
        fit(np.full(50, 4.0), np.full(50, 5.0), reference="", scope="", date="")


def test_a_stored_calibration_is_used_with_its_scope(tmp_path: Path) -> None:
    path = recorded(tmp_path / "a.rec", [4.0] * 100)
    meter = open_meter(f"replay:{path}")
    calibration = Calibration(gain=1.5, offset_w=0.5, reference="UM25C", scope="usb_c")
    save(calibration_path("bench", meter.info.label), calibration)
    with EnergyMonitor(meter=meter, board=BoardState) as monitor, monitor.window("w") as window:
        time.sleep(0.3)
    assert window.measurement is not None
    assert window.measurement.mean_w == pytest.approx(6.5)
    assert window.measurement.meter.scope is Scope.USB_C
    assert load(tmp_path / "none.json") is None
    (tmp_path / "bad.json").write_text('{"schema": "multispin.energy-calibration/1", "gain": -1}')
    with pytest.raises(EnergyError, match="calibrate again"):
        load(tmp_path / "bad.json")


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


def test_the_null_meter_is_not_available() -> None:
    assert not available(open_meter("null"), timeout_s=0.1).ok
