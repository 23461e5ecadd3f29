"""Windows of tokens: each once an epoch, in an order that depends on seed and epoch alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Batches", "held_out_windows"]


class Batches:
    """Cut `tokens` into windows of `length` + 1, shifted and shuffled anew in each epoch."""

    def __init__(
        self, *, tokens: npt.NDArray[np.uint16], length: int, batch: int, seed: int
    ) -> None:
        self.tokens, self.length, self.batch, self.seed = tokens, length, batch, seed
        self.steps_per_epoch = (len(tokens) // length - 2) // batch
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"{len(tokens)} tokens are too few for one batch of {batch} windows of {length}"
            )
        self._epoch, self._starts = -1, np.empty(0, dtype=np.int64)

    def at(self, step: int) -> Tensor:
        """Return the windows [batch, length + 1] of a step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed, self.length, epoch))
            shift = int(rng.integers(self.length))
            order = rng.permutation(len(self.tokens) // self.length - 2)
            self._epoch, self._starts = epoch, order * self.length + shift
        starts = self._starts[index * self.batch : (index + 1) * self.batch]
        return _windows(self.tokens, starts, self.length + 1)


def held_out_windows(tokens: npt.NDArray[np.uint16], *, length: int, count: int) -> Tensor:
    """Return up to `count` windows [count, length + 1] spread evenly over the tokens."""
    count = min(count, (len(tokens) - 1) // length)
    starts = np.linspace(0, len(tokens) - length - 1, count).astype(np.int64)
    return _windows(tokens, starts, length + 1)


def _windows(tokens: npt.NDArray[np.uint16], starts: npt.NDArray[np.int64], length: int) -> Tensor:
    return torch.from_numpy(tokens[starts[:, None] + np.arange(length)].astype(np.int64))
