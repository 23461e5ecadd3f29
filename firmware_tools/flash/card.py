"""Write an image to a card: never a system's disk, first block last, every block read back.

Knows nothing about what is in the image.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from firmware_tools.errors import FlashError

__all__ = ["check_card", "write_card"]

BLOCK_BYTES = 1 << 20


def check_card(
    device: Path,
    *,
    system: Path = Path("/sys/class/block"),
    mounts: str | None = None,
    swaps: str | None = None,
) -> None:
    """Refuse a device that is no card, or that this computer uses.

    Raises:
        FlashError: with what it is.
    """
    try:
        mode = device.stat().st_mode
    except OSError as error:
        raise FlashError(f"flash sd: {device}: {error.strerror}") from error
    if not stat.S_ISBLK(mode):
        raise FlashError(f"flash sd: {device} is no block device; see: lsblk")
    check_use(device.resolve().name, system, mounts, swaps)


def check_use(name: str, system: Path, mounts: str | None, swaps: str | None) -> None:
    """Refuse a block device by its name in /sys/class/block."""
    entry = system / name
    if (entry / "partition").exists():
        raise FlashError(f"flash sd: {name} is a partition; give the whole card")
    used = (mounts if mounts is not None else Path("/proc/self/mounts").read_text()).splitlines()
    swapped = (swaps if swaps is not None else Path("/proc/swaps").read_text()).splitlines()
    parts = {name, *(path.name for path in entry.glob(f"{name}*"))}
    for line in [*used, *swapped]:
        source = Path(line.split(" ")[0]).name
        if source in parts:
            where = line.split(" ")[1] if line in used else "swap"
            raise FlashError(f"flash sd: {source} is in use ({where}); unmount it, or is it yours?")
    if any((entry / "holders").glob("*")):
        raise FlashError(f"flash sd: {name} belongs to a volume of this computer")
    removable = (entry / "removable").read_text().strip() == "1"
    if not removable and not name.startswith("mmcblk"):
        raise FlashError(f"flash sd: {name} is a fixed disk of this computer; give a card")


def write_card(image: Path, device: Path, progress: Callable[[str, int], None]) -> None:
    """Write the image and verify it; `progress` gets ("write" or "verify", bytes).

    A card that was pulled out half-way never boots: its first block is written when all others are.

    Raises:
        FlashError: if it is too small, or reads back differently.
    """
    size_bytes = image.stat().st_size
    with image.open("rb") as source, device.open("r+b", buffering=0) as target:
        room_bytes = target.seek(0, os.SEEK_END)
        if stat.S_ISBLK(device.stat().st_mode) and room_bytes < size_bytes:
            raise FlashError(
                f"flash sd: the card has {room_bytes >> 20} MiB, the image {size_bytes >> 20}"
            )
        first = source.read(BLOCK_BYTES)
        _write(target, 0, bytes(len(first)))
        source.seek(len(first))
        done = len(first)
        while chunk := source.read(BLOCK_BYTES):
            _write(target, done, chunk)
            done += len(chunk)
            progress("write", done)
        os.fsync(target.fileno())
        _write(target, 0, first)
        os.fsync(target.fileno())
    _verify(image, device, progress)


def _write(target: object, at: int, chunk: bytes) -> None:
    """Write all of a chunk, however little each call takes."""
    descriptor = target.fileno()  # type: ignore[attr-defined]
    view = memoryview(chunk)
    while view:
        try:
            written = os.pwrite(descriptor, view, at)
        except OSError as error:
            raise FlashError(
                f"flash sd: writing at byte {at}: {error.strerror}; card or reader faulty"
            ) from error
        view, at = view[written:], at + written


def _verify(image: Path, device: Path, progress: Callable[[str, int], None]) -> None:
    with image.open("rb") as source, device.open("rb", buffering=0) as target:
        os.posix_fadvise(target.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        done = 0
        while wanted := source.read(BLOCK_BYTES):
            found = b""
            while len(found) < len(wanted) and (more := target.read(len(wanted) - len(found))):
                found += more
            if found != wanted:
                hashes = [hashlib.sha256(each).hexdigest()[:16] for each in (wanted, found)]
                raise FlashError(
                    f"flash sd: the card reads back differently at byte {done} (wrote {hashes[0]}, "
                    f"read {hashes[1]}): card or reader faulty; use another"
                )
            done += len(wanted)
            progress("verify", done)
