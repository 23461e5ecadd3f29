"""Attention of a pass's rows over keys and values where they lie: Triton kernels, for a GPU.

Flash decoding (Dao et al., 2023): a program holds some rows of one session and one key head and
walks a part of the session's keys once, with a running maximum; a second kernel joins the parts.
Nothing is gathered, padded or masked in memory, and a program reads only as many keys as its
session has. Knows nothing of models. Imports triton, which comes with torch for CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from edge_server.verifier.torch_attention import MOST_SESSION_ROWS, Scores

__all__ = ["Places", "Scratch", "attend_in_place", "block_sizes", "join_parts", "walk_keys"]

_LOG2_E = tl.constexpr(1.4426950408889634)
_USUAL_ROWS = 8  # of one session: more take a second program
_LEAST_BLOCK = 16  # of a matrix product on tensor cores
_MOST_BLOCK_ROWS = 64
_BLOCK_BYTES = 16384  # of keys, and of values: two of each in flight fit any card's shared memory
_MOST_PARTS = 32
_PROGRAMS_EACH = 4  # of a multiprocessor, so that all are busy to the end


@dataclass(frozen=True, slots=True)
class Places:
    """Where the rows of a pass belong, all int64; sessions without rows are skipped.

    Attributes:
        firsts: [sessions + 1], each session's first row; the last is the number of rows.
        starts: [sessions], the place of each session's first token.
        lasts: [sessions], each session's last position.
        positions: [rows], ascending in a session; a row sees no later one.
    """

    firsts: Tensor
    starts: Tensor
    lasts: Tensor
    positions: Tensor


class Scratch:
    """What the kernels write to: the same for every layer. Rows of no session stay zero."""

    def __init__(
        self, *, rows: int, heads: int, kv_heads: int, head_dim: int, like: Tensor, parts: int = 0
    ) -> None:
        """Allocate, in the type and on the device of `like`.

        `parts` are programs that share one session's keys; 0 for as many as keep the GPU busy.
        """
        self.parts = parts or _parts(rows * kv_heads // _USUAL_ROWS, like.device)
        self.output = like.new_zeros(rows, heads, head_dim)
        self.found = self.sums = self.output
        if self.parts > 1:
            shape = (self.parts, rows, heads)
            self.found = like.new_zeros((*shape, head_dim), dtype=torch.float32)
            self.sums = like.new_zeros(shape, dtype=torch.float32)


def attend_in_place(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    where: Places,
    scratch: Scratch,
    scores: Scores,
) -> Tensor:
    """Return what rows attend to; their own keys and values lie in the pool already.

    Args:
        query: [rows, heads, head_dim]; the numbers of a head lie together.
        keys: [places, kv_heads, head_dim], contiguous.
        values: as keys.
        where: at most MOST_SESSION_ROWS rows of one session.
        scratch: for as many rows.
        scores: how the layer scores keys.

    Returns:
        [rows, heads, head_dim], in the scratch.
    """
    rows, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    blocks = block_sizes(group, head_dim, keys.element_size())
    row_blocks = -(-MOST_SESSION_ROWS * group // blocks["block_rows"])
    walk_keys[len(where.starts), kv_heads * row_blocks, scratch.parts](
        query,
        keys,
        values,
        where.firsts,
        where.starts,
        where.lasts,
        where.positions,
        scratch.found,
        scratch.sums,
        query.stride(0),
        query.stride(1),
        rows,
        group,
        kv_heads,
        scores.scale,
        scores.softcap or 0.0,
        scores.window or 0,
        head_dim=head_dim,
        parts=scratch.parts,
        **blocks,
        num_warps=4,
        num_stages=2,
    )
    if scratch.parts > 1:
        join_parts[rows * heads,](
            scratch.found,
            scratch.sums,
            scratch.output,
            head_dim=head_dim,
            parts=scratch.parts,
            block_dim=blocks["block_dim"],
        )
    return scratch.output


def block_sizes(group: int, head_dim: int, element_bytes: int) -> dict[str, int]:
    """Return how many rows (of all heads of a group), keys and numbers a program holds at a time.

    All are powers of two, as Triton wants them.
    """
    dim = max(triton.next_power_of_2(head_dim), _LEAST_BLOCK)
    rows = triton.next_power_of_2(_USUAL_ROWS * group)
    return {
        "block_rows": min(max(rows, _LEAST_BLOCK), _MOST_BLOCK_ROWS),
        "block_keys": max(_BLOCK_BYTES // (dim * element_bytes), _LEAST_BLOCK),
        "block_dim": dim,
    }


def _parts(programs: int, device: torch.device) -> int:
    """Return into how many parts to cut sessions' keys: a power of two, so that few are compiled.

    `programs` are there without parts.
    """
    if device.type != "cuda":
        return 1
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    wanted = _PROGRAMS_EACH * processors // max(programs, 1)
    return min(1 << max(wanted, 1).bit_length() - 1, _MOST_PARTS)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def walk_keys(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    firsts: tl.tensor,
    starts: tl.tensor,
    lasts: tl.tensor,
    positions: tl.tensor,
    found: tl.tensor,  # [parts, rows, heads, head_dim]
    sums: tl.tensor,  # [parts, rows, heads]: log2 of each part's weight; unused for one part
    row_stride: tl.tensor,
    head_stride: tl.tensor,
    rows: tl.tensor,
    group: tl.tensor,
    kv_heads: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,  # 0 for none
    window: tl.tensor,  # 0 for none
    head_dim: tl.constexpr,
    parts: tl.constexpr,
    block_rows: tl.constexpr,
    block_keys: tl.constexpr,
    block_dim: tl.constexpr,
) -> None:
    """Let some rows of one session and one key head see one part of the session's keys."""
    session, part = tl.program_id(0), tl.program_id(2)
    kv_head, block = tl.program_id(1) % kv_heads, tl.program_id(1) // kv_heads
    first_row = tl.load(firsts + session).to(tl.int32)
    own = (tl.load(firsts + session + 1).to(tl.int32) - first_row) * group
    if block * block_rows >= own:
        return

    number = block * block_rows + tl.arange(
        0, block_rows
    )  # a row's heads of this group, then the next row's
    row, head = first_row + number // group, kv_head * group + number % group
    dim = tl.arange(0, block_dim)
    real = (number < own)[:, None] & (dim < head_dim)[None, :]
    at = row[:, None] * row_stride + head[:, None] * head_stride + dim[None, :]
    q = tl.load(query + at, mask=real, other=0.0)
    position = tl.load(positions + row, mask=number < own, other=0).to(tl.int32)

    first, end = 0, tl.load(lasts + session).to(tl.int32) + 1
    if window > 0:
        first = tl.maximum(tl.load(positions + first_row).to(tl.int32) - window + 1, 0)
    share = tl.cdiv(tl.cdiv(end - first, block_keys), parts) * block_keys
    first += part * share
    end = tl.minimum(first + share, end)

    start = (tl.load(starts + session) * kv_heads + kv_head) * head_dim
    peak = tl.full([block_rows], float("-inf"), tl.float32)
    total = tl.zeros([block_rows], tl.float32)
    result = tl.zeros([block_rows, block_dim], tl.float32)
    for begin in range(first, end, block_keys):
        key = begin + tl.arange(0, block_keys)
        there = (key < end)[:, None] & (dim < head_dim)[None, :]
        lies = start + key[:, None].to(tl.int64) * (kv_heads * head_dim) + dim[None, :]
        k = tl.load(keys + lies, mask=there, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if softcap > 0.0:  # times tanh, by what there is: exp2
            scores = softcap - 2 * softcap / (1 + tl.exp2(scores * 2 * _LOG2_E / softcap))
        seen = (key[None, :] <= position[:, None]) & (key < end)[None, :]
        if window > 0:
            seen = seen & (key[None, :] > position[:, None] - window)
        scores = tl.where(seen, scores * _LOG2_E, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        level = tl.where(higher == float("-inf"), 0.0, higher)  # of a row that saw nothing yet
        weights = tl.exp2(scores - level[:, None])
        kept = tl.exp2(peak - level)
        v = tl.load(values + lies, mask=there, other=0.0)
        result = result * kept[:, None]
        result += tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        total = total * kept + tl.sum(weights, 1)
        peak = higher

    total = tl.where(
        total > 0.0, total, 1.0
    )  # a part without keys weighs nothing: its peak is −inf
    target = (part * rows + row) * (group * kv_heads) + head
    tl.store(
        found + target[:, None].to(tl.int64) * head_dim + dim[None, :],
        (result / total[:, None]).to(found.dtype.element_ty),
        mask=real,
    )
    if parts > 1:
        tl.store(sums + target, peak + tl.log2(total), mask=number < own)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def join_parts(
    found: tl.tensor,
    sums: tl.tensor,
    output: tl.tensor,
    head_dim: tl.constexpr,
    parts: tl.constexpr,
    block_dim: tl.constexpr,
) -> None:
    """Weigh the parts of one row and head, and write what it attends to."""
    target, count = tl.program_id(0), tl.num_programs(0)
    part, dim = tl.arange(0, parts), tl.arange(0, block_dim)
    logs = tl.load(sums + part * count + target)
    weights = tl.exp2(logs - tl.max(logs, 0))
    lies = (part[:, None] * count + target).to(tl.int64) * head_dim + dim[None, :]
    each = tl.load(found + lies, mask=(dim < head_dim)[None, :], other=0.0)
    joined = tl.sum(each * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(
        output + target.to(tl.int64) * head_dim + dim,
        joined.to(output.dtype.element_ty),
        mask=dim < head_dim,
    )
