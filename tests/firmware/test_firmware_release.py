"""Releases: what python-tuf refuses on a board, through our fetcher and with our clock."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from firmware_broker import NOW
from firmware_bundles import make_bundle
from tuf.api.metadata import Timestamp

from firmware_tools.bundle.release import Release
from firmware_tools.bundle.trust import BoardClock, ReleaseTrust, fetch_from_folder
from firmware_tools.errors import RefusedError, UpdateError
from firmware_tools.keys import KeyStore

ONE, TWO = "pi5-py3.11-1.0.0.bundle", "pi5-py3.11-2.0.0.bundle"


class Shop:
    """A release folder and a board that trusts its first root."""

    def __init__(self, folder: Path, keys: KeyStore) -> None:
        self.folder, self.keys = folder, keys
        self.now = NOW
        self.bundles = {
            1: make_bundle(folder, keys, version="1.0.0", release=1),
            2: make_bundle(folder, keys, version="2.0.0", release=2),
        }
        self.release = self.open()
        self.root = self.release.first_root()

    def open(self, now: datetime = NOW) -> Release:
        return Release(folder=self.folder / "release", keys=self.keys, now=now)

    def board(self, name: str = "board") -> ReleaseTrust:
        clock = BoardClock(path=self.folder / name / "clock", system=lambda: self.now)
        return ReleaseTrust(root=self.root, state=self.folder / name / "tuf", clock=clock)

    def find(self, name: str, board: str = "board") -> str:
        return self.board(board).find(name, fetch_from_folder(self.folder / "release")).version

    def refuse(self, name: str, board: str = "board") -> str:
        with pytest.raises(RefusedError) as caught:
            self.find(name, board)
        return caught.value.reason


@pytest.fixture
def shop(tmp_path: Path, key_store: KeyStore) -> Shop:
    return Shop(tmp_path, key_store)


def test_a_release_is_found_and_its_bundle_verified(shop: Shop, tmp_path: Path) -> None:
    assert shop.release.add([shop.bundles[1]]) == [ONE]
    target = shop.board().find(ONE, fetch_from_folder(shop.folder / "release"))
    assert (target.board, target.python, target.release) == ("pi5", "3.11", 1)
    bundle = shop.folder / "release" / "targets" / ONE
    target.verify(bundle)
    bundle.write_bytes(bundle.read_bytes()[:-1] + b"\1")
    with pytest.raises(RefusedError, match="tampered"):
        target.verify(bundle)
    assert shop.refuse("nothing") == "absent"


def test_an_unsigned_bundle_is_not_released(shop: Shop, tmp_path: Path) -> None:
    from firmware_bundles import make_recipe

    from firmware_tools.bundle.build import build

    build(make_recipe(tmp_path / "raw"), tmp_path / "raw.bundle")
    with pytest.raises(RefusedError, match="unsigned"):
        shop.release.add([tmp_path / "raw.bundle"])


def test_rollback_of_the_release_is_refused(shop: Shop) -> None:
    shop.release.add([shop.bundles[1]])
    shutil.copytree(shop.folder / "release", shop.folder / "old")
    shop.open().add([shop.bundles[2]])
    assert shop.find(TWO) == "2.0.0"
    shutil.rmtree(shop.folder / "release")
    (shop.folder / "old").rename(shop.folder / "release")
    assert shop.refuse(ONE) == "older"


def test_a_fast_forward_by_whoever_held_the_online_key_ends_with_new_keys(
    shop: Shop, tmp_path: Path
) -> None:
    shop.release.add([shop.bundles[1]])
    shutil.copytree(shop.folder / "release", shop.folder / "honest")
    thief = shop.open()
    timestamp = thief._latest(Timestamp)
    timestamp.version = 1_000_000
    thief._publish(timestamp)
    assert shop.find(ONE) == "1.0.0"  # nothing false in it but its number
    shutil.rmtree(shop.folder / "release")
    (shop.folder / "honest").rename(shop.folder / "release")
    shop.open().add([shop.bundles[2]])
    assert shop.refuse(TWO) == "older"
    shop.open().rotate(KeyStore.create(tmp_path / "fresh", ["x"], now=NOW))
    assert shop.find(TWO) == "2.0.0"


def test_freeze_is_refused_even_when_the_clock_falls_back_to_1970(shop: Shop) -> None:
    shop.release.add([shop.bundles[1]])
    assert shop.find(ONE) == "1.0.0"
    shop.now = NOW + timedelta(days=91)
    assert shop.refuse(ONE) == "expired"
    shop.open(shop.now).refresh()
    assert shop.find(ONE) == "1.0.0"
    shop.now += timedelta(days=30)
    assert shop.find(ONE) == "1.0.0"  # seen day 121
    shop.open(NOW - timedelta(days=1)).refresh()  # a timestamp that ended on day 89
    shop.now = datetime.fromtimestamp(7, timezone.utc)
    assert shop.board().clock.now() == NOW + timedelta(days=121)
    assert shop.refuse(ONE) == "expired"


def test_a_board_that_never_had_a_clock_still_takes_an_update(shop: Shop) -> None:
    shop.release.add([shop.bundles[1]])
    shop.now = datetime.fromtimestamp(7, timezone.utc)
    assert shop.find(ONE) == "1.0.0"


def test_mix_and_match_is_refused(shop: Shop) -> None:
    shop.release.add([shop.bundles[1]])
    metadata = shop.folder / "release" / "metadata"
    old = (metadata / "1.targets.json").read_bytes()
    shop.open().add([shop.bundles[2]])
    (metadata / "2.targets.json").write_bytes(old)
    assert shop.refuse(TWO) == "older"


def test_tampered_metadata_is_refused(shop: Shop) -> None:
    shop.release.add([shop.bundles[1]])
    path = shop.folder / "release" / "metadata" / "1.targets.json"
    found = json.loads(path.read_bytes())
    found["signed"]["targets"][ONE]["length"] += 1
    path.write_text(json.dumps(found))
    assert shop.refuse(ONE) == "key"


def test_metadata_without_end_is_refused(shop: Shop) -> None:
    shop.release.add([shop.bundles[1]])
    taken = 0

    def endless(path: str) -> Iterator[bytes]:
        nonlocal taken
        if path.endswith("root.json"):
            raise KeyError(path)
        while True:
            taken += 1 << 16
            yield bytes(1 << 16)

    with pytest.raises(RefusedError) as caught:
        shop.board().find(ONE, endless)
    assert caught.value.reason == "size"
    assert taken < 1 << 20


def test_a_lost_link_is_not_a_refusal(shop: Shop) -> None:
    def lost(path: str) -> Iterator[bytes]:
        raise UpdateError("the broker went away")
        yield b""

    with pytest.raises(UpdateError, match="went away"):
        shop.board().find(ONE, lost)


def test_another_authority_is_refused(shop: Shop, tmp_path: Path) -> None:
    stranger = KeyStore.create(tmp_path / "stranger", ["x"], now=NOW)
    shop.release.add([shop.bundles[1]])
    assert shop.find(ONE) == "1.0.0"
    other = Shop(tmp_path / "other", stranger)
    other.release.add([other.bundles[1]])
    other.open().add([other.bundles[2]])
    shutil.rmtree(shop.folder / "release")
    shutil.copytree(other.folder / "release", shop.folder / "release")
    assert shop.refuse(TWO) == "key"


def test_keys_are_rotated_and_the_old_ones_then_count_for_nothing(
    shop: Shop, tmp_path: Path
) -> None:
    shop.release.add([shop.bundles[1]])
    assert shop.find(ONE) == "1.0.0"
    fresh = KeyStore.create(tmp_path / "fresh", ["x"], now=NOW)
    shop.open().rotate(fresh)
    assert shop.find(ONE) == "1.0.0"
    assert shop.find(ONE, "late board") == "1.0.0"  # from the first root through the second
    shop.open().refresh()  # signed by the old keys
    assert shop.refuse(ONE) == "key"


def test_a_root_signed_by_the_new_key_alone_is_refused(shop: Shop, tmp_path: Path) -> None:
    shop.release.add([shop.bundles[1]])
    fresh = KeyStore.create(tmp_path / "fresh", ["x"], now=NOW)
    other = Release(folder=tmp_path / "other", keys=fresh, now=NOW)
    other.first_root()
    other.rotate(fresh)
    shutil.copy(tmp_path / "other/metadata/2.root.json", shop.folder / "release/metadata")
    assert shop.refuse(ONE) == "key"
