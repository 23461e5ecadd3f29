"""The main job's own costs, one JSON line each: `python -m benchmarks.spine` (`make bench`).

server_round   server time of a whole round outside the model, at 1, 8 and 64 sessions
drafter        drafting time per token, sampling included
bytes          bytes of a 16-token draft
idle_session   server memory of a session that waits
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.machine import machine
from edge_server.scheduler.adaptive import AdaptiveLength
from edge_server.scheduler.policies import make_policy
from edge_server.server import EdgeServer
from edge_server.verifier.interface import VerifyOutcome, VerifyRequest
from edge_server.verifier.onnx import OnnxVerifier
from models.registry import pair_dir
from sdk.draft.drafter import OnnxDrafter
from sdk.model.sampling import Sampler, SamplingParameters
from sdk.model.tokenizer import Tokenizer
from sdk.protocol import (
    UP_FILTER,
    Draft,
    Mode,
    Open,
    Verdict,
    bits_per_id,
    decode_verdict,
    encode_control,
    encode_draft,
    up,
)
from sdk.transport.interface import publish_packet_bytes
from sdk.transport.memory import MemoryHub, MemoryTransport

PROMPT = "import os\nimport sys\n\n\ndef main(argv):\n    "
ROUNDS = 30
DRAFT_TOKENS = 4


class TimedVerifier(OnnxVerifier):
    """The real verifier, with a stopwatch on everything that is the model's."""

    model_s = 0.0

    def verify(self, requests: Sequence[VerifyRequest]) -> list[VerifyOutcome]:
        """Verify, and count the time."""
        started_s = time.perf_counter()
        try:
            return super().verify(requests)
        finally:
            self.model_s += time.perf_counter() - started_s

    def prefill(self, slot: int, token_ids: Sequence[int]) -> None:
        """Prefill, and count the time."""
        started_s = time.perf_counter()
        super().prefill(slot, token_ids)
        self.model_s += time.perf_counter() - started_s


class Cell:
    """One server and many sessions of one device each, driven from here without threads."""

    def __init__(self, target: Path, count: int) -> None:
        self.hub = MemoryHub()
        loaded = TimedVerifier.load(target, max_sessions=count, threads=2)
        assert isinstance(loaded, TimedVerifier)
        self.verifier = loaded
        self.tokenizer = Tokenizer(target)
        self.prompt = self.tokenizer.encode(PROMPT)
        self.id_bits = bits_per_id(self.verifier.vocabulary_size)
        self.server = EdgeServer(
            transport=self.hub.connect("edge", subscriptions=[(UP_FILTER, 1)], inbox_limit=4096),
            verifier=self.verifier,
            controller=AdaptiveLength(min_length=DRAFT_TOKENS, max_length=DRAFT_TOKENS),
            policy=make_policy("continuous", row_budget=1024),
        )
        self.devices = [self._connect(number) for number in range(count)]
        self.positions = [0] * count

    def _connect(self, number: int) -> MemoryTransport:
        return self.hub.connect(f"d{number}", subscriptions=[(f"sd/1/d{number}/down/#", 1)])

    def open_all(self) -> None:
        """Open every session and take its first token."""
        for number, device in enumerate(self.devices):
            opening = Open(
                session=number + 1,
                prompt=self.prompt,
                sampling=SamplingParameters(temperature=1.0, seed=number),
                mode=Mode.COUPLED,
                max_tokens=200,
                tokenizer=self.verifier.tokenizer_hash,
                vocabulary_size=self.verifier.vocabulary_size,
            )
            device.publish(up(f"d{number}", "open"), encode_control(opening), qos=1)
        self._collect()

    def round(self) -> float:
        """Play one round of every session; return the server's seconds outside the model."""
        for number, device in enumerate(self.devices):
            draft = Draft(
                session=number + 1,
                round=self.positions[number],
                position=self.positions[number],
                sent_us=1,
                draft_s=0.01,
                token_ids=(7,) * DRAFT_TOKENS,
                id_bits=self.id_bits,
            )
            device.publish(up(f"d{number}", "draft"), encode_draft(draft))
        model_before_s, started_s = self.verifier.model_s, time.perf_counter()
        self.server.turn()
        elapsed_s = time.perf_counter() - started_s
        outside_s = elapsed_s - (self.verifier.model_s - model_before_s)
        self._collect()
        return outside_s

    def _collect(self) -> None:
        missing = set(range(len(self.devices)))
        while missing:
            for number in tuple(missing):
                verdict = self._verdict(self.devices[number])
                if verdict is not None:
                    self.positions[number] = verdict.next_position
                    missing.discard(number)
            if missing:
                self.server.turn()

    @staticmethod
    def _verdict(device: MemoryTransport) -> Verdict | None:
        while (message := device.receive(0.0)) is not None:
            if message.topic.endswith("/verdict"):
                return decode_verdict(message.payload)
        return None


