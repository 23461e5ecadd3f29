"""`multispin simulate`: the scheduler over a modelled cell.

Either one cell from a file, event by event under the engine's own policy and a plan or the live
controller, or the figures of the paper and ours, as CSV with PNG beside them.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from edge_server.scheduler.cell import Cell, CellError, Plan
from edge_server.scheduler.cell_file import read_cell
from edge_server.scheduler.control import DraftControl
from edge_server.scheduler.interface import Controller, Policy
from edge_server.scheduler.policies import PingPong, make_policy
from edge_server.scheduler.solve import SCHEMES, solve
from edge_server.simulation.event_loop import Fade, Outcome, Prescribed, no_fading, run_cell
from edge_server.simulation.figures import FIGURES, figure
from edge_server.simulation.paper import PAIRS

__all__ = ["configure", "run", "simulate"]

ROWS_UNLIMITED = 10**9
LONG_DEADLINE_S = 3600.0
LINK_REPORT_S = 1.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `multispin simulate`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--cell", type=Path, metavar="FILE", help="simulate this cell, JSON")
    what.add_argument(
        "--figure", choices=[*map(str, FIGURES), "all"], help="3-8 as in the paper, 9-10 ours"
    )
    parser.add_argument("--policy", default="auto", help=f"one of {', '.join(SCHEMES)}")
    parser.add_argument("--length", type=int, default=8, help="draft length of policy fixed")
    parser.add_argument("--live", action="store_true", help="let the live controller find out")
    parser.add_argument("--fading", action="store_true", help="Rayleigh fading, anew every second")
    parser.add_argument("--seconds", type=float, default=60.0, help="modelled time that counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pair", choices=[*PAIRS, "both"], default="both", help="for figures")
    parser.add_argument("--realisations", type=int, default=10, help="cells averaged over")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder of the figures")
    parser.add_argument("--no-png", action="store_true", help="write CSV only")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Simulate a cell, or write figures."""
    if args.cell is not None:
        return run_one(args)
    if args.realisations < 1:
        raise CellError(f"--realisations must be at least 1, got {args.realisations}")
    numbers = list(FIGURES) if args.figure == "all" else [int(args.figure)]
    pairs = list(PAIRS) if args.pair == "both" else [args.pair]
    args.out.mkdir(parents=True, exist_ok=True)
    written = []
    for number in numbers:
        for pair in pairs:
            written += write_figure(number, pair, args)
    print(json.dumps(written) if args.json else "\n".join(written))
    return 0


def write_figure(number: int, pair: str, args: argparse.Namespace) -> list[str]:
    """Write one figure's CSV and PNG and return their paths."""
    rows = figure(number, pair=pair, seed=args.seed, realisations=args.realisations)
    path = args.out / f"figure_{number}_{pair}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: f"{x:.6g}" if isinstance(x, float) else x for key, x in row.items()}
            for row in rows
        )
    if args.no_png:
        return [str(path)]
    from edge_server.simulation.plots import draw_rows

    draw_rows(number, rows, path.with_suffix(".png"), title=PAIRS[pair].name)
    return [str(path), str(path.with_suffix(".png"))]


def run_one(args: argparse.Namespace) -> int:
    """Simulate one cell and print predicted and simulated goodput."""
    if not args.seconds > 0.0:
        raise CellError(f"--seconds must be above 0, got {args.seconds}")
    cell = read_cell(args.cell)
    plan = solve(cell, args.policy, length=args.length)
    fade = rayleigh(cell.count, args.seed) if args.fading else no_fading
    outcome = simulate(cell, plan, seconds=args.seconds, seed=args.seed, live=args.live, fade=fade)
    found = {
        "policy": plan.policy,
        "predicted_tokens_per_s": plan.goodput_tokens_per_s,
        "simulated_tokens_per_s": outcome.goodput_tokens_per_s,
        "rate_tokens_per_s": [float(n) / outcome.duration_s for n in outcome.tokens],
        "passes": outcome.passes,
        "server_busy": outcome.busy_s / outcome.duration_s,
    }
    if args.json:
        print(json.dumps(found))
    else:
        print(
            f"{plan.policy}: predicted {plan.goodput_tokens_per_s:.1f} tokens/s, simulated "
            f"{outcome.goodput_tokens_per_s:.1f} over {args.seconds:g} s "
            f"({outcome.passes} passes, server busy {100.0 * outcome.busy_s / args.seconds:.0f} %)"
        )
    return 0


def simulate(
    cell: Cell,
    plan: Plan,
    *,
    seconds: float,
    seed: int = 0,
    live: bool = False,
    fade: Fade = no_fading,
) -> Outcome:
    """Run a plan's policy over the cell, event by event.

    Args:
        cell: the truth.
        plan: whose policy the engine follows, and whose grants, unless `live`.
        seconds: modelled time that counts, after a tenth of it to warm up.
        seed: of acceptance.
        live: let `DraftControl` measure and decide instead, told the links every second.
        fade: every link over time.
    """
    policy = engine_policy(plan)
    control: Controller = Prescribed(plan=plan, cell=cell)
    reports = None
    if live:
        draft_control = DraftControl(
            policy={"ping-pong": "ping_pong", "continuous": "continuous"}.get(
                plan.policy, "synchronous"
            ),
            min_length=cell.min_length,
            max_length=cell.max_length,
            start_length=min(max(4, cell.min_length), cell.max_length),
            bits_per_token=cell.payload_bits,
            overhead_bits=cell.overhead_bits,
            overlap=cell.overlap,
        )
        control, reports = draft_control, Reports(draft_control, cell, fade)
    return run_cell(
        cell=cell,
        policy=policy,
        control=control,
        duration_s=seconds,
        warm_up_s=0.1 * seconds,
        seed=seed,
        fade=fade,
        until=reports,
    )


def engine_policy(plan: Plan) -> Policy:
    """Return the engine's policy that a plan was made for."""
    if plan.policy == "continuous":
        return make_policy("continuous", row_budget=ROWS_UNLIMITED)
    if plan.policy == "ping-pong":
        policy = PingPong(deadline_s=LONG_DEADLINE_S, row_budget=ROWS_UNLIMITED)
        policy.assign(dict(enumerate(plan.groups)))
        return policy
    return make_policy("synchronous", deadline_s=LONG_DEADLINE_S, row_budget=ROWS_UNLIMITED)


class Reports:
    """The devices' link reports, once a second of modelled time."""

    def __init__(self, control: DraftControl, cell: Cell, fade: Fade) -> None:
        self._control, self._cell, self._fade = control, cell, fade
        self._next_s = 0.0

    def __call__(self, now_s: float) -> None:
        """Report every link if a second has passed."""
        if now_s < self._next_s:
            return
        self._next_s = now_s + LINK_REPORT_S
        for k, device in enumerate(self._cell.ids):
            full_bps = self._cell.bandwidth_hz * float(self._cell.efficiency[k])
            report: dict[str, object] = {"uplink_bps": full_bps * self._fade(k, now_s)}
            self._control.observe_link(device, report, now_s=now_s)


def rayleigh(count: int, seed: int) -> Fade:
    """Return block fading: each device's power gain is exponential, anew every second."""

    def fade(device: int, now_s: float) -> float:
        rng = np.random.default_rng([seed, device % count, int(now_s)])
        return max(0.05, float(np.log2(1.0 + 30.0 * rng.exponential()) / np.log2(31.0)))

    return fade
