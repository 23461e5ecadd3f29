"""Build a stand-in board from Debian's arm64 packages: kernel, initrd and a Pi-like card image.

Nothing is emulated, mounted or configured while building: packages are only unpacked, so a minute
is enough. The card is MBR, FAT at 4 MiB (/boot/firmware) and ext4; root's password is "board".
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PROGRAMS", "Kit", "build_kit"]

PROGRAMS = {
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mcopy": "mtools",
    "sfdisk": "fdisk",
    "cpio": "cpio",
    "depmod": "kmod",
    "openssl": "openssl",
    "ssh-keygen": "openssh-client",
}
SUITE = "bookworm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
FAT_MIB, ROOT_MIB = 160, 1400
CMDLINE = "console=serial0,115200 root=PARTUUID=4d535049-02 rootfstype=ext4 rootwait quiet"
PACKAGES = (
    *("base-files", "base-passwd", "bash", "coreutils", "dash", "debianutils", "diffutils"),
    *("findutils", "grep", "gzip", "hostname", "init-system-helpers", "libc-bin", "login"),
    *("passwd", "mount", "procps", "sed", "tar", "util-linux", "libpam-runtime"),
    *("libpam-modules", "python3-minimal", "python3", "libgomp1", "libstdc++6", "zlib1g"),
    *("systemd", "systemd-sysv", "udev", "dbus", "iproute2", "ca-certificates", "openssh-server"),
    *("e2fsprogs", "kmod", "perl-base", "ncurses-base", "ncurses-bin", "mawk", "bsdutils"),
    *("sysvinit-utils",),
)
MODULES = (
    *("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng"),
    *("nls_cp437", "nls_ascii", "vfat", "ext4"),
)
INIT = """\
#!/bin/sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module" 2>/dev/null; done
tries=0
while [ ! -b /dev/vda2 ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
mount -t ext4 -o rw,noatime /dev/vda2 /new || exec sh
init=$(sed -n 's/.*board\\.init=\\([^ ]*\\).*/\\1/p' /proc/cmdline)
umount /proc /sys
mount --move /dev /new/dev
exec switch_root /new "${init:-/sbin/init}"
"""
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """Where a built board's parts are."""

    folder: Path

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd.gz"

    @property
    def card(self) -> Path:
        return self.folder / "card.img"


def build_kit(folder: Path) -> Kit:
    """Build what is not there yet; the card comes last, so its presence means all is there."""
    kit = Kit(folder=folder)
    if kit.card.exists():
        return kit
    folder.mkdir(parents=True, exist_ok=True)
    sources = _sources(folder)
    _kernel(kit, sources)
    _root(kit, sources)
    _card(kit)
    return kit


def _run(*command: str | Path, text: str | None = None, **environment: str) -> str:
    done = subprocess.run(
        [str(each) for each in command],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": SYSTEM_PATH, "LC_ALL": "C", **environment},
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr[-2000:]}")
    return done.stdout


def _sources(folder: Path) -> Path:
    """Write a sources.list for arm64 with the mirrors that this machine uses."""
    # A proxy or certificate of this machine's apt is in its configuration and applies here too.
    listed = _run(
        "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"
    )
    pairs = {tuple(line.split()) for line in listed.splitlines() if SUITE in line}
    pairs = pairs or {("http://deb.debian.org/debian/", SUITE)}
    lines = sorted(f"deb [signed-by={KEYRING}] {uri} {release} main" for uri, release in pairs)
    path = folder / "sources.list"
    path.write_text("\n".join([*lines, ""]))
    return path


def _kernel(kit: Kit, sources: Path) -> None:
    """Fetch Debian's cloud kernel and busybox for arm64 with an apt state of our own."""
    state = kit.folder / "apt"
    for name in ("lists/partial", "cache/archives/partial", "debs"):
        (state / name).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
    }
    (state / "conf").write_text("".join(f'{key} "{value}";\n' for key, value in options.items()))
    apt = {"APT_CONFIG": str(state / "conf")}
    _run("apt-get", "-q", "update", **apt)
    depends = _run("apt-cache", "depends", "linux-image-cloud-arm64", **apt)
    image = next(word for word in depends.split() if word.startswith("linux-image-6"))
    script = f"cd {state}/debs && apt-get -q download {image} busybox-static"
    _run("sh", "-c", script, **apt)
    unpacked = kit.folder / "kernel"
    shutil.rmtree(unpacked, ignore_errors=True)
    for deb in (state / "debs").glob("*.deb"):
        _run("dpkg-deb", "-x", deb, unpacked)
    shutil.copy(next((unpacked / "boot").glob("vmlinuz-*")), kit.kernel)
    _initrd(kit, unpacked)


def _initrd(kit: Kit, unpacked: Path) -> None:
    modules = next((unpacked / "lib/modules").iterdir())
    _run("depmod", "-b", unpacked, modules.name)
    tree = kit.folder / "initrd"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("bin", "proc", "sys", "dev", "new", "modules"):
        (tree / name).mkdir(parents=True)
    shutil.copy(unpacked / "bin/busybox", tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    for number, module in enumerate(_with_dependencies(modules, MODULES)):
        shutil.copy(modules / module, tree / "modules" / f"{number:02}-{Path(module).name}")
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    listing = "\n".join(sorted(str(path.relative_to(tree)) for path in tree.rglob("*")))
    packed = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"],
        input=listing.encode(),
        capture_output=True,
        check=True,
        cwd=tree,
    )
    kit.initrd.write_bytes(gzip.compress(packed.stdout, 6))


