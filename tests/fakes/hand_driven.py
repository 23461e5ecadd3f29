"""One server and one device in one thread, frame by frame: thousands of rounds take seconds."""

from __future__ import annotations

from edge_server.scheduler.policies import make_policy
from edge_server.server import EdgeServer
from sdk.model.noise import Stream, uniform
from sdk.model.proposal import Proposal, propose
from sdk.model.sampling import Sampler, SamplingParameters, transform
from sdk.protocol import (
    UP_FILTER,
    Close,
    Draft,
    Mode,
    Open,
    Verdict,
    bits_per_id,
    decode_verdict,
    down,
    encode_control,
    encode_draft,
    up,
)
from sdk.transport.memory import MemoryHub
from tests.fakes.cell import FixedLength
from tests.fakes.hash_model import HashDrafter, HashVerifier

__all__ = ["HandDrivenCell"]


class HandDrivenCell:
    """Sample whole sequences through real frames.

    In ratio mode (`support` above 0) each distribution keeps that many ids and weights of
    `weight_bits`; otherwise the session is coupled. A draft ends behind a token whose probability
    is below `sure`, as one that stops early does.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        length: int,
        agreement: float,
        support: int = 0,
        weight_bits: int = 8,
        block: bool = True,
        sure: float = 0.0,
    ) -> None:
        hub = MemoryHub()
        self.device = hub.connect("pi", subscriptions=[("sd/1/pi/down/#", 1)])
        verifier = HashVerifier(vocabulary_size=vocabulary_size)
        verifier.block = block
        self.server = EdgeServer(
            transport=hub.connect("edge", subscriptions=[(UP_FILTER, 1)]),
            verifier=verifier,
            controller=FixedLength(length),
            policy=make_policy("continuous"),
        )
        self.drafter = HashDrafter(vocabulary_size=vocabulary_size, agreement=agreement)
        self.vocabulary_size = vocabulary_size
        self.length, self.support, self.weight_bits = length, support, weight_bits
        self.sure = sure
        self.draws = self.drafted = self.accepted = 0

    def sample(
        self, session: int, prompt: tuple[int, ...], parameters: SamplingParameters, tokens: int
    ) -> list[int]:
        """Return the tokens of one session."""
        request = Open(
            session=session,
            prompt=prompt,
            sampling=parameters,
            mode=Mode.RATIO if self.support else Mode.COUPLED,
            max_tokens=tokens,
            tokenizer="hash-tokenizer",
            vocabulary_size=self.vocabulary_size,
        )
        sampler = Sampler(parameters=parameters, vocabulary_size=self.vocabulary_size)
        taken = list(self._exchange("open", encode_control(request)).token_ids)
        while len(taken) < tokens:
            length = min(self.length, tokens - len(taken) - 1)
            taken += self._round(session, [*prompt, *taken], sampler, length)
        self.device.publish(up("pi", "close"), encode_control(Close(session=session)), qos=1)
        return taken

    def _round(self, session: int, sequence: list[int], sampler: Sampler, length: int) -> list[int]:
        drafted, proposals = self._draft(sequence, sampler, length)
        frame = Draft(
            session=session,
            round=len(sequence),
            position=len(sequence),
            sent_us=1,
            draft_s=0.0,
            token_ids=tuple(drafted),
            id_bits=bits_per_id(self.vocabulary_size),
            proposals=tuple(proposals),
        )
        verdict = self._exchange("draft", encode_draft(frame))
        self.drafted += len(drafted)
        self.accepted += verdict.accepted
        return [*drafted[: verdict.accepted], *verdict.token_ids]

    def _draft(
        self, sequence: list[int], sampler: Sampler, length: int
    ) -> tuple[list[int], list[Proposal]]:
        drafted: list[int] = []
        proposals: list[Proposal] = []
        for _ in range(length):
            position = len(sequence) + len(drafted)
            logits = self.drafter.next_logits([*sequence, *drafted])
            if not self.support:
                drafted.append(sampler.choose(logits, position))
                continue
            shaped = transform(logits, sampler.parameters)
            proposal = propose(shaped, support=self.support, weight_bits=self.weight_bits)
            self.draws += 1
            u = uniform(sampler.parameters.seed, position, Stream.DRAFT, self.draws)
            drafted.append(proposal.draw(u))
            proposals.append(proposal)
            if proposal.probability(drafted[-1]) < self.sure:
                break
        return drafted, proposals

    def _exchange(self, leaf: str, payload: bytes) -> Verdict:
        self.device.publish(up("pi", leaf), payload, qos=int(leaf != "draft"))
        while True:
            self.server.turn()
            while (message := self.device.receive(0.0)) is not None:
                if message.topic == down("pi", "verdict"):
                    return decode_verdict(message.payload)
