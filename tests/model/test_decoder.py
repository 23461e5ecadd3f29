"""The decoder on a real exported graph: cache arithmetic, scoring, isolation, refusals."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("optimum.exporters.onnx", reason="needs the extra 'export'")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from models.registry import pair_dir
from sdk.errors import ModelLoadError
from sdk.export.exporter import export_model
from sdk.model import decoder as decoder_module
from sdk.model.decoder import CHUNK_ROWS, Decoder, default_threads
from sdk.model.manifest import Manifest

CONTEXT = 700
VOCABULARY = 97


@pytest.fixture(scope="module", params=["float", "int8"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported Llama with random weights whose head is wider than one SIMD block, by KV type."""
    source = save_llama(tmp_path_factory.mktemp("llama"), hidden_size=64, intermediate_size=112)
    export_model(source, source, kv=request.param)
    return source


def save_llama(source: Path, *, hidden_size: int, intermediate_size: int) -> Path:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(source)
    (source / "tokenizer.json").write_text("{}")
    return source


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return Decoder.load(folder, threads=2, batch_invariant=True)


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, CONTEXT)


@pytest.fixture(scope="module")
def rows(decoder: Decoder, text: np.ndarray) -> np.ndarray:
    """Logits after every token of `text`, from one call."""
    return decoder.run(decoder.new_cache(), text)


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_any_sequence_of_runs_and_rollbacks_equals_one_call(
    decoder: Decoder, text: np.ndarray, rows: np.ndarray, steps: list[tuple[int, int]]
) -> None:
    cache = decoder.new_cache(capacity=200)
    for count, back in steps:
        start = cache.length
        got = decoder.run(cache, text[start : start + count])
        assert np.array_equal(got, rows[start : start + count])
        decoder.run(cache, [5] * back if back else [5])  # wrong tokens, then forgotten
        cache.rollback(max(start + count - back, 0))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("context", [1, 15, 64, 130, 333])
def test_rows_do_not_depend_on_their_company_to_the_bit(
    folder: Path, text: np.ndarray, rows: np.ndarray, threads: int, context: int
) -> None:
    decoder = Decoder.load(folder, threads=threads, batch_invariant=True)
    cache = decoder.new_cache()
    decoder.run(cache, text[:context], score=1)
    for count in range(1, 10):
        cache.rollback(context)
        got = decoder.run(cache, text[context : context + count])
        assert np.array_equal(got, rows[context : context + count]), f"{count} rows"


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_rows_of_quantised_weights_do_not_depend_on_their_company(
    weights: str, tmp_path: Path, text: np.ndarray
) -> None:
    """Several blocks a row: in larger ones, a call's number of rows would decide the last bits."""
    source = save_llama(tmp_path / "source", hidden_size=192, intermediate_size=512)
    export_model(source, tmp_path / "out", weights=weights)
    decoder = Decoder.load(tmp_path / "out", threads=2, batch_invariant=True)
    expected = decoder.run(decoder.new_cache(), text[:72])
    for count in range(1, 10):
        cache = decoder.new_cache()
        cut = [decoder.run(cache, text[at : at + count]) for at in range(0, 72 - count, count)]
        found = np.concatenate(cut)
        assert np.array_equal(found, expected[: len(found)]), f"{count} rows a call"


def test_without_the_option_a_lone_row_is_only_close_unless_its_past_is_in_8_bits(
    folder: Path, text: np.ndarray, rows: np.ndarray
) -> None:
    decoder = Decoder.load(folder, threads=1)
    cache = decoder.new_cache()
    lone = np.concatenate([decoder.run(cache, text[i : i + 1]) for i in range(100)])
    exact = decoder.manifest.kv_type == "int8"  # there, both take the same path
    np.testing.assert_allclose(lone, rows[:100], rtol=0, atol=0.0 if exact else 1e-4)


def test_last_position_of_the_context_can_be_a_lone_row(
    decoder: Decoder, text: np.ndarray, rows: np.ndarray
) -> None:
    cache = decoder.new_cache()
    decoder.run(cache, text[:-1], score=1)
    assert np.array_equal(decoder.run(cache, text[-1:]), rows[-1:])
    assert cache.length == cache.capacity == CONTEXT
    with pytest.raises(ValueError, match="do not fit"):
        decoder.run(cache, [1])


@pytest.mark.parametrize("score", [1, 2, CONTEXT - CHUNK_ROWS, CONTEXT - 1])
def test_score_returns_the_last_rows_also_over_chunks(
    decoder: Decoder, text: np.ndarray, rows: np.ndarray, score: int
) -> None:
    cache = decoder.new_cache()
    assert np.array_equal(decoder.run(cache, text, score=score), rows[-score:])
    assert cache.length == CONTEXT


def test_returned_rows_outlive_later_runs_and_the_cache(decoder: Decoder, rows: np.ndarray) -> None:
    cache = decoder.new_cache()
    first = decoder.run(cache, [1, 2, 3])
    copy = first.copy()
    decoder.run(cache, [4, 5, 6])
    del cache
    gc.collect()
    assert np.array_equal(first, copy)


