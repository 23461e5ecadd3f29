"""Tokens chosen on the device are those that numpy chooses, to the last bit of the noise."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torch'")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_server.verifier.acceptance import Acceptor, Choice, accept, accept_tokens
from edge_server.verifier.interface import VerifyRequest
from edge_server.verifier.torch_acceptance import choose_rows, gumbel
from sdk.model import noise
from sdk.model.proposal import Proposal
from sdk.model.sampling import Sampler, SamplingParameters

VOCABULARY = 301
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

exact_parameters = st.builds(
    SamplingParameters,
    temperature=st.one_of(st.just(0.0), st.floats(0.001, 100.0)),
    top_k=st.sampled_from([0, 1, 2, 50, VOCABULARY - 1, VOCABULARY, 1000]),
    seed=st.integers(0, 2**64 - 1),
)


@pytest.mark.parametrize("device", DEVICES)
def test_the_noise_has_the_same_bits(device: str) -> None:
    generator = np.random.default_rng(0)
    edges = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1], np.uint32)
    bits = np.concatenate([edges, generator.integers(0, 2**32, 1_000_000, np.uint32)])
    found = gumbel(torch.from_numpy(bits.astype(np.int64)).to(device)).cpu().numpy()
    assert np.array_equal(found.view(np.int64), noise.gumbel(bits).view(np.int64))


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.one_of(st.none(), exact_parameters), st.integers(0, 2**32 - 1)),
        min_size=1,
        max_size=40,
    ),
    seed=st.integers(0, 2**16),
    ties=st.booleans(),
)
def test_every_row_gets_the_token_that_the_sampler_chooses(
    device: str, rows: list[tuple[SamplingParameters | None, int]], seed: int, ties: bool
) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, (len(rows), VOCABULARY)).astype(np.float32)
    if ties:
        logits = np.round(logits)
    choices = [own and Choice(own, position) for own, position in rows]
    tokens, left = choose_rows(torch.from_numpy(logits).to(device), choices)
    assert sorted(left) == [row for row, choice in enumerate(choices) if choice is None]
    for row, choice in enumerate(choices):
        if choice is None:
            assert tokens[row] == -1
            assert np.array_equal(left[row], logits[row])
        else:
            sampler = Sampler(parameters=choice.parameters, vocabulary_size=VOCABULARY)
            assert tokens[row] == sampler.choose(logits[row], choice.position)


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


def test_rows_that_need_exponentials_are_left_to_the_host() -> None:
    def chosen(parameters: SamplingParameters, **more: object) -> list[Choice | None]:
        acceptor = Acceptor(parameters=parameters, vocabulary_size=8)
        request = VerifyRequest(slot=0, pending=(1,), draft=(2,), **more)  # type: ignore[arg-type]
        return acceptor.choices(request, position=5)

    greedy, warm = SamplingParameters(), SamplingParameters(temperature=1.0, top_k=3)
    assert chosen(greedy) == [Choice(greedy, 5), Choice(greedy, 6)]
    assert chosen(SamplingParameters(top_p=0.5)) != [None, None]  # greedy: no other field matters
    assert chosen(warm) == [Choice(warm, 5), Choice(warm, 6)]
    assert chosen(SamplingParameters(temperature=1.0, top_p=0.9)) == [None, None]
    assert chosen(SamplingParameters(temperature=1.0, min_p=0.1)) == [None, None]
    proposals = (Proposal(token_ids=(2,), weights=(1,)),)
    assert chosen(warm, proposals=proposals) == [None, None]
