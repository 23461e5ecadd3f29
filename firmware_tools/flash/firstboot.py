"""What each image format reads at its first boot, written out; pure.

    systemd        firstrun.sh and systemd.run= on the kernel's command line
    cloudinit      meta-data, user-data, network-config and ds=nocloud on the command line
    cloudinit-rpi  the same, with Raspberry Pi OS's own keys
    rpi-preseed    rpi-preseed.toml; it runs nothing, so a unit in the root file system installs
    none           nothing but that unit

Knows nothing about images. The formats are those of Raspberry Pi Imager's
doc/os_customisation_formats.md.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from firmware_tools.errors import FlashError

__all__ = ["FORMATS", "NEEDS_ROOT", "Settings", "boot_files", "install_unit", "with_tokens"]

FORMATS = ("systemd", "cloudinit", "cloudinit-rpi", "rpi-preseed", "none")
NEEDS_ROOT = ("rpi-preseed", "none")
SEED = "multispin"
BOOT = "/boot/firmware"
_LOG = f"{BOOT}/multispin-install.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the owner of a board chooses.

    Attributes:
        hostname: also the device id.
        ssh_key: a public key line, "" for none; user: who it lets in.
        wifi_ssid, wifi_psk, wifi_country: "" for none.
        instance: unique for each imaging.
    """

    hostname: str
    instance: str
    user: str = "pi"
    ssh_key: str = ""
    wifi_ssid: str = ""
    wifi_psk: str = ""
    wifi_country: str = ""

    def __post_init__(self) -> None:
        if self.wifi_ssid and not self.wifi_country:
            raise FlashError("flash sd: --wifi-ssid needs --wifi-country, or the radio stays off")
        if self.wifi_psk and not 8 <= len(self.wifi_psk) <= 64:
            raise FlashError("flash sd: a Wi-Fi password has 8 to 63 characters")
        for text in (self.hostname, self.user, self.ssh_key, self.wifi_ssid, self.wifi_psk):
            if not text.isprintable():
                raise FlashError(f"flash sd: {text!r} holds control characters")


def boot_files(kind: str, settings: Settings, cmdline: str) -> dict[str, str]:
    """Return the boot partition's files for a format, the new command line among them."""
    if kind == "systemd":
        return {
            "firstrun.sh": _firstrun(settings),
            "cmdline.txt": with_tokens(
                cmdline,
                {
                    "systemd.run": f"{BOOT}/firstrun.sh",
                    "systemd.run_success_action": "reboot",
                    "systemd.unit": "kernel-command-line.target",
                },
            ),
        }
    if kind in ("cloudinit", "cloudinit-rpi"):
        return {
            "meta-data": json.dumps({"instance-id": settings.instance}) + "\n",
            "user-data": "#cloud-config\n"
            + json.dumps(_user_data(kind, settings), indent=1)
            + "\n",
            "network-config": json.dumps(_network(settings), indent=1) + "\n",
            "cmdline.txt": with_tokens(cmdline, {"ds": f"nocloud;i={settings.instance}"}),
        }
    if kind == "rpi-preseed":
        return {"rpi-preseed.toml": _preseed(settings)}
    return {}


def with_tokens(cmdline: str, tokens: dict[str, str]) -> str:
    """Return the kernel's one-line command line with these NAME=VALUE, each once."""
    lines = [line for line in cmdline.splitlines() if line.strip()]
    if len(lines) > 1:
        raise FlashError("flash sd: cmdline.txt has more than one line; the kernel reads only one")
    words = (lines[0] if lines else "").split()
    kept = [word for word in words if word.split("=")[0] not in tokens]
    return " ".join([*kept, *(f"{name}={value}" for name, value in tokens.items())]) + "\n"


def install_unit(seed: str) -> str:
    """Return a unit that installs from the seed once, and then removes it and itself."""
    return f"""\
[Unit]
Description=First installation of Multi-SPIN
ConditionPathExists={seed}/guard.pyz
After=local-fs.target
RequiresMountsFor={seed}

[Service]
Type=oneshot
ExecStart=/usr/bin/python3 {seed}/guard.pyz install {seed}
ExecStart=/bin/rm -rf {seed}
ExecStart=/bin/systemctl daemon-reload
ExecStart=/bin/systemctl --no-block start multispin.service

[Install]
WantedBy=multi-user.target
"""


