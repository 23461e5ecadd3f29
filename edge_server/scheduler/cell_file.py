"""Read a cell from JSON, naming the field of whatever is wrong with it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from edge_server.scheduler.cell import Cell, CellError, Floats, VerifyCost, geometric_survival

__all__ = ["parse_cell", "read_cell"]

VERIFY_KEYS = ("fixed_s", "per_request_s", "per_row_s", "per_padded_row_s")
CELL_KEYS = {
    "bandwidth_hz",
    "devices",
    "energy_cap_w",
    "max_draft_length",
    "message_overhead_bits",
    "min_draft_length",
    "min_rate_tokens_per_s",
    "overlap",
    "payload_bits_per_token",
    "verify",
}
DEVICE_KEYS = {
    "acceptance",
    "delay_s",
    "draft_j_per_token",
    "draft_s_per_token",
    "id",
    "spectral_efficiency",
    "survival",
    "tx_j_per_bit",
    "wait_w",
    "weight",
}
DEFAULT_MAX_LENGTH = 25
LONGEST_DRAFT = 256
MOST_DEVICES = 100_000


def read_cell(path: Path) -> Cell:
    """Return the cell of a JSON file.

    Raises:
        CellError: where the file cannot be read, is not JSON, or a field is wrong.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CellError(f"cell file {path}: cannot be read ({error})") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise CellError(f"cell file {path}: not JSON ({error})") from error
    return parse_cell(data)


def parse_cell(data: object) -> Cell:
    """Return the cell that a decoded JSON object describes."""
    cell = checked(data, "cell", CELL_KEYS)
    devices = cell.get("devices")
    if not isinstance(devices, list) or not devices:
        raise CellError("devices: a cell needs a list of at least one device")
    if len(devices) > MOST_DEVICES:
        raise CellError(f"devices: at most {MOST_DEVICES}, got {len(devices)}")
    entries = [checked(entry, f"devices[{k}]", DEVICE_KEYS) for k, entry in enumerate(devices)]
    longest = whole(cell, "max_draft_length", DEFAULT_MAX_LENGTH)
    if longest > LONGEST_DRAFT:
        raise CellError(f"max_draft_length must be at most {LONGEST_DRAFT}, got {longest}")
    overlap = cell.get("overlap", False)
    if not isinstance(overlap, bool):
        raise CellError(f"overlap must be true or false, got {overlap!r}")
    verify = checked(cell.get("verify"), "verify", set(VERIFY_KEYS))
    cap = number(cell, "energy_cap_w") if "energy_cap_w" in cell else None
    return Cell(
        bandwidth_hz=number(cell, "bandwidth_hz", above=True),
        payload_bits=number(cell, "payload_bits_per_token"),
        overhead_bits=number(cell, "message_overhead_bits", default=0.0),
        verify=VerifyCost(**{key: number(verify, key, "verify", 0.0) for key in VERIFY_KEYS}),
        min_length=whole(cell, "min_draft_length", 0),
        max_length=longest,
        overlap=overlap,
        ids=names(entries),
        draft_s=column(entries, "draft_s_per_token"),
        efficiency=column(entries, "spectral_efficiency", above=True),
        weight=column(entries, "weight", default=1.0, above=True),
        delay_s=column(entries, "delay_s", default=0.0),
        draft_j=column(entries, "draft_j_per_token", default=0.0),
        tx_j_per_bit=column(entries, "tx_j_per_bit", default=0.0),
        wait_w=column(entries, "wait_w", default=0.0),
        energy_cap_w=cap,
        min_rate=number(cell, "min_rate_tokens_per_s", default=0.0),
        survival=np.array([survival(entry, k, longest) for k, entry in enumerate(entries)]),
    )


def checked(data: object, where: str, keys: set[str]) -> dict[str, object]:
    """Return a JSON object with none but the given keys."""
    if not isinstance(data, dict):
        raise CellError(f"{where}: must be a JSON object")
    for key in data:
        if key not in keys:
            raise CellError(f"{where}: unknown key {key!r}; known are {', '.join(sorted(keys))}")
    return data


def number(
    data: dict[str, object],
    key: str,
    where: str = "",
    default: float | None = None,
    *,
    above: bool = False,
) -> float:
    """Return a finite number of at least 0, or above it."""
    name = f"{where}.{key}" if where else key
    value = data.get(key, default)
    if value is None:
        raise CellError(f"{name}: missing")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CellError(f"{name} must be a number, got {value!r}")
    try:
        real = float(value)
    except OverflowError:
        real = math.inf
    if not math.isfinite(real) or real < 0.0 or (above and real == 0.0):
        bound = "above 0" if above else "at least 0"
        raise CellError(f"{name} must be a finite number {bound}, got {value!r}")
    return real


def whole(data: dict[str, object], key: str, default: int) -> int:
    """Return a whole number of at least 0."""
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CellError(f"{key} must be a whole number of at least 0, got {value!r}")
    return value


def column(
    entries: list[dict[str, object]],
    key: str,
    *,
    default: float | None = None,
    above: bool = False,
) -> Floats:
    """Return one field of every device."""
    return np.array(
        [
            number(entry, key, f"devices[{k}]", default, above=above)
            for k, entry in enumerate(entries)
        ]
    )


def names(entries: list[dict[str, object]]) -> tuple[str, ...]:
    """Return the devices' ids; one without gets its number."""
    found: dict[str, int] = {}
    for k, entry in enumerate(entries):
        name = entry.get("id", f"d{k}")
        if not isinstance(name, str) or not name:
            raise CellError(f"devices[{k}].id must be a text, got {name!r}")
        if name in found:
            raise CellError(f"devices[{k}].id {name!r} is that of devices[{found[name]}] too")
        found[name] = k
    return tuple(found)


def survival(entry: dict[str, object], k: int, longest: int) -> Floats:
    """Return S(1..longest) of one device, from its acceptance or its own curve."""
    where = f"devices[{k}]"
    if ("acceptance" in entry) == ("survival" in entry):
        raise CellError(f"{where}: give either acceptance or survival")
    if "acceptance" in entry:
        acceptance = number(entry, "acceptance", where)
        if acceptance >= 1.0:
            raise CellError(f"{where}.acceptance must be below 1, got {acceptance}")
        geometric: Floats = geometric_survival(np.array([acceptance]), longest)[0]
        return geometric
    curve = entry["survival"]
    if not isinstance(curve, list):
        raise CellError(f"{where}.survival must be a list of numbers, got {curve!r}")
    values = [number({"survival": value}, "survival", where, above=False) for value in curve]
    if any(later > earlier for earlier, later in zip([1.0, *values], values, strict=False)):
        raise CellError(f"{where}.survival must not rise, nor exceed 1: {curve}")
    padded = np.zeros(longest)  # a curve ends where nothing is known to be accepted
    padded[: len(values)] = values[:longest]
    return padded
