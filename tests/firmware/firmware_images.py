"""Small card images as they come from a board's maker: MBR or GPT, FAT and ext4, no root needed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from firmware_tools.flash.firstboot import Settings
from firmware_tools.flash.image import Image, unpack_image

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEh3 owner@host"
CMDLINE = "console=serial0,115200 root=PARTUUID=4657314c-02 rootwait quiet"
_MIB = 1 << 20
_FAT_MIB, _EXT_MIB = 24, 24


def need(*programs: str) -> None:
    """Skip without the programs that make the images."""
    for program in programs:
        if shutil.which(program, path=PATH) is None:
            pytest.skip(f"{program} is not installed (apt: dosfstools e2fsprogs fdisk mtools)")


def tool(*command: str, text: str = "") -> str:
    """Run a program of the system and return what it prints."""
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=True, env={"PATH": PATH}
    )
    return done.stdout


def make_image(
    folder: Path,
    *,
    table: str = "dos",
    codename: str = "bookworm",
    boot: dict[str, str] | None = None,
    fat: bool = True,
) -> Path:
    """Make an image of a Pi-like system; `boot` are more files of its boot partition."""
    need("mkfs.vfat", "mke2fs", "sfdisk", "mcopy", "debugfs", "e2fsck")
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / f"{table}.img"
    with image.open("wb") as stream:
        stream.truncate((_FAT_MIB + _EXT_MIB + 4) * _MIB)
    ext_at = 2 + _FAT_MIB if fat else 2
    kinds = ("c", "83") if table == "dos" else ("U", "L")
    lines = [f"label: {table}", "unit: sectors"]
    if fat:
        lines.append(f"start={2 * 2048},size={_FAT_MIB * 2048},type={kinds[0]}")
    lines.append(f"start={ext_at * 2048},size={_EXT_MIB * 2048},type={kinds[1]}")
    tool("sfdisk", "-q", str(image), text="\n".join(lines) + "\n")
    if fat:
        _put(image, 2, _make_fat(folder, boot or {}))
    _put(image, ext_at, _make_ext4(folder, codename))
    return image


def _make_fat(folder: Path, boot: dict[str, str]) -> Path:
    part = folder / "fat.part"
    part.unlink(missing_ok=True)
    with part.open("wb") as stream:
        stream.truncate(_FAT_MIB * _MIB)
    tool("mkfs.vfat", "-n", "BOOTFS", str(part))
    files = {"cmdline.txt": CMDLINE, "config.txt": "arm_64bit=1\n", "issue.txt": "Pi\n"} | boot
    for name, text in files.items():
        (folder / name).write_text(text)
        tool("mcopy", "-i", str(part), str(folder / name), "::/")
    return part


def _make_ext4(folder: Path, codename: str) -> Path:
    tree, part = folder / "root", folder / "ext.part"
    shutil.rmtree(tree, ignore_errors=True)
    part.unlink(missing_ok=True)
    for name in ("etc/systemd/system", "usr/lib", "boot/firmware", "opt"):
        (tree / name).mkdir(parents=True)
    (tree / "usr/lib/os-release").write_text(f"ID=debian\nVERSION_CODENAME={codename}\n")
    (tree / "etc/os-release").symlink_to("../usr/lib/os-release")
    (tree / "etc/hostname").write_text("raspberrypi\n")
    tool("mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(part), f"{_EXT_MIB}M")
    return part


def _put(image: Path, at_mib: int, part: Path) -> None:
    with image.open("r+b") as stream:
        stream.seek(at_mib * _MIB)
        stream.write(part.read_bytes())


def settings(**changes: str) -> Settings:
    """Return what the owner of one board wants."""
    fields = {"hostname": "cam-7", "instance": "cam-7-1", "ssh_key": KEY} | changes
    return Settings(**fields)


def copy_of(image: Path, tmp_path: Path) -> Path:
    """Return a copy of an image to change."""
    target = tmp_path / "card.img"
    unpack_image(image, target, lambda _: None)
    return target


def check_clean(image: Image, folder: Path) -> None:
    """Have both file systems checked by their own programs."""
    for part, command in ((image.boot, ["fsck.vfat", "-n"]), (image.root, ["e2fsck", "-fn"])):
        assert part is not None
        cut = folder / "cut"
        with image.path.open("rb") as stream:
            stream.seek(part.start_bytes)
            cut.write_bytes(stream.read(part.size_bytes))
        tool(*command, str(cut))
