"""Which drafted tokens the target accepts: pure maths over one session's rows of logits.

Greedy and coupled verification are one rule: choose the target's own token at every row; the draft
is accepted while it equals that choice. In coupled mode the choice adds the noise that the device
added too (arXiv 2408.07978), so the output is the target's own sample whatever was drafted.

Ratio verification knows the distribution q that each token was drawn from. It accepts a token with
probability min(1, p/q) (Leviathan et al., arXiv 2211.17192), or weighs the whole block at once (Sun
et al., arXiv 2403.10444), which never accepts fewer; either way, what follows is drawn from what is
left of p, and the output is an exact sample of the target.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_server.verifier.interface import VerifyOutcome, VerifyRequest
from sdk.model.noise import Stream, uniform
from sdk.model.proposal import Proposal
from sdk.model.sampling import Sampler, SamplingParameters, log_probabilities, transform

__all__ = [
    "Acceptor",
    "Trial",
    "accept",
    "accept_ratio",
    "accept_tokens",
    "block_prefix",
    "residual",
    "token_prefix",
]


def accept(
    logits: NDArray[np.float32], draft: Sequence[int], *, sampler: Sampler, position: int
) -> VerifyOutcome:
    """Return the accepted prefix and the target's token behind it: greedy and coupled mode.

    Args:
        logits: [len(draft) + 1, vocab]; row i is the target's view of what follows draft[:i].
        draft: the drafted ids.
        sampler: the session's choice rule.
        position: absolute index of the first drafted token.
    """
    for accepted, row in enumerate(logits):
        token = sampler.choose(row, position + accepted)
        if accepted == len(draft) or token != draft[accepted]:
            return VerifyOutcome(accepted=accepted, token=token)
    raise ValueError(f"{len(logits)} rows of logits for {len(draft)} drafted tokens")


def accept_tokens(tokens: Sequence[int], draft: Sequence[int]) -> VerifyOutcome:
    """Do what `accept` does, where the target's token of every row is known: [len(draft) + 1]."""
    pairs = zip(tokens, draft, strict=False)
    accepted = next((n for n, (own, drafted) in enumerate(pairs) if own != drafted), len(draft))
    return VerifyOutcome(accepted=accepted, token=tokens[accepted])


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """All that decides on one draft beside the target's logits.

    Attributes:
        parameters: how the target's distribution is shaped; they key the noise.
        position: absolute index of the first drafted token.
        draft: the drafted ids, at least one in ratio mode.
        proposals: in ratio mode, the distribution of each; else empty.
        uniforms: in ratio mode, numbers in (0, 1) never used before: one per drafted id, and one
            for the token behind.
        block: whether ratio mode weighs the whole block at once.
    """

    parameters: SamplingParameters
    position: int
    draft: tuple[int, ...]
    proposals: tuple[Proposal, ...] = ()
    uniforms: tuple[float, ...] = ()
    block: bool = True


def token_prefix(
    p: NDArray[np.float64],
    draft: Sequence[int],
    proposals: Sequence[Proposal],
    uniforms: Sequence[float],
) -> tuple[int, float]:
    """Return (accepted prefix, weight of p in the residual) by the ratio test, token by token.

    Args:
        p: [len(draft) + 1, vocab], the target's distributions.
        draft: the drafted ids.
        proposals: the distribution of each.
        uniforms: one number in (0, 1) per drafted id, never used before.
    """
    for accepted, (token, q, u) in enumerate(zip(draft, proposals, uniforms, strict=True)):
        if u * q.probability(token) >= p[accepted, token]:
            return accepted, 1.0
    return len(draft), 1.0


