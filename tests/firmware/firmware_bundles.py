"""Small real bundles: a drafter of a few hundred bytes that ONNX Runtime runs anywhere."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import zstandard
from onnx import TensorProto, helper, numpy_helper

import firmware_tools
from firmware_tools.bundle import archive
from firmware_tools.bundle.archive import Member
from firmware_tools.bundle.build import BundleRecipe, build
from firmware_tools.bundle.manifest import GoldenDraft, Manifest
from firmware_tools.bundle.signed import sign
from firmware_tools.keys import KeyStore, SigningKey
from firmware_tools.probe import draft_greedily
from sdk.model.manifest import Manifest as ModelManifest

VOCABULARY = 32
PROMPT = (1, 2, 3)


def make_model(folder: Path, *, step: int = 7) -> Path:
    """Export a drafter in which token t is always followed by t + step, modulo the vocabulary."""
    folder.mkdir(parents=True)
    table = np.zeros((VOCABULARY, VOCABULARY), np.float32)
    table[np.arange(VOCABULARY), (np.arange(VOCABULARY) + step) % VOCABULARY] = 1
    cache = [1, 1, "capacity", 2]
    parts = ("key", "value")
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["input_ids", "rows_to_score"], ["scored"], axis=1),
            helper.make_node("Gather", ["table", "scored"], ["logits"], axis=0),
            *(
                helper.make_node("Identity", [f"past_key_values.0.{part}"], [f"present.0.{part}"])
                for part in parts
            ),
        ],
        "bigram",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "rows"]),
            helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, [1]),
            helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, []),
            helper.make_tensor_value_info("rows_to_score", TensorProto.INT64, ["scored"]),
            *(
                helper.make_tensor_value_info(f"past_key_values.0.{part}", TensorProto.FLOAT, cache)
                for part in parts
            ),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "scored", VOCABULARY]),
            *(
                helper.make_tensor_value_info(f"present.0.{part}", TensorProto.FLOAT, cache)
                for part in parts
            ),
        ],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))
    ModelManifest(
        architecture="Bigram",
        vocabulary_size=VOCABULARY,
        tokenizer_hash="0" * 64,
        context_length=128,
        layers=1,
        kv_heads=1,
        head_dim=2,
        weights="float32",
    ).write(folder)
    return folder


def make_recipe(
    folder: Path, *, version: str = "1.0.0", release: int = 1000000, board: str = "pi5"
) -> BundleRecipe:
    """Return a recipe with small inputs, made in `folder` if they are not there yet."""
    if not (folder / "model").exists():
        make_model(folder / "model")
        template = Path(str(firmware_tools.__file__)).parent / "templates" / "multispin.toml"
        (folder / "config.toml").write_bytes(template.read_bytes())
        (folder / "packages" / "thing").mkdir(parents=True)
        (folder / "packages" / "thing" / "__init__.py").write_text("ANSWER = 42\n")
        (folder / "packages" / "thing-1.dist-info").mkdir()
        (folder / "packages" / "thing-1.dist-info" / "WHEEL").write_text(
            "Tag: cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64\n"
        )
    return BundleRecipe(
        board=board,
        python="3.11",
        version=version,
        release=release,
        model=folder / "model",
        config=folder / "config.toml",
        packages=folder / "packages",
        golden=GoldenDraft(
            prompt=PROMPT, tokens=draft_greedily(folder / "model", PROMPT, 4), min_equal=4
        ),
    )


def make_bundle(folder: Path, keys: KeyStore, *, version: str = "1.0.0", release: int = 1) -> Path:
    """Build and sign a bundle in `folder`."""
    path = folder / f"{version}.bundle"
    build(make_recipe(folder / "inputs", version=version, release=release), path)
    sign(path, keys.signing_key("bundle"))
    return path


def forge(
    path: Path,
    key: SigningKey,
    manifest: Manifest | bytes,
    members: Iterable[tuple[bytes, bytes]],
    *,
    end: bytes = bytes(1024),
) -> None:
    """Write a bundle signed with a good key whose payload holds any headers and contents."""
    raw = io.BytesIO()
    for header, content in members:
        raw.write(header + content + bytes(-len(content) % 512))
    packed = zstandard.compress(raw.getvalue() + end)
    if isinstance(manifest, Manifest):
        manifest = reseal(manifest, packed)
    from firmware_tools.bundle.build import write_bundle

    payload = path.with_suffix(".payload")
    payload.write_bytes(packed)
    write_bundle(path, manifest, b"", payload)
    signature = key.sign(b"multispin bundle manifest 1\n" + manifest)
    write_bundle(path, manifest, bytes.fromhex(key.verify_key.key_id) + signature, payload)
    payload.unlink()


def reseal(manifest: Manifest, packed: bytes) -> bytes:
    """Return the manifest's bytes with the payload's true size and hash."""
    import dataclasses
    import hashlib

    return dataclasses.replace(
        manifest, payload_bytes=len(packed), payload_sha256=hashlib.sha256(packed).hexdigest()
    ).to_bytes()


def honest_members(manifest: Manifest, source: Path) -> list[tuple[bytes, bytes]]:
    """Return headers and contents of a slot folder as an honest builder would write them."""
    return [
        (
            archive.header(Member(entry.path, entry.size_bytes, entry.mode)),
            (source / entry.path).read_bytes(),
        )
        for entry in manifest.files
    ]


def tar_header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 4) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, "/etc/passwd" if kind == b"2" else ""
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


ATTACKS: dict[str, tuple[str, Callable[[list[tuple[bytes, bytes]]], object]]] = {
    "extra file first": ("extra", lambda m: m.insert(0, (tar_header("aaa"), b"evil"))),
    "extra file last": ("extra", lambda m: m.append((tar_header("zzz"), b"evil"))),
    "path that escapes": ("path", lambda m: m.append((tar_header("../../evil"), b"evil"))),
    "absolute path": ("path", lambda m: m.insert(1, (tar_header("/etc/evil"), b"evil"))),
    "symbolic link": ("type", lambda m: m.insert(1, (tar_header("lnk", tarfile.SYMTYPE, 0), b""))),
    "hard link": ("type", lambda m: m.append((tar_header("lnk", tarfile.LNKTYPE, 0), b""))),
    "device": ("type", lambda m: m.append((tar_header("dev", tarfile.BLKTYPE, 0), b""))),
    "long name": ("type", lambda m: m.insert(1, (tar_header("x", tarfile.GNUTYPE_LONGNAME), b"a"))),
    "double file": ("extra", lambda m: m.insert(1, m[0])),
    "missing file": ("extra", lambda m: m.pop(2)),
    "missing last file": ("missing", lambda m: m.pop()),
    "wrong content": ("tampered", lambda m: m.__setitem__(0, (m[0][0], b"#" * len(m[0][1])))),
    "wrong size": ("size", lambda m: m.__setitem__(0, (tar_header("bin/multispin"), b"evil"))),
}
