"""flash sd: partition tables, first-boot formats, image editing without root, cards."""

from __future__ import annotations

import contextlib
import json
import lzma
import os
import subprocess
from pathlib import Path

import pytest
from firmware_bundles import make_bundle, make_device_seed
from firmware_disk import small_disk
from firmware_images import CMDLINE, make_image, tool
from hypothesis import given
from hypothesis import strategies as st

from firmware_tools.errors import FlashError
from firmware_tools.flash.ext4 import RootFile, edit_partition, read_file
from firmware_tools.flash.fat import FatInImage, MountedFolder
from firmware_tools.flash.firstboot import FORMATS, Settings, boot_files, with_tokens
from firmware_tools.flash.image import Image, prepare_boot, recognise, unpack_image
from firmware_tools.flash.partitions import read_partitions
from firmware_tools.keys import KeyStore
from sdk.cli import main

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEh3 owner@host"


def settings(**changes: str) -> Settings:
    fields = {"hostname": "cam-7", "instance": "cam-7-1", "ssh_key": KEY} | changes
    return Settings(**fields)


@pytest.fixture(scope="session")
def sd_bundle(tmp_path_factory: pytest.TempPathFactory, key_store: KeyStore) -> Path:
    return make_bundle(tmp_path_factory.mktemp("sd"), key_store)


@pytest.fixture(scope="session")
def sd_seed(sd_bundle: Path, tmp_path_factory: pytest.TempPathFactory, key_store: KeyStore) -> Path:
    folder = tmp_path_factory.mktemp("sd-seed")
    return make_device_seed(folder, key_store, sd_bundle, "sd-1")


def fill(image: Path, tmp_path: Path) -> None:
    """Leave the boot partition 200 kB."""
    (tmp_path / "big").write_bytes(bytes((24 << 20) - 200_000))
    tool("mcopy", "-i", f"{image}@@{2 << 20}", str(tmp_path / "big"), "::/")


def copy_of(image: Path, tmp_path: Path) -> Path:
    target = tmp_path / "card.img"
    unpack_image(image, target, lambda _: None)
    return target


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "table"),
    [(kind, "gpt" if number % 2 else "dos") for number, kind in enumerate(FORMATS)],
)
def test_every_format_is_written_and_the_file_systems_stay_clean(
    images: dict[str, Path], tmp_path: Path, sd_seed: Path, kind: str, table: str
) -> None:
    path = copy_of(images[table], tmp_path)
    image = Image.open(path)
    assert image.boot is not None
    assert image.root is not None
    wifi = {"wifi_ssid": "net", "wifi_psk": "secret phrase", "wifi_country": "DE"}
    image.prepare(kind, settings(**wifi), sd_seed)
    files = image.boot_files
    assert files is not None
    cmdline = files.read("cmdline.txt").decode()
    if kind == "systemd":
        assert "systemd.run=/boot/firmware/firstrun.sh" in cmdline
        script = tmp_path / "firstrun.sh"
        script.write_bytes(files.read("firstrun.sh"))
        subprocess.run(["bash", "-n", script], check=True)
        assert KEY in script.read_text()
        assert "psk=secret phrase" in script.read_text()
    elif kind.startswith("cloudinit"):
        assert "ds=nocloud;i=cam-7-1" in cmdline
        assert json.loads(files.read("meta-data")) == {"instance-id": "cam-7-1"}
        user_data = files.read("user-data").decode()
        assert user_data.startswith("#cloud-config\n")
        assert KEY in json.dumps(json.loads(user_data.partition("\n")[2]))
        assert ("enable_ssh" in user_data) == (kind == "cloudinit-rpi")
        wifis = json.loads(files.read("network-config"))["wifis"]["wlan0"]
        assert wifis["access-points"] == {"net": {"password": "secret phrase"}}
    else:
        assert cmdline == CMDLINE
        at = image.root.start_bytes
        unit = read_file(path, at, "/etc/systemd/system/multispin-install.service")
        assert b"guard.pyz install /opt/multispin-seed" in (unit or b"")
        assert (
            read_file(path, at, "/opt/multispin-seed/payload.tar.gz")
            == (sd_seed / "payload.tar.gz").read_bytes()
        )
        stat = tool("debugfs", "-R", "stat /opt/multispin-seed/device.key", f"{path}?offset={at}")
        assert "Mode:  0600" in stat
        assert "User:     0   Group:     0" in stat
        link = tool(
            "debugfs",
            "-R",
            "stat /etc/systemd/system/multi-user.target.wants/multispin-install.service",
            f"{path}?offset={at}",
        )
        assert "symlink" in link
    if kind not in ("rpi-preseed", "none"):
        for name in ("guard.pyz", "payload.tar.gz", "device.key", "multispin.toml"):
            assert files.read(f"multispin/{name}") == (sd_seed / name).read_bytes()
    if kind == "rpi-preseed":
        assert b'hostname = "cam-7"' in files.read("rpi-preseed.toml")
    check_clean(image, tmp_path)
    image.prepare(kind, settings(**wifi), sd_seed)  # again: nothing doubles
    assert files.read("cmdline.txt").decode() == cmdline
    check_clean(image, tmp_path)


