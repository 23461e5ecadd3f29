"""flash ssh: against a real OpenSSH server, with a folder standing in for the board's disk."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import stat
from argparse import Namespace
from pathlib import Path

import pytest
from firmware_broker import free_port
from firmware_ssh import Server, flash, no_password

from firmware_tools.board.state import GOOD
from firmware_tools.errors import FlashError
from firmware_tools.flash.jetson_verb import command_line, missing
from firmware_tools.flash.ssh import Remote, flash_over_ssh
from firmware_tools.keys import KeyStore
from sdk.cli import main


def test_a_board_is_installed_and_a_second_run_brings_only_what_is_new(
    server: Server, seed: Path, tmp_path: Path
) -> None:
    seed = Path(shutil.copytree(seed, tmp_path / "seed"))
    assert flash(server, seed)
    state = server.slots.load()
    assert (state.running.version, state.trying) == ("1.0.0", True)
    assert stat.S_IMODE((server.root / "etc/multispin/device.key").stat().st_mode) == 0o600
    assert not list((server.folder / "home").iterdir())  # no secret stays behind
    server.slots.good()
    assert flash(server, seed) is False
    (seed / "device.crt").write_bytes(b"issued anew")
    assert flash(server, seed)
    assert (server.root / "etc/multispin/device.crt").read_bytes() == b"issued anew"
    assert server.slots.load().running.status == GOOD  # its slot is the same


@pytest.mark.slow
def test_an_upload_goes_on_where_it_stopped(server: Server, seed: Path) -> None:
    there = server.folder / "home" / ".multispin-seed"
    there.mkdir()
    payload = (seed / "payload.tar.gz").read_bytes()
    (there / "payload.tar.gz").write_bytes(payload[: len(payload) // 2])
    assert flash(server, seed)
    assert server.slots.load().running.version == "1.0.0"


@pytest.mark.slow
def test_a_rest_of_another_bundle_is_thrown_away(server: Server, seed: Path) -> None:
    there = server.folder / "home" / ".multispin-seed"
    there.mkdir()
    (there / "payload.tar.gz").write_bytes(b"?" * 1000)
    assert flash(server, seed)


@pytest.mark.parametrize(("key", "why"), [("other", "has changed"), ("", "is not known")])
def test_a_host_key_that_is_unknown_or_has_changed_is_refused(
    server: Server, seed: Path, key: str, why: str
) -> None:
    if key:
        server.know(key)
    else:
        (server.folder / "known").write_text("")
    with pytest.raises(FlashError, match=why):
        flash(server, seed)
    assert not (server.root / "opt").exists()


def test_a_key_that_does_not_fit_is_said(server: Server, seed: Path) -> None:
    (server.folder / "authorized").write_text("")
    with pytest.raises(FlashError, match="does not let us in"):
        flash(server, seed)


def test_a_server_that_is_not_there_is_said(server: Server, seed: Path) -> None:
    remote = Remote(address="root@127.0.0.1", port=free_port(), options=server.remote.options)
    with pytest.raises(FlashError, match="no SSH server"):
        flash_over_ssh(remote, seed, no_password, print)


def test_another_python_is_refused_before_the_upload(server: Server, seed: Path) -> None:
    script = server.folder / "bin/python3"
    script.write_text(script.read_text().replace("(3, 11,", "(3, 13,"))
    with pytest.raises(FlashError, match=r"--python 3\.13"):
        flash(server, seed)
    assert not list((server.folder / "home").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("password", ["opensesame", "wrong"])
def test_sudo_is_asked_for_where_it_is_needed(tmp_path: Path, seed: Path, password: str) -> None:
    if not Path("/usr/sbin/sshd").exists() or os.getuid():
        pytest.skip("needs root and openssh-server (apt: openssh-server)")
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return password

    with Server(tmp_path, uid=1000) as server:
        if password == "wrong":
            with pytest.raises(FlashError, match="did not take the password"):
                flash_over_ssh(server.remote, seed, ask, print)
        else:
            assert flash_over_ssh(server.remote, seed, ask, print)
            assert server.slots.load().running.version == "1.0.0"
        assert len(asked) == 1
        assert (tmp_path / "sudo-ran").exists() == (password == "opensesame")


@pytest.mark.slow
def test_the_command_line(
    server: Server,
    bundle_path: Path,
    key_store: KeyStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(getpass, "getpass", no_password)
    command = ["flash", "ssh", server.remote.address, "--port", str(server.port), "--json"]
    command += [f"--ssh-option={option}" for option in server.remote.options]
    command += ["--bundle", str(bundle_path), "--id", "ssh-2", "--broker", "localhost:8883"]
    command += ["--release-dir", str(tmp_path / "release"), "--keys", str(key_store.public)]
    assert main(command) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"id": "ssh-2", "version": "1.0.0", "changed": True}
    assert 'id = "ssh-2"' in (server.root / "etc/multispin/multispin.toml").read_text()
    for address in ("host", "@host"):
        assert main(["flash", "ssh", address, *command[3:]]) == 10
    with pytest.raises(FlashError, match="USER@HOST"):
        Remote(address="-oProxyCommand=x@y")


def options(**changes: object) -> Namespace:
    defaults = {"module": "orin-nano", "storage": "nvme0n1p1", "massflash": None}
    return Namespace(**{**defaults, "usb_instance": None, "flash_only": False, **changes})


def test_nvidia_s_flasher_is_called_as_it_wants() -> None:
    line = command_line(options(massflash=3, usb_instance="1-2", flash_only=True))
    text = " ".join(line)
    assert "tools/kernel_flash/l4t_initrd_flash.sh --external-device nvme0n1p1" in text
    assert "--flash-only --massflash 3 --usb-instance 1-2 jetson-orin-nano-devkit internal" in text


def test_without_nvidia_s_package_it_says_precisely_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["flash", "jetson", "--bsp", str(tmp_path)]) == 10
    said = capsys.readouterr().err
    assert "Driver Package (BSP)" in said
    assert "apply_binaries.sh" in said
    assert "recovery mode" in said
    script = tmp_path / "tools/kernel_flash/l4t_initrd_flash.sh"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    (tmp_path / "usb/1-1").mkdir(parents=True)
    (tmp_path / "usb/1-1/idVendor").write_text("0955\n")
    found = missing(tmp_path, tmp_path / "usb", "x86_64")
    assert not any("BSP" in each or "recovery" in each for each in found)
    assert "x86_64" in missing(tmp_path, tmp_path / "usb", "aarch64")[0]
    assert main(["flash", "jetson", "--bsp", str(tmp_path), "--dry-run"]) == 0
    assert "l4t_initrd_flash.sh" in capsys.readouterr().out
