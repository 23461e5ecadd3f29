"""Whole processes over a real broker, killed at work: the text that arrives is the same."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edge_server.broker import BrokerProcess
from edge_server.processes import DeviceProcess, DeviceRequest, start_device, start_server
from edge_server.reference import decode_alone
from sdk.config import BrokerConfig
from sdk.model.decoder import Decoder
from sdk.model.sampling import SamplingParameters
from sdk.model.tokenizer import Tokenizer

REQUEST = DeviceRequest(
    id="pi-1",
    prompt="import os\n\n\ndef main(argv):\n    ",
    max_tokens=96,
    temperature=1.0,
    seed=5,
    slow_down_ms=10.0,
)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def truth(target: Path) -> list[int]:
    tokenizer = Tokenizer(target)
    return list(
        decode_alone(
            Decoder.load(target, threads=1, batch_invariant=True),
            tokenizer.encode(REQUEST.prompt),
            parameters=SamplingParameters(temperature=REQUEST.temperature, seed=REQUEST.seed),
            max_tokens=REQUEST.max_tokens,
            stop_ids=tokenizer.stop_ids,
        )
    )


def await_tokens(device: DeviceProcess, count: int) -> None:
    deadline_s = time.monotonic() + 60
    while len(device.token_ids) < count:
        device.check()
        assert time.monotonic() < deadline_s, f"{len(device.token_ids)} of {count} tokens came"
        time.sleep(0.002)


def serve(stack: ExitStack, target: Path, broker: BrokerConfig) -> subprocess.Popen[str]:
    return start_server(stack, model=target, broker=broker, options=("--threads", "1"))


def test_a_killed_server_is_replaced(
    broker: BrokerProcess, stack: ExitStack, target: Path, drafter: Path, truth: list[int]
) -> None:
    server = serve(stack, target, broker.config)
    device = start_device(stack, REQUEST, model=drafter, broker=broker.config)
    for count in (10, 40):
        await_tokens(device, count)
        server.send_signal(signal.SIGKILL)
        server.wait()
        server = serve(stack, target, broker.config)
    assert device.done.wait(90)
    device.check()
    assert device.token_ids == truth
    assert device.summary["reopened"] >= 1


def test_a_killed_broker_comes_back(
    own_broker: BrokerProcess, stack: ExitStack, target: Path, drafter: Path, truth: list[int]
) -> None:
    serve(stack, target, own_broker.config)
    device = start_device(stack, REQUEST, model=drafter, broker=own_broker.config)
    for count in (10, 40):
        await_tokens(device, count)
        own_broker.kill()
        own_broker.restart()
    assert device.done.wait(90)
    device.check()
    assert device.token_ids == truth


def test_a_killed_device_resumes_from_its_journal(
    broker: BrokerProcess,
    stack: ExitStack,
    target: Path,
    drafter: Path,
    truth: list[int],
    tmp_path: Path,
) -> None:
    """What its journal holds and what the next run delivers are the stream, without a seam."""
    serve(stack, target, broker.config)
    journal = tmp_path / "journal"
    options = ("--journal", str(journal))
    for count in (5, 9, 9):
        device = start_device(stack, REQUEST, model=drafter, broker=broker.config, options=options)
        await_tokens(device, count)
        device.process.send_signal(signal.SIGKILL)
        device.process.wait()
    written = journalled(journal)
    last = start_device(stack, REQUEST, model=drafter, broker=broker.config, options=options)
    assert last.done.wait(90)
    last.check()
    assert written + last.token_ids == truth
    assert journalled(journal) == truth


def journalled(journal: Path) -> list[int]:
    """Return the ids in a journal's finished lines."""
    lines = journal.read_bytes().split(b"\n")[1:-1]
    return [token for line in lines for token in json.loads(line)]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder that a broker without privileges can look into; tmp_path is private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_interrupted_commands_leave_nothing_behind(target: Path, open_folder: Path) -> None:
    """SIGINT to a server with a private broker: exit 0, no process, no port, no file."""
    environment = os.environ | {"TMPDIR": str(open_folder)}
    process = subprocess.Popen(
        [sys.executable, "-m", "sdk.cli", "serve", "--model", str(target), "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    address = BrokerConfig.parse(json.loads(process.stdout.readline())["ready"])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    process.stdout.close()
    assert list(open_folder.iterdir()) == []
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.host, address.port), 1.0)


def test_a_server_whose_own_broker_dies_ends_so_that_it_can_be_restarted(target: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sdk.cli", "serve", "--model", str(target), "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        process.stdout.readline()
        for child in Path(f"/proc/{process.pid}/task").glob("*/children"):
            for pid in child.read_text().split():
                if b"mosquitto" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)
        assert process.wait(20) == 6
        last = process.stderr.read().splitlines()[-1]
    assert "ended by itself" in last
    assert "start 'multispin serve' again" in last
