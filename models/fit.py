"""One training loop for both models: schedule, optimisers, checkpoints. Knows no data, no losses.

The learning rate warms up, stays, and falls linearly to 0 (warmup, stable, decay). The fall
begins when the held-out loss stops falling, when the time is up, or at the step that leaves room
for it before `steps`, whichever is first.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

__all__ = ["Fit", "Plan", "pick_device", "use_memory_well"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how fast to train. `minutes` counts training time over all resumed runs."""

    steps: int
    minutes: float = 1e9
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warmup: int = 100
    decay_share: float = 0.3
    evaluate_every: int = 250
    save_every_s: float = 120.0
    patience: int = 4
    optimizer: str = "muon"


@dataclass
class State:
    step: int = 0
    elapsed_s: float = 0.0
    decay_from: int = -1
    end: int = -1
    history: list[dict[str, float]] = field(default_factory=list)


def pick_device() -> torch.device:
    """Return the GPU where there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_memory_well() -> None:
    """Keep glibc from giving freed tensors back to the kernel, which cost a fifth of a step."""
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-4, 0)  # M_MMAP_MAX
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def _optimizers(model: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embeddings and norms (or AdamW for everything)."""
    matrices = [
        p
        for n, p in model.named_parameters()
        if p.ndim == 2 and "embed" not in n and "lm_head" not in n
    ]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    adam: dict[str, Any] = {"lr": plan.learning_rate, "betas": (0.9, 0.95), "eps": 1e-10}
    if plan.optimizer == "adamw":
        groups = [
            {"params": matrices, "weight_decay": plan.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        return [torch.optim.AdamW(groups, **adam)]
    muon = torch.optim.Muon(
        matrices,
        lr=plan.learning_rate,
        weight_decay=plan.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, torch.optim.AdamW(rest, weight_decay=0.0, **adam)]


class Fit:
    """Train `model` on `loss(step, progress)`; `progress` runs from 0 to 1 over the planned decay.

    `checkpoint` is written every few minutes and at the end; a second run goes on from it, and
    because data depends on the step alone, ends where an uninterrupted run ends.
    """

    def __init__(self, *, model: nn.Module, plan: Plan, checkpoint: Path, name: str) -> None:
        self.model, self.plan, self.checkpoint, self.name = model, plan, checkpoint, name
        self.optimizers = _optimizers(model, plan)
        self.state = State()
        if checkpoint.exists():
            self._load()

    def run(
        self,
        loss: Callable[[int, float], Tensor],
        held_out: Callable[[], float],
        on_save: Callable[[], None] = lambda: None,
        stop_after: int | None = None,
    ) -> State:
        """Run to the plan's end (or `stop_after` steps in all) and return the state reached."""
        state, saved_at = self.state, time.monotonic()
        with _progress() as bar:
            task = bar.add_task(self.name, total=self._total(), completed=state.step, loss="")
            while not self._finished() and state.step != stop_after:
                began = time.monotonic()
                value = self._step(loss)
                state.elapsed_s += time.monotonic() - began
                if state.step % self.plan.evaluate_every == 0 or self._finished():
                    self._evaluate(value, held_out())
                self._maybe_decay()
                bar.update(
                    task, completed=state.step, total=self._total(), loss=f"loss {value:.3f}"
                )
                if time.monotonic() - saved_at > self.plan.save_every_s:
                    self._save()
                    on_save()
                    saved_at = time.monotonic()
        self._save()
        on_save()
        return state

    def decay_progress(self) -> float:
        """Return how far the decay has come: 0 before it, 1 at its end."""
        state = self.state
        if state.decay_from < 0:
            return 0.0
        return min(1.0, (state.step - state.decay_from) / max(1, state.end - state.decay_from))

    def _step(self, loss: Callable[[int, float], Tensor]) -> float:
        plan, state = self.plan, self.state
        scale = min(1.0, (state.step + 1) / plan.warmup) * (1.0 - self.decay_progress())
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * scale
        value = loss(state.step, self.decay_progress())
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state.step += 1
        return float(value.detach())

    def _evaluate(self, training: float, held_out: float) -> None:
        state = self.state
        state.history.append(
            {"step": state.step, "training": training, "held_out": held_out, "s": state.elapsed_s}
        )
        print(
            f"{self.name} step {state.step} training {training:.4f} held-out {held_out:.4f} "
            f"{state.elapsed_s:.0f} s, decay {self.decay_progress():.2f}",
            flush=True,
        )

    def _maybe_decay(self) -> None:
        """Begin the decay when the plan, the clock or the held-out loss says so."""
        plan, state = self.plan, self.state
        if state.decay_from >= 0:
            return
        share = 1.0 - plan.decay_share
        losses = [entry["held_out"] for entry in state.history]
        plateau = (
            len(losses) > plan.patience
            and min(losses[-plan.patience :]) > min(losses[: -plan.patience]) - 0.003
        )
        if (
            plateau
            or state.elapsed_s >= plan.minutes * 60 * share
            or state.step >= plan.steps * share
        ):
            state.decay_from = state.step
            state.end = state.step + max(1, round(state.step * plan.decay_share / share))

    def _total(self) -> int:
        return self.state.end if self.state.end > 0 else self.plan.steps

    def _finished(self) -> bool:
        return 0 < self.state.end <= self.state.step

    def _save(self) -> None:
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "state": vars(self.state),
            },
            partial,
        )
        os.replace(partial, self.checkpoint)
        self.checkpoint.with_suffix(".json").write_text(
            json.dumps(vars(self.state), indent=1) + "\n", "utf-8"
        )

    def _load(self) -> None:
        saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.state = State(**saved["state"])


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
        disable=not sys.stderr.isatty() and not sys.stdout.isatty(),
    )
