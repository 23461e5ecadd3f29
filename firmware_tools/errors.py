"""The leaves of `sdk.errors.FirmwareError`: which part of putting software on a board failed.

    FirmwareError
    ├── KeysError       a key store that is missing, exists already, or has no such device
    ├── BundleError     a bundle that could not be built
    ├── RefusedError    a bundle, release or command that must not be installed, and why
    ├── SlotError       the board's slots do not allow what was asked
    ├── FlashError      an image, card, console or host that could not be written
    └── UpdateError     an update over MQTT that did not reach its end

Knows nothing about how any of them is shown.
"""

from __future__ import annotations

from sdk.errors import FirmwareError

__all__ = [
    "BundleError",
    "FlashError",
    "KeysError",
    "RefusedError",
    "SlotError",
    "UpdateError",
]


class KeysError(FirmwareError):
    """A key store is missing, exists already, or lacks what was asked for."""


class BundleError(FirmwareError):
    """A bundle could not be built."""


class RefusedError(FirmwareError):
    """A bundle, release or command must not be installed; `reason` is one stable word.

    Reasons: unsigned, key, tampered, format, path, extra, missing, type, double, size, board,
    python, older, expired, absent.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"refused ({reason}): {message}")
        self.reason = reason


class SlotError(FirmwareError):
    """The board's slots do not allow what was asked."""


class FlashError(FirmwareError):
    """An image, card, console or host could not be written."""


class UpdateError(FirmwareError):
    """An update over MQTT did not reach its end."""
