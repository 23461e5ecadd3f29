"""The torch verifier says what the plain model says, whoever shares its passes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_checkpoints import FAMILIES, REFUSED, VOCABULARY, plain_logits, save_checkpoint

from edge_server.verifier.interface import VerifyOutcome, VerifyRequest
from edge_server.verifier.torch_backend import TorchVerifier
from edge_server.verifier.torch_model import TorchModel
from edge_server.verifier.torch_segments import Segment
from sdk.errors import CapacityError, ConfigError, ModelLoadError
from sdk.model.manifest import tokenizer_hash
from sdk.model.sampling import SamplingParameters

TOLERANCE = 1e-4

GREEDY = SamplingParameters()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = save_checkpoint(family, tmp_path_factory.mktemp(family))
        return made[family]

    return find


def load(folder: Path, *, gather: bool = False, max_sessions: int = 16) -> TorchVerifier:
    """Load a verifier; with `gather` it attends and decides as on a GPU."""
    model = TorchModel.load(folder, device="cpu", kv_memory_mib=4, gather=gather, decides=gather)
    return TorchVerifier(model=model, max_sessions=max_sessions)


def random_ids(generator: np.random.Generator, count: int) -> tuple[int, ...]:
    return tuple(generator.integers(0, VOCABULARY, count).tolist())


@pytest.mark.parametrize("gather", [False, True], ids=["views", "gathered"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_of_a_ragged_pass_equals_the_plain_forward(
    checkpoint: Callable[[str], Path], family: str, gather: bool
) -> None:
    folder, generator = checkpoint(family), np.random.default_rng(5)
    model = TorchModel.load(folder, device="cpu", kv_memory_mib=4, gather=gather)
    for count in range(1, 9):
        segments = [Segment(60 * index + 3, 57) for index in range(count)]
        pasts = [random_ids(generator, int(generator.integers(1, 30))) for _ in segments]
        drafts = [random_ids(generator, 1 + (index + count) % 9) for index in range(count)]
        for segment, past in zip(segments, pasts, strict=True):
            model.run([segment.span(len(past))], past, [])
            segment.length = len(past)
        spans = [one.span(len(draft)) for one, draft in zip(segments, drafts, strict=True)]
        ids = [token for draft in drafts for token in draft]
        logits = model.run(spans, ids, range(len(ids)))
        expected = [
            plain_logits(folder, past + draft)[len(past) :]
            for past, draft in zip(pasts, drafts, strict=True)
        ]
        np.testing.assert_allclose(logits, np.concatenate(expected), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("gather", [False, True], ids=["views", "gathered"])
def test_rounds_with_rollback_say_what_the_plain_model_says(
    checkpoint: Callable[[str], Path], gather: bool
) -> None:
    """Drafts that are right for a while, then wrong: the next round starts behind the rollback."""
    folder, generator = checkpoint("qwen3"), np.random.default_rng(6)
    verifier = load(folder, gather=gather)
    sequences = [list(random_ids(generator, 5 + index)) for index in range(4)]
    slots = [verifier.open(parameters=GREEDY, max_tokens=90) for _ in sequences]
    for slot, sequence in zip(slots, sequences, strict=True):
        verifier.prefill(slot, sequence[:-1])
    for number in range(6):
        truths = [plain_greedy(folder, sequence, 9) for sequence in sequences]
        requests, expected = [], []
        for index, (slot, sequence, truth) in enumerate(zip(slots, sequences, truths, strict=True)):
            right, drafted = (number + index) % 4, (number * 3 + index) % 9
            draft = [
                token if row < right else (token + 1) % VOCABULARY
                for row, token in enumerate(truth[:drafted])
            ]
            requests.append(VerifyRequest(slot=slot, pending=(sequence[-1],), draft=tuple(draft)))
            accepted = min(right, drafted)
            expected.append(VerifyOutcome(accepted=accepted, token=truth[accepted]))
            sequence += truth[: accepted + 1]
        assert verifier.verify(requests) == expected


def plain_greedy(folder: Path, sequence: Sequence[int], count: int) -> list[int]:
    grown = list(sequence)
    for _ in range(count):
        grown.append(int(plain_logits(folder, grown)[-1].argmax()))
    return grown[len(sequence) :]


@pytest.mark.parametrize("split", [(0, 700), (0, 1, 350, 700), (0, 511, 512, 700)])
def test_a_prompt_may_come_in_chunks_of_any_size(
    checkpoint: Callable[[str], Path], split: tuple[int, ...]
) -> None:
    folder = checkpoint("mistral-window")
    prompt = random_ids(np.random.default_rng(7), 701)
    verifier = load(folder)
    slot = verifier.open(parameters=GREEDY, max_tokens=702)
    for start, end in pairwise(split):
        verifier.prefill(slot, prompt[start:end])
    (outcome,) = verifier.verify([VerifyRequest(slot=slot, pending=prompt[-1:])])
    assert outcome.token == int(plain_logits(folder, prompt)[-1].argmax())


def test_several_pending_tokens_are_fed_in_the_same_pass(
    checkpoint: Callable[[str], Path],
) -> None:
    folder = checkpoint("qwen2")
    prompt = random_ids(np.random.default_rng(8), 9)
    truth = plain_greedy(folder, prompt, 3)
    verifier = load(folder)
    slot = verifier.open(parameters=GREEDY, max_tokens=20)
    request = VerifyRequest(slot=slot, pending=prompt, draft=tuple(truth[:2]))
    assert verifier.verify([request]) == [VerifyOutcome(accepted=2, token=truth[2])]


def test_a_slot_used_again_remembers_nothing(checkpoint: Callable[[str], Path]) -> None:
    folder, generator = checkpoint("llama"), np.random.default_rng(9)
    verifier = load(folder, max_sessions=2)
    for _ in range(4):
        prompt = random_ids(generator, 12)
        slots = [verifier.open(parameters=GREEDY, max_tokens=30) for _ in range(2)]
        for slot in slots:
            verifier.prefill(slot, prompt[:-1])
        outcomes = verifier.verify(
            [VerifyRequest(slot=slot, pending=prompt[-1:]) for slot in slots]
        )
        assert {one.token for one in outcomes} == {plain_greedy(folder, prompt, 1)[0]}
        for slot in slots:
            verifier.close(slot)
        with pytest.raises(KeyError):
            verifier.prefill(slots[0], prompt)


class CountingModel(TorchModel):
    """A model that counts the rows it runs."""

    rows = 0

    def logits(self, spans: Any, token_ids: Sequence[int], score: Sequence[int]) -> Any:
        self.rows += len(token_ids)
        return super().logits(spans, token_ids, score)


@pytest.mark.parametrize("invariant", [False, True])
def test_an_equal_beginning_is_copied_not_worked_out_again(
    checkpoint: Callable[[str], Path], invariant: bool
) -> None:
    """Chunk by chunk, from the slot that shares most, and only what is committed there."""
    folder, generator = checkpoint("llama"), np.random.default_rng(12)
    model = CountingModel.load(folder, device="cpu", kv_memory_mib=4, invariant=invariant)
    assert isinstance(model, CountingModel)
    verifier = TorchVerifier(model=model, max_sessions=8)
    system, other = random_ids(generator, 200), random_ids(generator, 100)
    prompts = {
        "first": (*system, *random_ids(generator, 30)),
        "shorter": (*system[:150], *other),
        "same": (*system, *random_ids(generator, 30)),
        "foreign": other,
    }
    spent, tokens = {}, {}
    for name, prompt in prompts.items():
        model.rows = 0
        slot = verifier.open(parameters=GREEDY, max_tokens=300)
        for start in range(0, len(prompt) - 1, 64):
            verifier.prefill(slot, prompt[start : min(start + 64, len(prompt) - 1)])
        spent[name] = model.rows
        wrong = ((plain_greedy(folder, prompt, 1)[0] + 1) % VOCABULARY,)
        request = VerifyRequest(slot=slot, pending=prompt[-1:], draft=wrong)
        tokens[name] = verifier.verify([request])[0].token
    # Of the last chunk of "same" 8 tokens are shared, too few to copy.
    assert spent == {"first": 229, "shorter": 99, "same": 37, "foreign": 99}
    assert tokens == {n: plain_greedy(folder, prompt, 1)[0] for n, prompt in prompts.items()}
    again = verifier.open(parameters=GREEDY, max_tokens=300)
    first, model.rows = prompts["first"], 0
    continued = (*first, tokens["first"], (tokens["first"] + 1) % VOCABULARY, 7)
    verifier.prefill(again, continued)
    assert model.rows == 3  # the refused draft, and all behind the committed prompt


def test_what_does_not_fit_is_refused(checkpoint: Callable[[str], Path]) -> None:
    model = TorchModel.load(checkpoint("llama"), device="cpu", kv_memory_mib=1)
    assert model.places == 2**20 // model.bytes_per_token == 2**20 // (2 * 2 * 2 * 16 * 4)
    verifier = TorchVerifier(model=model, max_sessions=3)
    with pytest.raises(CapacityError, match="context of 1024"):
        verifier.open(parameters=GREEDY, max_tokens=1025)
    for _ in range(3):
        slot = verifier.open(parameters=GREEDY, max_tokens=600)
    with pytest.raises(CapacityError, match="all 3 sessions"):
        verifier.open(parameters=GREEDY, max_tokens=1)
    verifier.close(slot)
    model.places = 10
    small = TorchVerifier(model=model, max_sessions=3)
    small.open(parameters=GREEDY, max_tokens=7)
    with pytest.raises(CapacityError, match="7 of 10"):
        small.open(parameters=GREEDY, max_tokens=4)


def test_a_faulty_request_changes_nothing(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("llama")
    verifier = load(folder)
    slot = verifier.open(parameters=GREEDY, max_tokens=4)
    other = verifier.open(parameters=GREEDY, max_tokens=4)
    faults = {
        "do not fit": VerifyRequest(slot=slot, pending=(1, 2, 3), draft=(4, 5)),
        "must be in": VerifyRequest(slot=slot, pending=(VOCABULARY,)),
        "at least one": VerifyRequest(slot=slot, pending=()),
    }
    good = VerifyRequest(slot=other, pending=(1, 2, 3))
    for message, fault in faults.items():
        with pytest.raises(ValueError, match=message):
            verifier.verify([good, fault])
    with pytest.raises(ValueError, match="once"):
        verifier.verify([good, good])
    assert verifier.verify([good])[0].token == plain_greedy(folder, (1, 2, 3), 1)[0]


def test_it_names_its_model(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = checkpoint("llama")
    verifier = TorchVerifier.load(folder, device="cpu", threads=1, kv_memory_mib=1)
    assert verifier.tokenizer_hash == tokenizer_hash(folder)
    assert (verifier.vocabulary_size, verifier.context_length) == (VOCABULARY, 1024)
    assert verifier.cache_bytes(10) == 10 * 2 * 2 * 2 * 16 * 4
    others = {load(checkpoint(name)).target_hash for name in ("qwen2", "qwen3")}
    assert len({verifier.target_hash, *others}) == 3
    with pytest.raises(ConfigError, match="device 'tpu'"):
        TorchVerifier.load(folder, device="tpu")
    with pytest.raises(ConfigError, match="type 'int3'"):
        TorchVerifier.load(folder, dtype="int3")
    with pytest.raises(ConfigError, match="--kv-memory"):
        TorchVerifier.load(folder, device="cpu", kv_memory_mib=0)
    with pytest.raises(ModelLoadError, match="safetensors"):
        TorchVerifier.load(tmp_path, device="cpu")


@pytest.mark.parametrize("family", REFUSED)
def test_a_decoder_that_would_say_something_else_is_refused(family: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=f"{REFUSED[family][2]}.*; choose a model of"):
        TorchVerifier.load(save_checkpoint(family, tmp_path), device="cpu")


def test_without_torch_it_names_the_extra() -> None:
    """In a process of its own, where torch cannot be imported."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from edge_server.verifier.torch_backend import TorchVerifier\n"
        "from sdk.errors import DependencyError\n"
        "try: TorchVerifier.load('.')\n"
        "except DependencyError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "multispin[torch]" in done.stdout


@pytest.mark.gpu
def test_on_a_gpu_rows_equal_the_plain_forward(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("qwen3")
    model = TorchModel.load(folder, device="cuda", dtype="fp32", kv_memory_mib=4)
    ids = random_ids(np.random.default_rng(10), 30)
    logits = model.run([Segment(2, 40).span(30)], ids, range(30))
    np.testing.assert_allclose(logits, plain_logits(folder, ids), atol=1e-3, rtol=0)
