"""Writing cards: first block last, every block read back, never a disk of this computer."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firmware_tools.errors import FlashError
from firmware_tools.flash import card
from firmware_tools.flash.card import check_card, check_use, write_card
from firmware_tools.flash.image import Image


def test_a_card_is_written_first_block_last_and_read_back(
    images: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "card"
    device.write_bytes(b"\xff" * images["dos"].stat().st_size)
    order: list[int] = []
    plain = os.pwrite

    def short_write(descriptor: int, data: memoryview, at: int) -> int:
        order.append(at)
        return plain(descriptor, data[: 300 << 10], at)

    monkeypatch.setattr(card.os, "pwrite", short_write)
    steps: list[str] = []
    write_card(images["dos"], device, lambda what, _: steps.append(what))
    assert device.read_bytes() == images["dos"].read_bytes()
    assert set(steps) == {"write", "verify"}
    assert max(order[-4:]) < card.BLOCK_BYTES  # the first block ends it


def test_a_card_pulled_out_half_way_does_not_boot(
    images: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "card"
    device.write_bytes(images["gpt"].read_bytes())
    plain = os.pwrite

    def pulled(descriptor: int, data: memoryview, at: int) -> int:
        if at > 10 << 20:
            raise OSError(5, "Input/output error")
        return plain(descriptor, data, at)

    monkeypatch.setattr(card.os, "pwrite", pulled)
    with pytest.raises(FlashError, match="faulty"):
        write_card(images["dos"], device, lambda *_: None)
    with pytest.raises(FlashError, match="no partition table"):
        Image.open(device)


def test_a_bad_card_is_found_out(
    images: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "card"
    device.write_bytes(bytes(images["dos"].stat().st_size))
    plain = os.pwrite

    def flips(descriptor: int, data: memoryview, at: int) -> int:
        return plain(descriptor, b"?" * len(data) if at == 3 << 20 else data, at)

    monkeypatch.setattr(card.os, "pwrite", flips)
    with pytest.raises(FlashError, match=f"at byte {3 << 20} .*faulty"):
        write_card(images["dos"], device, lambda *_: None)


def fake_disk(folder: Path, name: str, *, removable: str, partitions: int = 1) -> None:
    (folder / name / "holders").mkdir(parents=True)
    (folder / name / "removable").write_text(removable)
    for number in range(1, partitions + 1):
        part = f"{name}p{number}" if name[-1].isdigit() else f"{name}{number}"
        (folder / name / part).mkdir()
        (folder / part).mkdir()
        (folder / part / "partition").write_text(str(number))


def test_this_computer_s_disks_are_refused(tmp_path: Path) -> None:
    fake_disk(tmp_path, "sda", removable="0")
    fake_disk(tmp_path, "sdb", removable="1")
    fake_disk(tmp_path, "mmcblk0", removable="0", partitions=2)
    fake_disk(tmp_path, "sdc", removable="1")
    (tmp_path / "sdc/holders/dm-0").mkdir()
    mounts = "/dev/sda1 / ext4 rw 0 0\n/dev/mmcblk0p2 /media/x ext4 rw 0 0\n"
    refused = {
        "sda": "in use",
        "sdb1": "is a partition",
        "mmcblk0": "in use",
        "sdc": "volume",
    }
    for name, why in refused.items():
        with pytest.raises(FlashError, match=why):
            check_use(name, tmp_path, mounts, "")
    check_use("sdb", tmp_path, mounts, "")
    check_use("mmcblk0", tmp_path, "", "")
    with pytest.raises(FlashError, match="fixed disk"):
        check_use("sda", tmp_path, "", "")
    with pytest.raises(FlashError, match="swap"):
        check_use("sdb", tmp_path, "", "Filename\n/dev/sdb1 partition 1 0\n")
    with pytest.raises(FlashError, match="no block device"):
        check_card(tmp_path / "sda" / "removable")
    with pytest.raises(FlashError, match="No such file"):
        check_card(tmp_path / "nothing")


@contextmanager
def block_device(file: Path, size_bytes: int) -> Iterator[Path]:
    """Make a block device of a file, as a card is one."""
    file.write_bytes(bytes(size_bytes))
    done = subprocess.run(
        ["losetup", "--find", "--show", str(file)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("needs root, to make a block device")
    device = Path(done.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)


def test_a_real_block_device_is_written_whole_or_refused(
    images: dict[str, Path], tmp_path: Path
) -> None:
    size_bytes = images["gpt"].stat().st_size
    with block_device(tmp_path / "card", size_bytes + (4 << 20)) as device:
        with pytest.raises(FlashError, match="fixed disk of this computer"):
            check_card(device)
        write_card(images["gpt"], device, lambda *_: None)
        with device.open("rb") as stream:
            assert stream.read(size_bytes) == images["gpt"].read_bytes()
    with block_device(tmp_path / "small", 8 << 20) as device:
        with pytest.raises(FlashError, match="the card has 8 MiB, the image 5"):
            write_card(images["gpt"], device, lambda *_: None)
        assert not any(device.read_bytes())
