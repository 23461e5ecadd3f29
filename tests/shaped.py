"""Whether links can be shaped here, and how to run a benchmark that does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

__all__ = ["MARKS", "ROOT", "run_shaped"]

ROOT = Path(__file__).parents[1]
_MOST_LATE_MS = 1.5  # what a full frame takes at 8 Mbit/s
_TRY = (
    "ip link add a0 type veth peer name b0 && "
    "tc qdisc add dev a0 root tbf rate 8mbit burst 1600 latency 50ms"
)


def _why_not() -> str:
    """Return what is missing for namespaces and shaping, or nothing."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [
        name
        for name in ("unshare", "nsenter", "ip", "tc", "mosquitto")
        if shutil.which(name, path=path) is None
    ]
    if missing:
        return f"not installed: {', '.join(missing)}"
    done = subprocess.run(["unshare", "--net", "sh", "-c", _TRY], capture_output=True, text=True)
    return f"the kernel refuses: {done.stderr.strip()}" if done.returncode else ""


_WHY_NOT = _why_not()
MARKS = [
    pytest.mark.alone,
    pytest.mark.netns,
    pytest.mark.slow,
    pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT),
]


def run_shaped(*command: str, timeout_s: float = 110.0, needs_timers: bool = False) -> Any:
    """Run a benchmark and return its JSON line.

    With `needs_timers` the test is skipped where the machine is too busy for a software shaper.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    late_ms = result["timer_late_p90_ms"]
    if needs_timers and late_ms > _MOST_LATE_MS:
        pytest.skip(f"this machine is too busy to shape a link: its timers are {late_ms} ms late")
    return result
