"""`multispin bench energy`: joules per token of this board, drafting alone or with an edge server.

The method is `sdk.energy.bench`'s: idle, at least five windows of at least ten seconds, idle.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from sdk.config import shipped_model
from sdk.device import Device
from sdk.draft.drafter import OnnxDrafter
from sdk.energy import Phase, PhaseLog, Tokens
from sdk.energy import bench as energy_bench
from sdk.generate import default_device_id
from sdk.model.sampling import Sampler, SamplingParameters
from sdk.model.tokenizer import Tokenizer

__all__ = ["configure", "run"]

_PROMPT = "import os\nimport sys\n\n\ndef main(argv):\n    "
_TOKENS = 64  # of one generation; the next begins with another seed


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    energy_bench.configure(parser)
    parser.add_argument("--model", type=Path, metavar="DIR", help="default: the shipped drafter")
    parser.add_argument(
        "--broker", metavar="HOST:PORT", help="generate with the edge server there, not alone"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads to draft with")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    model = args.model or shipped_model("drafter")
    if args.broker is None:
        return energy_bench.run_with(args, DraftAlone(model, args.threads))
    with Device(
        id=default_device_id(), model=model, broker=args.broker, threads=args.threads
    ) as device:
        return energy_bench.run_with(args, WithServer(device))


class DraftAlone:
    """The small model by itself: every token is drafted and none is accepted by anybody."""

    def __init__(self, model: Path, threads: int | None) -> None:
        self._drafter = OnnxDrafter.load(model, threads=threads)
        self._prompt = Tokenizer(model).encode(_PROMPT)

    def __call__(self, seconds: float, phases: PhaseLog) -> Tokens:
        """Draft for at least `seconds`."""
        until_s = time.monotonic() + seconds
        drafted = seed = 0
        while time.monotonic() < until_s:
            sampler = Sampler(
                parameters=SamplingParameters(temperature=1.0, seed=seed),
                vocabulary_size=self._drafter.vocabulary_size,
            )
            seed += 1
            sequence = list(self._prompt)
            phases.enter(Phase.PREFILL)
            for _ in range(_TOKENS):
                logits = self._drafter.next_logits(sequence)
                phases.enter(Phase.DRAFT)
                sequence.append(sampler.choose(logits, len(sequence)))
                drafted += 1
        phases.enter(Phase.IDLE)
        return Tokens(drafted=drafted, accepted=0, emitted=drafted)


class WithServer:
    """The whole round, again and again."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._seed = 0

    def __call__(self, seconds: float, phases: PhaseLog) -> Tokens:
        """Generate for at least `seconds`."""
        self._device.on_phase = phases.enter
        until_s = time.monotonic() + seconds
        drafted = accepted = emitted = rounds = 0
        while time.monotonic() < until_s:
            self._seed += 1
            for _ in self._device.generate(
                _PROMPT, max_tokens=_TOKENS, temperature=1.0, seed=self._seed
            ):
                pass
            stats = self._device.stats
            drafted += stats.drafted
            accepted += stats.accepted
            emitted += stats.emitted
            rounds += stats.rounds
        return Tokens(drafted=drafted, accepted=accepted, emitted=emitted, rounds=rounds)
