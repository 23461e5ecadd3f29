"""Every attack on a board over MQTT: refused with its reason, and nothing on the board changes.

Bundles that verify nothing by themselves are in test_firmware_bundle_refused.py, releases in
test_firmware_release.py; here the whole way is taken, from the command to the slots.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from firmware_broker import NOW
from firmware_bundles import ATTACKS, forge, honest_members, make_bundle
from firmware_fleet import TO_TWO, Fleet, Wire, memory_agent, obey, wish
from tuf.api.metadata import Targets

from firmware_tools.board.install import Host
from firmware_tools.board.slots import Slots
from firmware_tools.bundle.manifest import Manifest
from firmware_tools.bundle.release import Release
from firmware_tools.bundle.signed import open_bundle
from firmware_tools.keys import KeyStore
from firmware_tools.ota.agent import Agent
from firmware_tools.ota.messages import Command
from sdk.errors import ConnectError
from sdk.transport.interface import Transport

TO_FIVE = Command(id="w5", version="5.0.0", rate_bytes_s=1 << 30)
RELEASE_2 = "release/targets/pi5-py3.11-2.0.0.bundle"


@pytest.fixture(scope="session")
def fifth(tmp_path_factory: pytest.TempPathFactory, key_store: KeyStore) -> tuple[Path, Path]:
    """A good bundle of version 5.0.0, and its files."""
    folder = tmp_path_factory.mktemp("fifth")
    path = make_bundle(folder, key_store, version="5.0.0", release=5)
    bundle = open_bundle(path, [key_store.verify_key("bundle")])
    bundle.unpack(folder / "slot")
    return path, folder / "slot"


class Careless(Release):
    """Signs release metadata for whatever it is given: somebody has the release's keys."""

    def add_unseen(self, path: Path, manifest: Manifest) -> None:
        targets = self._latest(Targets)
        self._add_target(targets, path, manifest)
        self._publish(targets)
        self.refresh()


def release_unseen(fleet: Fleet, path: Path, manifest: Manifest) -> None:
    release = Careless(folder=fleet.folder / "release", keys=fleet.keys, now=NOW)
    release.add_unseen(path, manifest)


def manifest_of(path: Path, fleet: Fleet) -> Manifest:
    return open_bundle(path, [fleet.keys.verify_key("bundle")]).manifest


def every_file(slots: Slots) -> dict[str, bytes]:
    """Return what runs and what is believed; what arrived and what was heard lies elsewhere."""
    found = [*slots.paths.home.rglob("*"), *slots.paths.config.rglob("*")]
    links = {str(path): str(path.readlink()).encode() for path in found if path.is_symlink()}
    return links | {str(path): path.read_bytes() for path in found if path.is_file()}


@contextmanager
def under_attack(fleet: Fleet) -> Iterator[tuple[Agent, Transport, Slots]]:
    """Yield a board, and check afterwards that nothing on it changed."""
    with memory_agent(fleet, "mem-3") as (agent, boss, slots):
        slots.paths.config.mkdir(parents=True)
        (slots.paths.config / "multispin.toml").write_text("its own")
        yield agent, boss, slots
        assert not agent.restart_wanted


def refused(
    fleet: Fleet, board: tuple[Agent, Transport, Slots], command: Command, reason: str
) -> None:
    agent, boss, slots = board
    before = every_file(slots)
    report = obey(fleet, agent, boss, command)
    assert report.status == "failed"
    assert reason in report.reason
    assert every_file(slots) == before


def to_the_newest(fleet: Fleet, agent: Agent, boss: Transport, slots: Slots) -> None:
    obey(fleet, agent, boss, TO_TWO)
    slots.good()
    agent.restart_wanted = False


def tamper_metadata(fleet: Fleet) -> None:
    path = fleet.folder / "release/metadata/1.targets.json"
    found = json.loads(path.read_bytes())
    found["signed"]["targets"][Path(RELEASE_2).name]["length"] += 1
    path.write_text(json.dumps(found))


