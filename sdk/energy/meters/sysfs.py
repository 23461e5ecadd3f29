"""Small number files of the kernel, kept open and read again and again.

Knows nothing of what the numbers mean. One pread per reading, no path lookup.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from sdk.energy.interface import MeterLostError, MeterNotFoundError

__all__ = ["NumberFile", "open_numbers", "read_number", "read_text"]

_MAX_BYTES = 64
_PERMISSION_HINT = "may not be read; run as root or give the file's group read permission"


class NumberFile:
    """An open file that holds one integer."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            MeterNotFoundError: if it is not there or may not be read.
        """
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            raise MeterNotFoundError(f"open {path}: {_PERMISSION_HINT}") from error
        except OSError as error:
            raise MeterNotFoundError(f"open {path}: {error.strerror}") from error

    def read(self) -> int:
        """Return the number now.

        Raises:
            MeterLostError: if the driver answers with an error or with something else.
        """
        try:
            return int(os.pread(self._descriptor, _MAX_BYTES, 0))
        except OSError as error:
            raise MeterLostError(f"read {self.path}: {error.strerror}") from error
        except ValueError as error:
            raise MeterLostError(f"read {self.path}: not a number") from error

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_numbers(paths: Iterable[Path]) -> list[NumberFile]:
    """Open several files, or none of them; raise MeterNotFoundError."""
    opened: list[NumberFile] = []
    try:
        for path in paths:
            opened.append(NumberFile(path))  # noqa: PERF401 - what is open must be known on error
    except MeterNotFoundError:
        for file in opened:
            file.close()
        raise
    return opened


def read_text(path: Path) -> str | None:
    """Return a file's text without white space around it, or None."""
    try:
        return path.read_text(errors="replace").strip("\0 \n\t") or None
    except OSError:
        return None


def read_number(path: Path) -> int | None:
    """Return the number that a file begins with, or None ("32760 ma" is 32760)."""
    text = read_text(path)
    try:
        return int(text.split()[0]) if text else None
    except ValueError:
        return None
