"""The document's commands exist with these options; tests/board runs them."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from sdk.cli import COMMANDS

TEXT = (Path(__file__).parents[2] / "docs" / "flashing.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("multispin")])
def test_every_command_in_the_document_is_understood(line: str) -> None:
    words = shlex.split(line)
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(COMMANDS[words[1]].module).configure(parser)
    parser.parse_args(words[2:])


def test_the_document_has_commands_and_no_other_shell_blocks() -> None:
    assert len(LINES) > 15
    assert {line.split()[0] for line in LINES} == {"multispin", "mosquitto"}
