"""Weights in 8 bits, by torchao: half the memory of bf16, so that larger targets fit a card.

Knows nothing of attention and sessions.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from sdk.errors import ConfigError, DependencyError

__all__ = ["WEIGHTS", "quantise"]

WEIGHTS = ("stored", "int8", "fp8")


def quantise(model: Any, weights: str) -> None:
    """Put the linear layers' weights into 8 bits, in place, one scale per output channel.

    The head and the embedding table stay as they are: they decide on tokens by small margins.
    Source: torchao's weight-only configurations; products are worked out in the model's own type.

    Args:
        model: a decoder of transformers.
        weights: one of WEIGHTS; "stored" changes nothing.

    Raises:
        ConfigError: if `weights` is none of them.
        DependencyError: without torchao.
    """
    if weights not in WEIGHTS:
        raise ConfigError(f"verifier: weights {weights!r} are not one of {', '.join(WEIGHTS)}")
    if weights == "stored":
        return
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # it warns of torchao's enums
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ModuleNotFoundError as error:
        raise DependencyError("8-bit weights of the torch verifier", "torchao") from error
    config = Int8WeightOnlyConfig() if weights == "int8" else Float8WeightOnlyConfig()
    quantize_(model, config, filter_fn=_in_a_layer)


def _in_a_layer(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and name != "lm_head"
