"""The export, from a model's name to a finished folder.

Order: fetch → load → trace (Optimum) → check against the source → store weights, keys and values →
check again → measure what that costs → publish. Everything happens in a temporary folder beside the
destination; what goes wrong is an ExportError of one line.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import onnx
from transformers import PretrainedConfig, PreTrainedModel

from sdk.errors import ExportError, ModelLoadError
from sdk.export import KV_TYPES, WEIGHTS
from sdk.export.kv import calibrated_scales, largest_scales, store_kv_int8
from sdk.export.optimum_config import head_dim, kv_heads
from sdk.export.parity import Parity, compare
from sdk.export.publish import partial_folder, publish
from sdk.export.quality import choices, draw_texts, measured_quality
from sdk.export.source import checked_context, load_source, local_folder, supported_config
from sdk.export.trace import save, trace
from sdk.export.weights import STORE
from sdk.model.decoder import Decoder
from sdk.model.manifest import GRAPH_NAME, MANIFEST_NAME, Manifest, file_record, tokenizer_hash

__all__ = ["export_model"]

COPIED = (
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
LIBRARIES = ("onnx", "onnxruntime", "optimum", "optimum-onnx", "torch", "transformers")
LIMITS = {  # largest difference, smallest greedy agreement; quantised weights are only measured
    "fp32": (1e-3, 0.98),
    "fp16-stored": (2e-2, 0.95),
    "fp16": (5e-2, 0.9),
}

Progress = Callable[[str], None]


def export_model(
    source: str | Path,
    out: Path,
    *,
    weights: str = "fp32",
    kv: str = "float",
    context_length: int | None = None,
    target: Path | None = None,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Export a Hugging Face decoder to a folder that `sdk.model.decoder` runs.

    `source` is a folder or a Hub name; `weights` one of `sdk.export.WEIGHTS`; `kv` one of
    `sdk.export.KV_TYPES`, in which keys and values are kept; `context_length` at most what the
    model was made for, and 8,192 at most when None; `target` is an exported model of the same
    vocabulary, by which the acceptance of this drafter is measured before and after weights, keys
    and values were stored so; `progress` is called with each step's name. When `out` is the
    source's own folder, only the graph and the manifest are added. Raises ExportError when the
    model cannot be exported faithfully; nothing is then left behind.
    """
    check_types(weights, kv)
    progress("fetching")
    folder = local_folder(source)
    config = supported_config(folder)
    length = checked_context(config, context_length)
    with partial_folder(out) as partial:
        progress("loading")
        model = load_source(folder)
        progress("tracing")
        trace(model, partial / GRAPH_NAME, length)
        copy_files(folder, partial)
        manifest = described(config, folder, length, windowed=has_window(partial / GRAPH_NAME))
        manifest.write(partial)
        progress("checking")
        manifest = checked(manifest, partial, model)
        if (weights, kv) != ("fp32", "float"):
            manifest = stored(manifest, partial, model, weights, kv, target, progress)
        manifest = sealed(manifest, partial)
        progress("publishing")
        publish(partial, out, keep=COPIED if folder.resolve() == out.resolve() else ())
    return manifest


def check_types(weights: str, kv: str) -> None:
    for name, value, known in (("weights", weights, WEIGHTS), ("kv", kv, KV_TYPES)):
        if value not in known:
            raise ExportError(f"exporting: {name} {value!r} is not one of {', '.join(known)}")
    if (weights, kv) == ("fp16", "int8"):
        raise ExportError(
            "exporting: fp16 weights are for GPUs and keep their keys and values in half "
            "precision; leave out --kv int8 or choose other weights"
        )


def copy_files(folder: Path, partial: Path) -> None:
    for name in COPIED:
        if (folder / name).exists():
            shutil.copyfile(folder / name, partial / name)


def has_window(graph: Path) -> bool:
    """Return whether some attention sees the latest tokens only."""
    nodes = onnx.load(graph, load_external_data=False).graph.node
    windows = (one.i for node in nodes for one in node.attribute if one.name == "local_window_size")
    return any(window > 0 for window in windows)


