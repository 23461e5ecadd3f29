"""Recorded lines of tegrastats and of the Raspberry Pi 5's PMIC, whole and damaged."""

from __future__ import annotations

import stat
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.energy.board import BoardState, parse_throttled, read_board
from sdk.energy.interface import MeterNotFoundError, Scope, available
from sdk.energy.meters.mailbox import command_request, parse_answer
from sdk.energy.meters.pi5 import Pi5Meter, rails_power_w
from sdk.energy.meters.pi5 import parse_rails as parse_pmic
from sdk.energy.meters.tegrastats import TegrastatsMeter, parse_rails, parse_total_w
from sdk.errors import EnergyError

AGX_ORIN = (
    "11-21-2025 08:49:48 RAM 13983/62780MB (lfb 424x4MB) SWAP 126/31390MB (cached 0MB) "
    "CPU [90%@2201,100%@2201,100%@2201] EMC_FREQ 1%@2133 GR3D_FREQ 14%@[407,407] VIC_FREQ 115 "
    "NVDLA0_FREQ @1600 APE 174 CV0@73.625C CPU@77.281C Tboard@62C VDD_GPU_SOC 3150mW/2971mW "
    "VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW VDDQ_VDD2_1V8AO 1091mW/1091mW"
)
ORIN_NANO = (
    "04-27-2026 14:59:43 RAM 775/7620MB (lfb 3x4MB) SWAP 0/3810MB (cached 0MB) "
    "CPU [0%@729,0%@729] GR3D_FREQ 0% cpu@48.562C soc2@47.531C soc0@47.968C gpu@48.5C tj@49.062C "
    "soc1@49.062C VDD_IN 4761mW/4777mW VDD_CPU_GPU_CV 515mW/502mW VDD_SOC 1428mW/1428mW"
)
NANO_JP4 = (
    "RAM 1923/3964MB (lfb 2x2MB) SWAP 191/1982MB (cached 6MB) IRAM 0/252kB(lfb 252kB) "
    "CPU [5%@1224,5%@1224] EMC_FREQ 0%@1600 GR3D_FREQ 0%@76 APE 25 PLL@37C CPU@40C PMIC@50C "
    "POM_5V_IN 1750/1628 POM_5V_GPU 0/0 POM_5V_CPU 366/406"
)
LINES = {AGX_ORIN: 3.150 + 14.312 + 4.968, ORIN_NANO: 4.761, NANO_JP4: 1.750}

PMIC = """\
 3V7_WL_SW_A current(0)=0.09368929A
   3V3_SYS_A current(1)=0.08783370A
   1V8_SYS_A current(2)=0.18054710A
  DDR_VDD2_A current(3)=0.22543980A
  DDR_VDDQ_A current(4)=0.06666720A
   1V1_SYS_A current(5)=0.17566740A
    0V8_SW_A current(6)=0.37670900A
  VDD_CORE_A current(7)=6.22421000A
   3V3_DAC_A current(17)=0.00006105A
   3V3_ADC_A current(18)=0.00036630A
   0V8_AON_A current(16)=0.00305250A
      HDMI_A current(22)=0.02417580A
 3V7_WL_SW_V volt(8)=3.69977600V
   3V3_SYS_V volt(9)=3.31003300V
   1V8_SYS_V volt(10)=1.80512600V
  DDR_VDD2_V volt(11)=1.10476100V
  DDR_VDDQ_V volt(12)=0.60146460V
   1V1_SYS_V volt(13)=1.11025500V
    0V8_SW_V volt(14)=0.80146440V
  VDD_CORE_V volt(15)=0.86173300V
   3V3_DAC_V volt(20)=3.31318300V
   3V3_ADC_V volt(21)=3.30677300V
   0V8_AON_V volt(19)=0.80029220V
      HDMI_V volt(23)=5.08664000V
     EXT5V_V volt(24)=5.09066000V
      BATT_V volt(25)=0.00000000V
"""
# By hand: the sum over the twelve rails of amperes times volts.
PMIC_W = 7.239819