def check_clean(image: Image, folder: Path) -> None:
    for part, command in ((image.boot, ["fsck.vfat", "-n"]), (image.root, ["e2fsck", "-fn"])):
        assert part is not None
        cut = folder / "cut"
        with image.path.open("rb") as stream:
            stream.seek(part.start_bytes)
            cut.write_bytes(stream.read(part.size_bytes))
        tool(*command, str(cut))


def test_formats_are_recognised_or_refused_never_guessed(
    images: dict[str, Path], tmp_path: Path
) -> None:
    image = Image.open(images["dos"])
    assert recognise(image.boot_files, image.release(), None) == "systemd"
    assert recognise(image.boot_files, image.release(), "none") == "none"
    clouds = make_image(
        tmp_path / "c", codename="trixie", boot={"user-data": "#cloud-config\n", "meta-data": ""}
    )
    image = Image.open(clouds)
    assert recognise(image.boot_files, image.release(), None) == "cloudinit-rpi"
    unknown = Image.open(make_image(tmp_path / "u", codename="sid"))
    with pytest.raises(FlashError, match="--format"):
        recognise(unknown.boot_files, unknown.release(), None)
    both = make_image(
        tmp_path / "b", boot={"user-data": "", "meta-data": "", "rpi-preseed.toml": ""}
    )
    with pytest.raises(FlashError, match="several"):
        recognise(Image.open(both).boot_files, {}, None)
    with pytest.raises(FlashError, match="no format"):
        recognise(None, {}, "windows")


def test_an_image_without_fat_takes_only_what_lives_in_its_root(
    tmp_path: Path, sd_seed: Path
) -> None:
    image = Image.open(make_image(tmp_path / "jetson", fat=False, table="gpt"))
    assert image.boot is None
    with pytest.raises(FlashError, match="needs a FAT"):
        image.prepare("systemd", settings(), sd_seed)
    image.prepare("none", settings(), sd_seed)


@given(st.lists(st.text("abc=.;/0", min_size=1, max_size=6), max_size=6), st.booleans())
def test_the_command_line_is_changed_once_however_often(words: list[str], newline: bool) -> None:
    before = " ".join(words) + ("\n" if newline else "")
    tokens = {"ds": "nocloud;i=7", "systemd.run": "/x"}
    once = with_tokens(before, tokens)
    assert with_tokens(once, tokens) == once
    assert once.count("\n") == 1
    assert once.split()[-2:] == ["ds=nocloud;i=7", "systemd.run=/x"]
    kept = [word for word in before.split() if word.split("=")[0] not in tokens]
    assert once.split()[:-2] == kept


def test_a_command_line_of_two_lines_is_refused() -> None:
    with pytest.raises(FlashError, match="one line"):
        with_tokens("a\nb\n", {"ds": "x"})


