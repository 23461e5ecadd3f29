"""Bundles: the same bytes from the same inputs, and every way of being wrong refused by name."""

from __future__ import annotations

import dataclasses
import json
import locale
import os
import subprocess
import sys
from pathlib import Path

import pytest
from firmware_bundles import ATTACKS, forge, honest_members, make_bundle, make_recipe, reseal
from hypothesis import given
from hypothesis import strategies as st

from firmware_tools.bundle import elf
from firmware_tools.bundle.build import build
from firmware_tools.bundle.manifest import FileEntry, GoldenDraft, Manifest, release_of
from firmware_tools.bundle.packages import LOCKS, glibc_needed, install, libraries_needed
from firmware_tools.bundle.signed import SignedBundle, open_bundle, sign
from firmware_tools.bundle.tree import check_folder
from firmware_tools.errors import BundleError, RefusedError
from firmware_tools.keys import KeyStore, SigningKey
from sdk.cli import main
from sdk.model.manifest import Manifest as ModelManifest


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory, key_store: KeyStore) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), key_store)


@pytest.fixture(scope="session")
def bundle(bundle_path: Path, key_store: KeyStore) -> SignedBundle:
    return open_bundle(bundle_path, [key_store.verify_key("bundle")])


@pytest.fixture(scope="session")
def slot(tmp_path_factory: pytest.TempPathFactory, bundle: SignedBundle) -> Path:
    folder = tmp_path_factory.mktemp("slots") / "a"
    bundle.verify()
    bundle.unpack(folder)
    return folder


def refuse(path: Path, keys: KeyStore) -> str:
    with pytest.raises(RefusedError) as caught:
        open_bundle(path, [keys.verify_key("bundle")]).verify()
    return caught.value.reason


def test_the_same_inputs_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(make_recipe(tmp_path / "one"), tmp_path / "one.bundle")
    recipe = make_recipe(tmp_path / "a" / "far" / "two")
    for path in (tmp_path / "a").rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    monkeypatch.chdir(tmp_path / "a")
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    before, language = os.umask(0o077), locale.setlocale(locale.LC_ALL)
    locale.setlocale(locale.LC_ALL, "C")
    try:
        build(recipe, tmp_path / "two.bundle")
    finally:
        os.umask(before)
        locale.setlocale(locale.LC_ALL, language)
    assert (tmp_path / "one.bundle").read_bytes() == (tmp_path / "two.bundle").read_bytes()


def test_a_verified_bundle_unpacks_to_exactly_its_files(bundle: SignedBundle, slot: Path) -> None:
    found = {path.relative_to(slot).as_posix() for path in slot.rglob("*") if path.is_file()}
    assert found == {entry.path for entry in bundle.manifest.files} | {"manifest.json"}
    assert {"lib/sdk/cli.py", "lib/firmware_tools/durable.py", "model/model.onnx"} <= found
    assert not any("__pycache__" in path or path.startswith("lib/edge_server") for path in found)
    assert check_folder(bundle.manifest, slot) == ""
    assert os.access(slot / "bin/multispin", os.X_OK)


def test_the_slot_s_own_command_runs_with_the_slot_s_own_code(slot: Path) -> None:
    done = subprocess.run(
        [slot / "bin/multispin", "--version"],
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().endswith("1.0.0")


def test_a_damaged_slot_is_named(bundle: SignedBundle, tmp_path: Path) -> None:
    bundle.unpack(tmp_path / "a")
    (tmp_path / "a/model/model.onnx").write_bytes(b"rubbish")
    assert "model/model.onnx" in check_folder(bundle.manifest, tmp_path / "a")
    (tmp_path / "a/model/model.onnx").unlink()
    assert "model/model.onnx: No such file" in check_folder(bundle.manifest, tmp_path / "a")


def test_unpacking_never_writes_over_a_file_or_through_a_link(
    bundle: SignedBundle, tmp_path: Path
) -> None:
    (tmp_path / "a" / "bin").mkdir(parents=True)
    (tmp_path / "a" / "bin" / "multispin").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        bundle.unpack(tmp_path / "a")
    assert not (tmp_path / "victim").exists()


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


paths = st.lists(
    st.text("abcxyz0123456789._-", min_size=1, max_size=8).filter(lambda part: part.strip(".")),
    min_size=1,
    max_size=4,
).map("/".join)


@given(
    st.dictionaries(paths, st.integers(0, 1 << 20), max_size=8),
    st.integers(1, 1 << 60),
    st.sampled_from(["pi5", "pi4", "jetson-orin", "generic-arm64"]),
)
def test_a_manifest_survives_the_wire(files: dict[str, int], release: int, board: str) -> None:
    folders = {path[:end] for path in files for end, letter in enumerate(path) if letter == "/"}
    plain = {path: size for path, size in files.items() if path not in folders}
    manifest = Manifest(
        board=board,
        python="3.11",
        glibc="2.28",
        libraries=("libz.so.1",),
        version="1.2.3",
        release=release,
        model_sha256="",
        tokenizer_sha256="",
        golden=GoldenDraft(prompt=(1,), tokens=(2, 3), min_equal=1),
        payload_bytes=0,
        payload_sha256="0" * 64,
        files=tuple(
            FileEntry(path=path, size_bytes=size, sha256="1" * 64)
            for path, size in sorted(plain.items())
            if path != "manifest.json"
        ),
    )
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert reseal(manifest, b"") != manifest.to_bytes()


def test_versions_become_counters() -> None:
    assert [release_of(each) for each in ("0.1.0", "1.2.3", "1.2", "10.0.1")] == [
        1000,
        1002003,
        1002000,
        10000001,
    ]
    with pytest.raises(ValueError, match="--release"):
        release_of("1.0rc1")


def test_links_among_the_inputs_are_refused(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path / "inputs")
    (recipe.packages / "link").symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match="link"):
        build(recipe, tmp_path / "x.bundle")
    assert not (tmp_path / "x.bundle").exists()


