"""OS images: partition tables read, both file systems edited without root, packed images."""

from __future__ import annotations

import contextlib
import lzma
import os
from pathlib import Path

import pytest
from firmware_images import CMDLINE, check_clean, copy_of, settings, tool
from hypothesis import given
from hypothesis import strategies as st

from firmware_tools.errors import FlashError
from firmware_tools.flash.ext4 import RootFile, edit_partition
from firmware_tools.flash.fat import FatInImage
from firmware_tools.flash.image import Image, unpack_image
from firmware_tools.flash.partitions import read_partitions
from firmware_tools.keys import KeyStore
from sdk.cli import main


def fill(image: Path, tmp_path: Path) -> None:
    """Leave the boot partition 200 kB."""
    (tmp_path / "big").write_bytes(bytes((24 << 20) - 200_000))
    tool("mcopy", "-i", f"{image}@@{2 << 20}", str(tmp_path / "big"), "::/")


@pytest.mark.parametrize("table", ["dos", "gpt"])
def test_partitions_are_found(images: dict[str, Path], table: str) -> None:
    image = Image.open(images[table])
    assert image.boot is not None
    assert image.root is not None
    assert (image.boot.start_bytes, image.root.start_bytes) == (2 << 20, 26 << 20)
    assert image.release()["VERSION_CODENAME"] == "bookworm"


def test_what_is_no_image_is_refused(tmp_path: Path, images: dict[str, Path]) -> None:
    path = tmp_path / "x.img"
    for content in (b"", b"rubbish" * 1000, images["dos"].read_bytes()[: 20 << 20]):
        path.write_bytes(content)
        with pytest.raises(FlashError):
            Image.open(path)
    damaged = bytearray(images["gpt"].read_bytes())
    damaged[2 * 512 + 40] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(FlashError, match="GPT"):
        Image.open(path)


@given(st.binary(min_size=512, max_size=4096))
def test_no_bytes_break_the_reader_of_tables(content: bytes) -> None:
    import io

    signed = content[:510] + b"\x55\xaa" + content[512:]
    with contextlib.suppress(FlashError):
        read_partitions(io.BytesIO(signed), len(signed))


def test_a_full_boot_partition_is_said(images: dict[str, Path], tmp_path: Path, seed: Path) -> None:
    path = copy_of(images["dos"], tmp_path)
    fill(path, tmp_path)
    with pytest.raises(FlashError, match="full"):
        Image.open(path).prepare("systemd", settings(), seed)


def test_an_image_too_small_leaves_no_half_prepared_one_behind(
    images: dict[str, Path],
    tmp_path: Path,
    key_store: KeyStore,
    bundle_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = copy_of(images["dos"], tmp_path)
    fill(path, tmp_path)
    before, files = path.read_bytes(), {each.name for each in tmp_path.iterdir()}
    command = [
        "flash",
        "sd",
        "--bundle",
        str(bundle_path),
        "--id",
        "cam-5",
        "--broker",
        "localhost:1",
    ]
    command += ["--release-dir", str(tmp_path / "release"), "--keys", str(key_store.public)]
    command += ["--image", str(path), "--out", str(tmp_path / "out.img"), "--json"]
    assert main(command) == 10
    assert "the boot partition is full; use a larger image" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == files | {"release"}


def test_a_full_root_partition_is_said(images: dict[str, Path], tmp_path: Path) -> None:
    path = copy_of(images["dos"], tmp_path)
    before = path.read_bytes()
    with (
        pytest.raises(FlashError, match=r"full|read back|debugfs"),
        edit_partition(path, 26 << 20, 24 << 20) as copy,
    ):
        copy.put({"/opt/big": RootFile(content=os.urandom(30 << 20))})
    assert path.read_bytes() == before


def test_a_root_that_was_not_shut_down_is_refused(
    images: dict[str, Path], tmp_path: Path, seed: Path
) -> None:
    path = copy_of(images["dos"], tmp_path)
    with path.open("r+b") as stream:
        stream.seek((26 << 20) + 1024 + 0x60)  # s_feature_incompat
        flags = stream.read(1)[0] | 4  # needs_recovery
        stream.seek(-1, 1)
        stream.write(bytes([flags]))
    with pytest.raises(FlashError, match="shut down"):
        Image.open(path).prepare("none", settings(), seed)


def test_names_in_an_image_are_found_whatever_their_case(
    images: dict[str, Path], tmp_path: Path, seed: Path
) -> None:
    path = copy_of(images["dos"], tmp_path)
    place = f"{path}@@{2 << 20}"
    (tmp_path / "CMDLINE.TXT").write_text(CMDLINE)
    tool("mdel", "-i", place, "::/cmdline.txt")
    tool("mcopy", "-i", place, str(tmp_path / "CMDLINE.TXT"), "::/")
    tool("mmd", "-i", place, "::/Multispin")
    image = Image.open(path)
    image.prepare("systemd", settings(), seed)
    files = image.boot_files
    assert files is not None
    names = sorted(name for name in files.names() if name.lower() in ("cmdline.txt", "multispin"))
    assert [name.lower() for name in names] == ["cmdline.txt", "multispin"]
    assert b"systemd.run=" in files.read("cmdline.txt")
    assert files.read("multispin/guard.pyz") == (seed / "guard.pyz").read_bytes()
    check_clean(image, tmp_path)


class Forgetful(FatInImage):
    """A FAT that gives back other bytes than it took."""

    def _run(self, program: str, *arguments: str) -> bytes:
        done = FatInImage._run(self, program, *arguments)
        return done[:-1] + b"?" if program == "mtype" else done


def test_a_boot_partition_that_reads_back_differently_is_found_out(
    images: dict[str, Path], tmp_path: Path, seed: Path
) -> None:
    files = Forgetful(image=copy_of(images["dos"], tmp_path), start_bytes=2 << 20)
    with pytest.raises(FlashError, match="user-data did not read back as it was written"):
        files.write("user-data", b"#cloud-config\n")
    with pytest.raises(FlashError, match=r"bundle\.pub did not read back"):
        files.copy_tree(seed, "multispin")


def test_a_packed_image_is_unpacked_and_a_damaged_one_refused(
    images: dict[str, Path], tmp_path: Path
) -> None:
    packed = tmp_path / "os.img.xz"
    packed.write_bytes(lzma.compress(images["dos"].read_bytes(), preset=0))
    target = tmp_path / "out.img"
    unpack_image(packed, target, lambda _: None)
    assert target.read_bytes() == images["dos"].read_bytes()
    target.unlink()
    packed.write_bytes(packed.read_bytes()[:-200])
    with pytest.raises(FlashError, match="again"):
        unpack_image(packed, target, lambda _: None)
    assert list(tmp_path.glob("*out*")) == []
