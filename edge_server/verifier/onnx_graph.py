"""Derives, from an exported decoder graph, one that takes the rows of several sequences at once.

All operators but attention work row by row, so the sequences' rows lie behind each other in one
call and share every matrix product. Attention becomes one node per sequence (a lane), with inputs,
outputs and buffers of its own: ONNX Runtime's takes several rows on a past only at batch 1.

Beside the inputs of `sdk.model.decoder`'s contract, which get a lane's number as a suffix where
they belong to one sequence, there are: `expand` int64 [expanded], the row that each of attention's
rows is; `split` int64 [lanes], how many of those each lane takes, at least 1; `contract` int64
[rows], where each row is found again.

The file is a protobuf message (onnx.proto), and few of its fields change: they are rewritten here,
so that a server needs no package `onnx`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sdk.model.manifest import Manifest

__all__ = ["with_lanes"]

Bytes = bytes | memoryview

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_TYPE, _NODE_ATTRIBUTE = 1, 2, 3, 4, 5
_VALUE_NAME, _VALUE_TYPE = 1, 2
_INT32, _INT64 = 6, 7
_KV_TYPES = {"float32": 1, "float16": 10, "int8": 3}

_LENGTHS = ("seqlens_k", "total_sequence_length")
_ATTENTION = "GroupQueryAttention"


def with_lanes(model: bytes, *, lanes: int, manifest: Manifest) -> bytes:
    """Return the graph with `lanes` sequences side by side.

    Raises:
        ValueError: if the file is no such graph, or uses lengths or past outside attention.
    """
    parts: list[Bytes] = []
    for field in _fields(memoryview(model)):
        if field.number == _MODEL_GRAPH:
            parts.append(_message(_MODEL_GRAPH, *_graph(field.content, lanes, manifest)))
        else:
            parts.append(field.whole)
    if all(field.number != _MODEL_GRAPH for field in _fields(memoryview(model))):
        raise ValueError("not an ONNX file: it has no graph")
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class _Field:
    number: int
    whole: memoryview
    content: memoryview  # of strings and messages; of anything else, nothing


def _fields(message: memoryview) -> Iterator[_Field]:
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_varint(message, at)
        content = at
        match tag & 7:
            case 0:
                _, at = _read_varint(message, at)
                content = at
            case 1:
                content = at = at + 8
            case 2:
                size, content = _read_varint(message, at)
                at = content + size
            case 5:
                content = at = at + 4
            case kind:
                raise ValueError(f"not an ONNX file: a field of kind {kind}")
        if at > len(message):
            raise ValueError("not an ONNX file: it ends within a field")
        yield _Field(tag >> 3, message[start:at], message[content:at])


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("not an ONNX file: a number does not end")
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _message(number: int, *parts: Bytes) -> bytes:
    size = sum(len(part) for part in parts)
    return b"".join((_varint(number << 3 | 2), _varint(size), *parts))


def _string(number: int, text: str) -> bytes:
    return _message(number, text.encode())


def _integer(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _strings(message: memoryview, number: int) -> list[str]:
    return [bytes(f.content).decode() for f in _fields(message) if f.number == number]


def _graph(graph: memoryview, lanes: int, manifest: Manifest) -> list[Bytes]:
    parts: list[Bytes] = []
    found = 0
    for field in _fields(graph):
        if field.number == _GRAPH_NODE:
            if _strings(field.content, _NODE_TYPE) == [_ATTENTION]:
                found += 1
                parts += _attention(field.content, lanes)
                continue
            if any(_of_one_lane(name) for name in _strings(field.content, _NODE_INPUT)):
                raise ValueError("the graph uses lengths or past outside attention")
        elif field.number in (_GRAPH_INPUT, _GRAPH_OUTPUT):
            (name,) = _strings(field.content, _VALUE_NAME)
            if _of_one_lane(name):
                parts += [
                    _value(field.number, f"{name}.{lane}", *_kind(name, lane, manifest))
                    for lane in range(lanes)
                ]
                continue
        parts.append(field.whole)
    if found != manifest.layers:
        raise ValueError(f"the graph has {found} attention nodes for {manifest.layers} layers")
    for name, size in (("expand", "expanded"), ("split", lanes), ("contract", "rows")):
        parts.append(_value(_GRAPH_INPUT, name, _INT64, [size]))
    return parts


def _of_one_lane(name: str) -> bool:
    return name in _LENGTHS or name.startswith(("past_key_values.", "present."))


def _kind(name: str, lane: int, manifest: Manifest) -> tuple[int, list[int | str]]:
    """Return element type and shape of a lane's input or output."""
    if name in _LENGTHS:
        return _INT32, [1] if name == "seqlens_k" else []
    shape: list[int | str] = [1, manifest.kv_heads, f"capacity.{lane}", manifest.head_dim]
    return _KV_TYPES[manifest.kv_type], shape


def _value(number: int, name: str, element: int, shape: Sequence[int | str]) -> bytes:
    dimensions = [
        _message(1, _integer(1, size) if isinstance(size, int) else _string(2, size))
        for size in shape
    ]
    tensor = _message(1, _integer(1, element), _message(2, *dimensions))
    return _message(number, _string(_VALUE_NAME, name), _message(_VALUE_TYPE, tensor))


def _attention(node: memoryview, lanes: int) -> list[bytes]:
    """Return what stands for one attention node: expand, split, attend per lane, join, contract."""
    inputs, outputs = _strings(node, _NODE_INPUT), _strings(node, _NODE_OUTPUT)
    rest = [
        field.whole
        for field in _fields(node)
        if field.number not in (_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME)
    ]
    rows = [name for name in inputs[:3] if name]  # query, key, value, or all three in one
    nodes = []
    for name in rows:
        nodes.append(_node("Gather", [name, "expand"], [f"{name}.expanded"]))
        split = [f"{name}.{lane}" for lane in range(lanes)]
        nodes.append(_node("Split", [f"{name}.expanded", "split"], split))
    for lane in range(lanes):
        own = [f"{name}.{lane}" if name in rows or _of_one_lane(name) else name for name in inputs]
        made = [f"{name}.{lane}" for name in outputs]
        nodes.append(
            _message(
                _GRAPH_NODE,
                *(_string(_NODE_INPUT, name) for name in own),
                *(_string(_NODE_OUTPUT, name) for name in made),
                _string(_NODE_NAME, f"{outputs[0]}.{lane}"),
                *rest,
            )
        )
    joined = f"{outputs[0]}.joined"
    nodes.append(_node("Concat", [f"{outputs[0]}.{lane}" for lane in range(lanes)], [joined]))
    nodes.append(_node("Gather", [joined, "contract"], [outputs[0]]))
    return nodes


def _node(kind: str, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """Return a node that works on axis 1, the rows."""
    axis = (_string(1, "axis"), _integer(3, 1), _integer(20, 2))  # name, value, type: integer
    return _message(
        _GRAPH_NODE,
        *(_string(_NODE_INPUT, name) for name in inputs),
        *(_string(_NODE_OUTPUT, name) for name in outputs),
        _string(_NODE_NAME, f"{outputs[0]}.{kind}"),
        _string(_NODE_TYPE, kind),
        _message(_NODE_ATTRIBUTE, *axis),
    )
