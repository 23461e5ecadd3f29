"""Which drafted tokens the target accepts: pure maths over one session's rows of logits.

Greedy and coupled verification are one rule: choose the target's own token at every row; the draft
is accepted while it equals that choice. In coupled mode the choice adds the noise that the device
added too (arXiv 2408.07978), so the output is the target's own sample whatever was drafted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_server.verifier.interface import VerifyOutcome
from sdk.model.sampling import Sampler

__all__ = ["accept"]


def accept(
    logits: NDArray[np.float32], draft: Sequence[int], *, sampler: Sampler, position: int
) -> VerifyOutcome:
    """Return the accepted prefix and the target's token behind it.

    Args:
        logits: [len(draft) + 1, vocab]; row i is the target's view of what follows draft[:i].
        draft: the drafted ids.
        sampler: the session's choice rule.
        position: absolute index of the first drafted token.
    """
    for accepted, row in enumerate(logits):
        token = sampler.choose(row, position + accepted)
        if accepted == len(draft) or token != draft[accepted]:
            return VerifyOutcome(accepted=accepted, token=token)
    raise ValueError(f"{len(logits)} rows of logits for {len(draft)} drafted tokens")
