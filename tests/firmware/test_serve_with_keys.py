"""`multispin serve --keys`: its own mosquitto with the project's certificates, on real sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_server.broker import find_mosquitto
from edge_server.secured_broker import SecuredBroker
from firmware_tools.keys import KeyStore
from firmware_tools.keys.store import utc_now
from sdk.config import BrokerConfig
from sdk.errors import ConfigError, ConnectError
from sdk.protocol import UP_FILTER, up
from sdk.transport import Message
from sdk.transport.mqtt import MqttTransport

WAIT_S = 10.0


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    """A project with three boards."""
    store = KeyStore.create(tmp_path / "keys", ["localhost"], now=utc_now())
    for device in ("cam-1", "cam-2", "cam-3"):
        store.issue_device(device, now=utc_now())
    return store


@pytest.fixture
def broker(keys: KeyStore) -> Iterator[SecuredBroker]:
    """What `serve --keys` starts."""
    if find_mosquitto() is None:
        pytest.skip("apt install mosquitto")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    with SecuredBroker(keys.public, host="127.0.0.1", port=port) as running:
        yield running


def board(
    keys: KeyStore, broker: SecuredBroker, device: str, *, client_id: str = ""
) -> MqttTransport:
    return MqttTransport(
        broker=BrokerConfig(
            host="localhost",
            port=broker.config.port,
            ca_file=keys.public / "ca.crt",
            cert_file=keys.public / "devices" / device / "device.crt",
            key_file=keys.secret / "devices" / device / "device.key",
        ),
        client_id=client_id or device,
    )


def wait_refused(keys: KeyStore, broker: SecuredBroker, device: str) -> str:
    """Connect anew until the broker refuses; return why."""
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        # An id of its own: until the list is read, the same would take over the first connection.
        with board(keys, broker, device, client_id=f"{device}-again") as again:
            try:
                again.wait_connected(1.0)
            except ConnectError as error:
                return str(error)
    raise AssertionError(f"{device} still gets in")


def test_revoked_boards_are_refused_while_the_others_are_not_disturbed(
    keys: KeyStore, broker: SecuredBroker
) -> None:
    with (
        MqttTransport(
            broker=broker.config, client_id="edge", subscriptions=[(UP_FILTER, 1)]
        ) as server,
        board(keys, broker, "cam-1") as first,
        board(keys, broker, "cam-3") as third,
    ):
        for client in (server, first, third):
            client.connect(WAIT_S)
        # Twice: a second list must be believed over the first that mosquitto still holds.
        for device in ("cam-1", "cam-2"):
            keys.revoke(device, now=utc_now())
            assert "revoked" in wait_refused(keys, broker, device)
        assert "revoked" in wait_refused(keys, broker, "cam-1")
        # What is connected stays so, the revoked board too, until the broker is restarted.
        for client, device in ((third, "cam-3"), (first, "cam-1")):
            assert client.publish(up(device, "draft"), b"still here", qos=1)
            assert server.receive(WAIT_S) == Message(up(device, "draft"), b"still here")
        # The access rules outlive the reload.
        assert third.publish(up("cam-2", "draft"), b"forged", qos=1)
        assert third.publish(up("cam-3", "draft"), b"fence", qos=1)
        assert server.receive(WAIT_S) == Message(up("cam-3", "draft"), b"fence")
        with board(keys, broker, "cam-3") as fresh:
            fresh.connect(WAIT_S)


def test_secrets_that_are_elsewhere_are_asked_for(keys: KeyStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--secrets"):
        SecuredBroker(keys.public, secrets=tmp_path)


def test_a_folder_without_keys_is_told_what_makes_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keys init"):
        SecuredBroker(tmp_path)
