"""`multispin bench draft`: how fast this board drafts with an exported model.

One warm-up, then a prompt of random ids and a number of tokens, each the likeliest after the last,
as a drafter feeds them. Knows nothing about links and servers.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sdk.config import shipped_model
from sdk.errors import ConfigError
from sdk.model.decoder import PROVIDERS, Decoder, default_threads

__all__ = ["DraftFigures", "configure", "measure", "run"]

WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftFigures:
    """What one measurement found.

    Attributes:
        ms_per_token: wall time of all drafted tokens divided by their number.
        median_ms: the median token's wall time, which a busy machine disturbs less.
        prefill_ms: wall time from the prompt to the logits of its last id.
        first_token_ms: the time to the first draft token, from a prompt and no cache: memory for
            keys and values, the prompt, and the choice of the likeliest token.
        peak_mb: most memory that this process ever held, in 10^6 bytes, Python included.
    """

    ms_per_token: float
    median_ms: float
    prefill_ms: float
    first_token_ms: float
    peak_mb: float
    tokens: int
    threads: int
    context: int
    weights: str
    kv_type: str
    provider: str


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the bench's options."""
    parser.add_argument("--model", type=Path, metavar="DIR", help="default: the shipped drafter")
    parser.add_argument("--context", type=int, default=128, help="prompt length (default 128)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to draft (default 64)")
    parser.add_argument(
        "--threads",
        type=int,
        default=default_threads(),
        help="CPU threads (default here: %(default)s)",
    )
    parser.add_argument(
        "--provider",
        choices=sorted(PROVIDERS),
        default="cpu",
        help="what ONNX Runtime computes with (default: cpu)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if min(args.context, args.tokens, args.threads) < 1:
        raise ConfigError("bench draft: context, tokens and threads must be at least 1")
    decoder = Decoder.load(
        args.model or shipped_model("drafter"), threads=args.threads, provider=args.provider
    )
    if args.context + args.tokens > decoder.context_length:
        raise ConfigError(
            f"bench draft: {args.context} + {args.tokens} tokens exceed this model's context of "
            f"{decoder.context_length}; lower --context or --tokens"
        )
    figures = measure(decoder, context=args.context, tokens=args.tokens, threads=args.threads)
    if args.json:
        print(json.dumps(asdict(figures)))
    else:
        print(
            f"{figures.ms_per_token:.3f} ms per drafted token (median {figures.median_ms:.3f}), "
            f"{figures.first_token_ms:.1f} ms to the first after a prompt of {figures.context}, "
            f"{figures.peak_mb:.0f} MB at most ({figures.weights} on {figures.provider}, "
            f"{figures.threads} threads)"
        )
    return 0


def measure(decoder: Decoder, *, context: int, tokens: int, threads: int) -> DraftFigures:
    """Time one prompt of `context` ids and `tokens` drafts after it."""
    prompt = np.random.default_rng(0).integers(0, decoder.vocabulary_size, context)
    warm = decoder.new_cache(capacity=min(WARM_UP_TOKENS, decoder.context_length))
    for token in prompt[: warm.capacity]:
        decoder.run(warm, [int(token)])
    opened_s = time.perf_counter()
    cache = decoder.new_cache(capacity=context + tokens)
    started_s = time.perf_counter()
    row = decoder.run(cache, prompt, score=1)
    prefilled_s = time.perf_counter()
    token = int(row[-1].argmax())
    first_s = time.perf_counter()
    steps_s = []
    for _ in range(tokens):
        before_s = time.perf_counter()
        token = int(decoder.run(cache, [token])[-1].argmax())
        steps_s.append(time.perf_counter() - before_s)
    return DraftFigures(
        ms_per_token=statistics.fmean(steps_s) * 1e3,
        median_ms=statistics.median(steps_s) * 1e3,
        prefill_ms=(prefilled_s - started_s) * 1e3,
        first_token_ms=(first_s - opened_s) * 1e3,
        peak_mb=peak_bytes() / 1e6,
        tokens=tokens,
        threads=threads,
        context=context,
        weights=decoder.manifest.weights,
        kv_type=decoder.manifest.kv_type,
        provider=decoder.provider,
    )


def peak_bytes() -> int:
    """Return the largest resident size of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