def _firstrun(settings: Settings) -> str:
    quoted = {name: shlex.quote(getattr(settings, name)) for name in Settings.__slots__}
    parts = [
        "#!/bin/bash",
        "# Runs once: every step goes on when the one before it failed.",
        f"hostnamectl set-hostname {quoted['hostname']} 2>/dev/null ||",
        f"  echo {quoted['hostname']} > /etc/hostname",
        'grep -q "127.0.1.1.*$(cat /etc/hostname)" /etc/hosts ||',
        '  echo "127.0.1.1 $(cat /etc/hostname)" >> /etc/hosts',
    ]
    if settings.ssh_key:
        parts += [
            f"id {quoted['user']} >/dev/null 2>&1 || useradd -m -s /bin/bash {quoted['user']}",
            f"home=$(getent passwd {quoted['user']} | cut -d: -f6)",
            f'install -d -m 700 -o {quoted["user"]} "$home/.ssh"',
            f'grep -qxF {quoted["ssh_key"]} "$home/.ssh/authorized_keys" 2>/dev/null ||',
            f'  echo {quoted["ssh_key"]} >> "$home/.ssh/authorized_keys"',
            f'chown {quoted["user"]} "$home/.ssh/authorized_keys"',
            'chmod 600 "$home/.ssh/authorized_keys"',
            "systemctl enable ssh 2>/dev/null",
        ]
    if settings.wifi_ssid:
        parts += _wifi_script(settings)
    parts += [
        f"if python3 {BOOT}/{SEED}/guard.pyz install {BOOT}/{SEED} > {_LOG} 2>&1; then",
        f"  rm -rf {BOOT}/{SEED}",
        "fi",
        f"rm -f {BOOT}/firstrun.sh",
        rf"sed -i -E 's/ ?systemd\.(run|run_success_action|unit)=[^ ]*//g' {BOOT}/cmdline.txt",
        "sync",
        "exit 0",
    ]
    return "\n".join([*parts, ""])


def _wifi_script(settings: Settings) -> list[str]:
    """Write NetworkManager's own file: `nmcli` does not run this early."""
    path = "/etc/NetworkManager/system-connections/multispin.nmconnection"
    content = "\n".join(
        [
            "[connection]",
            "id=multispin",
            "type=wifi",
            "[wifi]",
            "mode=infrastructure",
            f"ssid={settings.wifi_ssid}",
            *(
                ["[wifi-security]", "key-mgmt=wpa-psk", f"psk={settings.wifi_psk}"]
                if settings.wifi_psk
                else []
            ),
            "[ipv4]",
            "method=auto",
            "[ipv6]",
            "method=auto",
            "",
        ]
    )
    return [
        f"raspi-config nonint do_wifi_country {shlex.quote(settings.wifi_country)} 2>/dev/null",
        "rfkill unblock wifi 2>/dev/null",
        "install -d -m 700 /etc/NetworkManager/system-connections",
        f"printf %s {shlex.quote(content)} > {path}",
        f"chmod 600 {path}",
    ]


def _user_data(kind: str, settings: Settings) -> dict[str, object]:
    seed = f"{BOOT}/{SEED}"
    found: dict[str, object] = {
        "hostname": settings.hostname,
        "manage_etc_hosts": True,
        "runcmd": [
            ["sh", "-c", f"python3 {seed}/guard.pyz install {seed} > {_LOG} 2>&1 && rm -rf {seed}"],
            ["systemctl", "daemon-reload"],
            ["systemctl", "--no-block", "start", "multispin.service"],
        ],
    }
    if settings.ssh_key:
        user = {
            "name": settings.user,
            "shell": "/bin/bash",
            "groups": ["sudo", "video", "dialout"],
            "ssh_authorized_keys": [settings.ssh_key],
        }
        found["users"] = ["default", user]
    if kind == "cloudinit-rpi":
        found["enable_ssh"] = bool(settings.ssh_key)
    return found


def _network(settings: Settings) -> dict[str, object]:
    found: dict[str, object] = {
        "version": 2,
        "ethernets": {"wired": {"match": {"name": "e*"}, "dhcp4": True, "optional": True}},
    }
    if settings.wifi_ssid:
        point = {"password": settings.wifi_psk} if settings.wifi_psk else {}
        found["wifis"] = {
            "wlan0": {
                "dhcp4": True,
                "optional": True,
                "regulatory-domain": settings.wifi_country,
                "access-points": {settings.wifi_ssid: point},
            }
        }
    return found


def _preseed(settings: Settings) -> str:
    lines = ["config_version = 1", "", "[system]", f"hostname = {json.dumps(settings.hostname)}"]
    if settings.ssh_key:
        lines += ["", "[user]", f"name = {json.dumps(settings.user)}"]
        lines += [
            "",
            "[ssh]",
            "enabled = true",
            f"authorized_keys = [{json.dumps(settings.ssh_key)}]",
        ]
    if settings.wifi_ssid:
        lines += ["", "[wlan]", f"ssid = {json.dumps(settings.wifi_ssid)}"]
        lines += [f"password = {json.dumps(settings.wifi_psk)}", "password_encrypted = false"]
        lines += [f"country = {json.dumps(settings.wifi_country)}"]
    return "\n".join([*lines, ""])
