"""The kinds of broker that tests run on, and what to do where one is missing."""

from __future__ import annotations

import importlib.util
import os

import pytest

from edge_server.broker import find_mosquitto

KINDS = ("mosquitto", "amqtt")


def need_broker(kind: str) -> None:
    """Skip where the broker is not installed; in CI that is a failure."""
    there = find_mosquitto() if kind == "mosquitto" else importlib.util.find_spec("amqtt")
    if not there:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{kind} is not installed")
