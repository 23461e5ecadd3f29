"""Runs an exported decoder graph with ONNX Runtime: tokens in, rows of logits out.

Keys and values of one sequence live in one buffer that the graph reads and writes in place, so that
forgetting tokens is the lowering of an integer. Knows nothing about drafting, sampling or sessions.

The graph's contract (made by `sdk.export`): inputs `input_ids` int64 [1, rows], `seqlens_k` int32
[1] (total length − 1), `total_sequence_length` int32 scalar, `rows_to_score` int64 [scored] (which
of the rows get logits) and `past_key_values.{layer}.{key,value}` [1, kv_heads, capacity, head_dim]
in float32, float16 or int8; outputs `logits` float32 [1, scored, vocabulary] and
`present.{layer}.{key,value}`, bound to the past's memory.

Rows of a call are computed by the same instructions, to the bit, for any number of rows from two on
and any number of threads; only a lone row takes another path through ONNX Runtime's attention. With
keys and values in 8 bits a lone row is equal too (measured with 1.32 on x86-64, see
tests/model/test_decoder.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sdk.errors import ConfigError, ModelLoadError, first_line
from sdk.model.huge_pages import use_huge_pages
from sdk.model.manifest import GRAPH_NAME, Manifest
from sdk.model.runtime import lacks

__all__ = ["PROVIDERS", "Decoder", "KvCache", "default_threads", "ortvalue", "session_options"]

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
KV_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int8)": np.dtype(np.int8),
}
CHUNK_ROWS = 128
"""Most rows in one call: attention's scratch grows with rows × context, and leaves the caches."""


class KvCache:
    """One sequence's keys and values, in place, for one decoder.

    Attributes:
        length: tokens whose keys and values are in the cache.
        capacity: most tokens that fit.
        buffers: keys and values by (layer, "key" or "value"), [1, kv_heads, rows, head_dim].
    """

    def __init__(
        self, *, binding: Any, buffers: Mapping[tuple[int, str], Any], capacity: int
    ) -> None:
        self.length = 0
        self.capacity = capacity
        self.buffers = buffers
        self._binding = binding  # has the buffers bound as past and as present

    def rollback(self, length: int) -> None:
        """Forget every token from `length` on; raise ValueError outside 0 … self.length."""
        if not 0 <= length <= self.length:
            raise ValueError(f"rollback to {length} of a cache that holds {self.length} tokens")
        self.length = length


