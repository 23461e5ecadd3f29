"""A private mosquitto as it runs in production: TLS 1.3, client certificates, an ACL."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import pytest

from firmware_tools.keys import KeyStore

NOW = datetime(2026, 11, 23, tzinfo=timezone.utc)

_ACL = """\
pattern write sd/1/%u/up/#
pattern write sd/1/%u/status
pattern read sd/1/%u/down/#
user edge
topic read sd/1/+/up/#
topic read sd/1/+/status
topic readwrite sd/1/+/down/#
"""


@contextmanager
def run_broker(folder: Path, keys: KeyStore, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run mosquitto with TLS 1.3, client certificates, an ACL and the revocation list."""
    mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if mosquitto is None:
        pytest.skip("mosquitto is not installed")
    (folder / "acl").write_text(_ACL)
    (folder / "acl").chmod(0o600)
    (folder / "conf").write_text(
        f"listener {port} 127.0.0.1\ncafile {keys.public}/ca.crt\n"
        f"certfile {keys.broker}/broker.crt\nkeyfile {keys.broker}/broker.key\n"
        f"crlfile {keys.broker}/ca.crl\ntls_version tlsv1.3\nrequire_certificate true\n"
        f"use_identity_as_username true\nallow_anonymous false\nacl_file {folder}/acl\n"
        "set_tcp_nodelay true\nmax_packet_size 131072\nuser root\n"
    )
    process = subprocess.Popen(
        [mosquitto, "-c", str(folder / "conf")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _wait_for(port, process)
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=10)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise RuntimeError((process.stderr.read() if process.stderr else b"").decode())
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError("mosquitto did not open its port within 10 s")


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
