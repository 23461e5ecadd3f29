"""Where the broker is and how to be let in: addresses from the command line, tables from TOML.

Knows nothing of MQTT or of models; ids and model folders are checked where they are used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdk.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["BrokerConfig", "Config", "DeviceConfig", "check_named", "load_config", "shipped_model"]

_MAX_FILE_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """How to reach a broker.

    Attributes:
        host: name or address; with TLS, the name that the broker's certificate must carry.
        port: 1 to 65535.
        username: None for none.
        password: None for none; never shown.
        ca_file: certificate authority of the broker's certificate; turns TLS on.
        cert_file: this client's certificate; together with `key_file`, and only with TLS.
        key_file: its private key.
        keepalive_s: a connection that was silent for so long is probed; 1 to 60.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    keepalive_s: int = 15

    def __post_init__(self) -> None:
        if not self.host or any(character.isspace() for character in self.host):
            raise ConfigError(f"broker host {self.host!r}: give a name or an address")
        if not 1 <= self.port <= 65_535:
            raise ConfigError(f"broker port {self.port}: use 1 to 65535")
        if not 1 <= self.keepalive_s <= 60:
            raise ConfigError(f"broker keepalive_s {self.keepalive_s}: use 1 to 60")
        if self.password is not None and self.username is None:
            raise ConfigError("broker password: MQTT takes one only beside a username")
        if (self.cert_file is None) != (self.key_file is None):
            raise ConfigError("broker: cert_file and key_file go together, give both or none")
        if self.cert_file is not None and self.ca_file is None:
            raise ConfigError("broker: cert_file needs ca_file, the authority to trust")

    @property
    def address(self) -> str:
        """HOST:PORT, as `parse` takes it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def tls(self) -> bool:
        """Whether to speak TLS: wherever there is an authority to trust."""
        return self.ca_file is not None

    @classmethod
    def parse(cls, text: str) -> BrokerConfig:
        """Read "HOST:PORT" or "[IPV6]:PORT".

        Raises:
            ConfigError: if it is neither.
        """
        host, colon, port = text.strip().rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if bracketed:
            host = host[1:-1]
        if not colon or not host or not port.isascii() or not port.isdigit():
            raise ConfigError(f"broker {text!r}: write HOST:PORT, for instance 192.168.1.10:1883")
        if "/" in host or (":" in host and not bracketed):
            raise ConfigError(
                f"broker {text!r}: write HOST:PORT without a scheme, IPv6 as [ADDRESS]:PORT"
            )
        return cls(host=host, port=int(port))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """What this board is called and drafts with; None leaves the choice to the command."""

    id: str | None = None
    model: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole configuration file."""

    broker: BrokerConfig = field(default_factory=BrokerConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)


def load_config(path: Path) -> Config:
    """Read a TOML file with the tables [broker] and [device]; what it leaves out has defaults.

    Paths in it are relative to its folder. `password_file` names a file that holds the password
    alone, so that the configuration itself need not be secret.

    Raises:
        ConfigError: naming file, key and what is allowed.
    """
    tables = _read(path)
    unknown = sorted(set(tables) - {"broker", "device"})
    if unknown:
        raise ConfigError(f"{path}: unknown table [{unknown[0]}], allowed are [broker], [device]")
    try:
        broker = BrokerConfig(**_resolve_password(_table(path, tables, "broker", _BROKER_KEYS)))
    except ConfigError as error:
        if str(error).startswith(str(path)):
            raise
        raise ConfigError(f"{path}: {error}") from error
    return Config(
        broker=broker, device=DeviceConfig(**_table(path, tables, "device", _DEVICE_KEYS))
    )


def check_named(broker: BrokerConfig) -> None:
    """Refuse to invent a device's id where the broker knows it by its certificate.

    Raises:
        ConfigError: naming the certificate.
    """
    if broker.cert_file is not None:
        raise ConfigError(
            f"device: the id that {broker.cert_file} was made for is missing; give --device, or "
            "id in the configuration's table [device]"
        )


def shipped_model(name: str) -> Path:
    """Return the folder of the `target` or `drafter` that ships with the distribution.

    Raises:
        ConfigError: where none was shipped.
    """
    try:
        from models.registry import pair_dir
    except ModuleNotFoundError as error:
        raise ConfigError("model: none is shipped here; name a folder with --model") from error
    return pair_dir(name)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(text) > _MAX_FILE_BYTES:
        raise ConfigError(f"{path}: a configuration has at most {_MAX_FILE_BYTES} bytes")
    try:
        return tomllib.loads(text.decode())
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _table(
    path: Path, tables: Mapping[str, Any], name: str, keys: Mapping[str, _Reader]
) -> dict[str, Any]:
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {name} must be a table, written [{name}]")
    values = {}
    for key, value in table.items():
        if key not in keys:
            raise ConfigError(
                f"{path}: unknown key {name}.{key}, allowed are {', '.join(sorted(keys))}"
            )
        try:
            values[key] = keys[key](value, path.parent)
        except ValueError as error:
            raise ConfigError(f"{path}: {name}.{key} must be {error}") from error
    return values


def _resolve_password(values: dict[str, Any]) -> dict[str, Any]:
    file = values.pop("password_file", None)
    if file is None:
        return values
    if "password" in values:
        raise ConfigError("broker: give password or password_file, not both")
    try:
        password = file.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"broker.password_file {file}: cannot be read: {error}") from error
    return {**values, "password": password}


def _text(value: object, _folder: Path) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text in quotes")
    return value


def _whole(value: object, _folder: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("a whole number")
    return value


def _path(value: object, folder: Path) -> Path:
    return folder / Path(_text(value, folder)).expanduser()


_Reader = Callable[[object, Path], Any]
_BROKER_KEYS: Mapping[str, _Reader] = {
    "host": _text,
    "port": _whole,
    "username": _text,
    "password": _text,
    "password_file": _path,
    "ca_file": _path,
    "cert_file": _path,
    "key_file": _path,
    "keepalive_s": _whole,
}
_DEVICE_KEYS: Mapping[str, _Reader] = {"id": _text, "model": _path}
