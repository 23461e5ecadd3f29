"""The scheduler in the running system, on links of known rate, against the solver. Needs root.

Three boards in network namespaces of their own, behind uplinks of 1, 4 and 16 Mbit/s (tbf), draft
with the shipped drafter at different speeds and upload a distribution with every token; mosquitto
and the edge server verify with the shipped target. Boards and target are real and slowed to known
times, so that the solver can be told the truth. Prints one JSON line.

    sudo python -m benchmarks.closed_loop [--seconds S] [--scenarios adaptive fixed continuous auto]

`adaptive` (a barrier, as the paper has it) also drops the fastest link to a quarter; `fixed` is the
paper's baseline, eight tokens and an equal share for everyone; `fixed-2` the same with two tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.machine import machine
from benchmarks.namespaces import (
    GOODPUT_SHARE,
    board_link,
    broker_configuration,
    die_with_parent,
    end,
    enter_own_network,
    ip,
    mosquitto,
    namespace,
    shape,
    timer_lateness,
    wait_until,
)
from edge_server.scheduler.cell import Cell, Floats, Ints, Plan, VerifyCost
from edge_server.scheduler.control import DraftControl
from edge_server.scheduler.deadline import band, deadline, latency
from edge_server.scheduler.estimators import SurvivalEstimator
from edge_server.scheduler.heterogeneous import heterogeneous
from edge_server.scheduler.interface import Controller, Grant, Mode, RoundReport, VerifyReport
from edge_server.scheduler.policies import make_policy
from edge_server.scheduler.solver import ProcessSolver
from edge_server.serve import DRAFT_OVERHEAD_BITS, ratio_modes
from edge_server.server import EdgeServer
from edge_server.verifier.interface import Verifier, VerifyOutcome, VerifyRequest
from edge_server.verifier.onnx import OnnxVerifier
from models.registry import pair_dir, prompts
from sdk.config import BrokerConfig
from sdk.device import Device
from sdk.draft.drafter import OnnxDrafter
from sdk.draft.slowed import SlowedDrafter
from sdk.protocol import UP_FILTER, bits_per_id
from sdk.session_options import SessionOptions
from sdk.transport.mqtt import MqttTransport

PORT = 1883
SUPPORT, WEIGHT_BITS = 1024, 16  # as in the paper: some 28 kbit uploaded with every token
MAX_LENGTH = 8
RATES_MBPS = (1.0, 4.0, 16.0)
DRAFT_S = (0.020, 0.025, 0.030)
VERIFY = VerifyCost(fixed_s=0.100, per_request_s=0.004, per_row_s=0.001)
ROUNDS_TO_SETTLE = 20
SESSION_TOKENS = 100  # short enough that a measurement sees many texts


def main() -> int:
    """Run the scenarios, one after the other."""
    args = parse_arguments()
    if args.board:
        return board(args.board, args.draft_s)
    missing = enter_own_network("benchmarks.closed_loop")
    if missing:
        print(f"closed_loop: {missing}", file=sys.stderr)
        return 2
    os.setpriority(os.PRIO_PROCESS, 0, -10)
    ip("link", "set", "lo", "up")
    with timer_lateness() as lateness_s:
        found = {name: run_scenario(name, seconds=args.seconds) for name in args.scenarios}
    result = {
        "scenario": "closed_loop",
        "seconds": args.seconds,
        **found,
        "timer_late_p90_ms": round(float(np.quantile(lateness_s, 0.9)) * 1e3, 2),
    }
    print(json.dumps(result | machine()))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="that count, per measurement")
    parser.add_argument("--scenarios", nargs="+", default=["adaptive", "fixed"], choices=SCENARIOS)
    parser.add_argument("--board", help=argparse.SUPPRESS)
    parser.add_argument("--draft-s", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser.parse_args()


# what is known of the testbed


def truth(rates_mbps: Sequence[float], trace: Trace) -> Cell:
    """Return the cell as the testbed was built, with all its rounds' acceptance and bits."""
    counted = [SurvivalEstimator(max_length=MAX_LENGTH, keep=1.0) for _ in RATES_MBPS]
    for report in trace.rounds:
        counted[trace.boards.index(report.device)].add(
            drafted=report.drafted, accepted=report.accepted
        )
    return Cell(
        bandwidth_hz=1.0,
        payload_bits=trace.bits_per_token(),
        overhead_bits=DRAFT_OVERHEAD_BITS,
        verify=VERIFY,
        draft_s=np.array(DRAFT_S),
        efficiency=1e6 * np.array(rates_mbps) * GOODPUT_SHARE,
        survival=np.array([estimator.curve() for estimator in counted]),
        max_length=MAX_LENGTH,
    )


