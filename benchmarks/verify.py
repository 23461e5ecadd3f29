"""One verify pass, beside other ways to do it: `python -m benchmarks.verify [--peers …]`.

All hold the same weights and contexts of the same length, and take turns shape by shape, so that
what else the machine does hits all: the ONNX verifier (also with one session a call, and with the
graphs of `--also`), the torch verifier, Hugging Face's `generate` (a decode step, so one row a
session) and llama.cpp's `llama_decode` over several sequences, in an environment of its own.

Prints a table and one JSON line. `verify` in it is least squares over all shapes, in the form that
a cell file's `verify` takes: fixed_s + per_request_s × requests + per_row_s × rows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.draft.peers import PEERS, PeerError, interpreter, prepared
from benchmarks.machine import machine
from edge_server.verifier.interface import Verifier, VerifyRequest
from edge_server.verifier.onnx import OnnxVerifier
from edge_server.verifier.torch_backend import TorchVerifier
from models.registry import pair_dir
from sdk.errors import DependencyError, ModelLoadError
from sdk.model.sampling import SamplingParameters

__all__ = ["main"]

# (sessions, rows of each)
SHAPES: Final = tuple((count, rows) for count in (1, 2, 4, 8, 16) for rows in (1, 5, 9))
MOST_SESSIONS: Final = max(count for count, _ in SHAPES)
REST_S: Final = 0.03  # until the threads of who ran before, which wait by spinning, sleep
GENERATED: Final = 16  # decode steps of one `generate`
OURS: Final = "onnx"
BUILD: Final = Path("build") / "bench-verify"
Shape = tuple[int, int]


class Runner(Protocol):
    """One way to verify."""

    def seconds(self, shape: Shape) -> float | None:
        """Return the time of one pass; None where it has no such pass."""

    def start_anew(self) -> None:
        """Bring every session back to its first context."""


class Bench:
    """One backend with as many open sessions as the largest shape needs."""

    def __init__(self, verifier: Verifier, *, context: int) -> None:
        self._verifier = verifier
        self._context = context
        self._slots = [self._open(number) for number in range(MOST_SESSIONS)]

    def _open(self, seed: int) -> int:
        parameters = SamplingParameters()
        capacity = self._context + 2 * sum(
            rows for _, rows in SHAPES
        )  # if every draft were accepted
        slot = self._verifier.open(parameters=parameters, max_tokens=capacity)
        self._verifier.prefill(slot, self._ids(seed, self._context))
        return slot

    def _ids(self, seed: int, count: int) -> list[int]:
        generator = np.random.default_rng(seed)
        ids: list[int] = generator.integers(0, self._verifier.vocabulary_size, count).tolist()
        return ids

    def seconds(self, shape: Shape) -> float | None:
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


class Generate:
    """Hugging Face's own loop: what one more token of every sequence costs in `generate`."""

    def __init__(self, folder: Path, *, context: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
        ids = np.random.default_rng(0).integers(1, self._model.config.vocab_size, context)
        self._prompt = torch.tensor(ids)[None]

    def seconds(self, shape: Shape) -> float | None:
        """Return the time of a longer `generate` less that of a shorter one, per step."""
        count, rows = shape
        if rows > 1:
            return None
        prompts = self._prompt.repeat(count, 1)
        return (self._generate(prompts, 1 + GENERATED) - self._generate(prompts, 1)) / GENERATED

    def start_anew(self) -> None:
        """Nothing is kept."""

    def _generate(self, prompts: object, tokens: int) -> float:
        started_s = time.perf_counter()
        with self._torch.inference_mode():
            self._model.generate(
                prompts,
                attention_mask=self._torch.ones_like(prompts),
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return time.perf_counter() - started_s


class LlamaCpp:
    """llama.cpp in a process of its own, which waits while others run."""

    def __init__(self, checkpoint: Path, *, context: int, threads: int) -> None:
        BUILD.mkdir(parents=True, exist_ok=True)
        peer = next(peer for peer in PEERS if peer.name == "llama.cpp")
        python = interpreter(peer, BUILD)
        weights = prepared(peer, python, "fp32", checkpoint, BUILD.resolve())
        if isinstance(weights, PeerError):
            raise weights
        script = Path(__file__).parent / "verify_llama_cpp.py"
        numbers = (context, MOST_SESSIONS, max(rows for _, rows in SHAPES), threads)
        self._process = subprocess.Popen(
            [str(python), str(script), str(weights), *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.start_anew()

    def seconds(self, shape: Shape) -> float | None:
        """Return what the process measured."""
        return self._ask(f"{shape[0]} {shape[1]}")

    def start_anew(self) -> None:
        """Feed every sequence its context again."""
        self._ask("0 0")

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(timeout=30)

    def _ask(self, line: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            return float(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            raise PeerError(f"llama.cpp ended with {self._process.poll()}") from error


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


def measure(runners: Mapping[str, Runner], *, runs: int) -> dict[str, dict[Shape, list[float]]]:
    """Run every shape on every backend, interleaved, and return the times in seconds."""
    times_s: dict[str, dict[Shape, list[float]]] = {name: {} for name in runners}
    for run in range(runs + 1):
        for runner in runners.values():
            runner.start_anew()
        for shape in SHAPES:
            for name, runner in runners.items():
                rest()
                runner.seconds(shape)  # so that it finds its own data in the caches, not another's
                elapsed_s = runner.seconds(shape)
                if run and elapsed_s is not None:  # the first is a warm-up
                    times_s[name].setdefault(shape, []).append(elapsed_s)
    return times_s


def rest() -> None:
    """Keep this thread busy for a while: one that slept may be woken on its own worker's core."""
    started_s = time.perf_counter()
    while time.perf_counter() - started_s < REST_S:
        pass


def figures(
    medians_s: Mapping[Shape, float], times_s: Mapping[Shape, Sequence[float]]
) -> dict[str, object]:
    """Return one backend's times and, where it has them, what rows cost and the fit."""
    found: dict[str, object] = {
        "shapes": {f"{k}x{rows}": spread(times_s[k, rows]) for k, rows in times_s}
    }
    if (8, 5) in medians_s:
        found["rows_5_over_1"] = round(medians_s[8, 5] / medians_s[8, 1], 3)
        found["verify"] = fit(medians_s)
    return found


def ratios(medians_s: Mapping[str, Mapping[Shape, float]]) -> dict[str, dict[str, float]]:
    """Return, for every other way, our time over its time."""
    ours = medians_s.get(OURS, {})
    return {
        name: {
            f"{k}x{rows}": round(ours[k, rows] / other[k, rows], 3)
            for k, rows in other
            if (k, rows) in ours
        }
        for name, other in medians_s.items()
        if name != OURS
    }


def table(times_s: Mapping[str, Mapping[Shape, Sequence[float]]]) -> Table:
    """Return medians and quartiles in milliseconds, a row per shape."""
    drawn = Table("sessions × rows", *times_s, title="ms a pass: median (quartiles)")
    for count, rows in SHAPES:
        cells = []
        for found in times_s.values():
            ms = spread(found[count, rows]) if (count, rows) in found else None
            cells.append(
                f"{ms['median_ms']:.2f} ({ms['q1_ms']:.2f}–{ms['q3_ms']:.2f})" if ms else "–"
            )
        drawn.add_row(f"{count} × {rows}", *cells)
    return drawn


@contextlib.contextmanager
def loaded(args: argparse.Namespace) -> Iterator[tuple[dict[str, Runner], dict[str, str]]]:
    """Yield what the folder and this machine have, and why others are missing."""

    def onnx(folder: Path, **options: int) -> Runner:
        verifier = OnnxVerifier.load(folder, threads=args.threads, **memory, **options)
        return Bench(verifier, context=args.context)

    def torch() -> Runner:
        verifier = TorchVerifier.load(
            args.model,
            device=args.device,
            dtype=args.dtype,
            weights=args.weights,
            threads=args.threads,
            **memory,
        )
        return Bench(verifier, context=args.context)

    memory = {"max_sessions": MOST_SESSIONS, "kv_memory_mib": args.kv_memory}
    loaders: dict[str, Callable[[], Runner]] = {
        OURS: lambda: onnx(args.model),
        "onnx, one by one": lambda: onnx(args.model, lanes=1),
        **{f"onnx {folder.name}": lambda folder=folder: onnx(folder) for folder in args.also},
        "torch": torch,
        "generate": lambda: Generate(args.model, context=args.context),
        "llama.cpp": lambda: LlamaCpp(args.model, context=args.context, threads=args.threads),
    }
    runners, missing = dict[str, Runner](), dict[str, str]()
    with contextlib.ExitStack() as stack:
        for name, loader in loaders.items():
            if name in args.without:
                continue
            try:
                runners[name] = loader()
            except (DependencyError, ModelLoadError, PeerError, ImportError) as error:
                missing[name] = str(error)
            else:
                if isinstance(runner := runners[name], LlamaCpp):
                    stack.callback(runner.close)
        yield runners, missing


def main() -> None:
    """Print the table and the line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.verify")
    parser.add_argument("--model", type=Path, metavar="DIR", help="default: the shipped target")
    parser.add_argument("--also", type=Path, nargs="*", default=[], metavar="DIR", help="exports")
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="columns to skip")
    parser.add_argument("--device", default="auto", help="of the torch backend")
    parser.add_argument("--dtype", default="auto", help="of the torch backend")
    parser.add_argument("--weights", default="stored", help="of the torch backend: int8, fp8")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--context", type=int, default=128, metavar="N", help="tokens a session")
    parser.add_argument("--runs", type=int, default=7, metavar="N", help="at least 7")
    parser.add_argument("--kv-memory", type=int, default=1024, metavar="MIB")
    args = parser.parse_args()
    if args.runs < 7:
        parser.error("--runs must be at least 7")
    args.model = args.model or pair_dir("target")
    with loaded(args) as (runners, missing):
        times_s = measure(runners, runs=args.runs)
    medians_s = {
        name: {shape: statistics.median(times) for shape, times in found.items()}
        for name, found in times_s.items()
    }
    console = Console(stderr=True, width=24 + 24 * len(times_s))
    console.print(table(times_s))
    line = {
        "bench": "verify",
        "model": args.model.name,
        "context": args.context,
        "threads": args.threads,
        "runs": args.runs,
        **{name: figures(medians_s[name], found) for name, found in times_s.items()},
        "onnx_over": ratios(medians_s),
        "missing": missing,
        "machine": machine(),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
