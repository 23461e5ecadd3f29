"""First boot: what each format has the board do, in a boot partition or an image; the command."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from firmware_disk import small_disk
from firmware_images import CMDLINE, KEY, check_clean, copy_of, make_image, settings, tool
from hypothesis import given
from hypothesis import strategies as st

from firmware_tools.errors import FlashError
from firmware_tools.flash.ext4 import read_file
from firmware_tools.flash.fat import FatInImage, MountedFolder
from firmware_tools.flash.firstboot import FORMATS, boot_files, with_tokens
from firmware_tools.flash.image import Image, prepare_boot, recognise
from firmware_tools.keys import KeyStore
from sdk.cli import main


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "table"),
    [(kind, "gpt" if number % 2 else "dos") for number, kind in enumerate(FORMATS)],
)
def test_every_format_is_written_and_the_file_systems_stay_clean(
    images: dict[str, Path], tmp_path: Path, seed: Path, kind: str, table: str
) -> None:
    path = copy_of(images[table], tmp_path)
    image = Image.open(path)
    assert image.boot is not None
    assert image.root is not None
    wifi = {"wifi_ssid": "net", "wifi_psk": "secret phrase", "wifi_country": "DE"}
    image.prepare(kind, settings(**wifi), seed)
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
            == (seed / "payload.tar.gz").read_bytes()
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
            assert files.read(f"multispin/{name}") == (seed / name).read_bytes()
    if kind == "rpi-preseed":
        assert b'hostname = "cam-7"' in files.read("rpi-preseed.toml")
    check_clean(image, tmp_path)
    image.prepare(kind, settings(**wifi), seed)  # again: nothing doubles
    assert files.read("cmdline.txt").decode() == cmdline
    check_clean(image, tmp_path)


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


def test_an_image_without_fat_takes_only_what_lives_in_its_root(tmp_path: Path, seed: Path) -> None:
    image = Image.open(make_image(tmp_path / "jetson", fat=False, table="gpt"))
    assert image.boot is None
    with pytest.raises(FlashError, match="needs a FAT"):
        image.prepare("systemd", settings(), seed)
    image.prepare("none", settings(), seed)


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


@pytest.mark.parametrize(("size_kib", "why"), [(400, "is full; use a larger"), (0, "Read-only")])
def test_a_mounted_boot_partition_that_takes_no_more_still_boots_what_it_did(
    tmp_path: Path, seed: Path, size_kib: int, why: str
) -> None:
    boot = tmp_path / "boot"
    with small_disk(boot, (size_kib or 400) << 10):
        (boot / "cmdline.txt").write_text(CMDLINE)
        if not size_kib:
            tool("mount", "-o", "remount,ro", str(boot))
        with pytest.raises(FlashError, match=why):
            prepare_boot(MountedFolder(folder=boot), "systemd", settings(), seed)
        assert (boot / "cmdline.txt").read_text() == CMDLINE


def test_files_are_replaced_whatever_their_case(
    images: dict[str, Path], tmp_path: Path, seed: Path
) -> None:
    folder = tmp_path / "boot"
    folder.mkdir()
    (folder / "CMDLINE.TXT").write_text(CMDLINE)
    files = MountedFolder(folder=folder)
    prepare_boot(files, "systemd", settings(), seed)
    assert "systemd.run=" in (folder / "CMDLINE.TXT").read_text()
    assert not (folder / "cmdline.txt").exists()
    with pytest.raises(FlashError, match="--image"):
        prepare_boot(files, "rpi-preseed", settings(), seed)
    (folder / "CMDLINE.TXT").unlink()
    with pytest.raises(FlashError, match=r"no cmdline\.txt"):
        prepare_boot(files, "systemd", settings(), seed)


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


def test_the_command_line(
    images: dict[str, Path],
    tmp_path: Path,
    key_store: KeyStore,
    bundle_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "id.pub").write_text(KEY + "\n")
    common = ["flash", "sd", "--bundle", str(bundle_path), "--id", "cam-9", "--json"]
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
    command = "flash sd --bundle /nowhere --id cam-0 --broker localhost:1 --release-dir /nowhere"
    keys = ["--keys", str(key_store.public)]
    assert main([*command.split(), *keys, *options.split()]) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert shown.count("\n") == 1
    assert "cam-0" not in key_store.devices()
