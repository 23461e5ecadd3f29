"""`multispin generate --energy`: a power trace in a file, a whole generation, joules per token."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import jsonschema
import pytest

from edge_server.broker import BrokerProcess
from edge_server.processes import start_server
from sdk.energy import record_schema
from sdk.energy.recording import read_recording
from sdk.energy.report import record_of
from tests.integration.commands import generate

POWER_W = 5.0


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """100 s of a constant 5 W, a hundred samples a second."""
    path = tmp_path / "trace.csv"
    rows = "\n".join(f"{n / 100:.2f},{POWER_W}" for n in range(10_000))
    path.write_text(f"t_s,power_w\n{rows}\n")
    return path


def test_joules_per_token_equal_the_traces(
    mosquitto: BrokerProcess, target: Path, drafter: Path, trace: Path
) -> None:
    path = trace.with_suffix(".rec")
    options = ("--energy", f"replay:{trace}", "--energy-idle", "1.5", "--energy-trace", str(path))
    with ExitStack() as stack:
        start_server(stack, model=target, broker=mosquitto.config, options=("--threads", "1"))
        last = generate(mosquitto, drafter, "--temperature", "1", *options)
    energy, summary = last["energy"], last["summary"]
    jsonschema.validate(energy, record_schema())
    assert energy["verdict"] != "invalid", energy["reasons"]
    by_hand_j = POWER_W * energy["window"]["duration_s"]
    assert energy["energy"]["gross_j"]["value"] == pytest.approx(by_hand_j, rel=0.01)
    emitted = energy["j_per_token"]["emitted"]["gross"]["value"]
    assert emitted == pytest.approx(by_hand_j / summary["tokens"], rel=0.01)
    assert energy["tokens"]["drafted"] == summary["drafted"]
    again = record_of(read_recording(path)).to_json()
    assert again["tokens"] == energy["tokens"]
    assert again["energy"]["gross_j"]["value"] == pytest.approx(by_hand_j, rel=0.01)
    assert again["phases"]["draft"]["spans"] == energy["phases"]["draft"]["spans"] > 0
    # The board idles at the same power, so what the generation itself took is nothing.
    net = energy["energy"]["net_j"]
    assert net is None or abs(net["value"]) < 0.05 * by_hand_j


def test_a_meter_that_is_not_there_is_one_line(mosquitto: BrokerProcess, drafter: Path) -> None:
    command = [
        *(sys.executable, "-m", "sdk.cli", "generate", "--prompt", "x", "--model", str(drafter)),
        *("--broker", mosquitto.config.address, "--energy", "replay:/nowhere.csv"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 8
    assert len(done.stderr.strip().splitlines()) == 1
    assert "/nowhere.csv" in done.stderr