def described(
    config: PretrainedConfig, folder: Path, context_length: int, *, windowed: bool
) -> Manifest:
    return Manifest(
        architecture=(config.architectures or [config.model_type])[0],
        vocabulary_size=config.vocab_size,
        tokenizer_hash=tokenizer_hash(folder),
        context_length=context_length,
        layers=config.num_hidden_layers,
        kv_heads=kv_heads(config),
        head_dim=head_dim(config),
        weights="fp32",
        windowed=windowed,
        versions={name: version(name) for name in LIBRARIES},
    )


def stored(
    manifest: Manifest,
    folder: Path,
    model: PreTrainedModel,
    weights: str,
    kv: str,
    target_folder: Path | None,
    progress: Progress,
) -> Manifest:
    """Store weights, keys and values as asked, check the graph again and measure what it costs."""
    progress("measuring in single precision")
    before, target = Decoder.load(folder), load_target(target_folder, manifest)
    texts = draw_texts(target or before)
    chosen_before = choices(before, texts)
    # Other texts than those that measure what the scales cost.
    calibration = draw_texts(target or before, first_seed=200) if kv == "int8" else []
    scales = calibrated_scales(before, calibration)
    del before
    progress("storing weights")
    graph = onnx.load(folder / GRAPH_NAME)
    STORE[weights](graph)
    if scales:
        store_kv_int8(graph, scales)
    save(graph, folder / GRAPH_NAME)
    kv_type = "int8" if scales else "float16" if weights == "fp16" else "float32"
    manifest = replace(manifest, weights=weights, kv_type=kv_type, kv_scales=largest_scales(scales))
    manifest.write(folder)
    progress("checking weights")
    manifest = checked(manifest, folder, model)
    chosen_target = choices(target, texts) if target else None
    quality = measured_quality(chosen_before, choices(Decoder.load(folder), texts), chosen_target)
    if scales:
        quality["kv_calibration_tokens"] = float(sum(map(len, calibration)))
    return replace(manifest, quality=quality)


def load_target(folder: Path | None, manifest: Manifest) -> Decoder | None:
    if folder is None:
        return None
    try:
        target = Decoder.load(folder)
    except ModelLoadError as error:
        raise ExportError(f"measuring acceptance: {error}") from error
    if target.manifest.tokenizer_hash != manifest.tokenizer_hash:
        raise ExportError(
            f"measuring acceptance: {folder} has another tokenizer than the model to export; "
            "drafter and target must share one"
        )
    return target


def checked(manifest: Manifest, folder: Path, model: PreTrainedModel) -> Manifest:
    """Compare the graph with its source; raise ExportError where it does not hold."""
    try:
        parity = compare(Decoder.load(folder), model)
    except ModelLoadError as error:
        raise ExportError(f"checking: {error}") from error
    measured_only = (float("inf"), 0.0)
    limits = measured_only if manifest.kv_scales else LIMITS.get(manifest.weights, measured_only)
    difference, agreement = limits
    if not within(parity, difference, agreement):
        raise ExportError(
            f"checking: the {manifest.weights} graph differs from {type(model).__name__} by "
            f"{parity.max_logit_difference:.2g} of its largest logit (at most {difference:.2g}) "
            f"and agrees on {parity.greedy_agreement:.1%} of {parity.tokens} tokens; it cannot be "
            "exported so"
        )
    return replace(manifest, parity=asdict(parity))


def within(parity: Parity, difference: float, agreement: float) -> bool:
    """Say whether a comparison holds; a NaN does not."""
    return parity.max_logit_difference <= difference and parity.greedy_agreement >= agreement


def sealed(manifest: Manifest, folder: Path) -> Manifest:
    """Write the final manifest, with the hash of every file beside it."""
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST_NAME)
    final = replace(manifest, files={name: file_record(folder / name) for name in names})
    final.write(folder)
    return final
