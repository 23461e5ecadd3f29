"""Which sources this board has: each probe that is there, in the order in which they are believed.

A source that is absent is left out; finding out never raises.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from sdk.config import BrokerConfig
from sdk.errors import MultispinError
from sdk.link.cellular import CellularProbe
from sdk.link.iface import wireless_interfaces
from sdk.link.interface import LinkProbe
from sdk.link.modem_manager import ModemManagerProbe
from sdk.link.puback import PubackProbe
from sdk.link.tcp_info import TcpProbe
from sdk.link.wifi import WifiProbe

__all__ = ["available_probes"]

_LOG = logging.getLogger(__name__)

_Finder = Callable[[], LinkProbe | None]


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
    finders: list[_Finder] = [lambda: TcpProbe(transport) if hasattr(transport, "socket") else None]
    if broker is not None and device_id is not None:
        finders.append(lambda: PubackProbe(broker=broker, device_id=device_id))
    finders += [_wifi_finder(iface) for iface in wireless_interfaces()]
    if modem_port is not None:
        finders.append(lambda: CellularProbe(port=modem_port))
    else:
        finders.append(_modem_manager)
    return [probe for finder in finders for probe in _found(finder)]


def _wifi_finder(iface: str) -> _Finder:
    return lambda: WifiProbe(iface=iface)


def _modem_manager() -> LinkProbe | None:
    probe = ModemManagerProbe()
    return probe if probe.available() else None


def _found(finder: _Finder) -> Iterator[LinkProbe]:
    try:
        probe = finder()
    except MultispinError as error:
        _LOG.warning("%s", error)
    except Exception:  # a source in a state that nobody foresaw is absent, too
        _LOG.exception("link: a probe could not be set up")
    else:
        if probe is not None:
            yield probe
