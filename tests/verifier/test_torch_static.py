"""Passes rounded up to buckets: the plain forward's rows, padding that touches nobody."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra 'torch'")

from hypothesis import given
from hypothesis import strategies as st
from torch_checkpoints import FAMILIES, VOCABULARY, plain_logits, save_checkpoint

from edge_server.verifier.torch_model import TorchModel
from edge_server.verifier.torch_segments import Segment, Span
from edge_server.verifier.torch_static import StaticPass, StaticRows, bucket_of

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@given(sizes=st.lists(st.tuples(st.integers(0, 900), st.integers(1, 20)), min_size=1, max_size=70))
def test_a_bucket_holds_its_pass(sizes: list[tuple[int, int]]) -> None:
    bucket = bucket_of([Span(0, past, rows) for past, rows in sizes])
    if bucket is None:
        assert len(sizes) > 64 or max(rows for _, rows in sizes) > 17 or len(sizes) > 16
        return
    assert bucket.sessions >= len(sizes)
    assert bucket.rows >= max(rows for _, rows in sizes)
    assert bucket.keys >= max(past + rows for past, rows in sizes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_equals_the_plain_forward_and_no_other_place_is_written(
    family: str, device: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_checkpoint(family, tmp_path)
    model = TorchModel.load(folder, device=device, dtype="fp32", kv_memory_mib=4, static=True)
    generator = np.random.default_rng(3)
    texts = [generator.integers(0, VOCABULARY, 60).tolist() for _ in range(5)]
    segments = [Segment(3 + 70 * index, 65) for index in range(5)]
    for step in range(6):
        group = range(5)[: 1 + step]
        rows = [1 + (step + 2 * index) % 9 for index in group]
        before = model.pool.keys.clone()
        spans = [segments[n].span(count) for n, count in zip(group, rows, strict=True)]
        ids = [
            token
            for span, n in zip(spans, group, strict=True)
            for token in texts[n][span.past : span.length]
        ]
        logits = model.run(spans, ids, range(len(ids)))
        expected = [
            plain_logits(folder, texts[n][: span.length])[span.past :]
            for span, n in zip(spans, group, strict=True)
        ]
        np.testing.assert_allclose(logits, np.concatenate(expected), atol=1e-3, rtol=0)
        changed = (model.pool.keys != before).any(dim=-1).any(dim=-1).any(dim=0).cpu()
        allowed = {model.pool.dump} | {
            span.place + position for span in spans for position in range(span.past, span.length)
        }
        assert set(changed.nonzero().flatten().tolist()) <= allowed
        for n, span in zip(group, spans, strict=True):
            segments[n].length = span.length
    assert "eagerly" not in caplog.text


def test_where_no_graph_can_be_captured_the_pass_runs_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a graph can be captured here")
    model = TorchModel.load(save_checkpoint("llama", tmp_path), device="cpu", kv_memory_mib=4)
    spans = [Segment(0, 20).span(3)]
    bucket = bucket_of(spans)
    assert bucket
    rows = StaticRows(model.pool, bucket, 2)
    one = StaticPass(rows=rows, forward=model._forward_static, capture=True)
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        first, second = (one.run(spans, [1, 2, 3]) for _ in range(2))
    assert first.shape == (3, VOCABULARY)
    assert torch.equal(first, second)
    assert caplog.text.count("runs eagerly") == 1
