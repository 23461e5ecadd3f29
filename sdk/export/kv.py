"""Keys and values in 8 bits: how large they get, and a graph that stores them rounded.

Works on any graph of the exporter's after its weights were stored. Knows nothing about files.

Source of the scheme: ONNX Runtime's ContribOperators.md, GroupQueryAttention, PER_CHANNEL with 8
bits: q = round(x / scale) in −128 … 127, one constant scale for each channel of each head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from sdk.export.graph import Graph
from sdk.model.decoder import Decoder, KvCache

__all__ = ["KvScales", "calibrated_scales", "largest_scales", "store_kv_int8"]

KvScales: TypeAlias = Mapping[tuple[int, str], NDArray[np.float32]]
"""By layer and "key" or "value": [1, kv_heads, 1, head_dim]."""

LEVELS = 127
SMALLEST = 1e-3  # of the layer's greatest range: a channel that was always 0 still gets a scale
K_SCALE_INPUT = 12  # of the operator; v_scale is the next


def calibrated_scales(decoder: Decoder, texts: list[NDArray[np.int64]]) -> KvScales:
    """Return scales by which no key or value of the texts is cut off.

    `decoder` computes in single precision. Rotary embedding turns a key's channels i and
    i + head_dim / 2 into each other as positions grow, and the texts are short: both get the
    greatest length that the pair reached, which no position exceeds.
    """
    ranges: dict[tuple[int, str], NDArray[np.float32]] = {}
    for text in texts:
        cache = filled_cache(decoder, text)
        for place, buffer in cache.buffers.items():
            held = buffer.numpy()[:, :, : cache.length]
            found = pair_lengths(held) if place[1] == "key" else np.abs(held)
            found = found.max(axis=2, keepdims=True)
            ranges[place] = np.maximum(ranges.get(place, found), found)
    return {place: scales_of(reached) for place, reached in ranges.items()}


def filled_cache(decoder: Decoder, text: NDArray[np.int64]) -> KvCache:
    """Return the keys and values of a text's tokens."""
    fitting = text[: decoder.context_length]
    cache = decoder.new_cache(capacity=len(fitting))
    decoder.run(cache, fitting, score=1)
    return cache


def pair_lengths(keys: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return for every channel the length of the pair that it is rotated in; same shape."""
    first, second = np.split(keys, 2, axis=-1)
    lengths = np.hypot(first, second)
    return np.concatenate([lengths, lengths], axis=-1)


def scales_of(reached: NDArray[np.float32]) -> NDArray[np.float32]:
    floor = SMALLEST * float(reached.max()) or 1.0
    return (np.maximum(reached, floor) / LEVELS).astype(np.float32)


def store_kv_int8(model: onnx.ModelProto, scales: KvScales) -> None:
    """Let every attention keep its keys and values in 8 bits, in place."""
    graph = Graph(model.graph)
    for node in graph.proto.node:
        if node.op_type != "GroupQueryAttention":
            continue
        layer = int(node.input[3].split(".")[1])  # past_key_values.{layer}.key
        node.input.extend([""] * (K_SCALE_INPUT - len(node.input)))
        for part in ("key", "value"):
            name = f"kv_scales.{layer}.{part}"
            node.input.append(graph.add_array(name, scales[layer, part]))
        for name, setting in (
            ("k_quant_type", "PER_CHANNEL"),
            ("v_quant_type", "PER_CHANNEL"),
            ("kv_cache_bit_width", 8),
        ):
            node.attribute.append(helper.make_attribute(name, setting))
    for value in (*graph.proto.input, *graph.proto.output):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.elem_type = TensorProto.INT8
    del graph.proto.value_info[:]


def largest_scales(scales: KvScales) -> dict[str, list[float]]:
    """Return the largest scale of every layer, for "key" and for "value"."""
    largest: dict[str, list[float]] = {}
    for (_, part), scale in scales.items():  # in the order of the layers
        largest.setdefault(part, []).append(float(scale.max()))
    return largest
