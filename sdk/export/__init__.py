"""Hugging Face decoder → ONNX graph for drafting and verification, through Optimum.

Importing this package is cheap; `sdk.export.exporter` and what it uses need the extra "export".
"""

__all__ = ["WEIGHTS"]

WEIGHTS: dict[str, str] = {
    "fp32": "stored and computed in single precision",
    "fp16-stored": "stored in half precision, computed in single: half the file, the same speed",
}
