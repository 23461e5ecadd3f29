"""Gain and offset of a meter against a better one: fit, uncertainty, file.

The reference is taken as true: its own gain error passes into the calibrated meter unseen, so name
it. Knows nothing of meters, only of two columns of watts measured over the same intervals.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdk.errors import EnergyError

__all__ = ["Calibration", "calibration_path", "fit", "load", "save"]

SCHEMA = "multispin.energy-calibration/1"
_MIN_POINTS = 20
_MIN_SPREAD = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """True power = gain × read power + offset_w, with the fit's covariance.

    Attributes:
        gain: a, dimensionless.
        offset_w: b, watts.
        var_gain: variance of a.
        var_offset: variance of b, W².
        cov: covariance of a and b, W.
        reference: what it was fitted against.
        scope: where the reference sits (`Scope`), hence what the calibrated figure contains.
        date: ISO date of the fit.
        points: how many pairs of intervals went in.
        residual_w: standard deviation of what the fit leaves.
    """

    gain: float
    offset_w: float
    var_gain: float = 0.0
    var_offset: float = 0.0
    cov: float = 0.0
    reference: str = ""
    scope: str = ""
    date: str = ""
    points: int = 0
    residual_w: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.gain, self.offset_w, self.var_gain, self.var_offset, self.cov)
        if not all(math.isfinite(number) for number in numbers):
            raise EnergyError("calibration: every number must be finite")
        if self.gain <= 0 or self.var_gain < 0 or self.var_offset < 0:
            raise EnergyError("calibration: gain must be above 0 and variances not below 0")
        if self.cov**2 > self.var_gain * self.var_offset * (1 + 1e-9):
            raise EnergyError("calibration: the covariance exceeds what the variances allow")

    def std_w(self, read_w: float) -> float:
        """Return the standard uncertainty that the fit gives a power of `read_w`, in watts."""
        variance = self.var_gain * read_w**2 + 2 * self.cov * read_w + self.var_offset
        return math.sqrt(max(variance, 0.0))


def fit(
    read_w: NDArray[np.float64],
    reference_w: NDArray[np.float64],
    *,
    reference: str,
    scope: str,
    date: str,
) -> Calibration:
    """Fit gain and offset by least squares, with the covariance from the residuals.

    Neighbouring intervals err alike where two meters differ in clock or in averaging; they then say
    less than as many independent ones, which the covariance allows for.

    Args:
        read_w: mean power by the meter to calibrate, one per interval.
        reference_w: mean power by the reference over the same intervals.
        reference, scope, date: kept with the figures.

    Raises:
        EnergyError: with too few intervals, or a load that hardly varied.
    """
    if len(read_w) != len(reference_w) or len(read_w) < _MIN_POINTS:
        raise EnergyError(
            f"calibrate: {len(read_w)} common intervals, {_MIN_POINTS} needed; record longer"
        )
    if np.std(read_w) < _MIN_SPREAD * np.mean(read_w):
        raise EnergyError(
            "calibrate: the load varied by less than 5 %, gain and offset cannot be told apart; "
            "alternate idle and full load while recording"
        )
    columns = np.column_stack((read_w, np.ones_like(read_w)))
    (gain, offset), *_ = np.linalg.lstsq(columns, reference_w, rcond=None)
    residual = reference_w - columns @ np.array([gain, offset])
    variance = float(residual @ residual) / (len(read_w) - 2)
    covariance = _covariance(columns, residual, variance)
    return Calibration(
        gain=float(gain),
        offset_w=float(offset),
        var_gain=float(covariance[0, 0]),
        var_offset=float(covariance[1, 1]),
        cov=float(covariance[0, 1]),
        reference=reference,
        scope=scope,
        date=date,
        points=len(read_w),
        residual_w=math.sqrt(variance),
    )


def _covariance(
    columns: NDArray[np.float64], residual: NDArray[np.float64], variance: float
) -> NDArray[np.float64]:
    """Return the covariance of the fit, [2, 2]: of independent residuals, or of dependent ones.

    The latter after Newey and West (1987), with n^(1/2) lags; whichever leaves the gain less sure.
    """
    inverse = np.linalg.inv(columns.T @ columns)
    scores = columns * residual[:, None]  # [n, 2]
    middle = scores.T @ scores
    lags = math.isqrt(len(residual))
    for lag in range(1, lags + 1):
        shifted = scores[lag:].T @ scores[:-lag]
        middle += (1.0 - lag / (lags + 1.0)) * (shifted + shifted.T)
    independent: NDArray[np.float64] = variance * inverse
    dependent: NDArray[np.float64] = inverse @ middle @ inverse
    return dependent if dependent[0, 0] > independent[0, 0] else independent


def calibration_path(driver: str, label: str) -> Path:
    """Return where a meter's calibration is kept, under the user's configuration."""
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{driver}-{label}").strip("_")
    return Path(home) / "multispin" / "energy" / f"{name}.json"


def save(path: Path, calibration: Calibration) -> None:
    """Write a calibration, replacing an older one whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps({"schema": SCHEMA, **asdict(calibration)}, indent=2) + "\n")
    partial.replace(path)


def load(path: Path) -> Calibration | None:
    """Read a calibration; None where there is none.

    Raises:
        EnergyError: if the file is there and is not a calibration.
    """
    try:
        content = json.loads(path.read_text())
        if content.pop("schema") != SCHEMA:
            raise ValueError("not a calibration of this version")
        return Calibration(**content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise EnergyError(f"load calibration {path}: {error}; calibrate again") from error
