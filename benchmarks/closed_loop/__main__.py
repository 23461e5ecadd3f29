"""The scheduler in the running system, on links of known rate, against the solver. Needs root.

Three boards in network namespaces of their own, behind uplinks of 1, 4 and 16 Mbit/s (tbf), draft
with the shipped drafter at different speeds and upload a distribution with every token; mosquitto
and the edge server verify with the shipped target. Boards and target are real and slowed to known
times, so that the solver can be told the truth. Prints one JSON line.

    sudo python -m benchmarks.closed_loop [--seconds S] [--scenarios adaptive fixed continuous auto]

`adaptive` (a barrier, as the paper has it) also drops the fastest link to a quarter; `fixed` is the
paper's baseline, eight tokens and an equal share for everyone; `fixed-2` the same with two tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from typing import Any

import numpy as np

from benchmarks.closed_loop.controllers import SCENARIOS, choices, controller
from benchmarks.closed_loop.figures import Window, summary, truth
from benchmarks.closed_loop.known import BOARDS, RATES_MBPS
from benchmarks.closed_loop.testbed import KnownTime, serve, start_boards
from benchmarks.closed_loop.trace import Trace, Watched
from benchmarks.machine import machine
from benchmarks.namespaces import enter_own_network, ip, shape, timer_lateness, wait_until
from edge_server.scheduler.policies import make_policy
from models.registry import pair_dir

ROUNDS_TO_SETTLE, SETTLED_WITHIN_S = 20, 90.0


def main() -> int:
    """Run the scenarios, one after the other."""
    args = parse_arguments()
    missing = enter_own_network("benchmarks.closed_loop")
    if missing:
        print(f"closed_loop: {missing}", file=sys.stderr)
        return 2
    os.setpriority(os.PRIO_PROCESS, 0, -10)
    ip("link", "set", "lo", "up")
    with timer_lateness() as lateness_s:
        found = {name: run_scenario(name, seconds=args.seconds) for name in args.scenarios}
    result = {
        "scenario": "closed_loop",
        "seconds": args.seconds,
        **found,
        "timer_late_p90_ms": round(float(np.quantile(lateness_s, 0.9)) * 1e3, 2),
    }
    print(json.dumps(result | machine()))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="that count, per measurement")
    parser.add_argument("--scenarios", nargs="+", default=["adaptive", "fixed"], choices=SCENARIOS)
    return parser.parse_args()


def run_scenario(name: str, *, seconds: float) -> dict[str, Any]:
    """Run one scenario to its end."""
    policy = SCENARIOS[name]
    verifier = KnownTime.load(pair_dir("target"), threads=1)
    trace = Trace()
    with contextlib.ExitStack() as stack:
        control = controller(name, verifier.vocabulary_size, stack)
        boards = start_boards(stack)
        serve(stack, verifier, Watched(control, trace), make_policy(policy, **choices(control)))
        for pid, rate_mbps in zip(boards, RATES_MBPS, strict=True):
            shape(rate_mbps, inside=pid)
        windows = [(RATES_MBPS, measure(trace, seconds))]
        if name == "adaptive":
            dropped = (*RATES_MBPS[:-1], RATES_MBPS[-1] / 4)
            shape(dropped[-1], inside=boards[-1])
            windows.append((dropped, measure(trace, seconds)))
    links = [  # judged by the acceptance and the bits of all rounds, so when they are over
        summary(trace, window, truth(rates_mbps, trace, verifier.vocabulary_size))
        | {"links_mbps": list(rates_mbps)}
        for rates_mbps, window in windows
    ]
    return {"policy": policy, "links": links}


def measure(trace: Trace, seconds: float) -> Window:
    """Let every board have 20 rounds, then count for `seconds`."""
    already = {board: trace.rounds_of(board) for board in BOARDS}
    wait_until(
        lambda: all(
            trace.rounds_of(board) >= already[board] + ROUNDS_TO_SETTLE for board in BOARDS
        ),
        timeout_s=SETTLED_WITHIN_S,
    )
    begin_s = time.monotonic()
    time.sleep(seconds)
    return Window(begin_s, time.monotonic())


if __name__ == "__main__":
    sys.exit(main())
