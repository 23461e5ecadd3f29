"""Topic names: built and taken apart here and nowhere else (wire rules W-TOPIC-*)."""

from __future__ import annotations

import re
from typing import Final

from sdk.errors import ConfigError

__all__ = ["UP_FILTER", "check_device_id", "down", "parse_down", "parse_up", "status", "up"]

_ROOT: Final = "sd/1"
_DEVICE_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_LEAF: Final = re.compile(r"[a-z]{1,16}")

UP_FILTER: Final = f"{_ROOT}/+/up/#"
"""What the edge server subscribes to."""


def check_device_id(device: str) -> str:
    """Return `device` if it is a device id, so that no topic can be injected through it.

    Raises:
        ConfigError: unless it is 1 to 32 of a–z, 0–9, '.', '_', '-', and begins with a–z or 0–9.
    """
    if not _DEVICE_ID.fullmatch(device):
        raise ConfigError(
            f"device id {device!r}: use 1 to 32 of a-z, 0-9, '.', '_', '-', first a letter or digit"
        )
    return device


def up(device: str, leaf: str) -> str:
    """Return the topic on which `device` sends `leaf` (open, draft, report, energy, probe, …)."""
    return f"{_ROOT}/{check_device_id(device)}/up/{_check_leaf(leaf)}"


def down(device: str, leaf: str) -> str:
    """Return the topic on which `device` receives `leaf` (verdict, control, …)."""
    return f"{_ROOT}/{check_device_id(device)}/down/{_check_leaf(leaf)}"


def status(device: str) -> str:
    """Return the topic of the device's retained status, which is also its will."""
    return f"{_ROOT}/{check_device_id(device)}/status"


def parse_up(topic: str) -> tuple[str, str] | None:
    """Return (device, leaf) of an uplink topic, or None for any other."""
    return _parse(topic, "up")


def parse_down(topic: str) -> tuple[str, str] | None:
    """Return (device, leaf) of a downlink topic, or None for any other."""
    return _parse(topic, "down")


def _parse(topic: str, way: str) -> tuple[str, str] | None:
    parts = topic.split("/")
    if len(parts) != 5 or "/".join(parts[:2]) != _ROOT or parts[3] != way:
        return None
    device, leaf = parts[2], parts[4]
    return (device, leaf) if _DEVICE_ID.fullmatch(device) and _LEAF.fullmatch(leaf) else None


def _check_leaf(leaf: str) -> str:
    if not _LEAF.fullmatch(leaf):
        raise ValueError(f"a topic leaf is 1 to 16 letters a-z, got {leaf!r}")
    return leaf
