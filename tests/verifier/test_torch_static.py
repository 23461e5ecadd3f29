"""Passes rounded up to sizes: the plain forward's rows, padding that touches nobody."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra 'torch'")
pytest.importorskip("triton", reason="comes with torch for CUDA, and with the extra 'dev'")

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch_checkpoints import FAMILIES, VOCABULARY, plain_logits, save_checkpoint

from edge_server.verifier.torch_model import TorchModel
from edge_server.verifier.torch_segments import Segment, Span
from edge_server.verifier.torch_static import StaticPass, StaticRows, size_of

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


# What a graph cannot hold: numbers that go to the host or come from it, shapes that numbers decide.
NOT_IN_A_GRAPH = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "is_nonzero")


class Operators(TorchDispatchMode):
    """Collect what torch is asked to do; a lone number becomes an argument of a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set[str]()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if not (isinstance(result, torch.Tensor) and result.dim() == 0):
            self.names.add(str(function))
        return result


@given(sizes=st.lists(st.tuples(st.integers(0, 900), st.integers(1, 40)), min_size=1, max_size=140))
def test_a_size_holds_its_pass_with_a_third_more_rows_at_most(sizes: list[tuple[int, int]]) -> None:
    size, rows = size_of([Span(0, past, own) for past, own in sizes]), sum(own for _, own in sizes)
    if size is None:
        assert len(sizes) > 128 or max(own for _, own in sizes) > 32 or rows > 512
        return
    assert rows <= size <= max(rows * 4 / 3, 3)


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
    assert not caplog.text


def one_pass(folder: Path, *, capture: bool) -> tuple[StaticPass, list[Span]]:
    model = TorchModel.load(folder, device="cpu", kv_memory_mib=4, static=True)
    rows = StaticRows(pool=model.pool, size=4, heads=4)
    return StaticPass(rows=rows, forward=model._forward_static, capture=capture), [Span(0, 17, 3)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_asks_for_nothing_that_a_graph_cannot_hold(family: str, tmp_path: Path) -> None:
    one, spans = one_pass(save_checkpoint(family, tmp_path), capture=False)
    with torch.inference_mode(), Operators() as asked:
        one.run(spans, [1, 2, 3])
        assert any("lift_fresh" in name for name in asked.names)  # the integers of the pass
        asked.names.clear()
        one._forward(one._rows)
    assert any("index_put" in name for name in asked.names)
    if not family.startswith("gemma"):  # whose norms are others
        assert any("rms_norm" in name for name in asked.names)
    found = [name for name in asked.names if any(word in name for word in NOT_IN_A_GRAPH)]
    assert not found


def test_where_no_graph_can_be_captured_the_pass_runs_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if torch.cuda.is_available():
        pytest.skip("a graph can be captured here")
    one, spans = one_pass(save_checkpoint("llama", tmp_path), capture=True)
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        first, second = (one.run(spans, [1, 2, 3]) for _ in range(2))
    assert first.shape == (3, VOCABULARY)
    assert torch.equal(first, second)
    assert caplog.text.count("run eagerly") == 1


@pytest.mark.parametrize("fault", ["missing", "wrong", "fails"])
def test_without_kernels_that_are_right_keys_are_gathered_and_the_log_says_why(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        if fault == "fails":
            raise RuntimeError("PTX was compiled with an unsupported toolchain.")
        return torch.ones_like(query)

    if fault == "missing":
        monkeypatch.setitem(sys.modules, "edge_server.verifier.torch_kernel", None)
    else:
        monkeypatch.setattr("edge_server.verifier.torch_kernel.attend_in_place", broken)
    folder = save_checkpoint("llama", tmp_path)
    with caplog.at_level(logging.WARNING):
        model = TorchModel.load(folder, device="cpu", kv_memory_mib=4, static=True, gather=True)
    reason = {"missing": "triton is missing", "wrong": "not those", "fails": "unsupported tool"}
    assert reason[fault] in caplog.text
    logits = model.run([Span(0, 0, 5)], [1, 2, 3, 4, 5], range(5))
    np.testing.assert_allclose(logits, plain_logits(folder, [1, 2, 3, 4, 5]), atol=1e-3, rtol=0)