def test_a_folder_without_a_drafter_is_refused(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path / "inputs")
    with pytest.raises(BundleError, match=r"no model\.onnx"):
        dataclasses.replace(recipe, model=tmp_path)


def test_a_drafter_that_the_board_s_runtime_cannot_run_is_refused(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    (tmp_path / "packages" / "onnxruntime-1.23.2.dist-info").mkdir()
    dataclasses.replace(recipe, python="3.10")
    model = ModelManifest.load(recipe.model)
    dataclasses.replace(model, windowed=True).write(recipe.model)
    reason = r"to 1\.24 .*for Python 3\.10 bring onnxruntime 1\.23\.2"
    with pytest.raises(BundleError, match=reason):
        dataclasses.replace(recipe, python="3.10")


def test_shared_objects_are_read() -> None:
    import numpy

    library = next(Path(str(numpy.__file__)).parent.rglob("_multiarray_umath*.so"))
    found = elf.parse(library.read_bytes())
    assert found is not None
    assert any(name.startswith("libc.so") for name in found.needed)
    assert elf.parse(b"#!/bin/sh\n") is None


def test_a_foreign_shared_object_is_refused(tmp_path: Path) -> None:
    own = next(Path(os.__file__).parent.glob("lib-dynload/_json*.so"))
    (tmp_path / "x.so").write_bytes(own.read_bytes())
    if elf.parse(own.read_bytes()).machine != elf.AARCH64:  # type: ignore[union-attr]
        with pytest.raises(BundleError, match="aarch64"):
            libraries_needed(tmp_path)


def test_the_oldest_c_library_comes_from_the_wheels_tags(tmp_path: Path) -> None:
    for number, tag in enumerate(("manylinux2014_aarch64", "manylinux_2_34_aarch64", "any")):
        (tmp_path / f"{number}.dist-info").mkdir()
        (tmp_path / f"{number}.dist-info" / "WHEEL").write_text(f"Tag: cp311-cp311-{tag}\n")
    assert glibc_needed(tmp_path) == "2.34"


def test_every_board_s_lock_covers_what_the_package_needs() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    block = text[text.index("dependencies = [") : text.index("[project.optional")]
    needed = {line.strip(' ",').split(">")[0].split(";")[0] for line in block.splitlines()[1:-2]}
    for python in ("3.10", "3.11", "3.13"):
        lines = (LOCKS / f"board-py{python}.txt").read_text().splitlines()
        locked = {line.split("==")[0] for line in lines if "==" in line}
        missing = {name for name in needed if name not in locked}
        assert missing <= ({"tomli"} if python != "3.10" else set())
        assert {"tuf", "cryptography", "zstandard", "pyserial"} <= locked


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
def test_the_locks_install_for_the_board(tmp_path: Path, python: str) -> None:
    install(python, tmp_path)
    assert int(glibc_needed(tmp_path).split(".")[1]) <= 28
    assert "libstdc++.so.6" in libraries_needed(tmp_path)
    tag = f"cpython-{python.replace('.', '')}-aarch64"
    assert any(tag in path.name for path in (tmp_path / "numpy").rglob("*.so"))


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = str(tmp_path / "keys")
    recipe = make_recipe(tmp_path / "inputs")
    out = str(tmp_path / "pi5.bundle")
    build_args = ["bundle", "build", "--board", "pi5", "--python", "3.11", "--version", "1.2.3"]
    build_args += ["--model", str(recipe.model), "--config", str(recipe.config)]
    assert main(["keys", "init", "--keys", keys]) == 0
    assert main([*build_args, "--packages", str(recipe.packages), "--out", out]) == 0
    assert main(["bundle", "inspect", out, "--keys", keys]) == 10
    assert "unsigned" in capsys.readouterr().err
    release = str(tmp_path / "release")
    assert main(["bundle", "sign", out, "--keys", keys, "--release-dir", release]) == 0
    capsys.readouterr()
    assert main(["bundle", "inspect", out, "--keys", keys, "--json", "--files"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["board"], shown["release"], shown["glibc"]) == ("pi5", 1002003, "2.27")
    assert "model/model.onnx" in shown["files"]
    assert (tmp_path / "release/targets/pi5-py3.11-1.2.3.bundle").exists()
    assert main(["bundle", "sign", out, "--keys", keys, "--release-dir", release]) == 10
    assert "not above" in capsys.readouterr().err
    assert main(["bundle", "sign", "--keys", keys]) == 2
