"""The production listener on a real mosquitto: who gets in, and what he may touch."""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from broker_kinds import need_broker
from certificates import Authority

from edge_server import broker_cli
from edge_server.broker import BrokerProcess, start_broker
from edge_server.mosquitto_conf import TlsListener, private_conf, production_conf
from sdk.config import BrokerConfig
from sdk.errors import ConfigError, ConnectError
from sdk.protocol import UP_FILTER, down, status, up
from sdk.transport import Message
from sdk.transport.mqtt import MqttTransport

Join = Callable[..., MqttTransport]
WAIT_S = 10.0


@dataclass(frozen=True)
class Secured:
    """A broker with the production configuration, and its authority."""

    authority: Authority
    broker: BrokerProcess
    port: int

    def client(self, name: str) -> BrokerConfig:
        folder = self.authority.folder
        return BrokerConfig(
            host="127.0.0.1",
            port=self.port,
            ca_file=self.authority.ca_file,
            cert_file=folder / f"{name.replace('/', '_')}.crt",
            key_file=folder / f"{name.replace('/', '_')}.key",
        )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def give_to_broker(folder: Path) -> None:
    """Let an unprivileged mosquitto read what root wrote."""
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, "mosquitto")


@pytest.fixture(scope="module")
def secured() -> Iterator[Secured]:
    """What an operator gets: certificates in a folder, and `multispin broker` on it."""
    need_broker("mosquitto")
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        authority = Authority(folder)
        authority.issue("broker", address="127.0.0.1")
        for client in ("edge", "pi-1", "pi-2", "evil/+", "revoked"):
            authority.issue(client)
        authority.revocation_list("revoked")
        options = ["--folder", name, "--host", "127.0.0.1", "--port", str(port)]
        assert run_command(options) == 0
        give_to_broker(folder)
        conf = (folder / "mosquitto.conf").read_text()
        with start_broker("mosquitto", port=port, conf=conf) as broker:
            yield Secured(authority, broker, port)


def run_command(options: list[str]) -> int:
    parser = argparse.ArgumentParser()
    broker_cli.configure(parser)
    return broker_cli.run(parser.parse_args(options))


def refusal(broker: BrokerConfig) -> str:
    """Return the one line that says why we were not let in."""
    with MqttTransport(broker=broker, client_id="stranger") as transport:
        with pytest.raises(ConnectError) as caught:
            transport.connect(WAIT_S)
        assert not transport.connected
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_own_topics_pass_in_both_directions(secured: Secured, join: Join) -> None:
    server = join(secured.client("edge"), subscriptions=[(UP_FILTER, 1)])
    device = join(
        secured.client("pi-1"),
        subscriptions=[(down("pi-1", "verdict"), 0)],
        birth=(status("pi-1"), b"online"),
    )
    assert device.publish(up("pi-1", "draft"), b"draft")
    assert server.receive(WAIT_S) == Message(up("pi-1", "draft"), b"draft")
    assert server.publish(down("pi-1", "verdict"), b"verdict")
    assert device.receive(WAIT_S) == Message(down("pi-1", "verdict"), b"verdict")
    watcher = join(secured.client("edge"), subscriptions=[(status("pi-1"), 1)])
    assert watcher.receive(WAIT_S) == Message(status("pi-1"), b"online", True)


def test_foreign_topics_do_not_pass(secured: Secured, join: Join) -> None:
    server = join(secured.client("edge"), subscriptions=[(UP_FILTER, 1), ("sd/1/+/status", 1)])
    victim = join(secured.client("pi-2"), subscriptions=[(down("pi-2", "verdict"), 1)])
    hostile = join(
        secured.client("pi-1"),
        client_id="pi-2-looks-like-me",
        subscriptions=[("#", 1), ("sd/1/+/down/#", 1), (down("pi-2", "verdict"), 1)],
    )
    for topic in (up("pi-2", "draft"), status("pi-2"), down("pi-2", "verdict"), "other"):
        assert hostile.publish(topic, b"forged", qos=1)
    assert hostile.publish(up("pi-1", "draft"), b"fence", qos=1)
    while (message := server.receive(WAIT_S)) != Message(up("pi-1", "draft"), b"fence"):
        assert message is not None
        assert message.retained  # statuses of other tests
    assert server.publish(down("pi-2", "verdict"), b"private", qos=1)
    assert server.publish(down("pi-1", "verdict"), b"fence", qos=1)
    assert victim.receive(WAIT_S) == Message(down("pi-2", "verdict"), b"private")
    assert hostile.receive(WAIT_S) == Message(down("pi-1", "verdict"), b"fence")


def test_server_speaks_down_only(secured: Secured, join: Join) -> None:
    """A server's certificate on a board is not a device's."""
    server = join(secured.client("edge"), subscriptions=[(UP_FILTER, 1)])
    assert server.publish(up("pi-1", "draft"), b"forged", qos=1)
    assert server.receive(0.3) is None


