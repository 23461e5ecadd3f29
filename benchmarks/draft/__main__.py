"""Set up every peer, interleave the runs, print one table and one JSON line.

python -m benchmarks.draft [--model DIR | --shape smollm2-135m] [--contexts 128 1024]
    [--precisions fp32 int8 int4] [--tokens 64] [--runs 7] [--threads N] [--peers NAME …]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.draft.model import SHAPES
from benchmarks.draft.peers import OURS, PEERS, Peer, PeerError, interpreter, measured, prepared

BUILD = Path("build") / "bench-draft"
FIGURES = ("ms_per_token", "first_token_ms", "peak_mb")
KV8 = "-kv8"  # ends the name of a precision whose keys and values are in 8 bits


def main() -> int:
    args = arguments()
    folder = BUILD.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = args.model.resolve() if args.model else random_checkpoint(folder, args.shape)
    console = Console(stderr=True)
    entries, absent = set_up(args, checkpoint, folder, console)
    samples = run_all(args, entries, absent, console)
    result = summary(args, checkpoint, samples, absent)
    show(result)
    print(json.dumps(result))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.draft", description=__doc__)
    parser.add_argument("--model", type=Path, help="Hugging Face folder; random weights without")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="smollm2-135m")
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024])
    parser.add_argument(
        "--precisions", nargs="+", choices=list(OURS.precisions), default=list(OURS.precisions)
    )
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--peers", nargs="*", choices=[peer.name for peer in PEERS])
    return parser.parse_args()


def random_checkpoint(folder: Path, shape: str) -> Path:
    """Return random weights in a shape, made once."""
    out = folder / shape
    if not (out / "config.json").exists():
        subprocess.run([sys.executable, "-m", "benchmarks.draft.model", out, shape], check=True)
    return out


def set_up(
    args: argparse.Namespace, checkpoint: Path, folder: Path, console: Console
) -> tuple[list[tuple[Peer, str, Path, Path]], dict[str, str]]:
    """Install and convert; return what can be measured, and why the rest cannot."""
    entries: list[tuple[Peer, str, Path, Path]] = []
    absent: dict[str, str] = {}
    chosen = [peer for peer in PEERS if args.peers is None or peer.name in args.peers]
    for peer in (OURS, *chosen):
        wanted = [precision for precision in args.precisions if precision in peer.precisions]
        try:
            with console.status(f"setting up {peer.name} (some minutes the first time) …"):
                python = interpreter(peer, folder)
        except PeerError as error:
            absent[peer.name] = str(error)
            continue
        for precision in wanted:
            with console.status(f"{peer.name}: writing {precision} …"):
                written = prepared(peer, python, precision, checkpoint, folder)
            if isinstance(written, PeerError):
                absent[f"{peer.name} {precision}"] = str(written)
            else:
                entries.append((peer, precision, python, written))
    return entries, absent


def run_all(
    args: argparse.Namespace,
    entries: list[tuple[Peer, str, Path, Path]],
    absent: dict[str, str],
    console: Console,
) -> dict[tuple[str, str, int], list[dict[str, float]]]:
    """Measure everything once, then again: a machine's slow minute then hits all alike.

    Ctrl-C ends the measurement and keeps what there is.
    """
    samples: dict[tuple[str, str, int], list[dict[str, float]]] = defaultdict(list)
    rounds = [(entry, context) for entry in entries for context in args.contexts] * args.runs
    with Progress(console=console) as progress, contextlib.suppress(KeyboardInterrupt):
        for (peer, precision, python, model), context in progress.track(rounds, description="runs"):
            name = f"{peer.name} {precision}"
            numbers = {"context": context, "tokens": args.tokens, "threads": args.threads}
            if name in absent:
                continue
            found = measured(peer, python, model, **numbers)
            if isinstance(found, PeerError):
                absent[name] = str(found)
            else:
                samples[peer.name, precision, context].append(found)
    return samples


def summary(
    args: argparse.Namespace,
    checkpoint: Path,
    samples: dict[tuple[str, str, int], list[dict[str, float]]],
    absent: dict[str, str],
) -> dict[str, object]:
    rows = []
    for (name, precision, context), found in samples.items():
        row: dict[str, object] = {"runtime": name, "precision": precision, "context": context}
        for figure in FIGURES:
            values = [sample[figure] for sample in found]
            row[figure] = statistics.median(values)
            row[f"{figure}_range"] = [min(values), max(values)]
        rows.append({**row, "runs": len(found)})
    return {
        "bench": "draft",
        "model": checkpoint.name,
        "threads": args.threads,
        "tokens": args.tokens,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": os.getloadavg()[0],
        "rows": rows,
        "absent": absent,
    }


def show(result: dict[str, object]) -> None:
    rows, absent = result["rows"], result["absent"]
    assert isinstance(rows, list)
    assert isinstance(absent, dict)
    table = Table(title=f"{result['model']}, {result['threads']} threads, medians (min … max)")
    for heading in (
        "precision",
        "context",
        "runtime",
        "ms a token",
        "of ours",
        "first token ms",
        "MB",
    ):
        table.add_column(heading, justify="left" if heading == "runtime" else "right")
    ours = {
        (row["precision"], row["context"]): row["ms_per_token"]
        for row in rows
        if row["runtime"] == OURS.name
    }
    for row in sorted(
        rows, key=lambda row: (row["precision"], row["context"], row["ms_per_token"])
    ):
        base = ours.get((row["precision"].removesuffix(KV8), row["context"]))
        low, high = row["ms_per_token_range"]
        table.add_row(
            *(row["precision"], str(row["context"]), row["runtime"]),
            f"{row['ms_per_token']:.2f} ({low:.2f} … {high:.2f})",
            f"{row['ms_per_token'] / base:.2f}" if base else "",
            f"{row['first_token_ms']:.0f}",
            f"{row['peak_mb']:.0f}",
        )
    Console(width=110).print(table)
    for name, reason in absent.items():
        Console().print(f"{name}: not measured: {reason}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
