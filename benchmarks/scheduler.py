"""Solve times of the schedulers on one core: python -m benchmarks.scheduler

Prints the median and the spread of process time over repeats, cells of the paper's kind, for
K = 20, 1,000 and 10,000, and how close the exact solver comes to its bound.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from edge_server.scheduler.algorithm_1 import algorithm_1
from edge_server.scheduler.cell import Cell, Plan
from edge_server.scheduler.continuous import continuous
from edge_server.scheduler.heterogeneous import heterogeneous
from edge_server.scheduler.homogeneous import homogeneous
from edge_server.scheduler.ping_pong import ping_pong
from edge_server.simulation.paper import PAIRS, paper_cell

SOLVERS: dict[str, tuple[Callable[[Cell], Plan], int]] = {
    "homogeneous": (homogeneous, 10_000),
    "heterogeneous": (heterogeneous, 10_000),
    "algorithm-1": (algorithm_1, 20),
    "ping-pong": (ping_pong, 10_000),
    "continuous": (lambda cell: continuous(cell, polish=False), 10_000),
    "continuous, polished": (continuous, 20),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--payload-bits", type=float, help="instead of the paper's")
    args = parser.parse_args()
    print(f"{'solver':<22} {'K':>6} {'median ms':>10} {'min':>8} {'max':>8}  bound/goodput")
    for count in (20, 1000, 10_000):
        cells = [
            paper_cell(
                PAIRS["llama"],
                count=count,
                bandwidth_hz=0.5e6 * count,
                rng=np.random.default_rng(seed),
                payload_bits=args.payload_bits,
                min_length=0,
            )
            for seed in range(args.repeats)
        ]
        for name, (solver, most) in SOLVERS.items():
            if count <= most:
                measure(name, solver, cells)


def measure(name: str, solver: Callable[[Cell], Plan], cells: list[Cell]) -> None:
    """Print one line: times of one solver over the cells."""
    times_ms, ratios = [], []
    solver(cells[0])
    for cell in cells:
        begun_s = time.process_time()
        plan = solver(cell)
        times_ms.append(1e3 * (time.process_time() - begun_s))
        ratios.append(plan.bound_tokens_per_s / plan.weighted_goodput)
    worst = max(ratios)
    shown = f"{worst:.5f}" if np.isfinite(worst) else "-"
    print(
        f"{name:<22} {cells[0].count:>6} {np.median(times_ms):>10.2f} {min(times_ms):>8.2f} "
        f"{max(times_ms):>8.2f}  {shown}"
    )


if __name__ == "__main__":
    main()
