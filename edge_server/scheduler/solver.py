"""Who answers the controller's questions: this thread at once, or a process of its own meanwhile.

Solving takes tens of milliseconds, in which a server would verify nothing: hence the process. It
holds no state and ends with the one that started it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Protocol

from edge_server.scheduler.joint import Answer, Question, answer

__all__ = ["InlineSolver", "ProcessSolver", "Solver"]

_LOG = logging.getLogger(__name__)
_JOIN_S = 2.0
_NICE = 5


class Solver(Protocol):
    """Answer one question at a time."""

    def ask(self, question: Question) -> None:
        """Take a question; one asked before and not answered yet may be dropped for it."""

    def take(self) -> Answer | None:
        """Return the newest answer once, without waiting; None if there is none."""

    @property
    def busy(self) -> bool:
        """Whether a question is being worked on; better not to ask then."""


class InlineSolver:
    """Answers at once, in the caller's time: for simulations and tests."""

    def __init__(self) -> None:
        self._answer: Answer | None = None

    @property
    def busy(self) -> bool:
        """Never."""
        return False

    def ask(self, question: Question) -> None:
        """Solve."""
        self._answer = answer(question)

    def take(self) -> Answer | None:
        """Return what the last question came to."""
        found, self._answer = self._answer, None
        return found


class ProcessSolver:
    """Answers in a child process; a context manager.

    A child that dies, or fails on a question, costs that answer: it is logged, the plan stays, and
    the next question starts a new child.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._busy = False

    def __enter__(self) -> ProcessSolver:
        self._start()  # importing the solvers takes longer than any question
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def busy(self) -> bool:
        """Whether an answer is still to come."""
        return self._busy

    def ask(self, question: Question) -> None:
        """Send a question to the child."""
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send(question)
            self._busy = True
        except OSError as error:
            self._lost(error)

    def take(self) -> Answer | None:
        """Return an answer if one has come."""
        if not self._busy or self._pipe is None:
            return None
        try:
            if not self._pipe.poll():
                return None
            found = self._pipe.recv()
        except (OSError, EOFError) as error:
            self._lost(error)
            return None
        self._busy = False
        if isinstance(found, Answer):
            return found
        _LOG.error("scheduler: a cell could not be solved, the plan stays: %s", found)
        return None

    def close(self) -> None:
        """End the child; harmless when repeated."""
        self._busy = False
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            try:
                self._process.wait(_JOIN_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _start(self) -> None:
        # A program of its own: multiprocessing's would bring a tracker that outlives us a little.
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edge_server.scheduler.solver", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()  # so that the child's end is the only one, and its death shows

    def _lost(self, error: Exception) -> None:
        _LOG.warning("scheduler: the solver's process ended (%r); starting another", error)
        self.close()


def _answer_all(pipe: Connection) -> None:
    """Answer questions until the other end is closed, which its process's death does, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to act on
    if hasattr(os, "nice"):
        os.nice(_NICE)  # verification comes first
    while True:
        try:
            question = pipe.recv()
        except (EOFError, OSError):  # the latter where an answer was left unread
            return
        try:
            found: Answer | str = answer(question)
        except Exception as error:  # a cell that breaks a solver must not end the server
            found = repr(error)
        try:
            pipe.send(found)
        except OSError:
            return


if __name__ == "__main__":
    _answer_all(Connection(int(sys.argv[1])))
