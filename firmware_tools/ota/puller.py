"""Pull files of a release over MQTT, block by block, at a bounded rate.

Blocks may be lost, doubled, reordered or of another file: each is asked for until it is here. Knows
nothing about what the files mean.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from firmware_tools.errors import UpdateError
from firmware_tools.ota.messages import BLOCK_BYTES, Block, Request, encode
from firmware_tools.ota.part import PartFile
from sdk.errors import MalformedFrameError
from sdk.protocol import topics
from sdk.transport.interface import Message, Transport

__all__ = ["Pace", "Puller"]

WINDOW = 4
_SMALL_FILE_BLOCKS = 128


@dataclass(slots=True, kw_only=True)
class Pace:
    """Bounds bytes per second by waiting after each window; the radio belongs to drafts."""

    rate_bytes_s: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _free_at_s: float = 0.0

    def spend(self, size_bytes: int) -> None:
        """Wait until `size_bytes` more are within the rate."""
        now_s = self.clock()
        self._free_at_s = max(self._free_at_s, now_s) + size_bytes / self.rate_bytes_s
        if self._free_at_s > now_s:
            self.sleep(self._free_at_s - now_s)


@dataclass(slots=True, kw_only=True)
class Puller:
    """One board's side of the block exchange.

    Attributes:
        timeout_s: without any wanted block for so long, the missing ones are asked for again.
        patience_s: without any wanted block for so long, the update waits no longer.
        other: messages of other topics that came meanwhile; the agent takes them.
        cancelled: asked between windows.
    """

    transport: Transport
    device: str
    pace: Pace
    block_bytes: int = BLOCK_BYTES
    timeout_s: float = 3.0
    patience_s: float = 3600.0
    other: deque[Message] = field(default_factory=lambda: deque(maxlen=64))
    cancelled: Callable[[], bool] = lambda: False

    def fetch(self, file: str) -> Iterator[bytes]:
        """Yield a small file's blocks in order.

        Raises:
            KeyError: if the release has no such file.
            UpdateError: if nobody answers, or it is longer than any small file of ours.
        """
        first = self._window(file, [0])[0]
        count = -(-first.file_bytes // self.block_bytes)
        if count > _SMALL_FILE_BLOCKS:
            raise UpdateError(f"update: {file} of {first.file_bytes} bytes is too long")
        yield first.data or b""
        for index in range(1, count):
            yield self._window(file, [index])[0].data or b""

    def download(self, file: str, part: PartFile, progress: Callable[[int], None]) -> None:
        """Fill `part` with the blocks that it lacks.

        Raises:
            UpdateError: if nobody answers, the file is gone or another, or it was cancelled.
        """
        while missing := part.missing:
            if self.cancelled():
                raise UpdateError("update: cancelled by the operator")
            try:
                blocks = self._window(file, missing[:WINDOW])
            except KeyError as error:
                raise UpdateError(f"update: {file} is no longer offered") from error
            for block in blocks:
                if block.file_bytes != part.size_bytes:
                    raise UpdateError(f"update: {file} changed while it was pulled; update again")
                if not part.put(block.index, block.data or b""):
                    raise UpdateError(
                        f"update: block {block.index} of {file} came with {len(block.data or b'')} "
                        f"bytes, not {part.length(block.index)}; update again"
                    )
            progress(part.done_bytes)

    def _window(self, file: str, wanted: Sequence[int]) -> list[Block]:
        """Ask for these blocks until all are here."""
        nonce = secrets.randbits(32)
        have: dict[int, Block] = {}
        deadline_s = time.monotonic() + self.patience_s
        while len(have) < len(wanted):
            missing = [index for index in wanted if index not in have]
            self._ask(file, nonce, missing)
            while block := self._next_block(nonce, self.timeout_s):
                if block.data is None:
                    raise KeyError(file)
                if block.index in missing and block.index not in have:
                    have[block.index] = block
                    deadline_s = time.monotonic() + self.patience_s
                if len(have) == len(wanted):
                    break
            if time.monotonic() > deadline_s:
                raise UpdateError(f"update: nobody sends {file}; is 'flash ota' still running?")
            if self.cancelled():
                raise UpdateError("update: cancelled by the operator")
        self.pace.spend(sum(len(block.data or b"") for block in have.values()))
        return [have[index] for index in wanted]

    def _ask(self, file: str, nonce: int, missing: Sequence[int]) -> None:
        """Ask for every run of consecutive blocks."""
        runs: list[list[int]] = []
        for index in missing:
            if runs and runs[-1][-1] == index - 1:
                runs[-1].append(index)
            else:
                runs.append([index])
        for run in runs:
            request = Request(
                file=file,
                nonce=nonce,
                first=run[0],
                count=len(run),
                block_bytes=self.block_bytes,
            )
            self.transport.publish(topics.up(self.device, "block"), encode(request))

    def _next_block(self, nonce: int, timeout_s: float) -> Block | None:
        """Return the next block of this request, or None after `timeout_s` without one."""
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            message = self.transport.receive(left_s)
            if message is None:
                return None
            if message.topic != topics.down(self.device, "block"):
                self.other.append(message)
                continue
            try:
                block = Block.from_bytes(message.payload)
            except MalformedFrameError:
                continue
            if block.nonce == nonce:
                return block
        return None