class KnownTime:
    """A verifier whose passes take exactly what `VERIFY` says, as a known GPU's would."""

    def __init__(self, verifier: OnnxVerifier) -> None:
        self._verifier = verifier

    def __getattr__(self, name: str) -> Any:
        return getattr(self._verifier, name)

    def verify(self, requests: Sequence[VerifyRequest]) -> list[VerifyOutcome]:
        """Verify, not before the time."""
        rows = sum(1 + len(request.draft) for request in requests)
        cost = VERIFY
        due_s = time.monotonic() + (
            cost.fixed_s + cost.per_request_s * len(requests) + cost.per_row_s * rows
        )
        outcomes = self._verifier.verify(requests)
        time.sleep(max(0.0, due_s - time.monotonic()))
        return outcomes


# what is watched


@dataclass(slots=True)
class Trace:
    """Every round, and what was granted, of one scenario."""

    vocabulary_size: int
    boards: tuple[str, ...] = tuple(f"board-{k + 1}" for k in range(len(RATES_MBPS)))
    rounds: list[RoundReport] = field(default_factory=list)
    grants: list[tuple[float, str, Grant]] = field(default_factory=list)
    plans: list[tuple[float, Plan]] = field(default_factory=list)
    links: list[tuple[float, str, float | None]] = field(default_factory=list)

    def bits_per_token(self) -> float:
        """Return what a drafted token took on the wire: its id, and ids and weights beside it."""
        drafted = sum(report.drafted for report in self.rounds)
        uploaded_bits = 8 * sum(report.distribution_bytes for report in self.rounds)
        return bits_per_id(self.vocabulary_size) + uploaded_bits / drafted

    def rounds_of(self, device: str) -> int:
        """Return how many rounds a board has drafted."""
        return sum(report.device == device and report.drafted > 0 for report in self.rounds)


class Watched:
    """A controller that is watched at work."""

    def __init__(self, control: Controller, trace: Trace) -> None:
        self._control, self._trace = control, trace

    def opened(self, device: str, session: int, *, mode: Mode, now_s: float) -> Grant:
        """Pass on."""
        return self._control.opened(device, session, mode=mode, now_s=now_s)

    def observe(self, report: RoundReport) -> None:
        """Note the round."""
        self._trace.rounds.append(report)
        self._control.observe(report)

    def observe_link(self, device: str, report: dict[str, Any], *, now_s: float) -> None:
        """Note the rate."""
        self._trace.links.append((now_s, device, report.get("uplink_bps")))
        self._control.observe_link(device, report, now_s=now_s)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)

    def grant(self, device: str, session: int, *, now_s: float) -> Grant:
        """Note the grant."""
        grant = self._control.grant(device, session, now_s=now_s)
        self._trace.grants.append((now_s, device, grant))
        plan = getattr(self._control, "plan", None)
        if plan is not None:
            self._trace.plans.append((now_s, plan))
        return grant


class Fixed:
    """The same length and an equal share for everyone."""

    def __init__(self, *, length: int) -> None:
        self._grant = Grant(
            length=length, share=1.0 / len(RATES_MBPS), mode=Mode.RATIO, support=SUPPORT
        )

    def opened(self, device: str, session: int, *, mode: Mode, now_s: float) -> Grant:  # noqa: ARG002
        """Return it."""
        return self._grant

    def observe(self, report: RoundReport) -> None:
        """Learn nothing."""

    def observe_verify(self, report: VerifyReport) -> None:
        """Learn nothing."""

    def observe_link(self, device: str, report: dict[str, object], *, now_s: float) -> None:
        """Learn nothing."""

    def observe_energy(self, device: str, **figures: float | None) -> None:
        """Learn nothing."""

    def grant(self, device: str, session: int, *, now_s: float) -> Grant:  # noqa: ARG002
        """Return it."""
        return self._grant

    def closed(self, device: str, session: int, *, now_s: float) -> None:
        """Forget nothing."""


# the scenarios


def run_scenario(name: str, *, seconds: float) -> dict[str, Any]:
    """Run one scenario to its end."""
    policy = SCENARIOS[name]
    verifier = OnnxVerifier.load(pair_dir("target"), threads=1)
    trace = Trace(vocabulary_size=verifier.vocabulary_size)
    with contextlib.ExitStack() as stack:
        control = controller(name, verifier, stack)
        boards = start_boards(stack)
        serve(stack, verifier, Watched(control, trace), make_policy(policy, **choices(control)))
        for pid, rate_mbps in zip(boards, RATES_MBPS, strict=True):
            shape(rate_mbps, inside=pid)
        measured = [measure(trace, seconds, RATES_MBPS)]
        if name == "adaptive":
            dropped = (*RATES_MBPS[:-1], RATES_MBPS[-1] / 4)
            shape(dropped[-1], inside=boards[-1])
            measured.append(measure(trace, seconds, dropped))
    return {"policy": policy, "links": [finish(trace) for finish in measured]}


