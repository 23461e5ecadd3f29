"""Attention in place: what torch's own gives, for ragged rows; and what a GPU's compiler says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="comes with torch for CUDA, and with the extra 'dev'")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_server.verifier.torch_attention import MOST_SESSION_ROWS, Scores, grouped
from edge_server.verifier.torch_kernel import Places, Scratch, attend_in_place

COMPILER = Path(__file__).with_name("compile_kernels.py")
LEAST_SHARED = 99 << 10  # bytes a program may take on the cards with the least (8.6, 8.9, 12.0)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@settings(max_examples=25, deadline=None)
@given(
    sessions=st.lists(st.tuples(st.integers(1, 150), st.integers(1, 12)), min_size=1, max_size=3),
    spare=st.integers(0, 2),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 3), (1, 7)]),
    head_dim=st.sampled_from([16, 24, 64]),
    window=st.sampled_from([None, None, 1, 9, 64]),
    softcap=st.sampled_from([None, None, 1.5]),
    parts=st.sampled_from([1, 2, 8]),
    seed=st.integers(0, 1 << 30),
)
def test_every_row_attends_as_with_torch_and_rows_of_no_session_stay_zero(
    sessions: list[tuple[int, int]],
    spare: int,
    heads: tuple[int, int],
    head_dim: int,
    window: int | None,
    softcap: float | None,
    parts: int,
    seed: int,
) -> None:
    kv_heads, group = heads
    generator = torch.Generator().manual_seed(seed)
    lengths = [max(length, rows) for length, rows in sessions]
    starts = [3 + sum(lengths[:n]) + 7 * n for n in range(len(lengths))]
    firsts = [sum(rows for _, rows in sessions[:n]) for n in range(len(sessions) + 1)]
    positions = [
        position
        for length, (_, rows) in zip(lengths, sessions, strict=True)
        for position in range(length - rows, length)
    ]
    all_rows, count = len(positions) + spare, kv_heads * group
    shape = (starts[-1] + lengths[-1] + 9, kv_heads, head_dim)
    keys, values = (torch.randn(shape, generator=generator).to(DEVICE) for _ in range(2))
    query = torch.randn(count, all_rows, head_dim, generator=generator).to(DEVICE).transpose(0, 1)
    scores = Scores(0.3, window, softcap)
    output = attend_in_place(
        query,
        keys,
        values,
        Places(
            firsts=integers(firsts + [firsts[-1]] * spare),
            starts=integers(starts + [0] * spare),
            lasts=integers([length - 1 for length in lengths] + [0] * spare),
            positions=integers(positions + [0] * spare),
        ),
        Scratch(
            rows=all_rows,
            heads=count,
            kv_heads=kv_heads,
            head_dim=head_dim,
            like=keys,
            parts=parts,
        ),
        scores,
    )
    for n, (length, start) in enumerate(zip(lengths, starts, strict=True)):
        own = slice(firsts[n], firsts[n + 1])
        position, step = integers(positions[own])[:, None], torch.arange(length, device=DEVICE)
        seen = step <= position
        if window is not None:
            seen &= step > position - window
        kept = slice(start, start + length)
        mask = seen.repeat(group, 1)
        expected = grouped(query[None, own], keys[None, kept], values[None, kept], mask, scores)[0]
        torch.testing.assert_close(output[own], expected, atol=1e-5, rtol=1e-5)
    assert not output[firsts[-1] :].any()


def integers(numbers: list[int]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=DEVICE)


def test_the_most_rows_that_a_session_may_have_are_all_seen() -> None:
    keys = torch.zeros(MOST_SESSION_ROWS, 1, 16, device=DEVICE)
    values = torch.arange(MOST_SESSION_ROWS, device=DEVICE).float()[:, None, None].expand(-1, 1, 16)
    where = Places(
        firsts=integers([0, MOST_SESSION_ROWS]),
        starts=integers([0]),
        lasts=integers([MOST_SESSION_ROWS - 1]),
        positions=integers(list(range(MOST_SESSION_ROWS))),
    )
    scratch = Scratch(rows=MOST_SESSION_ROWS, heads=5, kv_heads=1, head_dim=16, like=keys)
    query = torch.zeros(MOST_SESSION_ROWS, 5, 16, device=DEVICE)
    output = attend_in_place(query, keys, values.contiguous(), where, scratch, Scores(0.25))
    expected = torch.arange(MOST_SESSION_ROWS, device=DEVICE) / 2  # the mean of what is not later
    torch.testing.assert_close(output, expected[:, None, None].expand(-1, 5, 16))


def test_the_kernels_compile_for_cards_and_fit_their_memory(tmp_path: Path) -> None:
    """Triton's compiler needs no GPU: shapes of Llama-2-7B, Qwen2.5-14B and a small head."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, COMPILER], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    compiled = json.loads(done.stdout)
    assert len(compiled) == 14
    for name, found in compiled.items():
        assert found["shared_bytes"] <= LEAST_SHARED, name
        assert found["tensor_cores"] == ("fp32" not in name and "join" not in name), name
