"""Install over SSH with OpenSSH's own client: host key checked, upload resumable, sudo asked for.

The board's side is `guard.pyz install`; a second run finds the release running and does nothing.
Knows nothing about seeds beyond their files.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from firmware_tools.board.install import GUARD, MANIFEST, PAYLOAD, identity_digest
from firmware_tools.bundle.manifest import Manifest
from firmware_tools.errors import FlashError

__all__ = ["Remote", "flash_over_ssh"]

_TIMEOUT_S = 600
_ATTEMPTS = 3
_PROBE = """\
import json, os, platform, shutil, subprocess, sys
state = {}
try:
    with open("/opt/multispin/state.json") as file:
        state = json.load(file)
except (OSError, ValueError):
    pass
try:
    with open("/var/lib/multispin/identity.sha256") as file:
        identity = file.read()
except OSError:
    identity = ""
slot = state.get("slots", {}).get(state.get("active"), {})
sudo = os.getuid() == 0 or (shutil.which("sudo") and not subprocess.call(
    ["sudo", "-n", "true"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL))
home = os.path.expanduser("~")
print(json.dumps({
    "uid": os.getuid(), "sudo": bool(sudo), "home": home,
    "free_bytes": shutil.disk_usage(home).free,
    "python": "%d.%d" % sys.version_info[:2], "machine": platform.machine(),
    "release": slot.get("release", 0), "status": slot.get("status", ""),
    "identity": identity,
}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A board that answers SSH.

    Attributes:
        address: USER@HOST; port: of its SSH server.
        options: more of ssh's own options, "-i KEY" or "-o UserKnownHostsFile=FILE".
        python: the board's interpreter.
    """

    address: str
    port: int = 22
    options: Sequence[str] = ()
    python: str = "python3"

    def __post_init__(self) -> None:
        user, at, host = self.address.partition("@")
        if not at or not user or not host or self.address.startswith("-") or " " in self.address:
            raise FlashError(f"flash ssh: {self.address!r} is not USER@HOST")

    def run(self, command: str, *, text: str = "") -> str:
        """Run a command on the board and return what it prints.

        Raises:
            FlashError: with what to do about it.
        """
        done = _run([_program("ssh"), *self._options("-p"), self.address, command], text)
        if done.returncode:
            raise FlashError(f"flash ssh: {self.explain(done.stderr or done.stdout)}")
        return done.stdout

    def upload(self, folder: Path, target: str) -> None:
        """Copy a folder's files, going on where an earlier attempt stopped."""
        names = sorted((path.name for path in folder.iterdir()), key=lambda name: name == PAYLOAD)
        lines = [
            f"put {shlex.quote(str(folder / name))} {shlex.quote(f'{target}/{name}')}"
            for name in names
        ]
        lines[-1] = f"re{lines[-1]}"  # the payload is the large one
        batch = [_program("sftp"), *self._options("-P"), "-b", "-", self.address]
        done = _run(batch, "\n".join([*lines, ""]))
        if done.returncode:
            raise FlashError(f"flash ssh: upload: {self.explain(done.stderr)}")

    def explain(self, said: str) -> str:
        """Return the one sentence behind what ssh printed."""
        lowered = said.lower()
        for sign, meaning in _SIGNS:
            if sign in lowered:
                return meaning.format(host=self.address.partition("@")[2], address=self.address)
        lines = [line for line in said.strip().splitlines() if line.strip()]
        return lines[-1] if lines else "the connection ended without a word; run it again"

    def _options(self, port_flag: str) -> list[str]:
        strict = ["-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes"]
        alive = ["-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15"]
        return [*strict, *alive, port_flag, str(self.port), *self.options]


_SIGNS = (
    (
        "remote host identification has changed",
        "the host key of {host} has changed: if the board was set up anew, remove the old key with "
        "'ssh-keygen -R {host}'; otherwise somebody is in between",
    ),
    (
        "host key verification failed",
        "the host key of {host} is not known: read it on the board ('flash serial' does), or "
        "connect once by hand with 'ssh {address}' and compare",
    ),
    ("permission denied", "{address} does not let us in: give --ssh-option=-i --ssh-option=KEY"),
    ("connection refused", "{host} runs no SSH server there: enable ssh on the board"),
    ("no route to host", "{host} is not reachable: check cable, Wi-Fi and address"),
    ("timed out", "{host} does not answer: check cable, Wi-Fi and address"),
    ("could not resolve", "{host} has no address: try its number instead"),
    ("sudo: not found", "the board has no sudo: give root@{host}, or install it"),
    ("sudo: command not found", "the board has no sudo: give root@{host}, or install it"),
    ("not in the sudoers", "{address} may not use sudo: give root@{host}, or another user"),
    *(
        (sign, "the connection to {host} was lost: run it again, it goes on where it stopped")
        for sign in ("connection closed", "connection reset", "closed by remote", "broken pipe")
    ),
    ("no space left", "the board's disk is full: make room and run it again"),
    ("incorrect password", "sudo on the board did not take the password"),
    ("sorry, try again", "sudo on the board did not take the password"),
)


def flash_over_ssh(
    remote: Remote, seed: Path, ask_password: Callable[[str], str], show: Callable[[str], None]
) -> bool:
    """Upload the seed, install it, and start the service; False if it ran already.

    Raises:
        FlashError: at the step that failed; run again, it goes on from there.
    """
    manifest = Manifest.from_bytes((seed / MANIFEST).read_bytes())
    show("looking at the board")
    board = _probe(remote)
    runs = (board["release"], board["status"], board["identity"])
    if runs == (manifest.release, "good", identity_digest(seed)):
        return False
    if board["python"] != manifest.python:
        raise FlashError(
            f"flash ssh: the board has Python {board['python']}, the bundle is for "
            f"{manifest.python}; build with --python {board['python']}"
        )
    needed = sum(path.stat().st_size for path in seed.iterdir()) + manifest.unpacked_bytes
    if int(str(board["free_bytes"])) < needed:
        raise FlashError(f"flash ssh: the board's disk is full: {needed >> 20} MiB are needed")
    password = "" if board["sudo"] else ask_password(f"sudo password of {remote.address}: ")
    target = f"{board['home']}/.multispin-seed"
    _upload(remote, seed, target, show)
    show("installing")
    _install(remote, target, password, root=board["uid"] == 0)
    return True


def _probe(remote: Remote) -> dict[str, object]:
    said = remote.run(f"{remote.python} -", text=_PROBE)
    try:
        found: dict[str, object] = json.loads(said.strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise FlashError("flash ssh: the board's Python did not answer; is it python3?") from error
    return found


def _upload(remote: Remote, seed: Path, target: str, show: Callable[[str], None]) -> None:
    """Upload until the board holds every file as it is here."""
    wanted = {path.name: _digest(path) for path in seed.iterdir()}
    quoted = shlex.quote(target)
    show("uploading")
    remote.run(f"umask 077; mkdir -p {quoted} && touch {quoted}/{PAYLOAD}")
    for attempt in range(_ATTEMPTS):
        try:
            remote.upload(seed, target)
        except FlashError:
            if attempt == _ATTEMPTS - 1:
                raise
            show("uploading, once more")
        listed = remote.run(f"cd {quoted} && sha256sum *")
        found = {line.split()[1]: line.split()[0] for line in listed.splitlines()}
        if found == wanted:
            return
        if found.get(PAYLOAD) != wanted[PAYLOAD] and attempt:
            remote.run(f": > {quoted}/{PAYLOAD}")  # what is there is of another bundle
    raise FlashError("flash ssh: the board holds other bytes than were sent; run it again")


def _install(remote: Remote, target: str, password: str, *, root: bool) -> None:
    quoted = shlex.quote(target)
    steps = (
        f"{remote.python} {quoted}/{GUARD} install {quoted} && rm -rf {quoted} && "
        "if [ -d /run/systemd/system ]; then "
        "systemctl daemon-reload && systemctl restart --no-block multispin.service; fi"
    )
    if root:
        remote.run(steps)
    else:
        remote.run(f"sudo -S -p '' sh -c {shlex.quote(steps)}", text=f"{password}\n")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise FlashError(f"flash ssh: '{name}' is missing; run: apt install openssh-client")
    return found


def _run(command: Sequence[str], text: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise FlashError(f"flash ssh: no answer within {_TIMEOUT_S} s; run it again") from error
