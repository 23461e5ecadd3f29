"""Runs the rows of several sequences through an exported decoder in one call.

Each sequence takes a lane of a graph that is derived from the decoder's own (`onnx_graph`). Its
cache stays bound to that lane for as long as nobody else needs it, because binding costs time.
A sequence's logits have the same bits as from `Decoder.run`; `Lanes.load` tries this and offers
nothing where it does not hold. Knows nothing of drafts or acceptance.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge_server.verifier.onnx_graph import with_lanes
from sdk.errors import first_line
from sdk.model.decoder import (
    PROVIDERS,
    Decoder,
    KvCache,
    default_threads,
    ortvalue,
    session_options,
)
from sdk.model.manifest import GRAPH_NAME

__all__ = ["Lanes", "Part"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence's rows in a call: the ids that follow its cache, and how many of the last ones
    are scored."""

    cache: KvCache
    token_ids: Sequence[int]
    score: int


class Lanes:
    """As many sequences side by side as the graph has lanes. One thread at a time."""

    def __init__(self, *, decoder: Decoder, session: Any, count: int) -> None:
        """Bind every lane to a cache that nobody reads; the decoder must be batch-invariant."""
        self.count = count
        self._decoder = decoder
        self._session = session
        self._binding = session.io_binding()
        self._nobody = decoder.new_cache(capacity=1)
        self._caches = [self._nobody] * count  # by lane
        self._last_used = [0] * count
        self._calls = 0
        self._seqlens = [np.zeros(1, np.int32) for _ in range(count)]
        self._totals = [np.zeros((), np.int32) for _ in range(count)]
        for lane in range(count):
            self._bind_input(f"seqlens_k.{lane}", self._seqlens[lane])
            self._bind_input(f"total_sequence_length.{lane}", self._totals[lane])
            self._bind(lane, self._nobody)

    @classmethod
    def load(
        cls, folder: Path, *, decoder: Decoder, count: int, threads: int | None = None
    ) -> Lanes | None:
        """Load the folder's graph, with `count` lanes, a second time beside `decoder`.

        Returns None, with a warning in the log, where the graph cannot be derived or does not give
        the decoder's own bits on this machine.
        """
        options = session_options(threads or default_threads())
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
        try:
            graph = with_lanes(
                (folder / GRAPH_NAME).read_bytes(), lanes=count, manifest=decoder.manifest
            )
            session = onnxruntime.InferenceSession(
                graph, sess_options=options, providers=[PROVIDERS["cpu"]]
            )
            lanes = cls(decoder=decoder, session=session, count=count)
            exact = lanes._is_exact()
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            reason = first_line(error)
            log.warning("verifier: sessions run one by one, not together (%s)", reason)
            return None
        if not exact:
            log.warning("verifier: sessions run one by one: together, their logits differ in bits")
            return None
        return lanes

    def run(self, parts: Sequence[Part]) -> list[NDArray[np.float32]]:
        """Feed every part's ids and return the logits of its last rows, [score, vocabulary] each.

        Raises ValueError for more parts than lanes, a cache named twice, and whatever `Decoder.run`
        refuses; nothing has changed then.
        """
        ids = [np.ascontiguousarray(part.token_ids, np.int64) for part in parts]
        for part, own in zip(parts, ids, strict=True):
            self._decoder.check(part.cache, own, part.score)
        by_lane = dict(
            zip(self._assign([part.cache for part in parts]), range(len(parts)), strict=True)
        )
        rows = np.concatenate(ids)
        ends = list(accumulate(len(own) for own in ids))
        expand, split, places = self._attended(by_lane, ends, [len(own) for own in ids])
        scored = [np.arange(end - part.score, end) for end, part in zip(ends, parts, strict=True)]
        logits = self._call(rows, expand, split, places, np.concatenate(scored))
        for part, own in zip(parts, ids, strict=True):
            part.cache.length += len(own)
        return np.split(logits, list(accumulate(part.score for part in parts))[:-1])

    def release(self, cache: KvCache) -> None:
        """Let go of a cache's memory."""
        for lane, held in enumerate(self._caches):
            if held is cache:
                self._bind(lane, self._nobody)
                self._last_used[lane] = 0

    def _attended(
        self, by_lane: dict[int, int], ends: list[int], counts: list[int]
    ) -> tuple[list[int], list[int], NDArray[np.int64]]:
        """Return `expand`, `split` and `contract`, and set every lane's lengths.

        A lone row attends twice, because attention computes a lone row by other instructions. A
        lane without rows attends to some row of another, at the place behind its last token, which
        its own next token overwrites.
        """
        expand, split = list[int](), list[int]()
        contract = np.empty(ends[-1], np.int64)
        for lane, cache in enumerate(self._caches):
            first, own = 0, [0]
            if lane in by_lane:
                part = by_lane[lane]
                first, end = ends[part] - counts[part], ends[part]
                own = list(range(first, end)) if counts[part] > 1 else [first, first]
                contract[first:end] = range(len(expand), len(expand) + counts[part])
            expand += own
            split.append(len(own))
            self._seqlens[lane][0] = cache.length + len(own) - 1
            self._totals[lane][()] = cache.length + len(own)
        return expand, split, contract

    def _call(
        self,
        rows: NDArray[np.int64],
        expand: list[int],
        split: list[int],
        contract: NDArray[np.int64],
        scored: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        if len(rows) == 1:  # matrix products, too, compute a lone row by other instructions
            rows, contract = np.repeat(rows, 2), np.repeat(contract, 2)
        logits = np.empty((len(scored), self._decoder.vocabulary_size), np.float32)
        inputs = {
            "input_ids": rows[None],
            "expand": np.array(expand),
            "split": np.array(split),
            "contract": contract,
            "rows_to_score": scored,
        }
        values = {
            name: ortvalue(array) for name, array in inputs.items()
        }  # kept until after it ran
        found = ortvalue(logits[None])
        for name, value in values.items():
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output("logits", found)
        self._session.run_with_iobinding(self._binding)
        return logits

    def _assign(self, caches: Sequence[KvCache]) -> list[int]:
        """Return a lane for every cache: the one that has it, else the one unused for longest."""
        if len(caches) > self.count or len({id(cache) for cache in caches}) != len(caches):
            raise ValueError(f"a call takes up to {self.count} caches, each once")
        self._calls += 1
        held = {id(cache): lane for lane, cache in enumerate(self._caches)}
        taken = {held[id(cache)] for cache in caches if id(cache) in held}
        free = sorted(set(range(self.count)) - taken, key=self._last_used.__getitem__)
        assigned = []
        for cache in caches:
            lane = held.get(id(cache))
            if lane is None:
                lane = free.pop(0)
                self._bind(lane, cache)
            self._last_used[lane] = self._calls
            assigned.append(lane)
        return assigned

    def _bind(self, lane: int, cache: KvCache) -> None:
        self._caches[lane] = cache
        for (layer, part), buffer in cache.buffers.items():
            self._binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}.{lane}", buffer)
            self._binding.bind_ortvalue_output(f"present.{layer}.{part}.{lane}", buffer)

    def _bind_input(self, name: str, array: NDArray[Any]) -> None:
        self._binding.bind_ortvalue_input(name, ortvalue(array))

    def _is_exact(self) -> bool:
        """Return whether a few calls give the bits that the decoder gives for each sequence."""
        generator = np.random.default_rng(0)
        longest = max(self._decoder.context_length // 2, 1)
        pasts = [min(1 + 37 * index, longest) for index in range(min(self.count, 4))]
        caches = [self._decoder.new_cache() for _ in pasts]
        vocabulary = self._decoder.vocabulary_size
        for cache, past in zip(caches, pasts, strict=True):
            self._decoder.run(cache, generator.integers(0, vocabulary, past), score=1)
        exact = True
        for rows in ((1, 1, 1, 1), (1, 5, 2, 9), (7, 1, 3, 1)):
            parts = [
                Part(cache, generator.integers(0, vocabulary, count).tolist(), count)
                for cache, count in zip(caches, rows, strict=False)
                if cache.length + count <= cache.capacity
            ]
            together = self.run(parts)
            for part, got in zip(parts, together, strict=True):
                part.cache.rollback(part.cache.length - len(part.token_ids))
                alone = self._decoder.run(part.cache, part.token_ids)
                exact = exact and np.array_equal(alone, got)
        for cache in caches:
            self.release(cache)
        return exact
