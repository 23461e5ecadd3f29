"""How weights are stored in the graph. Knows nothing about models and files."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from sdk.export.graph import Graph

__all__ = ["store_as_half"]

WEIGHT_READERS = {"MatMul", "Gather", "Transpose"}


def store_as_half(model: onnx.ModelProto) -> None:
    """Store matrices in half precision with a Cast to single in front, in place.

    ONNX Runtime folds the Cast when it loads the graph, so it computes in single precision with
    weights rounded to half. Rotary tables, norms and biases stay single: they are small.
    """
    graph = Graph(model.graph)
    casts = []
    for name, tensor in list(graph.initialisers.items()):
        readers = {node.op_type for node in graph.readers[name]}
        if (
            tensor.data_type != TensorProto.FLOAT
            or len(tensor.dims) < 2
            or not readers & WEIGHT_READERS
        ):
            continue
        half = graph.array(name).astype(np.float16)
        graph.proto.initializer.remove(tensor)
        graph.add_array(f"{name}.half", half)
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    graph.keep([*casts, *graph.proto.node])
