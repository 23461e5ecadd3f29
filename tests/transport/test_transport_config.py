"""Addresses and configuration files: what is read, and the line that says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.config import BrokerConfig, Config, load_config
from sdk.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:1883", "127.0.0.1", 1883),
        (" pi.local:8883\n", "pi.local", 8883),
        ("[::1]:1", "::1", 1),
    ],
)
def test_addresses_are_read_and_written_back(text: str, host: str, port: int) -> None:
    broker = BrokerConfig.parse(text)
    assert (broker.host, broker.port) == (host, port)
    assert BrokerConfig.parse(broker.address) == broker


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "host",
        "host:",
        ":1883",
        "host:x",
        "host:-1",
        "host:0",
        "host:65536",
        "::1:1883",
        "mqtt://host:1883",
        "a b:1883",
        "host:１８８３",
    ],
)
def test_what_is_no_address_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="broker") as caught:
        BrokerConfig.parse(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_mistake(text: str) -> None:
    try:
        broker = BrokerConfig.parse(text)
    except ConfigError:
        return
    assert BrokerConfig.parse(broker.address) == broker


def test_password_is_never_shown() -> None:
    broker = BrokerConfig(username="pi-1", password="s3cret")
    assert "s3cret" not in repr(broker)
    assert "pi-1" in repr(broker)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"password": "x"}, "beside a username"),
        ({"cert_file": Path("a"), "ca_file": Path("a")}, "go together"),
        ({"cert_file": Path("a"), "key_file": Path("a")}, "needs ca_file"),
        ({"keepalive_s": 0}, "use 1 to 60"),
        ({"host": ""}, "give a name or an address"),
    ],
)
def test_halves_and_ranges_are_checked(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        BrokerConfig(**fields)  # type: ignore[arg-type]


def test_whole_file_is_read_with_paths_relative_to_it(tmp_path: Path) -> None:
    path = tmp_path / "multispin.toml"
    (tmp_path / "password").write_text("s3cret\n")
    path.write_text(
        '[broker]\nhost = "edge.local"\nport = 8883\nusername = "pi-1"\n'
        'password_file = "password"\nca_file = "ca.crt"\ncert_file = "/etc/pi.crt"\n'
        'key_file = "/etc/pi.key"\nkeepalive_s = 20\n[device]\nid = "pi-1"\nmodel = "drafter"\n'
    )
    config = load_config(path)
    assert config.broker == BrokerConfig(
        host="edge.local",
        port=8883,
        username="pi-1",
        password="s3cret",
        ca_file=tmp_path / "ca.crt",
        cert_file=Path("/etc/pi.crt"),
        key_file=Path("/etc/pi.key"),
        keepalive_s=20,
    )
    assert config.device.id == "pi-1"
    assert config.device.model == tmp_path / "drafter"


def test_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("")
    assert load_config(path) == Config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[broker", "not TOML"),
        ("\xff", "not TOML"),
        ("[brokers]\n", r"unknown table \[brokers\], allowed are \[broker\], \[device\]"),
        ("broker = 1\n", r"broker must be a table, written \[broker\]"),
        ("[broker]\nhots = 'x'\n", "unknown key broker.hots, allowed are ca_file, cert_file"),
        ("[broker]\nport = '1883'\n", "broker.port must be a whole number"),
        ("[broker]\nport = true\n", "broker.port must be a whole number"),
        ("[broker]\nport = 0\n", "broker port 0: use 1 to 65535"),
        ("[broker]\nhost = 5\n", "broker.host must be a text in quotes"),
        ("[broker]\npassword = 'x'\n", "beside a username"),
        ("[broker]\nusername='a'\npassword='x'\npassword_file='y'\n", "not both"),
        ("[broker]\nusername='a'\npassword_file='nowhere'\n", "nowhere: cannot be read"),
        ("[device]\nname = 'x'\n", "unknown key device.name, allowed are id, model"),
        ("#" + "x" * 70_000, "at most 65536 bytes"),
    ],
)
def test_every_mistake_names_file_key_and_what_is_allowed(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "multispin.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        load_config(tmp_path / "none.toml")
