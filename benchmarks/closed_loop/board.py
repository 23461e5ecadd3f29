"""A board: draft one text after the other, until ended. Started by `testbed.py`.

python -m benchmarks.closed_loop.board NUMBER DRAFT_S
"""

from __future__ import annotations

import itertools
import subprocess
import sys

from benchmarks.closed_loop.known import BOARDS, PORT, WEIGHT_BITS
from benchmarks.namespaces import wait_until
from models.registry import pair_dir, prompts
from sdk.config import BrokerConfig
from sdk.device import Device
from sdk.draft.drafter import OnnxDrafter
from sdk.draft.slowed import SlowedDrafter
from sdk.protocol import Mode
from sdk.session_options import SessionOptions

SESSION_TOKENS = 100  # short enough that a measurement sees many texts


def main(number: int, draft_s: float) -> None:
    """Draft as the board of this number, a token in so many seconds."""
    wait_until(has_link)
    drafter = SlowedDrafter(
        drafter=OnnxDrafter.load(pair_dir("drafter"), threads=1), seconds_per_token=draft_s
    )
    device = Device(
        id=BOARDS[number - 1],
        model=pair_dir("drafter"),
        broker=BrokerConfig(host=f"10.99.{number}.2", port=PORT),
        drafter=drafter,
        options=SessionOptions(weight_bits=WEIGHT_BITS),
    )
    texts = [prompt["text"] for prompt in prompts()]
    with device:
        for seed, text in enumerate(itertools.cycle(texts)):
            tokens = device.generate(
                text, max_tokens=SESSION_TOKENS, temperature=1.0, seed=seed, mode=Mode.RATIO
            )
            for _token in tokens:
                pass


def has_link() -> bool:
    """Return whether this namespace has its link."""
    shown = subprocess.run(["ip", "-o", "address"], capture_output=True, text=True, check=True)
    return "up0" in shown.stdout and "inet 10." in shown.stdout


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
