"""A key store, a fleet and a broker shared by the firmware tests."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from firmware_broker import NOW
from firmware_bundles import make_bundle
from firmware_fleet import Fleet, Wire
from firmware_images import make_image
from firmware_ssh import Server

from firmware_tools.bundle.signed import SignedBundle, open_bundle
from firmware_tools.keys import KeyStore
from firmware_tools.seed import Identity, make_seed


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
def bundle_path(tmp_path_factory: pytest.TempPathFactory, key_store: KeyStore) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), key_store)


@pytest.fixture(scope="session")
def bundle(bundle_path: Path, key_store: KeyStore) -> SignedBundle:
    return open_bundle(bundle_path, [key_store.verify_key("bundle")])


@pytest.fixture(scope="session")
def slot(tmp_path_factory: pytest.TempPathFactory, bundle: SignedBundle) -> Path:
    """The bundle's files, as a board has them."""
    folder = tmp_path_factory.mktemp("slots") / "a"
    bundle.verify()
    bundle.unpack(folder)
    return folder


@pytest.fixture(scope="session")
def identity(key_store: KeyStore) -> Identity:
    return Identity(
        files=key_store.issue_device("seeded-1", now=NOW),
        broker_host="localhost",
        broker_port=8883,
        bundle_key=key_store.read("bundle.pub"),
        root=b"{}",
    )


@pytest.fixture(scope="session")
def seed(
    tmp_path_factory: pytest.TempPathFactory, bundle: SignedBundle, identity: Identity
) -> Path:
    """What is flashed: the bundle, for one board."""
    folder = tmp_path_factory.mktemp("seed")
    make_seed(bundle, identity, folder, now=NOW)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("images")
    return {table: make_image(folder / table, table=table) for table in ("dos", "gpt")}
