"""Generate verified text on this board, as a program: `python examples/generate.py HOST:PORT`.

Start the other side first: `multispin serve`.
"""

from __future__ import annotations

import sys

import sdk
from models.registry import pair_dir
from sdk.errors import MultispinError


def main() -> None:
    """Stream one text and say how it was made."""
    broker = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:1883"
    with sdk.Device(id="example", model=pair_dir("drafter"), broker=broker) as device:
        for token in device.generate("def main(argv):\n    ", max_tokens=64):
            print(token.text, end="", flush=True)
        stats = device.stats
    print(f"\n{stats.accepted} of {stats.drafted} drafted tokens were accepted", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except MultispinError as error:  # no broker, no server, no model: one line says which
        sys.exit(f"generate: {error}")
