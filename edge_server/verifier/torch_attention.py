"""Attention of many sequences' rows over keys and values that stay where they are.

All rows of a pass are laid behind each other, so that every matrix product sees exactly the rows
there are. Only attention tells sequences apart: it writes the new keys and values to their places
in the pool, then lets each sequence's rows look at its own segment. Query heads that share a key
head are folded into its rows, so that no key is repeated.

On the CPU each sequence attends to a view of the pool, without a copy. On a GPU one call a layer
matters more: `torch_kernel` lets all attend in place, and where that cannot run, the segments are
gathered and padded to the longest. Knows nothing of sessions.

Kernels choose their instructions by the shapes that they are given, and so the last bits of a row.
With fixed shapes no row depends on its company: every call's rows are padded to FIXED_ROWS, every
sequence's to FIXED_SPAN_ROWS, and its keys to a multiple of FIXED_KEYS, masked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from edge_server.verifier.torch_segments import Span

__all__ = [
    "FIXED_KEYS",
    "FIXED_ROWS",
    "FIXED_SPAN_ROWS",
    "MOST_SESSION_ROWS",
    "KvPool",
    "Rows",
    "Scores",
    "attend",
    "grouped",
]

MOST_SESSION_ROWS = 32  # of one session in place; more is prefill
FIXED_ROWS = 64
FIXED_SPAN_ROWS = 16
FIXED_KEYS = 512


@dataclass(frozen=True, slots=True)
class Scores:
    """How a layer scores keys.

    Attributes:
        scale: of query · key.
        window: how many tokens back a row may look, itself included; None for all.
        softcap: the bound that scores are bent to by tanh (Gemma 2); None for none.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None


class KvPool:
    """Keys and values of every layer: [layers, places, kv_heads, head_dim], never moved."""

    def __init__(
        self, *, layers: int, places: int, kv_heads: int, head_dim: int, like: Tensor
    ) -> None:
        """Allocate, in the type and on the device of `like`.

        Behind the places are some for padding: rows that are dropped, keys that nobody sees.
        """
        self.dump = places
        shape = (layers, places + FIXED_KEYS, kv_heads, head_dim)
        self.keys = like.new_zeros(shape)  # a masked key must still be a number
        self.values = like.new_zeros(shape)


@dataclass
class Rows:
    """Where the rows of one pass belong: what `attend` needs, and what is equal in all layers."""

    pool: KvPool
    spans: Sequence[Span]
    gather: bool
    group: int  # query heads per key head: masks repeat that often
    padding: int = 0  # rows behind those of the spans; they count when shapes are fixed
    fixed: bool = False
    _masks: dict[tuple[int, int | None], Tensor | None] = field(default_factory=dict)

    @cached_property
    def positions(self) -> Tensor:
        """Every row's position in its sequence, [rows]."""
        own = [range(span.past, span.length) for span in self.spans]
        return self._flat([*own, range(self.padding)])

    @cached_property
    def places(self) -> Tensor:
        """Every row's place in the pool, [rows]."""
        own = [range(span.place + span.past, span.place + span.length) for span in self.spans]
        return self._flat([*own, range(self.pool.dump, self.pool.dump + self.padding)])

    @cached_property
    def span_of(self) -> Tensor:
        """Every row's span, [rows]."""
        return self._flat([index] * span.rows for index, span in enumerate(self.spans))

    @cached_property
    def row_of(self) -> Tensor:
        """Every row's number within its span, [rows]."""
        return self._flat(range(span.rows) for span in self.spans)

    @cached_property
    def padded_places(self) -> Tensor:
        """Places of every span's tokens, the last repeated: [spans, greatest length]."""
        longest = max(span.length for span in self.spans)
        padded = [
            [span.place + min(step, span.length - 1) for step in range(longest)]
            for span in self.spans
        ]
        return torch.tensor(padded).to(self.pool.keys.device)

    @property
    def most_rows(self) -> int:
        """Rows of the longest span."""
        return max(span.rows for span in self.spans)

    def mask(self, index: int, window: int | None) -> Tensor | None:
        """Return what rows of span `index` may see, bool [group × rows, length]; None for all."""
        key = (index, window)
        if key not in self._masks:
            span = self.spans[index]
            whole = span.rows == 1 and (window is None or span.length <= window)
            self._masks[key] = None if whole else self._band(span, window).repeat(self.group, 1)
        return self._masks[key]

    def padded_mask(self, window: int | None) -> Tensor | None:
        """Return all spans' masks: bool [spans, 1, group × most rows, greatest length]."""
        key = (-1, window)
        if key not in self._masks:
            shape = (len(self.spans), 1, self.most_rows, self.padded_places.shape[1])
            mask = torch.zeros(shape, dtype=torch.bool, device=self.pool.keys.device)
            for index, span in enumerate(self.spans):
                mask[index, 0, : span.rows, : span.length] = self._band(span, window)
            self._masks[key] = mask.repeat(1, 1, self.group, 1)
        return self._masks[key]

    def fixed_mask(self, index: int, window: int | None) -> Tensor | None:
        """Return what rows of span `index` may see: bool [group × FIXED_SPAN_ROWS, fixed keys]."""
        key = (index, window)
        if key not in self._masks:
            span = self.spans[index]
            shape = (FIXED_SPAN_ROWS, fixed_keys(span))
            mask = torch.zeros(shape, dtype=torch.bool, device=self.pool.keys.device)
            mask[: span.rows, : span.length] = self._band(span, window)
            mask[span.rows :] = mask[span.rows - 1]
            self._masks[key] = mask.repeat(self.group, 1)
        return self._masks[key]

    def _flat(self, parts: Iterable[Iterable[int]]) -> Tensor:
        flat = [number for part in parts for number in part]
        return torch.tensor(flat).to(self.pool.keys.device)

    def _band(self, span: Span, window: int | None) -> Tensor:
        mask = torch.ones(span.rows, span.length, dtype=torch.bool, device=self.pool.keys.device)
        mask = mask.tril(span.past)
        return mask if window is None else mask.triu(span.past - window + 1)


