"""What a plan was solved from, to judge by how far the inputs have drifted since."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_server.scheduler.cell import Floats

__all__ = ["Basis"]


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """The sessions that a plan was solved for, and the logarithms of its inputs."""

    sessions: tuple[tuple[str, int], ...]
    logs: Floats

    @classmethod
    def of(cls, sessions: tuple[tuple[str, int], ...], inputs: Sequence[float]) -> Basis:
        """Return the basis of these inputs, which are at least 0."""
        return cls(sessions, np.log(np.maximum(inputs, 1e-9)))

    def near(self, other: Basis, *, drift: float) -> bool:
        """Return whether the sessions are the same and no input is `drift` (relative) away."""
        if self.sessions != other.sessions:
            return False
        return bool(np.abs(self.logs - other.logs).max() <= math.log1p(drift))
