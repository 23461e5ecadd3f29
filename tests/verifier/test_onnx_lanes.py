"""Several sessions in one ONNX call: the same bits as one by one, whoever shares the call."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("optimum.exporters.onnx", reason="needs the extra 'export'")

import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_checkpoints import FAMILIES, VOCABULARY, save_checkpoint

from edge_server.verifier.interface import VerifyRequest
from edge_server.verifier.onnx import OnnxVerifier
from edge_server.verifier.onnx_graph import with_lanes
from edge_server.verifier.onnx_lanes import Lanes, Part
from models.registry import pair_dir
from sdk.export.exporter import export_model
from sdk.model.decoder import Decoder
from sdk.model.sampling import SamplingParameters

LANES = 4


@pytest.fixture(scope="module")
def target() -> Path:
    return pair_dir("target")


@pytest.fixture(scope="module")
def decoder(target: Path) -> Decoder:
    return Decoder.load(target, threads=1, batch_invariant=True)


@pytest.fixture(scope="module")
def lanes(target: Path, decoder: Decoder) -> Lanes:
    loaded = Lanes.load(target, decoder=decoder, count=LANES, threads=1)
    assert loaded
    return loaded


def random_ids(seed: int, count: int, vocabulary: int) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, vocabulary, count).tolist()
    return ids


@settings(max_examples=25, deadline=None)
@given(
    calls=st.lists(
        st.dictionaries(st.integers(0, 6), st.integers(1, 9), min_size=1, max_size=LANES),
        min_size=1,
        max_size=8,
    ),
    seed=st.integers(0, 2**16),
)
def test_any_calls_over_more_caches_than_lanes_give_the_bits_of_one_by_one(
    decoder: Decoder, lanes: Lanes, calls: list[dict[int, int]], seed: int
) -> None:
    texts = [random_ids(seed + number, 80, decoder.vocabulary_size) for number in range(7)]
    together = [decoder.new_cache(capacity=80) for _ in texts]
    alone = [decoder.new_cache(capacity=80) for _ in texts]
    for rows in calls:
        parts = [
            Part(cache := together[number], texts[number][cache.length :][:count], count)
            for number, count in rows.items()
            if together[number].length + count <= 80
        ]
        for number, part, got in zip(rows, parts, lanes.run(parts), strict=False):
            assert np.array_equal(got, decoder.run(alone[number], part.token_ids))
            back = part.cache.length - seed % (len(part.token_ids) + 1)
            part.cache.rollback(back)
            alone[number].rollback(back)
    for cache in together:
        lanes.release(cache)


@pytest.mark.parametrize(
    ("weights", "kv"), [("fp32", "float"), ("int8", "float"), ("int4", "int8")]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_weight_type_runs_together(
    family: str, weights: str, kv: str, tmp_path: Path
) -> None:
    source = save_checkpoint(family, tmp_path / "source")
    export_model(source, tmp_path / "out", weights=weights, kv=kv)
    decoder = Decoder.load(tmp_path / "out", threads=1, batch_invariant=True)
    lanes = Lanes.load(tmp_path / "out", decoder=decoder, count=3, threads=1)
    assert lanes, "refused: see the log"
    caches = [decoder.new_cache() for _ in range(6)]
    for step in range(3):
        ids = [random_ids(10 * step + lane, 1 + 3 * lane, VOCABULARY) for lane in range(3)]
        parts = [Part(c, own, len(own)) for c, own in zip(caches[:3], ids, strict=True)]
        for cache, own, got in zip(caches[3:], ids, lanes.run(parts), strict=True):
            assert np.array_equal(got, decoder.run(cache, own))


def test_a_full_cache_can_stand_idle(decoder: Decoder, lanes: Lanes) -> None:
    full, other = decoder.new_cache(capacity=5), decoder.new_cache(capacity=50)
    lanes.run([Part(full, [1, 2, 3, 4, 5], 1), Part(other, [1], 1)])
    assert full.length == full.capacity
    alone = decoder.new_cache(capacity=50)
    decoder.run(alone, [1])
    (got,) = lanes.run([Part(other, [7], 1)])
    assert np.array_equal(got, decoder.run(alone, [7]))
    full.rollback(3)
    (got,) = lanes.run([Part(full, [4, 5], 2)])
    alone = decoder.new_cache(capacity=5)
    assert np.array_equal(got, decoder.run(alone, [1, 2, 3, 4, 5])[-2:])


def test_impossible_calls_are_refused_and_change_nothing(decoder: Decoder, lanes: Lanes) -> None:
    caches = [decoder.new_cache(capacity=4) for _ in range(LANES + 1)]
    whole = Part(caches[0], [1], 1)
    for parts in (
        [Part(cache, [1], 1) for cache in caches],
        [whole, whole],
        [whole, Part(caches[1], [], 1)],
        [whole, Part(caches[1], [1, 2, 3, 4, 5], 1)],
        [whole, Part(caches[1], [-1], 1)],
        [whole, Part(caches[1], [1], 2)],
    ):
        with pytest.raises(ValueError, match=r"caches|token|score"):
            lanes.run(parts)
    assert all(cache.length == 0 for cache in caches)


def test_a_graph_without_these_bits_is_not_used(
    target: Path, decoder: Decoder, caplog: pytest.LogCaptureFixture
) -> None:
    other = Decoder.load(target, threads=1, batch_invariant=False)  # a lone row differs
    with caplog.at_level(logging.WARNING):
        assert Lanes.load(target, decoder=other, count=2, threads=1) is None
    assert "differ in bits" in caplog.text


@pytest.mark.parametrize("cut", [0, 1, 1000, -1])
def test_a_damaged_graph_is_refused(target: Path, decoder: Decoder, cut: int) -> None:
    model = (target / "model.onnx").read_bytes()
    with pytest.raises(ValueError, match=r"ONNX|graph"):
        with_lanes(model[:cut], lanes=2, manifest=decoder.manifest)


def test_the_derived_graph_is_one_that_onnx_accepts(target: Path, decoder: Decoder) -> None:
    onnx = pytest.importorskip("onnx")
    graph = with_lanes((target / "model.onnx").read_bytes(), lanes=3, manifest=decoder.manifest)
    model = onnx.load_from_string(graph)
    attention = [n for n in model.graph.node if n.op_type == "GroupQueryAttention"]
    assert len(attention) == 3 * decoder.manifest.layers
    assert len({name for node in model.graph.node for name in node.output if name}) == sum(
        1 for node in model.graph.node for name in node.output if name
    )
    onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("sampling", [SamplingParameters(), SamplingParameters(temperature=1.0)])
def test_the_verifier_says_the_same_with_and_without_lanes(
    target: Path, sampling: SamplingParameters
) -> None:
    verifiers = [
        OnnxVerifier.load(target, threads=1, max_sessions=11, lanes=count) for count in (1, 4)
    ]
    slots = [
        [one.open(parameters=sampling, max_tokens=200) for _ in range(11)] for one in verifiers
    ]
    for one, own in zip(verifiers, slots, strict=True):
        for number, slot in enumerate(own):
            one.prefill(slot, random_ids(number, 20 + number, one.vocabulary_size))
    pending = [[5] for _ in range(11)]
    for step in range(4):
        drafts = [random_ids(step, (number + step) % 5, 4096) for number in range(11)]
        outcomes = [
            one.verify(
                [
                    VerifyRequest(slot=slot, pending=tuple(p), draft=tuple(d))
                    for slot, p, d in zip(own, pending, drafts, strict=True)
                ]
            )
            for one, own in zip(verifiers, slots, strict=True)
        ]
        assert outcomes[0] == outcomes[1]
        pending = [[outcome.token] for outcome in outcomes[0]]
    twice = VerifyRequest(slot=slots[1][0], pending=(1,))
    with pytest.raises(ValueError, match="only be named once"):
        verifiers[1].verify([twice, twice])
    for slot in slots[1]:
        verifiers[1].close(slot)


def test_a_machine_without_memory_refuses_a_session_and_lives_on(target: Path) -> None:
    program = f"""
import resource
from pathlib import Path
from edge_server.verifier.onnx import OnnxVerifier
from edge_server.verifier.interface import VerifyRequest
from sdk.errors import CapacityError
from sdk.model.sampling import SamplingParameters
one = OnnxVerifier.load(Path({str(target)!r}), threads=1, max_sessions=10**6, kv_memory_mib=10**6)
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
slots = []
try:
    while True:
        slots.append(one.open(parameters=SamplingParameters(), max_tokens=1024))
except CapacityError as error:
    assert "--kv-memory" in str(error)
one.close(slots.pop())
slots.append(one.open(parameters=SamplingParameters(), max_tokens=512))
assert len(one.verify([VerifyRequest(slot=slot, pending=(1,)) for slot in slots[-3:]])) == 3
print("alive")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "alive\n", done.stderr
