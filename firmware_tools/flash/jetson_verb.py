"""`multispin flash jetson`: NVIDIA's own initrd flasher where its BSP lies, else what to install.

Wraps `l4t_initrd_flash.sh`; re-implements nothing of it. What it flashes is NVIDIA's system: this
SDK comes after, by `multispin flash ssh`.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from firmware_tools.errors import FlashError

__all__ = ["command_line", "configure", "missing", "run"]

_SCRIPT = Path("tools/kernel_flash/l4t_initrd_flash.sh")
_RECOVERY_ID = "0955"  # NVIDIA's USB vendor
_BOARDS = {"orin-nano": "jetson-orin-nano-devkit", "agx-orin": "jetson-agx-orin-devkit"}
_NEEDED = ("sudo", "python3", "sshpass", "abootimg", "nfs-kernel-server")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--bsp", type=Path, required=True, metavar="DIR", help="Linux_for_Tegra")
    parser.add_argument("--module", choices=sorted(_BOARDS), default="orin-nano")
    parser.add_argument("--storage", default="nvme0n1p1", metavar="PARTITION")
    parser.add_argument("--massflash", type=int, metavar="N", help="boards at once")
    parser.add_argument("--usb-instance", metavar="ID", help="which of several boards")
    parser.add_argument("--flash-only", action="store_true", help="images were made before")
    parser.add_argument("--dry-run", action="store_true", help="print the command")


def run(args: argparse.Namespace) -> int:
    """Check what is needed, then run NVIDIA's flasher to its end."""
    lacking = missing(args.bsp, Path("/sys/bus/usb/devices"), platform.machine())
    command = command_line(args)
    if args.dry_run:
        print(shlex.join(command))
        return 0
    if lacking:
        raise FlashError("flash jetson: " + "; ".join(lacking))
    done = subprocess.run(command, cwd=args.bsp, check=False)
    if done.returncode:
        raise FlashError(
            f"flash jetson: NVIDIA's flasher ended with {done.returncode}; its last lines say why, "
            "most often cable, recovery mode or USB autosuspend"
        )
    print("NVIDIA's system is on the board; go on with: multispin flash ssh USER@HOST")
    return 0


def command_line(args: argparse.Namespace) -> Sequence[str]:
    """Return NVIDIA's command for these options."""
    found = [] if os.geteuid() == 0 else ["sudo"]
    found += [f"./{_SCRIPT}", "--external-device", args.storage]
    found += ["-c", "tools/kernel_flash/flash_l4t_t234_nvme.xml"]
    found += ["-p", "-c bootloader/generic/cfg/flash_t234_qspi.xml"]
    found += ["--showlogs", "--network", "usb0"]
    found += ["--flash-only"] if args.flash_only else []
    found += ["--massflash", str(args.massflash)] if args.massflash else []
    found += ["--usb-instance", args.usb_instance] if args.usb_instance else []
    return [*found, _BOARDS[args.module], "internal"]


def missing(bsp: Path, usb: Path, machine: str) -> list[str]:
    """Return what this computer lacks, each with what to do; [] if nothing."""
    found = []
    if machine != "x86_64":
        found.append(f"NVIDIA's flasher runs on an x86_64 computer, this is {machine}")
    if not (bsp / _SCRIPT).is_file():
        found.append(
            f"{bsp} holds no {_SCRIPT}: download 'Driver Package (BSP)' and 'Sample Root "
            "Filesystem' of your JetPack from developer.nvidia.com/embedded/jetson-linux, unpack "
            "the first, unpack the second into its rootfs/, and run there: "
            "sudo ./apply_binaries.sh; sudo ./tools/l4t_flash_prerequisites.sh"
        )
    lacking = [name for name in _NEEDED[:3] if shutil.which(name) is None]
    if lacking:
        found.append(f"missing programs: apt install {' '.join(lacking)}")
    vendors = [path.read_text().strip() for path in usb.glob("*/idVendor")]
    if _RECOVERY_ID not in vendors:
        found.append(
            "no board in recovery mode on USB: join FC REC and GND, connect USB-C, then the power"
        )
    return found
