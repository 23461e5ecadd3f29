"""Real models over real brokers: the text is the target's own, token for token."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

from edge_server.broker import BrokerProcess
from edge_server.reference import decode_alone
from edge_server.verifier.onnx import DEFAULT_LANES, OnnxVerifier
from edge_server.verifier.onnx_lanes import Lanes
from sdk.draft.drafter import OnnxDrafter
from sdk.model.decoder import Decoder
from sdk.model.sampling import SamplingParameters
from sdk.model.tokenizer import Tokenizer
from sdk.protocol import UP_FILTER, Open, down
from sdk.transport.mqtt import MqttTransport
from tests.fakes.cell import FixedLength, generate, generate_all, opening, serving

TEXT = (
    "import os\nimport sys\n\n\ndef main(argv):\n    ",
    "class Reader:\n    def __init__(self, ",
    '    """Return the ',
    "if __name__ == '__main__':\n",
    "    try:\n        value = ",
    "for name, value in sorted(",
    "# This module ",
    "assert isinstance(",
)
MODES = {
    "greedy": SamplingParameters(),
    "coupled": SamplingParameters(temperature=1.0, seed=3),
    "shaped": SamplingParameters(temperature=0.7, top_k=50, top_p=0.9, min_p=0.01, seed=4),
}
TOKENS = 32


@lru_cache(maxsize=1)
def reference(folder: Path) -> tuple[Decoder, Tokenizer]:
    return Decoder.load(folder, threads=1, batch_invariant=True), Tokenizer(folder)


@lru_cache(maxsize=1)
def loaded_target(folder: Path) -> tuple[Decoder, Lanes | None]:
    decoder = Decoder.load(folder, threads=1, batch_invariant=True)
    return decoder, Lanes.load(folder, decoder=decoder, count=DEFAULT_LANES, threads=1)


@lru_cache
def loaded_drafter(folder: Path, number: int) -> Decoder:
    """Return the model of one board; boards run at once and share nothing."""
    return Decoder.load(folder, threads=1)


@lru_cache
def alone(folder: Path, text: str, parameters: SamplingParameters) -> list[int]:
    decoder, tokenizer = reference(folder)
    prompt = tokenizer.encode(text)
    stops = tokenizer.stop_ids
    return list(
        decode_alone(decoder, prompt, parameters=parameters, max_tokens=TOKENS, stop_ids=stops)
    )


def request_for(folder: Path, number: int, parameters: SamplingParameters) -> Open:
    decoder, tokenizer = reference(folder)
    return opening(
        session=number + 1,
        prompt=tokenizer.encode(TEXT[number]),
        parameters=parameters,
        max_tokens=TOKENS,
        stop_ids=tokenizer.stop_ids,
        tokenizer=decoder.manifest.tokenizer_hash,
        vocabulary_size=decoder.vocabulary_size,
    )


def run_cell(
    broker: BrokerProcess,
    join: Callable[..., MqttTransport],
    target: Path,
    drafter: Path,
    *,
    count: int,
    parameters: SamplingParameters,
) -> None:
    """Let `count` devices generate at once and compare each with the target alone."""
    edge = join(broker.config, subscriptions=[(UP_FILTER, 1)])
    decoder, lanes = loaded_target(target)
    assert lanes
    verifier = OnnxVerifier(decoder=decoder, lanes=lanes, max_sessions=64, kv_memory_mib=1024)
    with serving(edge, verifier, controller=FixedLength(*range(9))):
        jobs = {}
        for number in range(count):
            device = f"pi-{number}"
            topics = [(down(device, "verdict"), 0), (down(device, "control"), 1)]
            transport = join(broker.config, subscriptions=topics)
            own = OnnxDrafter(decoder=loaded_drafter(drafter, number))
            request = request_for(target, number, parameters)
            jobs[device] = lambda t=transport, d=device, r=request, o=own: generate(t, d, r, o)[0]
        delivered = generate_all(jobs)
    for number in range(count):
        assert delivered[f"pi-{number}"] == alone(target, TEXT[number], parameters)


@pytest.mark.parametrize("mode", ["greedy", "coupled"])
@pytest.mark.parametrize("count", range(1, 9))
def test_every_device_gets_the_targets_own_text(
    broker: BrokerProcess,
    join: Callable[..., MqttTransport],
    target: Path,
    drafter: Path,
    count: int,
    mode: str,
) -> None:
    run_cell(broker, join, target, drafter, count=count, parameters=MODES[mode])


@pytest.mark.parametrize("mode", MODES)
def test_a_drafter_of_random_weights_changes_nothing(
    broker: BrokerProcess,
    join: Callable[..., MqttTransport],
    target: Path,
    random_drafter: Path,
    mode: str,
) -> None:
    run_cell(broker, join, target, random_drafter, count=2, parameters=MODES[mode])
