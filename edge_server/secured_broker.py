"""A private mosquitto for a network: the project's certificates, revocations without a restart.

Works over the files that `multispin keys` lays out, and knows nothing of how they are made.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from edge_server.broker import BrokerProcess, start_broker, unprivileged_user
from edge_server.mosquitto_conf import (
    BROKER_FILES,
    TlsListener,
    mosquitto_acl,
    production_conf,
)
from sdk.config import BrokerConfig
from sdk.errors import ConfigError

__all__ = ["SERVER", "SecuredBroker"]

_LOG = logging.getLogger(__name__)

SERVER = "edge"
"""Common name of the edge server's certificate."""

_LOCAL = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::")  # noqa: S104
_EVERYWHERE = "0.0.0.0"  # noqa: S104
_LOOK_EVERY_S = 0.5


class SecuredBroker:
    """A mosquitto that lets in whoever the keys' authority signed and did not revoke.

    It runs as an unprivileged user if we are root, who may not be able to read the keys. So it
    gets copies of its own files in a folder of its own, which is deleted in the end. When the
    revocation list in `keys` changes, mosquitto reads it at once: a revoked device cannot connect
    again. A connection that is open stays open; only a restart ends it.
    """

    def __init__(
        self,
        keys: Path,
        *,
        secrets: Path | None = None,
        host: str | None = None,
        port: int = 8883,
        on_loss: Callable[[str], None] = lambda _why: None,
    ) -> None:
        """Prepare; nothing runs before the context is entered.

        Args:
            keys: folder of public files, with `broker/` in it.
            secrets: folder of the server's key; None for `keys/secret`.
            host: address to listen on; None for every one.
            port: to listen on.
            on_loss: as for `start_broker`.

        Raises:
            ConfigError: if a file is missing.
        """
        self._source = (keys / "broker").resolve()
        self._host, self._port, self._on_loss = host, port, on_loss
        cert_file = keys / f"{SERVER}.crt"
        key_file = (secrets or keys / "secret") / f"{SERVER}.key"
        for path in (*(self._source / name for name in BROKER_FILES), cert_file):
            if not path.is_file():
                raise ConfigError(f"keys: {path} is missing; 'multispin keys init' makes it")
        if not key_file.is_file():
            raise ConfigError(f"keys: {key_file} is missing; name its folder with --secrets")
        self.config = BrokerConfig(
            host="localhost" if host is None or host in _LOCAL else host,
            port=port,
            ca_file=keys / "ca.crt",
            cert_file=cert_file,
            key_file=key_file,
        )
        """How the edge server joins."""
        self._stack = ExitStack()
        self._stop = threading.Event()

    def __enter__(self) -> SecuredBroker:
        with ExitStack() as stack:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="multispin-broker-"))
            folder = Path(name)
            for file in BROKER_FILES:
                _hand_over(folder / file, (self._source / file).read_bytes())
            listener = TlsListener.in_folder(folder, host=self._host, port=self._port)
            _hand_over(listener.acl_file, mosquitto_acl(server=SERVER).encode())
            conf_file = folder / "mosquitto.conf"
            _hand_over(conf_file, production_conf(listener).encode())
            _give(folder)
            broker = stack.enter_context(
                start_broker(
                    "mosquitto",
                    port=self._port,
                    host=self._host or _EVERYWHERE,
                    conf_file=conf_file,
                    on_loss=self._on_loss,
                )
            )
            watch = threading.Thread(
                target=self._watch, args=(folder / "ca.crl", broker), name="crl", daemon=True
            )
            watch.start()
            stack.callback(watch.join)
            stack.callback(self._stop.set)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _watch(self, copy: Path, broker: BrokerProcess) -> None:
        source = self._source / copy.name
        known = copy.read_bytes()
        while not self._stop.wait(_LOOK_EVERY_S):
            try:
                found = source.read_bytes()
                if found == known:
                    continue
                _hand_over(copy, found)
                broker.reload()
            except OSError as error:
                _LOG.warning("revocation list: %s; trying again", error)
                continue
            known = found
            _LOG.info("revocation list read again")


def _hand_over(path: Path, content: bytes) -> None:
    """Write a file whole, for the broker's user alone."""
    part = path.with_name(f"{path.name}.part")
    part.touch(mode=0o600)
    part.write_bytes(content)
    _give(part)
    os.replace(part, path)


def _give(path: Path) -> None:
    user_id, group_id = unprivileged_user()
    if user_id >= 0:
        os.chown(path, user_id, group_id)
