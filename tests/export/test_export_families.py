"""Every supported family: the exported graph computes what the source model computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("optimum.exporters.onnx", reason="needs the extra 'export'")

import onnx
import torch
from export_families import FAMILIES, save_checkpoint
from transformers import AutoModelForCausalLM

from sdk.export.exporter import export_model
from sdk.model.decoder import Decoder
from sdk.model.manifest import Manifest


@pytest.fixture(scope="module", params=FAMILIES)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A checkpoint of one family and its export."""
    source = save_checkpoint(request.param, tmp_path_factory.mktemp(request.param))
    out = source.parent / f"{source.name}-exported"
    export_model(source, out)
    return source, out


def test_graph_equals_source(exported: tuple[Path, Path]) -> None:
    # Not the exporter's own comparison, and past the sliding windows of the families that have one.
    source, out = exported
    decoder = Decoder.load(out, threads=1)
    text = np.random.default_rng(3).integers(0, decoder.vocabulary_size, 300)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager")
        expected = model(torch.from_numpy(text)[None]).logits[0].numpy()
    cache = decoder.new_cache()
    pieces = [text[:200], text[200:201], text[201:206], text[206:]]
    rows = np.concatenate([decoder.run(cache, piece) for piece in pieces])
    assert np.abs(rows - expected).max() < 2e-4 * max(1.0, np.abs(expected).max())


def test_a_sliding_window_is_in_the_manifest(exported: tuple[Path, Path]) -> None:
    """Older runtimes attend to the wrong keys then (`sdk.model.runtime`)."""
    windowed = exported[0].name.startswith(("mistral-window", "gemma2", "gemma3"))
    assert Manifest.load(exported[1]).windowed == windowed


def test_graph_is_fused(exported: tuple[Path, Path]) -> None:
    operators = [node.op_type for node in onnx.load(exported[1] / "model.onnx").graph.node]
    assert operators.count("GroupQueryAttention") == 2
    assert not {"Shape", "Softmax", "ReduceMean", "Cos", "Concat", "Unsqueeze"} & set(operators)
