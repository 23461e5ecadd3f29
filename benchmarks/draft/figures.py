"""The one line that every measuring program prints. Standard library only: peers import it too."""

from __future__ import annotations

import json
import random
import resource
import time
from collections.abc import Callable


def prompt_ids(length: int, vocabulary: int) -> list[int]:
    """Return the same random prompt for every runtime."""
    source = random.Random(0)  # noqa: S311 (a prompt, not a secret)
    return [source.randrange(1, vocabulary) for _ in range(length)]


def report(prefill: Callable[[], object], step: Callable[[], object], tokens: int) -> None:
    """Time one prefill and `tokens` steps and print the figures as JSON."""
    started = time.perf_counter()
    prefill()
    prefilled = time.perf_counter()
    for _ in range(tokens):
        step()
    ended = time.perf_counter()
    print_figures((ended - prefilled) / tokens * 1e3, (prefilled - started) * 1e3)


def print_figures(ms_per_token: float, prefill_ms: float) -> None:
    """Print the figures, with this process's largest resident size."""
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    figures = {"ms_per_token": ms_per_token, "prefill_ms": prefill_ms, "peak_mb": peak_mb}
    print(json.dumps(figures))
