"""docs/flashing.md, run as written: first boots, verified tokens, updates that go well or badly.

The board is emulated; broker, edge server, models and every byte of the SDK are real.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from board_bundles import PYTHON, TEMPLATE, faulty_bundle
from board_card import copy_card
from board_docs import commands
from board_image import Kit
from board_models import make_pair
from emulated import Emulated, free_port, kernel_words

from firmware_tools.bundle.packages import install
from firmware_tools.bundle.release import Release
from firmware_tools.flash.image import Image
from firmware_tools.keys import KeyStore
from firmware_tools.keys.store import utc_now
from firmware_tools.probe import draft_greedily
from sdk.cli import main
from sdk.model.tokenizer import Tokenizer

pytestmark = [pytest.mark.board, pytest.mark.slow, pytest.mark.timeout(900)]

_START_S = 480.0  # without KVM, on a slow machine
_FAST = ("--rate-kib-s", "20000")
# Enough for a start under emulation; the one that hangs should not take minutes.
_DROP_IN = "[Service]\\nTimeoutStartSec=30\\nRestartSec=1\\n"


class Fleet:
    """A project's folder, its broker and its edge server, as the document sets them up."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.port = folder, free_port()
        self._stack = stack
        self.ssh_key = folder / "id"
        os.chdir(folder)
        self.drafter, self.target = make_pair(folder)
        shutil.copy(TEMPLATE, folder / "multispin.toml")
        (folder / "password").write_text("board\n")
        (folder / "fleet.txt").write_text("cam-7\n")
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.ssh_key)]
        subprocess.run(keygen, check=True)

    @property
    def no_packages(self) -> Path:
        """An empty folder: what fails before its first import needs no packages."""
        folder = self.folder / "no-packages"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def keys(self) -> KeyStore:
        return KeyStore.at(self.folder / "keys")

    def run(self, words: Sequence[str], *more: str) -> int:
        """Run one of the document's commands, on this machine's ports."""
        here = [word.replace("broker.lan:8883", f"broker.lan:{self.port}") for word in words]
        if here[0] == "mosquitto":
            # Started by root, mosquitto would turn into a user who may not read root's files.
            with (self.folder / "keys/broker/mosquitto.conf").open("a") as conf:
                conf.write("user root\n")
            self._serve(["/usr/sbin/mosquitto", *here[1:]], self.port)
            return 0
        assert here[0] == "multispin"
        if here[1] == "broker":
            more = (*more, "--port", str(self.port), "--host", "127.0.0.1")
        if here[1] == "serve":
            self._write_server_config()
            self._serve([sys.executable, "-m", "sdk.cli", *here[1:]], None)
            return 0
        return main([*here[1:], *more])

    def started(self, words: Sequence[str], *more: str) -> subprocess.Popen[str]:
        """Start one of the document's commands, to go on beside others, in a process of its own."""
        # Another process does not see `broker.lan` here; the broker's certificate has both names.
        here = [word.replace("broker.lan:8883", f"localhost:{self.port}") for word in words]
        return subprocess.Popen(
            [sys.executable, "-m", "sdk.cli", *here[1:], *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def release(self, version: str, packages: Path, fault: str) -> None:
        """Build, sign and release a version that starts badly."""
        path = faulty_bundle(
            self.folder,
            self.keys,
            version=version,
            model=self.drafter,
            packages=packages,
            fault=fault,
        )
        Release(folder=self.folder / "release", keys=self.keys, now=utc_now()).add([path])

    def _serve(self, command: Sequence[str], port: int | None) -> None:
        with (self.folder / f"{Path(command[0]).name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        self._stack.callback(lambda: (process.kill(), process.wait()))
        deadline_s = time.monotonic() + 30
        while port is not None and time.monotonic() < deadline_s:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        assert process.poll() is None, command

    def _write_server_config(self) -> None:
        (self.folder / "server.toml").write_text(
            f'[broker]\nhost = "localhost"\nport = {self.port}\nca_file = "keys/ca.crt"\n'
            'cert_file = "keys/edge.crt"\nkey_file = "keys/secret/edge.key"\n'
        )

    def status(self, board: Emulated) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(board.ssh(self.ssh_key, "multispin board status --json"))
        return found

    def wait_good(self, board: Emulated, version: str) -> dict[str, Any]:
        """Wait until the board runs this version and holds it good."""
        deadline_s = time.monotonic() + _START_S
        while True:
            try:
                state = self.status(board)
            except (RuntimeError, subprocess.TimeoutExpired):
                state = {"active": "", "slots": {}}
            slot = state["slots"].get(state["active"], {})
            if (slot.get("version"), slot.get("status")) == (version, "good"):
                return state
            if time.monotonic() > deadline_s:
                journal = board.ssh(self.ssh_key, "journalctl -n 40 --no-pager -u multispin")
                raise AssertionError(f"{state}\n{journal}")
            time.sleep(1)

    def assert_went_back(self, board: Emulated, version: str, reason: str) -> None:
        """The board runs this version again, and `board status` says why."""
        assert reason in self.wait_good(board, version)["reason"]
        words = commands("A fleet update")[3]
        assert reason in board.ssh(self.ssh_key, " ".join(words))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, kit: Kit) -> Iterator[Fleet]:
    """The project up to the release of version 1.0.0, by the document's own commands."""
    before = Path.cwd()
    plain = socket.getaddrinfo

    def resolve(host: Any, *more: Any, **options: Any) -> Any:
        return plain(
            "127.0.0.1" if host in ("broker.lan", b"broker.lan") else host, *more, **options
        )

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", resolve)
        fleet = Fleet(tmp_path_factory.mktemp("fleet"), stack)
        stack.callback(os.chdir, before)
        copy_card(kit, fleet.folder / "raspios.img")
        for words in commands("Keys, once per project"):
            assert fleet.run(words) == 0
        yield fleet


@pytest.fixture(scope="module")
def packages(fleet: Fleet) -> Path:
    """A board's packages, unpacked, for bundles that `multispin bundle build` does not make."""
    folder = fleet.folder / "packages"
    install(PYTHON, folder)
    return folder


@pytest.fixture(scope="module")
def board(fleet: Fleet, kit: Kit) -> Iterator[Emulated]:
    """cam-7: its card prepared by `flash sd`, booted twice, its slot good."""
    pi = commands("A Raspberry Pi 5")
    for words in pi:
        if words[1] in ("bundle", "flash", "serve"):
            assert fleet.run(words) == 0, words
    card = fleet.folder / "cam-7.img"
    files = Image.open(card).boot_files
    assert files is not None
    first = kernel_words(files.read("cmdline.txt").decode())
    assert "systemd.run=" in first
    with Emulated(kit, card, words=first) as run:
        run.wait_off(_START_S)
    files = Image.open(card).boot_files
    assert files is not None
    assert "systemd.run" not in files.read("cmdline.txt").decode()
    assert "multispin" not in files.names()  # no secret stays on the boot partition
    with Emulated(kit, card, words=kernel_words(files.read("cmdline.txt").decode())) as run:
        run.wait_ssh(fleet.ssh_key, _START_S)
        fleet.wait_good(run, "1.0.0")
        yield run


def test_a_card_from_the_document_boots_into_a_good_slot(fleet: Fleet, board: Emulated) -> None:
    assert board.ssh(fleet.ssh_key, "uname -m; hostname").split() == ["aarch64", "cam-7"]
    for words in commands("A Raspberry Pi 5"):
        if words[1] == "board" and words[2] == "status":
            said = board.ssh(fleet.ssh_key, " ".join(words))
            assert "every file as delivered" in said
    doctor = json.loads(board.ssh(fleet.ssh_key, "multispin board doctor --json || true"))
    found = {each["name"]: each for each in doctor}
    for name in ("slot", "host", "space", "clock", "broker", "libstdc++.so.6"):
        assert found[name]["well"], found[name]
    assert "TLSv1.3" in found["broker"]["found"]


def test_tokens_drafted_on_the_board_are_the_target_s_own(fleet: Fleet, board: Emulated) -> None:
    words = next(each for each in commands("A Raspberry Pi 5") if each[1] == "generate")
    said = board.ssh(fleet.ssh_key, shlex.join(words), timeout_s=240)
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    tokens = [line["id"] for line in lines if "id" in line]
    prompt = Tokenizer(fleet.target).encode(words[words.index("--prompt") + 1])
    assert len(tokens) == 16, said
    assert tuple(tokens) == draft_greedily(fleet.target, prompt, 16)


def test_updates_go_well_and_bad_ones_are_taken_back_with_the_reason(
    fleet: Fleet, board: Emulated, packages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    update = commands("A fleet update")
    for words in update[:3]:
        assert fleet.run(words, *(_FAST if words[2] == "ota" else ())) == 0, words
    fleet.wait_good(board, "1.1.0")
    for version, fault, needs, reason in (
        ("1.2.0", "lies", packages, "answers wrongly"),
        ("1.3.0", "crashes", fleet.no_packages, "exit code 3"),
    ):
        fleet.release(version, needs, fault)
        capsys.readouterr()
        assert fleet.run(update[2], *_FAST) == 10
        assert reason in capsys.readouterr().out
        fleet.assert_went_back(board, "1.1.0", reason)


def test_a_hanging_update_is_taken_back_while_a_bare_board_joins_over_serial_and_ssh(
    fleet: Fleet,
    board: Emulated,
    kit: Kit,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Waiting for a service that hangs costs nothing, so the second board starts meanwhile."""
    board.ssh(
        fleet.ssh_key,
        "mkdir -p /etc/systemd/system/multispin.service.d && "
        f"printf '{_DROP_IN}' > /etc/systemd/system/multispin.service.d/test.conf && "
        "systemctl daemon-reload",
    )
    fleet.release("1.4.0", fleet.no_packages, "hangs")
    with fleet.started(commands("A fleet update")[2], *_FAST) as update:
        _join_over_serial(fleet, kit, capsys)
        said, _ = update.communicate(timeout=_START_S)
        assert update.returncode == 10, said
        assert "not ready in time" in said
    fleet.assert_went_back(board, "1.1.0", "not ready in time")


def _join_over_serial(fleet: Fleet, kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    """Take cam-8 from its login prompt to a good slot; then `flash ssh` finds nothing to do."""
    card = copy_card(kit, fleet.folder / "cam-8.img")
    (serial,) = commands("A board with nothing but a serial console")
    (over_ssh,) = commands("A board that answers SSH")
    with Emulated(kit, card, pty=True) as second:
        way = ["--ssh-host", "127.0.0.1", "--port", str(second.ssh_port)]
        way += [f"--ssh-option={each}" for each in ("-F", "none", "-i", str(fleet.ssh_key))]
        words = [second.tty if word == "/dev/ttyUSB0" else word for word in serial]
        assert fleet.run(words, *way) == 0
        fleet.wait_good(second, "1.0.0")
        known = fleet.folder / "keys/devices/cam-8.known_hosts"
        way += ["--ssh-option=-o", f"--ssh-option=UserKnownHostsFile={known}"]
        way = way[2:]
        words = ["root@127.0.0.1" if "@" in word else word for word in over_ssh]
        words[words.index("cam-7")] = "cam-8"
        capsys.readouterr()
        assert fleet.run(words, *way) == 0
        assert "runs 1.0.0 already" in capsys.readouterr().out


def test_a_revoked_board_is_shut_out_and_a_jetson_is_built_for(
    fleet: Fleet, board: Emulated
) -> None:
    (revoke,) = [words for words in commands("A fleet update") if words[1] == "keys"]
    assert fleet.run(revoke) == 0
    assert fleet.keys.devices()["cam-7"] == "revoked"
    for words in commands("A Jetson Orin Nano"):
        assert fleet.run(words) == 0, words
