"""How long to wait before the next attempt to connect. Pure; knows nothing of sockets."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

__all__ = ["Backoff"]


@dataclass(slots=True, kw_only=True)
class Backoff:
    """Full jitter: a uniform wait below a bound that doubles with every failure.

    A fleet whose broker restarts comes back spread out instead of at once. A connection has to
    last before the bound falls again, so that one which is accepted and dropped does not flap.

    Attributes:
        base_s: bound of the first wait.
        cap_s: greatest bound.
        reset_after_s: a connection that lasted so long starts over at `base_s`.
    """

    base_s: float = 0.5
    cap_s: float = 30.0
    reset_after_s: float = 10.0
    random: random.Random = field(default_factory=random.Random)
    failures: int = 0

    def next_s(self, *, connected_s: float) -> float:
        """Return the wait in seconds after a connection that lasted `connected_s` (0: none)."""
        if connected_s >= self.reset_after_s:
            self.failures = 0
        bound_s = min(self.cap_s, self.base_s * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return self.random.uniform(0.0, bound_s)