class Decoder:
    """An exported model, ready to run. One thread at a time; any number of caches."""

    def __init__(
        self, *, session: Any, manifest: Manifest, provider: str, batch_invariant: bool
    ) -> None:
        self.manifest = manifest
        self.provider = provider
        self.batch_invariant = batch_invariant
        self._session = session
        kinds = {value.name: value.type for value in session.get_inputs()}
        self._kv_dtype = KV_DTYPES[kinds["past_key_values.0.key"]]
        self._device = "cpu" if provider == "cpu" else "cuda"
        self._seqlens = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        threads: int | None = None,
        provider: str = "cpu",
        batch_invariant: bool = False,
    ) -> Decoder:
        """Load `model.onnx` and `manifest.json` of a folder.

        `threads` are ONNX Runtime's, `default_threads()` when None; `provider` is one of PROVIDERS.
        `batch_invariant` runs a lone row together with a dummy row that is forgotten again, so that
        a token's logits do not depend on how many tokens share its call: what a verifier needs to
        be lossless to the bit. Raises ModelLoadError when a file is missing or damaged or the
        provider is not installed, ConfigError for less than one thread.
        """
        if threads is not None and threads < 1:
            raise ConfigError(f"threads: at least 1, not {threads}")
        manifest = Manifest.load(folder)
        check_provider(provider)
        check_version(folder, manifest)
        try:
            session = onnxruntime.InferenceSession(
                str(folder / GRAPH_NAME),
                sess_options=session_options(threads or default_threads()),
                providers=list(dict.fromkeys([PROVIDERS[provider], PROVIDERS["cpu"]])),
            )
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            reason = first_line(error)
            raise ModelLoadError(
                f"loading model: {folder / GRAPH_NAME} cannot be run ({reason}); "
                "export the model again or update onnxruntime"
            ) from error
        if provider == "cpu":
            use_huge_pages()
        return cls(
            session=session, manifest=manifest, provider=provider, batch_invariant=batch_invariant
        )

    @property
    def vocabulary_size(self) -> int:
        """Width of a row of logits."""
        return self.manifest.vocabulary_size

    @property
    def context_length(self) -> int:
        """Most tokens that one sequence may hold."""
        return self.manifest.context_length

    def cache_bytes(self, capacity: int) -> int:
        """Return the memory of a cache for `capacity` tokens."""
        shape = self.manifest
        per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim
        rows = capacity + int(self.batch_invariant)
        return rows * per_token * self._kv_dtype.itemsize

    def new_cache(self, *, capacity: int | None = None) -> KvCache:
        """Return an empty cache for `capacity` tokens (all of the context when None).

        Raises ValueError outside 1 … context_length. On the CPU memory is only taken as it fills.
        """
        capacity = self.context_length if capacity is None else capacity
        if not 1 <= capacity <= self.context_length:
            raise ValueError(f"capacity {capacity} is not in 1 … {self.context_length}")
        rows = capacity + int(self.batch_invariant)  # room for the dummy row
        shape = (1, self.manifest.kv_heads, rows, self.manifest.head_dim)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("seqlens_k", ortvalue(self._seqlens))
        binding.bind_ortvalue_input("total_sequence_length", ortvalue(self._total))
        buffers = {}
        for layer in range(self.manifest.layers):
            for part in ("key", "value"):
                buffer = ortvalue(np.zeros(shape, self._kv_dtype), self._device)
                binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", buffer)
                binding.bind_ortvalue_output(f"present.{layer}.{part}", buffer)
                buffers[layer, part] = buffer
        return KvCache(binding=binding, buffers=buffers, capacity=capacity)

    def run(
        self,
        cache: KvCache,
        token_ids: Sequence[int] | NDArray[np.int64],
        *,
        score: int | None = None,
    ) -> NDArray[np.float32]:
        """Feed the tokens that follow `cache.length` and return logits of the last `score` of them.

        Returns [score, vocabulary], all rows when `score` is None; the array is the caller's.
        Raises ValueError for no tokens, ids outside the vocabulary, a full cache, a wrong `score`.
        """
        ids = np.ascontiguousarray(token_ids, np.int64)
        scored = len(ids) if score is None else score
        self.check(cache, ids, scored)
        first_scored = len(ids) - scored
        start = 0
        while len(ids) - start > CHUNK_ROWS and start + CHUNK_ROWS <= first_scored:
            self._call(cache, ids[start : start + CHUNK_ROWS], 1)
            start += CHUNK_ROWS
        return self._call(cache, ids[start:], scored)

    def _call(self, cache: KvCache, ids: NDArray[np.int64], scored: int) -> NDArray[np.float32]:
        rows = len(ids)
        if rows == 1 and self.batch_invariant:
            ids = np.repeat(ids, 2)
        logits = np.empty((scored, self.vocabulary_size), np.float32)
        self._seqlens[0] = cache.length + len(ids) - 1
        self._total[()] = cache.length + len(ids)
        # Bindings of older runtimes (1.23 among them) keep no hold of the memory: these names do.
        fed, wanted = ortvalue(ids[None]), ortvalue(np.arange(rows - scored, rows))
        found = ortvalue(logits[None])
        binding = cache._binding
        binding.bind_ortvalue_input("input_ids", fed)
        binding.bind_ortvalue_input("rows_to_score", wanted)
        binding.bind_ortvalue_output("logits", found)
        self._session.run_with_iobinding(binding)
        cache.length += rows
        return logits

    def check(self, cache: KvCache, ids: NDArray[np.int64], scored: int) -> None:
        """Raise ValueError where `run` with these arguments would."""
        if ids.ndim != 1 or not len(ids):
            raise ValueError(f"token ids must be a list of at least one, not of shape {ids.shape}")
        if ids.min() < 0 or ids.max() >= self.vocabulary_size:
            raise ValueError(f"token ids must be in 0 … {self.vocabulary_size - 1}")
        if cache.length + len(ids) > cache.capacity:
            raise ValueError(
                f"{len(ids)} tokens do not fit: the cache holds {cache.length} of {cache.capacity}"
            )
        if not 1 <= scored <= len(ids):
            raise ValueError(f"score must be in 1 … {len(ids)}, not {scored}")


def ortvalue(array: NDArray[Any], device: str = "cpu") -> Any:
    """Wrap an array: on the CPU the value shares the array's memory and keeps it alive.

    What is bound must be kept by whoever binds it, until after the run.
    """
    return onnxruntime.OrtValue.ortvalue_from_numpy(array, device)


def default_threads() -> int:
    """Return the threads to compute with: all cores, less one from four on, for everything else."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return cores if cores < 4 else cores - 1


def session_options(threads: int) -> Any:
    """Return options for one sequence on few cores.

    Threads spin within a call, which makes a token a third faster than waking them for every
    operator, and stop when it returns: between two drafts a board waits for a verdict, and threads
    that spin meanwhile burn the energy that we measure.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def check_provider(provider: str) -> None:
    """Raise ModelLoadError when this onnxruntime has no such execution provider."""
    if provider not in PROVIDERS:
        raise ModelLoadError(
            f"loading model: provider {provider!r} is not one of {', '.join(PROVIDERS)}"
        )
    if PROVIDERS[provider] not in onnxruntime.get_available_providers():
        raise ModelLoadError(
            f"loading model: onnxruntime {onnxruntime.__version__} here has no provider "
            f"{provider!r}; install onnxruntime-gpu (on a Jetson, NVIDIA's build) or choose 'cpu'"
        )


def check_version(folder: Path, manifest: Manifest) -> None:
    """Raise ModelLoadError when this onnxruntime is too old for the model."""
    reason = lacks(manifest, onnxruntime.__version__)
    if reason:
        raise ModelLoadError(f"loading model: {folder} {reason}")
