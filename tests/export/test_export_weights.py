"""Weight types: what is stored, what it costs, and that tied tables stay one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("optimum.exporters.onnx", reason="needs the extra 'export'")

import onnx
from export_families import save_checkpoint

from sdk.cli import main
from sdk.errors import ExportError
from sdk.export import parity
from sdk.export.exporter import export_model
from sdk.export.fusion import fuse
from sdk.export.quality import Choices, measured_quality
from sdk.export.weights import fitting_block, quantise
from sdk.model.decoder import Decoder
from sdk.model.manifest import Manifest


@pytest.fixture(autouse=True)
def short_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "TOKENS", 24)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("qwen2-bias", tmp_path_factory.mktemp("tied"))


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("llama", tmp_path_factory.mktemp("untied"))


@pytest.mark.parametrize("source", ["tied", "untied"])
@pytest.mark.parametrize(
    ("weights", "head_bits", "greedy"),
    [("int8", 8, 0.8), ("int4", 8, 0.2), ("int4-128", 8, 0.2), ("int4-all", 4, 0.2)],
)
def test_blocks_replace_every_matrix(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    source: str,
    weights: str,
    head_bits: int,
    greedy: float,
) -> None:
    manifest = export_model(request.getfixturevalue(source), tmp_path / "out", weights=weights)
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("MatMulNBits") == 9  # four a layer and the head
    assert operators.count("GatherBlockQuantized") == 1
    assert "MatMul" not in operators
    floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert max(np.prod(t.dims) for t in floats if "scales" not in t.name) < 320 * 64
    assert manifest.quality["greedy_agreement"] >= greedy
    head = next(node for node in graph.node if "logits" in node.output)
    assert next(a.i for a in head.attribute if a.name == "bits") == head_bits
    assert next(a.i for a in head.attribute if a.name == "block_size") == 64 * head_bits // 8


def test_tied_table_is_stored_once_in_blocks(tied: Path, tmp_path: Path) -> None:
    export_model(tied, tmp_path / "out", weights="int4")
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    tables = [t for t in graph.initializer if t.dims[:1] == [320] and np.prod(t.dims) >= 320 * 64]
    assert len(tables) == 1


def test_half_precision_keeps_keys_and_values_in_half(tied: Path, tmp_path: Path) -> None:
    manifest = export_model(tied, tmp_path / "out", weights="fp16")
    assert manifest.kv_type == "float16"
    decoder = Decoder.load(tmp_path / "out")
    rows = decoder.run(decoder.new_cache(), [1, 2, 3])
    assert rows.dtype == np.float32
    assert decoder.cache_bytes(10) == 10 * 2 * 2 * 2 * 16 * 2


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 128])
def test_quantised_weights_are_within_half_a_step(bits: int, block: int) -> None:
    weight = np.random.default_rng(0).normal(size=(256, 24)).astype(np.float32)
    packed, scales = quantise(weight, bits, block)
    assert packed.shape == (24, 256 // block, block * bits // 8)
    levels = packed.reshape(24, -1)
    if bits == 4:
        levels = np.stack([levels & 15, levels >> 4], axis=-1).reshape(24, -1)
    steps = np.repeat(scales.reshape(24, -1), block, axis=1)
    restored = (levels.astype(np.float32) - 2 ** (bits - 1)) * steps
    # the largest weight of a block may be clipped to the last level: one step, not half
    assert np.abs(restored - weight.T).max() <= 1.01 * np.abs(steps).max()
    assert np.mean(np.abs(restored - weight.T) <= 0.51 * np.abs(steps)) > 0.95


def test_block_divides_the_row() -> None:
    assert [fitting_block(w, 128) for w in (256, 960, 192, 48, 24)] == [128, 64, 64, 16, 16]


def test_quality_is_measured_against_a_target(
    tied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_model(tied, tmp_path / "target")
    arguments = ["--model", str(tied), "--out", str(tmp_path / "out"), "--weights", "int4-128"]
    assert main(["model", "export", *arguments, "--target", str(tmp_path / "target")]) == 0
    quality = Manifest.load(tmp_path / "out").quality
    assert quality["coupled_acceptance_before"] == 1.0  # the target is the model itself
    assert quality["coupled_acceptance_after"] == quality["coupled_agreement"] < 0.97
    assert "lower this drafter's acceptance" in capsys.readouterr().err


def test_target_of_another_tokenizer_is_refused(tied: Path, untied: Path, tmp_path: Path) -> None:
    export_model(untied, tmp_path / "target")
    (tmp_path / "target" / "manifest.json").write_text(
        (tmp_path / "target" / "manifest.json")
        .read_text()
        .replace(Manifest.load(tmp_path / "target").tokenizer_hash, "0" * 64)
    )
    with pytest.raises(ExportError, match="another tokenizer"):
        export_model(tied, tmp_path / "out", weights="int8", target=tmp_path / "target")


def test_quality_counts_equal_choices() -> None:
    def chosen(greedy: list[int], coupled: list[int]) -> Choices:
        return Choices(greedy=np.array(greedy), coupled=np.array(coupled))

    found = measured_quality(
        chosen([1, 2, 3, 4], [1, 1, 1, 1]),
        chosen([1, 2, 3, 9], [1, 1, 2, 2]),
        chosen([1, 2, 9, 9], [2, 2, 2, 1]),
    )
    assert found == {
        "tokens": 4.0,
        "greedy_agreement": 0.75,
        "coupled_agreement": 0.5,
        "greedy_acceptance_before": 0.5,
        "greedy_acceptance_after": 0.75,
        "coupled_acceptance_before": 0.25,
        "coupled_acceptance_after": 0.25,
    }


def test_fusing_twice_changes_nothing(tied: Path, tmp_path: Path) -> None:
    export_model(tied, tmp_path / "out")
    model = onnx.load(tmp_path / "out" / "model.onnx")
    before = [node.op_type for node in model.graph.node]
    assert before.count("SkipSimplifiedLayerNormalization") == 4
    fuse(model)
    assert [node.op_type for node in model.graph.node] == before
