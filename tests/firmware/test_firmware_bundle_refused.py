"""Bundles that are unsigned, damaged or forged: each refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from firmware_bundles import ATTACKS, forge, honest_members, make_bundle, make_recipe

from firmware_tools.bundle.build import build
from firmware_tools.bundle.manifest import Manifest
from firmware_tools.bundle.signed import SignedBundle, open_bundle, sign
from firmware_tools.errors import RefusedError
from firmware_tools.keys import KeyStore, SigningKey


def refuse(path: Path, keys: KeyStore) -> str:
    with pytest.raises(RefusedError) as caught:
        open_bundle(path, [keys.verify_key("bundle")]).verify()
    return caught.value.reason


def test_unsigned_and_strangers_are_refused(tmp_path: Path, key_store: KeyStore) -> None:
    path = tmp_path / "x.bundle"
    build(make_recipe(tmp_path / "inputs"), path)
    assert refuse(path, key_store) == "unsigned"
    sign(path, SigningKey.generate())
    assert refuse(path, key_store) == "key"
    sign(path, key_store.signing_key("targets"))  # our own key, of another purpose
    assert refuse(path, key_store) == "key"
    sign(path, key_store.signing_key("bundle"))
    open_bundle(path, [key_store.verify_key("bundle")]).verify()
    assert refuse(tmp_path / "none", key_store) == "absent"


def test_the_signature_of_another_bundle_is_refused(
    tmp_path: Path, key_store: KeyStore, bundle_path: Path
) -> None:
    other = make_bundle(tmp_path, key_store, version="2.0.0", release=2)
    stolen, mine = bundle_path.read_bytes(), bytearray(other.read_bytes())
    at, stolen_at = mine.index(b"manifest.sig"), stolen.index(b"manifest.sig")
    mine[at + 512 : at + 608] = stolen[stolen_at + 512 : stolen_at + 608]
    other.write_bytes(mine)
    assert refuse(other, key_store) == "tampered"


def test_one_changed_byte_anywhere_is_refused(
    tmp_path: Path, bundle_path: Path, key_store: KeyStore
) -> None:
    good = bundle_path.read_bytes()
    path = tmp_path / "x.bundle"
    payload_at = good.index(b"payload.tar.zst")
    every_header = [*range(600), *range(good.index(b"manifest.sig"), payload_at + 700)]
    spread = range(0, len(good), max(1, len(good) // 150))
    for at in [*every_header[::9], *spread, *range(len(good) - 1100, len(good), 7)]:
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x20]) + good[at + 1 :])
        refuse(path, key_store)


@pytest.mark.parametrize("keep", [0, 1, 511, 512, 5000, -1, -512, -1024, -1500])
def test_a_bundle_cut_short_is_refused(
    tmp_path: Path, bundle_path: Path, key_store: KeyStore, keep: int
) -> None:
    path = tmp_path / "x.bundle"
    path.write_bytes(bundle_path.read_bytes()[:keep])
    assert refuse(path, key_store) in {"missing", "format", "tampered", "extra"}


def test_bytes_behind_the_bundle_are_refused(
    tmp_path: Path, bundle_path: Path, key_store: KeyStore
) -> None:
    path = tmp_path / "x.bundle"
    path.write_bytes(bundle_path.read_bytes() + b"\0")
    assert refuse(path, key_store) == "extra"


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_payload_other_than_the_manifest_is_refused_though_well_signed(
    tmp_path: Path, bundle: SignedBundle, slot: Path, key_store: KeyStore, attack: str
) -> None:
    reason, change = ATTACKS[attack]
    members = honest_members(bundle.manifest, slot)
    change(members)
    path = tmp_path / "x.bundle"
    forge(path, key_store.signing_key("bundle"), bundle.manifest, members)
    found = refuse(path, key_store)
    assert found == reason


def test_a_payload_that_unpacks_without_end_is_refused(
    tmp_path: Path, bundle: SignedBundle, slot: Path, key_store: KeyStore
) -> None:
    members = honest_members(bundle.manifest, slot)
    path = tmp_path / "x.bundle"
    key = key_store.signing_key("bundle")
    forge(path, key, bundle.manifest, members, end=bytes(64 << 20))
    assert path.stat().st_size < 2 << 20
    assert refuse(path, key_store) in {"size", "extra"}
    forge(path, key, bundle.manifest, members)  # the forger itself is honest when left alone
    open_bundle(path, [key_store.verify_key("bundle")]).verify()


def changed(manifest: Manifest, **fields: object) -> bytes:
    found = json.loads(manifest.to_bytes())
    found.update(fields)
    return json.dumps(found, sort_keys=True, separators=(",", ":")).encode() + b"\n"


ENTRY = {"path": "x", "size_bytes": 0, "sha256": "0" * 64, "mode": 0o644}

MANIFESTS: dict[str, tuple[str, dict[str, object]]] = {
    "escape": ("path", {"files": [ENTRY | {"path": "../x"}]}),
    "escape inside": ("path", {"files": [ENTRY | {"path": "a/../../x"}]}),
    "absolute": ("path", {"files": [ENTRY | {"path": "/x"}]}),
    "empty part": ("path", {"files": [ENTRY | {"path": "a//x"}]}),
    "control": ("path", {"files": [ENTRY | {"path": "a\nx"}]}),
    "not text": ("path", {"files": [ENTRY | {"path": 7}]}),
    "our manifest": ("path", {"files": [ENTRY | {"path": "manifest.json"}]}),
    "double": ("double", {"files": [ENTRY, ENTRY]}),
    "file and folder": ("double", {"files": [ENTRY, ENTRY | {"path": "x/y"}]}),
    "setuid": ("type", {"files": [ENTRY | {"mode": 0o4755}]}),
    "huge": ("size", {"files": [ENTRY | {"size_bytes": 9 << 30}]}),
    "negative": ("format", {"files": [ENTRY | {"size_bytes": -1}]}),
    "true is no size": ("format", {"files": [ENTRY | {"size_bytes": True}]}),
    "no digest": ("format", {"files": [ENTRY | {"sha256": "x"}]}),
    "more fields": ("format", {"more": 1}),
    "other format": ("format", {"format": 2}),
    "foreign board": ("format", {"board": "toaster"}),
    "release 0": ("format", {"release": 0}),
    "no golden": ("format", {"golden": {"prompt": [], "tokens": [1], "min_equal": 1}}),
    "golden beyond": ("format", {"golden": {"prompt": [1], "tokens": [1], "min_equal": 2}}),
    "nothing": ("format", {"files": None}),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_is_wrong_is_refused_though_well_signed(
    tmp_path: Path, bundle: SignedBundle, key_store: KeyStore, case: str
) -> None:
    reason, fields = MANIFESTS[case]
    path = tmp_path / "x.bundle"
    forge(path, key_store.signing_key("bundle"), changed(bundle.manifest, **fields), [])
    assert refuse(path, key_store) == reason


def test_a_manifest_in_another_encoding_is_refused(bundle: SignedBundle) -> None:
    loose = json.dumps(json.loads(bundle.manifest.to_bytes())).encode()
    for encoded in (loose, b"", b"[]", b"\xff", b"[" * 100_000, bundle.manifest.to_bytes() + b" "):
        with pytest.raises(RefusedError):
            Manifest.from_bytes(encoded)
