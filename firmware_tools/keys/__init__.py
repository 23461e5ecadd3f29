"""Keys and certificates: the project's own authority, devices, signing keys, revocation."""

from __future__ import annotations

from firmware_tools.keys.signing import SigningKey, VerifyKey
from firmware_tools.keys.store import SIGNING_ROLES, DeviceFiles, KeyStore

__all__ = ["SIGNING_ROLES", "DeviceFiles", "KeyStore", "SigningKey", "VerifyKey"]
