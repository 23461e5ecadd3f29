"""Coupled noise: the same Gumbel variates on every machine, keyed by (seed, position, token id).

Board and edge server each add this noise to their own log-probabilities and take the argmax; where
the two models agree closely enough, the two argmaxes are equal (Daliri et al., arXiv 2408.07978).
Nothing but the key decides a variate, so a stream survives restarts, batch mates and lost messages
unchanged.

Construction. A counter-based generator in the sense of Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3" (SC 2011): Philox4x32-10, keyed by the seed and counting positions, gives 32-bit
words for a position. Between two of them, each token id passes twice through lowbias32, the
bijective mixer of C. Wellons' hash-prospector: token ^ word0, mix, ^ word1, mix. Only 32-bit
integer operations per token, which a GPU repeats bit for bit. Bits become Gumbel variates through
correctly rounded IEEE operations alone (`_log`), never through a maths library, whose last bit
differs between machines.

This module knows nothing of models, temperatures or wires.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ATANH_TERMS",
    "LN_2",
    "MAX_POSITION",
    "MAX_SEED",
    "SQRT_HALF",
    "CoupledNoise",
    "Stream",
    "gumbel",
    "philox4x32",
    "position_words",
    "uniform",
]

MAX_SEED: Final = 2**64 - 1
MAX_POSITION: Final = 2**32 - 1

_MASK32: Final = 0xFFFFFFFF
_PHILOX_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_PHILOX_KEY_STEPS: Final = (0x9E3779B9, 0xBB67AE85)
_PHILOX_ROUNDS: Final = 10

SQRT_HALF: Final = 0.7071067811865476
LN_2: Final = 0.6931471805599453
ATANH_TERMS: Final = tuple(1.0 / (2 * n + 1) for n in range(12))

_BUCKET_BITS: Final = 12  # the leading bits bound the noise, for pruning


class Stream(IntEnum):
    """Independent noise streams of one (seed, position)."""

    COUPLED = 0  # shared by board and server
    ACCEPT = 1  # the server's acceptance tests in ratio mode
    RESIDUAL = 2  # the server's residual and bonus draws in ratio mode
    DRAFT = 3  # the board's own draws in ratio mode


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Return one block of Philox4x32-10 (Salmon et al. 2011, §4.3), four 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_PHILOX_ROUNDS):
        product0 = _PHILOX_MULTIPLIERS[0] * c0
        product1 = _PHILOX_MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & _MASK32,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & _MASK32,
        )
        k0 = (k0 + _PHILOX_KEY_STEPS[0]) & _MASK32
        k1 = (k1 + _PHILOX_KEY_STEPS[1]) & _MASK32
    return c0, c1, c2, c3


def position_words(
    seed: int, position: int, stream: Stream, attempt: int = 0
) -> tuple[int, int, int, int]:
    """Return the four 32-bit words of one position; raise ValueError out of range."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be in [0, 2^64), got {seed}")
    if not 0 <= position <= MAX_POSITION:
        raise ValueError(f"position must be in [0, 2^32), got {position}")
    return philox4x32((position, stream, attempt & _MASK32, 0), (seed & _MASK32, seed >> 32))


def uniform(seed: int, position: int, stream: Stream, attempt: int = 0) -> float:
    """Return one float64 in (0, 1), keyed by (seed, position, stream, attempt modulo 2^32).

    `attempt` tells apart the times that one position is looked at: in ratio mode, a number that
    once helped to reject must not be used again.
    """
    high, low, _, _ = position_words(seed, position, stream, attempt)
    return (((high << 20) | (low >> 12)) + 0.5) * 2.0**-52  # 52 bits, so that + ½ is exact


def _log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ln x from +, −, ×, ÷ alone: the same bits on every IEEE 754 machine.

    ln(m·2^e) = e·ln 2 + 2·atanh(f / (2 + f)) with f = m − 1, m in [√½, √2); 12 terms reach 1e-16.
    """
    mantissa, exponent = np.frexp(x)
    low = mantissa < SQRT_HALF
    f = np.where(low, mantissa * 2.0, mantissa) - 1.0
    s = f / (f + 2.0)
    z = s * s
    series = np.full_like(z, ATANH_TERMS[-1])
    for term in reversed(ATANH_TERMS[:-1]):
        series = series * z + term
    logarithm: NDArray[np.float64] = (exponent - low) * LN_2 + 2.0 * s * series
    return logarithm


def gumbel(bits: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Return Gumbel variates −ln(−ln u), u = (bits + ½)·2⁻³²: any shape, monotone in bits."""
    u = (bits.astype(np.float64) + 0.5) * 2.0**-32
    return -_log(-_log(u))


_BUCKET_SHIFT: Final = np.uint32(32 - _BUCKET_BITS)
_FIRST_OF_BUCKET: Final = np.arange(2**_BUCKET_BITS, dtype=np.uint32) << _BUCKET_SHIFT
_LOWER_BOUNDS: Final = gumbel(_FIRST_OF_BUCKET).astype(np.float32)
_UPPER_BOUNDS: Final = gumbel(_FIRST_OF_BUCKET | np.uint32(2 ** int(_BUCKET_SHIFT) - 1)).astype(
    np.float32
)


