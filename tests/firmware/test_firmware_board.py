"""The board's own programs: guard, installation from a seed, service, doctor, command line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from firmware_broker import NOW, free_port, run_broker
from firmware_bundles import make_bundle, make_model

from firmware_tools.board.doctor import examine
from firmware_tools.board.guard import EXIT_WRONG_ANSWER
from firmware_tools.board.guard import main as guard
from firmware_tools.board.install import Host, install_seed
from firmware_tools.board.notify import Notifier
from firmware_tools.board.paths import BoardPaths
from firmware_tools.board.service import serve
from firmware_tools.board.slots import Slots
from firmware_tools.board.state import BAD, GOOD, TRIES
from firmware_tools.bundle.signed import open_bundle
from firmware_tools.errors import FlashError, RefusedError, SlotError
from firmware_tools.keys import KeyStore
from firmware_tools.seed import Identity, guard_archive
from sdk.cli import main

PI = Host(machine="aarch64", python="3.11", glibc=(2, 36))


@pytest.fixture
def board(seed: Path, tmp_path: Path) -> Slots:
    """A board installed from a seed, its slot not proven yet."""
    paths = BoardPaths(root=tmp_path / "board")
    assert install_seed(seed, paths, PI)
    return Slots(paths)


def test_a_seed_installs_everything_once(seed: Path, board: Slots) -> None:
    paths = board.paths
    config = (paths.config / "multispin.toml").read_text()
    assert 'id = "seeded-1"' in config
    assert "port = 8883" in config
    assert stat.S_IMODE((paths.config / "device.key").stat().st_mode) == 0o600
    assert (paths.units / "multispin.service").read_bytes().startswith(b"[Unit]")
    assert os.readlink(paths.units / "multi-user.target.wants" / "multispin.service")
    assert board.load().trying
    board.good()
    before = {path: path.stat().st_mtime_ns for path in paths.root.rglob("*") if path.is_file()}
    assert install_seed(seed, paths, PI) is False
    after = {path: path.stat().st_mtime_ns for path in paths.root.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {"guard.pyz", "multispin.service", "clock", "identity.sha256"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"machine": "x86_64"}, "board"),
        ({"python": "3.13"}, "python"),
        ({"glibc": (2, 26)}, "board"),
    ],
)
def test_a_board_that_cannot_run_it_stays_untouched(
    seed: Path, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    host = dataclasses.replace(PI, **change)  # type: ignore[arg-type]
    with pytest.raises(RefusedError) as caught:
        install_seed(seed, BoardPaths(root=tmp_path / "board"), host)
    assert caught.value.reason == reason
    assert not (tmp_path / "board").exists()


def test_a_seed_that_is_refused_leaves_every_file_as_it_was(
    seed: Path, board: Slots, key_store: KeyStore, tmp_path: Path
) -> None:
    """Older than what runs, or another release while one is on trial."""

    def every_file() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in board.paths.root.rglob("*") if path.is_file()}

    update(board, key_store, tmp_path)
    other = tmp_path / "other"
    shutil.copytree(seed, other)
    (other / "multispin.toml").write_text("another board's")
    before = every_file()
    with pytest.raises(SlotError, match="release 2 is on trial; wait"):
        install_seed(other, board.paths, PI)
    assert every_file() == before
    board.good()
    before = every_file()
    with pytest.raises(RefusedError, match="older"):
        install_seed(other, board.paths, PI)
    assert every_file() == before


def test_a_damaged_seed_changes_nothing(seed: Path, tmp_path: Path) -> None:
    bad = tmp_path / "seed"
    bad.mkdir()
    for path in seed.iterdir():
        (bad / path.name).write_bytes(path.read_bytes())
    import gzip

    content = bytearray(gzip.decompress((bad / "payload.tar.gz").read_bytes()))
    content[600] ^= 1
    (bad / "payload.tar.gz").write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(RefusedError, match="tampered"):
        install_seed(bad, BoardPaths(root=tmp_path / "board"), PI)
    assert not (tmp_path / "board").exists()


def test_a_template_with_an_unknown_placeholder_is_refused(identity: Identity) -> None:
    with pytest.raises(FlashError, match="wifi"):
        identity.fill('x = "$wifi"')


def run_guard(archive: Path, root: Path, *verb: str, **environment: str) -> str:
    """Run the guard as a board does: system Python, no packages, no environment of ours."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(archive), "--root", str(root), *verb],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{done.returncode} {done.stdout}{done.stderr}".strip()


def test_the_guard_runs_alone_and_always_has_the_same_bytes(board: Slots, seed: Path) -> None:
    assert guard_archive() == guard_archive() == board.paths.guard.read_bytes()
    archive, root = board.paths.guard, board.paths.root
    assert run_guard(archive, root, "start") == "0"
    assert board.load().tries_left == TRIES - 1
    assert run_guard(archive, root, "good") == "0"
    assert board.load().running.status == GOOD
    refused = run_guard(archive, root, "install", str(seed))
    assert refused.startswith("10 guard: refused") or "already" in refused


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"SERVICE_RESULT": "exit-code", "EXIT_STATUS": "1"}, "exit code 1"),
        ({"SERVICE_RESULT": "signal", "EXIT_STATUS": "SEGV"}, "signal SEGV"),
        ({"SERVICE_RESULT": "timeout", "EXIT_STATUS": "TERM"}, "not ready in time"),
        ({"SERVICE_RESULT": "watchdog", "EXIT_STATUS": "ABRT"}, "watchdog"),
        ({"SERVICE_RESULT": "protocol", "EXIT_STATUS": "0"}, "protocol"),
    ],
)
def test_what_systemd_reports_becomes_the_reason(
    board: Slots, key_store: KeyStore, tmp_path: Path, environment: dict[str, str], reason: str
) -> None:
    update(board, key_store, tmp_path)
    root = ["--root", str(board.paths.root)]
    for _ in range(TRIES):
        guard([*root, "start"], {})
        guard([*root, "stopped"], environment)
    guard([*root, "start"], {})
    state = board.load()
    assert (state.running.version, state.slots["b"].status) == ("1.0.0", BAD)
    assert reason in state.reason


