"""A bundle's manifest: what it is for and every file in it. Standard library only.

The manifest is the sole index: the archive behind it must hold exactly these files, in this order.
Knows nothing about signatures or archives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from firmware_tools.errors import RefusedError

__all__ = ["BOARDS", "PYTHONS", "FileEntry", "GoldenDraft", "Manifest", "release_of"]

FORMAT = 1
BOARDS = ("pi5", "pi4", "jetson-orin", "generic-arm64")
PYTHONS = ("3.10", "3.11", "3.13")
MAX_MANIFEST_BYTES = 16 << 20
MAX_UNPACKED_BYTES = 8 << 30
MAX_FILES = 100_000
MAX_PATH_BYTES = 240
_MODES = (0o644, 0o755)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"\d+(\.\d+){1,3}[a-z0-9.+-]{0,32}")
_PLAIN_VERSION = re.compile(r"(\d{1,4})\.(\d{1,3})(?:\.(\d{1,3}))?")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file: its path below the slot, its size, its hash and its mode (0644 or 0755)."""

    path: str
    size_bytes: int
    sha256: str
    mode: int = 0o644

    def __post_init__(self) -> None:
        check_path(self.path)
        _require(_is_count(self.size_bytes), f"{self.path}: size {self.size_bytes!r}")
        _require(_is_sha256(self.sha256), f"{self.path}: not a SHA-256: {self.sha256!r}")
        if self.mode not in _MODES:
            raise RefusedError("type", f"{self.path}: mode {self.mode!r} is neither 0644 nor 0755")


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenDraft:
    """What the drafter must answer on any board: greedy tokens after a prompt.

    Attributes:
        prompt, tokens: token ids, both not empty.
        min_equal: leading tokens that must agree; later ones may differ by rounding.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    min_equal: int

    def __post_init__(self) -> None:
        ids = (*self.prompt, *self.tokens)
        _require(all(_is_count(each) for each in ids), "golden draft: ids are not token ids")
        _require(bool(self.prompt), "golden draft: no prompt")
        _require(
            _is_count(self.min_equal) and 1 <= self.min_equal <= len(self.tokens),
            f"golden draft: min_equal {self.min_equal!r} of {len(self.tokens)} tokens",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a bundle is for and what it holds.

    Attributes:
        board: one of BOARDS; python: one of PYTHONS, the board's own interpreter.
        glibc: the oldest C library it runs on, "2.28".
        libraries: shared libraries that the board must have.
        version: for people; release: a counter that only grows, for the board.
        model_sha256, tokenizer_sha256: of the model's graph and tokenizer, "" without one.
        golden: what the drafter must answer before the slot counts as good.
        payload_bytes, payload_sha256: of the compressed archive.
        files: every file, sorted by path.
    """

    board: str
    python: str
    glibc: str
    libraries: tuple[str, ...]
    version: str
    release: int
    model_sha256: str
    tokenizer_sha256: str
    golden: GoldenDraft
    payload_bytes: int
    payload_sha256: str
    files: tuple[FileEntry, ...]
    format: int = FORMAT

    def __post_init__(self) -> None:
        _require(self.format == FORMAT, f"format {self.format!r}; this program reads {FORMAT}")
        _require(self.board in BOARDS, f"board {self.board!r} is none of {', '.join(BOARDS)}")
        _require(self.python in PYTHONS, f"Python {self.python!r}")
        _require(bool(re.fullmatch(r"2\.\d{1,3}", str(self.glibc))), f"glibc {self.glibc!r}")
        _require(all(isinstance(each, str) for each in self.libraries), "libraries: not names")
        _require(bool(_VERSION.fullmatch(str(self.version))), f"version {self.version!r}")
        _require(_is_count(self.release) and self.release > 0, f"release {self.release!r}")
        _require(_is_count(self.payload_bytes), f"payload of {self.payload_bytes!r} bytes")
        for digest in (self.model_sha256, self.tokenizer_sha256):
            _require(digest == "" or _is_sha256(digest), f"not a SHA-256: {digest!r}")
        _require(_is_sha256(self.payload_sha256), f"not a SHA-256: {self.payload_sha256!r}")
        _check_files(self.files)

    @property
    def unpacked_bytes(self) -> int:
        """Sum of the files' sizes."""
        return sum(entry.size_bytes for entry in self.files)

    def to_bytes(self) -> bytes:
        """Return the one encoding of this manifest."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return text.encode("ascii") + b"\n"

    @classmethod
    def from_bytes(cls, encoded: bytes) -> Manifest:
        """Read a manifest.

        Raises:
            RefusedError: unless it is the one encoding of a valid manifest.
        """
        try:
            found = json.loads(encoded)
            found["files"] = tuple(_build(FileEntry, each) for each in found["files"])
            golden = {key: _tuple(value) for key, value in found["golden"].items()}
            found["golden"] = _build(GoldenDraft, golden)
            found["libraries"] = tuple(found["libraries"])
            manifest = _build(cls, found)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RefusedError("format", f"manifest: {error}") from error
        if manifest.to_bytes() != encoded:
            raise RefusedError("format", "manifest: not in its one encoding")
        return manifest


def release_of(version: str) -> int:
    """Return the release counter of a plain version: 1.2.3 → 1002003.

    Raises:
        ValueError: for a version with anything but two or three numbers.
    """
    found = _PLAIN_VERSION.fullmatch(version)
    if not found:
        raise ValueError(f"version {version!r} is not X.Y.Z; give --release N as well")
    major, minor, patch = (int(part or 0) for part in found.groups())
    return major * 1_000_000 + minor * 1_000 + patch


def check_path(path: str) -> None:
    """Refuse a path that is not plainly below the slot."""
    if not isinstance(path, str) or not path or not path.isprintable() or "\\" in path:
        raise RefusedError("path", f"{path!r} is not a path of ours")
    if path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
        raise RefusedError("path", f"{path!r} leaves the slot")
    if len(path.encode()) > MAX_PATH_BYTES:
        raise RefusedError("path", f"{path[:40]!r}… is longer than {MAX_PATH_BYTES} bytes")


def _check_files(files: Sequence[FileEntry]) -> None:
    paths = [entry.path for entry in files]
    if len(set(paths)) != len(paths):
        double = next(path for path in paths if paths.count(path) > 1)
        raise RefusedError("double", f"{double!r} is listed twice")
    _require(paths == sorted(paths), "files are not sorted by path")
    _require(len(files) <= MAX_FILES, f"{len(files)} files; the most is {MAX_FILES}")
    if "manifest.json" in paths:
        raise RefusedError("path", "'manifest.json' is the slot's own")
    folders = {path[:end] for path in paths for end in _slashes(path)}
    for path in paths:
        if path in folders:
            raise RefusedError("double", f"{path!r} is a file and a folder")
    if sum(entry.size_bytes for entry in files) > MAX_UNPACKED_BYTES:
        raise RefusedError("size", f"unpacked it is more than {MAX_UNPACKED_BYTES} bytes")


def _slashes(path: str) -> list[int]:
    return [index for index, letter in enumerate(path) if letter == "/"]


def _build(kind: type[T], found: Any) -> T:
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(found, dict) or set(found) != names:
        raise RefusedError("format", f"manifest: {kind.__name__} has other fields than ours")
    return kind(**found)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and bool(_SHA256.fullmatch(value))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RefusedError("format", f"manifest: {message}")
