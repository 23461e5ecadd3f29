"""One verify pass, torch against ONNX: `python -m benchmarks.verify` prints one JSON line.

Both backends hold the same target and the same contexts and verify the same ragged drafts, in
turn, so that what else the machine does hits both. `fit` is least squares over all shapes, in the
form that a cell file's `verify` takes: fixed_s + per_request_s × requests + per_row_s × rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.machine import machine
from edge_server.verifier.interface import Verifier, VerifyRequest
from edge_server.verifier.onnx import OnnxVerifier
from edge_server.verifier.torch_backend import TorchVerifier
from models.registry import pair_dir
from sdk.errors import DependencyError, ModelLoadError
from sdk.model.sampling import SamplingParameters

__all__ = ["main"]

# (sessions, rows of each)
SHAPES: Final = ((1, 1), (1, 5), (4, 1), (4, 5), (8, 1), (8, 5))
FIT_KEYS: Final = ("fixed_s", "per_request_s", "per_row_s")
Shape = tuple[int, int]


class Bench:
    """One backend with as many open sessions as the largest shape needs."""

    def __init__(self, verifier: Verifier, *, context: int) -> None:
        self._verifier = verifier
        self._context = context
        self._slots = [self._open(number) for number in range(max(count for count, _ in SHAPES))]

    def _open(self, seed: int) -> int:
        parameters = SamplingParameters()
        capacity = self._context + sum(rows for _, rows in SHAPES)  # if every draft were accepted
        slot = self._verifier.open(parameters=parameters, max_tokens=capacity)
        self._verifier.prefill(slot, self._ids(seed, self._context))
        return slot

    def _ids(self, seed: int, count: int) -> list[int]:
        generator = np.random.default_rng(seed)
        ids: list[int] = generator.integers(0, self._verifier.vocabulary_size, count).tolist()
        return ids

    def seconds(self, shape: Shape) -> float:
        """Return the time of one pass."""
        count, rows = shape
        ids = self._ids(99, count * rows)
        requests = [
            VerifyRequest(slot=slot, pending=(own[0],), draft=tuple(own[1:]))
            for slot, own in zip(
                self._slots, (ids[i : i + rows] for i in range(0, len(ids), rows)), strict=False
            )
        ]
        started_s = time.perf_counter()
        self._verifier.verify(requests)
        return time.perf_counter() - started_s

    def start_anew(self) -> None:
        """Bring every session back to its first context."""
        for index, slot in enumerate(self._slots):
            self._verifier.close(slot)
            self._slots[index] = self._open(index)


def spread(times_s: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles in milliseconds."""
    low, median, high = statistics.quantiles(times_s, n=4)
    figures = {"median_ms": median, "q1_ms": low, "q3_ms": high, "least_ms": min(times_s)}
    return {name: round(value * 1e3, 3) for name, value in figures.items()}


def fit(medians_s: Mapping[Shape, float]) -> dict[str, float]:
    """Return the cell file's `verify`, by least squares with no coefficient below 0."""
    columns = {
        "fixed_s": [1.0 for _ in medians_s],
        "per_request_s": [float(count) for count, _ in medians_s],
        "per_row_s": [float(count * rows) for count, rows in medians_s],
    }
    target = np.array(list(medians_s.values()))
    while True:
        matrix = np.array(list(columns.values())).T
        found, *_ = np.linalg.lstsq(matrix, target, rcond=None)
        if found.min() >= 0.0:
            solved = dict(zip(columns, found.tolist(), strict=True))
            return {
                name: solved.get(name, 0.0) for name in ("fixed_s", "per_request_s", "per_row_s")
            }
        columns.pop(list(columns)[int(found.argmin())])


def measure(benches: Mapping[str, Bench], *, runs: int) -> dict[str, object]:
    """Run every shape on every backend, interleaved, and return the figures."""
    times_s: dict[str, dict[Shape, list[float]]] = {
        name: {shape: [] for shape in SHAPES} for name in benches
    }
    for run in range(runs + 1):
        for bench in benches.values():
            bench.start_anew()
        for shape in SHAPES:
            for name, bench in benches.items():
                elapsed_s = bench.seconds(shape)
                if run:  # the first is a warm-up
                    times_s[name][shape].append(elapsed_s)
    return {name: figures(found) for name, found in times_s.items()}


def figures(times_s: Mapping[Shape, Sequence[float]]) -> dict[str, object]:
    """Return one backend's times, their fit, and what rows cost: 8 × 5 over 8 × 1."""
    medians_s = {shape: statistics.median(found) for shape, found in times_s.items()}
    return {
        "shapes": {f"{k}x{rows}": spread(times_s[k, rows]) for k, rows in times_s},
        "rows_5_over_1": round(medians_s[8, 5] / medians_s[8, 1], 3),
        "verify": fit(medians_s),
    }


def load(args: argparse.Namespace) -> tuple[dict[str, Bench], dict[str, str]]:
    """Return the backends that the folder and this machine have, and why others are missing."""
    memory = {"max_sessions": 8, "kv_memory_mib": args.kv_memory}
    loaders: dict[str, Callable[[], Verifier]] = {
        "torch": lambda: TorchVerifier.load(
            args.model, device=args.device, dtype=args.dtype, threads=args.threads, **memory
        ),
        "onnx": lambda: OnnxVerifier.load(args.model, threads=args.threads, **memory),
    }
    benches, missing = dict[str, Bench](), dict[str, str]()
    for name, loader in loaders.items():
        try:
            benches[name] = Bench(loader(), context=args.context)
        except (DependencyError, ModelLoadError) as error:  # noqa: PERF203
            missing[name] = str(error)
    return benches, missing


def main() -> None:
    """Print the line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.verify")
    parser.add_argument("--model", type=Path, metavar="DIR", help="default: the shipped target")
    parser.add_argument("--device", default="auto", help="of the torch backend")
    parser.add_argument("--dtype", default="auto", help="of the torch backend")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--context", type=int, default=128, metavar="N", help="tokens a session")
    parser.add_argument("--runs", type=int, default=7, metavar="N", help="at least 7")
    parser.add_argument("--kv-memory", type=int, default=1024, metavar="MIB")
    args = parser.parse_args()
    if args.runs < 7:
        parser.error("--runs must be at least 7")
    args.model = args.model or pair_dir("target")
    benches, missing = load(args)
    line = {
        "bench": "verify",
        "model": args.model.name,
        "context": args.context,
        "threads": args.threads,
        "runs": args.runs,
        **measure(benches, runs=args.runs),
        "missing": missing,
        "machine": machine(),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
