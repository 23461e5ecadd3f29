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


def report(first: Callable[[], object], step: Callable[[], object], tokens: int) -> None:
    """Time the way to the first token and `tokens` steps, and print the figures as JSON.

    `first` starts with the prompt and no keys and values, and ends with the choice of a token.
    """
    started = time.perf_counter()
    first()
    drafted = time.perf_counter()
    for _ in range(tokens):
        step()
    ended = time.perf_counter()
    print_figures((ended - drafted) / tokens * 1e3, (drafted - started) * 1e3)


def print_figures(ms_per_token: float, first_token_ms: float) -> None:
    """Print the figures, with this process's largest resident size."""
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    figures = {"ms_per_token": ms_per_token, "first_token_ms": first_token_ms, "peak_mb": peak_mb}
    print(json.dumps(figures))