def block_prefix(
    p: NDArray[np.float64],
    draft: Sequence[int],
    proposals: Sequence[Proposal],
    uniforms: Sequence[float],
) -> tuple[int, float]:
    """Return (accepted prefix, weight of p in the residual) by block verification.

    The longest prefix whose own test holds is accepted; arguments as in `token_prefix`.
    Source: arXiv 2403.10444, Algorithm 2.
    """
    accepted, weight, ratio = 0, 1.0, 1.0
    for length, (token, q, u) in enumerate(zip(draft, proposals, uniforms, strict=True), start=1):
        ratio = min(1.0, ratio * p[length - 1, token] / q.probability(token))
        threshold = ratio
        if length < len(draft):
            left = proposals[length].subtract_from(ratio * p[length]).sum()
            # With ratio 1 nothing speaks against the prefix; the quotient is then left / left.
            threshold = 1.0 if ratio == 1.0 else left / (left + 1.0 - ratio)
        if u < threshold:
            accepted, weight = length, ratio
    return accepted, weight


def residual(
    p: NDArray[np.float64], accepted: int, proposals: Sequence[Proposal], weight: float
) -> NDArray[np.float64]:
    """Return, unnormalised, the distribution of the token behind the accepted prefix, [vocab]."""
    row: NDArray[np.float64] = p[accepted]
    if accepted == len(proposals):
        return row
    left = proposals[accepted].subtract_from(weight * row)
    return left if left.any() else row  # p = q up to rounding


def accept_ratio(logits: NDArray[np.float32], trial: Trial) -> VerifyOutcome:
    """Return the accepted prefix and the token behind it: ratio mode.

    Args:
        logits: [len(draft) + 1, vocab].
        trial: with proposals.
    """
    p = np.stack([np.exp(log_probabilities(transform(row, trial.parameters))) for row in logits])
    find_prefix = block_prefix if trial.block else token_prefix
    accepted, weight = find_prefix(p, trial.draft, trial.proposals, trial.uniforms[:-1])
    mass = np.cumsum(residual(p, accepted, trial.proposals, weight))
    # u comes so near to 1 that u · m may round to m, behind which there is no token.
    reached = min(trial.uniforms[-1] * mass[-1], np.nextafter(mass[-1], 0.0))
    token = int(np.searchsorted(mass, reached, side="right"))
    return VerifyOutcome(accepted=accepted, token=token)


class Acceptor:
    """One session's verification, whatever the mode of each round."""

    def __init__(
        self, *, parameters: SamplingParameters, vocabulary_size: int, block: bool = True
    ) -> None:
        """Prepare; `block` chooses block verification over the token-by-token ratio test."""
        self._sampler = Sampler(parameters=parameters, vocabulary_size=vocabulary_size)
        self._block = block
        self._attempt = secrets.randbits(32)  # a restarted session must not see old numbers again

    def trial(self, request: VerifyRequest, *, position: int) -> Trial:
        """Return what decides on a draft; in ratio mode every call draws new numbers.

        Args:
            request: the draft, with proposals in ratio mode.
            position: absolute index of the first drafted token.
        """
        uniforms: tuple[float, ...] = ()
        if request.proposals:
            self._attempt += 1
            tests = (self._uniform(position + n, Stream.ACCEPT) for n in range(len(request.draft)))
            uniforms = (*tests, self._uniform(position, Stream.RESIDUAL))
        return Trial(
            parameters=self._sampler.parameters,
            position=position,
            draft=request.draft,
            proposals=request.proposals,
            uniforms=uniforms,
            block=self._block,
        )

    def accept(
        self, logits: NDArray[np.float32], request: VerifyRequest, *, position: int
    ) -> VerifyOutcome:
        """Return the accepted prefix and the token behind it.

        Args:
            logits: [len(draft) + 1, vocab].
            request: the draft, with proposals in ratio mode.
            position: absolute index of the first drafted token.
        """
        if request.proposals:
            return accept_ratio(logits, self.trial(request, position=position))
        return accept(logits, request.draft, sampler=self._sampler, position=position)

    def _uniform(self, position: int, stream: Stream) -> float:
        return uniform(self._sampler.parameters.seed, position, stream, self._attempt)
