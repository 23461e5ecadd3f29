"""What happens when a pass does not fit the memory: an error that its caller can act on.

Knows nothing of sessions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sdk.errors import CapacityError, first_line

__all__ = ["fits"]

# The CPU's allocator has no exception of its own.
_CPU_SAYS = ("not enough memory", "can't allocate memory")


@contextmanager
def fits(rows: int) -> Iterator[None]:
    """Run a pass of so many rows.

    Raises:
        CapacityError: if memory ran out; what the allocator kept for later is given back.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not isinstance(error, torch.OutOfMemoryError) and not any(
            text in str(error) for text in _CPU_SAYS
        ):
            raise
        reason = first_line(error)
    else:
        return
    # Outside the handler: the error's traceback held the pass's tensors.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise CapacityError(
        f"verifier: a pass of {rows} rows does not fit the memory ({reason}); give less to "
        "--kv-memory"
    )