def tamper_bundle(fleet: Fleet) -> None:
    content = (fleet.folder / RELEASE_2).read_bytes()
    (fleet.folder / RELEASE_2).write_bytes(content[:-3000] + b"?" + content[-2999:])


def endless_metadata(fleet: Fleet) -> None:
    (fleet.folder / "release/metadata/timestamp.json").write_bytes(bytes(20 << 20))


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (tamper_bundle, "(tampered)"),
        (tamper_metadata, "(key)"),
        (endless_metadata, "too long"),
        (lambda fleet: (fleet.folder / RELEASE_2).unlink(), "no longer offered"),
    ],
    ids=["tampered bundle", "tampered metadata", "endless metadata", "bundle withheld"],
)
def test_a_release_that_was_changed_on_its_way(
    fleet: Fleet, attack: Callable[[Fleet], object], reason: str
) -> None:
    attack(fleet)
    with under_attack(fleet) as board:
        refused(fleet, board, TO_TWO, reason)


def test_an_older_counter(fleet: Fleet) -> None:
    with under_attack(fleet) as (agent, boss, slots):
        to_the_newest(fleet, agent, boss, slots)
        refused(
            fleet, (agent, boss, slots), dataclasses.replace(TO_FIVE, version="1.0.0"), "(older)"
        )


def test_a_version_that_was_never_released(fleet: Fleet) -> None:
    with under_attack(fleet) as board:
        refused(fleet, board, TO_FIVE, "(absent)")


def test_another_key(fleet: Fleet, tmp_path: Path) -> None:
    stranger = KeyStore.create(tmp_path / "stranger", ["x"], now=NOW)
    path = make_bundle(tmp_path / "inputs", stranger, version="5.0.0", release=5)
    theirs = open_bundle(path, [stranger.verify_key("bundle")]).manifest
    release_unseen(fleet, path, theirs)
    with under_attack(fleet) as board:
        refused(fleet, board, TO_FIVE, "(key)")


def test_an_expired_release(fleet: Fleet) -> None:
    with under_attack(fleet) as (agent, boss, slots):
        slots.paths.data.mkdir(parents=True, exist_ok=True)
        (slots.paths.data / "clock").write_text(str(int(NOW.timestamp()) + 100 * 86400))
        refused(fleet, (agent, boss, slots), TO_TWO, "(expired)")


def test_a_foreign_board(fleet: Fleet) -> None:
    with under_attack(fleet) as (agent, boss, slots):
        agent._host = Host(machine="x86_64", python="3.11", glibc=(2, 36))
        refused(fleet, (agent, boss, slots), TO_TWO, "(board)")


@pytest.mark.parametrize("says", ["pi4", "pi5"])
def test_a_bundle_of_a_foreign_board_under_this_one_s_name(
    fleet: Fleet, fifth: tuple[Path, Path], tmp_path: Path, says: str
) -> None:
    """With the release telling the truth about it, or not."""
    path = tmp_path / "x.bundle"
    mine = manifest_of(fifth[0], fleet)
    foreign = dataclasses.replace(mine, board="pi4")
    members = honest_members(mine, fifth[1])
    forge(path, fleet.keys.signing_key("bundle"), foreign, members)
    release_unseen(fleet, path, mine)
    relabel(fleet, says)
    with under_attack(fleet) as board:
        refused(fleet, board, TO_FIVE, {"pi4": "(board)", "pi5": "(tampered)"}[says])


def relabel(fleet: Fleet, board: str) -> None:
    release = Careless(folder=fleet.folder / "release", keys=fleet.keys, now=NOW)
    targets = release._latest(Targets)
    for target in targets.targets.values():
        target.unrecognized_fields["custom"]["board"] = board
    release._publish(targets)
    release.refresh()


