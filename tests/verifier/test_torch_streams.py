"""The torch verifier in whole streams: the target's own tokens, whatever was drafted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch_checkpoints import VOCABULARY, plain_logits, save_checkpoint

from edge_server.verifier.interface import VerifyRequest
from edge_server.verifier.torch_backend import TorchVerifier
from edge_server.verifier.torch_model import TorchModel
from sdk.model.noise import Stream, uniform
from sdk.model.proposal import propose
from sdk.model.sampling import Sampler, SamplingParameters, transform
from sdk.protocol import Open
from sdk.transport.memory import MemoryHub
from tests.fakes.cell import (
    FixedLength,
    connect_device,
    generate,
    generate_all,
    opening,
    serve_in_memory,
    serving,
)
from tests.fakes.hash_model import HashDrafter

GREEDY = SamplingParameters()
COUPLED = SamplingParameters(temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_checkpoint("llama", tmp_path_factory.mktemp("llama"))
    plain_logits(folder, (1,))  # loaded before threads ask for it: transformers cannot load in two
    return folder


@pytest.fixture(params=[False, True], ids=["views", "gathered"])
def verifier(folder: Path, request: pytest.FixtureRequest) -> TorchVerifier:
    """A verifier as on the CPU, and one that attends and decides as on a GPU."""
    on_gpu = request.param
    model = TorchModel.load(folder, device="cpu", kv_memory_mib=4, gather=on_gpu, decides=on_gpu)
    return TorchVerifier(model=model, max_sessions=16)


@pytest.mark.parametrize("parameters", [GREEDY, COUPLED], ids=["greedy", "coupled"])
def test_streams_through_the_edge_server_are_the_targets_own(
    folder: Path, verifier: TorchVerifier, parameters: SamplingParameters
) -> None:
    """Where a stream leaves plain decoding, the two choices must be equal up to rounding."""
    hub, tokens = MemoryHub(), 24
    prompts = [tuple(range(start, start + 5)) for start in range(5)]
    with serving(serve_in_memory(hub), verifier, controller=FixedLength(*range(9))):
        jobs = {}
        for number, prompt in enumerate(prompts):
            request = opening(
                prompt=prompt,
                parameters=parameters,
                max_tokens=tokens,
                tokenizer=verifier.tokenizer_hash,
                vocabulary_size=VOCABULARY,
            )
            jobs[str(number)] = job(hub, str(number), request, PlainDrafter(folder, verifier))
        delivered = generate_all(jobs)
    departed = sum(
        departs(folder, prompt, delivered[str(number)], parameters)
        for number, prompt in enumerate(prompts)
    )
    assert all(len(stream) == tokens for stream in delivered.values())
    assert departed <= 1


class PlainDrafter(HashDrafter):
    """Drafts the target's own tokens, and at every fourth position others."""

    def __init__(self, folder: Path, verifier: TorchVerifier) -> None:
        super().__init__(vocabulary_size=VOCABULARY)
        self.folder = folder
        self.tokenizer_hash = verifier.tokenizer_hash

    def next_logits(self, sequence: Sequence[int]) -> NDArray[np.float32]:
        logits = plain_logits(self.folder, sequence)[-1].copy()
        return -logits if len(sequence) % 4 == 0 else logits


def job(
    hub: MemoryHub, device: str, request: Open, drafter: PlainDrafter
) -> Callable[[], list[int]]:
    return lambda: generate(connect_device(hub, device), device, request, drafter)[0]


def departs(
    folder: Path, prompt: Sequence[int], stream: Sequence[int], parameters: SamplingParameters
) -> bool:
    """Return whether a stream leaves plain decoding; fail where the margin forbids it."""
    sampler = Sampler(parameters=parameters, vocabulary_size=VOCABULARY)
    sequence = list(prompt)
    for token in stream:
        row = plain_logits(folder, sequence)[-1]
        chosen = sampler.choose(row, len(sequence))
        if token != chosen:
            near = row.copy()
            near[token] += 1e-3
            assert sampler.choose(near, len(sequence)) == token, "no rounding explains this token"
            return True
        sequence.append(token)
    return False


def test_a_ratio_round_accepts_what_the_target_itself_proposes(
    folder: Path, verifier: TorchVerifier
) -> None:
    """With q = p up to quantisation nearly every draft is accepted; with q far off, few are."""
    accepted = {"own": 0, "inverted": 0}
    for name, sign in (("own", 1.0), ("inverted", -1.0)):
        for seed in range(12):
            parameters = SamplingParameters(temperature=1.0, seed=seed)
            slot = verifier.open(parameters=parameters, max_tokens=16)
            sequence, proposals = [1, 2, 3, 4], []
            for _ in range(3):
                row = np.float32(sign) * plain_logits(folder, sequence)[-1]
                proposals.append(
                    propose(transform(row, parameters), support=VOCABULARY, weight_bits=16)
                )
                u = uniform(seed, len(sequence), Stream.DRAFT)
                sequence.append(proposals[-1].draw(u))
            request = VerifyRequest(
                slot=slot,
                pending=(1, 2, 3, 4),
                draft=tuple(sequence[4:]),
                proposals=tuple(proposals),
            )
            accepted[name] += verifier.verify([request])[0].accepted
            verifier.close(slot)
    assert accepted["own"] >= 32  # of 36
    assert accepted["inverted"] <= 6
