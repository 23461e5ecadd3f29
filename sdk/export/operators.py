"""ONNX Runtime's fused operators as torch functions that trace into a single node.

Each `forward` returns tensors of the right shape and type and nothing more: these functions exist
for the trace, and the parity check runs the traced graph, not them.
Operator reference: ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["GroupQueryAttention", "RmsNorm"]


class GroupQueryAttention(torch.autograd.Function):
    """com.microsoft::GroupQueryAttention with the keys and values of the past in one buffer.

    Shapes: query [1, rows, heads * head_dim], key and value [1, rows, kv_heads * head_dim], past
    key and value [1, kv_heads, capacity, head_dim], seqlens_k int32 [1] (total length − 1), total
    int32 scalar, cos and sin [context, head_dim / 2] or None for attention without rotation.
    """

    @staticmethod
    def forward(_: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        query, past_key, past_value = inputs[0], inputs[3], inputs[4]
        return torch.zeros_like(query), torch.zeros_like(past_key), torch.zeros_like(past_value)

    @staticmethod
    def symbolic(
        g: Any,
        query: Any,
        key: Any,
        value: Any,
        past_key: Any,
        past_value: Any,
        seqlens_k: Any,
        total: Any,
        cos: Any,
        sin: Any,
        heads: int,
        kv_heads: int,
        scale: float,
        window: int,
        softcap: float,
    ) -> Any:
        inputs = [query, key, value, past_key, past_value, seqlens_k, total]
        rotary = not cos.node().mustBeNone()
        results = g.op(
            "com.microsoft::GroupQueryAttention",
            *inputs,
            *([cos, sin] if rotary else []),
            outputs=3,
            num_heads_i=heads,
            kv_num_heads_i=kv_heads,
            scale_f=scale,
            local_window_size_i=window,
            softcap_f=softcap,
            do_rotary_i=int(rotary),
        )
        for result, like in zip(results, (query, past_key, past_value), strict=True):
            result.setType(like.type())
        return results


class RmsNorm(torch.autograd.Function):
    """SimplifiedLayerNormalization: x / sqrt(mean(x²) + epsilon) * weight over the last axis."""

    @staticmethod
    def forward(_: Any, x: Tensor, *__: Any) -> Tensor:
        return torch.zeros_like(x)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, epsilon: float) -> Any:
        result = g.op("SimplifiedLayerNormalization", x, weight, axis_i=-1, epsilon_f=epsilon)
        result.setType(x.type())
        return result
