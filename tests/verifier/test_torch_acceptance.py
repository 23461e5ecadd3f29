"""What is decided on the device is what numpy decides, to the last bit of noise and likelihood."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torch'")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_server.verifier.acceptance import Trial, accept, accept_ratio, accept_tokens
from edge_server.verifier.interface import VerifyOutcome
from edge_server.verifier.torch_acceptance import accept_all
from edge_server.verifier.torch_sampling import (
    choose,
    gumbel,
    likelihoods,
    near_gumbel,
    noise_bits,
    noise_bits32,
    transform,
)
from sdk.model import likelihood, noise, sampling
from sdk.model.proposal import Proposal, propose
from sdk.model.sampling import Sampler, SamplingParameters

VOCABULARY = 301
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

drawn_parameters = st.builds(
    SamplingParameters,
    temperature=st.sampled_from([0.001, 0.7, 1.0]) | st.floats(0.001, 100.0),
    top_k=st.sampled_from([0, 0, 1, 2, 50, VOCABULARY - 1, VOCABULARY, 1000]),
    top_p=st.sampled_from([1.0, 1.0, 0.9, 0.5, 5e-324, 1 - 2**-53]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 1e-9, 1 - 2**-53]),
    seed=st.integers(0, 2**64 - 1),
)
exact_parameters = st.just(SamplingParameters()) | drawn_parameters
positions = st.integers(0, 2**32 - 9)
lengths = st.integers(0, 6)


@pytest.mark.parametrize("device", DEVICES)
def test_the_noise_has_the_same_bits(device: str) -> None:
    generator = np.random.default_rng(0)
    edges = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1], np.uint32)
    bits = np.concatenate([edges, generator.integers(0, 2**32, 1_000_000, np.uint32)])
    found = gumbel(torch.from_numpy(bits.astype(np.int64)).to(device)).cpu().numpy()
    assert np.array_equal(found.view(np.int64), noise.gumbel(bits).view(np.int64))


@pytest.mark.parametrize("device", DEVICES)
def test_noise_in_single_precision_is_near(device: str) -> None:
    keys = torch.tensor([[1 << 31, 2**32 - 1], [0, 0]]).to(device)
    ids = torch.arange(500_000, device=device)[None]
    exact = noise_bits(ids, keys)
    bits = noise_bits32(keys, 500_000)
    assert torch.equal(bits.long() & 0xFFFFFFFF, exact)
    edges = torch.tensor([0, 1, 2**31 - 1, -(2**31), -2, -1], dtype=torch.int32, device=device)
    for each in (bits, edges):
        assert (near_gumbel(each) - gumbel(each.long() & 0xFFFFFFFF)).abs().max() < 1e-4


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_that_rounding_could_decide_is_decided_exactly(device: str) -> None:
    own = SamplingParameters(temperature=1.0, seed=4)
    flat, steep = np.zeros(VOCABULARY, np.float32), np.zeros(VOCABULARY, np.float32)
    steep[40:90] = 1e30  # beside which the noise vanishes, so that the lowest id wins
    rows = torch.from_numpy(np.stack([flat, steep, flat])).to(device)
    tokens = choose(rows, [own] * 3, [7, 8, 9])
    assert tokens[1] == -1
    trials = [Trial(parameters=own, position=at, draft=()) for at in (7, 8, 9)]
    sampler = Sampler(parameters=own, vocabulary_size=VOCABULARY)
    expected = [sampler.choose(flat, 7), 40, sampler.choose(flat, 9)]
    assert [outcome.token for outcome in accept_all(rows, trials)] == expected


@pytest.mark.parametrize("device", DEVICES)
def test_likelihoods_have_the_same_bits(device: str) -> None:
    generator = np.random.default_rng(1)
    edges = np.array([0, -0.0, -21.4, -21.5, -23.9, -24, -25, -1e38, -np.inf], np.float32)
    nats = np.concatenate([edges, -generator.uniform(0, 25, 1_000_000).astype(np.float32)])
    found = likelihoods(torch.from_numpy(nats)[None].to(device), torch.zeros(1, 1, device=device))
    expected = likelihood.likelihoods(nats, np.float32(0))
    assert np.array_equal(found[0].cpu().numpy().view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(
    parameters=st.lists(drawn_parameters, min_size=1, max_size=8),
    seed=st.integers(0, 2**16),
    ties=st.booleans(),
)
def test_the_same_tokens_are_excluded(
    device: str, parameters: list[SamplingParameters], seed: int, ties: bool
) -> None:
    logits = rows_of(len(parameters), seed, ties)
    found = transform(torch.from_numpy(logits).to(device), parameters).cpu().numpy()
    for row, own, shaped in zip(logits, parameters, found, strict=True):
        assert np.array_equal(shaped, sampling.transform(row, own))


@pytest.mark.parametrize("device", DEVICES)
def test_a_sum_that_reaches_top_p_exactly_is_enough(device: str) -> None:
    own = SamplingParameters(temperature=1.0, top_p=0.5)
    shaped = transform(torch.zeros(1, 4, device=device), [own])
    assert shaped.tolist() == [[0.0, 0.0, -np.inf, -np.inf]]
    chosen = choose(torch.zeros(64, 4, device=device), [own] * 64, range(64))
    assert set(chosen.tolist()) == {0, 1}


def rows_of(count: int, seed: int, ties: bool) -> Any:
    logits = np.random.default_rng(seed).normal(0, 3, (count, VOCABULARY)).astype(np.float32)
    return np.round(logits) if ties else logits


def drafted(own: SamplingParameters, position: int, logits: Any, seed: int) -> Trial:
    """Return a draft of which the target's own tokens are the larger part."""
    generator = np.random.default_rng(seed)
    sampler = Sampler(parameters=own, vocabulary_size=VOCABULARY)
    draft = [sampler.choose(row, position + n) for n, row in enumerate(logits[:-1])]
    wrong = generator.random(len(draft)) < 0.2
    return Trial(
        parameters=own,
        position=position,
        draft=tuple(np.where(wrong, (np.array(draft, int) + 1) % VOCABULARY, draft).tolist()),
    )


