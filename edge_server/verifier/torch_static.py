"""A verify pass in static shapes: what a CUDA graph can be captured of.

The rows of all sessions lie behind each other, rounded up to a size; those that pad belong to no
session and write to the pool's dump place. All that differs between two passes of a size is one
tensor of integers, filled by one copy. Knows nothing of drafts or acceptance.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edge_server.verifier.torch_attention import MOST_SESSION_ROWS, KvPool, Scores, grouped
from edge_server.verifier.torch_segments import Span
from sdk.errors import first_line

__all__ = ["StaticPass", "StaticRows", "attends_in_place", "size_of"]

_SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 112, 128, 160, 192, 224,
          256, 320, 384, 448, 512)  # fmt: skip
_MOST_SESSIONS = 128
_WARM_UPS = 2  # torch asks for runs before a capture: libraries allocate in them
_LEAST_FREE = 1 / 16  # of the card's memory: with less, no more graphs
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}

log = logging.getLogger(__name__)


def size_of(spans: Sequence[Span]) -> int | None:
    """Return the least size that holds a pass's rows; None where there is none."""
    if len(spans) > _MOST_SESSIONS or max(span.rows for span in spans) > MOST_SESSION_ROWS:
        return None
    rows = sum(span.rows for span in spans)
    return next((size for size in _SIZES if size >= rows), None)


class StaticRows:
    """Where the rows of a pass belong, as views of one tensor that every pass fills anew."""

    def __init__(self, *, pool: KvPool, size: int, heads: int) -> None:
        """Allocate for `size` rows of a model with so many query heads."""
        from edge_server.verifier.torch_kernel import Places, Scratch

        sessions = min(size, _MOST_SESSIONS)
        self.pool, self.size, self._sessions = pool, size, sessions
        device = pool.keys.device
        sizes = [size, size, size, sessions + 1, sessions, sessions]
        self._packed = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        parts = torch.split(self._packed, sizes)
        self.token_ids, self.positions, self.places, firsts, starts, lasts = parts
        self._where = Places(firsts, starts, lasts, self.positions)
        kv_heads, head_dim = pool.keys.shape[2:]
        self._scratch = Scratch(
            rows=size, heads=heads, kv_heads=kv_heads, head_dim=head_dim, like=pool.keys
        )

    def fill(self, spans: Sequence[Span], token_ids: Sequence[int]) -> None:
        """Say what the next pass is about."""
        positions, places, firsts = list[int](), list[int](), [0]
        for span in spans:
            positions += range(span.past, span.length)
            places += range(span.place + span.past, span.place + span.length)
            firsts.append(len(positions))
        padding, spare = self.size - len(positions), self._sessions - len(spans)
        integers = [
            *token_ids,
            *[0] * padding,
            *positions,
            *[0] * padding,
            *places,
            *[self.pool.dump] * padding,
            *firsts,
            *[firsts[-1]] * spare,
            *(span.place for span in spans),
            *[self.pool.dump] * spare,
            *(span.length - 1 for span in spans),
            *[0] * spare,
        ]
        self._packed.copy_(torch.tensor(integers))

    def attend(self, layer: int, query: Tensor, scores: Scores) -> Tensor:
        """Return what every row attends to, [rows, heads, head_dim]; the new keys are in place."""
        from edge_server.verifier.torch_kernel import attend_in_place

        keys, values = self.pool.keys[layer], self.pool.values[layer]
        return attend_in_place(query, keys, values, self._where, self._scratch, scores)


def attends_in_place(pool: KvPool, heads: int) -> bool:
    """Return whether the kernels run here and are right: tried, and said in the log if not."""
    reason = "triton is missing, which comes with torch for CUDA"
    try:
        rows = StaticRows(pool=pool, size=4, heads=heads)
        spans = [Span(0, 2, 3)]
        rows.fill(spans, [0, 0, 0])
        kv_heads, head_dim = pool.keys.shape[2:]
        scores = Scores(head_dim**-0.5)
        generator = torch.Generator(pool.keys.device).manual_seed(0)
        for kept in pool.keys[0, :5], pool.values[0, :5]:
            kept.normal_(generator=generator)
        query = pool.keys.new_empty(4, heads, head_dim).normal_(generator=generator)
        mask = torch.ones(3, 5, dtype=torch.bool, device=query.device).tril(2)
        found = rows.attend(0, query, scores)[:3]
        expected = grouped(
            query[None, :3],
            pool.keys[:1, :5],
            pool.values[:1, :5],
            mask.repeat(heads // kv_heads, 1),
            scores,
        )[0]
        tolerance = _TOLERANCE[found.dtype]
        if torch.allclose(found, expected, atol=tolerance, rtol=tolerance):
            return True
        reason = "its results are not those of torch's attention"
    except ModuleNotFoundError:
        pass
    except Exception as error:  # a compiler, a driver, a card that is too old
        reason = first_line(error)
    log.warning("verifier: keys and values are gathered, and no graph is captured (%s)", reason)
    return False


class StaticPass:
    """One size's pass: eager, or on CUDA a captured graph where capturing works."""

    def __init__(
        self,
        *,
        rows: StaticRows,
        forward: Callable[[StaticRows], Tensor],
        capture: bool,
        memory: Any = None,
    ) -> None:
        """Take the model's forward pass: [size, vocab] logits of every row.

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
        """Return [len(token_ids), vocab] on the device, until the next pass of any size."""
        self._rows.fill(spans, token_ids)
        if self._wants_capture:
            self._wants_capture = False
            self._capture()
        if self._graph is not None and self._logits is not None:
            self._graph.replay()
            return self._logits[: len(token_ids)]
        return self._forward(self._rows)[: len(token_ids)]

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
                    expected = self._forward(self._rows)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._memory):
                logits = self._forward(self._rows)
            graph.replay()
            tolerance = _TOLERANCE[expected.dtype]
            if not torch.allclose(logits, expected, atol=tolerance, rtol=tolerance):
                raise RuntimeError("its logits are not those of an eager pass")
        except Exception as error:  # a model that synchronises, a driver, memory
            reason = first_line(error)
            log.warning(
                "verifier: %d rows run eagerly, without a graph (%s)", self._rows.size, reason
            )
            return
        self._graph, self._logits = graph, logits
