"""The operator's side of the block exchange: answers requests from a release folder.

It serves only what lies plainly in the release; each board's traffic is bounded by what that board
asks for. Knows nothing about commands.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from firmware_tools.ota.messages import Block, Request, decode
from sdk.errors import MalformedFrameError
from sdk.protocol import topics
from sdk.transport.interface import Transport

__all__ = ["Shop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shop:
    """Serves one release folder."""

    release: Path

    def answer(self, transport: Transport, device: str, payload: bytes) -> int:
        """Send the blocks that a request asks for; return how many bytes of files that were."""
        try:
            request = decode(Request, payload)
        except MalformedFrameError:
            return 0
        sent_bytes = 0
        for block in self.blocks(request):
            transport.publish(topics.down(device, "block"), block.to_bytes())
            sent_bytes += len(block.data or b"")
        return sent_bytes

    def blocks(self, request: Request) -> list[Block]:
        """Return the requested blocks that exist.

        One without data if the file does not exist; an empty one if the first lies beyond its end,
        which tells the board that the file is another by now.
        """
        path = self.release / request.file
        if path.is_symlink() or not path.is_file():
            return [Block(nonce=request.nonce, index=request.first, file_bytes=0, data=None)]
        file_bytes = path.stat().st_size
        found = []
        with path.open("rb") as stream:
            stream.seek(request.first * request.block_bytes)
            for index in range(request.first, request.first + request.count):
                data = stream.read(request.block_bytes)
                if data or index == request.first:
                    found.append(
                        Block(nonce=request.nonce, index=index, file_bytes=file_bytes, data=data)
                    )
        return found
