"""A verify pass in static shapes: what a CUDA graph can be captured of, and runs eagerly elsewhere.

Sessions, rows of each and keys of each are rounded up to a bucket. Rows that pad write to the
pool's dump places; keys that pad are masked. All that differs between two passes of a bucket is one
tensor of integers, filled by one copy. Knows nothing of drafts or acceptance.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from edge_server.verifier.torch_attention import KvPool, grouped
from edge_server.verifier.torch_segments import Span

__all__ = ["Bucket", "StaticPass", "StaticRows", "bucket_of"]

_SESSIONS = (1, 2, 4, 8, 16, 32, 64)
_ROWS = (1, 2, 3, 5, 9, 17)
_LEAST_KEYS = 256
_MOST_ROWS = 512  # of all sessions; more is prefill, which runs in its own shapes
_WARM_UPS = 2  # torch asks for runs before a capture: libraries allocate in them
_LEAST_FREE = 1 / 16  # of the card's memory: with less, no more graphs
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Shape of a pass: sessions, rows of each, keys that each may see."""

    sessions: int
    rows: int
    keys: int

    @property
    def all_rows(self) -> int:
        """Rows of the whole pass."""
        return self.sessions * self.rows


def bucket_of(spans: Sequence[Span]) -> Bucket | None:
    """Return the least bucket that holds a pass; None where there is none."""
    most_rows = max(span.rows for span in spans)
    sessions = next((size for size in _SESSIONS if size >= len(spans)), None)
    rows = next((size for size in _ROWS if size >= most_rows), None)
    if sessions is None or rows is None or sessions * rows > _MOST_ROWS:
        return None
    keys = _LEAST_KEYS
    while keys < max(span.length for span in spans):
        keys *= 2
    return Bucket(sessions, rows, keys)


@dataclass
class StaticRows:
    """Where the rows of a pass belong, as views of one tensor that every pass fills anew."""

    pool: KvPool
    bucket: Bucket
    group: int
    packed: Tensor = field(init=False)
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, sessions = self.bucket.all_rows, self.bucket.sessions
        device = self.pool.keys.device
        self.packed = torch.zeros(3 * rows + 2 * sessions, dtype=torch.int64, device=device)
        sizes = [rows, rows, rows, sessions, sessions]
        self.token_ids, self.positions, self.places, starts, last = torch.split(self.packed, sizes)
        self._starts, self._last = starts[:, None], last[:, None]
        self._steps = torch.arange(self.bucket.keys, device=device)

    def fill(self, spans: Sequence[Span], token_ids: Sequence[int]) -> None:
        """Say what the next pass is about."""
        rows, dump = self.bucket.rows, self.pool.dump
        ids, positions, places = list[int](), list[int](), list[int]()
        starts, last = list[int](), list[int]()
        first = 0
        for span in spans:
            padding = rows - span.rows
            ids += [*token_ids[first : first + span.rows], *[0] * padding]
            positions += [*range(span.past, span.length), *[span.length - 1] * padding]
            places += [*range(span.place + span.past, span.place + span.length), *[dump] * padding]
            starts.append(span.place)
            last.append(span.length - 1)
            first += span.rows
        spare = self.bucket.sessions - len(spans)
        ids += [0] * (spare * rows)
        positions += [0] * (spare * rows)
        places += [dump] * (spare * rows)
        starts += [dump] * spare
        last += [0] * spare
        self.packed.copy_(torch.tensor([*ids, *positions, *places, *starts, *last]))

    def begin(self) -> None:
        """Forget what was computed from the last pass's integers."""
        self._masks.clear()

    def attend(
        self, layer: int, query: Tensor, *, scale: float | None, window: int | None
    ) -> Tensor:
        """Return what every row attends to, [rows, heads, head_dim]; the new keys are in place."""
        padded = self._starts + torch.minimum(self._steps[None], self._last)  # [sessions, keys]
        folded = query.view(self.bucket.sessions, self.bucket.rows, *query.shape[1:])
        keys, values = self.pool.keys[layer][padded], self.pool.values[layer][padded]
        return grouped(folded, keys, values, self._mask(window), scale).reshape(query.shape)

    def _mask(self, window: int | None) -> Tensor:
        if window not in self._masks:
            positions = self.positions.view(self.bucket.sessions, 1, self.bucket.rows, 1)
            mask = self._steps <= positions
            if window is not None:
                mask = mask & (self._steps > positions - window)
            self._masks[window] = mask.repeat(1, 1, self.group, 1)
        return self._masks[window]


class StaticPass:
    """One bucket's pass: eager, or on CUDA a captured graph where capturing works."""

    def __init__(
        self,
        *,
        rows: StaticRows,
        forward: Callable[[StaticRows], Tensor],
        capture: bool,
        memory: Any = None,
    ) -> None:
        """Take the model's forward pass: [rows, vocab] logits of every row of the bucket.

        `memory` is the pool of all graphs (`torch.cuda.graph_pool_handle`): one runs at a time, and
        only its logits outlive the run, so they need scratch for the largest, not for all.
        """
        self._rows = rows
        self._forward = forward
        self._memory = memory
        self._wants_capture = capture
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None  # where a replayed graph leaves them

    def run(self, spans: Sequence[Span], token_ids: Sequence[int]) -> Tensor:
        """Return [len(token_ids), vocab]; on the device, free to keep."""
        self._rows.fill(spans, token_ids)
        if self._wants_capture:
            self._wants_capture = False
            self._capture()
        if self._graph is not None and self._logits is not None:
            self._graph.replay()
            logits = self._logits
        else:
            logits = self._eager()
        width = self._rows.bucket.rows
        own = [index * width + row for index, span in enumerate(spans) for row in range(span.rows)]
        return logits[torch.tensor(own).to(logits.device)]

    def _eager(self) -> Tensor:
        self._rows.begin()
        return self._forward(self._rows)

    def _capture(self) -> None:
        """Capture, try the graph against an eager pass, and drop it where they disagree."""
        try:
            free, total = torch.cuda.mem_get_info()
            if free < _LEAST_FREE * total:
                raise RuntimeError(f"{free >> 20} MiB are left for passes of other shapes")
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    expected = self._eager()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._memory):
                logits = self._eager()
            graph.replay()
            tolerance = _TOLERANCE[expected.dtype]
            if not torch.allclose(logits, expected, atol=tolerance, rtol=tolerance):
                raise RuntimeError("its logits are not those of an eager pass")
        except Exception as error:  # a model that synchronises, a driver, memory
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            log.warning(
                "verifier: %s runs eagerly, without a graph (%s)", self._rows.bucket, reason
            )
            return
        self._graph, self._logits = graph, logits
