"""Compile the attention kernels for GPUs that need not be here, and print what they take.

Run as a program: the interpreter, which other tests use, and the compiler exclude each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from edge_server.verifier.torch_kernel import block_sizes, join_parts, walk_keys

CARDS = {"8.0": 80, "9.0": 90}
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
SHAPES = [  # query heads per key head, numbers of a head, type, parts
    (1, 128, "bf16", 1),
    (1, 128, "bf16", 16),
    (5, 128, "bf16", 2),
    (8, 256, "fp16", 1),
    (3, 64, "fp32", 4),
    (5, 80, "bf16", 1),
]


def main() -> None:
    """Print one JSON object: for every kernel, card and shape what the compiler made of it."""
    found = {}
    for name, kernel, types, constants in kernels():
        for card, capability in CARDS.items():
            compiled = compile_for(capability, kernel, types, constants)
            found[f"{name} on {card}"] = {
                "shared_bytes": compiled.metadata.shared,
                "tensor_cores": "mma" in compiled.asm["ptx"],
                "cubin_bytes": len(compiled.asm["cubin"]),
            }
    print(json.dumps(found))


def kernels() -> Iterator[tuple[str, Any, dict[str, str], dict[str, int]]]:
    """Yield a name, a kernel, the types of its arguments and its constants."""
    for group, head_dim, dtype, parts in SHAPES:
        blocks = block_sizes(group, head_dim, BYTES[dtype])
        constants = {"head_dim": head_dim, "parts": parts, **blocks}
        pointer, result = f"*{dtype}", f"*{dtype if parts == 1 else 'fp32'}"
        types = dict.fromkeys(("query", "keys", "values"), pointer)
        types |= dict.fromkeys(("firsts", "starts", "lasts", "positions"), "*i64")
        types |= dict.fromkeys(("found", "sums"), result)
        types |= dict.fromkeys(("row_stride", "head_stride", "rows", "kv_heads", "window"), "i32")
        types |= dict.fromkeys(("scale", "softcap"), "fp32")
        if group == 1:
            constants["group"] = 1  # Triton takes a 1 as a constant
        else:
            types["group"] = "i32"
        yield f"walk_keys {dtype} {group} {head_dim} {parts}", walk_keys, types, constants
    constants = {"head_dim": 80, "parts": 16, "block_dim": 128}
    types = {"found": "*fp32", "sums": "*fp32", "output": "*bf16"}
    yield "join_parts", join_parts, types, constants


def compile_for(
    capability: int, kernel: Any, types: dict[str, str], constants: dict[str, int]
) -> Any:
    """Return a kernel as its launcher would have it compiled for the card."""
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = [name for name, kind in types.items() if kind[0] == "*" or name.endswith("stride")]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    return triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 4, "num_stages": 2} if kernel is walk_keys else {},
    )


if __name__ == "__main__":
    main()
