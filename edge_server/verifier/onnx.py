"""The default verifier: ONNX Runtime, an in-place KV buffer per session, one session a call.

GroupQueryAttention on the CPU takes several new tokens on a past only at batch 1, so sessions take
turns within a pass; what they share is the weights in the cache. Rollback lowers an integer. Rows
are run so that a row's logits have the same bits whatever stands beside it (`batch_invariant`): no
choice of the target depends on how long a draft was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_server.verifier.acceptance import Acceptor
from edge_server.verifier.interface import VerifyOutcome, VerifyRequest
from sdk.errors import CapacityError
from sdk.model.decoder import Decoder, KvCache
from sdk.model.manifest import GRAPH_NAME
from sdk.model.sampling import SamplingParameters

__all__ = ["OnnxVerifier"]

_MEBI = 1 << 20


@dataclass(slots=True)
class _Slot:
    cache: KvCache
    acceptor: Acceptor


class OnnxVerifier:
    """Verify with an exported ONNX model on this machine."""

    def __init__(self, *, decoder: Decoder, max_sessions: int, kv_memory_mib: int) -> None:
        """Wrap a decoder.

        Args:
            decoder: the target.
            max_sessions: slots at most.
            kv_memory_mib: memory for keys and values of all slots together.
        """
        self._decoder = decoder
        self._max_sessions = max_sessions
        self._kv_memory_bytes = kv_memory_mib * _MEBI
        self._kv_bytes_in_use = 0
        self._slots: dict[int, _Slot] = {}
        self._next_slot = 0

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        threads: int | None = None,
        max_sessions: int = 64,
        kv_memory_mib: int = 1024,
    ) -> OnnxVerifier:
        """Load an exported model.

        Raises:
            ModelLoadError: if the folder holds none that can be run.
        """
        decoder = Decoder.load(folder, threads=threads, batch_invariant=True)
        return cls(decoder=decoder, max_sessions=max_sessions, kv_memory_mib=kv_memory_mib)

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""
        return self._decoder.vocabulary_size

    @property
    def context_length(self) -> int:
        """The most tokens that one sequence can hold."""
        return self._decoder.context_length

    @property
    def tokenizer_hash(self) -> str:
        """Hash of the tokenizer, hexadecimal."""
        return self._decoder.manifest.tokenizer_hash

    @property
    def target_hash(self) -> str:
        """Hash of the weights, hexadecimal."""
        return self._decoder.manifest.files[GRAPH_NAME].sha256

    def cache_bytes(self, max_tokens: int) -> int:
        """Return the memory that a sequence of `max_tokens` ids reserves."""
        return self._decoder.cache_bytes(max_tokens)

    def open(self, *, parameters: SamplingParameters, max_tokens: int) -> int:
        """Reserve room for a sequence of `max_tokens` ids and return its slot."""
        needed_bytes = self.cache_bytes(max_tokens)
        if len(self._slots) >= self._max_sessions:
            raise CapacityError(f"all {self._max_sessions} sessions are taken; try again later")
        if self._kv_bytes_in_use + needed_bytes > self._kv_memory_bytes:
            raise CapacityError(
                f"{needed_bytes / _MEBI:.1f} MiB for keys and values do not fit "
                f"({self._kv_bytes_in_use / _MEBI:.1f} of {self._kv_memory_bytes / _MEBI:.0f} MiB "
                "in use); ask for fewer tokens or try again later"
            )
        cache = self._decoder.new_cache(capacity=max_tokens)
        acceptor = Acceptor(parameters=parameters, vocabulary_size=self.vocabulary_size)
        slot = self._next_slot
        self._next_slot += 1
        self._slots[slot] = _Slot(cache, acceptor)
        self._kv_bytes_in_use += needed_bytes
        return slot

    def prefill(self, slot: int, token_ids: Sequence[int]) -> None:
        """Append committed ids to a slot without scoring them."""
        self._decoder.run(self._slots[slot].cache, token_ids, score=1)

    def verify(self, requests: Sequence[VerifyRequest]) -> list[VerifyOutcome]:
        """Score all rows in one pass; each slot then holds its pending ids and accepted prefix."""
        return [self._verify_one(request) for request in requests]

    def _verify_one(self, request: VerifyRequest) -> VerifyOutcome:
        slot = self._slots[request.slot]
        position = slot.cache.length + len(request.pending)
        rows = (*request.pending, *request.draft)
        logits = self._decoder.run(slot.cache, rows, score=len(request.draft) + 1)
        outcome = slot.acceptor.accept(logits, request, position=position)
        slot.cache.rollback(position + outcome.accepted)
        return outcome

    def close(self, slot: int) -> None:
        """Free a slot."""
        closed = self._slots.pop(slot)
        self._kv_bytes_in_use -= self.cache_bytes(closed.cache.capacity)