def _multiply_middle(x: NDArray[np.uint32], scratch: NDArray[np.uint32]) -> None:
    """Apply lowbias32 without its first and last step, x ^= x >> 16, in place."""
    np.multiply(x, np.uint32(0x7FEB352D), out=x)
    np.right_shift(x, 15, out=scratch)
    np.bitwise_xor(x, scratch, out=x)
    np.multiply(x, np.uint32(0x846CA68B), out=x)


def _folded(word: int) -> int:
    return word ^ (word >> 16)


class CoupledNoise:
    """Gumbel noise over one vocabulary for one seed; not thread-safe (it reuses its buffers)."""

    def __init__(self, *, vocabulary_size: int, seed: int, stream: Stream = Stream.COUPLED) -> None:
        """Prepare buffers.

        Args:
            vocabulary_size: number of token ids, at least 1.
            seed: in [0, 2^64).
            stream: which of the independent streams to draw from.

        Raises:
            ValueError: if a value is out of range.
        """
        if vocabulary_size < 1:
            raise ValueError(f"vocabulary size must be at least 1, got {vocabulary_size}")
        position_words(seed, 0, stream)
        self.seed = seed
        self.stream = stream
        ids = np.arange(vocabulary_size, dtype=np.uint32)
        self._folded_ids = ids ^ (ids >> np.uint32(16))
        self._bits = np.empty(vocabulary_size, np.uint32)
        self._scratch = np.empty(vocabulary_size, np.uint32)

    def bits(self, position: int) -> NDArray[np.uint32]:
        """Return every token's noise bits at `position`: [vocab], valid until the next call."""
        bits = self._leading_bits(position)
        np.right_shift(bits, 16, out=self._scratch)
        return np.bitwise_xor(bits, self._scratch, out=bits)

    def _leading_bits(self, position: int) -> NDArray[np.uint32]:
        """Return the noise bits without the last x ^= x >> 16, which leaves the upper half alone.

        That step distributes over ^: the mixer's first one is done to the ids once and to word0;
        its last one cancels against the first one of the second pass, but for word1's part.
        """
        self._mix(self._folded_ids, position, self._bits, self._scratch)
        return self._bits

    def _mix(
        self,
        folded_ids: NDArray[np.uint32],
        position: int,
        bits: NDArray[np.uint32],
        scratch: NDArray[np.uint32],
    ) -> None:
        word0, word1, _, _ = position_words(self.seed, position, self.stream)
        np.bitwise_xor(folded_ids, np.uint32(_folded(word0)), out=bits)
        _multiply_middle(bits, scratch)
        np.bitwise_xor(bits, np.uint32(_folded(word1)), out=bits)
        _multiply_middle(bits, scratch)

    def argmax(self, logits: NDArray[np.float32], position: int) -> int:
        """Return argmax_i(logits_i + G_i), an exact sample of softmax; ties go to the lowest id.

        Args:
            logits: [vocab], unnormalised log-probabilities; −inf excludes a token.
            position: absolute position in the sequence of the token to be drawn.
        """
        return _winner(logits, self._leading_bits(position))

    def argmax_among(
        self, ids: NDArray[np.intp], logits: NDArray[np.float32], position: int
    ) -> int:
        """Do what `argmax` does where only some tokens are not excluded.

        Args:
            ids: those tokens, ascending, at least one.
            logits: [ids], of those tokens.
            position: as in `argmax`.
        """
        bits, scratch = self._bits[: ids.size], self._scratch[: ids.size]
        self._mix(np.take(self._folded_ids, ids), position, bits, scratch)
        return int(ids[_winner(logits, bits)])


def _winner(logits: NDArray[np.float32], leading: NDArray[np.uint32]) -> int:
    """Return the index of the highest score, the lowest among equals.

    A table bounds every variate by its leading bits. The luckiest tokens, those in its last
    bucket, and the likeliest one set a score; whoever is not among them has less luck than
    that bucket's least and must be likely enough to reach the score without it. Only the few
    that are left need their exact variate.
    """
    lucky = leading >= _FIRST_OF_BUCKET[-1]
    setters = np.append(np.flatnonzero(lucky), logits.argmax())
    certain = float((logits[setters] + _LOWER_BOUNDS[leading[setters] >> _BUCKET_SHIFT]).max())
    certain -= 1e-3 + 1e-6 * abs(certain)  # float32 rounding of the bounds
    near = logits >= certain - float(_UPPER_BOUNDS[-2])
    candidates = np.flatnonzero(np.logical_or(near, lucky, out=near))
    left = leading[candidates]
    bounds = logits[candidates] + _UPPER_BOUNDS[left >> _BUCKET_SHIFT]
    possible = bounds >= certain
    candidates, left = candidates[possible], left[possible]
    scores = logits[candidates].astype(np.float64) + gumbel(left ^ (left >> np.uint32(16)))
    return int(candidates[int(scores.argmax())])
