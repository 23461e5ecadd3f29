"""Put a seed on an operating system's image: find its partitions, recognise its format, write.

Never guesses a format: a wrong one is silently ignored by the board. Knows nothing about cards.
"""

from __future__ import annotations

import lzma
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from firmware_tools.errors import FlashError
from firmware_tools.flash.ext4 import RootFile, edit_partition, read_file
from firmware_tools.flash.fat import BootFiles, FatInImage
from firmware_tools.flash.firstboot import (
    BOOT,
    FORMATS,
    NEEDS_ROOT,
    SEED,
    Settings,
    boot_files,
    install_unit,
)
from firmware_tools.flash.partitions import Partition, read_partitions

__all__ = ["Image", "prepare_boot", "recognise", "unpack_image"]

_CHUNK_BYTES = 1 << 20
_UNIT = "multispin-install.service"
_ROOT_SEED = "/opt/multispin-seed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A disk image: its boot partition (FAT) and root partition (ext4), either may be missing."""

    path: Path
    boot: Partition | None
    root: Partition | None

    @classmethod
    def open(cls, path: Path) -> Image:
        """Read the partition table.

        Raises:
            FlashError: if it is no disk image, or has neither FAT nor ext4.
        """
        with path.open("rb") as stream:
            found = read_partitions(stream, path.stat().st_size)
        boot = next((each for each in found if each.kind == "fat"), None)
        roots = [each for each in found if each.kind == "ext4"]
        root = max(roots, key=lambda each: each.size_bytes) if roots else None
        if boot is None and root is None:
            raise FlashError(f"flash sd: {path} has neither a FAT nor an ext4 partition")
        return cls(path=path, boot=boot, root=root)

    @property
    def boot_files(self) -> FatInImage | None:
        """The boot partition's files."""
        if self.boot is None:
            return None
        return FatInImage(image=self.path, start_bytes=self.boot.start_bytes)

    def release(self) -> dict[str, str]:
        """Return the fields of the system's /etc/os-release, {} without one."""
        if self.root is None:
            return {}
        # /etc/os-release is a link on most systems, which debugfs does not follow.
        for name in ("/usr/lib/os-release", "/etc/os-release"):
            text = read_file(self.path, self.root.start_bytes, name)
            if text:
                pairs = (line.partition("=") for line in text.decode().splitlines())
                return {key: value.strip('"') for key, _, value in pairs}
        return {}

    def prepare(self, kind: str, settings: Settings, seed: Path) -> None:
        """Write seed and first-boot files for this format, and read every one back.

        Raises:
            FlashError: if something does not fit, or the format needs a partition that is missing.
        """
        files = self.boot_files
        if kind not in NEEDS_ROOT:
            if files is None:
                raise FlashError(f"flash sd: format '{kind}' needs a FAT partition; use 'none'")
            prepare_boot(files, kind, settings, seed)
            return
        if self.root is None:
            raise FlashError(f"flash sd: format '{kind}' needs an ext4 partition")
        if kind == "rpi-preseed" and files is not None:
            for name, text in boot_files(kind, settings, "").items():
                files.write(name, text.encode())
        self._prepare_root(settings, seed)

    def _prepare_root(self, settings: Settings, seed: Path) -> None:
        assert self.root is not None
        unit = f"/etc/systemd/system/{_UNIT}"
        files = {
            f"{_ROOT_SEED}/{path.name}": RootFile(
                content=path, mode=0o600 if path.suffix in (".key", ".toml") else 0o644
            )
            for path in sorted(seed.iterdir())
        }
        files[unit] = RootFile(content=install_unit(_ROOT_SEED).encode())
        files[f"/etc/systemd/system/multi-user.target.wants/{_UNIT}"] = RootFile(link=unit)
        files["/etc/hostname"] = RootFile(content=f"{settings.hostname}\n".encode())
        with edit_partition(self.path, self.root.start_bytes, self.root.size_bytes) as copy:
            copy.put(files)


def prepare_boot(files: BootFiles, kind: str, settings: Settings, seed: Path) -> None:
    """Write seed and first-boot files to a boot partition; the command line last."""
    if kind in NEEDS_ROOT:
        raise FlashError(f"flash sd: format '{kind}' needs the whole image: use --image")
    names = {name.lower(): name for name in files.names()}
    cmdline = files.read(names["cmdline.txt"]).decode() if "cmdline.txt" in names else ""
    if kind == "systemd" and "cmdline.txt" not in names:
        raise FlashError("flash sd: the boot partition has no cmdline.txt; is it a boot partition?")
    files.copy_tree(seed, SEED)
    texts = boot_files(kind, settings, cmdline)
    for name in sorted(texts, key=lambda name: name == "cmdline.txt"):
        files.write(names.get(name, name), texts[name].encode())


def recognise(files: BootFiles | None, release: dict[str, str], asked: str | None) -> str:
    """Return the first-boot format that was asked for, or that the image shows it reads.

    Raises:
        FlashError: if it shows none, or several.
    """
    if asked is not None:
        if asked not in FORMATS:
            raise FlashError(f"flash sd: no format {asked!r}; use one of {', '.join(FORMATS)}")
        return asked
    names = {name.lower() for name in files.names()} if files else set()
    pi = "issue.txt" in names or release.get("ID") == "raspbian"
    found = set()
    if {"user-data", "meta-data"} <= names:
        found.add("cloudinit-rpi" if pi else "cloudinit")
    if "rpi-preseed.toml" in names:
        found.add("rpi-preseed")
    if pi and release.get("VERSION_CODENAME") == "bookworm" and not found:
        found.add("systemd")
    if len(found) != 1:
        what = f"several formats ({', '.join(sorted(found))})" if found else "no known format"
        raise FlashError(
            f"flash sd: the image shows {what}; say which it reads with --format "
            f"({', '.join(FORMATS)}); {BOOT} is where it must mount its FAT partition"
        )
    return found.pop()


def _open(source: Path) -> IO[bytes]:
    if source.suffix == ".xz":
        return lzma.open(source)
    return source.open("rb")


def unpack_image(source: Path, target: Path, progress: Callable[[int], None]) -> None:
    """Copy an image, unpacking .xz, leaving holes for zeros; `target` appears when whole.

    Raises:
        FlashError: if the source is missing or damaged.
    """
    fresh = target.with_name(f".{target.name}.new")
    try:
        with _open(source) as reading, fresh.open("wb") as writing:
            done = 0
            while chunk := reading.read(_CHUNK_BYTES):
                if any(chunk):
                    writing.write(chunk)
                else:
                    writing.seek(len(chunk), 1)
                done += len(chunk)
                progress(done)
            writing.truncate(done)
    except (OSError, EOFError, lzma.LZMAError) as error:
        fresh.unlink(missing_ok=True)
        raise FlashError(f"flash sd: {source}: {error}; download it again") from error
    shutil.move(fresh, target)
