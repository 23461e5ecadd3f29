"""How weights are stored and computed: half precision, 8-bit and 4-bit blocks.

Works on the fused graph in single precision. Knows nothing about models and files.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
)

from sdk.export.graph import Graph

__all__ = ["STORE"]

WEIGHT_READERS = {"MatMul", "Gather", "Transpose"}
ACCURACY_LEVEL = 4  # activations are rounded to 8 bits by block, products are integer
TABLE_BLOCK = {8: 64, 4: 32}  # the largest in which rows do not depend on their company, by bits


def store_half(model: onnx.ModelProto) -> None:
    """Store matrices in half precision with a Cast to single in front, in place.

    ONNX Runtime folds the Cast when it loads the graph, so it computes in single precision with
    weights rounded to half. Rotary tables, norms and biases stay single: they are small.
    """
    graph = Graph(model.graph)
    casts = []
    for name, tensor in list(graph.initialisers.items()):
        readers = {node.op_type for node in graph.readers[name]}
        single = tensor.data_type == TensorProto.FLOAT
        if not single or len(tensor.dims) < 2 or not readers & WEIGHT_READERS:
            continue
        half = graph.array(name).astype(np.float16)
        graph.proto.initializer.remove(tensor)
        graph.add_array(f"{name}.half", half)
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    graph.keep([*casts, *graph.proto.node])


def compute_half(model: onnx.ModelProto) -> None:
    """Compute in half precision throughout, keys and values included; logits stay single."""
    graph = Graph(model.graph)
    for tensor in graph.proto.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for value in (*graph.proto.input, *graph.proto.output):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in graph.proto.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        for index, name in enumerate(node.output):
            if name == "logits":
                node.output[index] = "logits.half"
    del graph.proto.value_info[:]
    cast = helper.make_node("Cast", ["logits.half"], ["logits"], to=TensorProto.FLOAT)
    graph.keep([*graph.proto.node, cast])


def store_blocks(model: onnx.ModelProto, *, bits: int, block: int, table_bits: int = 8) -> None:
    """Store every linear layer as MatMulNBits, embedding table and head with `table_bits`.

    Blocks of `block` weights of one output share a scale (in table and head TABLE_BLOCK of them);
    the value is symmetric about zero. A tied embedding table is stored once and read by
    GatherBlockQuantized and by the head.
    """
    graph = Graph(model.graph)
    tables = {n.input[0] for n in graph.proto.node if n.op_type == "Gather"}
    heads = {n.input[1] for n in graph.proto.node if "logits" in n.output}
    new: list[onnx.NodeProto] = []
    for node in list(graph.proto.node):
        if node.op_type == "Gather" and len(graph_dims(graph, node.input[0])) == 2:
            new.append(quantised_gather(graph, node, table_bits))
        elif node.op_type == "MatMul" and (table := tied_table(graph, node)) in tables:
            new.extend(quantised_head(graph, node, table, table_bits))
        elif node.op_type == "MatMul" and node.input[1] in graph.initialisers:
            head = node.input[1] in heads
            chosen = (table_bits, TABLE_BLOCK[table_bits]) if head else (bits, block)
            new.append(quantised_product(graph, node, *chosen))
        else:
            new.append(node)
    graph.keep(new)
    graph.remove_unread()


def graph_dims(graph: Graph, name: str) -> list[int]:
    return list(graph.initialisers[name].dims) if name in graph.initialisers else []


def tied_table(graph: Graph, node: onnx.NodeProto) -> str:
    """Return the embedding table behind a head that reads it transposed, or ""."""
    transpose = graph.producer.get(node.input[1])
    return transpose.input[0] if transpose is not None and transpose.op_type == "Transpose" else ""


def fitting_block(width: int, block: int) -> int:
    """Return the largest block of at most `block` that divides a row, at least 16."""
    while block > 16 and width % block:
        block //= 2
    return block


def quantise(
    weight: NDArray[np.generic], bits: int, block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """[in, out] → packed [out, blocks, bytes], scales [out, blocks]: what MatMulNBits reads."""
    config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, bits=bits)
    packed, scales, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(weight)
    return packed, scales


def quantised_product(graph: Graph, node: onnx.NodeProto, bits: int, block: int) -> onnx.NodeProto:
    name = node.input[1]
    weight = graph.array(name)
    block = fitting_block(weight.shape[0], block)
    packed, scales = quantise(weight, bits, block)
    inputs = [
        node.input[0],
        graph.add_array(f"{name}.int{bits}", packed),
        graph.add_array(f"{name}.scales", scales),
    ]
    return product_node(inputs, node.output[0], weight.shape, bits, block)


def product_node(
    inputs: list[str], output: str, shape: tuple[int, ...], bits: int, block: int
) -> onnx.NodeProto:
    return helper.make_node(
        "MatMulNBits",
        inputs,
        [output],
        domain="com.microsoft",
        K=shape[0],
        N=shape[1],
        bits=bits,
        block_size=block,
        accuracy_level=ACCURACY_LEVEL,
    )


def quantised_table(graph: Graph, name: str, bits: int) -> tuple[str, str, int]:
    """Store a table [vocabulary, hidden] as rows of bytes; return names and block."""
    table = graph.array(name)
    block = fitting_block(table.shape[1], TABLE_BLOCK[bits])
    packed_name, scales_name = f"{name}.int{bits}", f"{name}.scales"
    if packed_name not in graph.initialisers:
        packed, scales = quantise(np.ascontiguousarray(table.T), bits, block)
        graph.add_array(packed_name, packed.reshape(table.shape[0], -1))
        graph.add_array(scales_name, scales.reshape(table.shape[0], -1))
    return packed_name, scales_name, block


def quantised_gather(graph: Graph, node: onnx.NodeProto, bits: int) -> onnx.NodeProto:
    packed, scales, block = quantised_table(graph, node.input[0], bits)
    return helper.make_node(
        "GatherBlockQuantized",
        [packed, node.input[1], scales],
        [node.output[0]],
        domain="com.microsoft",
        gather_axis=0,
        quantize_axis=1,
        block_size=block,
        bits=bits,
    )


def quantised_head(
    graph: Graph, node: onnx.NodeProto, table: str, bits: int
) -> list[onnx.NodeProto]:
    """Let the head read the table's bytes, given the third axis that MatMulNBits expects."""
    packed, scales, block = quantised_table(graph, table, bits)
    vocabulary, hidden = graph_dims(graph, table)
    shape = np.array([vocabulary, -1, block * bits // 8], np.int64)
    reshaped = f"{packed}.blocks"
    reshape = helper.make_node(
        "Reshape", [packed, graph.add_array(f"{reshaped}.shape", shape)], [reshaped]
    )
    inputs = [node.input[0], reshaped, scales]
    return [reshape, product_node(inputs, node.output[0], (hidden, vocabulary), bits, block)]


STORE: dict[str, Callable[[onnx.ModelProto], None]] = {
    "fp32": lambda _: None,
    "fp16-stored": store_half,
    "fp16": compute_half,
    "int8": lambda model: store_blocks(model, bits=8, block=64),
    "int4": lambda model: store_blocks(model, bits=4, block=32),
    "int4-128": lambda model: store_blocks(model, bits=4, block=128),
    "int4-all": lambda model: store_blocks(model, bits=4, block=32, table_bits=4),
}
"""What to do to the graph for each of `sdk.export.WEIGHTS`."""
