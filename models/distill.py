"""Distil the drafter from the target's logits, on the corpus and on the target's own text.

A draft is checked on the target's own text, so that is what the drafter learns most of, late
above all. The loss is the forward KL divergence and, in the decay, more and more the total
variation: one minus it bounds what can be accepted.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor
from transformers import LlamaForCausalLM

from models.batches import Batches
from models.fit import Fit, Plan, pick_device
from models.pair import logits_of
from models.sample import Sampler

__all__ = ["Mix", "divergence", "sample_text", "train_drafter"]

PROMPT_LENGTHS = (16, 128)
TEMPERATURES = ((1.0, 0.6), (0.7, 0.25), (0.0, 0.15))  # temperature, share of the rows


def divergence(
    drafter: Any, ids: Tensor, target_logits: Tensor, variation_share: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (loss, total variation) of the drafter over ids [batch, length], per token."""
    drafted = logits_of(drafter, ids).float().log_softmax(-1)
    wanted = target_logits.float().log_softmax(-1)
    probability = wanted.exp()
    forward_kl = (probability * (wanted - drafted)).sum(-1).mean()
    variation = (probability - drafted.exp()).abs().sum(-1).mean() / 2
    return (1 - variation_share) * forward_kl + variation_share * variation, variation


def sample_text(
    target: LlamaForCausalLM,
    tokens: npt.NDArray[np.uint16],
    *,
    path: Path,
    count: int,
    rows: int,
    length: int,
    seed: int,
    fast: bool,
) -> npt.NDArray[np.uint16]:
    """Let the target continue random pieces of the corpus; returns ids [count, length].

    Goes on where the file at `path` ends.
    """
    device = pick_device()
    done = np.load(path) if path.exists() else np.empty((0, length), dtype=np.uint16)
    if len(done) >= count:
        return done
    sampler = Sampler(model=target, rows=rows, length=length, dtype=torch.bfloat16, fast=fast)
    shares = np.cumsum([share for _, share in TEMPERATURES])
    kinds = np.searchsorted(shares, (np.arange(rows) + 0.5) / rows)
    temperatures = torch.tensor([TEMPERATURES[k][0] for k in kinds], device=device)
    for batch in track(
        range(len(done) // rows, -(-count // rows)),
        description="samples",
        disable=not sys.stderr.isatty(),
    ):
        rng = np.random.default_rng((seed, batch))
        generator = torch.Generator(device).manual_seed(seed * 1_000_003 + batch)
        start = rng.integers(0, len(tokens) - length, rows)
        prompt = tokens[start[:, None] + np.arange(rng.integers(*PROMPT_LENGTHS))].astype(np.int64)
        lengths = torch.full((rows,), prompt.shape[1], device=device)
        ids = sampler.continue_from(
            torch.from_numpy(prompt).to(device), lengths, temperatures, generator
        )
        done = np.concatenate([done, ids.cpu().numpy().astype(np.uint16)])
        np.save(path, done)
        print(f"samples {len(done)} of {count}", flush=True)
    return done


class Mix:
    """Batches of the corpus or of the target's samples, whose share rises over the decay."""

    def __init__(
        self,
        *,
        corpus: npt.NDArray[np.uint16],
        samples: npt.NDArray[np.uint16],
        tokens: int,
        length: int,
        seed: int,
    ) -> None:
        self.corpus = Batches(tokens=corpus, length=length, batch=tokens // length, seed=seed)
        self.samples, self.rows, self.seed = samples, max(1, tokens // samples.shape[1]), seed

    def at(self, step: int, decay: float) -> Tensor:
        """Return ids [batch, length] of a step."""
        rng = np.random.default_rng((self.seed, step))
        if rng.random() >= 0.6 + 0.35 * decay:
            return self.corpus.at(step)[:, :-1]
        rows = rng.choice(len(self.samples), self.rows, replace=len(self.samples) < self.rows)
        return torch.from_numpy(self.samples[rows].astype(np.int64))


def train_drafter(
    target: LlamaForCausalLM,
    drafter: Any,
    *,
    mix: Mix,
    held_out: Tensor,
    plan: Plan,
    checkpoint: Path,
    on_save: Callable[[], None],
    fast: bool,
) -> None:
    """Distil the drafter; `held_out` [rows, length] is text the target continued."""
    device = pick_device()
    fit = Fit(model=drafter.train(), plan=plan, checkpoint=checkpoint, name="drafter")
    teacher: Any = copy.deepcopy(target)
    teacher = teacher.to(torch.bfloat16).eval()
    target_logits = torch.compile(logits_of, dynamic=False) if fast else logits_of
    loss_of = torch.compile(divergence, dynamic=False) if fast else divergence

    def both(
        of: Callable[..., tuple[Tensor, Tensor]], ids: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            wanted = target_logits(teacher, ids)
        with torch.autocast(device.type, torch.bfloat16):
            return of(drafter, ids, wanted, torch.tensor(share, device=device))

    def loss(step: int, decay: float) -> Tensor:
        return both(loss_of, mix.at(step, decay).to(device), min(0.9, 3 * decay))[0]

    def held_out_variation() -> float:
        drafter.eval()
        with torch.no_grad():
            parts = [
                float(both(divergence, part.to(device), 0.0)[1])
                for part in torch.split(held_out, 8)
            ]
        drafter.train()
        return sum(parts) / len(parts)

    fit.run(loss, held_out_variation, on_save)
    drafter.eval()
