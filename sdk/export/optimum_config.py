"""How Optimum is told to trace: our inputs and outputs, our patcher, constant reshapes.

Knows nothing about files and weights.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from optimum.exporters.onnx.config import TextDecoderOnnxConfig
from optimum.exporters.onnx.model_patcher import ModelPatcher, PatchingSpec
from optimum.utils import NormalizedTextConfig
from torch import Tensor
from transformers import PretrainedConfig

from sdk.export.substitution import FusedAttention, PassThroughCache, substituted

__all__ = ["DecoderOnnxConfig", "head_dim", "kv_heads"]

DUMMY_ROWS = 5
DUMMY_CAPACITY = 16


def kv_heads(config: PretrainedConfig) -> int:
    """Return the number of key and value heads."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def head_dim(config: PretrainedConfig) -> int:
    """Return the width of one head."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


class FusedPatcher(ModelPatcher):  # type: ignore[misc]
    """Optimum's patcher; the model's forward becomes the graph contract of `sdk.model.decoder`."""

    def __init__(self, config: Any, model: Any, model_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(config, model, model_kwargs=model_kwargs)
        self.stack = ExitStack()
        self.use: Callable[[FusedAttention], None]

        def forward(
            input_ids: Tensor,
            seqlens_k: Tensor,
            total_sequence_length: Tensor,
            rows_to_score: Tensor,
            past_key_values: list[tuple[Tensor, Tensor]],
        ) -> dict[str, Any]:
            attention = FusedAttention(past_key_values, seqlens_k, total_sequence_length)
            self.use(attention)
            output = self.orig_forward(
                input_ids=input_ids,
                past_key_values=PassThroughCache(),
                use_cache=True,
                logits_to_keep=rows_to_score,
            )
            return {"logits": output.logits, "present": attention.present}

        self.patched_forward = forward

    def __enter__(self) -> None:
        super().__enter__()
        try:
            replaced = substituted(self._model, self.real_config.context_length)
            self.use = self.stack.enter_context(replaced)
        except BaseException:
            super().__exit__(None, None, None)  # torch.Tensor itself is patched: never leave it so
            raise

    def __exit__(self, *exception: Any) -> None:
        self.stack.close()
        super().__exit__(*exception)


class DecoderOnnxConfig(TextDecoderOnnxConfig):  # type: ignore[misc]
    """Inputs and outputs of the graph; batch is 1, past and present have the same shape."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
    _MODEL_PATCHER = FusedPatcher

    def __init__(self, config: PretrainedConfig, *, context_length: int) -> None:
        super().__init__(config, task="text-generation", use_past=True, use_past_in_inputs=True)
        self.source = config
        self.context_length = context_length

    @property
    def PATCHING_SPECS(self) -> list[PatchingSpec]:  # noqa: N802 (Optimum's name)
        # A new list each time: Optimum extends it in place.
        return [
            PatchingSpec(torch.Tensor, "view", constant_shape(torch.Tensor.view)),
            PatchingSpec(torch.Tensor, "reshape", constant_shape(torch.Tensor.reshape)),
        ]

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {
            "input_ids": {1: "rows"},
            "seqlens_k": {},
            "total_sequence_length": {},
            "rows_to_score": {0: "scored"},
            **self.cache_axes("past_key_values"),
        }

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {"logits": {1: "scored"}, **self.cache_axes("present")}

    def cache_axes(self, prefix: str) -> dict[str, dict[int, str]]:
        return {
            f"{prefix}.{layer}.{part}": {2: "capacity"}
            for layer in range(self.source.num_hidden_layers)
            for part in ("key", "value")
        }

    def generate_dummy_inputs(self, **_: Any) -> dict[str, Any]:
        cache = (1, kv_heads(self.source), DUMMY_CAPACITY, head_dim(self.source))
        return {
            "input_ids": torch.arange(DUMMY_ROWS)[None],
            "seqlens_k": torch.tensor([DUMMY_ROWS - 1], dtype=torch.int32),
            "total_sequence_length": torch.tensor(DUMMY_ROWS, dtype=torch.int32),
            "rows_to_score": torch.arange(DUMMY_ROWS - 2, DUMMY_ROWS),
            "past_key_values": [
                (torch.zeros(cache), torch.zeros(cache))
                for _ in range(self.source.num_hidden_layers)
            ],
        }


def constant_shape(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap view or reshape so that a traced batch size becomes 1 and a traced row count becomes −1.

    Sizes read from a traced tensor are themselves tensors; left alone, each becomes a chain of
    Shape, Gather, Unsqueeze and Concat nodes in front of every attention.
    """

    def reshaped(x: Tensor, *shape: Any) -> Tensor:
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        traced = [isinstance(size, Tensor) for size in sizes]
        if not any(traced):
            return original(x, *shape)
        numbers = [int(size) for size in sizes]
        if -1 in numbers:
            rest = -1 * int(torch.tensor(numbers).prod())
            numbers[numbers.index(-1)] = int(torch.tensor([int(n) for n in x.shape]).prod()) // rest
        free = [i for i, is_traced in enumerate(traced) if is_traced and numbers[i] != 1]
        if len(free) > 1:
            return original(x, *shape)
        for i in free:
            numbers[i] = -1
        return original(x, *numbers)

    return reshaped
