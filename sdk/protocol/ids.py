"""Token ids packed at ceil(log2 V) bits, least significant bit first (wire rule W-IDS-1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sdk.errors import MalformedFrameError

__all__ = ["bits_per_id", "pack_ids", "packed_bytes", "unpack_ids"]

_MAX_BITS = 32


def bits_per_id(vocabulary_size: int) -> int:
    """Return ceil(log2 V), at least 1."""
    if vocabulary_size < 1:
        raise ValueError(f"vocabulary size must be at least 1, got {vocabulary_size}")
    return max(1, (vocabulary_size - 1).bit_length())


def packed_bytes(count: int, bits: int) -> int:
    """Return how many bytes `count` ids take at `bits` bits each."""
    return (count * bits + 7) // 8


def pack_ids(ids: Sequence[int] | NDArray[np.integer], bits: int) -> bytes:
    """Pack ids into the fewest whole bytes.

    Raises:
        ValueError: if an id is outside [0, 2^bits), or bits outside [1, 32].
    """
    if not 1 <= bits <= _MAX_BITS:
        raise ValueError(f"bits per id must be in [1, {_MAX_BITS}], got {bits}")
    if len(ids) == 0:
        return b""
    values = np.asarray(ids, dtype=np.int64)
    if values.min() < 0 or values.max() >> bits:
        raise ValueError(f"a token id does not fit in {bits} bits")
    planes = np.unpackbits(values.astype("<u4").view(np.uint8), bitorder="little")
    return np.packbits(planes.reshape(-1, _MAX_BITS)[:, :bits], bitorder="little").tobytes()


def unpack_ids(packed: bytes | memoryview, count: int, bits: int) -> tuple[int, ...]:
    """Unpack `count` ids.

    Raises:
        MalformedFrameError: if the length is wrong or a padding bit is set.
    """
    if not 1 <= bits <= _MAX_BITS or len(packed) != packed_bytes(count, bits):
        raise MalformedFrameError(f"{len(packed)} bytes cannot hold {count} ids of {bits} bits")
    if count == 0:
        return ()
    planes = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    if planes[count * bits :].any():
        raise MalformedFrameError("padding bits behind the ids are set")
    words = np.zeros((count, _MAX_BITS), np.uint8)
    words[:, :bits] = planes[: count * bits].reshape(count, bits)
    return tuple(np.packbits(words, axis=1, bitorder="little").view("<u4")[:, 0].tolist())
