"""The manifest: round trip, determinism, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdk.errors import ModelLoadError
from sdk.model.manifest import FileRecord, Manifest, file_record, tokenizer_hash


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "vocabulary_size": 320,
        "tokenizer_hash": "0" * 64,
        "context_length": 64,
        "layers": 2,
        "kv_heads": 1,
        "head_dim": 16,
        "weights": "fp32",
    }
    return Manifest(**{**fields, **changes})


def test_round_trip_and_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    record = file_record(tmp_path / "model.onnx")
    original = manifest(
        files={"model.onnx": record}, parity={"tokens": 256}, versions={"onnx": "1"}
    )
    original.write(tmp_path)
    first = (tmp_path / "manifest.json").read_bytes()
    loaded = Manifest.load(tmp_path)
    loaded.write(tmp_path)
    assert loaded == original
    assert (tmp_path / "manifest.json").read_bytes() == first
    loaded.verify(tmp_path)


@pytest.mark.parametrize("content", [b"grapf", b"graphs", None])
def test_verify_notices_a_changed_cut_or_missing_file(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"graph")
    listed = manifest(files={"model.onnx": file_record(path)})
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"model\.onnx"):
        listed.verify(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"files": 3}', '{"files": {"a": {"sha256": "x", "size_bytes": 1}}}']
)
def test_malformed_manifest_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ModelLoadError, match="is not a manifest") as caught:
        Manifest.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_manifest_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="multispin model export"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"layers": 0}, {"vocabulary_size": -1}, {"kv_type": "int4"}, {"format": 2}]
)
def test_impossible_values_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="manifest"):
        manifest(**changes)
    with pytest.raises(ValueError, match="file record"):
        FileRecord(sha256="short", size_bytes=1)


def test_tokenizer_hash_ignores_layout_only(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"a": [1, 2], "b": "ü"}))
    first = tokenizer_hash(tmp_path)
    path.write_text(json.dumps({"b": "ü", "a": [1, 2]}, indent=2, ensure_ascii=False))
    assert tokenizer_hash(tmp_path) == first
    path.write_text(json.dumps({"b": "ü", "a": [2, 1]}))
    assert tokenizer_hash(tmp_path) != first
