"""`multispin bundle build|sign|inspect|lock`: options in, one line or JSON out.

Knows nothing about formats or keys.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from firmware_tools.bundle.manifest import BOARDS, PYTHONS, GoldenDraft, release_of
from firmware_tools.key_options import add_key_options
from sdk.errors import ConfigError

if TYPE_CHECKING:
    from firmware_tools.bundle.manifest import Manifest

__all__ = ["configure", "run"]

_PROMPT = (1, 2, 3, 5, 8, 13)
_TOKENS = 8
_MIN_EQUAL = 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs and their options."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _configure_build(verbs.add_parser("build", help="build an unsigned bundle for one board"))
    sign = verbs.add_parser("sign", help="sign a bundle and, with --release-dir, release it")
    sign.add_argument("bundles", type=Path, nargs="*", metavar="FILE")
    sign.add_argument("--release-dir", type=Path, metavar="DIR", help="folder served to boards")
    sign.add_argument("--rotate-to", type=Path, metavar="KEYS", help="replace the release's keys")
    inspect = verbs.add_parser("inspect", help="verify a bundle, then show it")
    inspect.add_argument("bundle", type=Path, metavar="FILE")
    inspect.add_argument("--files", action="store_true", help="list every file")
    for verb in (sign, inspect):
        add_key_options(verb, secret=verb is sign)
    lock = verbs.add_parser("lock", help="resolve the board's packages anew (needs the network)")
    lock.add_argument("--python", choices=PYTHONS, required=True)
    for verb in (sign, inspect, lock):
        verb.add_argument("--json", action="store_true", help="print JSON")


def _configure_build(build: argparse.ArgumentParser) -> None:
    build.add_argument("--board", choices=BOARDS, required=True)
    build.add_argument("--python", choices=PYTHONS, required=True, help="the board's own Python")
    build.add_argument("--model", type=Path, required=True, metavar="DIR", help="ONNX drafter")
    build.add_argument("--config", type=Path, required=True, metavar="FILE", help="template")
    build.add_argument("--version", required=True, metavar="V")
    build.add_argument("--release", type=int, metavar="N", help="counter; default from --version")
    build.add_argument("--out", type=Path, required=True, metavar="FILE")
    build.add_argument(
        "--packages", type=Path, metavar="DIR", help="unpacked packages; default: the lock, by uv"
    )
    build.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run one verb."""
    verbs: dict[str, Callable[[argparse.Namespace], dict[str, object]]] = {
        "build": _build,
        "sign": _sign,
        "inspect": _inspect,
        "lock": _lock,
    }
    result = verbs[args.verb](args)
    if args.json:
        print(json.dumps(result))
        return 0
    for name, value in result.items():
        print(f"{name:<10} {value}")
    return 0


def _build(args: argparse.Namespace) -> dict[str, object]:
    from firmware_tools.bundle.build import BundleRecipe, build
    from firmware_tools.bundle.packages import install
    from firmware_tools.probe import draft_greedily

    try:
        release = args.release or release_of(args.version)
    except ValueError as error:
        raise ConfigError(f"bundle build: {error}") from error
    with tempfile.TemporaryDirectory(prefix="multispin-bundle-") as scratch:
        packages = args.packages or Path(scratch)
        if args.packages is None:
            install(args.python, packages)
        golden = GoldenDraft(
            prompt=_PROMPT,
            tokens=draft_greedily(args.model, _PROMPT, _TOKENS),
            min_equal=_MIN_EQUAL,
        )
        recipe = BundleRecipe(
            board=args.board,
            python=args.python,
            version=args.version,
            release=release,
            model=args.model,
            config=args.config,
            packages=packages,
            golden=golden,
        )
        manifest = build(recipe, args.out)
    return {"bundle": str(args.out), **_summary(manifest), "next": "multispin bundle sign"}


def _sign(args: argparse.Namespace) -> dict[str, object]:
    from firmware_tools.bundle.release import Release
    from firmware_tools.bundle.signed import sign
    from firmware_tools.keys import KeyStore
    from firmware_tools.keys.store import utc_now

    keys = KeyStore.at(args.keys, args.secrets)
    for bundle in args.bundles:
        sign(bundle, keys.signing_key("bundle"))
    result: dict[str, object] = {"signed": [str(bundle) for bundle in args.bundles]}
    if args.release_dir:
        release = Release(folder=args.release_dir, keys=keys, now=utc_now())
        result["released"] = release.add(args.bundles)
        if args.rotate_to:
            release.rotate(KeyStore.at(args.rotate_to))
    elif args.rotate_to or not args.bundles:
        raise ConfigError("bundle sign: name a bundle, or a --release-dir to sign anew")
    return result


def _inspect(args: argparse.Namespace) -> dict[str, object]:
    from firmware_tools.bundle.signed import open_bundle
    from firmware_tools.keys import KeyStore

    bundle = open_bundle(args.bundle, [KeyStore.at(args.keys).verify_key("bundle")])
    bundle.verify()
    result = {"bundle": str(args.bundle), **_summary(bundle.manifest), "signed by": bundle.key_id}
    if args.files:
        result["files"] = [entry.path for entry in bundle.manifest.files]
    return result


def _lock(args: argparse.Namespace) -> dict[str, object]:
    from firmware_tools.bundle.packages import lock

    return {"lock": str(lock(args.python))}


def _summary(manifest: Manifest) -> dict[str, object]:
    return {
        "board": manifest.board,
        "python": manifest.python,
        "glibc": manifest.glibc,
        "libraries": list(manifest.libraries),
        "version": manifest.version,
        "release": manifest.release,
        "files": len(manifest.files),
        "packed": manifest.payload_bytes,
        "unpacked": manifest.unpacked_bytes,
        "model": manifest.model_sha256,
        "tokenizer": manifest.tokenizer_sha256,
    }