@pytest.mark.parametrize(("line", "watts"), LINES.items(), ids=["agx orin", "orin nano", "nano"])
def test_recorded_tegrastats_lines(line: str, watts: float) -> None:
    assert parse_total_w(line) == pytest.approx(watts)


def test_tegrastats_rails_are_the_first_numbers() -> None:
    assert parse_rails(AGX_ORIN) == {
        "VDD_GPU_SOC": 3150,
        "VDD_CPU_CV": 14312,
        "VIN_SYS_5V0": 4968,
        "VDDQ_VDD2_1V8AO": 1091,
    }
    assert parse_rails(NANO_JP4) == {"POM_5V_IN": 1750, "POM_5V_GPU": 0, "POM_5V_CPU": 366}


@given(st.sampled_from(list(LINES)), st.integers(0, 700))
def test_truncated_tegrastats_lines_give_the_value_or_none(line: str, length: int) -> None:
    assert parse_total_w(line[:length]) in (None, pytest.approx(LINES[line]))


@given(st.sampled_from(list(LINES)), st.integers(0, 700), st.characters(exclude_categories=["N"]))
def test_corrupted_tegrastats_lines_give_the_value_or_none(line: str, at: int, other: str) -> None:
    at %= len(line)
    if line[at].isdigit() and line[at - 1 : at].isdigit():
        return  # "4761" turned into "4 61" is four digits that no parser can miss
    damaged = line[:at] + other + line[at + 1 :]
    assert parse_total_w(damaged) in (None, pytest.approx(LINES[line]))


@given(st.sampled_from(list(LINES)), st.sampled_from(list(LINES)), st.integers(0, 700))
def test_torn_and_mixed_tegrastats_lines_give_no_wrong_value(a: str, b: str, at: int) -> None:
    mixed = a[:at] + b
    assert parse_total_w(mixed) in (None, pytest.approx(LINES[a]), pytest.approx(LINES[b]))


@given(st.text(max_size=300))
def test_any_text_is_survived(text: str) -> None:
    assert parse_total_w(text) is None
    assert rails_power_w(text) is None


def test_tegrastats_runs_and_ends(tmp_path: Path) -> None:
    program = tmp_path / "tegrastats"
    program.write_text(f"#!/bin/sh\nwhile true; do echo '{ORIN_NANO}'; sleep 0.05; done\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    meter = TegrastatsMeter(command=[str(program)])
    availability = available(meter)
    assert availability.ok, availability.reason
    assert availability.value == pytest.approx(4.761)
    with pytest.raises(MeterNotFoundError):
        TegrastatsMeter(command=[str(tmp_path / "missing")]).open()


def test_a_tegrastats_that_ends_is_a_meter_that_went_away(tmp_path: Path) -> None:
    availability = available(TegrastatsMeter(command=["false"]))
    assert not availability.ok
    assert "ended" in availability.reason


def test_recorded_pmic_text() -> None:
    rails = parse_pmic(PMIC)
    assert len(rails) == 12
    assert rails["VDD_CORE"] == (6.22421, 0.861733)  # current(7) belongs to volt(15)
    assert rails_power_w(PMIC) == pytest.approx(PMIC_W, abs=1e-4)
    assert rails_power_w(PMIC) == pytest.approx(sum(a * v for a, v in rails.values()))


@given(st.integers(0, len(PMIC)))
def test_truncated_pmic_text_gives_the_value_or_none(length: int) -> None:
    assert rails_power_w(PMIC[:length]) in (None, pytest.approx(PMIC_W, abs=1e-4))


@given(st.integers(0, len(PMIC) - 1), st.characters(exclude_categories=["N", "Z", "C"]))
def test_corrupted_pmic_text_gives_the_value_or_none(at: int, other: str) -> None:
    damaged = PMIC[:at] + other + PMIC[at + 1 :]
    assert rails_power_w(damaged) in (None, pytest.approx(PMIC_W, abs=1e-4))


@given(st.integers(0, 26), st.integers(0, 26))
def test_mixed_pmic_texts_give_the_value_or_none(until: int, start: int) -> None:
    lines = PMIC.splitlines(keepends=True)
    mixed = "".join(lines[:until] + lines[start:])
    assert rails_power_w(mixed) in (None, pytest.approx(PMIC_W, abs=1e-4))


def test_the_mailbox_message_is_laid_out_as_the_firmware_wants() -> None:
    request = command_request("pmic_read_adc")
    assert len(request) == 1024
    assert struct.unpack_from("<5I", request) == (1024, 0, 0x00030080, 1000, 0)
    assert request[24:38] == b"pmic_read_adc\0"
    answer = bytearray(request)
    answer[4:8] = struct.pack("<I", 0x80000000)
    text = PMIC.strip().replace("\n", "\0").encode() + b"\0\0"
    answer[24 : 24 + len(text)] = text
    assert rails_power_w(parse_answer(bytes(answer))) == pytest.approx(PMIC_W, abs=1e-4)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        bytes(1024),
        struct.pack("<5I", 1024, 0x80000001, 0x00030080, 1000, 0) + bytes(1004),
        struct.pack("<5I", 1024, 0x80000000, 0x00030080, 1000, 0) + b"\0" * 4 + b"error_msg=1\0\0",
    ],
    ids=["empty", "not answered", "failed", "unknown command"],
)
def test_a_mailbox_that_refuses_is_an_error(answer: bytes) -> None:
    with pytest.raises(EnergyError, match="mailbox"):
        parse_answer(answer)


