"""What ending drafts by the drafter's own confidence gains, on the shipped pair, at stated times.

python -m benchmarks.early_stop [--tokens N] [--prompts N]

The shipped target writes texts; at every position of them the shipped drafter drafts. What a
verdict would accept is then known for every draft length, and rounds are played through by
arithmetic: a round takes its tokens' draft time and a fixed rest (upload, verification, download);
nothing is drafted while a verdict is awaited. Deterministic but for the models' last bits.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from models.registry import pair_dir, prompts
from sdk.draft.drafter import OnnxDrafter
from sdk.draft.early_stop import EarlyStop
from sdk.model.decoder import Decoder
from sdk.model.sampling import Sampler, SamplingParameters, probability
from sdk.model.tokenizer import Tokenizer

LONGEST = 16
LENGTHS = (4, 8, 16)
TIMES_S = ((0.020, 0.020), (0.020, 0.100), (0.020, 0.400), (0.001, 0.010))  # a token, the rest
PROMPT_TOKENS = 200


class Draft(NamedTuple):
    """Confidences of the tokens drafted at one position, and how many would be accepted."""

    confidences: list[float]
    right: int


def main() -> None:
    """Draft everywhere, play the rounds, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tokens", type=int, default=160, help="of each text (default 160)")
    parser.add_argument("--prompts", type=int, default=6)
    args = parser.parse_args()
    table = Table(title="tokens/s, plain → stopping early (drafted tokens accepted)")
    headings = [f"at most {length}" for length in LENGTHS]
    for heading in ("temperature", "token ms", "rest ms", "best fixed length", *headings):
        table.add_column(heading, justify="right")
    for temperature in (0.0, 1.0):
        texts = [
            drafts(number, text["text"], temperature, args.tokens)
            for number, text in enumerate(prompts()[: args.prompts])
        ]
        for token_s, rest_s in TIMES_S:
            fixed = {
                length: play(texts, length, token_s, rest_s)[0] for length in range(1, LONGEST + 1)
            }
            best = max(fixed, key=lambda length: fixed[length])
            cells = []
            for length in LENGTHS:
                plain, early = (
                    play(texts, length, token_s, rest_s, rule) for rule in (None, EarlyStop())
                )
                cells.append(f"{plain[0]:.1f} → {early[0]:.1f} ({plain[1]:.2f} → {early[1]:.2f})")
            times = f"{token_s * 1e3:.0f}", f"{rest_s * 1e3:.0f}"
            table.add_row(f"{temperature:.0f}", *times, f"{best}: {fixed[best]:.1f}", *cells)
    Console(width=130).print(table)


def drafts(seed: int, prompt: str, temperature: float, tokens: int) -> list[Draft]:
    """Let the target write, and the drafter draft at every position of what it wrote."""
    target = Decoder.load(pair_dir("target"), threads=1)
    drafter = OnnxDrafter.load(pair_dir("drafter"), threads=1)
    parameters = SamplingParameters(temperature=temperature, seed=seed)
    sampler = Sampler(parameters=parameters, vocabulary_size=target.vocabulary_size)
    text = list(Tokenizer(pair_dir("target")).encode(prompt))[-PROMPT_TOKENS:]
    first = len(text) + 1  # the target writes the first token itself
    cache, fed = target.new_cache(), 0
    while len(text) < first + tokens + LONGEST:
        row = target.run(cache, np.array(text[fed:]), score=1)[-1]
        fed = len(text)
        text.append(sampler.choose(row, len(text)))
    return [draft(drafter, sampler, text, start) for start in range(first, first + tokens)]


def draft(drafter: OnnxDrafter, sampler: Sampler, text: list[int], start: int) -> Draft:
    """Draft LONGEST tokens behind `text[:start]`, which goes on as the target wrote it."""
    sequence, confidences = text[:start], []
    for _ in range(LONGEST):
        logits = drafter.next_logits(sequence)
        token = sampler.choose(logits, len(sequence))
        confidences.append(probability(logits, token, sampler.parameters))
        sequence = [*sequence, token]
    pairs = zip(sequence[start:], text[start:], strict=False)
    differing = (index for index, (mine, theirs) in enumerate(pairs) if mine != theirs)
    return Draft(confidences, next(differing, LONGEST))


def play(
    texts: list[list[Draft]],
    longest: int,
    token_s: float,
    rest_s: float,
    rule: EarlyStop | None = None,
) -> tuple[float, float]:
    """Return tokens per second, and the part of drafted tokens that was accepted."""
    emitted, drafted, accepted_in_all, total_s = 0, 0, 0, 0.0
    for text in texts:
        position = 0
        while position < len(text):
            confidences, right = text[position]
            length = 1
            while length < longest and (rule is None or rule.worth(confidences[:length])):
                length += 1
            accepted, seconds = min(right, length), length * token_s + rest_s
            if rule:
                rule.add_draft_time(token_s)
                rule.add_round(
                    confidences[:length], accepted=accepted, tokens=accepted + 1, seconds=seconds
                )
            position += accepted + 1
            emitted, drafted = emitted + accepted + 1, drafted + length
            accepted_in_all, total_s = accepted_in_all + accepted, total_s + seconds
    return emitted / total_s, accepted_in_all / drafted


if __name__ == "__main__":
    main()