def attend(rows: Rows, layer: int, query: Tensor, scores: Scores) -> Tensor:
    """Return what one layer's rows attend to; their own keys and values are in the pool already.

    Args:
        rows: the pass.
        layer: index into the pool.
        query: [rows, heads, head_dim].
        scores: how the layer scores keys.

    Returns:
        [rows, heads, head_dim].
    """
    attended = _attend_gathered if rows.gather and len(rows.spans) > 1 else _attend_views
    attended = _attend_fixed if rows.fixed else attended
    return attended(rows, layer, query, scores)


def _attend_views(rows: Rows, layer: int, query: Tensor, scores: Scores) -> Tensor:
    keys, values = rows.pool.keys[layer], rows.pool.values[layer]
    parts, first = [], 0
    for index, span in enumerate(rows.spans):
        segment = slice(span.place, span.place + span.length)
        own = query[first : first + span.rows][None]
        mask = rows.mask(index, scores.window)
        parts.append(grouped(own, keys[segment][None], values[segment][None], mask, scores)[0])
        first += span.rows
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _attend_gathered(rows: Rows, layer: int, query: Tensor, scores: Scores) -> Tensor:
    padded = query.new_zeros(len(rows.spans), rows.most_rows, *query.shape[1:])
    padded[rows.span_of, rows.row_of] = query
    keys = rows.pool.keys[layer][rows.padded_places]
    values = rows.pool.values[layer][rows.padded_places]
    output = grouped(padded, keys, values, rows.padded_mask(scores.window), scores)
    # What comes of padding rows, which see nothing, is dropped here.
    return output[rows.span_of, rows.row_of]


def _attend_fixed(rows: Rows, layer: int, query: Tensor, scores: Scores) -> Tensor:
    keys, values = rows.pool.keys[layer], rows.pool.values[layer]
    output = torch.zeros_like(query)
    first = 0
    for index, span in enumerate(rows.spans):
        segment = slice(span.place, span.place + fixed_keys(span))
        own = query.new_zeros(1, FIXED_SPAN_ROWS, *query.shape[1:])
        own[0, : span.rows] = query[first : first + span.rows]
        mask = rows.fixed_mask(index, scores.window)
        found = grouped(own, keys[segment][None], values[segment][None], mask, scores)[0]
        output[first : first + span.rows] = found[: span.rows]
        first += span.rows
    return output


def fixed_keys(span: Span) -> int:
    """Return the span's length, up to the next multiple of FIXED_KEYS."""
    return -(-span.length // FIXED_KEYS) * FIXED_KEYS


def grouped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scores: Scores
) -> Tensor:
    """Return attention of [batch, rows, heads, d] over [batch, length, kv_heads, d].

    Heads [kv_heads, group] × rows become the rows of kv_heads heads, as the mask expects them.
    """
    batch, count, heads, width = query.shape
    kv_heads = key.shape[2]
    folded = query.transpose(1, 2).reshape(batch, kv_heads, heads // kv_heads * count, width)
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    if scores.softcap is None:
        output = F.scaled_dot_product_attention(
            folded, key, value, attn_mask=mask, scale=scores.scale
        )
    else:
        found = folded @ key.transpose(2, 3) * scores.scale
        found = torch.tanh(found / scores.softcap) * scores.softcap
        if mask is not None:
            found = found.masked_fill(~mask, -torch.inf)
        output = found.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value
    return output.reshape(batch, heads, count, width).transpose(1, 2)
