"""What was delivered, on disk before anybody sees it: a board that lost power goes on from there.

One JSON line for the request, then one per delivery. A line that a power cut left unfinished is
dropped; the tokens in it come again, the same ones, because positions key all randomness.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from sdk.errors import ConfigError, MalformedFrameError
from sdk.protocol import Open, decode_control, encode_control

__all__ = ["Journal"]


class Journal:
    """One session's journal; a context manager that owns the open file."""

    def __init__(self, *, path: Path, opening: Open) -> None:
        """Create the journal, or take up the one that is there.

        Args:
            path: file to write; created with mode 0600.
            opening: the request. A journal of another request is refused; of this request, it
                gives back session id and committed tokens.

        Raises:
            ConfigError: if the file is no journal, another request's, or cannot be written.
        """
        self._path = path
        try:
            lines = _whole_lines(path)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(
                f"journal {path}: {error.strerror}; name a file in a folder that you may write to"
            ) from error
        try:
            self.opening = _resume(path, lines, opening) if lines else opening
        except ConfigError:
            self.close()
            raise
        os.ftruncate(self._file, sum(len(line) + 1 for line in lines))
        os.lseek(self._file, 0, os.SEEK_END)
        if not lines:
            self._append(encode_control(opening))

    def deliver(self, token_ids: tuple[int, ...]) -> None:
        """Write tokens down, durably, before they are handed on.

        Raises:
            ConfigError: if the disk takes no more.
        """
        self._append(json.dumps(token_ids).encode())

    def _append(self, line: bytes) -> None:
        line += b"\n"
        try:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        except OSError as error:
            raise ConfigError(
                f"journal {self._path}: {error.strerror}; make room, then give the same command "
                "again: it goes on after the last token written"
            ) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _whole_lines(path: Path) -> list[bytes]:
    """Return the finished lines of a journal, without their ends."""
    if not path.exists():
        return []
    return path.read_bytes().split(b"\n")[:-1]


def _resume(path: Path, lines: list[bytes], opening: Open) -> Open:
    try:
        written = decode_control(lines[0])
        if not isinstance(written, Open):
            raise TypeError("the first line is no request")
        committed = tuple(int(token) for line in lines[1:] for token in json.loads(line))
        resumed = replace(opening, session=written.session, committed=committed)
    except (MalformedFrameError, ValueError, TypeError) as error:
        raise ConfigError(f"journal {path}: not a session journal; name another file") from error
    if replace(opening, session=0, boot=0) != replace(written, session=0, boot=0):
        raise ConfigError(
            f"journal {path} belongs to another request (prompt, sampling or model differ); "
            "name another file, or delete it to begin anew"
        )
    return resumed