def controller(name: str, verifier: OnnxVerifier, stack: contextlib.ExitStack) -> Controller:
    """Return what decides in a scenario."""
    if name.startswith("fixed"):
        return Fixed(length=2 if name == "fixed-2" else 8)
    return DraftControl(
        policy=SCENARIOS[name],
        max_length=MAX_LENGTH,
        start_length=4,
        overhead_bits=DRAFT_OVERHEAD_BITS,
        ratio_modes=ratio_modes((SUPPORT,), verifier.vocabulary_size),
        always_upload=True,
        solver=stack.enter_context(ProcessSolver()),
    )


def choices(control: Controller) -> dict[str, Any]:
    """Return what a policy asks a controller."""
    if isinstance(control, DraftControl):
        return {"choose": control.policy_name, "groups": control.groups}
    return {}


def serve(stack: contextlib.ExitStack, verifier: Verifier, control: Any, policy: Any) -> EdgeServer:
    """Serve in a thread until the stack unwinds."""
    broker = BrokerConfig(host="127.0.0.1", port=PORT)
    transport = stack.enter_context(
        MqttTransport(broker=broker, client_id="edge", subscriptions=[(UP_FILTER, 1)])
    )
    transport.connect()
    server = EdgeServer(
        transport=transport,
        verifier=KnownTime(verifier),  # type: ignore[arg-type]
        controller=control,
        policy=policy,
    )
    stop = threading.Event()
    thread = threading.Thread(target=server.run, args=(stop,), name="edge-server")
    thread.start()
    stack.callback(thread.join)
    stack.callback(stop.set)
    return server


def start_boards(stack: contextlib.ExitStack) -> list[int]:
    """Start a broker and the boards, each behind its own link; return the boards' processes."""
    config = stack.enter_context(broker_configuration(PORT))
    broker = subprocess.Popen(
        [mosquitto() or "mosquitto", "-c", f"/dev/fd/{config}"],
        preexec_fn=die_with_parent,
        pass_fds=[config],
        stderr=subprocess.DEVNULL,
    )
    stack.callback(end, broker)
    boards = []
    for k, draft_s in enumerate(DRAFT_S):
        module = [sys.executable, "-m", "benchmarks.closed_loop"]
        arguments = ["--board", f"{k + 1}", "--draft-s", str(draft_s)]
        process = subprocess.Popen(
            ["unshare", "--net", *module, *arguments], preexec_fn=die_with_parent
        )
        stack.callback(end, process)
        wait_until(lambda pid=process.pid: namespace(pid) != namespace(os.getpid()))  # type: ignore[misc]
        net = f"10.99.{k + 1}"
        board_link(
            process.pid,
            name=f"down{k + 1}",
            board=f"{net}.1/24",
            server=f"{net}.2/24",
            server_pid=os.getpid(),
        )
        boards.append(process.pid)
    return boards


def measure(
    trace: Trace, seconds: float, rates_mbps: Sequence[float]
) -> Callable[[Trace], dict[str, Any]]:
    """Let everyone draft 20 rounds, then count for `seconds`; return how to sum that up."""
    already = {device: trace.rounds_of(device) for device in trace.boards}
    wait_until(
        lambda: all(
            trace.rounds_of(device) >= already[device] + ROUNDS_TO_SETTLE for device in trace.boards
        ),
        timeout_s=90.0,
    )
    begin_s = time.monotonic()
    time.sleep(seconds)
    end_s = time.monotonic()

    def finish(trace: Trace) -> dict[str, Any]:
        return summary(trace, begin_s, end_s, truth(rates_mbps, trace)) | {
            "links_mbps": list(rates_mbps)
        }

    return finish


