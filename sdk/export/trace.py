"""From a loaded model to a clean, fused graph in single precision, through Optimum."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from optimum.exporters.onnx import export as optimum_export
from transformers import PreTrainedModel

from sdk.errors import ExportError, first_line
from sdk.export.fusion import fuse
from sdk.export.graph import clean
from sdk.export.optimum_config import DecoderOnnxConfig

__all__ = ["save", "trace"]

EXTERNAL_DATA_BYTES = 1_900_000_000  # protobuf ends at 2 GiB
IR_VERSION = 10  # what onnxruntime 1.20 reads


def trace(model: PreTrainedModel, path: Path, context_length: int) -> None:
    """Write the fused graph; raise ExportError when the architecture cannot be traced."""
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
    fuse(graph)
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
    graph.ir_version = min(graph.ir_version, IR_VERSION)
    graph.producer_name, graph.producer_version = "multispin", ""
    for old in path.parent.glob(f"{path.name}*"):
        old.unlink()
    external = sum(len(t.raw_data) for t in graph.graph.initializer) > EXTERNAL_DATA_BYTES
    onnx.save(graph, path, save_as_external_data=external, location=f"{path.name}.data")
