"""Tiny checkpoints of real architectures with random weights, and a small byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama3-rope": (
        "LlamaConfig",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            }
        },
    ),
    "smollm": ("LlamaConfig", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "mistral-window": ("MistralConfig", {"sliding_window": 48}),
    "qwen2-bias": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3-norms": ("Qwen3Config", {"tie_word_embeddings": True}),
    "gemma": ("GemmaConfig", {"tie_word_embeddings": True}),
    "gemma2-softcap": ("Gemma2Config", {"sliding_window": 32, "query_pre_attn_scalar": 16}),
    "gemma3-two-ropes": ("Gemma3TextConfig", {"sliding_window": 32, "query_pre_attn_scalar": 16}),
}


def save_checkpoint(family: str, folder: Path) -> Path:
    """Save one family's checkpoint and return its folder."""
    import torch
    import transformers

    torch.manual_seed(7)
    name, changes = FAMILIES[family]
    config = getattr(transformers, name)(**{**SHAPE, **changes}, initializer_range=0.2)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases start as ones and zeros: tell them apart
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
