"""The stand-in broker where there is no mosquitto: amqtt, in a process of its own.

For one machine and for tests: MQTT 3.1.1 only, no bound on packets, a quarter of mosquitto's rate.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal

__all__ = ["main"]


async def _serve(host: str, port: int) -> None:
    from amqtt.broker import Broker  # type: ignore[attr-defined,unused-ignore]

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}},
            "plugins": {
                "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}
            },
        }
    )
    await broker.start()
    await stop.wait()
    await broker.shutdown()


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(_serve(arguments.host, arguments.port))


if __name__ == "__main__":
    main()
