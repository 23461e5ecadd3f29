"""Keys: files, refusals, and a real broker that lets devices in and shuts revoked ones out."""

from __future__ import annotations

import json
import ssl
import stat
import threading
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from cryptography import x509
from firmware_broker import NOW, free_port, run_broker

from firmware_tools.errors import KeysError
from firmware_tools.keys import SIGNING_ROLES, DeviceFiles, KeyStore, SigningKey, VerifyKey
from sdk.cli import main
from sdk.errors import ConfigError


def make(tmp_path: Path) -> KeyStore:
    return KeyStore.create(tmp_path / "keys", ["localhost", "127.0.0.1"], now=NOW)


def test_secrets_are_private_and_public_files_hold_no_secret(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.issue_device("cam-7", now=NOW)
    assert stat.S_IMODE(store.secret.stat().st_mode) == 0o700
    secrets = [path for path in store.secret.rglob("*") if path.is_file()]
    assert len(secrets) == len(SIGNING_ROLES) + 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    public = [p for p in store.public.rglob("*") if p.is_file() and store.secret not in p.parents]
    assert stat.S_IMODE((store.broker / "broker.key").stat().st_mode) == 0o600
    public.remove(store.broker / "broker.key")  # it lives on the broker's machine
    assert not any(b"PRIVATE" in path.read_bytes() for path in public)


def test_secrets_can_live_elsewhere(tmp_path: Path) -> None:
    store = KeyStore.create(tmp_path / "keys", ["b"], secret=tmp_path / "vault", now=NOW)
    assert not (tmp_path / "keys" / "secret").exists()
    assert store.signing_key("root").verify_key.raw == store.verify_key("root").raw
    with pytest.raises(KeysError, match="--secrets"):
        KeyStore.at(tmp_path / "keys").signing_key("root")


def test_a_store_is_never_overwritten(tmp_path: Path) -> None:
    store = make(tmp_path)
    before = store.fingerprints()
    with pytest.raises(KeysError, match="already"):
        make(tmp_path)
    assert store.fingerprints() == before


@pytest.mark.parametrize("device", ["", "a/b", "+", "#", "UPPER", "x" * 33, "../up", "a\0b"])
def test_a_device_id_that_could_become_a_topic_or_path_is_refused(
    tmp_path: Path, device: str
) -> None:
    with pytest.raises(ConfigError):
        make(tmp_path).issue_device(device, now=NOW)


def test_the_server_s_name_is_not_a_device(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="edge server"):
        make(tmp_path).issue_device("edge", now=NOW)


def test_a_device_gets_one_valid_certificate_at_a_time(tmp_path: Path) -> None:
    store = make(tmp_path)
    first = store.issue_device("cam-7", now=NOW)
    with pytest.raises(KeysError, match="revoke it first"):
        store.issue_device("cam-7", now=NOW)
    store.revoke("cam-7", now=NOW)
    store.revoke("cam-7", now=NOW)
    with pytest.raises(KeysError, match="revoked"):
        store.device_files("cam-7")
    second = store.issue_device("cam-7", now=NOW)
    assert second.certificate != first.certificate
    assert store.devices() == {"cam-7": "valid"}
    assert len(store.revoked_serials()) == 1


def test_certificates_are_valid_on_a_board_whose_clock_stands_at_1970(tmp_path: Path) -> None:
    store = make(tmp_path)
    for name in ("ca", "broker/broker", "edge"):
        certificate = x509.load_pem_x509_certificate(store.read(f"{name}.crt"))
        assert certificate.not_valid_before_utc.timestamp() == 0
        assert certificate.not_valid_after_utc.year >= 2036


def test_signatures_and_reprs(tmp_path: Path) -> None:
    key = SigningKey.from_pem(SigningKey.generate().to_pem())
    check = VerifyKey.from_pem(key.verify_key.to_pem())
    signature = key.sign(b"message")
    assert check.accepts(signature, b"message")
    assert not check.accepts(signature, b"messagE")
    assert not check.accepts(bytes([signature[0] ^ 1]) + signature[1:], b"message")
    assert "PRIVATE" not in repr(key)
    with pytest.raises(KeysError):
        VerifyKey.from_pem(make(tmp_path).read("ca.crt"))
    with pytest.raises(KeysError):
        SigningKey.from_pem(b"rubbish")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["--keys", str(tmp_path / "keys")]
    assert main(["keys", "init", "--host", "broker.lan", *keys]) == 0
    assert main(["keys", "device", "cam-7", *keys]) == 0
    assert main(["keys", "revoke", "cam-7", *keys]) == 0
    capsys.readouterr()
    assert main(["keys", "show", "--json", *keys]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["devices"] == {"cam-7": "revoked"}
    assert set(shown["fingerprints"]) == {"ca", "broker", "edge", *SIGNING_ROLES}
    assert main(["keys", "revoke", "cam-8", *keys]) == 10
    assert "cam-8 has no certificate" in capsys.readouterr().err


def connects(files: DeviceFiles, folder: Path, port: int) -> bool:
    """Say whether the broker let this device in and delivered its own message back to it."""
    for name, content in (("c", files.certificate), ("k", files.key), ("a", files.authority)):
        (folder / name).write_bytes(content)
    context = ssl.create_default_context(cafile=str(folder / "a"))
    context.load_cert_chain(folder / "c", folder / "k")
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
    client.tls_set_context(context)
    connected, ended = threading.Event(), threading.Event()

    def on_connect(*arguments: object) -> None:
        connected.set()
        ended.set()

    client.on_connect = on_connect
    client.on_disconnect = lambda *_: ended.set()
    try:
        client.connect("localhost", port)
    except (OSError, ssl.SSLError):
        return False
    client.loop_start()
    ended.wait(10)
    client.disconnect()
    client.loop_stop()
    return connected.is_set()


def test_the_broker_shuts_a_revoked_device_out_and_lets_the_others_in(tmp_path: Path) -> None:
    store = make(tmp_path)
    lost, kept = (store.issue_device(name, now=NOW) for name in ("lost-1", "kept-1"))
    port = free_port()
    with run_broker(tmp_path, store, port):
        assert connects(lost, tmp_path, port)
        assert connects(kept, tmp_path, port)
    store.revoke("lost-1", now=NOW)
    with run_broker(tmp_path, store, port):
        assert not connects(lost, tmp_path, port)
        assert connects(kept, tmp_path, port)
    stranger = KeyStore.create(tmp_path / "other", ["localhost"], now=NOW)
    foreign = stranger.issue_device("kept-1", now=NOW)
    files = DeviceFiles(
        device="kept-1",
        authority=kept.authority,
        certificate=foreign.certificate,
        key=foreign.key,
    )
    with run_broker(tmp_path, store, port):
        assert not connects(files, tmp_path, port)
