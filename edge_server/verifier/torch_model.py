"""A Hugging Face decoder whose attention reads and writes one pool of keys and values.

The model's own code runs unchanged; its attention goes through transformers' AttentionInterface to
`attend`. Knows nothing of sessions, drafts or acceptance.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface

from edge_server.verifier.acceptance import Trial
from edge_server.verifier.interface import VerifyOutcome
from edge_server.verifier.torch_acceptance import accept_all
from edge_server.verifier.torch_attention import (
    FIXED_ROWS,
    FIXED_SPAN_ROWS,
    KvPool,
    Rows,
    Scores,
    attend,
)
from edge_server.verifier.torch_checkpoint import (
    choose,
    kv_shape,
    load_decoder,
    unsupported,
    weights_hash,
)
from edge_server.verifier.torch_memory import fits
from edge_server.verifier.torch_segments import Span
from edge_server.verifier.torch_static import StaticPass, StaticRows, attends_in_place, size_of
from edge_server.verifier.torch_weights import quantise
from sdk.errors import ConfigError, first_line
from sdk.model.manifest import tokenizer_hash

__all__ = ["ATTENTION_NAME", "TorchModel"]

ATTENTION_NAME = "multispin_pool"
_MEBI = 1 << 20
_CHECKED_ROWS = 8
_MOST_APART = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}  # by rounding alone
_POOL_SHARE = 0.8  # of the GPU memory that the weights leave; the rest is for a pass's own tensors


def _pool_attention(
    module: nn.Module,
    query: Tensor,  # [1, heads, rows, head_dim], as transformers hands it over
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    multispin_rows: Rows | StaticRows,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    rows, layer = multispin_rows, int(module.layer_idx)  # type: ignore[arg-type]
    rows.pool.keys[layer, rows.places] = key
    rows.pool.values[layer, rows.places] = value
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = Scores(scale, sliding_window, softcap)
    if isinstance(rows, StaticRows):
        output = rows.attend(layer, query, scores)
    else:
        output = attend(rows, layer, query, scores)
    return output[None], None


AttentionInterface.register(ATTENTION_NAME, _pool_attention)


class TorchModel:
    """Weights, and a pool of places for keys and values."""

    def __init__(
        self,
        *,
        model: Any,
        folder: Path,
        places: int,
        gather: bool,
        invariant: bool = False,
        static: bool = False,
        decides: bool = False,
    ) -> None:
        """Take a model whose attention is ours; `places` are tokens that the pool holds.

        `gather` lets one call a layer attend for all sequences, at the price of copying their keys.
        `invariant` runs every pass in the same shapes, so that no row depends on its company.
        `decides` is whether `accept` is faster than numpy on the host: on a GPU.
        `static` rounds verify passes up to sizes, of which CUDA graphs are captured on a GPU, and
        lets their rows attend in place, where that can be done.
        """
        self.decoder = model
        self.decides = decides
        self._static_passes: dict[int, StaticPass] = {}
        self._graph_memory = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None
        self._gather = gather
        self._invariant = invariant
        self.places = places
        self.vocabulary_size = int(model.config.vocab_size)
        self.context_length = int(model.config.max_position_embeddings)
        self.tokenizer_hash = tokenizer_hash(folder)
        self.weights_hash = weights_hash(folder)
        layers, kv_heads, head_dim = kv_shape(model.config)
        self._heads = int(model.config.num_attention_heads)
        like = next(model.parameters())
        self.pool = KvPool(
            layers=layers, places=places, kv_heads=kv_heads, head_dim=head_dim, like=like
        )
        self._static = static and not invariant and attends_in_place(self.pool, self._heads)
        self.bytes_per_token: int = 2 * layers * kv_heads * head_dim * like.element_size()

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        weights: str = "stored",
        kv_memory_mib: int,
        gather: bool | None = None,
        invariant: bool = False,
        static: bool | None = None,
        decides: bool | None = None,
    ) -> TorchModel:
        """Load safetensors and plan the pool.

        Raises:
            ConfigError: if device, type, weights or memory cannot be had.
            DependencyError: for weights in 8 bits, without torchao.
            ModelLoadError: if the folder holds no decoder, or one whose attention is not ours.
        """
        device, number_type = choose(device, dtype)
        model = load_decoder(folder, number_type, attention=ATTENTION_NAME)
        quantise(model, weights)
        model.to(device)
        layers, kv_heads, head_dim = kv_shape(model.config)
        per_token = 2 * layers * kv_heads * head_dim * number_type.itemsize
        places = min(kv_memory_mib * _MEBI, free_bytes(device)) // per_token
        if places < 1:
            raise ConfigError(
                f"verifier: {kv_memory_mib} MiB hold no token's keys and values "
                f"({per_token} bytes each); raise --kv-memory or choose a smaller model"
            )
        loaded = cls(
            model=model,
            folder=folder,
            places=places,
            gather=device != "cpu" if gather is None else gather,
            invariant=invariant,
            static=device != "cpu" if static is None else static,
            decides=device != "cpu" if decides is None else decides,
        )
        loaded.check()
        return loaded

    @torch.inference_mode()
    def check(self) -> None:
        """Compare some rows with transformers' own attention: a model may ask for more than ours.

        Raises:
            ModelLoadError: if they differ.
        """
        ids = [self.vocabulary_size * n // _CHECKED_ROWS for n in range(_CHECKED_ROWS)]
        try:
            own = self.logits([Span(0, 0, len(ids))], ids, range(len(ids))).float()
            self.decoder.set_attn_implementation("eager")
            inputs = torch.tensor([ids], device=own.device)
            plain = self.decoder(input_ids=inputs, use_cache=False).logits[0].float()
            self.decoder.set_attn_implementation(ATTENTION_NAME)
            apart = float((own - plain).norm() / plain.norm())
        except Exception as error:  # layers of other kinds: each model fails in its own way
            reason = first_line(error)
            raise unsupported(f"{type(self.decoder).__name__} fails ({reason})") from error
        if not apart <= _MOST_APART[self.pool.keys.dtype]:
            name = type(self.decoder).__name__
            raise unsupported(f"{name} asks for more, its logits are {apart:.1%} off")

    @torch.inference_mode()
    def run(
        self, spans: Sequence[Span], token_ids: Sequence[int], score: Sequence[int]
    ) -> NDArray[np.float32]:
        """Feed all spans' new tokens in one pass and return logits of some rows.

        Args:
            spans: where the tokens belong, in order.
            token_ids: all spans' tokens, one behind the other.
            score: rows of the pass to score, ascending; may be empty.

        Returns:
            [len(score), vocab], on the host, from one copy.

        Raises:
            CapacityError: if the memory ran out; the pass may then be done in smaller parts.
        """
        with fits(len(token_ids)):
            logits = self.logits(spans, token_ids, score)
            found: NDArray[np.float32] = logits.float().cpu().numpy()
        return found

    @torch.inference_mode()
    def accept(
        self,
        spans: Sequence[Span],
        token_ids: Sequence[int],
        score: Sequence[int],
        trials: Sequence[Trial],
    ) -> list[VerifyOutcome]:
        """Feed tokens as `run` does, and decide on the drafts where the logits are.

        Args:
            score: the rows that the trials need, in their order.
            trials: what decides on each span's draft.

        Raises:
            CapacityError: as `run`.
        """
        with fits(len(token_ids)):
            return accept_all(self.logits(spans, token_ids, score), trials)

    @torch.inference_mode()
    def copy(self, source: int, target: int, count: int) -> None:
        """Copy the keys and values of `count` places, from one segment to another."""
        for kept in (self.pool.keys, self.pool.values):
            kept[:, target : target + count] = kept[:, source : source + count]

    @torch.inference_mode()
    def logits(
        self, spans: Sequence[Span], token_ids: Sequence[int], score: Sequence[int]
    ) -> Tensor:
        """Do what `run` does, and leave [len(score), vocab] on the device, in the model's type."""
        size = size_of(spans) if self._static and score else None
        if size:
            kept = torch.tensor(list(score)).to(self.pool.keys.device)
            return self._static_pass(size).run(spans, token_ids)[kept]
        group = self._heads // self.pool.keys.shape[2]
        if not self._invariant:
            return self._pass(Rows(self.pool, spans, self._gather, group), token_ids, score)
        found, first, wanted = [], 0, list(score)
        for part in fixed_passes(spans):
            count = sum(span.rows for span in part)
            ids = [*token_ids[first : first + count], *[0] * (FIXED_ROWS - count)]
            own = [row - first for row in wanted if first <= row < first + count]
            padding = FIXED_ROWS - count
            rows = Rows(self.pool, part, False, group, padding=padding, fixed=True)
            found.append(self._pass(rows, ids, range(FIXED_ROWS) if own else [])[own])
            first += count
        return torch.cat(found)

    def _static_pass(self, size: int) -> StaticPass:
        if size not in self._static_passes:
            self._static_passes[size] = StaticPass(
                rows=StaticRows(pool=self.pool, size=size, heads=self._heads),
                forward=self._forward_static,
                capture=self.pool.keys.is_cuda,
                memory=self._graph_memory,
            )
        return self._static_passes[size]

    def _forward_static(self, rows: StaticRows) -> Tensor:
        logits: Tensor = self.decoder(
            input_ids=rows.token_ids[None],
            position_ids=rows.positions[None],
            use_cache=False,
            multispin_rows=rows,
        ).logits[0]
        return logits

    def _pass(self, rows: Rows, token_ids: Sequence[int], score: Sequence[int]) -> Tensor:
        device = self.pool.keys.device
        inputs = {
            "input_ids": torch.tensor([list(token_ids)], device=device),
            "position_ids": rows.positions[None],
            "use_cache": False,
            "multispin_rows": rows,
        }
        if not score:
            self.decoder.base_model(**inputs)
            return self.pool.keys.new_empty(0, self.vocabulary_size)
        kept = torch.tensor(list(score), device=device)
        logits: Tensor = self.decoder(**inputs, logits_to_keep=kept).logits[0]
        return logits


def fixed_passes(spans: Sequence[Span]) -> list[list[Span]]:
    """Cut spans into passes of at most FIXED_ROWS rows, in spans of at most FIXED_SPAN_ROWS."""
    passes: list[list[Span]] = [[]]
    room = FIXED_ROWS
    for span in spans:
        past = span.past
        while past < span.length:
            if not room:
                passes.append([])
                room = FIXED_ROWS
            rows = min(FIXED_SPAN_ROWS, span.length - past, room)
            passes[-1].append(Span(span.place, past, rows))
            past, room = past + rows, room - rows
    return passes


def free_bytes(device: str) -> int:
    """Return the memory that the pool may take at most beside the weights."""
    if device == "cpu":
        return 1 << 62  # the operator's --kv-memory decides alone
    free, _ = torch.cuda.mem_get_info()
    return int(_POOL_SHARE * free)
