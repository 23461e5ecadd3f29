"""The default verifier: ONNX Runtime, an in-place KV buffer per session, several sessions a call.

Up to `lanes` sessions share a call (`onnx_lanes`): a lone session runs through the graph as it was
exported. Rollback lowers an integer. Either way a row's logits have the same bits whatever stands
beside it, so no choice of the target depends on how long a draft was or on who else drafted.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_server.verifier.acceptance import Acceptor
from edge_server.verifier.interface import VerifyOutcome, VerifyRequest
from edge_server.verifier.onnx_lanes import Lanes, Part
from sdk.errors import CapacityError
from sdk.model.decoder import Decoder, KvCache
from sdk.model.manifest import GRAPH_NAME
from sdk.model.sampling import SamplingParameters

__all__ = ["DEFAULT_LANES", "OnnxVerifier"]

DEFAULT_LANES = 8
_MEBI = 1 << 20

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Slot:
    cache: KvCache
    acceptor: Acceptor


class OnnxVerifier:
    """Verify with an exported ONNX model on this machine."""

    def __init__(
        self,
        *,
        decoder: Decoder,
        lanes: Lanes | None = None,
        max_sessions: int,
        kv_memory_mib: int,
    ) -> None:
        """Wrap a decoder.

        Args:
            decoder: the target.
            lanes: the same target for several sessions a call; None runs them one by one.
            max_sessions: slots at most.
            kv_memory_mib: memory for keys and values of all slots together.
        """
        self._decoder = decoder
        self._lanes = lanes
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
        lanes: int = DEFAULT_LANES,
    ) -> OnnxVerifier:
        """Load an exported model.

        Args:
            folder: with model.onnx and manifest.json.
            threads: ONNX Runtime's; all cores, less one from four on, when None.
            max_sessions: slots at most.
            kv_memory_mib: memory for keys and values of all slots together.
            lanes: sessions that share a call, at most. From 2 on the weights are held twice; 1 runs
                sessions one by one.

        Raises:
            ModelLoadError: if the folder holds none that can be run.
        """
        decoder = Decoder.load(folder, threads=threads, batch_invariant=True)
        count = min(lanes, max_sessions)
        shared = None
        if count > 1:
            shared = Lanes.load(folder, decoder=decoder, count=count, threads=threads)
        verifier = cls(
            decoder=decoder,
            lanes=shared,
            max_sessions=max_sessions,
            kv_memory_mib=kv_memory_mib,
        )
        full_bytes = verifier.cache_bytes(verifier.context_length)
        log.info(
            "verifier: %s, up to %d sessions a call, at most %d at once; "
            "memory holds %d sessions of the full %d tokens",
            folder.name,
            shared.count if shared else 1,
            max_sessions,
            kv_memory_mib * _MEBI // full_bytes,
            verifier.context_length,
        )
        return verifier

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
        try:
            cache = self._decoder.new_cache(capacity=max_tokens)
        except MemoryError as error:  # the budget was larger than the machine
            raise CapacityError(
                f"{needed_bytes / _MEBI:.1f} MiB for keys and values cannot be had from this "
                "machine; ask for fewer tokens, try again later, or lower --kv-memory"
            ) from error
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
        """Score all rows; each slot then holds its pending ids and accepted prefix."""
        if len({request.slot for request in requests}) != len(requests):
            raise ValueError("a slot may only be named once in a pass")
        most = self._lanes.count if self._lanes else 1
        calls = -(-len(requests) // most)
        outcomes: list[VerifyOutcome] = []
        for call in range(calls):  # of equal size, give or take one
            first, end = (len(requests) * bound // calls for bound in (call, call + 1))
            outcomes += self._verify_together(requests[first:end])
        return outcomes

    def _verify_together(self, requests: Sequence[VerifyRequest]) -> list[VerifyOutcome]:
        slots = [self._slots[request.slot] for request in requests]
        parts = [
            Part(slot.cache, (*request.pending, *request.draft), len(request.draft) + 1)
            for slot, request in zip(slots, requests, strict=True)
        ]
        outcomes = []
        for slot, request, logits in zip(slots, requests, self._logits(parts), strict=True):
            position = slot.cache.length - len(request.draft)
            outcome = slot.acceptor.accept(logits, request, position=position)
            slot.cache.rollback(position + outcome.accepted)
            outcomes.append(outcome)
        return outcomes

    def _logits(self, parts: Sequence[Part]) -> list[NDArray[np.float32]]:
        if self._lanes and len(parts) > 1:
            return self._lanes.run(parts)
        return [self._decoder.run(part.cache, part.token_ids, score=part.score) for part in parts]

    def close(self, slot: int) -> None:
        """Free a slot."""
        closed = self._slots.pop(slot)
        if self._lanes:
            self._lanes.release(closed.cache)
        self._kv_bytes_in_use -= self.cache_bytes(closed.cache.capacity)
