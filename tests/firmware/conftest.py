"""A key store, a fleet and a broker shared by the firmware tests."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from firmware_broker import NOW
from firmware_bundles import make_bundle, make_device_seed
from firmware_fleet import Fleet, Wire
from firmware_images import make_image
from firmware_ssh import Server

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


@pytest.fixture(scope="session")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory, key_store: KeyStore) -> Fleet:
    return Fleet(tmp_path_factory.mktemp("fleet"), key_store)


@pytest.fixture
def fleet(shared_fleet: Fleet, tmp_path: Path) -> Fleet:
    """The session's release, with boards of the test's own."""
    own = copy.copy(shared_fleet)
    own.folder = tmp_path
    shutil.copytree(shared_fleet.folder / "release", tmp_path / "release")
    return own


@pytest.fixture
def wire(tmp_path: Path, key_store: KeyStore) -> Iterator[Wire]:
    wire = Wire(tmp_path, key_store)
    wire.start()
    yield wire
    wire.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    if not Path("/usr/sbin/sshd").exists() or os.getuid():
        pytest.skip("needs root and openssh-server (apt: openssh-server)")
    with Server(tmp_path) as server:
        yield server


@pytest.fixture(scope="session")
def ssh_bundle(tmp_path_factory: pytest.TempPathFactory, key_store: KeyStore) -> Path:
    return make_bundle(tmp_path_factory.mktemp("ssh"), key_store)


@pytest.fixture(scope="session")
def ssh_seed(
    ssh_bundle: Path, tmp_path_factory: pytest.TempPathFactory, key_store: KeyStore
) -> Path:
    folder = tmp_path_factory.mktemp("ssh-seed")
    return make_device_seed(folder, key_store, ssh_bundle, "ssh-1")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("images")
    return {table: make_image(folder / table, table=table) for table in ("dos", "gpt")}
