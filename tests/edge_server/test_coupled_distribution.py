"""Coupled sampling, through the wire format, is an exact sample of the target.

Every draw passes through real frames: open, draft, verdict. Each token's distribution, given the
tokens that the model looks at, is compared with the target's own, computed exactly.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_server.scheduler.policies import make_policy
from edge_server.server import EdgeServer
from sdk.model.sampling import Sampler, SamplingParameters, log_probabilities, transform
from sdk.protocol import (
    UP_FILTER,
    Close,
    Draft,
    Verdict,
    decode_verdict,
    down,
    encode_control,
    encode_draft,
    up,
)
from sdk.transport.memory import MemoryHub, MemoryTransport
from tests.fakes.cell import FixedLength, opening
from tests.fakes.hash_model import ORDER, HashDrafter, HashVerifier, hash_logits

VOCABULARY = 6
PROMPT = (1, 2, 3)
SESSIONS = 500
TOKENS = 40  # drawn in each session: 20,000 draws in all
LENGTH = 4


class Cell:
    """A server and one device, driven by hand so that hundreds of sessions take seconds."""

    def __init__(self) -> None:
        hub = MemoryHub()
        self.device: MemoryTransport = hub.connect("pi", subscriptions=[("sd/1/pi/down/#", 1)])
        self.server = EdgeServer(
            transport=hub.connect("edge", subscriptions=[(UP_FILTER, 1)]),
            verifier=HashVerifier(vocabulary_size=VOCABULARY),
            controller=FixedLength(LENGTH),
            policy=make_policy("continuous"),
        )
        self.drafter = HashDrafter(vocabulary_size=VOCABULARY, agreement=0.75)

    def exchange(self, leaf: str, payload: bytes) -> Verdict:
        self.device.publish(up("pi", leaf), payload, qos=int(leaf != "draft"))
        while True:
            self.server.turn()
            while (message := self.device.receive(0.0)) is not None:
                if message.topic == down("pi", "verdict"):
                    return decode_verdict(message.payload)

    def sample(self, session: int, parameters: SamplingParameters) -> tuple[list[int], int, int]:
        """Return a session's tokens, and how many were drafted and accepted."""
        request = opening(
            session=session,
            prompt=PROMPT,
            parameters=parameters,
            max_tokens=TOKENS,
            vocabulary_size=VOCABULARY,
        )
        sampler = Sampler(parameters=parameters, vocabulary_size=VOCABULARY)
        tokens = list(self.exchange("open", encode_control(request)).token_ids)
        drafted_count = accepted_count = 0
        while len(tokens) < TOKENS:
            length = min(LENGTH, TOKENS - len(tokens) - 1)
            drafted = self._draft([*PROMPT, *tokens], sampler, length)
            frame = Draft(
                session=session,
                round=len(tokens),
                position=len(PROMPT) + len(tokens),
                sent_us=1,
                draft_s=0.0,
                token_ids=drafted,
                id_bits=3,
            )
            verdict = self.exchange("draft", encode_draft(frame))
            tokens += [*drafted[: verdict.accepted], *verdict.token_ids]
            drafted_count += len(drafted)
            accepted_count += verdict.accepted
        self.device.publish(up("pi", "close"), encode_control(Close(session=session)), qos=1)
        return tokens, drafted_count, accepted_count

    def first(self, seed: int) -> int:
        """Return a session's first token."""
        request = opening(
            session=seed + 1,
            prompt=PROMPT,
            parameters=SamplingParameters(temperature=1.0, seed=seed),
            max_tokens=1,
            vocabulary_size=VOCABULARY,
        )
        return self.exchange("open", encode_control(request)).token_ids[0]

    def _draft(self, sequence: list[int], sampler: Sampler, length: int) -> tuple[int, ...]:
        drafted: list[int] = []
        for _ in range(length):
            logits = self.drafter.next_logits([*sequence, *drafted])
            drafted.append(sampler.choose(logits, len(sequence) + len(drafted)))
        return tuple(drafted)


def exact(context: tuple[int, ...], parameters: SamplingParameters) -> NDArray[np.float64]:
    """Return the target's distribution of the token that follows `context`, [V]."""
    logits = hash_logits(context, VOCABULARY, weights=1)
    return np.exp(log_probabilities(transform(logits, parameters)))


def chi_square_z(counts: list[NDArray[np.float64]], shares: list[NDArray[np.float64]]) -> float:
    """Return how many standard deviations the summed χ² of many tables lies above its mean.

    In each table, cells that expect fewer than 5 are pooled into one; tables that then have one
    cell say nothing.
    """
    statistic, freedom = 0.0, 0
    for observed, share in zip(counts, shares, strict=True):
        expected = share * observed.sum()
        assert observed[expected == 0].sum() == 0, "a token that the transform excludes was drawn"
        small = expected < 5
        cells = np.append(observed[~small], observed[small].sum())
        wanted = np.append(expected[~small], expected[small].sum())
        kept = wanted >= 1
        statistic += ((cells[kept] - wanted[kept]) ** 2 / wanted[kept]).sum()
        freedom += max(int(kept.sum()) - 1, 0)
    return float((statistic - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize(
    "shape",
    [{"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9}],
    ids=["plain", "top-p"],
)
def test_every_token_follows_the_targets_distribution(shape: dict[str, float]) -> None:
    cell = Cell()
    counts: dict[tuple[int, ...], NDArray[np.float64]] = {}
    drafted = accepted = 0
    for seed in range(SESSIONS):
        parameters = SamplingParameters(**shape, seed=seed)  # type: ignore[arg-type]
        tokens, offered, taken = cell.sample(seed + 1, parameters)
        drafted, accepted = drafted + offered, accepted + taken
        sequence = [*PROMPT, *tokens]
        for position in range(len(PROMPT), len(sequence)):
            context = tuple(sequence[position - ORDER : position])
            counts.setdefault(context, np.zeros(VOCABULARY))[sequence[position]] += 1
    assert sum(table.sum() for table in counts.values()) >= 20_000
    parameters = SamplingParameters(**shape)  # type: ignore[arg-type]
    shares = [exact(context, parameters) for context in counts]
    assert abs(chi_square_z(list(counts.values()), shares)) < 4
    # The test means something only where drafts are both accepted and rejected.
    assert 0.2 < accepted / drafted < 0.9


def test_sessions_with_different_seeds_are_independent() -> None:
    """First tokens of neighbouring seeds are jointly distributed as the product of their own."""
    cell = Cell()
    pairs = np.zeros((VOCABULARY, VOCABULARY))
    for seed in range(0, 3000, 2):
        left, right = (cell.first(seed + offset) for offset in (0, 1))
        pairs[left, right] += 1
    marginal = exact(PROMPT, SamplingParameters(temperature=1.0))
    joint = np.outer(marginal, marginal)
    assert abs(chi_square_z([pairs.ravel()], [joint.ravel()])) < 4
