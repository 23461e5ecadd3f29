"""The board's view of releases: python-tuf's client over any fetcher; its clock never falls.

A board without a clock believes the latest time it has seen, kept on disk, never an earlier one:
expired metadata stays expired after the clock fell back to 1970. Knows nothing about MQTT or slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import TargetFile  # type: ignore[attr-defined]
from tuf.ngclient import FetcherInterface, Updater  # type: ignore[attr-defined]

from firmware_tools.durable import write_file
from firmware_tools.errors import RefusedError

__all__ = ["BoardClock", "ReleaseTrust", "Target", "fetch_from_folder"]

Fetch = Callable[[str], Iterator[bytes]]
"""Yield a file's bytes by its path, "metadata/timestamp.json"; KeyError if there is none."""

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (ExpiredMetadataError, "expired"),
    (BadVersionNumberError, "older"),
    (DownloadLengthMismatchError, "size"),
    (LengthOrHashMismatchError, "tampered"),
    (UnsignedMetadataError, "key"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardClock:
    """Time that never falls below what was seen before; `path` keeps it over power cycles."""

    path: Path
    system: Callable[[], datetime] = lambda: datetime.now(timezone.utc)

    def now(self) -> datetime:
        """Return the later of the system's time and the latest seen."""
        seen = self.path.read_text() if self.path.exists() else "0"
        floor = datetime.fromtimestamp(int(seen) if seen.strip().isdigit() else 0, timezone.utc)
        return max(self.system(), floor).replace(microsecond=0)

    def remember(self) -> None:
        """Keep the present as the latest seen."""
        write_file(self.path, str(int(self.now().timestamp())).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A bundle in an authentic release."""

    name: str
    size_bytes: int
    board: str
    python: str
    version: str
    release: int
    file: TargetFile

    def verify(self, path: Path) -> None:
        """Check the downloaded file's size and hash.

        Raises:
            RefusedError: tampered.
        """
        try:
            with path.open("rb") as stream:
                self.file.verify_length_and_hashes(stream)
        except LengthOrHashMismatchError as error:
            raise RefusedError("tampered", f"{self.name}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseTrust:
    """Finds a target in a release that is authentic, whole, current and not older than the last.

    Attributes:
        root: the root metadata that the board was flashed with.
        state: folder of the metadata seen last.
    """

    root: bytes
    state: Path
    clock: BoardClock

    def find(self, name: str, fetch: Fetch) -> Target:
        """Refresh the metadata through `fetch` and return the target.

        Raises:
            RefusedError: expired, older, size, tampered, key, absent or format.
            UpdateError: whatever `fetch` raises as a MultispinError passes through.
        """
        self.state.mkdir(parents=True, exist_ok=True)
        fetcher = _Fetcher(fetch)
        try:
            updater = Updater(str(self.state), "metadata", fetcher=fetcher, bootstrap=self.root)
            # python-tuf reads the system's clock, which a board may not have.
            updater._trusted_set.reference_time = self.clock.now()
            updater.refresh()
            target = updater.get_targetinfo(name)
        except (RepositoryError, DownloadError, ValueError) as error:
            if fetcher.failure is not None:
                raise fetcher.failure from error
            raise _refusal(error) from error
        self.clock.remember()
        if target is None:
            raise RefusedError("absent", f"the release has no {name}")
        return _target(name, target)


def fetch_from_folder(release: Path) -> Fetch:
    """Return a fetcher that reads a release folder."""

    def fetch(path: str) -> Iterator[bytes]:
        try:
            yield (release / path).read_bytes()
        except FileNotFoundError as error:
            raise KeyError(path) from error

    return fetch


class _Fetcher(FetcherInterface):
    def __init__(self, fetch: Fetch) -> None:
        self._wrapped = fetch
        self.failure: Exception | None = None

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            yield from self._wrapped(url)
        except KeyError as error:
            raise DownloadHTTPError(f"{url} is not in the release", 404) from error
        except Exception as error:
            self.failure = error
            raise


def _target(name: str, found: TargetFile) -> Target:
    custom = found.custom or {}
    try:
        return Target(
            name=name,
            size_bytes=found.length,
            board=str(custom["board"]),
            python=str(custom["python"]),
            version=str(custom["version"]),
            release=int(custom["release"]),
            file=found,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise RefusedError("format", f"{name}: the release does not say what it is for") from error


def _refusal(error: Exception) -> RefusedError:
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return RefusedError(reason, f"release metadata: {error}")
    return RefusedError("format", f"release metadata: {error}")
