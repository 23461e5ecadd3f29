"""The export as a user meets it: what it writes, what it refuses, what it leaves behind."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("optimum.exporters.onnx", reason="needs the extra 'export'")

import onnx
from export_families import save_checkpoint
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from sdk.cli import main
from sdk.errors import ExportError
from sdk.export import parity, trace
from sdk.export.exporter import export_model
from sdk.model.decoder import Decoder
from sdk.model.manifest import Manifest


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("smollm", tmp_path_factory.mktemp("smollm"))


@pytest.fixture(autouse=True)
def short_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "TOKENS", 24)  # the families' test compares at full length


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_folder_is_complete_and_verifies(llama: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    manifest = export_model(llama, tmp_path / "out", progress=steps.append)
    assert {"model.onnx", "manifest.json", "tokenizer.json", "config.json"} <= names(
        tmp_path / "out"
    )
    assert Manifest.load(tmp_path / "out") == manifest
    manifest.verify(tmp_path / "out")
    assert (manifest.layers, manifest.kv_heads, manifest.head_dim) == (2, 1, 16)
    assert manifest.context_length == 512
    assert steps[0] == "fetching"
    assert steps[-1] == "publishing"


def test_export_is_deterministic(llama: Path, tmp_path: Path) -> None:
    first = export_model(llama, tmp_path / "a")
    second = export_model(llama, tmp_path / "b")
    assert first.files == second.files


def test_export_beside_the_source_adds_only_graph_and_manifest(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    export_model(folder, folder).verify(folder)
    assert names(folder) - set(before) == {"model.onnx", "manifest.json"}
    assert all((folder / name).stat().st_mtime_ns == when for name, when in before.items())
    export_model(folder, folder, weights="fp16-stored").verify(folder)  # again, over its own


def test_tied_embedding_is_stored_once(llama: Path, tmp_path: Path) -> None:
    export_model(llama, tmp_path / "out")
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    tables = [tensor for tensor in graph.initializer if 320 in tensor.dims]
    assert len(tables) == 1


def test_half_storage_computes_what_rounded_weights_compute(llama: Path, tmp_path: Path) -> None:
    rounded = tmp_path / "rounded"
    shutil.copytree(llama, rounded)
    weights = load_file(rounded / "model.safetensors")
    matrices = {
        name: w.astype(np.float16).astype(np.float32) if w.ndim > 1 else w
        for name, w in weights.items()
    }
    save_file(matrices, rounded / "model.safetensors", metadata={"format": "pt"})
    export_model(llama, tmp_path / "half", weights="fp16-stored")
    export_model(rounded, tmp_path / "single", weights="fp32")
    half, single = Decoder.load(tmp_path / "half"), Decoder.load(tmp_path / "single")
    text = np.arange(40)
    assert np.array_equal(half.run(half.new_cache(), text), single.run(single.new_cache(), text))
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("half", "single")]
    matrix_bytes = sum(w.nbytes for w in matrices.values() if w.ndim > 1)
    assert sizes[1] - sizes[0] > 0.45 * matrix_bytes


def test_large_weights_go_to_a_second_file(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "EXTERNAL_DATA_BYTES", 1000)
    manifest = export_model(llama, tmp_path / "out", weights="fp16-stored")
    assert "model.onnx.data" in manifest.files
    assert manifest.files["model.onnx"].size_bytes < manifest.files["model.onnx.data"].size_bytes
    manifest.verify(tmp_path / "out")
    decoder = Decoder.load(tmp_path / "out")
    assert np.isfinite(decoder.run(decoder.new_cache(), [1, 2, 3])).all()


def test_context_can_be_chosen(llama: Path, tmp_path: Path) -> None:
    assert export_model(llama, tmp_path / "out", context_length=64).context_length == 64
    with pytest.raises(ExportError, match="context 513 is not in 1 … 512"):
        export_model(llama, tmp_path / "more", context_length=513)


def broken_copy(llama: Path, folder: Path, name: str, content: bytes | None) -> Path:
    shutil.copytree(llama, folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    return folder


def changed_config(llama: Path, **changes: Any) -> bytes:
    config = json.loads((llama / "config.json").read_text())
    return json.dumps({**config, **changes}).encode()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "tokenizer.json"),
        ("tokenizer.json", b"{", "tokenizer.json"),
        ("config.json", None, "no usable config.json"),
        ("config.json", b'{"model_type": "bert"}', "'bert' is not a decoder"),
        ("config.json", b'{"model_type": "of-tomorrow"}', "no usable config.json"),
        ("model.safetensors", None, "loading"),
        ("model.safetensors", b"\x00" * 64, "loading"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    llama: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    source = broken_copy(llama, tmp_path / "source", name, content)
    with pytest.raises(ExportError, match=message) as caught:
        export_model(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == {"source"}


def test_rotary_embedding_without_a_fixed_table_is_refused(llama: Path, tmp_path: Path) -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    content = changed_config(llama, rope_scaling=scaling)
    source = broken_copy(llama, tmp_path / "source", "config.json", content)
    with pytest.raises(ExportError, match="'dynamic' changes with the length"):
        export_model(source, tmp_path / "out")
    assert names(tmp_path) == {"source"}


def test_graph_that_differs_from_its_source_is_refused(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = trace.clean

    def damage(model: onnx.ModelProto) -> None:
        clean(model)
        tensor = next(t for t in model.graph.initializer if "q_proj" in t.name)
        damaged = numpy_helper.to_array(tensor) * np.float32(1.02)
        tensor.CopyFrom(numpy_helper.from_array(damaged, tensor.name))

    monkeypatch.setattr(trace, "clean", damage)
    with pytest.raises(ExportError, match="differs from LlamaForCausalLM"):
        export_model(llama, tmp_path / "out")
    assert names(tmp_path) == set()


def test_full_disk_is_one_line_and_leaves_nothing(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trace, "save", fail)
    with pytest.raises(ExportError, match="No space left on device; nothing was written"):
        export_model(llama, tmp_path / "out")
    assert names(tmp_path) == set()


def test_unknown_name_without_a_network_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match="it is no folder here") as caught:
        export_model("nobody/nothing", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_commands_export_and_show(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["model", "export", "--model", str(llama), "--out", out, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == Manifest.load(tmp_path / "out").as_json()
    assert main(["model", "show", out]) == 0
    assert "LlamaForCausalLM" in capsys.readouterr().out
    with (tmp_path / "out" / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    assert main(["model", "show", out]) == 5
    assert "is not what the manifest describes" in capsys.readouterr().err


def test_a_wrong_target_is_told_before_the_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["model", "export", "--model", "/no-model", "--out", str(tmp_path / "out")]
    assert main([*command, "--target", "/nowhere"]) == 5
    assert "there is no folder /nowhere" in capsys.readouterr().err
