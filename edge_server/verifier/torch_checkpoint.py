"""A Hugging Face decoder in a folder: choosing how to run it, loading, its shape and its hash.

Knows nothing of passes and pools.
"""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from sdk.errors import ConfigError, ModelLoadError, first_line
from sdk.model.manifest import file_record

__all__ = [
    "DEVICES",
    "DTYPES",
    "choose",
    "fuse_norms",
    "kv_shape",
    "load_decoder",
    "unsupported",
    "weights_hash",
]

DEVICES = ("auto", "cpu", "cuda")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose(device: str, dtype: str) -> tuple[str, torch.dtype]:
    """Resolve "auto": CUDA where there is a GPU, with bf16; else the CPU, with fp32."""
    if device not in DEVICES:
        raise ConfigError(f"verifier: device {device!r} is not one of {', '.join(DEVICES)}")
    if dtype not in ("auto", *DTYPES):
        raise ConfigError(f"verifier: type {dtype!r} is not one of auto, {', '.join(DTYPES)}")
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ConfigError("verifier: torch finds no CUDA device; choose --device cpu")
    device = device if device != "auto" else "cuda" if there else "cpu"
    dtype = dtype if dtype != "auto" else "fp32" if device == "cpu" else "bf16"
    return device, DTYPES[dtype]


def load_decoder(folder: Path, number_type: torch.dtype, *, attention: str) -> Any:
    """Return a decoder with a registered attention; raise ModelLoadError if it cannot be run."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=number_type,
            attn_implementation=attention,
            local_files_only=True,
            use_safetensors=True,
        )
    except Exception as error:  # missing, cut or foreign weights: every library has its own
        if isinstance(error, KeyError) and attention in error.args:
            raise unsupported("its attention cannot be replaced") from error
        reason = first_line(error)
        raise ModelLoadError(
            f"loading model: {folder} cannot be run by transformers ({reason}); "
            "name a folder with config.json, tokenizer.json and *.safetensors"
        ) from error
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise unsupported(f"{type(model).__name__} cannot score some rows alone")
    fuse_norms(model)
    model.requires_grad_(False)
    return model.train(False)


def unsupported(reason: str) -> ModelLoadError:
    """Return what to raise for a decoder that this verifier cannot run."""
    return ModelLoadError(
        f"loading model: the torch verifier cannot run this decoder: {reason}; choose a model of "
        "the Llama, Qwen2, Qwen3, Mistral or Gemma family"
    )


def fuse_norms(model: Any) -> None:
    """Let torch's own operator do root-mean-square norms: on a GPU one kernel instead of six."""
    for parent in list(model.modules()):
        norm: Any
        for name, norm in list(parent.named_children()):
            if type(norm).__name__.endswith("RMSNorm") and hasattr(norm, "variance_epsilon"):
                fused = nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon)
                fused.weight = norm.weight
                setattr(parent, name, fused)


def kv_shape(config: Any) -> tuple[int, int, int]:
    """Return layers, key heads and head size."""
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return int(config.num_hidden_layers), kv_heads, head_dim


def weights_hash(folder: Path) -> str:
    """Return SHA-256 over names and contents of all safetensors files, hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {file_record(path).sha256}\n".encode())
    return digest.hexdigest()