def proposed(own: SamplingParameters, logits: Any, seed: int, *, block: bool, near: float) -> Trial:
    """Return a draft from proposals near to the target's distributions."""
    generator = np.random.default_rng(seed)
    proposals = [
        propose(
            sampling.transform(
                row + np.float32(near) * generator.normal(size=VOCABULARY).astype("f"), own
            ),
            support=int(generator.integers(1, 40)),
            weight_bits=8,
        )
        for row in logits[:-1]
    ]
    uniforms = generator.random(len(logits)) * (1 - 2**-52) + 2**-53
    return Trial(
        parameters=own,
        position=0,
        draft=tuple(q.draw(float(generator.random())) for q in proposals),
        proposals=tuple(proposals),
        uniforms=tuple(uniforms.tolist()),
        block=block,
    )


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=80, deadline=None)
@given(
    drafts=st.lists(
        st.tuples(exact_parameters, positions, lengths, st.sampled_from(["own", "token", "block"])),
        min_size=1,
        max_size=12,
    ),
    seed=st.integers(0, 2**16),
    ties=st.booleans(),
    near=st.sampled_from([0.0, 0.3, 2.0]),
)
def test_every_draft_is_decided_as_on_the_host(
    device: str,
    drafts: list[tuple[SamplingParameters, int, int, str]],
    seed: int,
    ties: bool,
    near: float,
) -> None:
    trials, blocks, expected = [], [], []
    for n, (own, position, length, kind) in enumerate(drafts):
        logits = rows_of(length + 1, seed + n, ties)
        if kind == "own" or own.greedy or not length:
            trial = drafted(own, position, logits, seed + n)
            sampler = Sampler(parameters=own, vocabulary_size=VOCABULARY)
            expected.append(accept(logits, trial.draft, sampler=sampler, position=position))
        else:
            trial = proposed(own, logits, seed + n, block=kind == "block", near=near)
            expected.append(accept_ratio(logits, trial))
        trials.append(trial)
        blocks.append(logits)
    rows = torch.from_numpy(np.concatenate(blocks)).to(device)
    assert accept_all(rows, trials) == expected


@pytest.mark.parametrize("device", DEVICES)
def test_the_last_of_all_numbers_still_draws_a_token(device: str) -> None:
    """u = 1 − 2^−53: u · m may round to m, behind which there is no token."""
    own = SamplingParameters(temperature=1.0)
    logits = np.full((2, 4), -np.inf, np.float32)
    logits[:, [0, 2]] = 0.0
    trial = Trial(
        parameters=own,
        position=0,
        draft=(2,),
        proposals=(Proposal(token_ids=(2,), weights=(1,)),),
        uniforms=(0.25, 1 - 2**-53),
    )
    assert accept_ratio(logits, trial) == VerifyOutcome(accepted=1, token=2)
    assert accept_all(torch.from_numpy(logits).to(device), [trial]) == [accept_ratio(logits, trial)]


@given(
    tokens=st.lists(st.integers(0, 2), min_size=1, max_size=7),
    draft=st.lists(st.integers(0, 2), max_size=6),
)
def test_known_tokens_accept_what_logits_accept(tokens: list[int], draft: list[int]) -> None:
    draft = draft[: len(tokens) - 1]
    tokens = tokens[: len(draft) + 1]
    logits = np.eye(3, dtype=np.float32)[tokens]
    sampler = Sampler(parameters=SamplingParameters(), vocabulary_size=3)
    assert accept_tokens(tokens, draft) == accept(logits, draft, sampler=sampler, position=9)