def vcgencmd(folder: Path, answer: str) -> str:
    program = folder / "vcgencmd"
    (folder / "answer.txt").write_text(answer)
    program.write_text(f"#!/bin/sh\ncat {folder}/answer.txt\n")
    program.chmod(0o755)
    return str(program)


def test_the_pi_5_falls_back_to_vcgencmd(tmp_path: Path) -> None:
    meter = Pi5Meter(mailbox=tmp_path / "none", vcgencmd=vcgencmd(tmp_path, PMIC))
    meter.open()
    (sample,) = meter.read()
    assert sample.value == pytest.approx(PMIC_W, abs=1e-4)
    assert meter.info.scope is Scope.RAILS
    (tmp_path / "answer.txt").write_text(PMIC[:400])
    assert meter.read() == []
    meter.close()


def test_a_pi_5_without_its_rails_is_not_available(tmp_path: Path) -> None:
    meter = Pi5Meter(mailbox=tmp_path / "none", vcgencmd=vcgencmd(tmp_path, "error=1"))
    availability = available(meter)
    assert not availability.ok
    assert "lacks rails" in availability.reason


def test_the_pi_5_s_input_is_labelled_as_an_estimate() -> None:
    info = Pi5Meter(estimate_input=True).info
    assert info.estimated
    assert info.calibration is not None
    assert info.scope is Scope.DC_INPUT


@pytest.mark.parametrize(
    ("text", "flags", "slowed"),
    [
        ("throttled=0x0\n", 0, False),
        ("throttled=0x50005\n", 0x50005, True),
        ("throttled=0x50000", 0x50000, False),
        ("throttled=", None, False),
        ("", None, False),
    ],
)
def test_throttle_flags(text: str, flags: int | None, slowed: bool) -> None:
    assert parse_throttled(text) == flags
    assert BoardState(throttled=flags).slowed is slowed


def test_the_board_s_state_is_read_from_files(tmp_path: Path) -> None:
    for path, text in {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano\0",
        "sys/class/thermal/thermal_zone0/temp": "48562\n",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil\n",
    }.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True)
        file.write_text(text)
    assert read_board(tmp_path) == BoardState(
        model="NVIDIA Jetson Orin Nano", governor="schedutil", temperature_c=48.562
    )
    assert read_board(tmp_path / "nothing") == BoardState()
