"""The export, from a model's name to a finished folder, and what can go wrong on the way.

Order: fetch → load → trace (Optimum) → clean → check against the source → store weights → check
again → publish. Everything happens in a temporary folder beside the destination.
"""

from __future__ import annotations

import functools
import inspect
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from optimum.exporters.onnx import export as optimum_export
from optimum.exporters.tasks import TasksManager
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from sdk.errors import ExportError, ModelLoadError
from sdk.export import WEIGHTS
from sdk.export.graph import clean
from sdk.export.optimum_config import DecoderOnnxConfig, head_dim, kv_heads
from sdk.export.parity import Parity, compare
from sdk.export.weights import store_as_half
from sdk.model.decoder import Decoder
from sdk.model.manifest import GRAPH_NAME, MANIFEST_NAME, Manifest, file_record, tokenizer_hash

__all__ = ["DEFAULT_CONTEXT", "export_model"]

DEFAULT_CONTEXT = 8192
"""Rotary tables grow with the context: 2 kB a token at 64-wide heads is 4 MB here."""
COPIED = (
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
LIBRARIES = ("onnx", "onnxruntime", "optimum", "optimum-onnx", "torch", "transformers")
EXTERNAL_DATA_BYTES = 1_900_000_000  # protobuf ends at 2 GiB
MAX_DIFFERENCE = {"fp32": 1e-3, "fp16-stored": 2e-2}
MIN_AGREEMENT = {"fp32": 0.98, "fp16-stored": 0.95}

Progress = Callable[[str], None]


def export_model(
    source: str | Path,
    out: Path,
    *,
    weights: str = "fp32",
    context_length: int | None = None,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Export a Hugging Face decoder to a folder that `sdk.model.decoder` runs.

    `source` is a folder or a Hub name; `weights` one of `sdk.export.WEIGHTS`; `context_length` at
    most what the model was made for, and 8,192 at most when None; `progress` is called with each
    step's name. When `out` is the source's own folder, only the graph and the manifest are added.
    Raises ExportError when the model cannot be exported faithfully; nothing is then left behind.
    """
    if weights not in WEIGHTS:
        raise ExportError(f"exporting: weights {weights!r} is not one of {', '.join(WEIGHTS)}")
    progress("fetching")
    folder = local_folder(source)
    config = supported_config(folder)
    length = checked_context(config, context_length)
    with partial_folder(out) as partial:
        progress("loading")
        model = load_source(folder)
        progress("tracing")
        trace(model, partial / GRAPH_NAME, length)
        for name in COPIED:
            if (folder / name).exists():
                shutil.copyfile(folder / name, partial / name)
        manifest = describe(config, folder, length)
        manifest.write(partial)
        progress("checking")
        parity = checked(partial, model, "fp32")
        if weights != "fp32":
            progress("storing weights")
            store_weights(partial / GRAPH_NAME, weights)
            progress("checking weights")
            parity = checked(partial, model, weights)
        manifest = sealed(manifest, partial, weights, parity)
        progress("publishing")
        publish(partial, out, in_place=folder.resolve() == out.resolve())
    return manifest


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
            "exports; choose one of the Llama, Qwen, Mistral or Gemma families"
        )
    try:
        tokenizer_hash(folder)
    except ModelLoadError as error:
        raise ExportError(f"exporting {folder}: {error}") from error
    return config


def checked_context(config: PretrainedConfig, wanted: int | None) -> int:
    most = int(config.max_position_embeddings)
    if wanted is None:
        return min(most, DEFAULT_CONTEXT)
    if not 1 <= wanted <= most:
        raise ExportError(f"exporting: context {wanted} is not in 1 … {most} of this model")
    return wanted


def load_source(folder: Path) -> PreTrainedModel:
    """Return the source model in single precision."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        )
    except (
        Exception
    ) as error:  # missing, cut or foreign weights: transformers and safetensors disagree
        raise ExportError(f"loading {folder}: {first_line(error)}") from error
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise ExportError(
            f"exporting {folder}: {type(model).__name__} cannot score single rows "
            "(logits_to_keep); choose one of the Llama, Qwen, Mistral or Gemma families"
        )
    return model.eval()  # type: ignore[no-untyped-call, no-any-return]


def trace(model: PreTrainedModel, path: Path, context_length: int) -> None:
    """Write the fused graph through Optimum."""
    config = DecoderOnnxConfig(model.config, context_length=context_length)
    try:
        with warnings.catch_warnings(), custom_operators():
            warnings.simplefilter("ignore")
            optimum_export(
                model, config, path, do_constant_folding=False, disable_dynamic_axes_fix=True
            )
    except (ExportError, OSError):
        raise
    except Exception as error:  # whatever a foreign architecture does inside the trace
        raise ExportError(
            f"tracing {type(model).__name__}: {type(error).__name__}: {first_line(error)}; "
            "its attention does not go through transformers' attention interface"
        ) from error
    graph = onnx.load(path)
    clean(graph)
    save(graph, path)


@contextmanager
def custom_operators() -> Iterator[None]:
    """Let Optimum's call of torch's exporter keep our operators as single nodes."""
    original = torch.onnx.export
    torch.onnx.export = functools.partial(
        original, autograd_inlining=False, custom_opsets={"com.microsoft": 1}
    )
    try:
        yield
    finally:
        torch.onnx.export = original


def save(graph: onnx.ModelProto, path: Path) -> None:
    """Write the graph, with its weights in a second file where protobuf's limit asks for it."""
    graph.ir_version = min(graph.ir_version, 10)  # what onnxruntime 1.20 reads
    graph.producer_name, graph.producer_version = "multispin", ""
    for old in path.parent.glob(f"{path.name}*"):
        old.unlink()
    external = graph.ByteSize() > EXTERNAL_DATA_BYTES
    onnx.save(graph, path, save_as_external_data=external, location=f"{path.name}.data")


def store_weights(path: Path, weights: str) -> None:
    graph = onnx.load(path)
    if weights == "fp16-stored":
        store_as_half(graph)
    save(graph, path)


def describe(config: PretrainedConfig, folder: Path, context_length: int) -> Manifest:
    return Manifest(
        architecture=(config.architectures or [config.model_type])[0],
        vocabulary_size=config.vocab_size,
        tokenizer_hash=tokenizer_hash(folder),
        context_length=context_length,
        layers=config.num_hidden_layers,
        kv_heads=kv_heads(config),
        head_dim=head_dim(config),
        weights="fp32",
        versions={name: version(name) for name in LIBRARIES},
    )


def checked(folder: Path, model: PreTrainedModel, weights: str) -> Parity:
    """Compare the graph with its source and raise ExportError where it does not hold."""
    parity = compare(Decoder.load(folder), model)
    difference, agreement = parity.max_logit_difference, parity.greedy_agreement
    if not (difference <= MAX_DIFFERENCE[weights] and agreement >= MIN_AGREEMENT[weights]):
        raise ExportError(
            f"checking: the {weights} graph differs from {type(model).__name__} by "
            f"{difference:.2g} of its largest logit (at most {MAX_DIFFERENCE[weights]:.2g}) and "
            f"agrees on {agreement:.1%} of {parity.tokens} tokens; it cannot be exported so"
        )
    return parity


def sealed(manifest: Manifest, folder: Path, weights: str, parity: Parity) -> Manifest:
    """Write the final manifest, with the hash of every file beside it."""
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST_NAME)
    final = replace(
        manifest,
        weights=weights,
        parity=asdict(parity),
        files={name: file_record(folder / name) for name in names},
    )
    final.write(folder)
    return final


@contextmanager
def partial_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `out` that is gone afterwards; map a full disk to one line."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        partial.chmod(0o755)  # mkdtemp makes it private, and it may become `out` itself
    except OSError as error:
        raise ExportError(f"exporting to {out}: {error.strerror}") from error
    try:
        yield partial
    except OSError as error:
        raise ExportError(
            f"exporting to {out}: {error.strerror or first_line(error)}; nothing was written"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, out: Path, *, in_place: bool) -> None:
    """Move the finished files to `out`: at once where it does not exist, else the manifest last."""
    if not out.exists():
        os.rename(partial, out)
        return
    kept = {name for name in COPIED if in_place and (out / name).exists()}
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    names = [path.name for path in partial.iterdir() if path.name not in kept | {MANIFEST_NAME}]
    for name in [*sorted(names), MANIFEST_NAME]:
        os.replace(partial / name, out / name)


def first_line(error: Any) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
