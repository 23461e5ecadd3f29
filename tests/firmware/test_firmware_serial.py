"""flash serial: the hand-over to SSH and the push, over pseudo-terminals."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from firmware_console import FakeBoard, console_on
from firmware_images import KEY

import firmware_tools.flash.push as push_module
from firmware_tools.errors import FlashError
from firmware_tools.flash import serial_verb
from firmware_tools.flash.push import RECEIVER, Push, seconds_for
from firmware_tools.flash.serial_verb import pinned, prepare_ssh, push_seed
from sdk.cli import main


def test_ssh_is_prepared_once_and_the_host_key_pinned(tmp_path: Path) -> None:
    with FakeBoard(tmp_path) as board:
        board.stub("systemctl", f"echo systemctl $* >> {tmp_path}/ran")
        board.stub("ssh-keygen", f"echo ssh-keygen $* >> {tmp_path}/ran")
        board.stub("nmcli", f"echo nmcli $* >> {tmp_path}/ran")
        board.stub("ip", "echo '2: eth0    inet 192.168.1.7/24 brd 192.168.1.255 scope global'")
        console = console_on(board)
        console.login("pi", "raspberry")
        for _ in range(2):
            address = prepare_ssh(console, "raspberry", key=KEY, wifi=("my net", "its $secret"))
            assert address == "192.168.1.7"
        keys = tmp_path / "home/.ssh/authorized_keys"
        assert keys.read_text() == KEY + "\n"
        assert keys.stat().st_mode & 0o77 == 0
        ran = (tmp_path / "ran").read_text()
        assert "nmcli dev wifi connect my net password its $secret" in ran
        assert "systemctl enable --now ssh" in ran
        console.port.close()
    args = Namespace(id="cam-7", keys=tmp_path / "keys", port=22, user="pi", ssh_option=[])
    args.board_python = "python3"
    remote = pinned(args, "192.168.1.7", KEY)
    assert remote.address == "pi@192.168.1.7"
    known = tmp_path / "keys/devices/cam-7.known_hosts"
    assert known.read_text() == "192.168.1.7 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEh3\n"
    assert f"UserKnownHostsFile={known}" in remote.options
    with pytest.raises(FlashError, match="no key"):
        pinned(args, "192.168.1.7", "cat: no such file")


@pytest.fixture
def receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the test's board keeps what is pushed."""
    monkeypatch.setattr(serial_verb, "_SEED", str(tmp_path / "pushed"))
    return tmp_path / "pushed"


def make_seed(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.bin").write_bytes(bytes(range(256)) * 60)
    (folder / "empty").write_bytes(b"")
    (folder / "guard.pyz").write_bytes(b"\xa5MSp" * 50 + b"\x03\x04\x11\x13\x1a\x7f\r\n" * 99)
    return folder


def push(board: FakeBoard, seed: Path) -> None:
    console = console_on(board)
    console.login("pi", "raspberry")
    if board.loss or board.noise:
        board.bad.set()
    try:
        push_seed(console, seed, shlex.quote(sys.executable))
    finally:
        board.bad.clear()
        console.port.close()


def same(seed: Path, there: Path) -> bool:
    found = {path.name: path.read_bytes() for path in there.iterdir() if path.name[0] != "."}
    return found == {path.name: path.read_bytes() for path in seed.iterdir()}


def test_a_seed_is_pushed_byte_for_byte_over_a_bad_wire(tmp_path: Path, receiver: Path) -> None:
    seed = make_seed(tmp_path / "seed")
    with FakeBoard(tmp_path, logged_in=True) as board:
        push(board, seed)
    assert same(seed, receiver)


def test_damaged_and_lost_frames_are_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_module, "_ANSWER_S", 0.5)
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(256)) * 100)
    (tmp_path / "receiver.py").write_text(RECEIVER)
    with FakeBoard(tmp_path, logged_in=True) as board:
        console = console_on(board)
        console.login("pi", "raspberry")
        console.start(
            f"{sys.executable} receiver.py {tmp_path}/got 2>{tmp_path}/said || true".replace(
                "receiver.py", str(tmp_path / "receiver.py")
            )
        )
        board.loss, board.noise = 0.1, 0.1
        board.bad.set()
        Push(port=console.port).send(path)
        board.bad.clear()
        console.port.close()
    assert (tmp_path / "got").read_bytes() == path.read_bytes()


def test_a_push_goes_on_after_the_cable_was_pulled(tmp_path: Path, receiver: Path) -> None:
    seed = make_seed(tmp_path / "seed")
    with FakeBoard(tmp_path, logged_in=True) as board:
        board.cut_after_bytes = 12_000
        with pytest.raises(FlashError, match="pulled"):
            push(board, seed)
    rest = (receiver / "a.bin").stat().st_size
    assert 0 < rest < 256 * 60
    seen: list[int] = []
    with FakeBoard(tmp_path, logged_in=True) as board:
        show = serial_verb._show
        try:
            serial_verb._show = lambda *shown: seen.append(shown[1])  # type: ignore[assignment]
            push(board, seed)
        finally:
            serial_verb._show = show
    assert seen[0] > rest
    assert same(seed, receiver)


def test_a_receiver_ends_with_its_console(tmp_path: Path) -> None:
    """Also where a hang-up's signal is ignored, as under nohup."""
    host, slave = pty.openpty()
    script = ["-c", "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + RECEIVER]
    with subprocess.Popen(
        [sys.executable, *script, str(tmp_path / "got")],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        os.close(slave)
        assert process.stdout is not None
        assert b"~READY" in process.stdout.read(8)
        os.close(host)
        try:
            process.wait(10)
        finally:
            process.kill()


def test_a_rest_that_is_too_long_is_begun_anew(tmp_path: Path, receiver: Path) -> None:
    seed = make_seed(tmp_path / "seed")
    receiver.mkdir()
    (receiver / "a.bin").write_bytes(bytes(100_000))
    with FakeBoard(tmp_path, logged_in=True) as board:
        push(board, seed)
    assert same(seed, receiver)


def test_the_receiver_is_short_and_needs_only_python() -> None:
    code = compile(RECEIVER, "receiver", "exec")
    assert "serial" not in code.co_names
    checked = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"compile({RECEIVER!r}, 'r', 'exec')"], check=False
    )
    assert checked.returncode == 0


def test_how_long_a_push_takes_is_said_before_it_begins() -> None:
    assert seconds_for(47 << 20, 115200) / 60 == pytest.approx(77, abs=1)


def test_the_command_line_wants_a_way_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["flash", "serial", "/dev/null", "--bundle", "x", "--id", "cam-7"]
    command += ["--broker", "localhost:1", "--release-dir", str(tmp_path)]
    assert main(command) == 2
    assert "--ssh-key" in capsys.readouterr().err
    (tmp_path / "word").write_text("raspberry\n")
    port = str(tmp_path / "ttyUSB9")
    command[2] = port
    assert main([*command, "--push", "--password-file", str(tmp_path / "word")]) == 10
    assert "is not there" in capsys.readouterr().err
    assert os.path.exists(port) is False
