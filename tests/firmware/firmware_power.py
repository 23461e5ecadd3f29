"""Cut the power before any chosen write to the disk: nothing after it happens either."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CHANGES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.chmod",
    "os.truncate",
}


class PowerCutError(BaseException):
    """The machine is off; no handler of the product catches this."""


class _Mains:
    """Counts changes below a folder, and ends everything from the chosen one on."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.left = 0
        self.seen = 0
        self.spared = ""

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.folder is None or not self._changes(event, arguments):
            return
        self.seen += 1
        if self.seen > self.left:
            raise PowerCutError(event)

    def _changes(self, event: str, arguments: tuple[object, ...]) -> bool:
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
            return writes and self._below(path)
        if event == "os.chmod" and isinstance(arguments[0], int):
            return not self.spared  # a descriptor: only our own files are open
        return event in _CHANGES and any(self._below(each) for each in arguments[:2])

    def _below(self, path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        text = os.fsdecode(path)
        if self.spared and text.startswith(self.spared):
            return False
        return not os.path.isabs(text) or text.startswith(str(self.folder))


_MAINS = _Mains()
sys.addaudithook(_MAINS.hook)


@contextmanager
def power_for(folder: Path, changes: int, *, spared: Path | None = None) -> Iterator[_Mains]:
    """Let `changes` writes below `folder` happen, then none; swallow the cut.

    Those below `spared` are not counted: where every single one is cut elsewhere.
    """
    _MAINS.folder, _MAINS.left, _MAINS.seen = str(folder), changes, 0
    _MAINS.spared = str(spared or "")
    try:
        yield _MAINS
    except PowerCutError:
        pass
    finally:
        _MAINS.folder = None
