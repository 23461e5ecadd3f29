"""`multispin keys init|device|broker|revoke|show`: options in, one line or JSON out.

Knows nothing about cryptography.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from firmware_tools.key_options import add_key_options

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs and their options."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    init = verbs.add_parser("init", help="make the authority, broker certificate and signing keys")
    init.add_argument(
        "--host",
        action="append",
        metavar="NAME",
        help="name or address of the broker (repeat); localhost and 127.0.0.1 always are",
    )
    device = verbs.add_parser("device", help="make a device's certificate")
    device.add_argument("device", metavar="ID")
    broker = verbs.add_parser("broker", help="make the broker a new certificate, with more names")
    broker.add_argument(
        "--host",
        action="append",
        metavar="NAME",
        help="name or address to add (repeat); those that it has stay",
    )
    revoke = verbs.add_parser("revoke", help="shut a device out of the broker")
    revoke.add_argument("device", metavar="ID")
    show = verbs.add_parser("show", help="list fingerprints and devices")
    for verb in (init, device, broker, revoke, show):
        add_key_options(verb)
        verb.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run one verb."""
    verbs: dict[str, Callable[[argparse.Namespace], dict[str, object]]] = {
        "init": _init,
        "device": _device,
        "broker": _broker,
        "revoke": _revoke,
        "show": _show,
    }
    result = verbs[args.verb](args)
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            _print(name, value)
    return 0


def _print(name: str, value: object) -> None:
    if isinstance(value, dict):
        print(f"{name}:")
        for key, each in value.items():
            print(f"  {key:<10} {each}")
    else:
        print(f"{name}: {value}")


def _init(args: argparse.Namespace) -> dict[str, object]:
    from firmware_tools.keys.store import KeyStore, utc_now

    # A server beside its broker joins by these.
    hosts = list(dict.fromkeys([*(args.host or ()), "localhost", "127.0.0.1"]))
    store = KeyStore.create(args.keys, hosts, secret=args.secrets, now=utc_now())
    return {
        "keys": str(store.public),
        "secrets": str(store.secret),
        "fingerprints": store.fingerprints(),
    }


def _device(args: argparse.Namespace) -> dict[str, object]:
    from firmware_tools.keys.store import KeyStore, utc_now

    store = KeyStore.at(args.keys, args.secrets)
    store.issue_device(args.device, now=utc_now())
    folder = Path("devices") / args.device
    return {
        "device": args.device,
        "authority": str(store.public / "ca.crt"),
        "certificate": str(store.public / folder / "device.crt"),
        "key": str(store.secret / folder / "device.key"),
    }


def _broker(args: argparse.Namespace) -> dict[str, object]:
    from firmware_tools.keys.store import KeyStore, utc_now

    store = KeyStore.at(args.keys, args.secrets)
    names = store.renew_broker(args.host or (), now=utc_now())
    return {
        "certificate": str(store.broker / "broker.crt"),
        "names": ", ".join(names),
        "next": f"start 'multispin serve --keys {args.keys}' anew; another broker needs "
        f"{store.broker} copied there and a restart; boards need nothing",
    }


def _revoke(args: argparse.Namespace) -> dict[str, object]:
    from firmware_tools.keys.store import KeyStore, utc_now

    store = KeyStore.at(args.keys, args.secrets)
    store.revoke(args.device, now=utc_now())
    return {
        "revoked": args.device,
        "list": str(store.broker / "ca.crl"),
        "next": "'multispin serve --keys' reads it by itself; for another broker copy the list "
        "there and restart it",
    }


def _show(args: argparse.Namespace) -> dict[str, object]:
    from firmware_tools.keys.store import KeyStore

    store = KeyStore.at(args.keys, args.secrets)
    return {
        "broker names": ", ".join(store.broker_names()),
        "fingerprints": store.fingerprints(),
        "devices": store.devices(),
    }
