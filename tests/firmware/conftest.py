"""A key store shared by the firmware tests."""

from __future__ import annotations

import os

import pytest
from firmware_broker import NOW

from firmware_tools.keys import KeyStore


@pytest.fixture(autouse=True)
def _spare_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flush nothing: a test's power cut loses what was not written, not what was not flushed."""
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="session")
def key_store(tmp_path_factory: pytest.TempPathFactory) -> KeyStore:
    """One authority for the whole session; devices are issued per test."""
    return KeyStore.create(tmp_path_factory.mktemp("keys"), ["localhost", "127.0.0.1"], now=NOW)
