"""Text that a model writes itself: batched sampling with a static KV cache."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, StaticCache

__all__ = ["Sampler", "pick"]


def pick(logits: Tensor, temperatures: Tensor, generator: torch.Generator) -> Tensor:
    """Sample one id per row of logits [rows, vocabulary]; temperature 0 takes the greatest."""
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device).clamp_min_(1e-20)
    noise = -torch.log(-torch.log(uniform))
    return (logits.float() + noise * temperatures[:, None]).argmax(-1)


class Sampler:
    """Continue prompts, `rows` at a time, to `length` tokens in all."""

    def __init__(
        self, *, model: LlamaForCausalLM, rows: int, length: int, dtype: torch.dtype, fast: bool
    ) -> None:
        own: Any = copy.deepcopy(model)
        own = own.to(dtype).eval()
        self.model, self.rows, self.length = own, rows, length
        self.cache: Any = StaticCache(config=own.config, max_cache_len=length)
        self.step: Callable[..., Any] = torch.compile(own, dynamic=False) if fast else own

    @torch.no_grad()
    def continue_from(
        self, prompts: Tensor, lengths: Tensor, temperatures: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return ids [rows, length]; row i begins with lengths[i] of prompts [rows, width]."""
        width, start = prompts.shape[1], int(lengths.min())
        ids = torch.zeros(self.rows, self.length, dtype=torch.int64, device=prompts.device)
        ids[:, :width] = prompts
        self.cache.reset()
        logits = self._forward(self.model, ids[:, :start].contiguous(), 0)
        for position in range(start, self.length):
            chosen = pick(logits, temperatures, generator)
            ids[:, position] = torch.where(lengths > position, ids[:, position], chosen)
            if position + 1 < self.length:
                logits = self._forward(
                    self.step, ids[:, position : position + 1].contiguous(), position
                )
        return ids

    def _forward(self, model: Callable[..., Any], ids: Tensor, position: int) -> Tensor:
        where = torch.arange(position, position + ids.shape[1], device=ids.device)
        output = model(
            input_ids=ids,
            past_key_values=self.cache,
            use_cache=True,
            cache_position=where,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits
