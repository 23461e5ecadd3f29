"""Whether a topic filter matches a topic (MQTT 3.1.1, 4.7). Pure."""

from __future__ import annotations

__all__ = ["matches"]


def matches(topic_filter: str, topic: str) -> bool:
    """Return whether `topic_filter`, with + for one level and a last # for all, matches `topic`.

    >>> matches("sd/1/+/up/#", "sd/1/pi-1/up/draft")
    True
    """
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in {"+", "#"}:
        return False  # topics of the broker's own are not for wildcards
    for index, level in enumerate(wanted):
        if level == "#":
            return True  # also the parent level itself
        if index >= len(levels) or level not in ("+", levels[index]):
            return False
    return len(wanted) == len(levels)
