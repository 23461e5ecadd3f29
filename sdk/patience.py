"""How long a device waits for an answer: says so while it lasts, and when it is enough.

Knows nothing of what was asked; the caller says how long it has been waiting.
"""

from __future__ import annotations

import logging

from sdk.errors import LinkLostError
from sdk.session_options import Offline, SessionOptions

__all__ = ["Patience"]

_LOG = logging.getLogger(__name__)

_FIRST_WORD_S = 5.0  # then after twice as long, and so on


class Patience:
    """Judge every wait of a session, one after the other."""

    def __init__(self, *, options: SessionOptions) -> None:
        """Take the limits from the options."""
        self._offline = options.offline
        wait = options.offline is Offline.WAIT
        self._limit_s = options.give_up_s if wait else options.lost_after_s
        self._next_word_s = _FIRST_WORD_S

    def check(self, waited_s: float) -> None:
        """Say that a wait lasts, in ever longer steps.

        Raises:
            LinkLostError: when the wait has lasted as long as the options allow.
        """
        if waited_s >= self._limit_s:
            if self._offline is Offline.LOCAL:
                _LOG.warning(
                    "await verdict: no answer from the edge server for %.0f s; going on with the "
                    "small model alone, unverified",
                    waited_s,
                )
            raise LinkLostError(
                f"await verdict: no answer from the edge server for {waited_s:.0f} s; "
                "check that 'multispin serve' runs and that the broker can be reached"
            )
        if waited_s < _FIRST_WORD_S:
            self._next_word_s = _FIRST_WORD_S
        elif waited_s >= self._next_word_s:
            self._next_word_s = 2 * waited_s
            _LOG.warning(
                "await verdict: no answer from the edge server for %.0f s, waiting for up to "
                "%.0f s; check that 'multispin serve' runs at this broker and, with "
                "certificates, that this device's id is the name in its certificate",
                waited_s,
                self._limit_s,
            )
