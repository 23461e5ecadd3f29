"""A hostile device gets a reject and costs the others nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edge_server.server import EdgeServer
from sdk.model.sampling import SamplingParameters
from sdk.protocol import Draft, Open, Reject, decode_control, encode_control, encode_draft, up
from sdk.transport.interface import Transport
from sdk.transport.memory import MemoryHub
from tests.fakes.cell import connect_device, generate, opening, serve_in_memory, serving
from tests.fakes.hash_model import HashDrafter, HashVerifier, decode_plain

WARM = SamplingParameters(temperature=0.9, seed=1)
VICTIM = opening(session=7, parameters=WARM)


@contextmanager
def victim_among(hub: MemoryHub) -> Iterator[tuple[EdgeServer, Transport]]:
    """Serve, hand out an attacker's connection, then show that the victim's stream is untouched."""
    with serving(serve_in_memory(hub), HashVerifier()) as server:
        attacker = connect_device(hub, "evil")
        victim = connect_device(hub, "pi")
        yield server, attacker
        delivered, session = generate(victim, "pi", VICTIM, HashDrafter())
        assert delivered == decode_plain(VICTIM.prompt, parameters=WARM, max_tokens=60)
        assert session.stats.reopened == 0  # retries happen on a machine that is slow


def draft(**changes: int | tuple[int, ...]) -> bytes:
    fields = {"session": 9, "round": 1, "position": 6, "sent_us": 1, "token_ids": (1, 2)}
    return encode_draft(Draft(**(fields | changes), draft_s=0.0, id_bits=7))  # type: ignore[arg-type]


def answer(transport: Transport) -> Reject:
    """Return the next reject, past verdicts and openings."""
    while True:
        message = transport.receive(5.0)
        assert message is not None, "no reject came"
        if message.topic.endswith("/control"):
            frame = decode_control(message.payload)
            if isinstance(frame, Reject):
                return frame


def open_session(transport: Transport, session: int = 9) -> None:
    transport.publish(up("evil", "open"), encode_control(opening(session=session)), qos=1)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"position": 5000}, "position"),
        ({"position": 2**32 - 1}, "position"),
        ({"session": 7}, "unknown_session"),  # the victim's: not this device's
        ({"session": 2**64 - 1}, "unknown_session"),
        ({"token_ids": (97,)}, "vocabulary"),
        ({"token_ids": (127, 1)}, "vocabulary"),
    ],
)
def test_a_wrong_draft_is_rejected(changes: dict[str, int], code: str) -> None:
    hub = MemoryHub()
    with victim_among(hub) as (_server, evil):
        open_session(evil)
        evil.publish(up("evil", "draft"), draft(**changes))
        assert answer(evil).code.value == code


def test_frames_cut_at_every_length_are_rejected_and_change_nothing() -> None:
    hub = MemoryHub()
    whole = draft()
    with victim_among(hub) as (server, evil):
        open_session(evil)
        for length in range(len(whole)):
            evil.publish(up("evil", "draft"), whole[:length])
        assert answer(evil).code.value == "malformed"
    refused = server.gateway.counters["rejected_malformed"]
    assert refused + server.gateway.counters["banned"] == len(whole)


def test_random_bytes_on_every_topic_never_stop_the_server() -> None:
    generator = random.Random(5)
    hub = MemoryHub()
    with victim_among(hub) as (server, evil):
        for number in range(600):
            leaf = ("draft", "open", "close", "report", "energy", "nonsense")[number % 6]
            payload = generator.randbytes(generator.randrange(0, 80))
            evil.publish(up("evil", leaf), payload, qos=number % 2)
    assert server.gateway.counters["rejected_malformed"] > 0


def test_a_flood_is_ignored_for_a_while() -> None:
    hub = MemoryHub()
    with victim_among(hub) as (server, evil):
        for _ in range(300):
            evil.publish(up("evil", "draft"), b"rubbish")
    assert server.gateway.counters["banned"] > 200
    assert server.gateway.counters["rejected_malformed"] < 60
    codes = [answer(evil).code.value for _ in range(41)]
    first = codes.index("busy")
    assert codes[:first] == ["malformed"] * first
    assert first >= 39  # the bucket's size, and what leaked meanwhile
    told = server.gateway.counters["rejected_busy"]
    assert 1 <= told <= 1 + server.gateway.counters["rejected_malformed"] - first


def test_a_device_that_hoards_sessions_loses_its_own_oldest() -> None:
    hub = MemoryHub()
    with victim_among(hub) as (server, evil):
        for session in range(100, 120):
            open_session(evil, session)
        open_session(evil, 9)
    assert len(server.sessions.of_device("evil")) == 4


def test_a_foreign_close_closes_nothing() -> None:
    """The device's name is the topic's; a session id alone opens no door."""
    hub = MemoryHub()
    with serving(serve_in_memory(hub), HashVerifier()):
        evil, victim = connect_device(hub, "evil"), connect_device(hub, "pi")

        def attack(_tokens: list[int]) -> None:
            evil.publish(up("evil", "close"), b'{"v":1,"kind":"close","session":"%016x"}' % 7)

        delivered, session = generate(victim, "pi", VICTIM, HashDrafter(), on_tokens=attack)
    assert delivered == decode_plain(VICTIM.prompt, parameters=WARM, max_tokens=60)
    assert session.stats.reopened == 0


@pytest.mark.parametrize(
    "field",
    ["prompt_tokens", "temperature", "seed", "mode", "vocabulary_size", "stop_ids", "max_tokens"],
)
def test_an_open_with_a_wrong_field_is_rejected(field: str) -> None:
    hub = MemoryHub()
    payload = encode_control(opening(session=9)).replace(
        f'"{field}":'.encode(), f'"{field}":"x","y":'.encode()
    )
    with victim_among(hub) as (_server, evil):
        evil.publish(up("evil", "open"), payload, qos=1)
        assert answer(evil).code.value == "malformed"


def test_a_server_frame_from_a_device_is_rejected() -> None:
    hub = MemoryHub()
    with victim_among(hub) as (_server, evil):
        payload = b'{"v":1,"kind":"opened","session":"%016x","context_length":9,"target":"t"}' % 9
        evil.publish(up("evil", "open"), payload, qos=1)
        assert answer(evil).code.value == "malformed"


def test_retained_frames_are_ignored() -> None:
    hub = MemoryHub()
    poison = connect_device(hub, "pi")
    poison.publish(up("pi", "open"), encode_control(_other()), qos=1, retain=True)
    with victim_among(hub) as (server, _evil):
        pass
    assert server.gateway.counters["opened"] == 1


def _other() -> Open:
    return opening(session=8)