def test_a_full_boot_partition_is_said(
    images: dict[str, Path], tmp_path: Path, sd_seed: Path
) -> None:
    path = copy_of(images["dos"], tmp_path)
    fill(path, tmp_path)
    with pytest.raises(FlashError, match="full"):
        Image.open(path).prepare("systemd", settings(), sd_seed)


def test_an_image_too_small_leaves_no_half_prepared_one_behind(
    images: dict[str, Path],
    tmp_path: Path,
    key_store: KeyStore,
    sd_bundle: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = copy_of(images["dos"], tmp_path)
    fill(path, tmp_path)
    before, files = path.read_bytes(), {each.name for each in tmp_path.iterdir()}
    command = [
        "flash",
        "sd",
        "--bundle",
        str(sd_bundle),
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


@pytest.mark.parametrize(("size_kib", "why"), [(400, "is full; use a larger"), (0, "Read-only")])
def test_a_mounted_boot_partition_that_takes_no_more_still_boots_what_it_did(
    tmp_path: Path, sd_seed: Path, size_kib: int, why: str
) -> None:
    boot = tmp_path / "boot"
    with small_disk(boot, (size_kib or 400) << 10):
        (boot / "cmdline.txt").write_text(CMDLINE)
        if not size_kib:
            tool("mount", "-o", "remount,ro", str(boot))
        with pytest.raises(FlashError, match=why):
            prepare_boot(MountedFolder(folder=boot), "systemd", settings(), sd_seed)
        assert (boot / "cmdline.txt").read_text() == CMDLINE


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
    images: dict[str, Path], tmp_path: Path, sd_seed: Path
) -> None:
    path = copy_of(images["dos"], tmp_path)
    with path.open("r+b") as stream:
        stream.seek((26 << 20) + 1024 + 0x60)  # s_feature_incompat
        flags = stream.read(1)[0] | 4  # needs_recovery
        stream.seek(-1, 1)
        stream.write(bytes([flags]))
    with pytest.raises(FlashError, match="shut down"):
        Image.open(path).prepare("none", settings(), sd_seed)


def test_files_are_replaced_whatever_their_case(
    images: dict[str, Path], tmp_path: Path, sd_seed: Path
) -> None:
    folder = tmp_path / "boot"
    folder.mkdir()
    (folder / "CMDLINE.TXT").write_text(CMDLINE)
    files = MountedFolder(folder=folder)
    prepare_boot(files, "systemd", settings(), sd_seed)
    assert "systemd.run=" in (folder / "CMDLINE.TXT").read_text()
    assert not (folder / "cmdline.txt").exists()
    with pytest.raises(FlashError, match="--image"):
        prepare_boot(files, "rpi-preseed", settings(), sd_seed)
    (folder / "CMDLINE.TXT").unlink()
    with pytest.raises(FlashError, match=r"no cmdline\.txt"):
        prepare_boot(files, "systemd", settings(), sd_seed)


def test_names_in_an_image_are_found_whatever_their_case(
    images: dict[str, Path], tmp_path: Path, sd_seed: Path
) -> None:
    path = copy_of(images["dos"], tmp_path)
    place = f"{path}@@{2 << 20}"
    (tmp_path / "CMDLINE.TXT").write_text(CMDLINE)
    tool("mdel", "-i", place, "::/cmdline.txt")
    tool("mcopy", "-i", place, str(tmp_path / "CMDLINE.TXT"), "::/")
    tool("mmd", "-i", place, "::/Multispin")
    image = Image.open(path)
    image.prepare("systemd", settings(), sd_seed)
    files = image.boot_files
    assert files is not None
    names = sorted(name for name in files.names() if name.lower() in ("cmdline.txt", "multispin"))
    assert [name.lower() for name in names] == ["cmdline.txt", "multispin"]
    assert b"systemd.run=" in files.read("cmdline.txt")
    assert files.read("multispin/guard.pyz") == (sd_seed / "guard.pyz").read_bytes()
    check_clean(image, tmp_path)


class Forgetful(FatInImage):
    """A FAT that gives back other bytes than it took."""

    def _run(self, program: str, *arguments: str) -> bytes:
        done = FatInImage._run(self, program, *arguments)
        return done[:-1] + b"?" if program == "mtype" else done


def test_a_boot_partition_that_reads_back_differently_is_found_out(
    images: dict[str, Path], tmp_path: Path, sd_seed: Path
) -> None:
    files = Forgetful(image=copy_of(images["dos"], tmp_path), start_bytes=2 << 20)
    with pytest.raises(FlashError, match="user-data did not read back as it was written"):
        files.write("user-data", b"#cloud-config\n")
    with pytest.raises(FlashError, match=r"bundle\.pub did not read back"):
        files.copy_tree(sd_seed, "multispin")


def test_shell_words_in_a_setting_stay_words(tmp_path: Path) -> None:
    evil = settings(wifi_ssid="a'; touch /tmp/evil; '", wifi_country="DE")
    script = boot_files("systemd", evil, CMDLINE)["firstrun.sh"]
    (tmp_path / "s").write_text(script)
    subprocess.run(["bash", "-n", tmp_path / "s"], check=True)
    assert "\ntouch" not in script
    with pytest.raises(FlashError, match="control"):
        settings(wifi_ssid="a\nb", wifi_country="DE")
    with pytest.raises(FlashError, match="country"):
        settings(wifi_ssid="net")
    with pytest.raises(FlashError, match="8 to 63"):
        settings(wifi_ssid="net", wifi_country="DE", wifi_psk="short")


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


def test_the_command_line(
    images: dict[str, Path],
    tmp_path: Path,
    key_store: KeyStore,
    sd_bundle: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "id.pub").write_text(KEY + "\n")
    common = ["flash", "sd", "--bundle", str(sd_bundle), "--id", "cam-9", "--json"]
    common += ["--broker", "localhost:8883", "--release-dir", str(tmp_path / "release")]
    common += ["--keys", str(key_store.public), "--ssh-key", str(tmp_path / "id.pub")]
    out = tmp_path / "out.img"
    before = images["dos"].read_bytes()
    assert main([*common, "--image", str(images["dos"]), "--out", str(out)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["id"], shown["format"]) == ("cam-9", "systemd")
    assert images["dos"].read_bytes() == before
    fat = FatInImage(image=out, start_bytes=2 << 20)
    assert b'id = "cam-9"' in fat.read("multispin/multispin.toml")
    assert json.loads(fat.read("multispin/root.json"))["signed"]["_type"] == "root"
    boot = tmp_path / "boot"
    boot.mkdir()
    (boot / "cmdline.txt").write_text(CMDLINE)
    assert main([*common, "--boot-dir", str(boot)]) == 10
    assert "--format" in capsys.readouterr().err
    assert main([*common, "--boot-dir", str(boot), "--format", "cloudinit"]) == 0
    assert (boot / "user-data").exists()
    assert main(common) == 2
    assert main([*common, "--image", str(out)]) == 2
    assert main([*common, "--image", str(out), "--device", "/dev/null"]) == 10
    assert sorted(path.name for path in tmp_path.glob(".*")) == []
    (tmp_path / "id.pub").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert main([*common, "--image", str(out), "--out", str(out)]) == 2
    assert "no SSH public key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--broker other.lan:8883 --boot-dir .", "run: multispin keys broker --host other.lan"),
        ("--boot-dir /nowhere", "--boot-dir /nowhere is no folder"),
        ("--boot-dir . --ssh-key /nowhere.pub", "--ssh-key /nowhere.pub: No such file"),
        ("--boot-dir . --wifi-psk-file /nowhere", "--wifi-psk-file /nowhere: No such file"),
        ("", "give either --image or --boot-dir"),
        ("--image x.img", "--out FILE, --device, or both"),
    ],
)
def test_what_is_asked_wrongly_is_one_line_and_makes_no_certificate(
    options: str, told: str, key_store: KeyStore, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "flash sd --bundle /nowhere --id cam-9 --broker localhost:1 --release-dir /nowhere"
    keys = ["--keys", str(key_store.public)]
    assert main([*command.split(), *keys, *options.split()]) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert shown.count("\n") == 1
    assert "cam-9" not in key_store.devices()
