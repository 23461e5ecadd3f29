"""Which drafted tokens are accepted, decided where the logits are: one copy to the host a pass.

Knows nothing of sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from edge_server.verifier.acceptance import Trial, accept_tokens
from edge_server.verifier.interface import VerifyOutcome
from edge_server.verifier.torch_ratio import accept_ratios
from edge_server.verifier.torch_sampling import choose, choose_exactly

__all__ = ["accept_all"]

_ROWS_AT_ONCE = 32  # of noise or probabilities: each row takes some 64-bit numbers per token


def accept_all(logits: Tensor, trials: Sequence[Trial]) -> list[VerifyOutcome]:
    """Return what the target says of every draft.

    Args:
        logits: [Σ (len(draft) + 1), vocab], the trials' rows in order, on any device.
        trials: what decides on each.
    """
    logits = logits.float()
    ends = list(accumulate(_rows(trial) for trial in trials))
    spans = [range(end - _rows(trial), end) for end, trial in zip(ends, trials, strict=True)]
    tokens = logits.argmax(dim=-1)
    ratios: list[Tensor] = []
    for part in _parts(trials, lambda trial: not (trial.proposals or trial.parameters.greedy)):
        rows = _index(spans, part, logits)
        parameters = [trials[n].parameters for n in part for _ in spans[n]]
        positions = [trials[n].position + row for n in part for row in range(len(spans[n]))]
        tokens[rows] = choose(logits[rows], parameters, positions)
    tested = list(_parts(trials, lambda trial: bool(trial.proposals)))
    for part in tested:
        found = accept_ratios(logits[_index(spans, part, logits)], [trials[n] for n in part])
        ratios.append(found.flatten())
    received = torch.cat([tokens, *ratios]).tolist()
    own, pairs = received[: len(tokens)], received[len(tokens) :]
    for n, span in enumerate(spans):
        for row in span:
            if own[row] < 0:  # rare
                at = trials[n].position + row - span.start
                own[row] = int(choose_exactly(logits[row : row + 1], [trials[n].parameters], [at]))
    outcomes = [
        accept_tokens(own[span.start : span.stop], trial.draft)
        for span, trial in zip(spans, trials, strict=True)
    ]
    for n, accepted, token in zip(
        (n for part in tested for n in part), pairs[::2], pairs[1::2], strict=True
    ):
        outcomes[n] = VerifyOutcome(accepted=accepted, token=token)
    return outcomes


def _rows(trial: Trial) -> int:
    return len(trial.draft) + 1


def _parts(trials: Sequence[Trial], wanted: Callable[[Trial], bool]) -> Iterator[list[int]]:
    """Yield the indices of the trials that are wanted, in parts of few rows."""
    part: list[int] = []
    rows = 0
    for n, trial in enumerate(trials):
        if not wanted(trial):
            continue
        if part and rows + _rows(trial) > _ROWS_AT_ONCE:
            yield part
            part, rows = [], 0
        part.append(n)
        rows += _rows(trial)
    if part:
        yield part


def _index(spans: Sequence[range], part: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor([row for n in part for row in spans[n]], device=like.device)
