"""A board's serial console on a pseudo-terminal: a getty, a shell, and a wire that can be bad."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import select
import signal
import sys
import threading
import tty
from collections.abc import Mapping
from pathlib import Path

from firmware_tools.flash.console import Console, open_port

_GETTY = r"""
import os, sys, time
boot, user, password, left = sys.argv[1:5]
for line in boot.split("|"):
    slow = line.endswith("~")  # a line that is not ended yet, for longer than a silence
    print(line.strip("~"), end="" if slow else "\n", flush=True)
    time.sleep(0.6 if slow else 0.05)
while True:
    name, left = left, ""
    if not name:
        print("Debian GNU/Linux 12 board ttyAMA0\n", flush=True)
        sys.stdout.write("board login: "); sys.stdout.flush()
        name = sys.stdin.readline().strip()
    if not name:
        continue
    sys.stdout.write("Password: "); sys.stdout.flush()
    word = sys.stdin.readline().strip()
    if (name, word) == (user, password):
        break
    print("\nLogin incorrect", flush=True)
    time.sleep(0.2)
os.execvp("bash", ["bash", "--noprofile", "--norc", "-i"])
"""


KERNEL = b"\r\n[   12.345678] usb 1-1: new high-speed USB device number 3\r\n"


def heard_at(data: bytes, *, sent_baud: int, heard_baud: int) -> bytes:
    """Return what a receiver at another speed makes of bytes sent without a pause, 8N1."""
    levels = [1] * 10
    for byte in data:
        levels += [0, *((byte >> bit) & 1 for bit in range(8)), 1]
    levels += [1] * 10
    end_s = len(levels) / sent_baud

    def level(time_s: float) -> int:
        return levels[min(int(time_s * sent_baud), len(levels) - 1)]

    heard, time_s, step_s = bytearray(), 0.0, 1 / heard_baud
    while time_s < end_s:
        if level(time_s):  # waiting for a start bit, at a sixteenth of a bit
            time_s += step_s / 16
            continue
        heard.append(sum(level(time_s + (bit + 1.5) * step_s) << bit for bit in range(8)))
        time_s += 10 * step_s
    return bytes(heard)


class FakeBoard:
    """A getty and bash behind a pty; `path` is the port that the product opens.

    `left_by` is who typed a name and went away before the password, `pager` a command whose pager
    was left open, `sent_baud` what the board sends at while we listen at 115200.

    Faults: `loss` and `noise` are probabilities per chunk towards the board while `bad` is set;
    while `kernel_talks` is, its messages fall anywhere, with a hundred bytes between them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        boot: str = "",
        logged_in: bool = False,
        left_by: str = "",
        pager: str = "",
        silent: bool = False,
        sent_baud: int = 115200,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.loss = self.noise = 0.0
        self.bad, self.kernel_talks = threading.Event(), threading.Event()
        self.cut_after_bytes: int | None = None
        self._sent_baud, self._silent, self._quiet_bytes = sent_baud, silent, 0
        self._random = random.Random(7)
        self._environment = {
            "HOME": str(folder / "home"),
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "TERM": "dumb",
            "PS1": "root@board:~# ",
            **(environment or {}),
        }
        (folder / "home").mkdir(exist_ok=True)
        (folder / "bin").mkdir(exist_ok=True)
        command = [sys.executable, "-u", "-c", _GETTY, boot, "pi", "raspberry", left_by]
        if logged_in:
            command = ["bash", "--noprofile", "--norc", "-i"]
        if pager:
            command = ["bash", "--noprofile", "--norc", "-c"]
            command.append(f"stty rows 24 cols 80; {pager}; exec bash --noprofile --norc -i")
        self._child, self._board = pty.fork()
        if self._child == 0:
            os.execvpe(command[0], command, self._environment)  # noqa: S606
        self._host, slave = pty.openpty()
        tty.setraw(self._host)
        tty.setraw(slave)
        self.path = os.ttyname(slave)
        self._slave = slave
        self._off = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        passed = 0
        while not self._off.is_set():
            ready, _, _ = select.select([self._host, self._board], [], [], 0.05)
            for source in ready:
                try:
                    data = os.read(source, 4096)
                except OSError:
                    return
                down = source == self._host
                data = self._spoil(data, down)
                passed += len(data) if down else 0
                if self.cut_after_bytes is not None and passed > self.cut_after_bytes:
                    self.unplug()
                    return
                if data:
                    os.write(self._board if down else self._host, data)

    def _spoil(self, data: bytes, down: bool) -> bytes:
        if self._silent:
            return b""
        if self._sent_baud != 115200:
            return b"" if down else heard_at(data, sent_baud=self._sent_baud, heard_baud=115200)
        self._quiet_bytes += 0 if down else len(data)
        if self.kernel_talks.is_set() and not down and data and self._quiet_bytes > 100:
            self._quiet_bytes = 0
            at = self._random.randrange(len(data))
            return data[:at] + KERNEL + data[at:]
        if down and self.bad.is_set():
            if self._random.random() < self.loss:
                cut = self._random.randrange(len(data))
                return data[:cut] + data[cut + 5 :]
            if self._random.random() < self.noise:
                at = self._random.randrange(len(data))
                return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
        return data

    def unplug(self) -> None:
        """Pull the cable: the port's other end is gone."""
        for descriptor in (self._slave, self._host):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def stub(self, name: str, text: str) -> None:
        """Put a program first on the board's path."""
        (self.folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.folder / "bin" / name).chmod(0o755)

    def __enter__(self) -> FakeBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self._off.set()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        self._thread.join(5)
        self.unplug()
        with contextlib.suppress(OSError):
            os.close(self._board)


def console_on(board: FakeBoard, *, patience_s: float = 30.0) -> Console:
    """Open the board's port as the product does."""
    return Console(port=open_port(board.path, 115200), patience_s=patience_s)
