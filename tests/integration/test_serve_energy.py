"""`multispin serve` with a meter of its own, an energy objective and metrics, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from edge_server.broker import BrokerProcess
from tests.integration.commands import generate


@contextmanager
def serve(mosquitto: BrokerProcess, target: Path, *options: str) -> Iterator[IO[str]]:
    command = [
        *(sys.executable, "-m", "sdk.cli", "serve", "--model", str(target), "--json"),
        *("--broker", mosquitto.config.address, "--threads", "1", *options),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.terminate()


def test_the_server_s_share_stands_beside_the_devices_own_joules(
    mosquitto: BrokerProcess, target: Path, drafter: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("t_s,power_w\n" + "".join(f"{n / 100:.2f},5\n" for n in range(10_000)))
    meter = ("--energy", f"replay:{trace}")
    bounds = ("--objective", "energy", "--rate", "1", "--energy-cap", "50")
    with serve(
        mosquitto, target, *meter, *bounds, "--metrics", "0", "--report-every", "0.2"
    ) as said:
        port = json.loads(said.readline())["metrics_port"]
        gross = (*meter, "--energy-idle", "0")
        sent = generate(mosquitto, drafter, "--device", "pi", *gross)["energy"]
        report: dict[str, Any] = {}
        while not report.get("energy") or not report.get("server_energy", {}).get("devices"):
            report = json.loads(said.readline())
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    assert sent["verdict"] != "invalid", sent["reasons"]
    told = report["energy"]["pi"]
    own = report["server_energy"]["devices"]["pi"]
    assert told["j_per_accepted"] == sent["j_per_token"]["accepted"]["gross"]["value"]
    assert own["j"] > 0
    assert own["j_per_accepted"] is None or own["j_per_accepted"] > 0
    assert report["server_energy"]["scope"] == "none"
    assert 'multispin_device_joules_total{device="pi"}' in text
    assert 'multispin_server_joules_total{device="pi"}' in text


def test_a_meter_that_is_not_there_is_said_before_anything_is_served(
    mosquitto: BrokerProcess, target: Path
) -> None:
    command = [
        *(sys.executable, "-m", "sdk.cli", "serve", "--model", str(target)),
        *("--broker", mosquitto.config.address, "--energy", "replay:/nowhere.csv"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 8
    assert "/nowhere.csv" in done.stderr
