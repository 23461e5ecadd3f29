"""Finds and loads the model to export. Knows nothing about graphs."""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
from optimum.exporters.tasks import TasksManager
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from sdk.errors import ExportError, ModelLoadError, first_line
from sdk.model.manifest import tokenizer_hash

__all__ = [
    "DEFAULT_CONTEXT",
    "checked_context",
    "load_source",
    "local_folder",
    "supported_config",
]

DEFAULT_CONTEXT = 8192
"""Rotary tables grow with the context: 256 bytes a token at 64-wide heads, 2 MB here."""
FAMILIES = "choose one of the Llama, Qwen, Mistral or Gemma families"


def local_folder(source: str | Path) -> Path:
    """Return the folder of a model; a Hub name is fetched, or found in the Hub's cache."""
    path = Path(source)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "*.model"])
        )
    except Exception as error:  # network, name, access, disk: the Hub has an exception for each
        raise ExportError(
            f"fetching {source}: it is no folder here and the Hugging Face Hub did not give it "
            f"({first_line(error)}); name a local folder or check the network"
        ) from error


def supported_config(folder: Path) -> PretrainedConfig:
    """Return the model's configuration; raise ExportError when Optimum or we cannot export it."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ExportError(
            f"exporting {folder}: no usable config.json ({first_line(error)})"
        ) from error
    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(
            config.model_type, "onnx", library_name="transformers"
        )
    except KeyError:
        tasks = {}
    if "text-generation" not in tasks or getattr(config, "is_encoder_decoder", False):
        raise ExportError(
            f"exporting {folder}: architecture {config.model_type!r} is not a decoder that Optimum "
            f"exports; {FAMILIES}"
        )
    try:
        tokenizer_hash(folder)
    except ModelLoadError as error:
        raise ExportError(f"exporting {folder}: {error}") from error
    return config


def checked_context(config: PretrainedConfig, wanted: int | None) -> int:
    """Return the context to export for; raise ExportError outside what the model was made for."""
    most = int(config.max_position_embeddings)
    if wanted is None:
        return min(most, DEFAULT_CONTEXT)
    if not 1 <= wanted <= most:
        raise ExportError(f"exporting: context {wanted} is not in 1 … {most} of this model")
    return wanted


def load_source(folder: Path) -> PreTrainedModel:
    """Return the source model in single precision; raise ExportError when it cannot be loaded."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        )
    except Exception as error:  # missing, cut or foreign weights: every library has its own
        raise ExportError(f"loading {folder}: {first_line(error)}") from error
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise ExportError(
            f"exporting {folder}: {type(model).__name__} cannot score single rows "
            f"(logits_to_keep); {FAMILIES}"
        )
    return model.eval()  # type: ignore[no-untyped-call, no-any-return]
