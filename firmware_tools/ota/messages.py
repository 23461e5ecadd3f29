"""What an operator and a board say about an update, as JSON; pure.

    down/update  (retained)  Command    one per board, cleared by whoever gave it
    up/update    (retained)  Report     accepted → downloading → installing → restarting
                                        → successful | failed, with the reason
    up/block                 Request    "blocks 4 to 7 of this file"
    down/block               Block      one block, tied to its request by a nonce

Only the board moves the state; an unknown field is kept out, not refused.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from sdk.errors import MalformedFrameError

__all__ = ["BLOCK_BYTES", "FINAL", "Block", "Command", "Report", "Request"]

BLOCK_BYTES = 65_536 - 512
"""64 KiB on the wire: what the broker's packet bound leaves beside topic and headers."""

MIN_BLOCK_BYTES = 1024
MAX_WINDOW = 16
STATUSES = ("accepted", "downloading", "installing", "restarting", "successful", "failed")
FINAL = ("successful", "failed")
MAX_JSON_BYTES = 4096
_ID = re.compile(r"[0-9a-z]{1,32}")
_FILE = re.compile(r"(metadata|targets)/[A-Za-z0-9][A-Za-z0-9._+-]{0,120}")
_VERSION = re.compile(r"[0-9][0-9a-z.+-]{0,47}")
_BLOCK = struct.Struct("<BBIIQI")  # version, kind, nonce, index, file's bytes, CRC-32
_WIRE = 1
_DATA, _ABSENT = 0, 1

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Go to `version`, pulling at most `rate_bytes_s`; `id` is new for every wish."""

    id: str
    version: str
    rate_bytes_s: int
    block_bytes: int = BLOCK_BYTES

    def __post_init__(self) -> None:
        _require(_matches(_ID, self.id), "id")
        _require(_matches(_VERSION, self.version), "version")
        _require(_within(self.rate_bytes_s, 1024, 1 << 32), "rate_bytes_s")
        _require(_within(self.block_bytes, MIN_BLOCK_BYTES, BLOCK_BYTES), "block_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Where the command `id` stands; `version` is what the board runs now."""

    id: str
    status: str
    reason: str = ""
    version: str = ""
    done_bytes: int = 0
    size_bytes: int = 0

    def __post_init__(self) -> None:
        _require(_matches(_ID, self.id), "id")
        _require(self.status in STATUSES, "status")
        _require(isinstance(self.reason, str) and isinstance(self.version, str), "reason")
        _require(_within(self.done_bytes, 0, 1 << 40), "done_bytes")
        _require(_within(self.size_bytes, 0, 1 << 40), "size_bytes")

    @property
    def final(self) -> bool:
        """Whether the command is over."""
        return self.status in FINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Ask for `count` blocks of `block_bytes` from block `first` on of a release's file."""

    file: str
    nonce: int
    first: int
    count: int
    block_bytes: int

    def __post_init__(self) -> None:
        _require(_matches(_FILE, self.file) and ".." not in str(self.file), "file")
        _require(_within(self.nonce, 0, (1 << 32) - 1), "nonce")
        _require(_within(self.first, 0, (1 << 32) - 1), "first")
        _require(_within(self.count, 1, MAX_WINDOW), "count")
        _require(_within(self.block_bytes, MIN_BLOCK_BYTES, BLOCK_BYTES), "block_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block of a file of `file_bytes`; `data` None says that there is no such file."""

    nonce: int
    index: int
    file_bytes: int
    data: bytes | None

    def to_bytes(self) -> bytes:
        """Return the frame."""
        data = self.data or b""
        kind = _ABSENT if self.data is None else _DATA
        head = (_WIRE, kind, self.nonce, self.index, self.file_bytes, zlib.crc32(data))
        return _BLOCK.pack(*head) + data

    @classmethod
    def from_bytes(cls, frame: bytes) -> Block:
        """Read a frame.

        Raises:
            MalformedFrameError: if it is none, or damaged.
        """
        if not _BLOCK.size <= len(frame) <= _BLOCK.size + BLOCK_BYTES:
            raise MalformedFrameError(f"update block: {len(frame)} bytes")
        wire, kind, nonce, index, file_bytes, check = _BLOCK.unpack_from(frame)
        data = frame[_BLOCK.size :]
        if wire != _WIRE or kind not in (_DATA, _ABSENT) or zlib.crc32(data) != check:
            raise MalformedFrameError("update block: damaged")
        found = None if kind == _ABSENT else data
        return cls(nonce=nonce, index=index, file_bytes=file_bytes, data=found)


def encode(message: Command | Report | Request) -> bytes:
    """Return a message as JSON."""
    return json.dumps(asdict(message), separators=(",", ":")).encode()


def decode(kind: type[T], payload: bytes) -> T:
    """Read a message of this kind.

    Raises:
        MalformedFrameError: if it is none.
    """
    if len(payload) > MAX_JSON_BYTES:
        raise MalformedFrameError(f"update {kind.__name__}: {len(payload)} bytes")
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    try:
        found: Any = json.loads(payload)
        return kind(**{name: value for name, value in found.items() if name in names})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise MalformedFrameError(f"update {kind.__name__}: {error}") from error


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and bool(pattern.fullmatch(value))


def _within(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _require(condition: bool, name: str) -> None:
    if not condition:
        raise ValueError(f"{name} is out of bounds")