def test_a_wrong_answer_is_taken_back_at_once(
    board: Slots, key_store: KeyStore, tmp_path: Path
) -> None:
    update(board, key_store, tmp_path)
    root = ["--root", str(board.paths.root)]
    guard([*root, "start"], {})
    ended = {"SERVICE_RESULT": "exit-code", "EXIT_STATUS": str(EXIT_WRONG_ANSWER)}
    guard([*root, "stopped"], ended)
    assert board.load().reason == "its drafter answers wrongly"
    assert board.load().running.version == "1.0.0"


def test_ending_well_or_after_the_trial_is_no_failure(board: Slots) -> None:
    root = ["--root", str(board.paths.root)]
    board.good()
    guard([*root, "stopped"], {"SERVICE_RESULT": "exit-code", "EXIT_STATUS": "70"})
    guard([*root, "stopped"], {"SERVICE_RESULT": "success", "EXIT_STATUS": "0"})
    assert board.load().running.status == GOOD


def update(board: Slots, keys: KeyStore, folder: Path) -> None:
    board.good()
    path = make_bundle(folder, keys, version="2.0.0", release=2)
    bundle = open_bundle(path, [keys.verify_key("bundle")])
    assert board.install(bundle.manifest, bundle.unpack)


class Worked:
    """A worker that asks for a restart after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, timeout_s: float) -> bool:
        assert 0 < timeout_s <= 10
        self.left -= 1
        return self.left < 1


def notes(channel: socket.socket) -> Sequence[str]:
    channel.setblocking(False)
    found = []
    try:
        while True:
            found.append(channel.recv(4096).decode())
    except BlockingIOError:
        return found


def test_the_service_drafts_before_it_says_that_it_is_ready(board: Slots, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"}
        notifier = Notifier.from_environment(environment)
        assert notifier.watchdog_s == 30
        time_s = iter(range(0, 1000, 4))
        slot = board.paths.current.resolve()
        assert serve(slot, notifier, lambda: Worked(6), clock=lambda: next(time_s)) == 0
        said = notes(channel)
        assert said[0].startswith("READY=1")
        assert said[1:].count("WATCHDOG=1") >= 2
        make_model(tmp_path / "other", step=3)
        (slot / "model/model.onnx").write_bytes((tmp_path / "other/model.onnx").read_bytes())
        assert serve(slot, notifier, lambda: Worked(1)) == EXIT_WRONG_ANSWER
        assert not any("READY" in note for note in notes(channel))
    serve(board.paths.current.resolve(), Notifier(), lambda: Worked(1))  # a null: nobody listens


def test_an_abstract_address_works_too() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(f"\0multispin-test-{os.getpid()}")
        Notifier(address=f"@multispin-test-{os.getpid()}").alive()
        assert notes(channel) == ["WATCHDOG=1"]


def test_the_doctor_finds_what_is_wrong_and_what_is_right(
    board: Slots, key_store: KeyStore, tmp_path: Path
) -> None:
    def found() -> dict[str, bool]:
        return {finding.name: finding.well for finding in examine(board.paths, PI)}

    assert found()["slot"] is False
    assert found()["broker"] is False
    board.good()
    assert found()["slot"] is True
    assert found()["host"] is True
    assert found()["space"] is True
    wrong = {
        each.name: each for each in examine(board.paths, dataclasses.replace(PI, python="3.9"))
    }
    assert "3.9" in wrong["host"].todo
    port = free_port()
    config = board.paths.config / "multispin.toml"
    config.write_text(config.read_text().replace("8883", str(port)))
    with run_broker(tmp_path, key_store, port):
        broker = next(each for each in examine(board.paths, PI) if each.name == "broker")
        assert broker.well
        assert "TLSv1.3" in broker.found


def test_the_command_line(
    board: Slots, key_store: KeyStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(board.paths.root)]
    update(board, key_store, tmp_path)
    board.good()
    capsys.readouterr()
    assert main(["board", "status", "--json", "--verify", *root]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["active"] == "b"
    assert shown["damage"] == {"a": "", "b": ""}
    assert main(["board", "rollback", *root]) == 0
    assert main(["board", "status", *root]) == 0
    assert "* a  1.0.0" in capsys.readouterr().out
    assert main(["board", "rollback", *root]) == 10
    assert main(["board", "mark", "good", *root]) == 0
    assert main(["board", "doctor", "--json", *root]) == 1
    capsys.readouterr()
    assert main(["board", "mark", "bad", *root]) == 0
    assert main(["board", "status", *root]) == 0
    assert "marked bad by hand" in capsys.readouterr().out


def test_the_clock_s_floor_is_planted(board: Slots) -> None:
    seen = int((board.paths.data / "clock").read_text())
    assert abs(seen - NOW.timestamp()) < timedelta(days=1).total_seconds()
