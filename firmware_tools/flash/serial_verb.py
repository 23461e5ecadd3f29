"""`multispin flash serial PORT`: from a bare login prompt to SSH, and from there as `flash ssh`.

The board's SSH host key is read over the wire and pinned, so the hand-over trusts nothing else.
Knows nothing about prompts or frames.
"""

from __future__ import annotations

import argparse
import base64
import getpass
import json
import shlex
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from firmware_tools.errors import FlashError
from firmware_tools.flash.console import Console, open_port
from firmware_tools.flash.owner import add_options, make_seed_for, public_key_line, read_text
from firmware_tools.flash.push import RECEIVER, Push, seconds_for
from firmware_tools.flash.ssh import Remote
from firmware_tools.flash.ssh_verb import add_ssh_options, install
from sdk.errors import ConfigError

__all__ = ["configure", "prepare_ssh", "push_seed", "run"]

_HOST_KEY = "/etc/ssh/ssh_host_ed25519_key.pub"
_SEED = "/var/tmp/multispin-seed"  # noqa: S108 - on the board; /tmp is emptied at boot
_NETWORK_S = 90.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("port_path", metavar="PORT", help="/dev/ttyUSB0")
    add_options(parser)
    add_ssh_options(parser)
    parser.add_argument("--baud", type=int, default=115200, help="default: 115200")
    parser.add_argument("--user", default="pi", help="who logs in (default: pi)")
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="default: asked for")
    parser.add_argument("--ssh-key", type=Path, metavar="FILE.pub", help="lets ssh in")
    parser.add_argument("--ssh-host", metavar="HOST", help="if not the board's own address")
    parser.add_argument("--wifi-ssid", default="", metavar="NAME", help="network to join")
    parser.add_argument("--wifi-psk-file", type=Path, metavar="FILE", help="its password, alone")
    parser.add_argument("--push", action="store_true", help="push everything over the wire: slow")
    parser.add_argument("--yes", action="store_true", help="push although it takes that long")


def run(args: argparse.Namespace) -> int:
    """Log in, then hand over to SSH or push."""
    if not args.push and args.ssh_key is None:
        raise ConfigError("flash serial: give --ssh-key FILE.pub to go on over SSH, or --push")
    key = public_key_line(args.ssh_key)
    password = (
        read_text(args.password_file, "--password-file", "give a file with the password alone")
        if args.password_file
        else getpass.getpass(f"password of {args.user} on the board: ")
    )
    with open_port(args.port_path, args.baud) as port:
        print(f"waiting for the console at {args.port_path} …", file=sys.stderr)
        console = Console(port=port)
        console.login(args.user, password)
        if args.push:
            return _push(args, console, password)
        address = prepare_ssh(
            console,
            password,
            key=key,
            wifi=_wifi(args),
        )
        host_key = console.check(f"cat {_HOST_KEY}")
    remote = pinned(args, args.ssh_host or address, host_key)
    return install(args, remote)


def prepare_ssh(
    console: Console, password: str, *, key: str, wifi: tuple[str, str] | None = None
) -> str:
    """Let the key in, start the SSH server, and return the board's address.

    Raises:
        FlashError: if the board gets no address.
    """
    quoted = shlex.quote(key)
    console.check(
        '(umask 077; mkdir -p "$HOME/.ssh"; f="$HOME/.ssh/authorized_keys"; '
        f'touch "$f"; grep -qxF {quoted} "$f" || echo {quoted} >> "$f")'
    )
    console.become_root(password)
    if wifi is not None:
        name, psk = (shlex.quote(each) for each in wifi)
        console.check(f"nmcli dev wifi connect {name} password {psk}", 90)
    console.check("ssh-keygen -A && systemctl enable --now ssh", 90)
    deadline_s = time.monotonic() + _NETWORK_S
    while time.monotonic() < deadline_s:
        words = console.check("ip -4 -o addr show scope global").split()
        if "inet" in words:
            return words[words.index("inet") + 1].partition("/")[0]
        time.sleep(1)
    raise FlashError("flash serial: the board gets no address: plug in a cable, or --wifi-ssid")


def pinned(args: argparse.Namespace, host: str, host_key: str) -> Remote:
    """Return the board as SSH will see it, trusting the key that came over the wire alone."""
    kind, _, rest = host_key.strip().partition(" ")
    if kind != "ssh-ed25519" or not rest:
        raise FlashError(f"flash serial: the board's {_HOST_KEY} holds no key")
    known = args.keys / "devices" / f"{args.id}.known_hosts"
    known.parent.mkdir(parents=True, exist_ok=True)
    name = host if args.port == 22 else f"[{host}]:{args.port}"
    known.write_text(f"{name} {kind} {rest.split()[0]}\n")
    options = (*args.ssh_option, "-o", f"UserKnownHostsFile={known}")
    return Remote(
        address=f"{args.user}@{host}",
        port=args.port,
        options=(*options, "-o", "GlobalKnownHostsFile=none"),
        python=args.board_python,
    )


def push_seed(console: Console, seed: Path, python: str = "python3") -> None:
    """Push every file of a seed over the console."""
    console.check(f"mkdir -p -m 700 {_SEED}")
    script = base64.b64encode(RECEIVER.encode()).decode()
    console.check(f"echo {script} | base64 -d > {_SEED}/.receiver")
    for path in sorted(seed.iterdir()):
        console.start(f"{python} {_SEED}/.receiver {_SEED}/{path.name}")
        Push(port=console.port, show=partial(_show, path.name)).send(path)
    console.check(f"rm -f {_SEED}/.receiver")


def _push(args: argparse.Namespace, console: Console, password: str) -> int:
    with tempfile.TemporaryDirectory(prefix="multispin-seed-") as scratch:
        seed = Path(scratch) / "seed"
        manifest = make_seed_for(args, seed)
        size_bytes = sum(path.stat().st_size for path in seed.iterdir())
        minutes = seconds_for(size_bytes, args.baud) / 60
        if not args.yes:
            raise FlashError(
                f"flash serial: {size_bytes >> 20} MiB at {args.baud} baud take {minutes:.0f} "
                "minutes; use --ssh-key instead, or say --yes"
            )
        console.become_root(password)
        push_seed(console, seed, args.board_python)
    said = console.check(f"{args.board_python} {_SEED}/guard.pyz install {_SEED}", 600)
    console.run(f"rm -rf {_SEED}; systemctl daemon-reload; systemctl restart multispin", 120)
    result = {"id": args.id, "version": manifest.version, "changed": "already" not in said}
    print(json.dumps(result) if args.json else f"{args.id}: {said.strip()}")
    return 0


def _wifi(args: argparse.Namespace) -> tuple[str, str] | None:
    if not args.wifi_ssid:
        return None
    if args.wifi_psk_file is None:
        return args.wifi_ssid, ""
    hint = "give a file with the password alone"
    return args.wifi_ssid, read_text(args.wifi_psk_file, "--wifi-psk-file", hint)


def _show(name: str, done: int, size: int, left_s: float) -> None:
    print(f"\r{name:<16} {done * 100 // max(size, 1):>3} %  {left_s / 60:5.1f} min left", end="")
    if done == size:
        print(file=sys.stderr)
