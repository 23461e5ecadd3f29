"""The commands, run as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from edge_server.broker import BrokerProcess

__all__ = ["generate"]


def generate(mosquitto: BrokerProcess, drafter: Path, *options: str) -> dict[str, Any]:
    """Run `multispin generate` on a slowed board; return its last line."""
    command = [
        *(sys.executable, "-m", "sdk.cli", "generate", "--json", "--broker"),
        *(mosquitto.config.address, "--model", str(drafter), "--prompt", "import os\n\n"),
        *("--max-tokens", "64", "--slow-down-ms", "30", *options),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return last
