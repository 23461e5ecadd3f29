"""What a drafted token costs beside the graph: choosing it, and Python around ONNX Runtime.

python -m benchmarks.draft_overhead --model DIR [--vocabulary N] [--context N] [--threads N]

Choices are made from logits of N tokens that fall with a token's rank as words do (Zipf, exponent
1.2), whatever the model's vocabulary; shares are of this model's step. Prints one JSON line:
microseconds, median [least, 90 %].
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import machine
from sdk.model.decoder import Decoder, default_threads
from sdk.model.noise import Stream, uniform
from sdk.model.proposal import propose
from sdk.model.sampling import Sampler, SamplingParameters, transform

ZIPF_EXPONENT = 1.2
SUPPORT, WEIGHT_BITS = 32, 8
WAYS = {
    "greedy": SamplingParameters(),
    "coupled": SamplingParameters(temperature=1.0),
    "coupled, top-k 50": SamplingParameters(temperature=1.0, top_k=50),
    "coupled, top-p 0.95": SamplingParameters(temperature=1.0, top_p=0.95),
    "coupled, top-p 0.95 at temperature 0.7": SamplingParameters(temperature=0.7, top_p=0.95),
}


def main() -> None:
    """Measure the step, its Python, and every way of choosing; print shares."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="exported model folder")
    parser.add_argument("--vocabulary", type=int, default=150_000)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--repeats", type=int, default=200)
    args = parser.parse_args()
    step_us, python_us = steps(args)
    row = zipf_row(args.vocabulary)
    choices = {name: microseconds(way, args.repeats) for name, way in ways(row).items()}
    print(
        json.dumps(
            {
                "bench": "draft_overhead",
                "model": args.model.name,
                "context": args.context,
                "threads": args.threads,
                "vocabulary": args.vocabulary,
                "step_us": spread(step_us),
                "decoder_python_us": spread(python_us),
                "kept": {
                    name: int(np.isfinite(transform(row, parameters)).sum())
                    for name, parameters in WAYS.items()
                    if not parameters.greedy
                },
                "choice_us": {name: spread(spent) for name, spent in choices.items()},
                "share_of_step": {
                    name: round(float(np.median(spent) / np.median(step_us)), 4)
                    for name, spent in choices.items()
                },
                "machine": machine(),
            }
        )
    )


class TimedSession:
    """Stands before ONNX Runtime's session and notes how long the last call was inside it."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.inside_s = 0.0

    def run_with_iobinding(self, binding: Any) -> None:
        started_s = time.perf_counter()
        self.session.run_with_iobinding(binding)
        self.inside_s = time.perf_counter() - started_s


def steps(args: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Return microseconds of every step, and of its part outside ONNX Runtime."""
    decoder = Decoder.load(args.model, threads=args.threads)
    cache = decoder.new_cache(capacity=args.context + args.repeats)
    prompt = np.random.default_rng(0).integers(0, decoder.vocabulary_size, args.context)
    decoder.run(cache, prompt, score=1)
    timed = TimedSession(decoder._session)
    decoder._session = timed
    whole, outside = [], []
    for number in range(args.repeats):
        cache.rollback(args.context)
        started_s = time.perf_counter()
        decoder.run(cache, [number % decoder.vocabulary_size])
        took_s = time.perf_counter() - started_s
        whole.append(took_s * 1e6)
        outside.append((took_s - timed.inside_s) * 1e6)
    return whole, outside


def zipf_row(vocabulary: int) -> NDArray[np.float32]:
    ranks = np.random.default_rng(0).permutation(vocabulary) + 1
    return (-ZIPF_EXPONENT * np.log(ranks)).astype(np.float32)


def ways(row: NDArray[np.float32]) -> dict[str, Callable[[int], object]]:
    """Return every way of choosing a token at a position."""
    found: dict[str, Callable[[int], object]] = {}
    for name, parameters in WAYS.items():
        sampler = Sampler(parameters=parameters, vocabulary_size=row.size)
        found[name] = lambda position, sampler=sampler: sampler.choose(row, position)
    sampled = WAYS["coupled"]

    def drawn(position: int) -> int:
        shaped = transform(row, sampled)
        proposal = propose(shaped, support=SUPPORT, weight_bits=WEIGHT_BITS)
        return proposal.draw(uniform(sampled.seed, position, Stream.DRAFT))

    return {**found, f"ratio, {SUPPORT} ids": drawn}


def microseconds(way: Callable[[int], object], repeats: int) -> list[float]:
    way(0)
    found = []
    for position in range(repeats):
        started_s = time.perf_counter()
        way(position)
        found.append((time.perf_counter() - started_s) * 1e6)
    return found


def spread(values: list[float]) -> list[float]:
    return [round(float(np.percentile(values, part)), 1) for part in (50, 0, 90)]


if __name__ == "__main__":
    main()
