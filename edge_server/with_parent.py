"""Run a command that ends when the process that started it ends, however that one ends.

Used as `python with_parent.py PARENT_PID UID GID COMMAND…`: a program of its own, because code run
between fork and exec in a process with threads may deadlock. Linux only does what the name says;
elsewhere the command just runs. An id of -1 is kept as it is.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

__all__ = ["die_with_parent", "wrap"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def wrap(command: list[str], *, user_id: int = -1, group_id: int = -1) -> list[str]:
    """Return `command` with this program before it; to be started by the calling process.

    The signal is bound to the thread that starts the command: start it from one that lasts.
    """
    own = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
    return [*own, str(os.getpid()), str(user_id), str(group_id), *command]


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main(arguments: list[str]) -> None:
    """Drop privileges, bind to the parent, become the command."""
    parent, user_id, group_id = (int(word) for word in arguments[:3])
    if group_id >= 0:
        os.setgroups([])
        os.setgid(group_id)
    if user_id >= 0:
        os.setuid(user_id)
    die_with_parent()  # after the ids: changing them forgets it
    if os.getppid() != parent:  # it ended before we asked
        sys.exit(1)
    os.execvp(arguments[3], arguments[3:])  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
