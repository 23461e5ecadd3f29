"""`multispin serve --keys`: its own mosquitto with the project's certificates, on real sockets."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from cryptography import x509
from firmware_broker import free_port

from edge_server.broker import find_mosquitto
from edge_server.secured_broker import SecuredBroker
from firmware_tools.keys import KeyStore
from firmware_tools.keys.authority import Authority
from firmware_tools.keys.store import utc_now
from models.registry import PAIR
from sdk.cli import main
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
    with SecuredBroker(keys.public, host="127.0.0.1", port=free_port()) as running:
        yield running


def board(keys: KeyStore, port: int, device: str, *, client_id: str = "") -> MqttTransport:
    return MqttTransport(
        broker=BrokerConfig(
            host="localhost",
            port=port,
            ca_file=keys.public / "ca.crt",
            cert_file=keys.public / "devices" / device / "device.crt",
            key_file=keys.secret / "devices" / device / "device.key",
        ),
        client_id=client_id or device,
    )


def wait_refused(keys: KeyStore, port: int, device: str) -> str:
    """Connect anew until the broker refuses; return why."""
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        # An id of its own: until the list is read, the same would take over the first connection.
        with board(keys, port, device, client_id=f"{device}-again") as again:
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
        board(keys, broker.config.port, "cam-1") as first,
        board(keys, broker.config.port, "cam-3") as third,
    ):
        for client in (server, first, third):
            client.connect(WAIT_S)
        # Twice: a second list must be believed over the first that mosquitto still holds.
        for device in ("cam-1", "cam-2"):
            keys.revoke(device, now=utc_now())
            assert "revoked" in wait_refused(keys, broker.config.port, device)
        assert "revoked" in wait_refused(keys, broker.config.port, "cam-1")
        # What is connected stays so, the revoked board too, until the broker is restarted.
        for client, device in ((third, "cam-3"), (first, "cam-1")):
            assert client.publish(up(device, "draft"), b"still here", qos=1)
            assert server.receive(WAIT_S) == Message(up(device, "draft"), b"still here")
        # The access rules outlive the reload.
        assert third.publish(up("cam-2", "draft"), b"forged", qos=1)
        assert third.publish(up("cam-3", "draft"), b"fence", qos=1)
        assert server.receive(WAIT_S) == Message(up("cam-3", "draft"), b"fence")
        with board(keys, broker.config.port, "cam-3") as fresh:
            fresh.connect(WAIT_S)


def test_secrets_that_are_elsewhere_are_asked_for(keys: KeyStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--secrets"):
        SecuredBroker(keys.public, secrets=tmp_path)


def test_a_folder_without_keys_is_told_what_makes_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keys init"):
        SecuredBroker(tmp_path)


DOCUMENT = Path(__file__).parents[2] / "docs" / "flashing.md"


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[IO[str]]:
    """Run the document's command in a folder with `keys` and `target`; yield what it prints."""
    if find_mosquitto() is None:
        pytest.skip("apt install mosquitto")
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    (words,) = [shlex.split(line) for line in lines if line.startswith("multispin serve --keys")]
    (folder / "target").symlink_to(PAIR / "target")
    command = [sys.executable, "-m", "sdk.cli", *words[1:], "--threads", "1", *options]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"PYTHONPATH": str(DOCUMENT.parents[1])},
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.terminate()
        assert process.wait(WAIT_S) == 0


def test_the_document_s_command_serves_boards_with_a_certificate_and_no_others(
    keys: KeyStore, tmp_path: Path
) -> None:
    port = free_port()
    with serving(tmp_path, "--port", str(port), "--json") as said:
        assert json.loads(said.readline()) == {"ready": f"localhost:{port}"}
        with board(keys, port, "cam-1") as first:
            first.connect(WAIT_S)
        keys.revoke("cam-1", now=utc_now())
        assert "revoked" in wait_refused(keys, port, "cam-1")
        stranger = BrokerConfig(host="localhost", port=port, ca_file=keys.public / "ca.crt")
        with (
            MqttTransport(broker=stranger, client_id="cam-2") as other,
            pytest.raises(ConnectError),
        ):
            other.connect(WAIT_S)


def test_secrets_in_a_vault_and_an_address_of_everywhere_are_said_as_boards_need_them(
    keys: KeyStore, tmp_path: Path
) -> None:
    port = free_port()
    shutil.move(keys.secret, tmp_path / "vault")
    options = ("--secrets", "vault", "--listen", "0.0.0.0", "--port", str(port))
    with serving(tmp_path, *options) as said:
        assert f"verifying on localhost:{port}, " in said.readline()
        assert said.readline().strip() == (
            "on a board set up for this broker: multispin generate "
            "--config /etc/multispin/multispin.toml --prompt 'def main('"
        )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--keys", "keys", "--config", "x.toml"], "leave --config and --broker out"),
        (["--keys", "keys", "--broker", "broker.lan:8883"], "leave --config and --broker out"),
        (["--keys", "keys", "--port", "0"], "boards must know the port"),
        (["--secrets", "vault"], "give --keys too"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_a_model_is_loaded(
    options: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--model", "/nowhere", *options]) == 2
    assert why in capsys.readouterr().err


def test_the_broker_s_certificate_always_names_this_machine_too(
    keys: KeyStore, tmp_path: Path
) -> None:
    """The server beside it calls it localhost, whatever boards call it."""
    other = KeyStore.create(tmp_path / "other", ["broker.lan"], now=utc_now())
    names = {}
    for store in (keys, other):
        certificate = x509.load_pem_x509_certificate(store.read("broker/broker.crt"))
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names[store.public.name] = extension.value.get_values_for_type(x509.DNSName)
    assert names == {"keys": ["localhost"], "other": ["broker.lan", "localhost"]}


def test_a_certificate_that_lacks_the_server_s_name_can_be_made_anew(
    keys: KeyStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in key stores from before `serve --keys`; boards keep theirs."""
    if find_mosquitto() is None:
        pytest.skip("apt install mosquitto")
    authority = Authority.from_pem(keys.read("ca.crt"), keys.read_secret("ca.key"))
    old = authority.issue_server("broker", ["broker.lan", "10.0.0.7"], now=utc_now())
    (keys.broker / "broker.crt").write_bytes(old.certificate)
    (keys.broker / "broker.key").write_bytes(old.key)
    assert join(keys) == (
        "connect: the certificate of localhost:{port} is not trusted: it does not name localhost; "
        "use a name that it has, or add this one where the keys are: "
        "'multispin keys broker --host localhost'"
    )
    options = ["--host", "broker.example", "--keys", str(keys.public), "--json"]
    assert main(["keys", "broker", *options]) == 0
    names = json.loads(capsys.readouterr().out)["names"]
    assert names == "broker.lan, 10.0.0.7, broker.example, localhost"
    assert join(keys) == ""


def join(keys: KeyStore) -> str:
    """Join as the edge server does and as a board does; return what the server is told."""
    port = free_port()
    with (
        SecuredBroker(keys.public, host="127.0.0.1", port=port) as broker,
        MqttTransport(broker=broker.config, client_id="edge") as server,
    ):
        try:
            server.connect(WAIT_S)
        except ConnectError as error:
            return str(error).replace(str(port), "{port}")
        with board(keys, port, "cam-1") as first:
            first.connect(WAIT_S)
    return ""
