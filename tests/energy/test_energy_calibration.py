"""Calibration: a fit, how sure it is, and its use."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from energy_recordings import recorded

from sdk.energy import (
    EnergyMonitor,
    open_meter,
)
from sdk.energy.board import BoardState
from sdk.energy.calibration import Calibration, calibration_path, fit, load, save
from sdk.energy.interface import Scope
from sdk.errors import EnergyError


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
