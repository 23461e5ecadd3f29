"""The cells of the paper's experiments (arXiv 2606.04581, section VI), drawn at random.

Two parameters are not stated there and are chosen so that the published gains come out: the ratio
of transmit power to noise, and the device's time per drafted token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_server.scheduler.cell import Cell, VerifyCost, geometric_survival

__all__ = ["PAIRS", "Pair", "paper_cell"]

LONGEST = 25
WEAKEST_LINK = 0.01  # bit/s/Hz; a deeper fade is as good as none


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A drafter and its target as the paper measured them.

    Attributes:
        acceptance: mean acceptance of MBPP+, GSM8K, MT-Bench and SQuAD (Table I).
        payload_bits: 1,024 probabilities of 16 bits and their indices, per drafted token.
        fixed_s, per_request_s: the A100's verification time (Figure 5).
        draft_s: not stated; see the module.
        snr: p / N0, not stated; see the module.
    """

    name: str
    acceptance: tuple[float, float, float, float]
    payload_bits: float
    fixed_s: float
    per_request_s: float
    draft_s: float
    snr: float = 200.0

    def verify(self) -> VerifyCost:
        """Return the verification time of equation (7)."""
        return VerifyCost(fixed_s=self.fixed_s, per_request_s=self.per_request_s)


PAIRS = {
    "llama": Pair(
        name="TinyLlama-1.1B / Llama-2-7B",
        acceptance=(0.8582, 0.7390, 0.7393, 0.7126),
        payload_bits=1024.0 * (16 + 15),
        fixed_s=0.02268,
        per_request_s=0.01272,
        draft_s=0.006,
    ),
    "qwen": Pair(
        name="Qwen3.5-0.8B / Qwen3.5-27B",
        acceptance=(0.8100, 0.9340, 0.9318, 0.9650),
        payload_bits=1024.0 * (16 + 18),
        fixed_s=0.07507,
        per_request_s=0.01978,
        draft_s=0.012,
    ),
}


def paper_cell(
    pair: Pair,
    *,
    count: int,
    bandwidth_hz: float,
    rng: np.random.Generator,
    payload_bits: float | None = None,
    verify: VerifyCost | None = None,
    min_length: int = 1,
    task: int | None = None,
) -> Cell:
    """Return one realisation: tasks, draft speeds and Rayleigh channels drawn anew.

    Args:
        pair: drafter and target.
        count: K.
        bandwidth_hz: B.
        rng: the source of all chance.
        payload_bits: instead of the pair's.
        verify: instead of the pair's.
        min_length: 1 as in the paper, 0 to let devices opt out.
        task: one task for all, by its place in `acceptance`; drawn if None.
    """
    tasks = rng.integers(0, 4, count) if task is None else np.full(count, task)
    mean_gain = rng.uniform(0.2, 0.5, count)
    gain = rng.exponential(mean_gain)
    return Cell(
        bandwidth_hz=bandwidth_hz,
        payload_bits=pair.payload_bits if payload_bits is None else payload_bits,
        verify=verify or pair.verify(),
        draft_s=pair.draft_s * rng.uniform(0.85, 1.15, count),
        efficiency=np.maximum(np.log2(1.0 + pair.snr * gain), WEAKEST_LINK),
        survival=geometric_survival(np.array(pair.acceptance)[tasks], LONGEST),
        min_length=min_length,
        max_length=LONGEST,
    )
