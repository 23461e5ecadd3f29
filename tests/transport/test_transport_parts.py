"""The pure parts of the transports: packet sizes, filters, inbox, waits, reasons."""

from __future__ import annotations

import random
import socket
import ssl
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from sdk.config import BrokerConfig
from sdk.transport import Message, publish_packet_bytes
from sdk.transport.backoff import Backoff
from sdk.transport.failure import explain_error, explain_loss, explain_refusal
from sdk.transport.inbox import Inbox
from sdk.transport.topic_filter import matches

LEVELS = st.lists(st.sampled_from(["a", "b", "", "up", "$SYS"]), min_size=1, max_size=4)
FILTER_LEVELS = st.lists(st.sampled_from(["a", "b", "", "+", "up"]), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("payload_bytes", "qos", "expected"),
    [
        (0, 0, 5),
        (124, 0, 129),
        (125, 0, 131),
        (124, 1, 132),
        (16_380, 0, 16_386),
        (16_381, 0, 16_388),
        (2_097_148, 0, 2_097_155),
        (2_097_149, 0, 2_097_157),
    ],
)
def test_packet_sizes_at_the_steps_of_the_length_field(
    payload_bytes: int, qos: int, expected: int
) -> None:
    assert publish_packet_bytes("t", payload_bytes, qos) == expected


def test_packet_size_counts_utf_8() -> None:
    assert publish_packet_bytes("µ", 0, 0) == 6


@given(FILTER_LEVELS, st.booleans(), LEVELS)
def test_filters_match_as_the_mqtt_library_has_it(
    wanted: list[str], tail: bool, levels: list[str]
) -> None:
    topic_filter = "/".join([*wanted, "#"] if tail else wanted)
    topic = "/".join(levels)
    if topic and topic_filter:
        assert matches(topic_filter, topic) == topic_matches_sub(topic_filter, topic)


def test_inbox_drops_the_oldest_hot_message_first() -> None:
    inbox = Inbox(limit=3)
    assert inbox.put(Message("a", b"1"), 1)
    assert inbox.put(Message("a", b"2"), 0)
    assert inbox.put(Message("a", b"3"), 0)
    assert not inbox.put(Message("a", b"4"), 0)  # drops 2
    assert not inbox.put(Message("a", b"5"), 1)  # drops 3
    assert not inbox.put(Message("a", b"6"), 1)  # drops 4
    assert not inbox.put(Message("a", b"7"), 1)  # nothing hot is left: drops 1
    kept = [inbox.get(0) for _ in range(4)]
    assert [message and message.payload for message in kept] == [b"5", b"6", b"7", None]


@given(st.lists(st.integers(0, 1), max_size=60), st.integers(1, 8))
def test_inbox_never_grows_and_loses_what_it_says(qualities: list[int], limit: int) -> None:
    inbox = Inbox(limit=limit)
    dropped = sum(not inbox.put(Message("t", bytes([i])), q) for i, q in enumerate(qualities))
    kept = []
    while (message := inbox.get(0)) is not None:
        kept.append(message.payload[0])
    assert len(kept) == min(len(qualities), limit) == len(qualities) - dropped
    assert kept == sorted(kept)
    control = [i for i, quality in enumerate(qualities) if quality]
    if len(control) < limit:  # room for all of them
        assert set(control) <= set(kept)


def test_closed_inbox_lets_every_reader_go_after_its_last_message() -> None:
    inbox = Inbox(limit=3)
    results: list[Message | None] = []
    readers = [threading.Thread(target=lambda: results.append(inbox.get(None))) for _ in range(2)]
    for reader in readers:
        reader.start()
    inbox.put(Message("t", b"last"), 0)
    inbox.close()
    for reader in readers:
        reader.join(10)
    assert sorted(results, key=str) == [Message("t", b"last"), None]


def test_inbox_of_no_size_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Inbox(limit=0)


def test_backoff_spreads_under_a_doubling_bound_and_stops_at_the_cap() -> None:
    waits_s = []
    for seed in range(400):
        backoff = Backoff(random=random.Random(seed))
        waits_s.append([backoff.next_s(connected_s=0.0) for _ in range(9)])
    bounds_s = [min(30.0, 0.5 * 2**attempt) for attempt in range(9)]
    for attempt, bound_s in enumerate(bounds_s):
        column = [row[attempt] for row in waits_s]
        assert max(column) <= bound_s
        assert max(column) > 0.95 * bound_s
        assert min(column) < 0.05 * bound_s
        assert abs(sum(column) / len(column) - bound_s / 2) < 0.07 * bound_s


def test_backoff_starts_over_only_after_a_connection_that_lasted() -> None:
    backoff = Backoff()
    for _ in range(7):
        backoff.next_s(connected_s=9.9)  # flapping
    assert backoff.failures == 7
    assert backoff.next_s(connected_s=10.0) <= 0.5


def test_backoff_bears_years_without_a_broker() -> None:
    backoff = Backoff(failures=10_000)
    assert 0 <= backoff.next_s(connected_s=0.0) <= 30


def verification_error(message: str, code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message, error.verify_code = message, code
    return error


@pytest.mark.parametrize(
    ("error", "words", "permanent"),
    [
        (ConnectionRefusedError(111, "refused"), "nothing listens at b:1883", False),
        (TimeoutError("timed out"), "b:1883 does not answer", False),
        (socket.gaierror(-2, "Name or service not known"), "the name b is unknown", False),
        (OSError(113, "No route to host"), "b:1883 cannot be reached", False),
        (verification_error("self-signed.", 19), "not trusted: self-signed; check ca_file", True),
        (verification_error("Hostname mismatch.", 62), "'multispin keys broker --host b'", True),
        (verification_error("IP address mismatch.", 64), "it does not name b; use", True),
        (ssl.SSLError(1, "wrong version number"), "no TLS with b:1883", True),
    ],
)
def test_every_error_has_its_words(error: OSError, words: str, permanent: bool) -> None:
    failure = explain_error(error, BrokerConfig(host="b"))
    assert words in failure.reason
    assert failure.permanent == permanent
    assert "\n" not in failure.reason


def test_refusals_name_who_was_refused() -> None:
    named = BrokerConfig(host="b", username="pi-1", password="secret")
    refusal = explain_refusal("Not authorized", named)
    assert refusal.permanent
    assert "'pi-1'" in refusal.reason
    assert "secret" not in refusal.reason
    assert not explain_refusal("Server unavailable", named).permanent


def test_loss_is_explained_by_the_alert_if_there_was_one(tmp_path: object) -> None:
    broker = BrokerConfig(host="b")
    assert "was lost" in explain_loss("", broker, answered=True).reason
    alert = "failed: [SSL: TLSV13_ALERT_X] tlsv13 alert certificate required (_ssl.c:1)"
    assert explain_loss(alert, broker, answered=False).permanent
    assert (
        "refuses a client without a certificate: tlsv13 alert certificate required; check"
        in explain_loss(alert, broker, answered=False).reason
    )
