"""A checkpoint with random weights in a real model's shape: speed does not depend on the values.

Needs the extra "export": `python -m benchmarks.draft.model OUT SHAPE`.
"""

from __future__ import annotations

import sys
from pathlib import Path

SMOLLM2_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
SHAPES: dict[str, dict[str, int]] = {
    "smollm2-135m": SMOLLM2_135M,
    "smollm2-135m-150k": {**SMOLLM2_135M, "vocab_size": 150_000},
    "tiny": {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
CONTEXT = 2048


def make(out: Path, shape: str) -> None:
    """Save a seeded random Llama in half precision, with a byte-level tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).half().save_pretrained(out)
    save_tokenizer(out)


def save_tokenizer(out: Path) -> None:
    """Save a byte-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=alphabet[0], eos_token=alphabet[0]
    ).save_pretrained(out)


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2])
