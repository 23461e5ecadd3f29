"""How fast this machine reads memory: what bounds a token, whose weights are all read once.

python -m benchmarks.read_bandwidth [--mib N] [--runs N]

Dot products of a large array with itself, in pages of 4 KiB and of 2 MiB, one thread and two. One
JSON line; GB/s are median, least and most of the runs, which alternate.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # our threads, not the library's

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import machine

PAGES = {"4 KiB": mmap.MADV_NOHUGEPAGE, "2 MiB": mmap.MADV_HUGEPAGE}
PIECE_BYTES = 1 << 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    arrays = {name: filled(args.mib << 20, advice) for name, advice in PAGES.items()}
    found: dict[str, list[float]] = {}
    with ThreadPoolExecutor(2) as pool:
        for _ in range(args.runs):
            for name, array in arrays.items():
                for threads in (1, 2):
                    halves = np.array_split(array, threads)
                    started_s = time.perf_counter()
                    list(pool.map(read, halves))
                    speed = array.nbytes / (time.perf_counter() - started_s) / 1e9
                    found.setdefault(f"{name}, {threads} threads", []).append(speed)
    rows = {
        name: [round(f, 2) for f in (statistics.median(speeds), min(speeds), max(speeds))]
        for name, speeds in found.items()
    }
    print(json.dumps({"bench": "read_bandwidth", "mib": args.mib, "gb_per_s": rows} | machine()))


def filled(size: int, advice: int) -> NDArray[np.float32]:
    """Return memory of its own mapping, in pages of the advised size, all in use."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(advice)
    array = np.frombuffer(memory, np.float32)
    array[:] = 1.0
    return array


def read(array: NDArray[np.float32]) -> None:
    """Read it once, from front to back."""
    step = PIECE_BYTES // array.itemsize
    for start in range(0, array.size, step):
        piece = array[start : start + step]
        np.dot(piece, piece)


if __name__ == "__main__":
    main()
