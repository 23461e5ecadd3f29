"""mosquitto's configuration and access rules as text. Pure: reads and writes no file.

Two listeners: a private one for one machine, and a production one where every client shows a
certificate whose common name is its identity and bounds its topics. Options as in mosquitto 2.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdk.errors import ConfigError

__all__ = [
    "BROKER_FILES",
    "MAX_PACKET_BYTES",
    "TlsListener",
    "mosquitto_acl",
    "private_conf",
    "production_conf",
]

MAX_PACKET_BYTES = 65_536
BROKER_FILES = ("ca.crt", "ca.crl", "broker.crt", "broker.key")
"""What a broker's folder holds, as `multispin keys init` lays it out."""

# TCP_NODELAY: without it a QoS 1 round trip waits for delayed acknowledgements, 88 ms on loopback.
_COMMON = f"""\
set_tcp_nodelay true
max_packet_size {MAX_PACKET_BYTES}
max_keepalive 60
max_inflight_messages 20
max_queued_messages {{queued}}
max_queued_bytes {{queued_bytes}}
memory_limit 268435456
retain_available true
persistence false
log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages true
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsListener:
    """The production listener.

    Attributes:
        ca_file: authority of the devices' and the server's client certificates.
        cert_file: the broker's certificate; its names are what devices call the broker.
        key_file: its private key.
        acl_file: where the text of `mosquitto_acl` lies.
        crl_file: revoked certificates; None for none.
        host: address to listen on; None for every one.
        port: 8883 by custom.
        max_connections: devices, servers and tools together.
        one_connection_each: make the name in the certificate the client id too. Without it a
            device that turns hostile can claim another's client id and so end its connection
            (never read or write its topics); with it a device has one connection only, shared by
            all that runs on it.
    """

    ca_file: Path
    cert_file: Path
    key_file: Path
    acl_file: Path
    crl_file: Path | None = None
    host: str | None = None
    port: int = 8883
    max_connections: int = 500
    one_connection_each: bool = False

    def __post_init__(self) -> None:
        for path in (self.ca_file, self.cert_file, self.key_file, self.acl_file, self.crl_file):
            if path is not None and ("\n" in str(path) or not path.is_absolute()):
                raise ConfigError(f"broker: {path} must be an absolute path")

    @classmethod
    def in_folder(
        cls,
        folder: Path,
        *,
        host: str | None,
        port: int,
        max_connections: int = 500,
        one_connection_each: bool = False,
    ) -> TlsListener:
        """Return a listener with the `BROKER_FILES` of a folder and its access rules in `acl`."""
        ca_file, crl_file, cert_file, key_file = (folder / name for name in BROKER_FILES)
        return cls(
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
            acl_file=folder / "acl",
            crl_file=crl_file,
            host=host,
            port=port,
            max_connections=max_connections,
            one_connection_each=one_connection_each,
        )


def private_conf(*, host: str, port: int) -> str:
    """Return a listener without passwords, meant for `host` 127.0.0.1."""
    return f"listener {port} {host}\nallow_anonymous true\nmax_connections 500\n" + _COMMON.format(
        queued=1000, queued_bytes=4_194_304
    )


def production_conf(listener: TlsListener) -> str:
    """Return a listener for devices on a network: TLS 1.3, certificates on both sides."""
    crl = f"crlfile {listener.crl_file}\n" if listener.crl_file else ""
    identity = "use_username_as_clientid true\n" if listener.one_connection_each else ""
    return (
        f"listener {listener.port} {listener.host or ''}".rstrip() + "\n"
        f"cafile {listener.ca_file}\n"
        f"certfile {listener.cert_file}\n"
        f"keyfile {listener.key_file}\n"
        f"{crl}"
        "tls_version tlsv1.3\n"
        "require_certificate true\n"
        "use_identity_as_username true\n"
        f"{identity}"
        "allow_anonymous false\n"
        f"acl_file {listener.acl_file}\n"
        f"max_connections {listener.max_connections}\n"
        "persistent_client_expiration 1h\n" + _COMMON.format(queued=200, queued_bytes=1_048_576)
    )


def mosquitto_acl(*, server: str = "edge") -> str:
    """Return access rules: a device has its own topics, `server` everybody's.

    Tools with the server's certificate read commands too: none clears what another gave.

    %u is the name in the client's certificate, which it cannot choose; its client id, which it
    can, decides nothing.
    """
    return (
        "pattern write sd/1/%u/up/#\n"
        "pattern write sd/1/%u/status\n"
        "pattern read sd/1/%u/down/#\n"
        f"\nuser {server}\n"
        "topic read sd/1/+/up/#\n"
        "topic read sd/1/+/status\n"
        "topic readwrite sd/1/+/down/#\n"
    )
