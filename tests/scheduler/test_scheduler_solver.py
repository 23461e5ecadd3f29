"""Solving beside the verify loop: the same answers, and a child that may die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_server.scheduler.cell import Cell, VerifyCost, geometric_survival
from edge_server.scheduler.joint import Answer, Question, answer
from edge_server.scheduler.modes import RatioMode
from edge_server.scheduler.solver import ProcessSolver

ROOT = Path(__file__).parents[2]
CELL = Cell(
    bandwidth_hz=1.0,
    payload_bits=500.0,
    overhead_bits=800.0,
    verify=VerifyCost(fixed_s=0.1, per_request_s=0.01),
    draft_s=np.array([0.01, 0.02, 0.03]),
    efficiency=1e6 * np.array([1.0, 4.0, 16.0]),
    survival=geometric_survival(np.array([0.6, 0.7, 0.8]), 8),
    max_length=8,
)


@pytest.fixture
def solver() -> Iterator[ProcessSolver]:
    with ProcessSolver() as solver:
        yield solver


def ask(solver: ProcessSolver, question: Question) -> Answer | None:
    """Ask, and wait as no server would."""
    solver.ask(question)
    deadline_s = time.monotonic() + 60.0
    while solver.busy and time.monotonic() < deadline_s:
        found = solver.take()
        if found is not None:
            return found
        time.sleep(0.01)
    return None


@pytest.mark.parametrize("policy", ["auto", "continuous", "synchronous", "ping_pong"])
def test_the_child_says_what_this_process_would(solver: ProcessSolver, policy: str) -> None:
    question = Question(cell=CELL, policy=policy)
    found, expected = ask(solver, question), answer(question)
    assert found is not None
    assert found.policy == expected.policy
    np.testing.assert_array_equal(found.plan.lengths, expected.plan.lengths)
    np.testing.assert_array_equal(found.plan.bandwidth_hz, expected.plan.bandwidth_hz)
    assert not solver.busy
    assert solver.take() is None  # once


def child_of(solver: ProcessSolver) -> int:
    assert solver._process is not None
    assert solver._process.pid is not None
    return solver._process.pid


def test_a_child_that_dies_is_replaced(solver: ProcessSolver) -> None:
    before = child_of(solver)
    os.kill(before, signal.SIGKILL)
    os.waitid(os.P_PID, before, os.WEXITED | os.WNOWAIT)
    assert ask(solver, Question(cell=CELL, policy="synchronous")) is None
    assert not solver.busy
    assert ask(solver, Question(cell=CELL, policy="synchronous")) is not None
    assert child_of(solver) != before


def test_a_question_that_breaks_a_solver_costs_only_its_answer(
    solver: ProcessSolver, caplog: pytest.LogCaptureFixture
) -> None:
    good = Question(cell=CELL, policy="synchronous")
    assert ask(solver, replace(good, policy="lifo")) is None
    assert "KeyError" in caplog.text
    assert ask(solver, good) is not None


def test_an_answer_left_unread_is_nobodys_error(capfd: pytest.CaptureFixture[str]) -> None:
    with ProcessSolver() as solver:
        ask(solver, Question(cell=CELL, policy="synchronous"))
        assert solver._pipe is not None
        solver.ask(Question(cell=CELL, policy="synchronous"))
        assert solver._pipe.poll(60.0)
    assert capfd.readouterr().err == ""


def test_the_child_ends_with_a_parent_that_is_killed() -> None:
    program = (
        "from edge_server.scheduler.solver import ProcessSolver\n"
        "import time\n"
        "if __name__ == '__main__':\n"
        "    solver = ProcessSolver().__enter__()\n"
        "    print(solver._process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline_s = time.monotonic() + 30.0
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline_s:
        if "\nState:\tZ" in Path(f"/proc/{child}/status").read_text():
            break  # nobody here reaps orphans
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child}").exists()


def test_uploads_that_are_obligatory_enter_the_plan_with_their_own_bits() -> None:
    ratio = RatioMode(support=64, bits_per_token=1700.0, acceptance_gain=0.8)
    question = Question(
        cell=CELL,
        policy="synchronous",
        ratio_modes=((ratio,),) * 3,
        always_upload=True,
    )
    found = answer(question)
    assert found.modes == (ratio,) * 3
    heavy = replace(
        CELL,
        payload_bits=1700.0,
        survival=geometric_survival(1.0 - 0.8 * np.array([0.4, 0.3, 0.2]), 8),
    )
    expected = answer(Question(cell=heavy, policy="synchronous"))
    np.testing.assert_array_equal(found.plan.lengths, expected.plan.lengths)
    np.testing.assert_allclose(found.plan.bandwidth_hz, expected.plan.bandwidth_hz)