def _with_dependencies(modules: Path, names: Iterable[str]) -> list[str]:
    """Return the modules' files, each behind those that it needs."""
    needs: dict[str, tuple[str, list[str]]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[Path(path).name.split(".")[0].replace("-", "_")] = (path, rest.split())
    ordered: list[str] = []
    for path, rest in (needs[name] for name in names if name in needs):
        ordered += [each for each in [*reversed(rest), path] if each not in ordered]
    return ordered


def _root(kit: Kit, sources: Path) -> None:
    tar = kit.folder / "root.tar"
    _run(
        *("mmdebstrap", "-q", "--mode=root", "--arch=arm64", "--variant=extract"),
        *('--aptopt=APT::Install-Recommends "false"', f"--include={','.join(PACKAGES)}"),
        *(SUITE, tar, sources),
        TMPDIR=str(kit.folder),
    )
    root = kit.folder / "root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    left_out = ("./dev/*", "./usr/share/doc", "./usr/share/man", "./usr/share/locale")
    _run("tar", "-xf", tar, "-C", root, *(f"--exclude={each}" for each in left_out))
    tar.unlink()
    _accounts(root)
    _system(root)


def _accounts(root: Path) -> None:
    """Do what the unpacked packages' own scripts would have done to /etc."""
    passwd = (root / "usr/share/base-passwd/passwd.master").read_text()
    passwd = passwd.replace("root:*:", "root:x:")
    passwd += "messagebus:x:101:101::/nonexistent:/usr/sbin/nologin\n"
    passwd += "sshd:x:102:65534::/run/sshd:/usr/sbin/nologin\n"
    (root / "etc/passwd").write_text(passwd)
    group = (root / "usr/share/base-passwd/group.master").read_text()
    (root / "etc/group").write_text(group + "messagebus:x:101:\n")
    secret = _run("openssl", "passwd", "-6", "-salt", "standin", "board").strip()
    lines = [line.split(":")[0] for line in passwd.splitlines()]
    shadow = [f"{name}:{secret if name == 'root' else '*'}:19000:0:99999:7:::" for name in lines]
    (root / "etc/shadow").write_text("\n".join([*shadow, ""]))
    (root / "etc/shadow").chmod(0o640)
    pam = root / "etc/pam.d"
    pam.mkdir(exist_ok=True)
    for kind in ("account", "auth", "password", "session"):
        (pam / f"common-{kind}").write_text(f"{kind} required pam_unix.so\n")
    (pam / "common-session-noninteractive").write_text("session required pam_unix.so\n")
    (pam / "other").write_text("auth required pam_deny.so\n")


def _system(root: Path) -> None:
    files = {
        "etc/machine-id": "",
        "etc/hostname": "raspberrypi\n",
        "etc/hosts": "127.0.0.1 localhost\n10.0.2.2 broker.lan\n",
        "etc/fstab": "/dev/vda2 / ext4 rw,noatime 0 0\n"
        "/dev/vda1 /boot/firmware vfat defaults 0 0\n",
        "etc/systemd/network/10-wired.network": "[Match]\nName=e*\n[Network]\nDHCP=ipv4\n",
        "etc/ssh/sshd_config.d/board.conf": "PermitRootLogin yes\nUseDNS no\n",
        "etc/modprobe.d/none": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    config = root / "etc/ssh/sshd_config"
    if not config.exists():
        shutil.copy(root / "usr/share/openssh/sshd_config", config)
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", root / "etc/ssh/ssh_host_ed25519_key")
    (root / "boot/firmware").mkdir(parents=True, exist_ok=True)
    units = root / "etc/systemd/system"
    (units / "multi-user.target.wants").mkdir(parents=True, exist_ok=True)
    for unit in ("systemd-networkd", "ssh"):
        (units / "multi-user.target.wants" / f"{unit}.service").symlink_to(
            f"/lib/systemd/system/{unit}.service"
        )
    # Without their packages' scripts these would only fail, slowly.
    for unit in ("systemd-firstboot", "systemd-hwdb-update", "ldconfig", "e2scrub_reap"):
        (units / f"{unit}.service").symlink_to("/dev/null")
    awk = root / "usr/bin/awk"
    if not os.path.lexists(awk):
        awk.symlink_to("mawk")


def _card(kit: Kit) -> None:
    fat, root, card = (kit.folder / name for name in ("fat.img", "ext4.img", "card.new"))
    for path in (fat, root, card):
        path.unlink(missing_ok=True)
    with fat.open("wb") as stream:
        stream.truncate(FAT_MIB << 20)
    _run("mkfs.vfat", "-F", "32", "-n", "BOOTFS", fat)
    for name, text in (
        ("cmdline.txt", CMDLINE),
        ("config.txt", "arm_64bit=1\n"),
        ("issue.txt", "A stand-in for Raspberry Pi reference\n"),
    ):
        (kit.folder / name).write_text(text)
        _run("mcopy", "-i", fat, kit.folder / name, "::/")
    _run(
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-L",
        "rootfs",
        "-d",
        kit.folder / "root",
        root,
        f"{ROOT_MIB}M",
    )
    with card.open("wb") as stream:
        stream.truncate((4 + FAT_MIB + ROOT_MIB + 1) << 20)
    table = (
        "label: dos\nlabel-id: 0x4d535049\nunit: sectors\n"
        f"start=8192,size={FAT_MIB * 2048},type=c\n"
        f"start={(4 + FAT_MIB) * 2048},size={ROOT_MIB * 2048},type=83\n"
    )
    _run("sfdisk", "-q", card, text=table)
    for part, at_mib in ((fat, 4), (root, 4 + FAT_MIB)):
        _run(
            *("dd", f"if={part}", f"of={card}", "bs=1M", f"seek={at_mib}"),
            *("conv=notrunc,sparse", "status=none"),
        )
        part.unlink()
    shutil.rmtree(kit.folder / "root")
    card.rename(kit.card)
