"""Getting to a shell over a serial console, from whatever it shows and whatever is wrong."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import serial
from firmware_console import FakeBoard, console_on, heard_at

import firmware_tools.flash.console as console_module
from firmware_tools.errors import FlashError
from firmware_tools.flash.console import open_port, why_no_prompt

LONG = "for n in $(seq 500); do echo line $n; done"


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"logged_in": True},
        {"pager": f"({LONG}) | more"},
        {"pager": f"({LONG}) | less"},
        {"pager": f"({LONG}) | less -FRSXMK"},  # as systemctl and journalctl run it
        {"boot": "|".join(f"[  {number}.1] usb 1-1: new device" for number in range(20))},
        {"boot": "[    2.1] EXT4-fs: mounted|/dev/mmcblk0p2: |=====    | 42.1%~|done"},
        {"left_by": "somebody"},
    ],
    ids=[
        *("login prompt", "shell left open", "more", "less", "a journal", "still booting"),
        *("checking its disk", "at another user's password"),
    ],
)
def test_a_shell_is_found_from_wherever_the_console_stands(
    tmp_path: Path, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "~" in state.get("boot", ""):  # what looks like a prompt does not answer
        monkeypatch.setattr(console_module, "_STEP_S", 1.0)
    if "less" in state.get("pager", "") and shutil.which("less") is None:
        pytest.skip("apt: less")
    with FakeBoard(tmp_path, **state) as board:
        console = console_on(board)
        console.login("pi", "raspberry")
        assert console.run("echo hello; false") == (1, "hello")
        assert console.check("printf 'a\\nb\\n'") == "a\nb"
        with pytest.raises(FlashError, match="no such thing"):
            console.check("echo no such thing; exit_code() { return 3; }; exit_code")
        console.port.close()


def test_messages_of_the_kernel_anywhere_do_no_harm(tmp_path: Path) -> None:
    with FakeBoard(tmp_path) as board:
        board.kernel_talks.set()
        console = console_on(board)
        console.login("pi", "raspberry")
        for number in range(8):
            code, text = console.run(f"echo answer; ( exit {number} )", timeout_s=10)
            assert code == number
            assert "usb" in text or text == "answer"
        console.port.close()


@pytest.mark.parametrize(
    ("state", "password", "why"),
    [
        ({"silent": True}, "raspberry", "says nothing"),
        ({"sent_baud": 57600}, "raspberry", "wrong speed"),
        ({}, "wrong", "refused user pi"),
    ],
)
def test_every_failure_says_what_to_do(
    tmp_path: Path, state: dict[str, Any], password: str, why: str
) -> None:
    with FakeBoard(tmp_path, **state) as board:
        console = console_on(board, patience_s=1)
        with pytest.raises(FlashError, match=why):
            console.login("pi", password)
        console.port.close()


@pytest.mark.parametrize("sent_baud", [9600, 19200, 38400, 57600, 230400, 921600, 1500000])
def test_every_wrong_speed_is_told_from_silence_and_from_text(
    tmp_path: Path, sent_baud: int
) -> None:
    text = b"[    0.812345] usb 1-1: new high-speed USB device\r\nDebian GNU/Linux\r\nboard login: "
    assert heard_at(text, sent_baud=115200, heard_baud=115200) == text
    heard = heard_at(text, sent_baud=sent_baud, heard_baud=115200)
    assert "wrong speed" in why_no_prompt(heard)


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

    for code, todo in ((errno.EACCES, "usermod -aG"), (errno.EBUSY, "close the other terminal")):

        def closed(path: str, *more: object, code: int = code) -> int:
            raise OSError(code, os.strerror(code), path)

        monkeypatch.setattr(serial.serialposix.os, "open", closed)
        with pytest.raises(FlashError, match=todo):
            open_port("/dev/null", 115200)


@pytest.fixture
def sudo(tmp_path: Path) -> str:
    """A sudo that asks three times, as the real one, and then ends."""
    return (
        "[ $1 = -n ] && exit 1\n"
        "for n in 1 2 3; do\n"
        "  printf 'sudo password: '; stty -echo; read -r word; stty echo; echo\n"
        f'  [ "$word" = opensesame ] && touch {tmp_path}/rooted && '
        "PS1='root@board:~# ' exec bash --norc --noprofile -i\n"
        "  echo 'Sorry, try again.'\n"
        "done\nexit 1"
    )


def id_stub(folder: Path) -> str:
    return f"[ -e {folder}/rooted ] && echo 0 || echo 1000"


def test_sudo_is_asked_for_over_the_wire(tmp_path: Path, sudo: str) -> None:
    with FakeBoard(tmp_path, logged_in=True) as board:
        board.stub("id", id_stub(tmp_path))
        board.stub("sudo", sudo)
        console = console_on(board)
        console.login("pi", "raspberry")
        with pytest.raises(FlashError, match="sudo did not take"):
            console.become_root("wrong")
        assert console.check("echo the shell is still there") == "the shell is still there"
        console.become_root("opensesame")
        assert console.check("echo still here") == "still here"
        console.port.close()


def test_sudo_that_wants_no_password_gets_none(tmp_path: Path) -> None:
    """As for the first user of Raspberry Pi OS."""
    with FakeBoard(tmp_path, logged_in=True) as board:
        board.stub("id", id_stub(tmp_path))
        board.stub("sudo", f"[ $2 = true ] && exit 0\ntouch {tmp_path}/rooted\nexec bash --norc -i")
        console = console_on(board)
        console.login("pi", "raspberry")
        console.become_root("raspberry")
        assert console.check("id -u") == "0"
        console.port.close()


@pytest.mark.parametrize(
    "sudo",
    [
        "echo 'bash: sudo: command not found' >&2; exit 127",
        "[ $1 = -n ] && exit 1; printf 'sudo password: '; read -r word; "
        "echo 'pi is not in the sudoers file.'; exit 1",
    ],
    ids=["no sudo", "not in sudoers"],
)
def test_a_user_without_sudo_is_told_so(tmp_path: Path, sudo: str) -> None:
    with FakeBoard(tmp_path, logged_in=True) as board:
        board.stub("id", "echo 1000")
        board.stub("sudo", sudo)
        console = console_on(board)
        console.login("pi", "raspberry")
        with pytest.raises(FlashError, match="--user root"):
            console.become_root("raspberry")
        console.port.close()
