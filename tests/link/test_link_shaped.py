"""The estimate and the grant on a link that the kernel shapes, in network namespaces."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.shaped import MARKS, ROOT, run_shaped

PROGRAM = [sys.executable, "-m", "benchmarks.link_estimator"]
pytestmark = MARKS


def test_the_estimate_follows_the_link() -> None:
    """8 → 2 → 6 Mbit/s: within 15 % inside 3 s of each step, and then on the whole."""
    result = run_shaped(*PROGRAM, "steps", needs_timers=True)
    for step in result["steps"]:
        assert step["within_15_percent_after_s"] is not None, result
        assert step["within_15_percent_after_s"] <= 3.0, result
        assert abs(step["median_error"]) < 0.15, result
    assert result["probing_share"] < 0.01, result


@pytest.mark.parametrize("options", [(), ("--bulk-connection",)], ids=["one connection", "two"])
def test_a_grant_is_kept_and_urgent_messages_get_through(options: tuple[str, ...]) -> None:
    """2 of 8 Mbit/s with 64 kB messages: goodput to 3 %, an urgent message's median < 120 ms."""
    result = run_shaped(*PROGRAM, "grant", *options)
    assert result["goodput_mbps"] == pytest.approx(2.0, rel=0.03), result
    assert result["urgent_median_ms"] < 120.0, result
    assert result["urgent_messages"] >= 20, result


def test_nothing_is_left_behind_even_by_a_kill() -> None:
    process = subprocess.Popen([*PROGRAM, "grant"], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 30
    while not (brokers := children(process.pid)):
        assert time.monotonic() < deadline_s
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    while any(Path(f"/proc/{pid}").exists() for pid in brokers):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Return the process's children that have become mosquitto."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    every = [child for task in tasks for child in task.read_text().split()]
    return [
        int(child)
        for child in every
        if Path(f"/proc/{child}/comm").read_text().strip() == "mosquitto"
    ]
