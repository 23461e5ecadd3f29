"""A pass that does not fit the memory is cut; what it says stays the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_checkpoints import VOCABULARY, plain_logits, save_checkpoint

from edge_server.verifier.interface import VerifyOutcome, VerifyRequest
from edge_server.verifier.torch_backend import TorchVerifier
from edge_server.verifier.torch_model import TorchModel
from edge_server.verifier.torch_segments import Span
from sdk.errors import CapacityError, RejectedError
from sdk.model.sampling import SamplingParameters
from sdk.transport.interface import Transport
from sdk.transport.memory import MemoryHub
from tests.fakes.cell import (
    connect_device,
    generate,
    generate_all,
    opening,
    serve_in_memory,
    serving,
)
from tests.fakes.hash_model import HashDrafter

GREEDY = SamplingParameters()


class SmallModel(TorchModel):
    """A real model whose allocator gives out above so many rows, or behind so many keys."""

    most_rows = 1 << 30
    longest = 1 << 30
    error: RuntimeError = torch.OutOfMemoryError("CUDA out of memory.")

    def logits(
        self, spans: Sequence[Span], token_ids: Sequence[int], score: Sequence[int]
    ) -> torch.Tensor:
        if len(token_ids) > self.most_rows or max(span.length for span in spans) > self.longest:
            raise self.error
        return super().logits(spans, token_ids, score)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("llama", tmp_path_factory.mktemp("llama"))


def load(folder: Path) -> tuple[SmallModel, TorchVerifier]:
    model = SmallModel.load(folder, device="cpu", kv_memory_mib=4)
    assert isinstance(model, SmallModel)
    return model, TorchVerifier(model=model, max_sessions=8)


def round_of(folder: Path, most_rows: int, error: RuntimeError) -> list[VerifyOutcome]:
    """Four sessions with two pending ids and three drafted ones each, two of them right."""
    model, verifier = load(folder)
    model.most_rows, model.error = most_rows, error
    requests = []
    for number in range(4):
        prompt = np.random.default_rng(number).integers(0, VOCABULARY, 9).tolist()
        slot = verifier.open(parameters=GREEDY, max_tokens=40)
        verifier.prefill(slot, prompt[:-2])
        draft = greedy(folder, prompt, 3)
        draft[-1] = (draft[-1] + 1) % VOCABULARY
        requests.append(VerifyRequest(slot=slot, pending=tuple(prompt[-2:]), draft=tuple(draft)))
    return verifier.verify(requests)


def greedy(folder: Path, prompt: Sequence[int], count: int) -> list[int]:
    grown = list(prompt)
    for _ in range(count):
        grown.append(int(plain_logits(folder, grown)[-1].argmax()))
    return grown[len(prompt) :]


@pytest.mark.parametrize("most_rows", [19, 10, 5])
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("you tried: not enough memory")],
    ids=["cuda", "cpu"],
)
def test_a_pass_is_cut_by_sessions(folder: Path, most_rows: int, error: RuntimeError) -> None:
    whole = round_of(folder, 1 << 30, error)
    assert [outcome.accepted for outcome in whole] == [2] * 4
    assert round_of(folder, most_rows, error) == whole


@pytest.mark.parametrize("most_rows", [4, 1])
def test_a_draft_that_does_not_fit_is_not_accepted_and_the_target_goes_on(
    folder: Path, most_rows: int
) -> None:
    outcomes = round_of(folder, most_rows, SmallModel.error)
    for number, outcome in enumerate(outcomes):
        prompt = np.random.default_rng(number).integers(0, VOCABULARY, 9).tolist()
        assert outcome == VerifyOutcome(accepted=0, token=greedy(folder, prompt, 1)[0])


def test_no_room_for_a_row_is_said_and_other_errors_stay_what_they_are(folder: Path) -> None:
    model, verifier = load(folder)
    slot = verifier.open(parameters=GREEDY, max_tokens=40)
    model.most_rows = 0
    with pytest.raises(CapacityError, match="1 rows does not fit the memory"):
        verifier.verify([VerifyRequest(slot=slot, pending=(1,))])
    with pytest.raises(CapacityError):
        verifier.prefill(slot, [1, 2, 3])
    model.error = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"):
        verifier.prefill(slot, [1, 2, 3])


def test_slots_are_as_before_where_one_of_them_has_no_room(folder: Path) -> None:
    model, verifier = load(folder)
    short, long = (verifier.open(parameters=GREEDY, max_tokens=40) for _ in range(2))
    verifier.prefill(long, [1, 2, 3, 4, 5, 6])
    model.longest = 6
    requests = [VerifyRequest(slot=slot, pending=(7, 8)) for slot in (short, long)]
    with pytest.raises(CapacityError):
        verifier.verify(requests)
    assert verifier.verify(requests[:1])[0].token == greedy(folder, [7, 8], 1)[0]
    model.longest = 40
    assert verifier.verify(requests[1:])[0].token == greedy(folder, [1, 2, 3, 4, 5, 6, 7, 8], 1)[0]


@pytest.mark.parametrize("prompt_tokens", [10, 40], ids=["while it grows", "in its prompt"])
def test_a_session_that_has_no_room_ends_with_the_reason_and_the_others_go_on(
    folder: Path, prompt_tokens: int
) -> None:
    model, verifier = load(folder)
    model.longest = 30
    prompts = {"pi-1": (1, 2, 3), "pi-2": tuple(range(prompt_tokens))}
    told: dict[str, list[int]] = {}
    reasons: dict[str, str] = {}

    def ask(transport: Transport, device: str) -> None:
        request = opening(
            prompt=prompts[device],
            max_tokens=24,
            tokenizer=verifier.tokenizer_hash,
            vocabulary_size=VOCABULARY,
        )
        try:
            told[device], _ = generate(
                transport, device, request, HashDrafter(vocabulary_size=VOCABULARY)
            )
        except RejectedError as error:
            reasons[device] = str(error)

    hub = MemoryHub()
    with serving(serve_in_memory(hub), verifier) as server:
        generate_all({d: partial(ask, connect_device(hub, d), d) for d in prompts})
        assert told == {"pi-1": greedy(folder, prompts["pi-1"], 24)}
        assert "does not fit the memory" in reasons["pi-2"]
        assert [session.device for session in server.sessions] in ([], ["pi-1"])
        assert server.gateway.counters["rejected_capacity"] == 1
