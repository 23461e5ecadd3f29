"""`multispin link` against a real broker."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from sdk.cli import main
from sdk.link import cli as link_cli
from sdk.link.report import REPORT_SCHEMA

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    if MOSQUITTO is None:
        pytest.skip("no mosquitto on this machine")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path_factory.mktemp("broker") / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nlog_dest none\n"
    )
    process = subprocess.Popen([MOSQUITTO, "-c", str(config)])
    deadline_s = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
    yield port
    process.terminate()
    process.wait(10)


def test_one_report_a_line(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["link", "--broker", f"127.0.0.1:{port}", "--device", "pi-1", "--json"]
    assert main([*arguments, "--seconds", "1.5", "--interval", "0.3"]) == 0
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(reports) >= 2
    for report in reports:
        jsonschema.validate(report, REPORT_SCHEMA)
        assert report["device"] == "pi-1"
    if sys.platform.startswith("linux"):
        assert reports[-1]["iface"] == "lo"
        assert reports[-1]["rtt_ms"]["srtt"] > 0


def test_the_live_view(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["link", "--broker", f"127.0.0.1:{port}", "--passive", "--seconds", "1"]
    assert main([*arguments, "--interval", "0.3"]) == 0
    out = capsys.readouterr().out
    assert "uplink" in out
    assert "not measured yet" in out
    assert "puback" not in out


def test_no_broker_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_cli, "_CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert main(["link", "--broker", f"127.0.0.1:{port}", "--seconds", "1"]) == 3
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("option", ["--interval", "--seconds"])
def test_times_are_above_zero(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["link", option, "0"]) == 2
    assert "above 0" in capsys.readouterr().err


def test_importing_the_package_needs_no_optional_library() -> None:
    code = "import sys, sdk.link, sdk.link.cli; print(sorted(m for m in ('serial', 'pyroute2', 'rich', 'paho') if m in sys.modules))"  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "[]"
