"""Tiny random checkpoints of each family, and the plain model that every row must equal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 97
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-no-groups": ("LlamaConfig", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {}),
    "mistral-window": ("MistralConfig", {"sliding_window": 12}),
    "gemma2-softcap": ("Gemma2Config", {"sliding_window": 12, "attn_logit_softcapping": 2.0}),
    "gemma3-two-ropes": ("Gemma3TextConfig", {"sliding_window": 12}),
}

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "sinks": ("GptOssConfig", {"num_local_experts": 4}, "asks for more"),
    "no rows": ("GPT2Config", {"n_embd": 64, "n_head": 4, "n_layer": 2}, "fails"),
    "own attention": ("StableLmConfig", {}, "cannot be replaced"),
    "all rows": ("OPTConfig", {"word_embed_proj_dim": 64, "ffn_dim": 96}, "cannot score"),
}


def save_checkpoint(family: str, folder: Path, **changes: Any) -> Path:
    """Save one family's checkpoint with a tokenizer and return its folder."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models

    torch.manual_seed(11)
    name, own, *_ = {**FAMILIES, **REFUSED}[family]
    config = getattr(transformers, name)(**{**SHAPE, **own, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases start as ones and zeros: tell them apart
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    vocabulary = {chr(0x100 + number): number for number in range(VOCABULARY)}
    Tokenizer(models.BPE(vocab=vocabulary, merges=[])).save(str(folder / "tokenizer.json"))
    return folder


@lru_cache
def _plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def plain_logits(folder: Path, sequence: Sequence[int]) -> NDArray[np.float32]:
    """Return transformers' own logits of every position of a sequence, [length, vocab]."""
    import torch

    with torch.inference_mode():
        logits: NDArray[np.float32] = (
            _plain(folder)(torch.tensor([list(sequence)])).logits[0].numpy()
        )
    return logits
