"""The whole round in memory, with a model made of hashes: exactness and faults."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_server.gateway import GatewayLimits
from sdk.errors import LinkLostError, RejectedError
from sdk.model.sampling import SamplingParameters
from sdk.session_options import Offline, SessionOptions
from sdk.transport.memory import Faults, MemoryHub
from tests.fakes.cell import (
    FixedLength,
    connect_device,
    generate,
    generate_all,
    opening,
    serve_in_memory,
    serving,
)
from tests.fakes.hash_model import HashDrafter, HashVerifier, decode_plain

GREEDY = SamplingParameters()
WARM = SamplingParameters(temperature=0.8, seed=11)
SHAPED = SamplingParameters(temperature=1.3, top_k=20, top_p=0.9, min_p=0.02, seed=2**64 - 1)
BAD_LINK = {"loss": 0.1, "duplicate": 0.1, "reorder": 0.1, "reorder_s": 0.003}
HASTY = SessionOptions(lost_after_s=30.0)


def truth(parameters: SamplingParameters, **changes: object) -> list[int]:
    request = replace(opening(parameters=parameters), **changes)  # type: ignore[arg-type]
    return decode_plain(
        request.prompt,
        parameters=parameters,
        max_tokens=request.max_tokens,
        stop_ids=request.stop_ids,
    )


@pytest.mark.parametrize("parameters", [GREEDY, WARM, SHAPED], ids=["greedy", "warm", "shaped"])
@pytest.mark.parametrize("agreement", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("optimistic", [True, False], ids=["ahead", "patient"])
def test_stream_equals_the_target_alone(
    parameters: SamplingParameters, agreement: float, optimistic: bool
) -> None:
    hub = MemoryHub()
    controller = FixedLength(0, 1, 2, 3, 8, 0, 5, 4, 7, 6)
    with serving(serve_in_memory(hub), HashVerifier(), controller=controller):
        transport = connect_device(hub, "pi")
        delivered, session = generate(
            transport,
            "pi",
            opening(parameters=parameters),
            HashDrafter(agreement=agreement),
            options=SessionOptions(optimistic=optimistic),
        )
    assert delivered == truth(parameters)
    assert session.stats.emitted == 60
    if agreement == 1.0:
        assert session.stats.accepted == session.stats.drafted > 0
        assert optimistic == (session.stats.saved > 0)


class UnsureDrafter(HashDrafter):
    """Half its tokens are guesses, and every token costs more than a round is worth."""

    def next_logits(self, sequence: Sequence[int]) -> NDArray[np.float32]:
        time.sleep(0.002)
        sure = len(sequence) % 2 == 0
        return super().next_logits(sequence) * np.float32(1.0 if sure else 0.01)


@pytest.mark.parametrize("parameters", [GREEDY, WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("optimistic", [True, False], ids=["ahead", "patient"])
def test_drafts_that_stop_early_change_nothing(
    parameters: SamplingParameters, optimistic: bool
) -> None:
    drafted = {}
    for early_stop in (False, True):
        hub = MemoryHub()
        with serving(serve_in_memory(hub), HashVerifier(), controller=FixedLength(8)):
            delivered, session = generate(
                connect_device(hub, "pi"),
                "pi",
                replace(opening(parameters=parameters), max_tokens=80),
                UnsureDrafter(agreement=0.5),
                options=SessionOptions(optimistic=optimistic, early_stop=early_stop),
            )
        assert delivered == truth(parameters, max_tokens=80)
        drafted[early_stop] = session.stats.drafted / session.stats.rounds
    assert drafted[True] < drafted[False]


@pytest.mark.parametrize("count", range(1, 9))
def test_batches_of_every_size_and_ragged_lengths(count: int) -> None:
    hub, verifier = MemoryHub(), HashVerifier()
    controller = FixedLength(*range(9))
    with serving(serve_in_memory(hub), verifier, controller=controller):
        jobs = {}
        for number in range(count):
            request = opening(
                session=number + 1,
                prompt=tuple(range(number + 1)),
                parameters=replace(WARM, seed=number),
            )
            transport = connect_device(hub, f"pi-{number}")
            drafter = HashDrafter(agreement=number / 8)
            jobs[f"pi-{number}"] = lambda t=transport, n=number, r=request, d=drafter: generate(
                t, f"pi-{n}", r, d
            )[0]
        results = generate_all(jobs)
    for number in range(count):
        expected = truth(replace(WARM, seed=number), prompt=tuple(range(number + 1)))
        assert results[f"pi-{number}"] == expected
    for batch in verifier.batches:  # no session twice in a pass
        assert len({request.slot for request in batch}) == len(batch)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("length", [0, 4])
def test_loss_duplication_and_reordering_change_nothing(seed: int, length: int) -> None:
    hub = MemoryHub()
    with serving(serve_in_memory(hub), HashVerifier(), controller=FixedLength(length)) as server:
        transport = connect_device(
            hub, "pi", uplink=Faults(**BAD_LINK, seed=seed), downlink=Faults(**BAD_LINK, seed=-seed)
        )
        delivered, session = generate(
            transport, "pi", opening(parameters=WARM), HashDrafter(), options=HASTY
        )
    assert delivered == truth(WARM)
    assert session.stats.emitted == 60
    assert server.gateway.counters["rejected_position"] == 0


def test_the_link_breaks_and_comes_back() -> None:
    hub = MemoryHub()
    breaks = iter((10, 25, 40))
    due = [next(breaks)]

    def break_link(tokens: list[int]) -> None:
        if due and len(tokens) >= due[0]:
            due[:] = [*([after] if (after := next(breaks, 0)) else [])]
            hub.disconnect("pi")
            hub.reconnect("pi")

    with serving(serve_in_memory(hub), HashVerifier()):
        transport = connect_device(hub, "pi")
        delivered, _ = generate(
            transport, "pi", opening(parameters=WARM), HashDrafter(), on_tokens=break_link
        )
    assert not due
    assert delivered == truth(WARM)


def test_a_restarted_server_gets_the_session_back() -> None:
    """A new server knows nothing: it rejects, the device opens again with what it has."""
    hub = MemoryHub()
    request = opening(parameters=WARM)
    delivered: list[int] = []
    with serving(serve_in_memory(hub), HashVerifier(), controller=FixedLength(4)) as first:
        transport = connect_device(hub, "pi")
        restarted = []

        def restart(tokens: list[int]) -> None:
            if len(tokens) >= 20 and not restarted:
                for session in first.sessions:
                    first.sessions.remove(session)
                restarted.append(True)

        delivered, session = generate(transport, "pi", request, HashDrafter(), on_tokens=restart)
    assert restarted
    assert session.stats.reopened == 1
    assert delivered == truth(WARM)


@pytest.mark.parametrize("length", [0, 5])
def test_a_killed_device_goes_on_where_it_was(length: int) -> None:
    """The server still has the session; the new process knows only what was delivered."""
    hub = MemoryHub()
    request = opening(parameters=WARM)
    delivered: list[int] = []

    class KilledError(Exception):
        pass

    def kill(tokens: list[int]) -> None:
        delivered[:] = tokens
        if len(tokens) >= 23:
            raise KilledError

    with serving(serve_in_memory(hub), HashVerifier(), controller=FixedLength(length)):
        first = connect_device(hub, "pi", uplink=Faults(), downlink=Faults())
        silent = _DeafToCloses(first)
        with pytest.raises(KilledError):
            generate(silent, "pi", request, HashDrafter(), on_tokens=kill)
        second = connect_device(hub, "pi")
        resumed = replace(request, committed=tuple(delivered))
        rest, _ = generate(second, "pi", resumed, HashDrafter())
    assert delivered + rest == truth(WARM)


class _DeafToCloses:
    """A device that was killed never says goodbye."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def publish(self, topic: str, payload: bytes, **options: object) -> bool:
        return topic.endswith("/close") or self._inner.publish(topic, payload, **options)  # type: ignore[attr-defined, no-any-return]


