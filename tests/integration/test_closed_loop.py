"""Scheduler, server, broker and three boards on links that the kernel shapes; and the solver."""

from __future__ import annotations

import sys

import pytest

from tests.shaped import MARKS, run_shaped

pytestmark = [*MARKS, pytest.mark.timeout(240)]


def test_grants_go_where_the_solver_puts_them_and_follow_a_link() -> None:
    """1, 4 and 16 Mbit/s; then the fastest drops to a quarter. 20 rounds each to settle.

    Lengths within one token of the solver's, fed with the truth; shares within 15 points of the
    right ones for the lengths granted (lengths a token apart are often worth the same, with quite
    other shares); goodput within 15 % of predicted, and above fixed lengths and equal shares.
    """
    result = run_shaped(
        *(sys.executable, "-m", "benchmarks.closed_loop", "--seconds", "20"),
        *("--scenarios", "adaptive", "fixed"),
        timeout_s=220.0,
        needs_timers=True,
    )
    before, after = result["adaptive"]["links"]
    for found in (before, after):
        pairs = zip(found["lengths"], found["solver"]["lengths"], strict=True)
        assert max(abs(granted - right) for granted, right in pairs) <= 1.0, found
        assert found["shares_off"] <= 0.15, found
        assert found["goodput_tokens_per_s"] == pytest.approx(
            found["predicted_tokens_per_s"], rel=0.15
        ), found
    assert after["shares"][2] > before["shares"][2], result
    (fixed,) = result["fixed"]["links"]
    assert before["goodput_tokens_per_s"] > fixed["goodput_tokens_per_s"], result
