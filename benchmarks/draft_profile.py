"""Where a drafted token's time goes, operator by operator, by ONNX Runtime's own profiler.

python -m benchmarks.draft_profile --model DIR [--context N] [--tokens N] [--threads N]

Medians over the tokens; products are told apart by the width of what they compute.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from sdk.model import decoder as decoding


def main() -> None:
    """Draft with the profiler on and print one line per kind of operator."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="exported model folder")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        events = profiled(args, folder)
    calls = [event for event in events if event["name"] == "model_run"]
    calls = sorted(calls, key=lambda event: event["ts"])[-args.tokens :]
    spent: dict[str, list[float]] = defaultdict(list)
    nodes: Counter[str] = Counter()
    for call in calls:
        nodes = Counter()
        sums: Counter[str] = Counter()
        for event in events:
            inside = call["ts"] <= event["ts"] <= call["ts"] + call["dur"]
            if inside and event["name"].endswith("_kernel_time"):
                sums[kind(event)] += event["dur"]
                nodes[kind(event)] += 1
        sums["whole call"] = call["dur"]
        for name, microseconds in sums.items():
            spent[name].append(microseconds / 1e3)
    for name, times in sorted(spent.items(), key=lambda item: -statistics.median(item[1])):
        print(f"{statistics.median(times):8.3f} ms  {nodes[name] or 1:3d} × {name}")


def profiled(args: argparse.Namespace, folder: str) -> list[dict[str, Any]]:
    """Return the profiler's events of a prompt and of tokens drafted behind it."""
    plain = decoding.session_options

    def options(threads: int) -> Any:
        chosen = plain(threads)
        chosen.enable_profiling = True
        chosen.profile_file_prefix = f"{folder}/profile"
        return chosen

    decoding.session_options = options  # ONNX Runtime wants to know before the session exists
    decoder = decoding.Decoder.load(args.model, threads=args.threads)
    prompt = np.random.default_rng(0).integers(0, decoder.vocabulary_size, args.context)
    cache = decoder.new_cache(capacity=args.context + args.tokens)
    row = decoder.run(cache, prompt, score=1)
    for _ in range(args.tokens):
        row = decoder.run(cache, [int(row[-1].argmax())])
    events: list[dict[str, Any]] = json.loads(Path(decoder._session.end_profiling()).read_text())
    return events


def kind(event: dict[str, Any]) -> str:
    """Return an operator's name, with the width of its output for a product."""
    name = str(event["args"]["op_name"])
    if not name.startswith("MatMul"):
        return name
    (shape,) = event["args"]["output_type_shape"][0].values()
    return f"{name} → {shape[-1]}"


if __name__ == "__main__":
    main()