def test_a_stop_token_ends_the_stream_and_nothing_follows() -> None:
    stop = truth(GREEDY)[17]
    hub = MemoryHub()
    with serving(serve_in_memory(hub), HashVerifier()):
        request = opening(stop_ids=(stop,))
        delivered, _ = generate(connect_device(hub, "pi"), "pi", request, HashDrafter())
    assert delivered == truth(GREEDY, stop_ids=(stop,))
    assert delivered[-1] == stop
    assert stop not in delivered[:-1]


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 9])
@pytest.mark.parametrize("length", [0, 8])
def test_max_tokens_is_kept_to(max_tokens: int, length: int) -> None:
    hub = MemoryHub()
    with serving(serve_in_memory(hub), HashVerifier(), controller=FixedLength(length)):
        request = opening(max_tokens=max_tokens)
        delivered, _ = generate(
            connect_device(hub, "pi"), "pi", request, HashDrafter(agreement=1.0)
        )
    assert delivered == truth(GREEDY, max_tokens=max_tokens)


def test_a_full_context_ends_the_stream() -> None:
    hub, verifier = MemoryHub(), HashVerifier()
    verifier.context_length = 30  # type: ignore[misc]
    with serving(serve_in_memory(hub), verifier):
        delivered, session = generate(
            connect_device(hub, "pi"), "pi", opening(), HashDrafter(agreement=1.0)
        )
    assert delivered == truth(GREEDY)[:25]
    assert session.sequence.end.name == "CONTEXT_FULL"


