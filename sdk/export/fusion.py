"""Fewer, larger operators: projections of the same input merged, residual sums joined with norms.

Works on the cleaned graph, before weights are stored in another type. Computes the same sums in the
same order. Knows nothing about models and files.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from sdk.export.graph import Graph

__all__ = ["fuse"]


def fuse(model: onnx.ModelProto) -> None:
    """Apply every fusion, in place."""
    graph = Graph(model.graph)
    for node in list(graph.proto.node):
        if node.op_type == "GroupQueryAttention":
            merge_attention_inputs(graph, node)
    graph.remove_unread()
    merge_pairs(graph)
    graph.remove_unread()
    join_sums_with_norms(graph)
    graph.remove_unread()


def merge_attention_inputs(graph: Graph, attention: onnx.NodeProto) -> None:
    """Compute query, key and value in one product where nothing stands between it and attention."""
    parts = [projection(graph, name) for name in attention.input[:3]]
    if any(part is None for part in parts) or len({part[0].input[0] for part in parts if part}) > 1:
        return
    products = [part[0] for part in parts if part]
    biases = [part[1] for part in parts if part]
    merged = merge_products(graph, products)
    if any(biases):
        bias = [
            graph.array(name) if name else np.zeros(graph.array(product.input[1]).shape[1], "f4")
            for name, product in zip(biases, products, strict=True)
        ]
        bias_name = graph.add_array(f"{merged.output[0]}.bias", np.concatenate(bias))
        total = helper.make_node("Add", [merged.output[0], bias_name], [f"{merged.output[0]}.sum"])
        insert_after(graph, merged, [total])
        merged = total
    for index, name in enumerate((merged.output[0], "", "")):
        attention.input[index] = name


def projection(graph: Graph, value: str) -> tuple[onnx.NodeProto, str] | None:
    """Return the MatMul behind a value, and the name of its bias or ""."""
    node, bias = graph.producer.get(value), ""
    if node is not None and node.op_type == "Add":
        bias = next((name for name in node.input if name in graph.initialisers), "")
        other = next((name for name in node.input if name != bias), "")
        node = graph.producer.get(other) if bias else None
    if node is None or node.op_type != "MatMul" or node.input[1] not in graph.initialisers:
        return None
    return node, bias


def merge_pairs(graph: Graph) -> None:
    """Compute two products of one input and one width (an MLP's gate and up) as one, then split."""
    for readers in list(graph.readers.values()):
        products = [
            n for n in readers if n.op_type == "MatMul" and n.input[1] in graph.initialisers
        ]
        if len(products) != 2 or products[0].input[0] != products[1].input[0]:
            continue
        if graph.array(products[0].input[1]).shape != graph.array(products[1].input[1]).shape:
            continue
        outputs = [product.output[0] for product in products]
        merged = merge_products(graph, products)
        split = helper.make_node("Split", [merged.output[0]], outputs, axis=-1, num_outputs=2)
        for product in products:
            graph.proto.node.remove(product)
        insert_after(graph, merged, [split])


def merge_products(graph: Graph, products: list[onnx.NodeProto]) -> onnx.NodeProto:
    """Insert one MatMul with the weights side by side before the first of `products`."""
    weights = np.concatenate([graph.array(product.input[1]) for product in products], axis=1)
    name = graph.add_array(f"{products[0].input[1]}.merged", weights)
    merged = helper.make_node("MatMul", [products[0].input[0], name], [f"{name}.product"])
    position = list(graph.proto.node).index(products[0])
    graph.proto.node.insert(position, merged)
    inserted: onnx.NodeProto = graph.proto.node[position]
    return inserted


def insert_after(graph: Graph, node: onnx.NodeProto, new: list[onnx.NodeProto]) -> None:
    position = list(graph.proto.node).index(node) + 1
    for offset, extra in enumerate(new):
        graph.proto.node.insert(position + offset, extra)


def join_sums_with_norms(graph: Graph) -> None:
    """Turn a residual sum followed by RMSNorm into SkipSimplifiedLayerNormalization."""
    nodes = list(graph.proto.node)
    for norm in [node for node in nodes if node.op_type == "SimplifiedLayerNormalization"]:
        total = graph.producer.get(norm.input[0])
        if total is None or total.op_type != "Add" or set(total.input) & set(graph.initialisers):
            continue
        epsilon = next(a.f for a in norm.attribute if a.name == "epsilon")
        joined = helper.make_node(
            "SkipSimplifiedLayerNormalization",
            [total.input[0], total.input[1], norm.input[1]],
            [norm.output[0], "", "", total.output[0]],
            domain="com.microsoft",
            epsilon=epsilon,
        )
        nodes[nodes.index(total)] = joined
        nodes.remove(norm)
    graph.keep(nodes)
