"""`multispin plan`: solve one cell and say whether drafting pays in it."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from edge_server.scheduler.capacity import capacity, server_capacity
from edge_server.scheduler.cell import Cell, Plan, VerifyCost
from edge_server.scheduler.cell_file import read_cell
from edge_server.scheduler.energy import has_energy
from edge_server.scheduler.solve import OBJECTIVES, SCHEMES, solve

__all__ = ["configure", "report", "run"]

SHOWN_DEVICES = 24


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `multispin plan`."""
    parser.add_argument("--cell", type=Path, required=True, metavar="FILE", help="the cell, JSON")
    parser.add_argument("--policy", default="auto", help=f"one of {', '.join(SCHEMES)}")
    parser.add_argument("--objective", default="goodput", help=f"one of {', '.join(OBJECTIVES)}")
    parser.add_argument(
        "--rate", type=float, help="also say how many devices can be served at this many tokens/s"
    )
    parser.add_argument("--length", type=int, default=8, help="draft length of policy fixed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Solve the cell and print the plan."""
    cell = read_cell(args.cell)
    begun_s = time.perf_counter()
    plan = solve(cell, args.policy, length=args.length, objective=args.objective)
    solve_s = time.perf_counter() - begun_s
    if args.json:
        found = report(cell, plan, solve_s)
        if args.rate is not None:
            served = capacity(cell, args.rate)
            found["served_at_rate"] = [cell.ids[k] for k in served.served]
        print(json.dumps(found))
        return 0
    lines = words(cell, plan, solve_s)
    if args.rate is not None:
        lines.append(serves(cell, args.rate))
    print("\n".join(lines))
    return 0


def serves(cell: Cell, rate: float) -> str:
    """Return how many devices can be served at a rate, with drafting and without."""
    served, alone = capacity(cell, rate).count, server_capacity(cell, rate)
    return (
        f"At {rate:g} tokens/s each, {served} of {cell.count} devices can be served; "
        f"{alone} by the server alone."
    )


def report(cell: Cell, plan: Plan, solve_s: float) -> dict[str, object]:
    """Return the plan as a JSON object."""
    found: dict[str, object] = {
        "policy": plan.policy,
        "devices": list(cell.ids),
        "draft_length": [int(length) for length in plan.lengths],
        "bandwidth_hz": [float(hz) for hz in plan.bandwidth_hz],
        "rate_tokens_per_s": [float(rate) for rate in plan.rates],
        "round_s": plan.round_s,
        "goodput_tokens_per_s": plan.goodput_tokens_per_s,
        "weighted_goodput_tokens_per_s": plan.weighted_goodput,
        "bound_tokens_per_s": plan.bound_tokens_per_s,
        "solve_s": solve_s,
        **({"joules_per_token": plan.joules_per_token} if has_energy(cell) else {}),
    }
    if plan.groups:
        found["group"] = list(plan.groups)
    return found


def words(cell: Cell, plan: Plan, solve_s: float) -> list[str]:
    """Return the plan in plain words."""
    lines = [
        f"{plan.policy}: {plan.goodput_tokens_per_s:.1f} tokens/s from {cell.count} devices, "
        f"a round takes {1e3 * plan.round_s:.1f} ms "
        f"(bound {plan.bound_tokens_per_s:.1f}, solved in {1e3 * solve_s:.1f} ms)",
        f"{'device':<16} {'draft':>5} {'band kHz':>10} {'tokens/s':>9}",
    ]
    lines += [
        f"{cell.ids[k]:<16} {plan.lengths[k]:>5} {plan.bandwidth_hz[k] / 1e3:>10.1f} "
        f"{plan.rates[k]:>9.2f}"
        for k in range(min(cell.count, SHOWN_DEVICES))
    ]
    if cell.count > SHOWN_DEVICES:
        lines.append(f"… and {cell.count - SHOWN_DEVICES} more (--json shows all)")
    if has_energy(cell):
        lines.append(f"{plan.joules_per_token:.3g} joules per token, all devices together")
    free = replace(cell, min_length=0, energy_cap_w=None, min_rate=0.0)
    return [*lines, pays(free), holds_back(free)]


def pays(cell: Cell) -> str:
    """Return whether drafting pays, against a server that just decodes."""
    alone = solve(cell, "server-only").weighted_goodput
    best = solve(cell, "auto")
    unit = "tokens/s" if (cell.weight == 1.0).all() else "tokens/s times weight"
    if not best.lengths.any():
        return (
            f"Drafting does not pay here: the server alone gives {alone:.1f} {unit}, "
            "and no scheme beats it."
        )
    found = best.weighted_goodput
    return (
        f"Drafting pays: the best scheme ({best.policy}) gives {found:.1f} {unit}, "
        f"{found / alone:.2f} times the server alone ({alone:.1f})."
    )


def holds_back(cell: Cell) -> str:
    """Return what would help most if there were twice as much of it, and how much."""
    now = solve(cell, "auto").weighted_goodput
    verify = cell.verify
    wished = {
        "twice the band": replace(cell, bandwidth_hz=2.0 * cell.bandwidth_hz),
        "a verifier twice as fast": replace(
            cell,
            verify=VerifyCost(
                fixed_s=verify.fixed_s / 2.0,
                per_request_s=verify.per_request_s / 2.0,
                per_row_s=verify.per_row_s / 2.0,
                per_padded_row_s=verify.per_padded_row_s / 2.0,
            ),
        ),
        "devices that draft twice as fast": replace(cell, draft_s=cell.draft_s / 2.0),
    }
    gains = {
        name: 100.0 * (solve(other, "auto").weighted_goodput / now - 1.0)
        for name, other in wished.items()
    }
    ranked = sorted(gains, key=lambda name: -gains[name])
    listed = ", ".join(f"{name} {gains[name]:+.0f} %" for name in ranked)
    return f"What holds it back most: {ranked[0]} would help most ({listed})."