def summary(trace: Trace, begin_s: float, end_s: float, cell: Cell) -> dict[str, Any]:
    """Return what was granted and reached between two times, and what the solver would have."""
    rounds = [report for report in trace.rounds if begin_s <= report.now_s < end_s]
    tokens = sum(1 + report.accepted for report in rounds)
    plans = [plan for at_s, plan in trace.plans if begin_s <= at_s < end_s]
    best = heterogeneous(cell)
    found: dict[str, Any] = {
        "goodput_tokens_per_s": round(tokens / (end_s - begin_s), 2),
        "rounds": [sum(report.device == device for report in rounds) for device in trace.boards],
        "acceptance": [round(float(curve[0]), 3) for curve in cell.survival],
        "bits_per_token": round(cell.payload_bits),
        "reported_mbps": reported_mbps(trace, begin_s, end_s),
        "lengths": mean_grants(trace, begin_s, end_s, lambda grant: grant.length),
        "shares": mean_grants(trace, begin_s, end_s, lambda grant: grant.share),
        "solver": {
            "lengths": best.lengths.tolist(),
            "shares": best.bandwidth_hz.round(3).tolist(),
            "goodput_tokens_per_s": round(best.goodput_tokens_per_s, 2),
        },
    }
    if plans:
        predicted = np.mean([plan.goodput_tokens_per_s for plan in plans])
        found["predicted_tokens_per_s"] = round(float(predicted), 2)
    if plans and plans[0].policy == best.policy:
        rounds_granted = granted(trace, begin_s, end_s)
        worths = [worth(cell, *each) for each in rounds_granted]
        found["grants_worth"] = round(float(np.median(worths)) / best.goodput_tokens_per_s, 3)
        off = [shares_off(cell, *each) for each in rounds_granted]
        found["shares_off"] = round(float(np.median(off)), 3)
    return found


def granted(trace: Trace, begin_s: float, end_s: float) -> list[tuple[Ints, Floats]]:
    """Return all boards' lengths and shares after every grant between two times."""
    latest: dict[str, Grant] = {}
    found = []
    for at_s, device, grant in trace.grants:
        latest[device] = grant
        if begin_s <= at_s < end_s and len(latest) == len(trace.boards):
            own = [latest[board] for board in trace.boards]
            found.append(
                (np.array([each.length for each in own]), np.array([each.share for each in own]))
            )
    return found


def worth(cell: Cell, lengths: Ints, shares: Floats) -> float:
    """Return the tokens/s that lengths and shares reach in the true cell."""
    arrived_s = float(latency(cell, lengths, shares).max())
    tokens = cell.tokens()[np.arange(cell.count), lengths].sum()
    return float(tokens / (arrived_s + cell.verify_s(lengths)))


def shares_off(cell: Cell, lengths: Ints, shares: Floats) -> float:
    """Return the largest distance of shares from the right ones for these lengths (31)."""
    right, _ = band(cell, lengths, deadline(cell, lengths))
    return float(np.abs(shares - right).max())


def reported_mbps(trace: Trace, begin_s: float, end_s: float) -> list[list[float]]:
    """Return the first, the middle and the last rate that every board reported in a time."""
    found = []
    for name in trace.boards:
        rates = [
            round(rate / GOODPUT_SHARE * 1e-6, 2)
            for at_s, device, rate in trace.links
            if device == name and rate and begin_s <= at_s < end_s
        ]
        found.append([rates[0], rates[len(rates) // 2], rates[-1]] if rates else [])
    return found


def mean_grants(
    trace: Trace, begin_s: float, end_s: float, figure: Callable[[Grant], float]
) -> list[float]:
    """Return the mean of a figure of every board's grants in a time."""
    return [
        round(
            float(
                np.mean(
                    [
                        figure(grant)
                        for at_s, device, grant in trace.grants
                        if device == name and begin_s <= at_s < end_s
                    ]
                )
            ),
            3,
        )
        for name in trace.boards
    ]


SCENARIOS = {
    "adaptive": "synchronous",
    "fixed": "synchronous",
    "fixed-2": "synchronous",
    "continuous": "continuous",
    "ping-pong": "ping_pong",
    "auto": "auto",
}


# a board


def board(name: str, draft_s: float) -> int:
    """Draft one text after the other, until ended."""
    wait_until(has_link)
    drafter = SlowedDrafter(
        drafter=OnnxDrafter.load(pair_dir("drafter"), threads=1), seconds_per_token=draft_s
    )
    device = Device(
        id=f"board-{name}",
        model=pair_dir("drafter"),
        broker=BrokerConfig(host=f"10.99.{name}.2", port=PORT),
        drafter=drafter,
        options=SessionOptions(weight_bits=WEIGHT_BITS),
    )
    texts = [prompt["text"] for prompt in prompts()]
    with device:
        for number, text in enumerate(itertools.cycle(texts)):
            for _token in device.generate(
                text,
                max_tokens=SESSION_TOKENS,
                temperature=1.0,
                seed=number,
                mode=Mode.RATIO,
            ):
                pass
    return 0


def has_link() -> bool:
    """Return whether this namespace has its link."""
    shown = subprocess.run(["ip", "-o", "address"], capture_output=True, text=True, check=True)
    return "up0" in shown.stdout and "inet 10." in shown.stdout


if __name__ == "__main__":
    sys.exit(main())
