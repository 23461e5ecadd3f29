"""Topics: W-TOPIC-1, W-TOPIC-2, W-TOPIC-3."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.errors import ConfigError
from sdk.protocol import UP_FILTER, check_device_id, down, parse_up, status, up

DEVICE_IDS = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,31}", fullmatch=True)
LEAVES = st.from_regex(r"[a-z]{1,16}", fullmatch=True)


def test_topics_are_as_written_down() -> None:
    """W-TOPIC-2."""
    assert up("pi-5.kitchen_1", "draft") == "sd/1/pi-5.kitchen_1/up/draft"
    assert down("7", "verdict") == "sd/1/7/down/verdict"
    assert status("a") == "sd/1/a/status"
    assert UP_FILTER == "sd/1/+/up/#"


@given(device=DEVICE_IDS, leaf=LEAVES)
def test_what_is_built_is_parsed_again(device: str, leaf: str) -> None:
    """W-TOPIC-1, W-TOPIC-3."""
    assert parse_up(up(device, leaf)) == (device, leaf)
    assert parse_up(down(device, leaf)) is None
    assert parse_up(status(device)) is None


INJECTIONS = [
    *["", "a/b", "+", "#", "a#", "a+b", "/", "a/up/draft", "../x", ".a", "-a", "_a", "A", "$SYS"],
    *["a\0", "a\n", "\na", " a", "a b", "a" * 33, "\u00e9", "\uff41", "\u0661", "\u017f", "\u212a"],
]


@pytest.mark.parametrize("device", INJECTIONS)
def test_no_topic_is_injected_through_a_device_id(device: str) -> None:
    """W-TOPIC-1."""
    for build in (check_device_id, status, lambda name: up(name, "draft")):
        with pytest.raises(ConfigError, match="device id"):
            build(device)
    assert parse_up(f"sd/1/{device}/up/draft") is None


@pytest.mark.parametrize(
    "leaf", ["", "a/b", "+", "#", "Draft", "draft1", "a" * 17, "draft\n", "\u00e9"]
)
def test_no_topic_is_injected_through_a_leaf(leaf: str) -> None:
    """W-TOPIC-1."""
    for build in (up, down):
        with pytest.raises(ValueError, match="leaf"):
            build("a", leaf)
    assert parse_up(f"sd/1/a/up/{leaf}") is None


@pytest.mark.parametrize(
    "topic", ["", "sd/1/a/up", "sd/1/a/up/x/y", "sd/2/a/up/x", "/sd/1/a/up/x", "xx/1/a/up/x"]
)
def test_foreign_topics_are_not_parsed(topic: str) -> None:
    """W-TOPIC-1."""
    assert parse_up(topic) is None


@given(topic=st.text())
def test_whatever_is_parsed_follows_the_grammar(topic: str) -> None:
    """W-TOPIC-1, W-TOPIC-3: whatever a broker delivers, a device id is a device id."""
    parsed = parse_up(topic)
    if parsed is not None:
        assert up(*parsed) == topic
        assert re.fullmatch(r"sd/1/[a-z0-9._-]{1,32}/up/[a-z]{1,16}", topic)
