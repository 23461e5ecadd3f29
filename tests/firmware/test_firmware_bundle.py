"""Bundles: the same bytes from the same inputs, unpacked to exactly their files; the command."""

from __future__ import annotations

import dataclasses
import json
import locale
import os
import subprocess
import sys
from pathlib import Path

import pytest
from firmware_bundles import make_recipe, reseal
from hypothesis import given
from hypothesis import strategies as st

from firmware_tools.bundle.build import build
from firmware_tools.bundle.manifest import FileEntry, GoldenDraft, Manifest, release_of
from firmware_tools.bundle.signed import SignedBundle
from firmware_tools.bundle.tree import check_folder
from firmware_tools.errors import BundleError
from sdk.cli import main
from sdk.model.manifest import Manifest as ModelManifest


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
