"""`multispin bench draft` on a real graph: its keys, its sums, its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("optimum.exporters.onnx", reason="needs the extra 'export'")

from transformers import LlamaConfig, LlamaForCausalLM

from sdk.cli import main
from sdk.export.exporter import export_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("bench")
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(source)
    (source / "tokenizer.json").write_text("{}")
    export_model(source, source, weights="int8")
    return source


def test_json_line_has_the_agreed_keys(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--context", "40", "--tokens", "24", "--threads", "1", "--json"]
    assert main(["bench", "draft", "--model", str(folder), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    agreed = {"ms_per_token", "prefill_ms", "peak_mb", "threads", "context", "weights", "provider"}
    assert agreed | {"first_token_ms", "kv_type"} <= set(found)
    assert found["first_token_ms"] > found["prefill_ms"]
    assert (found["context"], found["threads"], found["weights"]) == (40, 1, "int8")
    assert found["ms_per_token"] > 0 < found["prefill_ms"]
    assert found["peak_mb"] > 20  # a Python with numpy and onnxruntime


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--context", "60"], "exceed this model's context of 64"), (["--tokens", "0"], "at least 1")],
)
def test_impossible_measurements_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["bench", "draft", "--model", str(folder), *options]) == 2
    assert message in capsys.readouterr().err
