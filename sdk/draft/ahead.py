"""What a board has drafted behind its committed tokens, and what of it outlives a verdict.

The first of these tokens are the draft that is sent; those behind it were drafted on while its
verdict was awaited. Knows nothing of rounds, messages and grants.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdk.draft.drafter import Drafter
from sdk.draft.early_stop import EarlyStop
from sdk.model.noise import Stream, uniform
from sdk.model.prefix import shared
from sdk.model.proposal import Proposal, propose
from sdk.model.sampling import Sampler, SamplingParameters, probability, transform

__all__ = ["Ahead", "Drafted"]


class Drafted(NamedTuple):
    """One drafted token.

    Attributes:
        took_s: what drafting it took.
        confidence: the drafter's own probability of it; 1 where drafts do not stop early.
        proposal: in ratio mode, the distribution it was drawn from.
    """

    token: int
    took_s: float
    confidence: float
    proposal: Proposal | None


class Ahead:
    """Tokens behind the committed ones, drafted one at a time.

    Attributes:
        support: ids of each uploaded distribution; 0 outside ratio mode.
    """

    def __init__(
        self,
        *,
        drafter: Drafter,
        sampling: SamplingParameters,
        vocabulary_size: int,
        weight_bits: int,
        early_stop: bool,
        clock: Callable[[], float],
    ) -> None:
        """Prepare; `weight_bits` and `early_stop` as in `SessionOptions`."""
        self.support = 0
        self._drafter = drafter
        self._sampling = sampling
        self._sampler = Sampler(parameters=sampling, vocabulary_size=vocabulary_size)
        self._weight_bits = weight_bits
        self._early_stop = EarlyStop() if early_stop else None
        self._clock = clock
        self._draws = secrets.randbits(32)  # keys the board's own draws in ratio mode
        self._drafted: list[Drafted] = []

    def __len__(self) -> int:
        """Return how many tokens there are."""
        return len(self._drafted)

    def first(self, count: int) -> list[Drafted]:
        """Return the first of them, `count` at most."""
        return self._drafted[:count]

    def pays(self) -> bool:
        """Say whether one more drafted token is worth its time."""
        return self._early_stop is None or self._early_stop.worth(
            [drafted.confidence for drafted in self._drafted]
        )

    def draft_token(self, committed: list[int]) -> float:
        """Draft one more token behind `committed`; return how many seconds it took."""
        started_s = self._clock()
        sequence = committed + [drafted.token for drafted in self._drafted]
        logits = self._drafter.next_logits(sequence)
        proposal = None
        if self.support:
            token, proposal = self._propose(logits, len(sequence))
        else:
            token = self._sampler.choose(logits, len(sequence))
        confidence = probability(logits, token, self._sampling) if self._early_stop else 1.0
        took_s = self._clock() - started_s
        self._drafted.append(Drafted(token, took_s, confidence, proposal))
        if self._early_stop:
            self._early_stop.add_draft_time(took_s)
        return took_s

    def decode_token(self, committed: list[int]) -> int:
        """Return what follows `committed` by the small model alone."""
        return self._sampler.choose(self._drafter.next_logits(committed), len(committed))

    def keep(self, new: tuple[int, ...], *, support: int, end: bool) -> None:
        """Keep what stands behind newly committed tokens, if all of those were drafted too.

        Args:
            new: what a verdict committed, ids.
            support: of distributions from now on; drafts of the other kind are dropped.
            end: whether nothing comes behind `new`.
        """
        agreed = shared([drafted.token for drafted in self._drafted], new)
        same_kind = bool(support) == bool(self.support)
        survives = agreed == len(new) < len(self._drafted) and same_kind and not end
        self._drafted = self._drafted[len(new) :] if survives else []
        self.support = support

    def drop(self) -> None:
        """Forget what was drafted."""
        self._drafted.clear()

    def learn(self, *, sent: int, accepted: int, tokens: int, seconds: float) -> None:
        """Tell early stopping what became of the first `sent` tokens, and how long that took."""
        if self._early_stop:
            self._early_stop.add_round(
                [drafted.confidence for drafted in self._drafted[:sent]],
                accepted=accepted,
                tokens=tokens,
                seconds=seconds,
            )

    def _propose(self, logits: NDArray[np.float32], position: int) -> tuple[int, Proposal]:
        """Cut the distribution down to what will be uploaded, then draw from that."""
        shaped = transform(logits, self._sampling)
        proposal = propose(shaped, support=self.support, weight_bits=self._weight_bits)
        self._draws += 1
        u = uniform(self._sampling.seed, position, Stream.DRAFT, self._draws)
        return proposal.draw(u), proposal
