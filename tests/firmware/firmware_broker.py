"""A private mosquitto with the configuration of production: TLS 1.3, certificates, an ACL."""

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

from edge_server.mosquitto_conf import TlsListener, mosquitto_acl, production_conf
from firmware_tools.keys import KeyStore

NOW = datetime(2026, 11, 23, tzinfo=timezone.utc)


@contextmanager
def run_broker(folder: Path, keys: KeyStore, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run mosquitto with TLS 1.3, client certificates, an ACL and the revocation list."""
    mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if mosquitto is None:
        pytest.skip("mosquitto is not installed")
    listener = TlsListener(
        ca_file=keys.broker / "ca.crt",
        crl_file=keys.broker / "ca.crl",
        cert_file=keys.broker / "broker.crt",
        key_file=keys.broker / "broker.key",
        acl_file=folder / "acl",
        host="127.0.0.1",
        port=port,
    )
    (folder / "acl").write_text(mosquitto_acl())
    (folder / "acl").chmod(0o600)
    (folder / "conf").write_text(production_conf(listener) + "user root\n")
    with (folder / "mosquitto.log").open("ab") as log:
        process = subprocess.Popen([mosquitto, "-c", str(folder / "conf")], stdout=log, stderr=log)
    try:
        _wait_for(port, process, folder / "mosquitto.log")
        yield process
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise RuntimeError(log.read_text())
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
