"""A board as its users see it: load a small model, join a broker, generate verified text."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sdk.config import BrokerConfig
from sdk.draft.drafter import Drafter, OnnxDrafter
from sdk.energy.phases import Phase
from sdk.errors import ConfigError, ConnectError
from sdk.journal import Journal
from sdk.link import LinkReporter, PacedTransport, available_probes
from sdk.model.sampling import SamplingParameters
from sdk.model.tokenizer import Tokenizer
from sdk.protocol import VERSION, Mode, Open, Verdict, check_device_id, down, status
from sdk.session import Session
from sdk.session_options import SessionOptions, SessionStats
from sdk.transport.interface import Transport, Will
from sdk.transport.mqtt import MqttTransport

__all__ = ["Device", "Token"]

_CONNECT_TIMEOUT_S = 10.0
_LEAST_RATE_BPS = 2_000.0  # a draft must still get through


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token of the output.

    Attributes:
        id: token id.
        text: the text that this token completes; "" while a character is still unfinished.
        position: index in the whole sequence, prompt included.
        verified: whether the target verified it; False only for `Offline.LOCAL` without a link.
    """

    id: int
    text: str
    position: int
    verified: bool


class Device:
    """A drafting board; a context manager that owns its connection.

    >>> with Device(id="pi-1", model="models/pair/drafter", broker="127.0.0.1:1883") as device:
    ...     for token in device.generate("def main(", max_tokens=64):
    ...         print(token.text, end="", flush=True)
    """

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 - the user's word for it
        model: str | Path,
        broker: str | BrokerConfig,
        threads: int | None = None,
        options: SessionOptions | None = None,
        measure_link: bool = True,
        drafter: Drafter | None = None,
        transport: Transport | None = None,
    ) -> None:
        """Load the model; the broker is joined on entering the context.

        Args:
            id: device id, unique among the broker's devices.
            model: folder of an exported drafter.
            broker: "HOST:PORT", or a configuration with TLS and credentials.
            threads: CPU threads to draft with; None chooses for the board.
            options: behaviour without a link, and optimistic drafting.
            measure_link: whether to probe the link and report it, for the server's scheduler.
            drafter: in place of the model's own.
            transport: in place of MQTT to the broker; stays open on exit, is neither measured nor
                held to a share.

        Raises:
            ConfigError: if the id or the broker's address is not valid.
            ModelLoadError: if the folder holds no model that can be run.
        """
        self.id = check_device_id(id)
        self.options = options or SessionOptions()
        self.tokenizer = Tokenizer(Path(model))
        self._broker = BrokerConfig.parse(broker) if isinstance(broker, str) else broker
        self._drafter = drafter or OnnxDrafter.load(Path(model), threads=threads)
        self._transport = transport
        self._measure_link = measure_link
        self._paced: PacedTransport | None = None
        self._reporter: LinkReporter | None = None
        self._stack = ExitStack()
        self.session: Session | None = None
        self.on_phase: Callable[[Phase], None] = lambda _phase: None

    def __enter__(self) -> Device:
        if self._transport is None:
            self._paced = self._stack.enter_context(PacedTransport(self._connect()))
            self._transport = self._paced
            if self._measure_link:
                probes = available_probes(self._paced, broker=self._broker, device_id=self.id)
                reporter = LinkReporter(self._paced, self.id, probes=probes)
                self._reporter = self._stack.enter_context(reporter)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the broker."""
        self._stack.close()

    @property
    def transport(self) -> Transport:
        """The connection; its `traffic` counts bytes."""
        if self._transport is None:
            raise ConfigError("device: enter its context first ('with Device(…) as device:')")
        return self._transport

    @property
    def stats(self) -> SessionStats:
        """What the newest session did."""
        return self.session.stats if self.session else SessionStats()

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        mode: Mode | None = None,
        journal: Path | None = None,
    ) -> Iterator[Token]:
        """Check the request, and yield tokens as they are accepted.

        Nothing needs the broker before the first token is asked for.

        Args:
            prompt: text to continue; must not be empty.
            max_tokens: at least 1.
            temperature: 0 is greedy; otherwise exact samples of the target.
            top_k: keep the k likeliest tokens; 0 keeps all.
            top_p: in (0, 1].
            min_p: in [0, 1).
            seed: in [0, 2^64); with the same seed, the target says the same again.
            mode: None is GREEDY at temperature 0 and COUPLED above. RATIO lets the server ask for
                distributions beside the ids where the link is wide: exact samples all the same,
                but no longer the same ones for the same seed.
            journal: file that makes the session survive a power cut; call again with the same
                arguments to go on after the last token in it.

        Raises:
            ConfigError: if a value is out of range, or the journal is another request's.
            RejectedError: if the server refuses the session.
            LinkLostError: if the server does not answer, as the options allow.
        """
        sampling = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "seed": seed,
        }
        return self._run(self._opening(prompt, max_tokens, sampling, mode), journal)

    def _run(self, opening: Open, journal: Path | None) -> Iterator[Token]:
        with ExitStack() as stack:
            record = journal and stack.enter_context(Journal(path=journal, opening=opening))
            opening = record.opening if record else opening
            if opening.committed and _is_finished(opening):
                return
            text = self.tokenizer.stream()
            for token_id in opening.committed:
                text.step(token_id)
            self.session = Session(
                device=self.id,
                opening=opening,
                drafter=self._drafter,
                transport=self.transport,
                options=self.options,
                on_phase=self.on_phase,
                on_grant=self._keep_to_share,
            )
            position = self.session.sequence.position
            for delivery in self.session.run():
                if record:
                    record.deliver(delivery.token_ids)
                for token_id in delivery.token_ids:
                    yield Token(
                        id=token_id,
                        text=text.step(token_id),
                        position=position,
                        verified=delivery.verified,
                    )
                    position += 1

    def _keep_to_share(self, verdict: Verdict) -> None:
        """Hold what is published to the granted share of the measured link."""
        if self._paced is None:
            return
        link = self._reporter.latest if self._reporter else None
        full_bps = link.uplink_bps if link else None
        if full_bps is None or verdict.grant_share >= 1.0:
            if self._paced.rate_bps is not None:
                self._paced.set_rate_bps(None)
        else:
            granted_bps = max(full_bps * verdict.grant_share, _LEAST_RATE_BPS)
            if granted_bps != self._paced.rate_bps:
                self._paced.set_rate_bps(granted_bps)

    def _opening(
        self, prompt: str, max_tokens: int, sampling: dict[str, float], mode: Mode | None
    ) -> Open:
        prompt_ids = self.tokenizer.encode(prompt)
        if len(prompt_ids) >= self._drafter.context_length:
            raise ConfigError(
                f"prompt: {len(prompt_ids)} tokens do not fit the drafter's context of "
                f"{self._drafter.context_length}; shorten it"
            )
        try:
            parameters = SamplingParameters(**sampling)  # type: ignore[arg-type]
            return Open(
                session=secrets.randbits(64),
                prompt=prompt_ids,
                sampling=parameters,
                mode=mode or (Mode.GREEDY if parameters.greedy else Mode.COUPLED),
                max_tokens=max_tokens,
                stop_ids=self.tokenizer.stop_ids,
                tokenizer=self._drafter.tokenizer_hash,
                vocabulary_size=self._drafter.vocabulary_size,
            )
        except ValueError as error:
            raise ConfigError(f"generate: {error}") from error

    def _connect(self) -> MqttTransport:
        boot = time.time_ns() // 1_000_000  # grows with every start
        transport = MqttTransport(
            broker=self._broker,
            client_id=self.id,
            subscriptions=[(down(self.id, "verdict"), 0), (down(self.id, "control"), 1)],
            will=Will(topic=status(self.id), payload=_state("offline", boot)),
            birth=(status(self.id), _state("online", boot)),
        )
        try:
            transport.connect(_CONNECT_TIMEOUT_S)
        except ConnectError:
            transport.close()
            raise
        return transport


def _state(state: str, boot: int) -> bytes:
    return json.dumps({"v": VERSION, "state": state, "boot": boot}).encode()


def _is_finished(opening: Open) -> bool:
    """Return whether a journal already holds the whole output."""
    stopped = opening.committed[-1] in opening.stop_ids
    return stopped or len(opening.committed) >= opening.max_tokens
