"""The data behind the figures: the paper's 3 to 8, and two of our own (9, 10).

Every figure is a list of rows (dicts of numbers and names), averaged over realisations drawn from
one seed, so that all schemes see the same cells. It knows no plotting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from edge_server.scheduler.algorithm_1 import algorithm_1
from edge_server.scheduler.baselines import co_located, fixed, server_only, uniform_bandwidth
from edge_server.scheduler.cell import Cell, VerifyCost, geometric_survival
from edge_server.scheduler.continuous import continuous
from edge_server.scheduler.heterogeneous import heterogeneous
from edge_server.scheduler.homogeneous import (
    homogeneous,
    optimal_length,
    real_length,
    token_deadline,
)
from edge_server.scheduler.limits import physical_bound, verification_limit
from edge_server.scheduler.ping_pong import ping_pong
from edge_server.scheduler.policies import Synchronous
from edge_server.simulation.event_loop import Prescribed, run_cell
from edge_server.simulation.paper import PAIRS, Pair, paper_cell

__all__ = ["FIGURES", "Row", "figure"]

Row = dict[str, float | str]
GSM8K = 1
BAND_HZ = 10e6
ID_BITS = 18.0


def opting_out(cell: Cell) -> Cell:
    """Return the cell with length 0 allowed."""
    return replace(cell, min_length=0)


def overlapping(cell: Cell) -> Cell:
    """Return the cell with upload overlapped with drafting."""
    return replace(opting_out(cell), overlap=True)


def ids_only(cell: Cell) -> Cell:
    """Return the cell with ids alone uploaded, drafts verified by coupled noise.

    Coupling accepts less than rejection sampling: a / (2 - a) is what it never falls below.
    """
    acceptance = cell.acceptance()
    coupled = geometric_survival(acceptance / (2.0 - acceptance), cell.max_length)
    return replace(opting_out(cell), payload_bits=ID_BITS, survival=coupled)


SCHEMES: dict[str, Callable[[Cell], float]] = {
    "fixed": lambda cell: fixed(cell).goodput_tokens_per_s,
    "uniform-bandwidth": lambda cell: uniform_bandwidth(cell).goodput_tokens_per_s,
    "homogeneous": lambda cell: homogeneous(cell).goodput_tokens_per_s,
    "algorithm-1": lambda cell: algorithm_1(cell).goodput_tokens_per_s,
    "heterogeneous": lambda cell: heterogeneous(opting_out(cell)).goodput_tokens_per_s,
    "ping-pong": lambda cell: ping_pong(opting_out(cell)).goodput_tokens_per_s,
    "continuous": lambda cell: continuous(opting_out(cell)).goodput_tokens_per_s,
    "ping-pong-overlap": lambda cell: ping_pong(overlapping(cell)).goodput_tokens_per_s,
    "ping-pong-ids": lambda cell: ping_pong(ids_only(cell)).goodput_tokens_per_s,
    "server-only": lambda cell: server_only(cell).goodput_tokens_per_s,
    "verification-limit": verification_limit,
    "physical-bound": physical_bound,
}


def averages(cells: Sequence[Cell]) -> Row:
    """Return the mean goodput of every scheme over the cells."""
    return {
        name: float(np.mean([scheme(cell) for cell in cells])) for name, scheme in SCHEMES.items()
    }


def draw(pair: Pair, seed: int, realisations: int, **options: object) -> list[Cell]:
    """Return realisations of a paper cell, the same for the same seed."""
    fields: dict[str, object] = {"count": 20, "bandwidth_hz": BAND_HZ, **options}
    return [
        paper_cell(pair, rng=np.random.default_rng([seed, number]), **fields)  # type: ignore[arg-type]
        for number in range(realisations)
    ]


def figure_3(pair: Pair, seed: int, realisations: int) -> list[Row]:
    """Goodput over a common length on one task: formula, event by event, and the optimum."""
    cell = draw(pair, seed, 1, task=GSM8K)[0]
    best = homogeneous(cell)
    rows: list[Row] = []
    for length in range(1, 26, 2):
        lengths = np.full(cell.count, length)
        theta = token_deadline(cell)
        round_s = length * theta + float(cell.verify_s(lengths))
        tokens = float(cell.tokens()[:, length].sum())
        plan = replace(best, lengths=lengths)
        # Lemma 1: the band of (20) does not depend on the length.
        hz = cell.payload_bits / (cell.efficiency * (theta - cell.draft_s))
        simulated = run_cell(
            cell=cell,
            policy=Synchronous(deadline_s=60.0, row_budget=10**6),
            control=Prescribed(plan=replace(plan, bandwidth_hz=hz), cell=cell),
            duration_s=round_s * 20.0 * realisations,
            seed=seed,
        )
        rows.append(
            {
                "length": length,
                "formula": tokens / round_s,
                "simulated": simulated.goodput_tokens_per_s,
                "optimum": int(best.lengths[0]),
            }
        )
    return rows


def figure_4(pair: Pair, seed: int, realisations: int) -> list[Row]:  # noqa: ARG001
    """The optimal length over verification time, time per token, and acceptance."""
    rows: list[Row] = []
    base = {"verify_s": 0.2, "theta_s": 0.04, "acceptance": 0.8}
    sweeps = {
        "verify_s": np.linspace(0.1, 0.4, 13),
        "theta_s": np.linspace(0.02, 0.08, 13),
        "acceptance": np.linspace(0.6, 0.9, 13),
    }
    for name, values in sweeps.items():
        for value in values:
            point = {**base, name: float(value)}
            rows.append(
                {
                    "swept": name,
                    "value": float(value),
                    "length": optimal_length(**point, longest=100),
                    "real_length": real_length(**point),
                }
            )
    return rows


def figure_5(pair: Pair, seed: int, realisations: int) -> list[Row]:  # noqa: ARG001
    """The verification time that the paper fitted on an A100."""
    return [
        {"batch": batch, "verify_s": pair.fixed_s + batch * pair.per_request_s}
        for batch in range(1, 17)
    ]


def figure_6(pair: Pair, seed: int, realisations: int) -> list[Row]:
    """Multi-SPIN against one device by itself and against drafting on the server."""
    cells = draw(pair, seed, realisations)
    # On the server a drafting pass is taken to cost what it costs a device, whatever the batch.
    drafting = VerifyCost(fixed_s=pair.draft_s)
    single = [
        heterogeneous(cell.subset(np.array([k]))).goodput_tokens_per_s
        for cell in cells
        for k in range(0, cell.count, 5)
    ]
    centred = [co_located(cell, draft=drafting).goodput_tokens_per_s for cell in cells]
    row = averages(cells)
    return [{"P2P-SPIN": float(np.mean(single)), "Cen-SPIN": float(np.mean(centred)), **row}]


def figure_7(pair: Pair, seed: int, realisations: int) -> list[Row]:
    """Goodput over the band, K = 20."""
    return [
        {
            "bandwidth_mhz": mhz,
            **averages(draw(pair, seed, realisations, bandwidth_hz=1e6 * mhz)),
        }
        for mhz in (5.0, 10.0, 15.0, 20.0)
    ]


def figure_8(pair: Pair, seed: int, realisations: int) -> list[Row]:
    """Goodput over the number of devices, 10 MHz."""
    return [
        {"devices": count, **averages(draw(pair, seed, realisations, count=count))}
        for count in (10, 14, 17, 20, 24)
    ]


def figure_9(pair: Pair, seed: int, realisations: int) -> list[Row]:
    """Goodput over the bits of a drafted token: distributions, sparse ones, ids alone."""
    return [
        {"payload_bits": bits, **averages(draw(pair, seed, realisations, payload_bits=bits))}
        for bits in (31.0, 496.0, 1984.0, 7936.0, pair.payload_bits)
    ]


def figure_10(pair: Pair, seed: int, realisations: int) -> list[Row]:
    """Goodput, ids alone, over how fast the verifier is: the paper's time divided."""
    rows: list[Row] = []
    for speed in (1.0, 3.0, 7.0, 18.0):
        verify = VerifyCost(fixed_s=pair.fixed_s / speed, per_request_s=pair.per_request_s / speed)
        cells = draw(pair, seed, realisations, verify=verify, payload_bits=31.0)
        rows.append({"verifier_speed": speed, **averages(cells)})
    return rows


FIGURES: dict[int, Callable[[Pair, int, int], list[Row]]] = {
    3: figure_3,
    4: figure_4,
    5: figure_5,
    6: figure_6,
    7: figure_7,
    8: figure_8,
    9: figure_9,
    10: figure_10,
}


def figure(number: int, *, pair: str, seed: int = 0, realisations: int = 10) -> list[Row]:
    """Return the rows of a figure.

    Args:
        number: 3 to 8 as in the paper; 9 and 10 are ours.
        pair: one of `PAIRS`.
        seed: of everything that is drawn.
        realisations: cells averaged over.
    """
    return FIGURES[number](PAIRS[pair], seed, realisations)
