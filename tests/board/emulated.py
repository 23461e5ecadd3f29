"""A stand-in board under QEMU: a real arm64 Linux with systemd, a card image and a network.

The console goes to a file, or to a pseudo-terminal for tests of the serial way in. What the guest
wrote is in this machine's page cache when QEMU is killed, flushed or not, so flushes are not passed
on to the disk below. Knows nothing about the SDK.
"""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from board_image import Kit

__all__ = ["Emulated", "free_port", "kernel_words"]

# Page tables that change at every system call empty QEMU's translations: a third of a boot's time.
_QUICK = "nokaslr kpti=0 mitigations=off"
SSH_KEYS = ("-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=10")


def free_port() -> int:
    """Return a port of this machine that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kernel_words(cmdline: str) -> str:
    """Return what this board's firmware would pass on: the console and disk are QEMU's own."""
    own = ("console=", "root=", "rootfstype=", "rootwait", "quiet")
    return " ".join(word for word in cmdline.split() if not word.startswith(own))


class Emulated:
    """One run of a board; a context manager that ends it as a power cut would."""

    def __init__(
        self,
        kit: Kit,
        card: Path,
        *,
        words: str = "",
        pty: bool = False,
        memory_mib: int = 1024,
        network: bool = True,
    ) -> None:
        self.log = card.with_suffix(".console")
        self.log.unlink(missing_ok=True)
        self.ssh_port = free_port()
        serial = "pty" if pty else f"file:{self.log}"
        net = f"user,id=n0,hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22"
        command = [
            *("qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72", "-smp", "2"),
            *("-m", str(memory_mib), "-display", "none", "-nodefaults", "-no-reboot"),
            *("-kernel", str(kit.kernel), "-initrd", str(kit.initrd)),
            *("-append", f"console=ttyAMA0,115200 quiet {_QUICK} {words}"),
            *("-drive", f"if=none,id=d0,file={card},format=raw,cache=unsafe"),
            *("-device", "virtio-blk-pci,drive=d0", "-device", "virtio-rng-pci"),
            *("-serial", serial),
        ]
        if network:
            command += ["-netdev", net, "-device", "virtio-net-pci,netdev=n0,romfile="]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.tty = self._find_tty() if pty else ""

    def _find_tty(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        found = re.search(r"redirected to (\S+)", line)
        if not found:
            raise RuntimeError(line)
        return found[1]

    def console(self) -> str:
        """Return what the console printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_for(self, text: str, timeout_s: float) -> None:
        """Wait until the console shows `text`."""
        deadline_s = time.monotonic() + timeout_s
        while text not in self.console():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"no {text!r} on the console:\n{self.console()[-3000:]}")
            time.sleep(0.1)

    def wait_off(self, timeout_s: float) -> None:
        """Wait until the board switches itself off, or reboots, which ends QEMU as well."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"still on:\n{self.console()[-3000:]}") from error

    def cut_power(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def ssh(self, key: Path, command: str, *, timeout_s: float = 120) -> str:
        """Run a command as root and return what it prints."""
        done = subprocess.run(
            [*self._ssh(key), command],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stdout[-1500:]}{done.stderr[-1500:]}")
        return done.stdout

    def wait_ssh(self, key: Path, timeout_s: float) -> None:
        """Wait until the board answers SSH."""
        deadline_s = time.monotonic() + timeout_s
        while not self._answers(key):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"no SSH:\n{self.console()[-3000:]}")
            time.sleep(0.5)

    def _answers(self, key: Path) -> bool:
        try:
            self.ssh(key, "true", timeout_s=20)
        except (RuntimeError, subprocess.TimeoutExpired):
            return False
        return True

    def _ssh(self, key: Path) -> Sequence[str]:
        options = ["-F", "none", "-i", str(key), "-p", str(self.ssh_port), *SSH_KEYS]
        return ["ssh", *options, "-o", "UserKnownHostsFile=/dev/null", "root@127.0.0.1"]

    def __enter__(self) -> Emulated:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut_power()
