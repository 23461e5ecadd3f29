"""What the energy sampler itself costs, in CPU time of this process.

    python benchmarks/energy_sampler.py [--seconds 10] [--json]

Reads meters of every kind at their default rates, with and without windows being asked for, and
prints the share of one core. CPU time, not wall time, so that a busy machine does not matter.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import pty
import statistics
import tempfile
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdk.energy import EnergyMeter, EnergyMonitor
from sdk.energy.meters.hwmon import HwmonMeter
from sdk.energy.meters.jetson import JetsonMeter
from sdk.energy.meters.line import LineMeter, sealed
from sdk.energy.meters.rapl import RaplMeter


def _plant(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def _jetson(root: Path) -> EnergyMeter:
    chip = "sys/class/hwmon/hwmon1/"
    files = {"proc/device-tree/compatible": "nvidia,tegra234", chip + "name": "ina3221"}
    for channel, rail in enumerate(("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), start=1):
        files[chip + f"in{channel}_label"] = rail
        files[chip + f"in{channel}_input"] = "5072"
        files[chip + f"curr{channel}_input"] = "960"
    _plant(root, files)
    return JetsonMeter(root=root)


def _hwmon(root: Path) -> EnergyMeter:
    folder = root / "sys/class/hwmon/hwmon2"
    _plant(folder, {"name": "ina226", "power1_input": "4800000", "shunt_resistor": "10000"})
    return HwmonMeter(folder=folder)


def _rapl(root: Path) -> EnergyMeter:
    zone = "sys/class/powercap/intel-rapl:0/"
    _plant(
        root,
        {
            zone + "name": "package-0",
            zone + "energy_uj": "5000000",
            zone + "max_energy_range_uj": "262143328850",
        },
    )
    return RaplMeter(root=root)


def _line(_root: Path) -> EnergyMeter:
    """Return a meter at 100 lines a second; what sends them runs in a process of its own."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    if os.fork() == 0:
        number, due_s = 0, time.monotonic()
        while os.getppid() != 1 and number < 100_000:
            number += 1
            fields = f"E1,{number},{10_000 * number},5000,960000,{48_000 * number},0,0"
            try:
                os.write(master, sealed(fields))
            except OSError:
                break
            due_s += 0.01
            time.sleep(max(due_s - time.monotonic(), 0.0))
        os._exit(0)
    return LineMeter(port=os.ttyname(slave))


METERS: dict[str, Callable[[Path], EnergyMeter]] = {
    "jetson": _jetson,
    "hwmon": _hwmon,
    "rapl": _rapl,
    "line": _line,
}


def measure_share(meter: EnergyMeter, seconds: float) -> tuple[float, float]:
    """Return the process's and the sampling thread's share of a core, start-up left out."""
    with EnergyMonitor(meter=meter) as monitor:
        time.sleep(0.5)
        process_s, wall_s = time.process_time(), time.monotonic()
        threading.Event().wait(seconds)
        share = (time.process_time() - process_s) / (time.monotonic() - wall_s)
        window = monitor.measure(wall_s, time.monotonic())
    assert window.sampler_cpu is not None
    return share, window.sampler_cpu


def main() -> None:
    """Print the share of each meter: median of three runs, and their range."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, make in METERS.items():
        with tempfile.TemporaryDirectory() as folder:
            meter = make(Path(folder))
            shares = [measure_share(meter, args.seconds) for _ in range(3)]
        process = [share for share, _ in shares]
        rows.append(
            {
                "meter": name,
                "rate_hz": meter.info.rate_hz,
                "process_share": statistics.median(process),
                "process_range": [min(process), max(process)],
                "sampler_share": statistics.median([share for _, share in shares]),
            }
        )
    if args.json:
        print(json.dumps({"machine": platform.processor() or platform.machine(), "rows": rows}))
        return
    print(f"{'meter':8} {'Hz':>6} {'process':>9} {'range':>16} {'sampler':>9}")
    for row in rows:
        low, high = row["process_range"]
        print(
            f"{row['meter']:8} {row['rate_hz']:6g} {row['process_share']:9.3%} "
            f"{low:7.3%}–{high:7.3%} {row['sampler_share']:9.3%}"
        )


if __name__ == "__main__":
    main()
