"""What an exported model folder contains, in numbers and hashes. Knows nothing about graphs.

`manifest.json` lets both sides check that they speak of the same vocabulary before a token is sent,
and lets a board refuse a folder whose files were cut short or changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sdk.errors import ModelLoadError

__all__ = ["GRAPH_NAME", "MANIFEST_NAME", "FileRecord", "Manifest", "file_record", "tokenizer_hash"]

MANIFEST_NAME = "manifest.json"
GRAPH_NAME = "model.onnx"
TOKENIZER_NAME = "tokenizer.json"
FORMAT = 1
KV_TYPES = ("float32", "float16", "int8")
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file's size and SHA-256 in hexadecimal."""

    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        if len(self.sha256) != 64 or self.size_bytes < 0:
            raise ValueError(f"not a file record: {self.sha256!r}, {self.size_bytes} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Describe an exported model.

    Attributes:
        architecture: the source's class name, for example "LlamaForCausalLM".
        vocabulary_size: width of a row of logits.
        tokenizer_hash: `tokenizer_hash` of the tokenizer that shipped with the weights.
        context_length: most tokens that one sequence may hold.
        layers, kv_heads, head_dim: the KV cache's shape.
        weights: how weights are stored, one of `sdk.export.WEIGHTS`.
        kv_type: element type of the KV cache, "float32", "float16" or "int8".
        windowed: whether some layers attend to a sliding window only.
        kv_scales: with "int8", the largest scale of every layer, for "key" and for "value".
        parity: what the check against the source model measured.
        quality: what the weight type cost against single precision; empty where it costs nothing.
        files: by name, every file that the export wrote or relies on.
        versions: of the libraries that made the graph.
    """

    architecture: str
    vocabulary_size: int
    tokenizer_hash: str
    context_length: int
    layers: int
    kv_heads: int
    head_dim: int
    weights: str
    kv_type: str = "float32"
    windowed: bool = False
    kv_scales: Mapping[str, Sequence[float]] = field(default_factory=dict)
    parity: Mapping[str, float] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        counts = ("vocabulary_size", "context_length", "layers", "kv_heads", "head_dim")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"manifest: {name} must be at least 1, not {getattr(self, name)}")
        if self.kv_type not in KV_TYPES:
            known = ", ".join(KV_TYPES)
            raise ValueError(f"manifest: kv_type must be one of {known}, not {self.kv_type!r}")
        if self.format != FORMAT:
            raise ValueError(f"manifest: format {self.format} is not {FORMAT}")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `manifest.json` of a folder; raise ModelLoadError when it is absent or malformed."""
        path = folder / MANIFEST_NAME
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            files = {name: FileRecord(**record) for name, record in fields.pop("files").items()}
            return cls(**fields, files=files)
        except FileNotFoundError as error:
            if not folder.is_dir():
                raise ModelLoadError(
                    f"loading model: there is no folder {folder}; check the path"
                ) from error
            raise ModelLoadError(
                f"loading model: {folder} has no {MANIFEST_NAME}, so it is no exported model; "
                f"if it is a Hugging Face model, 'multispin model export --model {folder} "
                f"--out {folder}' adds what is missing"
            ) from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelLoadError(
                f"loading model: {path} is not a manifest ({error}); export the model again"
            ) from error

    def write(self, folder: Path) -> None:
        """Write `manifest.json`: the same bytes for the same content."""
        text = json.dumps(self.as_json(), indent=2, sort_keys=True) + "\n"
        (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")

    def as_json(self) -> dict[str, Any]:
        """Return the manifest as plain dictionaries, ready for json.dumps."""
        fields = asdict(self)
        return {
            key: dict(value) if isinstance(value, Mapping) else value
            for key, value in fields.items()
        }

    def verify(self, folder: Path) -> None:
        """Compare every listed file's size and hash; raise ModelLoadError where they differ."""
        for name, expected in sorted(self.files.items()):
            try:
                found = file_record(folder / name)
            except OSError as error:
                raise ModelLoadError(f"verifying model: {folder / name} is missing") from error
            if found != expected:
                raise ModelLoadError(
                    f"verifying model: {folder / name} is not what the manifest describes "
                    f"({found.size_bytes} bytes, expected {expected.size_bytes}); copy it again"
                )


def file_record(path: Path) -> FileRecord:
    """Return size and SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return FileRecord(sha256=digest.hexdigest(), size_bytes=size)


def tokenizer_hash(folder: Path) -> str:
    """Return SHA-256 of `tokenizer.json`'s content: key order and white space do not matter."""
    try:
        content = json.loads((folder / TOKENIZER_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"loading tokenizer: {folder / TOKENIZER_NAME} is missing or not JSON; "
            "a folder needs the tokenizer.json of its model"
        ) from error
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