def test_caches_and_decoders_do_not_share_state(folder: Path, decoder: Decoder) -> None:
    other = Decoder.load(folder, threads=1, batch_invariant=True)
    caches = [decoder.new_cache(capacity=50), decoder.new_cache(), other.new_cache(capacity=31)]
    owners = [decoder, decoder, other]
    texts = [np.random.default_rng(i).integers(0, VOCABULARY, 30) for i in range(3)]
    expected = [decoder.run(decoder.new_cache(), t) for t in texts]
    for step in range(0, 30, 3):
        for owner, cache, t, want in zip(owners, caches, texts, expected, strict=True):
            got = owner.run(cache, t[step : step + 3])
            assert np.array_equal(got, want[step : step + 3])


def test_rollback_is_bounded(decoder: Decoder) -> None:
    cache = decoder.new_cache()
    decoder.run(cache, [1, 2, 3])
    for length in (-1, 4):
        with pytest.raises(ValueError, match="rollback"):
            cache.rollback(length)
    assert cache.length == 3


@pytest.mark.parametrize(
    ("ids", "score"),
    [([], None), ([-1], None), ([VOCABULARY], None), ([[1, 2]], None), ([1], 2), ([1], 0)],
)
def test_impossible_runs_are_refused_and_change_nothing(
    decoder: Decoder, ids: list[int], score: int | None
) -> None:
    cache = decoder.new_cache(capacity=4)
    with pytest.raises(ValueError, match=r"token ids|score"):
        decoder.run(cache, ids, score=score)
    assert cache.length == 0


def test_capacity_is_bounded_by_the_context(decoder: Decoder) -> None:
    for capacity in (0, CONTEXT + 1):
        with pytest.raises(ValueError, match="capacity"):
            decoder.new_cache(capacity=capacity)
    # two layers of keys and values, two heads of 16, and the dummy row
    element_bytes = {"float32": 4, "int8": 1}[decoder.manifest.kv_type]
    assert decoder.cache_bytes(9) == 10 * 2 * 2 * 2 * 16 * element_bytes
    buffers = decoder.new_cache(capacity=9).buffers.values()
    assert decoder.cache_bytes(9) == sum(buffer.numpy().nbytes for buffer in buffers)


@pytest.mark.parametrize(
    ("change", "version", "told"),
    [
        ({}, "1.20.0", ""),
        ({"kv_type": "int8"}, "1.26.0", r"8 bits.*onnxruntime 1\.26\.0 is too old.*to 1\.27"),
        ({"kv_type": "int8"}, "1.27.0", ""),
        ({"windowed": True}, "1.23.2", r"window.*to 1\.24"),
        ({"windowed": True}, "1.100.0", ""),
        ({"weights": "int4-all"}, "1.22.1", r"int4-all weights.*to 1\.23"),
        ({"weights": "int8"}, "1.23.0", ""),
    ],
)
def test_a_runtime_too_old_for_a_model_is_one_line(
    tmp_path: Path,
    change: dict[str, Any],
    version: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = replace(Manifest.load(pair_dir("drafter")), **change)
    manifest.write(tmp_path)
    monkeypatch.setattr("onnxruntime.__version__", version)
    with pytest.raises(
        ModelLoadError, match=told or "cannot be run"
    ) as caught:  # there is no graph
        Decoder.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_bound_lives_until_the_call_is_over(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older runtimes keep no hold of it and would read memory that is somebody else's by then."""
    values: list[weakref.ref[Any]] = []
    wrap, run = decoder_module.ortvalue, decoder._session.run_with_iobinding

    def noted(*args: Any) -> Any:
        value = wrap(*args)
        values.append(weakref.ref(value))
        return value

    def checked(binding: Any) -> None:
        gc.collect()
        assert all(value() is not None for value in values)
        run(binding)

    monkeypatch.setattr(decoder_module, "ortvalue", noted)
    cache = decoder.new_cache(capacity=8)
    values.clear()  # of these the arrays are kept, by decoder and cache
    monkeypatch.setattr(decoder, "_session", SimpleNamespace(run_with_iobinding=checked))
    decoder.run(cache, [1, 2, 3])
    assert len(values) == 3


def test_unusable_folders_are_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no manifest\.json"):
        Decoder.load(tmp_path)
    (tmp_path / "manifest.json").write_bytes((folder / "manifest.json").read_bytes())
    for content in (None, b"", b"not a graph"):
        if content is not None:
            (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(ModelLoadError, match="cannot be run") as caught:
            Decoder.load(tmp_path)
        assert "\n" not in str(caught.value)


def test_absent_and_unknown_providers_are_one_line(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="not one of cpu, cuda"):
        Decoder.load(folder, provider="abacus")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ModelLoadError, match="onnxruntime-gpu"):
            Decoder.load(folder, provider="cuda")


def test_default_threads_leave_a_core_on_boards(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, threads in ((1, 1), (2, 2), (4, 3), (8, 7)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=cores: set(range(n)))
        assert default_threads() == threads