def test_a_long_prompt_is_prefilled_in_chunks_while_others_are_served() -> None:
    hub, verifier = MemoryHub(), HashVerifier()
    prompt = tuple(number % 97 for number in range(1000))
    with serving(serve_in_memory(hub), verifier):
        slow, quick = connect_device(hub, "slow"), connect_device(hub, "quick")
        results = generate_all(
            {
                "slow": lambda: generate(
                    slow, "slow", opening(session=1, prompt=prompt), HashDrafter()
                )[0],
                "quick": lambda: generate(quick, "quick", opening(session=2), HashDrafter())[0],
            }
        )
    assert results["slow"] == truth(GREEDY, prompt=prompt)
    assert results["quick"] == truth(GREEDY)


def test_capacity_is_refused_with_a_reason() -> None:
    hub = MemoryHub()
    with (
        serving(serve_in_memory(hub), HashVerifier(max_sessions=0)),
        pytest.raises(RejectedError, match="no room") as refused,
    ):
        generate(connect_device(hub, "pi"), "pi", opening(), HashDrafter())
    assert refused.value.code == "capacity"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"tokenizer": "another"}, "tokenizer"),
        ({"vocabulary_size": 98}, "vocabulary"),
        ({"prompt": (1,) * 4096}, "context"),
    ],
)
def test_an_unfit_drafter_is_refused(changes: dict[str, object], code: str) -> None:
    hub = MemoryHub()
    request = replace(opening(), **changes)  # type: ignore[arg-type]
    drafter = HashDrafter(vocabulary_size=request.vocabulary_size)
    drafter.context_length = 10_000  # type: ignore[misc]
    with (
        serving(serve_in_memory(hub), HashVerifier()),
        pytest.raises(RejectedError) as refused,
    ):
        generate(connect_device(hub, "pi"), "pi", request, drafter)
    assert refused.value.code == code


def test_without_a_server_fail_says_so() -> None:
    hub = MemoryHub()
    options = SessionOptions(offline=Offline.FAIL, lost_after_s=0.05)
    with pytest.raises(LinkLostError, match="await verdict"):
        generate(connect_device(hub, "pi"), "pi", opening(), HashDrafter(), options=options)


def test_without_a_server_local_goes_on_unverified() -> None:
    hub = MemoryHub()
    options = SessionOptions(offline=Offline.LOCAL, lost_after_s=0.05)
    delivered, session = generate(
        connect_device(hub, "pi"), "pi", opening(), HashDrafter(agreement=1.0), options=options
    )
    assert delivered == truth(GREEDY)  # the drafter is the target here
    assert session.stats.unverified == 60
    assert session.stats.emitted == 0


def test_idle_sessions_expire_and_come_back() -> None:
    hub = MemoryHub()
    limits = GatewayLimits(idle_s=0.0)
    with serving(serve_in_memory(hub), HashVerifier(), limits=limits) as server:
        delivered, _ = generate(
            connect_device(hub, "pi"), "pi", opening(parameters=WARM), HashDrafter(), options=HASTY
        )
        assert delivered == truth(WARM)
        deadline_s = time.monotonic() + 10.0
        while len(server.sessions) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert len(server.sessions) == 0
