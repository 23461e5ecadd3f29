"""`multispin flash sd`: a card image, a card, or a mounted boot folder, ready for its first boot.

Knows nothing about partitions or formats; it calls those who do, in order.
"""

from __future__ import annotations

import argparse
import json
import secrets
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from firmware_tools.flash.firstboot import FORMATS, Settings
from firmware_tools.flash.owner import add_options, make_seed_for, public_key_line, read_text
from sdk.errors import ConfigError

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_options(parser)
    parser.add_argument("--image", type=Path, metavar="FILE", help="an OS image, .img or .img.xz")
    parser.add_argument("--out", type=Path, metavar="FILE", help="edited image; IMAGE is kept")
    parser.add_argument(
        "--device", type=Path, metavar="/dev/sdX", help="write the result to a card"
    )
    parser.add_argument("--boot-dir", type=Path, metavar="MOUNT", help="a mounted boot partition")
    parser.add_argument("--format", choices=FORMATS, help="what the image reads at its first boot")
    parser.add_argument("--user", default="pi", help="who the SSH key lets in (default: pi)")
    parser.add_argument("--ssh-key", type=Path, metavar="FILE.pub", help="whom to let in by SSH")
    parser.add_argument("--wifi-ssid", default="", metavar="NAME", help="network to join")
    parser.add_argument("--wifi-psk-file", type=Path, metavar="FILE", help="its password, alone")
    parser.add_argument("--wifi-country", default="", metavar="CC", help="such as GB")


def run(args: argparse.Namespace) -> int:
    """Prepare, and write if asked to."""
    if (args.image is None) == (args.boot_dir is None):
        raise ConfigError("flash sd: give either --image or --boot-dir")
    if args.image and not (args.out or args.device):
        raise ConfigError(
            "flash sd: say where the edited image goes: --out FILE, --device, or both"
        )
    if args.boot_dir and not args.boot_dir.is_dir():
        raise ConfigError(
            f"flash sd: --boot-dir {args.boot_dir} is no folder; name where the card's boot "
            "partition is mounted"
        )
    settings = _settings(args)
    with tempfile.TemporaryDirectory(prefix="multispin-seed-") as scratch:
        seed = Path(scratch) / "seed"
        manifest = make_seed_for(args, seed)
        result = {"id": args.id, "version": manifest.version, "board": manifest.board}
        result |= _boot_dir(args, settings, seed) if args.boot_dir else _image(args, settings, seed)
    print(json.dumps(result) if args.json else _sentence(result))
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    hint = "give a file with the password alone"
    psk = read_text(args.wifi_psk_file, "--wifi-psk-file", hint) if args.wifi_psk_file else ""
    return Settings(
        hostname=args.id,
        instance=f"{args.id}-{secrets.token_hex(4)}",
        user=args.user,
        ssh_key=public_key_line(args.ssh_key),
        wifi_ssid=args.wifi_ssid,
        wifi_psk=psk,
        wifi_country=args.wifi_country,
    )


def _boot_dir(args: argparse.Namespace, settings: Settings, seed: Path) -> dict[str, str]:
    from firmware_tools.flash.fat import MountedFolder
    from firmware_tools.flash.image import prepare_boot, recognise

    files = MountedFolder(folder=args.boot_dir)
    kind = recognise(files, {}, args.format)
    prepare_boot(files, kind, settings, seed)
    return {"format": kind, "boot-dir": str(args.boot_dir)}


def _image(args: argparse.Namespace, settings: Settings, seed: Path) -> dict[str, str]:
    from firmware_tools.flash.card import check_card, write_card
    from firmware_tools.flash.image import Image, recognise, unpack_image

    if args.device:
        check_card(args.device)
    out = args.out or args.image.with_name(f".{args.image.name}.{args.id}")
    work = out.with_name(f".{out.name}.edit")
    progress, step = _progress(args.json)
    try:
        with progress:
            unpack_image(args.image, work, lambda done: step("unpack", done))
            image = Image.open(work)
            kind = recognise(image.boot_files, image.release(), args.format)
            image.prepare(kind, settings, seed)
            if args.device:
                write_card(work, args.device, step)
        result = {"format": kind}
        if args.out:
            work.replace(args.out)
            result["image"] = str(args.out)
        if args.device:
            result["card"] = str(args.device)
        return result
    finally:
        work.unlink(missing_ok=True)


def _progress(quiet: bool) -> tuple[AbstractContextManager[Any], Any]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description:<8}"), BarColumn(), DownloadColumn())
    progress = Progress(*columns, TransferSpeedColumn(), disable=quiet, transient=True)
    tasks: dict[str, Any] = {}

    def step(what: str, done: int) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=None)
        progress.update(tasks[what], completed=done)

    return progress, step


def _sentence(result: dict[str, str]) -> str:
    where = " and ".join(result[key] for key in ("image", "card", "boot-dir") if key in result)
    return (
        f"{where}: {result['id']} with version {result['version']} for {result['board']}, "
        f"format {result['format']}; put it in the board and switch it on"
    )
