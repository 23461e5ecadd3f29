"""With fixed shapes, a row's logits have the same bits whoever shares its pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra 'torch'")

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_checkpoints import FAMILIES, VOCABULARY, plain_logits, save_checkpoint

from edge_server.verifier.torch_attention import FIXED_ROWS, FIXED_SPAN_ROWS
from edge_server.verifier.torch_model import TorchModel, fixed_passes
from edge_server.verifier.torch_segments import Segment, Span
from models.registry import pair_dir


def random_ids(seed: int, count: int, vocabulary: int) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, vocabulary, count).tolist()
    return ids


@given(rows=st.lists(st.integers(1, 150), min_size=1, max_size=12))
def test_spans_are_cut_into_passes_without_losing_a_row(rows: list[int]) -> None:
    spans = [Span(1000 * index, index, count) for index, count in enumerate(rows)]
    passes = fixed_passes(spans)
    pieces = [piece for own in passes for piece in own]
    assert all(1 <= piece.rows <= FIXED_SPAN_ROWS for piece in pieces)
    assert all(sum(piece.rows for piece in own) <= FIXED_ROWS for own in passes)
    flat = [(p.place, position) for p in pieces for position in range(p.past, p.length)]
    assert flat == [(s.place, position) for s in spans for position in range(s.past, s.length)]


@pytest.mark.parametrize("family", FAMILIES)
def test_fixed_shapes_change_nothing_but_bits(family: str, tmp_path: Path) -> None:
    folder = save_checkpoint(family, tmp_path)
    model = TorchModel.load(folder, device="cpu", kv_memory_mib=4, invariant=True)
    ids = random_ids(0, 40, VOCABULARY)
    logits = model.run([Span(7, 0, len(ids))], ids, range(len(ids)))
    np.testing.assert_allclose(logits, plain_logits(folder, ids), atol=1e-4)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_no_bit_depends_on_company_or_on_how_a_text_was_fed(dtype: str, threads: int) -> None:
    model = TorchModel.load(
        pair_dir("target"), device="cpu", dtype=dtype, kv_memory_mib=64, invariant=True
    )
    length, count = 60, 9
    texts = [random_ids(seed, length, model.vocabulary_size) for seed in range(count)]
    segments = [Segment(index * 70, 70) for index in range(count)]
    whole = [
        model.run([segment.span(length)], text, range(length))
        for segment, text in zip(segments, texts, strict=True)
    ]
    generator = np.random.default_rng(4)
    while any(segment.length < length for segment in segments):
        group = [n for n in generator.permutation(count) if segments[n].length < length]
        group = group[: int(generator.integers(1, count + 1))]
        spans, ids, expected = [], [], []
        for number in group:
            segment = segments[number]
            rows = min(int(generator.integers(1, 10)), length - segment.length)
            spans.append(segment.span(rows))
            ids += texts[number][segment.length :][:rows]
            expected.append(whole[number][segment.length :][:rows])
            segment.length += rows
        assert np.array_equal(model.run(spans, ids, range(len(ids))), np.concatenate(expected))