def server_round(target: Path) -> dict[str, object]:
    """Return the server's time of a round outside the model, whole and per session."""
    figures: dict[str, object] = {}
    for count in (1, 8, 64):
        cell = Cell(target, count)
        cell.open_all()
        cell.round()
        times_s = sorted(cell.round() for _ in range(ROUNDS))
        figures[f"sessions_{count}"] = {
            "median_ms": round(statistics.median(times_s) * 1e3, 3),
            "p90_ms": round(times_s[int(0.9 * ROUNDS)] * 1e3, 3),
            "median_us_per_session": round(statistics.median(times_s) / count * 1e6, 1),
        }
    return figures


def drafter(folder: Path) -> dict[str, object]:
    """Return milliseconds per drafted token, greedy and sampled, at a short context."""
    model, tokenizer = OnnxDrafter.load(folder, threads=1), Tokenizer(folder)
    figures: dict[str, object] = {"threads": 1}
    for name, parameters in {
        "greedy": SamplingParameters(),
        "coupled": SamplingParameters(temperature=1.0),
    }.items():
        sampler = Sampler(parameters=parameters, vocabulary_size=model.vocabulary_size)
        sequence = list(tokenizer.encode(PROMPT))
        times_s = []
        for _ in range(200):
            started_s = time.perf_counter()
            sequence.append(sampler.choose(model.next_logits(sequence), len(sequence)))
            times_s.append(time.perf_counter() - started_s)
        figures[f"{name}_median_ms"] = round(statistics.median(times_s[10:]) * 1e3, 3)
    return figures


def draft_bytes(target: Path) -> dict[str, object]:
    """Return the bytes of a 16-token draft, payload and packet, per drafted token."""
    figures: dict[str, object] = {}
    vocabularies = {"shipped": OnnxVerifier.load(target).vocabulary_size, "qwen3.5": 248_320}
    for name, size in vocabularies.items():
        draft = Draft(
            session=1,
            round=1,
            position=100,
            sent_us=1,
            draft_s=0.0,
            token_ids=(1,) * 16,
            id_bits=bits_per_id(size),
        )
        payload = len(encode_draft(draft))
        packet = publish_packet_bytes(up("pi-1", "draft"), payload, 0)
        figures[name] = {
            "id_bits": draft.id_bits,
            "payload_bytes_per_token": payload / 16,
            "packet_bytes_per_token": packet / 16,
        }
    return figures


def idle_session(target: Path) -> dict[str, object]:
    """Return what a session costs the server while it waits, in resident memory."""
    count = 48
    cell = Cell(target, count)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cell.open_all()
    after_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokens = len(cell.prompt) + 200
    return {
        "sessions": count,
        "capacity_tokens": tokens,
        "resident_kib_per_session": round((after_kib - before_kib) / count, 1),
        "kv_kib_reserved": round(cell.verifier.cache_bytes(tokens) / 1024, 1),
    }


def main() -> None:
    """Print every figure."""
    target, small = pair_dir("target"), pair_dir("drafter")
    benches: dict[str, Callable[[], dict[str, object]]] = {
        "idle_session": lambda: idle_session(target),
        "server_round": lambda: server_round(target),
        "drafter": lambda: drafter(small),
        "bytes": lambda: draft_bytes(target),
    }
    for name, bench in benches.items():
        print(json.dumps({"bench": name, **bench(), "machine": machine()}), flush=True)


if __name__ == "__main__":
    main()