def test_name_with_wildcards_is_denied_everything(secured: Secured, join: Join) -> None:
    server = join(secured.client("edge"), subscriptions=[(UP_FILTER, 1)])
    with MqttTransport(broker=secured.client("evil/+"), client_id="e") as hostile:
        if hostile.wait_connected(1.0):
            hostile.publish("sd/1/evil/+/up/draft".replace("+", "x"), b"forged", qos=1)
    assert server.receive(0.3) is None


def test_client_without_a_certificate_is_refused(secured: Secured) -> None:
    bare = replace(secured.client("pi-1"), cert_file=None, key_file=None)
    assert "certificate required" in refusal(bare)


def test_certificate_of_another_authority_is_refused(secured: Secured, tmp_path: Path) -> None:
    cert_file, key_file = Authority(tmp_path).issue("pi-1")
    forged = replace(secured.client("pi-1"), cert_file=cert_file, key_file=key_file)
    assert f"refuses {cert_file}" in refusal(forged)


def test_revoked_certificate_is_refused(secured: Secured) -> None:
    assert "revoked" in refusal(secured.client("revoked"))


def test_broker_of_another_authority_is_not_trusted(secured: Secured, tmp_path: Path) -> None:
    """A false broker learns nothing: we leave before we say who we are."""
    trusting_other = replace(secured.client("pi-1"), ca_file=Authority(tmp_path).ca_file)
    assert "is not trusted" in refusal(trusting_other)


def test_certificate_for_another_host_is_not_trusted(secured: Secured) -> None:
    assert "does not name localhost" in refusal(replace(secured.client("pi-1"), host="localhost"))


def test_tls_to_a_port_without_it_is_one_line(secured: Secured, mosquitto: BrokerProcess) -> None:
    plain = replace(secured.client("pi-1"), port=mosquitto.config.port)
    with MqttTransport(broker=plain, client_id="c") as transport:
        assert not transport.wait_connected(0.5)
        assert "leave ca_file out" in transport.failure


def test_plain_client_at_a_tls_port_is_told_what_to_give(secured: Secured) -> None:
    with MqttTransport(
        broker=BrokerConfig(host="127.0.0.1", port=secured.port), client_id="plain"
    ) as transport:
        assert not transport.wait_connected(0.5)
        assert "give ca_file" in transport.failure


def test_tls_below_1_3_is_refused_by_the_broker(secured: Secured) -> None:
    import ssl

    context = ssl.create_default_context(cafile=str(secured.authority.ca_file))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", secured.port)) as sock,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(sock, server_hostname="127.0.0.1")


@pytest.mark.parametrize("missing", ["ca_file", "cert_file"])
def test_file_that_is_not_there_is_the_users_mistake(
    secured: Secured, missing: str, tmp_path: Path
) -> None:
    files = {missing: tmp_path / "nowhere.pem"}
    with pytest.raises(ConfigError, match=r"cannot use .*nowhere\.pem: No such file"):
        MqttTransport(broker=replace(secured.client("pi-1"), **files), client_id="c")


def test_stolen_client_id_ends_nobodys_connection_where_each_has_one(
    secured: Secured, join: Join
) -> None:
    folder, port = secured.authority.folder, free_port()
    listener = TlsListener(
        host="127.0.0.1",
        port=port,
        ca_file=folder / "ca.crt",
        cert_file=folder / "broker.crt",
        key_file=folder / "broker.key",
        acl_file=folder / "acl",
        one_connection_each=True,
    )
    with start_broker("mosquitto", port=port, conf=production_conf(listener)):
        victim = join(replace(secured.client("pi-1"), port=port), client_id="pi-1")
        join(replace(secured.client("pi-2"), port=port), client_id="pi-1")
        time.sleep(0.2)
        assert victim.connected
        assert victim.connection_count == 1


def test_missing_certificate_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca\.crt is missing; .* 'multispin keys init' made"):
        run_command(["--folder", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_paths_in_the_configuration_are_absolute() -> None:
    path = Path("relative.pem")
    with pytest.raises(ConfigError, match="absolute"):
        TlsListener(ca_file=path, cert_file=path, key_file=path, acl_file=path)


def test_wrong_password_is_one_line_and_the_right_one_gets_in(join: Join) -> None:
    need_broker("mosquitto")
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        (folder / "passwords").write_text(f"pi-1:{hashed('right')}\n")
        give_to_broker(folder)
        conf = private_conf(host="127.0.0.1", port=port).replace(
            "allow_anonymous true",
            f"allow_anonymous false\npassword_file {folder / 'passwords'}",
        )
        with start_broker("mosquitto", port=port, conf=conf) as broker:
            known = replace(broker.config, username="pi-1", password="right")
            join(known)
            line = refusal(replace(known, password="wrong"))
            assert "refuses user 'pi-1'" in line
            assert "check the credentials" in line
            assert "wrong" not in line
            assert "without a user name" in refusal(broker.config)


def hashed(password: str) -> str:
    """Return a line's second half in mosquitto's password format 7 (PBKDF2, SHA-512)."""
    salt = os.urandom(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
    return f"$7$101${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"
