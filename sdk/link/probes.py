"""Which sources this board has: each probe that is there, in the order in which they are believed.

A source that is absent is left out; finding out never raises.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from sdk.config import BrokerConfig
from sdk.link.interface import LinkProbe
from sdk.link.puback import PubackProbe
from sdk.link.tcp_info import TcpProbe

__all__ = ["available_probes"]

_LOG = logging.getLogger(__name__)


def available_probes(
    transport: object,
    *,
    broker: BrokerConfig | None = None,
    device_id: str | None = None,
    modem_port: str | None = None,
) -> list[LinkProbe]:
    """Return the probes whose source is there; close them after use.

    Args:
        transport: whose socket is measured; one without a socket has no TCP probe.
        broker: with `device_id`, where the timed messages of `PubackProbe` go; None: no such probe.
        device_id: on whose topic they go.
        modem_port: serial device of a modem's AT port, for instance /dev/ttyUSB2; None: ask
            ModemManager instead.
    """
    finders: list[Callable[[], LinkProbe | None]] = [lambda: TcpProbe(transport)]
    if broker is not None and device_id is not None:
        finders.append(lambda: PubackProbe(broker=broker, device_id=device_id))
    return [probe for finder in finders for probe in _found(finder)]


def _found(finder: Callable[[], LinkProbe | None]) -> Iterator[LinkProbe]:
    try:
        probe = finder()
    except Exception:  # a source in a state that nobody foresaw is absent
        _LOG.exception("link: a probe could not be set up")
        return
    if probe is not None:
        yield probe
