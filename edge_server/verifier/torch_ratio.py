"""Ratio mode on the device: `acceptance.accept_ratio` for many drafts of different lengths at once.

Decisions are those of the host but for rounding, which costs no exactness: the numbers that decide
are never used twice. Knows nothing of sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from edge_server.verifier.acceptance import Trial
from edge_server.verifier.torch_sampling import transform

__all__ = ["accept_ratios"]

_GRID = 2.0**52  # what is left of p is rounded to 2^−52, so that its running sums are exact


class _Drafts:
    """Trials as tensors, padded to the longest draft and the widest proposal.

    Attributes:
        lengths: [trials].
        rows: [trials, drafts + 1], the row of p that each drafted id, and the end, is tested by.
        tokens: [trials, drafts].
        q: [trials, drafts], the probability that each was drawn with; 1 in padding.
        uniforms: [trials, drafts + 1]; the last is for the token behind.
        ids: [trials, drafts, support].
        weights: [trials, drafts, support], the probabilities of `ids`; 0 in padding.
        block: [trials], whether the block is weighed as a whole.
    """

    def __init__(self, trials: Sequence[Trial], device: torch.device) -> None:
        longest = max(len(trial.draft) for trial in trials)
        widest = max(len(q.token_ids) for trial in trials for q in trial.proposals)
        shape = (len(trials), longest)
        tokens, ids = np.zeros(shape, np.int64), np.zeros((*shape, widest), np.int64)
        q, weights = np.ones(shape), np.zeros((*shape, widest))
        uniforms = np.ones((len(trials), longest + 1))
        for n, trial in enumerate(trials):
            length = len(trial.draft)
            tokens[n, :length] = trial.draft
            uniforms[n, :length], uniforms[n, -1] = trial.uniforms[:-1], trial.uniforms[-1]
            for k, (token, proposal) in enumerate(zip(trial.draft, trial.proposals, strict=True)):
                support = len(proposal.token_ids)
                q[n, k] = proposal.probability(token)
                ids[n, k, :support] = proposal.token_ids
                weights[n, k, :support] = np.array(proposal.weights) / sum(proposal.weights)
        lengths = np.array([len(trial.draft) for trial in trials])
        firsts = np.array([0, *accumulate(lengths + 1)])[:-1]
        rows = firsts[:, None] + np.minimum(np.arange(longest + 1), lengths[:, None])
        block = np.array([trial.block for trial in trials])
        self.lengths = torch.from_numpy(lengths).to(device)
        self.rows = torch.from_numpy(rows).to(device)
        self.tokens = torch.from_numpy(tokens).to(device)
        self.q = torch.from_numpy(q).to(device)
        self.uniforms = torch.from_numpy(uniforms).to(device)
        self.ids = torch.from_numpy(ids).to(device)
        self.weights = torch.from_numpy(weights).to(device)
        self.block = torch.from_numpy(block).to(device)


def accept_ratios(logits: Tensor, trials: Sequence[Trial]) -> Tensor:
    """Return (accepted prefix, token behind it) of every trial: [trials, 2] int64.

    Args:
        logits: [Σ (len(draft) + 1), vocab] float32, the trials' rows in order.
        trials: with proposals.
    """
    shaping = [trial.parameters for trial in trials for _ in range(len(trial.draft) + 1)]
    p = transform(logits, shaping).double().softmax(dim=-1)
    drafts = _Drafts(trials, logits.device)
    by_token = _token_prefix(p, drafts)
    by_block, weight = _block_prefix(p, drafts)
    accepted = torch.where(drafts.block, by_block, by_token)
    weight = weight.where(drafts.block, 1.0)
    return torch.stack([accepted, _behind(p, drafts, accepted, weight)], dim=1)


def _token_prefix(p: Tensor, drafts: _Drafts) -> Tensor:
    """Do what `acceptance.token_prefix` does: [trials]."""
    own = p[drafts.rows[:, :-1], drafts.tokens]
    holds = drafts.uniforms[:, :-1] * drafts.q < own
    holds &= torch.arange(holds.shape[1], device=p.device) < drafts.lengths[:, None]
    return holds.long().cumprod(dim=1).sum(dim=1)


def _block_prefix(p: Tensor, drafts: _Drafts) -> tuple[Tensor, Tensor]:
    """Do what `acceptance.block_prefix` does: [trials] each.

    Beyond a proposal's ids nothing is subtracted from p, so what is left there is the rest of 1.
    """
    quotients = p[drafts.rows[:, :-1], drafts.tokens] / drafts.q
    ratio = torch.ones_like(quotients[:, 0])
    weight, accepted = ratio, torch.zeros_like(drafts.lengths)
    for n in range(quotients.shape[1]):
        ratio = (ratio * quotients[:, n]).clamp(max=1.0)
        threshold = ratio
        if n + 1 < quotients.shape[1]:
            named = drafts.weights[:, n + 1] > 0.0
            own = p[drafts.rows[:, n + 1, None], drafts.ids[:, n + 1]].where(named, 0.0)
            left = (ratio[:, None] * own - drafts.weights[:, n + 1]).clamp(min=0.0).sum(dim=1)
            left = left + ratio * (1.0 - own.sum(dim=1)).clamp(min=0.0)
            threshold = torch.where(ratio == 1.0, 1.0, left / (left + 1.0 - ratio))
            threshold = torch.where(n + 1 < drafts.lengths, threshold, ratio)
        holds = (drafts.uniforms[:, n] < threshold) & (n < drafts.lengths)
        accepted = torch.where(holds, n + 1, accepted)
        weight = torch.where(holds, ratio, weight)
    return accepted, weight


def _behind(p: Tensor, drafts: _Drafts, accepted: Tensor, weight: Tensor) -> Tensor:
    """Draw the token behind each accepted prefix from what is left of p: [trials]."""
    trial = torch.arange(len(accepted), device=p.device)
    whole = p[drafts.rows[trial, accepted]]
    cut = accepted < drafts.lengths
    at = accepted.clamp(max=drafts.tokens.shape[1] - 1)
    taken = drafts.weights[trial, at].where(cut[:, None], 0.0)
    weight = torch.where(cut, weight, 1.0)
    left = (weight[:, None] * whole).scatter_add(1, drafts.ids[trial, at], -taken).clamp(min=0.0)
    left, whole = (left * _GRID).round().long(), (whole * _GRID).round().long()
    left = torch.where(left.any(dim=1, keepdim=True), left, whole)  # p = q up to rounding
    mass = left.cumsum(dim=1)
    reached = (drafts.uniforms[:, -1:] * mass[:, -1:].double()).long()
    reached = torch.minimum(reached, mass[:, -1:] - 1)
    return torch.searchsorted(mass, reached, right=True)[:, 0]
