"""Servers and devices as child processes, speaking JSON lines; each ends with its owner."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_server.with_parent import wrap
from sdk.config import BrokerConfig
from sdk.errors import ConnectError

__all__ = ["DeviceProcess", "DeviceRequest", "start_device", "start_server"]

_STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRequest:
    """What one device shall generate."""

    id: str
    prompt: str
    max_tokens: int
    temperature: float
    seed: int
    slow_down_ms: float = 0.0


@dataclass(slots=True)
class DeviceProcess:
    """A device at work; `text` and `token_ids` grow as its process reports them."""

    request: DeviceRequest
    process: subprocess.Popen[str]
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        """Take in the process's lines until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            fields = json.loads(line)
            if "summary" in fields:
                self.summary = fields["summary"]
            else:
                self.token_ids.append(fields["id"])
                self.text += fields["text"]
        self.done.set()

    def check(self) -> None:
        """Raise ConnectError, with the device's own words, if it ended without a summary."""
        if self.done.is_set() and not self.summary:
            assert self.process.stderr is not None
            words = self.process.stderr.read().strip()
            raise ConnectError(f"device {self.request.id} ended early: {words}")


def start_server(
    stack: ExitStack, *, model: Path, broker: BrokerConfig, options: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """Start `multispin serve` and return once it is ready."""
    arguments = ["serve", "--model", str(model), "--broker", broker.address, "--json", *options]
    readers: list[threading.Thread] = []
    process = _start(stack, arguments, readers)
    assert process.stdout is not None
    assert process.stderr is not None
    if "ready" not in process.stdout.readline():
        raise ConnectError(f"the edge server did not start: {process.stderr.read().strip()}")
    # Nobody needs what it says from here on, but its pipes must not fill.
    readers += [threading.Thread(target=pipe.read) for pipe in (process.stdout, process.stderr)]
    for reader in readers:
        reader.start()
    return process


def start_device(
    stack: ExitStack,
    request: DeviceRequest,
    *,
    model: Path,
    broker: BrokerConfig,
    options: tuple[str, ...] = (),
) -> DeviceProcess:
    """Start `multispin generate` and read what it says in the background."""
    arguments = [
        "generate",
        *("--device", request.id, "--prompt", request.prompt),
        *("--model", str(model), "--broker", broker.address),
        *("--max-tokens", str(request.max_tokens), "--seed", str(request.seed)),
        *("--temperature", str(request.temperature)),
        *("--slow-down-ms", str(request.slow_down_ms), "--threads", "1", "--json", *options),
    ]
    readers: list[threading.Thread] = []
    device = DeviceProcess(request, _start(stack, arguments, readers))
    readers.append(threading.Thread(target=device.read, name=request.id))
    readers[0].start()
    return device


def _start(
    stack: ExitStack, arguments: list[str], readers: list[threading.Thread]
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        wrap([sys.executable, "-m", "sdk.cli", *arguments]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stack.callback(_stop, process, readers)
    return process


def _stop(process: subprocess.Popen[str], readers: list[threading.Thread]) -> None:
    """End a process, kindly first, and whoever reads from it."""
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for reader in readers:
        reader.join()
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()
