"""How often does the shape of a pass change a greedy choice? `python -m benchmarks.invariance`.

The torch verifier reads real text (the standard library's source, which the shipped target was
trained on): every row once among five of one session, once in a pass that eight sessions share,
once among eight sessions' single rows. Counted are rows whose likeliest token is not that of the
first reading, and rows with any bit changed. In fixed shapes (`invariant`), where a row costs
more, one round is read. Prints a JSON line per number type and mode: rates per million
rows, with the interval of Clopper and Pearson at 95 %, and what a pass costs.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta

from benchmarks.machine import machine
from edge_server.verifier.torch_model import TorchModel
from edge_server.verifier.torch_segments import Segment
from models.registry import pair_dir
from sdk.model.tokenizer import Tokenizer

SESSIONS, ROWS, CONTEXT = 8, 5, 128
SHAPES = {"1x5": (1, ROWS), "8x5": (SESSIONS, ROWS), "8x1": (SESSIONS, 1)}


def read(
    model: TorchModel, texts: NDArray[np.int64], shape: tuple[int, int]
) -> tuple[NDArray[np.float32], float]:
    """Return logits behind the context, [texts, positions, vocab], and the seconds of a pass."""
    count, rows = shape
    length = texts.shape[1]
    found = np.empty((len(texts), length - CONTEXT, model.vocabulary_size), np.float32)
    passes, started_s = 0, 0.0
    segments = [Segment(number * length, length) for number in range(len(texts))]
    for segment, text in zip(segments, texts, strict=True):  # the same context for every shape
        model.run([segment.span(CONTEXT)], text[:CONTEXT].tolist(), [])
    started_s = time.perf_counter()
    for first in range(0, len(texts), count):
        group = range(first, first + count)
        for start in range(CONTEXT, length, rows):
            for number in group:
                segments[number].length = start
            spans = [segments[number].span(rows) for number in group]
            ids = texts[first : first + count, start : start + rows].ravel().tolist()
            logits = model.run(spans, ids, range(len(ids)))
            found[first : first + count, start - CONTEXT : start - CONTEXT + rows] = logits.reshape(
                count, rows, -1
            )
            passes += 1
    return found, (time.perf_counter() - started_s) / passes


def texts_of(folder: Path, count: int, length: int) -> NDArray[np.int64]:
    """Return `count` pieces of the standard library's source, [count, length]."""
    tokenizer = Tokenizer(folder)
    ids: list[int] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        ids += tokenizer.encode(path.read_text(encoding="utf-8", errors="replace"))
        if len(ids) >= count * length:
            break
    return np.array(ids[: count * length]).reshape(count, length)


def interval(changed: int, rows: int) -> list[float]:
    """Return the 95 % interval of a rate, per million."""
    low = beta.ppf(0.025, changed, rows - changed + 1) if changed else 0.0
    high = beta.ppf(0.975, changed + 1, rows - changed) if changed < rows else 1.0
    return [round(float(bound) * 1e6, 1) for bound in (low, high)]


def compare(
    folder: Path, *, dtype: str, invariant: bool, rounds: int, positions: int
) -> dict[str, object]:
    """Return counts and costs of one number type."""
    length = CONTEXT + positions
    model = TorchModel.load(
        folder, device="cpu", dtype=dtype, kv_memory_mib=512, invariant=invariant
    )
    texts = texts_of(folder, rounds * SESSIONS, length)
    changed, bits, pass_s = defaultdict[str, int](int), defaultdict[str, int](int), {}
    rows = 0
    for first in range(0, len(texts), SESSIONS):
        alone = None
        for name, shape in SHAPES.items():
            logits, pass_s[name] = read(model, texts[first : first + SESSIONS], shape)
            if alone is None:
                alone = logits
                rows += logits.shape[0] * logits.shape[1]
                continue
            changed[name] += int((logits.argmax(-1) != alone.argmax(-1)).sum())
            bits[name] += int((logits != alone).any(-1).sum())
    return {
        "rows": rows,
        "pass_ms": {name: round(value * 1e3, 2) for name, value in pass_s.items()},
        "beside_others": {
            name: {
                "choices_changed": changed[name],
                "per_million": round(changed[name] / rows * 1e6, 1),
                "interval_95": interval(changed[name], rows),
                "rows_with_other_bits": round(bits[name] / rows, 4),
            }
            for name in list(SHAPES)[1:]
        },
    }


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.invariance")
    parser.add_argument("--model", type=Path, metavar="DIR", help="default: the shipped target")
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=4, help="of 8 texts each")
    parser.add_argument("--positions", type=int, default=200, help="of each text; a multiple of 5")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.positions % ROWS:
        parser.error(f"--positions must be a multiple of {ROWS}")
    torch.set_num_threads(args.threads)
    folder = args.model or pair_dir("target")
    for dtype in args.dtypes:
        for invariant in (False, True):
            found = compare(
                folder,
                dtype=dtype,
                invariant=invariant,
                rounds=1 if invariant else args.rounds,
                positions=args.positions,
            )
            line = {
                "bench": "invariance",
                "model": folder.name,
                "dtype": dtype,
                "invariant": invariant,
                **found,
                "machine": machine(),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
