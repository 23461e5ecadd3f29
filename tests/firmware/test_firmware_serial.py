"""flash serial: over pseudo-terminals, with everything that a wire and a console can do."""

from __future__ import annotations

import errno
import os
import pty
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import serial
from firmware_console import FakeBoard

from firmware_tools.errors import FlashError
from firmware_tools.flash import serial_verb
from firmware_tools.flash.console import Console, open_port
from firmware_tools.flash.push import RECEIVER, Push, seconds_for
from firmware_tools.flash.serial_verb import pinned, prepare_ssh, push_seed
from sdk.cli import main

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEh3 owner@host"


def console_on(board: FakeBoard, *, patience_s: float = 20.0) -> Console:
    return Console(port=open_port(board.path, 115200), patience_s=patience_s)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"logged_in": True},
        {"pager": True},
        {"boot": "|".join(f"[  {number}.1] usb 1-1: new device" for number in range(20))},
    ],
    ids=["login prompt", "shell left open", "pager", "still booting"],
)
def test_a_shell_is_found_from_wherever_the_console_stands(
    tmp_path: Path, state: dict[str, Any]
) -> None:
    with FakeBoard(tmp_path, **state) as board:
        console = console_on(board)
        console.login("pi", "raspberry")
        assert console.run("echo hello; false") == (1, "hello")
        assert console.check("printf 'a\\nb\\n'") == "a\nb"
        with pytest.raises(FlashError, match="no such thing"):
            console.check("echo no such thing; exit_code() { return 3; }; exit_code")
        console.port.close()


def test_messages_of_the_kernel_between_the_lines_do_no_harm(tmp_path: Path) -> None:
    with FakeBoard(tmp_path) as board:
        console = console_on(board)
        console.login("pi", "raspberry")
        noisy = '(for n in 1 2 3; do echo "[ 9.$n] login: $ END- # "; done) & echo answer; wait'
        code, text = console.run(noisy)
        assert code == 0
        assert "answer" in text
        console.port.close()


@pytest.mark.parametrize(
    ("state", "password", "why"),
    [
        ({"silent": True}, "raspberry", "says nothing"),
        ({"garbage": True}, "raspberry", "wrong speed"),
        ({}, "wrong", "refused user pi"),
    ],
)
def test_every_failure_says_what_to_do(
    tmp_path: Path, state: dict[str, Any], password: str, why: str
) -> None:
    with FakeBoard(tmp_path, **state) as board:
        console = console_on(board, patience_s=3)
        with pytest.raises(FlashError, match=why):
            console.login("pi", password)
        console.port.close()


def test_a_cable_that_is_pulled_is_said(tmp_path: Path) -> None:
    with FakeBoard(tmp_path) as board:
        console = console_on(board)
        console.login("pi", "raspberry")
        board.cut_after_bytes = 0
        with pytest.raises(FlashError, match="cable was pulled"):
            console.run("echo x", timeout_s=5)
        console.port.close()


def test_ports_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FlashError, match="is not there"):
        open_port(str(tmp_path / "ttyUSB0"), 115200)
    with FakeBoard(tmp_path) as board:
        first = open_port(board.path, 115200)
        with pytest.raises(FlashError, match="in use"):
            open_port(board.path, 115200)
        first.close()

    def closed(path: str, *more: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(serial.serialposix.os, "open", closed)
    with pytest.raises(FlashError, match="usermod -aG"):
        open_port("/dev/null", 115200)


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


def test_sudo_is_asked_for_over_the_wire(tmp_path: Path) -> None:
    with FakeBoard(tmp_path, logged_in=True) as board:
        board.stub("id", f"[ -e {tmp_path}/rooted ] && echo 0 || echo 1000")
        board.stub(
            "sudo",
            "[ $1 = -k ] && exit 0\nprintf 'sudo password: '; stty -echo; read -r word; stty echo\n"
            f'[ "$word" = opensesame ] && touch {tmp_path}/rooted\nexec bash --norc --noprofile -i',
        )
        console = console_on(board)
        console.login("pi", "raspberry")
        with pytest.raises(FlashError, match="sudo did not take"):
            console.become_root("wrong")
        console.become_root("opensesame")
        assert console.check("echo still here") == "still here"
        console.port.close()


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


@pytest.mark.slow
def test_damaged_and_lost_frames_are_sent_again(tmp_path: Path) -> None:
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
    command += ["--broker", "b:1", "--release-dir", str(tmp_path)]
    assert main(command) == 2
    assert "--ssh-key" in capsys.readouterr().err
    (tmp_path / "word").write_text("raspberry\n")
    port = str(tmp_path / "ttyUSB9")
    command[2] = port
    assert main([*command, "--push", "--password-file", str(tmp_path / "word")]) == 10
    assert "is not there" in capsys.readouterr().err
    assert os.path.exists(port) is False
