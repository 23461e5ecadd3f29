"""A wait that lasts is told, in ever longer steps, and ends where the options say."""

from __future__ import annotations

import pytest

from sdk.errors import LinkLostError
from sdk.patience import Patience
from sdk.session_options import Offline, SessionOptions


def test_a_silent_wait_is_told_and_the_next_one_anew(caplog: pytest.LogCaptureFixture) -> None:
    patience = Patience(options=SessionOptions(offline=Offline.WAIT, give_up_s=100.0))
    told = []
    for waited_s in (1, 4, 6, 8, 11, 13, 25, 40, 0.5, 4, 7):
        caplog.clear()
        patience.check(waited_s)
        told += [waited_s] * len(caplog.records)
    assert told == [6, 13, 40, 7]
    assert "no answer from the edge server for 7 s" in caplog.text
    assert "up to 100 s" in caplog.text


@pytest.mark.parametrize(
    ("offline", "limit_s"), [(Offline.WAIT, 60.0), (Offline.LOCAL, 15.0), (Offline.FAIL, 15.0)]
)
def test_the_wait_ends_where_the_options_say(
    offline: Offline, limit_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    options = SessionOptions(offline=offline, lost_after_s=15.0, give_up_s=60.0)
    patience = Patience(options=options)
    patience.check(limit_s - 0.1)
    with pytest.raises(LinkLostError, match="multispin serve"):
        patience.check(limit_s)
    assert ("going on with the small model alone" in caplog.text) == (offline is Offline.LOCAL)
