"""How likely tokens are beside the likeliest one: integers, the same on every machine.

Top-p and min-p compare sums of exponentials with a limit. A maths library's exponential differs in
its last bit between machines, and a sum depends on its order; then board, edge server and GPU would
now and then keep different tokens. So e^x comes from correctly rounded single-precision operations
alone, in the order kept here, and is rounded to an integer: sums of those are exact in any order.
Knows nothing of sampling.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EXP2_TERMS",
    "LIKELIEST",
    "LIKELIEST_BITS",
    "LOG2_E",
    "LOWEST_NATS",
    "likelihoods",
]

LIKELIEST_BITS: Final = 30
LIKELIEST: Final = 1 << LIKELIEST_BITS
LOWEST_NATS: Final = 24.0  # e^−24 · 2^30 rounds to 0
LOG2_E: Final = np.float32(1.4426950408889634)
EXP2_TERMS: Final = tuple(np.float32(math.log(2) ** n / math.factorial(n)) for n in range(7))

_EXPONENT_BIAS: Final = 127
_MANTISSA_BITS: Final = 23


def likelihoods(logits: NDArray[np.float32], peak: np.float32) -> NDArray[np.float32]:
    """Return 2^30 · e^(logits − peak), rounded to integers: any shape.

    e^x = 2^n · 2^f with n + f = x / ln 2, |f| ≤ ½, and Taylor's series of 2^f to f^6: within
    (|x| + 3) · 2^−23 of the true value, relatively, or within 0.51. Below −21.5 nats it is 0.

    Args:
        logits: transformed or not, none above `peak`; −inf gives 0.
        peak: the greatest of them, finite.

    Returns:
        Whole numbers in [0, 2^30]; sum them as float64, where up to 2^23 of them add up exactly.
    """
    x = np.subtract(logits, peak)
    np.maximum(x, np.float32(-LOWEST_NATS), out=x)
    np.multiply(x, LOG2_E, out=x)
    n = np.rint(x)
    f = np.subtract(x, n, out=x)
    series = np.multiply(f, EXP2_TERMS[-1])
    for coefficient in EXP2_TERMS[-2:0:-1]:
        np.add(series, coefficient, out=series)
        np.multiply(series, f, out=series)
    np.add(series, EXP2_TERMS[0], out=series)
    exponent = n.astype(np.int32)
    exponent += _EXPONENT_BIAS + LIKELIEST_BITS
    exponent <<= _MANTISSA_BITS
    np.multiply(series, exponent.view(np.float32), out=series)
    rounded: NDArray[np.float32] = np.rint(series, out=series)
    return rounded
