"""Hugging Face decoder → ONNX graph for drafting and verification, through Optimum.

Importing this package is cheap; `sdk.export.exporter` and what it uses need the extra "export".
"""

__all__ = ["KV_TYPES", "WEIGHTS"]

WEIGHTS: dict[str, str] = {
    "fp32": "stored and computed in single precision",
    "fp16-stored": "stored in half precision, computed in single: half the file, the same speed",
    "fp16": "stored and computed in half precision, for GPU providers",
    "int8": "8 bits in blocks of 64, activations rounded to 8 bits",
    "int4": "4 bits in blocks of 32, embedding and head 8 bits",
    "int4-all": "4 bits in blocks of 32, embedding and head too",
    "int4-128": "4 bits in blocks of 128, embedding and head 8 bits",
}
KV_TYPES: dict[str, str] = {
    "float": "as they are computed",
    "int8": "8 bits: a quarter of the memory, faster at long contexts",
}
