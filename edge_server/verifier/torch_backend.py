"""The verifier for large models: PyTorch, any Hugging Face decoder, all sessions in one pass.

Rows of all sessions are laid behind each other and run through the weights once; keys and values
lie in one pool that is planned at the start, so a session that does not fit is refused before it
begins. Rollback lowers an integer. This module itself imports no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_server.verifier.acceptance import Acceptor
from edge_server.verifier.interface import VerifyOutcome, VerifyRequest
from edge_server.verifier.torch_segments import Segment, Segments
from sdk.errors import CapacityError, DependencyError, ModelLoadError, first_line
from sdk.model.prefix import shared
from sdk.model.sampling import SamplingParameters

if TYPE_CHECKING:
    from edge_server.verifier.torch_model import TorchModel

__all__ = ["TorchVerifier"]

_CHUNK_ROWS = 512  # most rows of one prefill pass: attention's scratch grows with rows × context
_LEAST_TO_COPY = 16  # tokens; fewer cost as little in the pass
_HUB_FILES = ("*.json", "*.safetensors")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Slot:
    segment: Segment
    acceptor: Acceptor
    token_ids: list[int] = field(default_factory=list)  # whose keys and values lie in the segment


class TorchVerifier:
    """Verify with a Hugging Face causal language model on the CPU or a GPU."""

    def __init__(self, *, model: TorchModel, max_sessions: int) -> None:
        """Wrap a loaded model; `max_sessions` are slots at most."""
        self._model = model
        self._max_sessions = max_sessions
        self._segments = Segments(total=model.places)
        self._slots: dict[int, _Slot] = {}
        self._next_slot = 0

    @classmethod
    def load(
        cls,
        name_or_folder: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        weights: str = "stored",
        threads: int | None = None,
        max_sessions: int = 64,
        kv_memory_mib: int = 1024,
        invariant: bool = False,
    ) -> TorchVerifier:
        """Load a model from a folder, or by its name on the Hugging Face Hub.

        Args:
            name_or_folder: a folder with config.json, tokenizer.json and *.safetensors, or a name.
            device: "auto", "cpu" or "cuda".
            dtype: "auto" (fp32 on the CPU, bf16 on a GPU), "fp32", "bf16" or "fp16".
            weights: "stored" (in `dtype`), or "int8" or "fp8" by torchao: half of bf16's memory.
            threads: CPU threads of the whole process; None leaves torch's own choice.
            max_sessions: sessions at most.
            kv_memory_mib: memory for keys and values; on a GPU at most 80 % of what weights leave.
            invariant: run every pass in the same shapes: no choice depends on who shares it.

        Raises:
            ConfigError: if device, type, weights or memory cannot be had.
            DependencyError: without torch or transformers, or what `weights` need.
            ModelLoadError: if no decoder that can be run is found.
        """
        try:
            import torch

            from edge_server.verifier.torch_model import TorchModel
        except ModuleNotFoundError as error:
            raise DependencyError("the torch verifier", "torch") from error
        if threads is not None:
            torch.set_num_threads(threads)
        folder = _local_folder(name_or_folder)
        model = TorchModel.load(
            folder,
            device=device,
            dtype=dtype,
            weights=weights,
            kv_memory_mib=kv_memory_mib,
            invariant=invariant,
        )
        log.info(
            "verifier: %s on %s, %d tokens of %d bytes fit, %d for each of %d sessions",
            folder.name,
            model.pool.keys.device,
            model.places,
            model.bytes_per_token,
            model.places // max_sessions,
            max_sessions,
        )
        return cls(model=model, max_sessions=max_sessions)

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""
        return self._model.vocabulary_size

    @property
    def context_length(self) -> int:
        """The most tokens that one sequence can hold."""
        return self._model.context_length

    @property
    def tokenizer_hash(self) -> str:
        """Hash of the tokenizer, hexadecimal."""
        return self._model.tokenizer_hash

    @property
    def target_hash(self) -> str:
        """Hash of the weights, hexadecimal."""
        return self._model.weights_hash

    def cache_bytes(self, max_tokens: int) -> int:
        """Return the memory that a sequence of `max_tokens` ids reserves."""
        return max_tokens * self._model.bytes_per_token

    def open(self, *, parameters: SamplingParameters, max_tokens: int) -> int:
        """Reserve room for a sequence of `max_tokens` ids and return its slot."""
        if len(self._slots) >= self._max_sessions:
            raise CapacityError(f"all {self._max_sessions} sessions are taken; try again later")
        if max_tokens > self.context_length:
            raise CapacityError(
                f"{max_tokens} tokens exceed the model's context of {self.context_length}; "
                "ask for fewer tokens"
            )
        acceptor = Acceptor(parameters=parameters, vocabulary_size=self.vocabulary_size)
        segment = self._segments.take(max_tokens)
        slot = self._next_slot
        self._next_slot += 1
        self._slots[slot] = _Slot(segment, acceptor)
        return slot

    def prefill(self, slot: int, token_ids: Sequence[int]) -> None:
        """Append committed ids to a slot without scoring them.

        Keys and values that another slot has of the same beginning are copied, not worked out.
        """
        own = self._slots[slot]
        self._check(own.segment, token_ids)
        copied = self._copy_beginning(own, token_ids)
        for start in range(copied, len(token_ids), _CHUNK_ROWS):
            self._append(own, token_ids[start : start + _CHUNK_ROWS])

    def _copy_beginning(self, own: _Slot, token_ids: Sequence[int]) -> int:
        """Return how many of the ids need no pass, because a slot that begins so had them."""
        wanted, start = [*own.token_ids, *token_ids], len(own.token_ids)
        others = (slot for slot in self._slots.values() if slot is not own)
        alike = ((shared(wanted, other.token_ids), other) for other in others)
        reach, most_alike = max(alike, key=lambda pair: pair[0], default=(0, own))
        count = reach - start
        if count < _LEAST_TO_COPY:
            return 0
        self._model.copy(most_alike.segment.start + start, own.segment.start + start, count)
        own.token_ids += token_ids[:count]
        own.segment.length += count
        return count

    def _append(self, own: _Slot, token_ids: Sequence[int]) -> None:
        """Append in one pass, or in smaller ones where the memory does not hold it."""
        try:
            self._model.run([own.segment.span(len(token_ids))], token_ids, [])
            own.token_ids += token_ids
            own.segment.length += len(token_ids)
        except CapacityError:
            half = len(token_ids) // 2
            if not half:
                raise
            self._append(own, token_ids[:half])
            self._append(own, token_ids[half:])

    def verify(self, requests: Sequence[VerifyRequest]) -> list[VerifyOutcome]:
        """Score all rows in one pass; each slot then holds its pending ids and accepted prefix.

        Where the memory does not hold the pass, it is cut: into halves of its sessions, and one
        session's into its rows. A draft that does not fit by itself is not verified: no token of
        it is accepted, and the target's own one follows, as if there had been no draft.

        Raises:
            CapacityError: if the memory does not hold a single row; all slots are as before.
        """
        if len({request.slot for request in requests}) != len(requests):
            raise ValueError("a slot may only be named once in a pass")
        slots = [self._slots[request.slot] for request in requests]
        lengths = [slot.segment.length for slot in slots]
        try:
            return self._verify_in_parts(requests)
        except CapacityError:
            for slot, length in zip(slots, lengths, strict=True):
                slot.segment.length = length
                del slot.token_ids[length:]
            raise

    def _verify_in_parts(self, requests: Sequence[VerifyRequest]) -> list[VerifyOutcome]:
        try:
            return self._verify_at_once(requests)
        except CapacityError as error:
            log.warning("%s; it is cut", error)
        half = len(requests) // 2
        if half:
            parts = (requests[:half], requests[half:])
            return [outcome for part in parts for outcome in self._verify_in_parts(part)]
        (request,) = requests
        *earlier, last = request.pending
        if earlier:
            self._append(self._slots[request.slot], earlier)
        return self._verify_at_once([VerifyRequest(slot=request.slot, pending=(last,))])

    def _verify_at_once(self, requests: Sequence[VerifyRequest]) -> list[VerifyOutcome]:
        slots = [self._slots[request.slot] for request in requests]
        rows = [(*request.pending, *request.draft) for request in requests]
        for slot, ids in zip(slots, rows, strict=True):
            self._check(slot.segment, ids)
        spans = [slot.segment.span(len(ids)) for slot, ids in zip(slots, rows, strict=True)]
        scored = [len(request.draft) + 1 for request in requests]
        last_rows = accumulate(len(ids) for ids in rows)
        score = [
            row for end, count in zip(last_rows, scored, strict=True) for row in range(end)[-count:]
        ]
        flat = [token for ids in rows for token in ids]
        starts = [
            slot.segment.length + len(request.pending)
            for slot, request in zip(slots, requests, strict=True)
        ]
        drafts = list(zip(slots, requests, starts, strict=True))
        if self._model.decides:
            trials = [slot.acceptor.trial(own, position=start) for slot, own, start in drafts]
            outcomes = self._model.accept(spans, flat, score, trials)
        else:
            logits = np.split(self._model.run(spans, flat, score), list(accumulate(scored))[:-1])
            outcomes = [
                slot.acceptor.accept(own_logits, own, position=start)
                for (slot, own, start), own_logits in zip(drafts, logits, strict=True)
            ]
        for slot, ids, start, outcome in zip(slots, rows, starts, outcomes, strict=True):
            slot.token_ids += ids
            slot.segment.length = start + outcome.accepted
            del slot.token_ids[slot.segment.length :]
        return outcomes

    def close(self, slot: int) -> None:
        """Free a slot."""
        self._segments.give_back(self._slots.pop(slot).segment)

    def _check(self, segment: Segment, token_ids: Sequence[int]) -> None:
        """Refuse what would write outside the segment or look up a token that is none."""
        if not token_ids:
            raise ValueError("a slot takes at least one token at a time")
        if segment.length + len(token_ids) > segment.capacity:
            raise ValueError(
                f"{len(token_ids)} tokens do not fit: the slot holds {segment.length} "
                f"of {segment.capacity}"
            )
        if min(token_ids) < 0 or max(token_ids) >= self.vocabulary_size:
            raise ValueError(f"token ids must be in 0 … {self.vocabulary_size - 1}")


def _local_folder(name_or_folder: str | Path) -> Path:
    """Return the folder of a model; a Hub name is fetched, or found in the Hub's cache."""
    if Path(name_or_folder).is_dir():
        return Path(name_or_folder)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name_or_folder), allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # network, name, access, disk: the Hub has an exception for each
        reason = first_line(error)
        raise ModelLoadError(
            f"loading model: {name_or_folder} is no folder here and the Hugging Face Hub did not "
            f"give it ({reason}); name a local folder or check the network"
        ) from error
