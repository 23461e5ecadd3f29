"""Clean-up of the traced graph: constants shared, weights transposed once, no empty reshapes.

Knows the shape conventions of `operators` and nothing about models, files or quantisation.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

__all__ = ["Graph", "clean"]


class Graph:
    """An index over an ONNX graph: who makes a value, who reads it, which values are constant."""

    def __init__(self, proto: onnx.GraphProto) -> None:
        self.proto = proto
        self.reindex()

    def reindex(self) -> None:
        """Rebuild the index; call after adding or removing nodes."""
        self.producer = {output: node for node in self.proto.node for output in node.output}
        self.initialisers = {tensor.name: tensor for tensor in self.proto.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.proto.node:
            for name in node.input:
                self.readers[name].append(node)

    def array(self, name: str) -> NDArray[np.generic]:
        """Return an initialiser's content."""
        return np.asarray(numpy_helper.to_array(self.initialisers[name]))

    def add_array(self, name: str, array: NDArray[np.generic]) -> str:
        """Add an initialiser and return its name."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        self.proto.initializer.append(tensor)
        self.initialisers[name] = self.proto.initializer[-1]
        return name

    def rename(self, old: str, new: str) -> None:
        """Let every reader of `old` read `new`."""
        for node in self.readers.pop(old, []):
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new
            self.readers[new].append(node)

    def keep(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Replace the node list, which must be in the order of execution."""
        kept = list(nodes)
        del self.proto.node[:]
        self.proto.node.extend(kept)
        self.reindex()

    def remove_unread(self) -> None:
        """Remove nodes and initialisers whose results nobody reads."""
        wanted = {output.name for output in self.proto.output}
        kept = []
        for node in reversed(self.proto.node):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                kept.append(node)
        self.keep(reversed(kept))
        tensors = [tensor for tensor in self.proto.initializer if tensor.name in wanted]
        del self.proto.initializer[:]
        self.proto.initializer.extend(tensors)
        self.reindex()


def clean(model: onnx.ModelProto) -> None:
    """Bring the traced graph into the form that quantisation and ONNX Runtime expect, in place."""
    graph = Graph(model.graph)
    hoist_constants(graph)
    share_equal_initialisers(graph)
    transpose_weights(graph)
    drop_reshapes(graph)
    graph.remove_unread()


def hoist_constants(graph: Graph) -> None:
    """Turn Constant nodes into initialisers."""
    constants = [node for node in graph.proto.node if node.op_type == "Constant"]
    for node in constants:
        tensor = graph.proto.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
    graph.keep(node for node in graph.proto.node if node.op_type != "Constant")


def share_equal_initialisers(graph: Graph) -> None:
    """Let equal constants be one: tied embeddings, rotary tables, shapes."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    for name, tensor in list(graph.initialisers.items()):
        content = hashlib.sha256(tensor.raw_data or graph.array(name).tobytes()).digest()
        key = (tensor.data_type, tuple(tensor.dims), content)
        if (same := first.setdefault(key, name)) != name:
            graph.rename(name, same)
    graph.remove_unread()


def transpose_weights(graph: Graph) -> None:
    """Store a linear layer's weight as MatMul reads it, unless something else reads it as it is.

    The embedding table of a tied model stays [vocabulary, hidden] with a Transpose before the head;
    ONNX Runtime folds that when it loads the graph.
    """
    for node in list(graph.proto.node):
        if node.op_type != "Transpose" or node.input[0] not in graph.initialisers:
            continue
        source = node.input[0]
        if len(graph.readers[source]) == 1:
            transposed = graph.array(source).T
            graph.proto.initializer.remove(graph.initialisers.pop(source))
            graph.add_array(node.output[0], transposed)
            graph.proto.node.remove(node)
    graph.reindex()


def drop_reshapes(graph: Graph) -> None:
    """Join reshapes that follow each other and drop those that change nothing."""
    for node in list(graph.proto.node):
        if node.op_type != "Reshape" or node.input[1] not in graph.initialisers:
            continue
        while (before := graph.producer.get(node.input[0])) and before.op_type == "Reshape":
            node.input[0] = before.input[0]
        shape = graph.array(node.input[1]).tolist()
        if len(shape) == 3 and shape[:2] == [1, -1] and shape[2] == width(graph, node.input[0]):
            graph.reindex()
            graph.rename(node.output[0], node.input[0])
    graph.remove_unread()


def width(graph: Graph, value: str) -> int | None:
    """Return the last axis of a value of shape [1, rows, width] where its producer tells."""
    node = graph.producer.get(value)
    if node is None:
        return None
    if node.op_type == "MatMul" and node.input[1] in graph.initialisers:
        return int(graph.initialisers[node.input[1]].dims[-1])
    if node.op_type == "Add":
        bias = next((name for name in node.input if name in graph.initialisers), None)
        return int(graph.initialisers[bias].dims[-1]) if bias else None
    if node.op_type == "GroupQueryAttention" and value == node.output[0]:
        return width(graph, node.input[0])
    if node.op_type == "Reshape" and node.input[1] in graph.initialisers:
        shape = graph.array(node.input[1]).tolist()
        return int(shape[-1]) if len(shape) == 3 and shape[-1] > 0 else None
    return None