SECTIONS = {
    "the manifest's header": (b"manifest.json", 3),
    "the manifest": (b"manifest.json", 512 + 200),
    "the signature's header": (b"manifest.sig", 120),
    "the key's name": (b"manifest.sig", 512 + 5),
    "the signature": (b"manifest.sig", 512 + 40),
    "the payload's header": (b"payload.tar.zst", 3),
    "the payload": (b"payload.tar.zst", 512 + 5000),
    "the end": (b"", -1),
}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_changed_byte_in_any_section_though_well_released(
    fleet: Fleet, fifth: tuple[Path, Path], tmp_path: Path, section: str
) -> None:
    good = fifth[0].read_bytes()
    begins, offset = SECTIONS[section]
    at = (good.index(begins) + offset) % len(good)
    path = tmp_path / "x.bundle"
    path.write_bytes(good[:at] + bytes([good[at] ^ 0x20]) + good[at + 1 :])
    release_unseen(fleet, path, manifest_of(fifth[0], fleet))
    with under_attack(fleet) as board:
        refused(fleet, board, TO_FIVE, "refused (")


@pytest.mark.parametrize(
    "attack",
    ["extra file last", "path that escapes", "absolute path", "symbolic link", "wrong content"],
)
def test_a_payload_other_than_its_manifest_though_signed_and_released(
    fleet: Fleet, fifth: tuple[Path, Path], tmp_path: Path, attack: str
) -> None:
    reason, change = ATTACKS[attack]
    manifest = manifest_of(fifth[0], fleet)
    members = honest_members(manifest, fifth[1])
    change(members)
    path = tmp_path / "x.bundle"
    forge(path, fleet.keys.signing_key("bundle"), manifest, members)
    release_unseen(fleet, path, manifest)
    with under_attack(fleet) as board:
        refused(fleet, board, TO_FIVE, f"({reason})")
    assert not list(tmp_path.rglob("evil"))


def test_a_payload_that_unpacks_without_end(
    fleet: Fleet, fifth: tuple[Path, Path], tmp_path: Path
) -> None:
    manifest = manifest_of(fifth[0], fleet)
    members = honest_members(manifest, fifth[1])
    path = tmp_path / "x.bundle"
    forge(path, fleet.keys.signing_key("bundle"), manifest, members, end=bytes(64 << 20))
    release_unseen(fleet, path, manifest)
    with under_attack(fleet) as board:
        refused(fleet, board, TO_FIVE, "refused (")


def test_a_replayed_command(fleet: Fleet) -> None:
    """Its words again, after the owner went back by hand: told again, not done again."""
    with under_attack(fleet) as (agent, boss, slots):
        to_the_newest(fleet, agent, boss, slots)
        agent.run_once(0)
        assert agent._report is not None
        assert agent._report.status == "successful"
        slots.rollback("by hand")
        before = every_file(slots)
        assert obey(fleet, agent, boss, TO_TWO).status == "successful"
        assert every_file(slots) == before
        assert slots.load().running.version == "1.0.0"


def test_a_device_whose_certificate_was_revoked(fleet: Fleet, wire: Wire) -> None:
    """Somebody has the board's key: neither commands reach it, nor do its reports get out."""
    wire.board("lost-7").close()
    wire.stop()
    fleet.keys.revoke("lost-7", now=NOW)
    wire.start()
    slots = fleet.board("lost-7")
    before = every_file(slots)
    rollout = dataclasses.replace(fleet.rollout("lost-7"), silence_s=0.3)
    with wire.operator() as boss, wire.board("lost-7") as lost:
        boss.connect(10)
        with pytest.raises(ConnectError, match="revoked"):
            lost.connect(10)
        wish(boss, "lost-7", TO_TWO)
        agent = Agent(files=fleet.files(slots, "lost-7"), transport=lost, host=Host.present())
        agent.run_once(0.1)
        assert not fleet.operator(boss, rollout).run()
    report = rollout.boards["lost-7"].report
    assert report is not None
    assert "no word" in report.reason
    assert every_file(slots) == before
