"""Puts the fused operators into a Hugging Face decoder for the length of one trace.

Attention goes through transformers' AttentionInterface, so that every decoder which uses it is
covered; RMSNorm modules and rotary embeddings are recognised by what they compute. Knows nothing
about files, ONNX or quantisation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache

from sdk.errors import ExportError
from sdk.export.operators import GroupQueryAttention, RmsNorm

__all__ = ["FusedAttention", "substituted"]

ATTENTION_NAME = "multispin_group_query"
ROTARY_FUNCTION = "apply_rotary_pos_emb"
DUMMY_ROW = 1  # a batch-invariant decoder may run one row past the context


class PassThroughCache(Cache):
    """A cache that returns new keys and values as they are: the operator appends them itself."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_seq_length(self, *_: Any) -> int:
        return 0


class FusedAttention:
    """Stands in for every layer's attention during one forward pass of the trace."""

    def __init__(
        self, past: list[tuple[Tensor, Tensor]], seqlens_k: Tensor, total_length: Tensor
    ) -> None:
        self.past = past
        self.present: list[tuple[Tensor, Tensor] | None] = [None] * len(past)
        self.seqlens_k = seqlens_k
        self.total_length = total_length

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,  # [1, heads, rows, head_dim], as transformers hands it over
        key: Tensor,
        value: Tensor,
        _mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        config: Any = module.config
        heads, head_dim = int(config.num_attention_heads), int(module.head_dim)  # type: ignore[arg-type]
        kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        cos, sin = getattr(query, "rotary", (None, None))
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        output, present_key, present_value = GroupQueryAttention.apply(  # type: ignore[no-untyped-call]
            merge_heads(query, heads * head_dim),
            merge_heads(key, kv_heads * head_dim),
            merge_heads(value, kv_heads * head_dim),
            *self.past[layer],
            self.seqlens_k,
            self.total_length,
            cos,
            sin,
            heads,
            kv_heads,
            float(scaling if scaling is not None else head_dim**-0.5),
            int(sliding_window or -1),
            float(softcap or 0.0),
        )
        self.present[layer] = (present_key, present_value)
        return output.view(1, -1, heads, head_dim), None


def merge_heads(x: Tensor, width: int) -> Tensor:
    """[1, heads, rows, head_dim] → [1, rows, width]."""
    return x.transpose(1, 2).reshape(1, -1, width)


@contextmanager
def substituted(
    model: PreTrainedModel, context_length: int
) -> Iterator[Callable[[FusedAttention], None]]:
    """Replace attention, RMSNorm and rotary embedding; yield what sets the attention to use."""
    with ExitStack() as stack:
        stack.enter_context(fused_norms(model))
        stack.enter_context(fused_rotary(model, context_length))
        yield stack.enter_context(fused_attention(model))


@contextmanager
def fused_attention(model: PreTrainedModel) -> Iterator[Callable[[FusedAttention], None]]:
    current: list[FusedAttention] = []

    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return current[-1](module, *args, **kwargs)

    AttentionInterface.register(ATTENTION_NAME, forward)
    before = model.config._attn_implementation
    model.config._attn_implementation = ATTENTION_NAME
    try:
        yield current.append
    finally:
        model.config._attn_implementation = before
        AttentionInterface._global_mapping.pop(ATTENTION_NAME, None)


@contextmanager
def fused_norms(model: nn.Module) -> Iterator[None]:
    replaced: list[nn.Module] = []
    try:
        for module in model.modules():
            if (
                "RMSNorm" in type(module).__name__
                and (weight := effective_weight(module)) is not None
            ):
                module.register_buffer("fused_weight", weight, persistent=False)
                module.forward = rms_forward(module)
                replaced.append(module)
        yield
    finally:
        for module in replaced:
            del module.forward
            del module.fused_weight


def rms_forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    epsilon = float(norm_epsilon(module))
    return lambda x: RmsNorm.apply(x, module.fused_weight, epsilon)  # type: ignore[no-untyped-call]


def norm_epsilon(module: nn.Module) -> Any:
    return getattr(module, "variance_epsilon", None) or getattr(module, "eps", 1e-6)


def effective_weight(module: nn.Module) -> Tensor | None:
    """Return what the norm multiplies by: its weight, or 1 + weight (Gemma); None for neither."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 1:
        return None
    probe = torch.linspace(-2.0, 3.0, weight.numel()).reshape(1, 1, -1)
    normed = probe * torch.rsqrt(probe.pow(2).mean(-1, keepdim=True) + norm_epsilon(module))
    actual = module(probe)
    for candidate in (weight.detach().float(), 1.0 + weight.detach().float()):
        if torch.allclose(normed * candidate, actual, atol=1e-5, rtol=1e-5):
            return candidate.contiguous().clone()
    return None


@contextmanager
def fused_rotary(model: PreTrainedModel, context_length: int) -> Iterator[None]:
    """Hand cos and sin tables to the attention instead of rotating before it."""
    modules = [m for m in model.modules() if "RotaryEmbedding" in type(m).__name__]
    for module in modules:
        check_rotary(module)
        cos, sin = rotary_tables(module, context_length + DUMMY_ROW)
        module.register_buffer("cos_table", cos, persistent=False)
        module.register_buffer("sin_table", sin, persistent=False)
        module.forward = table_forward(module)
    patched = [
        (python_module, getattr(python_module, ROTARY_FUNCTION))
        for python_module in {sys.modules[type(m).__module__] for m in model.modules()}
        if hasattr(python_module, ROTARY_FUNCTION)
    ]
    try:
        for python_module, _ in patched:
            setattr(python_module, ROTARY_FUNCTION, mark_rotary)
        yield
    finally:
        for python_module, original in patched:
            setattr(python_module, ROTARY_FUNCTION, original)
        for module in modules:
            del module.forward
            del module.cos_table, module.sin_table


def check_rotary(module: nn.Module) -> None:
    kind = getattr(module, "rope_type", "default")
    if kind in {"dynamic", "longrope"}:
        raise ExportError(
            f"exporting: rotary embedding of type {kind!r} changes with the length of the text and "
            "has no fixed table; choose a model with another rope_scaling"
        )


def rotary_tables(module: nn.Module, rows: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each [rows, rotary_dim / 2], from the model's own embedding."""
    cos, sin = module(torch.zeros(1, dtype=torch.float32), torch.arange(rows)[None])
    half = cos.shape[-1] // 2
    return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()


def table_forward(module: nn.Module) -> Callable[..., tuple[Any, Any]]:
    return lambda *_, **__: (module.cos_table, module.sin_table)


def mark_rotary(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, Tensor]:
    """Leave query and key unrotated and note the tables for the attention operator."""
    query.rotary = (cos, sin)  # type: ignore[attr-defined]
    return query, key
