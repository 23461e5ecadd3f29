"""What deciding on drafts costs beside the pass: on the device, and by numpy on the host.

python -m benchmarks.acceptance [--sessions K] [--length L] [--vocabulary V] [--device cpu|cuda]

Random logits of K sessions with L drafted tokens each. Prints one JSON line: milliseconds for all
of them, median [least, 90 %]; for the device until the outcomes are on the host, for the host after
the logits are (`copy_ms` is what bringing them there takes).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.draft_overhead import microseconds, spread
from benchmarks.machine import machine
from edge_server.verifier.acceptance import Trial, accept, accept_ratio
from edge_server.verifier.torch_acceptance import accept_all
from sdk.model.proposal import propose
from sdk.model.sampling import Sampler, SamplingParameters, transform

SUPPORT, WEIGHT_BITS = 32, 8
WARM = SamplingParameters(temperature=1.0, seed=1)
WAYS = {
    "greedy": SamplingParameters(),
    "coupled": WARM,
    "coupled, top-k 50": SamplingParameters(temperature=1.0, top_k=50, seed=1),
    "coupled, top-p 0.95": SamplingParameters(temperature=1.0, top_p=0.95, seed=1),
    "ratio, by token": WARM,
    "ratio, by block": WARM,
}


def main() -> None:
    """Measure every way of deciding; check that both sides decide alike."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--length", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=150_000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    shape = (args.sessions, args.length + 1, args.vocabulary)
    logits = np.random.default_rng(0).normal(0, 3, shape).astype(np.float32)
    there = torch.from_numpy(logits.reshape(-1, args.vocabulary)).to(args.device)
    ways = {}
    for name, parameters in WAYS.items():
        trials = [trial_of(name, parameters, rows, n) for n, rows in enumerate(logits)]
        samplers = [Sampler(parameters=parameters, vocabulary_size=args.vocabulary) for _ in trials]
        on_device = lambda trials=trials: accept_all(there, trials)  # noqa: E731
        on_host = lambda trials=trials, samplers=samplers: [  # noqa: E731
            accept_ratio(rows, trial)
            if trial.proposals
            else accept(rows, trial.draft, sampler=sampler, position=trial.position)
            for rows, trial, sampler in zip(logits, trials, samplers, strict=True)
        ]
        assert on_device() == on_host(), name
        ways[name] = {
            "device_ms": milliseconds(on_device, args.repeats),
            "host_ms": milliseconds(on_host, args.repeats),
        }
    print(
        json.dumps(
            {
                "bench": "acceptance",
                **vars(args),
                "threads": torch.get_num_threads(),
                "copy_ms": milliseconds(lambda: there.cpu().clone(), args.repeats),
                "ways": ways,
                "machine": machine(),
            }
        )
    )


def trial_of(
    name: str, parameters: SamplingParameters, rows: NDArray[np.float32], seed: int
) -> Trial:
    """Return a draft that is accepted whole, so that no side may stop early."""
    ratio = name.startswith("ratio")
    if not ratio:
        sampler = Sampler(parameters=parameters, vocabulary_size=rows.shape[1])
        draft = tuple(sampler.choose(row, n) for n, row in enumerate(rows[:-1]))
        return Trial(parameters=parameters, position=0, draft=draft)
    proposals = tuple(
        propose(transform(row, parameters), support=SUPPORT, weight_bits=WEIGHT_BITS)
        for row in rows[:-1]
    )
    numbers = np.random.default_rng(seed).uniform(1e-9, 1, rows.shape[0]).tolist()
    return Trial(
        parameters=parameters,
        position=0,
        draft=tuple(proposal.draw(0.5) for proposal in proposals),
        proposals=proposals,
        uniforms=tuple(numbers),
        block=name.endswith("block"),
    )


def milliseconds(action: Callable[[], object], repeats: int) -> list[float]:
    """Return median, least and 90 % of what an action takes."""
    return spread([us / 1e3 for us in microseconds(lambda _: action(), repeats)])


if __name__ == "__main__":
    main()
