"""Meters that are files: constructed trees of /sys and /proc, and a constructed NVML."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sdk.energy.interface import (
    Kind,
    MeterInfo,
    MeterLostError,
    MeterNotFoundError,
    Scope,
    available,
)
from sdk.energy.meters.battery import BatteryMeter, batteries
from sdk.energy.meters.hwmon import HwmonMeter, monitors
from sdk.energy.meters.jetson import JetsonMeter, find_rails, total_rails
from sdk.energy.meters.nvml import NvmlMeter
from sdk.energy.meters.sysfs import read_number
from sdk.errors import EnergyError


def plant(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")
    return folder


def tegra(root: Path) -> None:
    plant(root / "proc/device-tree", compatible="nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0")


def ina3221(root: Path, number: int, rails: list[tuple[str, int, int]], **more: object) -> Path:
    """Plant a chip; rails are (label, millivolts, milliamperes)."""
    folder = plant(root / f"sys/class/hwmon/hwmon{number}", name="ina3221", **more)
    for channel, (label, millivolts, milliamperes) in enumerate(rails, start=1):
        plant(
            folder,
            **{
                f"in{channel}_label": label,
                f"in{channel}_input": millivolts,
                f"curr{channel}_input": milliamperes,
                f"shunt{channel}_resistor": 5000,
                f"in{channel + 3}_input": 4711,  # shunt voltage, not a rail
            },
        )
    plant(folder, in7_label="sum of shunt voltages", in7_input=9999, curr4_input=9999)
    return folder


def read_w(meter: JetsonMeter | HwmonMeter | BatteryMeter) -> float:
    (sample,) = meter.read()
    return sample.value


ORIN_NANO = [("VDD_IN", 5072, 960), ("VDD_CPU_GPU_CV", 5072, 104), ("VDD_SOC", 5072, 280)]


def test_an_orin_nano_s_input_contains_its_rails(tmp_path: Path) -> None:
    tegra(tmp_path)
    ina3221(tmp_path, 3, ORIN_NANO, samples=1, update_interval=7)
    meter = JetsonMeter(root=tmp_path)
    assert available(meter).ok
    meter.open()
    assert meter.info.rails == ("VDD_IN",)
    assert meter.info.scope is Scope.MODULE
    assert meter.info.kind is Kind.INSTANT
    assert meter.info.chip_samples == 1
    assert meter.info.quantum == pytest.approx(0.0406, abs=1e-4)  # 8 mA at 5.072 V
    assert read_w(meter) == pytest.approx(5.072 * 0.960)
    meter.close()


def test_a_chip_that_averages_is_an_averaging_meter(tmp_path: Path) -> None:
    tegra(tmp_path)
    ina3221(tmp_path, 1, ORIN_NANO, samples=64, update_interval=422)
    meter = JetsonMeter(root=tmp_path)
    meter.open()
    assert meter.info.kind is Kind.AVERAGED
    assert meter.info.averaging_s == pytest.approx(0.422)
    meter.close()


def test_an_agx_orin_is_three_rails_and_can_be_four(tmp_path: Path) -> None:
    tegra(tmp_path)
    ina3221(
        tmp_path,
        2,
        [("VDD_GPU_SOC", 19000, 100), ("VDD_CPU_CV", 19000, 200), ("VIN_SYS_5V0", 5000, 900)],
    )
    ina3221(tmp_path, 5, [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 200), ("NC", 0, 0)])
    meter = JetsonMeter(root=tmp_path)
    meter.open()
    assert meter.info.rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    assert meter.info.scope is Scope.RAILS
    assert read_w(meter) == pytest.approx(1.9 + 3.8 + 4.5)
    meter.close()
    chosen = JetsonMeter(root=tmp_path, rails=[*meter.info.rails, "VDDQ_VDD2_1V8AO"])
    chosen.open()
    assert read_w(chosen) == pytest.approx(1.9 + 3.8 + 4.5 + 1.0)
    chosen.close()


def test_jetpack_4_names_its_files_differently(tmp_path: Path) -> None:
    tegra(tmp_path)
    plant(
        tmp_path / "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0",
        rail_name_0="POM_5V_IN",
        in_power0_input=1750,
        rail_name_1="POM_5V_GPU",
        in_power1_input=0,
        rail_name_2="POM_5V_CPU",
        in_power2_input=366,
    )
    meter = JetsonMeter(root=tmp_path)
    meter.open()
    assert meter.info.rails == ("POM_5V_IN",)
    assert read_w(meter) == pytest.approx(1.75)
    meter.close()


def test_an_agx_thor_has_its_input_on_an_ina238(tmp_path: Path) -> None:
    tegra(tmp_path)
    plant(tmp_path / "sys/class/hwmon/hwmon0", name="ina238", power1_input=31_250_000)
    ina3221(tmp_path, 1, [("VDD_GPU", 19000, 100), ("VDD_CPU", 19000, 50)])
    meter = JetsonMeter(root=tmp_path)
    meter.open()
    assert meter.info.rails == ("VIN",)
    assert read_w(meter) == pytest.approx(31.25)
    assert list(monitors(tmp_path)) == []  # it is no meter that somebody attached
    meter.close()


def test_rails_through_the_driver_s_folder_are_the_same_rails(tmp_path: Path) -> None:
    real = ina3221(tmp_path, 4, ORIN_NANO)
    link = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon4"
    link.parent.mkdir(parents=True)
    link.symlink_to(real)
    assert list(find_rails(tmp_path)) == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]


@pytest.mark.parametrize(
    ("labels", "total"),
    [
        (["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"], ("VDD_IN",)),
        (["POM_5V_CPU", "POM_5V_IN", "POM_5V_GPU"], ("POM_5V_IN",)),
        (
            ["SYS5V", "VDDRQ", "CV", "SOC", "CPU", "GPU"],
            ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
        ),
        (["VDD_GPU_SOC", "VDD_CPU_CV"], ()),  # an AGX Orin's line that was cut short
        ([], ()),
    ],
)
def test_totals_count_nothing_twice(labels: list[str], total: tuple[str, ...]) -> None:
    assert total_rails(labels) == total


def test_a_jetson_of_unknown_rails_is_refused_with_their_names(tmp_path: Path) -> None:
    tegra(tmp_path)
    ina3221(tmp_path, 0, [("VDD_NEW", 5000, 100)])
    with pytest.raises(MeterNotFoundError, match="VDD_NEW"):
        JetsonMeter(root=tmp_path).open()
    with pytest.raises(MeterNotFoundError, match="no rail VDD_OLD"):
        JetsonMeter(root=tmp_path, rails=["VDD_OLD"]).open()


def test_other_boards_are_no_jetson(tmp_path: Path) -> None:
    ina3221(tmp_path, 0, ORIN_NANO)
    with pytest.raises(MeterNotFoundError, match="no Jetson"):
        JetsonMeter(root=tmp_path).open()


# hwmon


def test_an_ina228_s_energy_is_preferred(tmp_path: Path) -> None:
    folder = plant(
        tmp_path / "sys/class/hwmon/hwmon7",
        name="ina228",
        energy1_input=1_000_000,
        power1_input=3_000_000,
        shunt_resistor=10000,
    )
    assert list(monitors(tmp_path)) == [folder]
    meter = HwmonMeter(folder=folder)
    meter.open()
    assert meter.info.kind is Kind.COUNTER
    first = read_w(meter)
    (folder / "energy1_input").write_text("1500000\n")
    assert read_w(meter) - first == pytest.approx(0.5)
    meter.close()


def test_an_ina226_gives_power_in_its_own_steps(tmp_path: Path) -> None:
    folder = plant(
        tmp_path / "hwmon0",
        name="ina226",
        power1_input=4_812_500,
        in1_input=5020,
        curr1_input=958,
        shunt_resistor=10000,
        update_interval=2,
    )
    device = plant(tmp_path / "bus/1-0040")
    (folder / "device").symlink_to(device)
    meter = HwmonMeter(folder=folder)
    meter.open()
    assert meter.info.label == "ina226 1-0040"
    assert meter.info.kind is Kind.INSTANT
    assert meter.info.quantum == pytest.approx(0.00625)
    assert read_w(meter) == pytest.approx(4.8125)
    meter.close()


def test_a_power_z_multiplies_and_survives_a_late_answer(tmp_path: Path) -> None:
    folder = plant(
        tmp_path / "hwmon0", name="powerz", in0_input=5021, in1_input=1650, curr1_input=-958
    )
    meter = HwmonMeter(folder=folder)
    assert available(meter).ok
    meter.open()
    assert meter.info.scope is Scope.USB_C
    assert read_w(meter) == pytest.approx(5.021 * 0.958)  # the sign is the plug's
    (folder / "curr1_input").write_text("")
    assert [meter.read() for _ in range(4)] == [[]] * 4
    with pytest.raises(MeterLostError, match="curr1_input"):
        meter.read()
    meter.close()


def test_other_chips_are_left_alone(tmp_path: Path) -> None:
    folder = plant(tmp_path / "sys/class/hwmon/hwmon0", name="cpu_thermal", temp1_input=50000)
    assert list(monitors(tmp_path)) == []
    with pytest.raises(MeterNotFoundError, match="no INA2xx"):
        HwmonMeter(folder=folder).open()


# batteries


def battery(root: Path, name: str = "BAT0", **files: object) -> Path:
    return plant(
        root / "sys/class/power_supply" / name,
        **{"type": "Battery", "status": "Discharging", **files},
    )


@pytest.mark.parametrize(
    "files",
    [{"power_now": "7350000"}, {"current_now": "-1470000", "voltage_now": "5000000"}],
    ids=["power", "negative current"],
)
def test_a_battery_that_is_discharged(tmp_path: Path, files: dict[str, str]) -> None:
    battery(tmp_path, **files)
    meter = BatteryMeter(name="BAT0", root=tmp_path)
    meter.open()
    assert read_w(meter) == pytest.approx(7.35)
    meter.close()


def test_a_battery_that_is_charged_measures_nothing(tmp_path: Path) -> None:
    folder = battery(tmp_path, power_now=7_350_000)
    meter = BatteryMeter(name="BAT0", root=tmp_path)
    meter.open()
    (folder / "status").write_text("Charging\n")
    with pytest.raises(MeterLostError, match="Charging"):
        meter.read()
    meter.close()
    with pytest.raises(MeterNotFoundError, match="unplug the charger"):
        meter.open()


def test_usb_c_ports_state_what_was_negotiated_and_are_refused(tmp_path: Path) -> None:
    name = "ucsi-source-psy-USBC000:001"
    battery(tmp_path, name, type="USB", current_now=3_000_000, voltage_now=5_000_000)
    battery(tmp_path, "hid-mouse", scope="Device", power_now=1)
    assert list(batteries(tmp_path)) == []
    availability = available(BatteryMeter(name=name, root=tmp_path))
    assert not availability.ok
    assert "negotiated" in availability.reason


def test_numbers_with_a_unit_behind_them(tmp_path: Path) -> None:
    plant(tmp_path, limit="32760 ma", words="none")
    assert read_number(tmp_path / "limit") == 32760
    assert read_number(tmp_path / "words") is None
    assert read_number(tmp_path / "missing") is None


# NVML: the real calling convention against a library of our own

NVML_C = """
static unsigned long long energy = 5000000;
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = &energy; return index ? 6 : 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    if (device != &energy) return 2;
    *millijoules = energy; energy += STEP; return RESULT;
}
"""


def nvml(folder: Path, *, step: int = 700, result: int = 0) -> str:
    source, library = folder / "nvml.c", folder / f"libnvml{step}{result}.so"
    source.write_text(NVML_C.replace("STEP", str(step)).replace("RESULT", str(result)))
    command = ["cc", "-shared", "-fPIC", "-o", str(library), str(source)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no C compiler")
    return str(library)


def test_nvml_counts_millijoules(tmp_path: Path) -> None:
    meter = NvmlMeter(library=nvml(tmp_path))
    assert available(meter).ok
    meter.open()
    (first,), (second,) = meter.read(), meter.read()
    assert second.value - first.value == pytest.approx(0.7)
    assert second.lost == 0
    meter.close()
    meter.close()


def test_nvml_on_a_jetson_is_not_available(tmp_path: Path) -> None:
    availability = available(NvmlMeter(library=nvml(tmp_path, result=3)))
    assert not availability.ok
    assert "not supported" in availability.reason


def test_nvml_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MeterNotFoundError, match="no NVIDIA driver"):
        NvmlMeter(library=str(tmp_path / "missing.so")).open()
    with pytest.raises(MeterNotFoundError, match="find GPU 1"):
        NvmlMeter(index=1, library=nvml(tmp_path)).open()


@pytest.mark.parametrize(
    "wrong", [{"rate_hz": 0.0}, {"gain_rel": -0.1}, {"kind": Kind.AVERAGED}, {"quantum": 1e999}]
)
def test_meters_that_describe_themselves_wrongly_are_refused(wrong: dict[str, object]) -> None:
    usual = {
        "driver": "x",
        "label": "x",
        "kind": Kind.INSTANT,
        "scope": Scope.NONE,
        "rate_hz": 1.0,
    }
    with pytest.raises(EnergyError, match="describe meter x"):
        MeterInfo(**{**usual, **wrong})  # type: ignore[arg-type]
