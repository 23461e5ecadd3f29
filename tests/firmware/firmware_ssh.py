"""An OpenSSH server of a test's own, with a folder standing in for the board's disk."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from firmware_broker import free_port

from firmware_tools.board.paths import BoardPaths
from firmware_tools.board.slots import Slots
from firmware_tools.flash.ssh import Remote, flash_over_ssh

# What the server's commands run as "python3": this machine's own, told that it is a board.
_BOARD_PYTHON = """\
#!{python} -S
import builtins, os, platform, runpy, sys
root = {root!r}
platform.machine = lambda: "aarch64"
sys.version_info = (3, 11, 0, "final", 0)
plain = builtins.open
def below(path, *more, **options):
    if isinstance(path, str) and path.startswith(("/opt/multispin", "/var/lib/multispin")):
        path = root + path
    return plain(path, *more, **options)
if sys.argv[1] == "-":
    builtins.open = below
    os.getuid = lambda: {uid}
    exec(compile(sys.stdin.read(), "probe", "exec"), {{"__name__": "__main__"}})
else:
    sys.argv = [sys.argv[1], "--root", root, *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
_SUDO = """\
#!/bin/sh
# Asks as sudo -S does; `sudo -n` has no password to give.
[ "$1" = -n ] && exit 1
read -r given
[ "$given" = opensesame ] || {{ echo 'Sorry, try again.' >&2; exit 1; }}
shift 3
echo yes > {marker}
exec "$@"
"""


class Server:
    """An OpenSSH server of the test's own: its keys, its port, its idea of python3 and sudo."""

    def __init__(self, folder: Path, *, uid: int = 0) -> None:
        self.folder, self.port = folder, free_port()
        self.root = folder / "board"
        self.root.mkdir()
        for name in ("host", "user", "other"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(keygen, check=True)
        shutil.copy(folder / "user.pub", folder / "authorized")
        self._scripts(uid)
        self.know("host")
        user = pwd.getpwuid(os.getuid()).pw_name
        self.remote = Remote(
            address=f"{user}@127.0.0.1",
            port=self.port,
            options=(
                *("-F", "none", "-i", str(folder / "user"), "-o", "IdentitiesOnly=yes"),
                *("-o", f"UserKnownHostsFile={folder}/known"),
                *("-o", "GlobalKnownHostsFile=none"),
            ),
        )

    def know(self, name: str) -> None:
        """Let the client know this key as the server's."""
        key = (self.folder / f"{name}.pub").read_text()
        (self.folder / "known").write_text(f"[127.0.0.1]:{self.port} {key}")

    def _scripts(self, uid: int) -> None:
        tools = self.folder / "bin"
        tools.mkdir()
        texts = {
            "python3": _BOARD_PYTHON.format(python=sys.executable, root=str(self.root), uid=uid),
            "sudo": _SUDO.format(marker=self.folder / "sudo-ran"),
        }
        for name, text in texts.items():
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        (self.folder / "conf").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host\n"
            f"PidFile {self.folder}/pid\nAuthorizedKeysFile {self.folder}/authorized\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
            f"SetEnv PATH={tools}:/usr/bin:/bin HOME={self.folder}/home\n"
            "Subsystem sftp internal-sftp\n"
        )
        (self.folder / "home").mkdir()

    def __enter__(self) -> Server:
        Path("/run/sshd").mkdir(exist_ok=True)
        command = ["/usr/sbin/sshd", "-D", "-e", "-f", str(self.folder / "conf")]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stderr=log)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.05)
        raise RuntimeError((self.folder / "log").read_text())

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)

    @property
    def slots(self) -> Slots:
        return Slots(BoardPaths(root=self.root))


def no_password(prompt: str) -> str:
    raise AssertionError("nobody should be asked")


def flash(server: Server, seed: Path) -> bool:
    return flash_over_ssh(server.remote, seed, no_password, lambda step: None)  # noqa: ARG005
