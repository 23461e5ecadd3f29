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

_GETTY = r"""
import os, sys, time
boot, user, password = sys.argv[1:4]
for line in boot.split("|"):
    print(line, flush=True)
    time.sleep(0.05)
while True:
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


class FakeBoard:
    """A getty and bash behind a pty; `path` is the port that the product opens.

    Faults: `loss` and `noise` are probabilities per chunk towards the board while `bad` is set.
    """

    def __init__(
        self,
        folder: Path,
        *,
        boot: str = "",
        logged_in: bool = False,
        pager: bool = False,
        silent: bool = False,
        garbage: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.loss = self.noise = 0.0
        self.bad = threading.Event()
        self.cut_after_bytes: int | None = None
        self._garbage, self._silent = garbage, silent
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
        command = [sys.executable, "-u", "-c", _GETTY, boot, "pi", "raspberry"]
        if logged_in:
            command = ["bash", "--noprofile", "--norc", "-i"]
        if pager:
            script = "read -rsn1 -d q -p '(END)'; exec bash --noprofile --norc -i"
            command = ["bash", "--noprofile", "--norc", "-c", script]
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
        if self._garbage and not down:
            return bytes((byte * 37 + 131) % 256 | 0x80 for byte in data)
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
