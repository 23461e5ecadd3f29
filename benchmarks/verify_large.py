"""A pass of a large target against what memory allows: `python -m benchmarks.verify_large`.

Random weights in bf16 in the shapes of real models, made on the device; K sessions of some context
with L drafted tokens each (L + 1 rows), none of which is accepted. A pass can take no less than
reading all weights and all keys and values once at the bandwidth that a copy reaches: `over_floor`
is the median over that. `verify` is the fit that a cell file and the simulator read. On a GPU the
default shapes are Llama-2-7B's and Qwen2.5-14B's; without one a tiny model shows that all runs.

Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.draft.model import SHAPES as DRAFTERS
from benchmarks.draft.model import save_tokenizer
from benchmarks.machine import machine
from benchmarks.verify import Shape, fit, spread
from edge_server.verifier.interface import VerifyRequest
from edge_server.verifier.torch_backend import TorchVerifier
from edge_server.verifier.torch_checkpoint import fuse_norms
from edge_server.verifier.torch_model import ATTENTION_NAME, TorchModel
from edge_server.verifier.torch_weights import quantise
from sdk.model.sampling import SamplingParameters

SHAPES: Final[dict[str, dict[str, Any]]] = {
    "llama-2-7b": {
        "model_type": "llama",
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "qwen2.5-14b": {
        "model_type": "qwen2",
        "vocab_size": 152_064,
        "hidden_size": 5120,
        "intermediate_size": 13_824,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
    },
    "tiny": {"model_type": "llama", **DRAFTERS["tiny"]},
}
COPIED_BYTES: Final = 1 << 30


def main() -> None:
    """Measure every shape; print the table and the line."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    default = ["llama-2-7b", "qwen2.5-14b"] if cuda else ["tiny"]
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=default)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--weights", choices=("stored", "int8", "fp8"), default="stored")
    parser.add_argument("--sessions", nargs="+", type=int, default=[1, 20, 64])
    parser.add_argument("--lengths", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    bandwidth = copy_bandwidth(args.device)
    measured = {name: one_model(name, args, bandwidth) for name in args.shapes}
    Console(stderr=True).print(table(measured))
    line = {
        "bench": "verify_large",
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "copy_gb_per_s": round(bandwidth / 1e9, 1),
        "weights": args.weights,
        "context": args.context,
        "temperature": args.temperature,
        "runs": args.runs,
        "models": measured,
        "torch": torch.__version__,
        "machine": machine(),
    }
    print(json.dumps(line), flush=True)


def copy_bandwidth(device: str) -> float:
    """Return bytes/s read and written by a copy: the best of nine."""
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times_s = []
    for _ in range(9):
        synchronise(device)
        started_s = time.perf_counter()
        target.copy_(source)
        synchronise(device)
        times_s.append(time.perf_counter() - started_s)
    return 2 * COPIED_BYTES / min(times_s)


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def one_model(name: str, args: argparse.Namespace, bandwidth: float) -> dict[str, Any]:
    """Return one model's passes, their floors and the fit."""
    most = max(args.sessions)
    capacity = args.context + 3 * (args.runs + 2) * len(args.sessions) * len(args.lengths) + 16
    model = random_model(name, args, places=most * capacity)
    verifier = TorchVerifier(model=model, max_sessions=most)
    sampling = SamplingParameters(temperature=args.temperature)
    generator = np.random.default_rng(0)
    slots = [verifier.open(parameters=sampling, max_tokens=capacity) for _ in range(most)]
    for slot in slots:
        prompt = generator.integers(0, model.vocabulary_size, args.context).tolist()
        verifier.prefill(slot, prompt)
    passes, medians_s = {}, dict[Shape, float]()
    for count in args.sessions:
        kv_bytes = count * args.context * model.bytes_per_token
        floor_s = (weight_bytes(model) + kv_bytes) / bandwidth
        for length in args.lengths:
            times_s = passes_of(verifier, slots[:count], length, args.runs, generator)
            median_s = statistics.median(times_s)
            medians_s[count, length + 1] = median_s
            passes[f"{count}x{length}"] = {
                **spread(times_s),
                "floor_ms": round(floor_s * 1e3, 3),
                "over_floor": round(median_s / floor_s, 3),
            }
    found: dict[str, Any] = {"weight_gb": round(weight_bytes(model) / 1e9, 6), "passes": passes}
    if len(medians_s) >= 3:
        found["verify"] = fit(medians_s)
    if args.device == "cuda":
        found["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
    return found


def random_model(name: str, args: argparse.Namespace, *, places: int) -> TorchModel:
    """Return a model that exists in memory alone; its folder holds a tokenizer only."""
    shape = dict(SHAPES[name])
    config = AutoConfig.for_model(shape.pop("model_type"), **shape, max_position_embeddings=4096)
    torch.manual_seed(0)
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation=ATTENTION_NAME
        )
    fuse_norms(model)
    model.requires_grad_(False).train(False)
    quantise(model, args.weights)
    on_gpu = args.device == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(Path(folder))
        return TorchModel(
            model=model,
            folder=Path(folder),
            places=places,
            gather=on_gpu,
            static=on_gpu,
            decides=on_gpu,
        )


def weight_bytes(model: TorchModel) -> int:
    """Return the bytes of weights that a pass reads: of an embedding table only some rows."""
    inner = model.decoder
    table = inner.get_input_embeddings().weight
    tied = inner.config.tie_word_embeddings
    weights = (one for one in inner.parameters() if tied or one is not table)
    return sum(stored_bytes(one) for one in weights)


def stored_bytes(weight: Any) -> int:
    """Return the bytes of a weight, also of one that torchao holds in parts."""
    parts = [getattr(weight, name, None) for name in ("qdata", "scale")]
    held = [one for one in parts if one is not None] or [weight]
    return sum(one.numel() * one.element_size() for one in held)


def passes_of(
    verifier: TorchVerifier,
    slots: Sequence[int],
    length: int,
    runs: int,
    generator: np.random.Generator,
) -> list[float]:
    """Return the seconds of every pass but the first two, which capture and warm up."""
    times_s = []
    for _ in range(runs + 2):
        requests = [
            VerifyRequest(slot=slot, pending=(int(ids[0]),), draft=tuple(ids[1:].tolist()))
            for slot, ids in zip(
                slots,
                generator.integers(0, verifier.vocabulary_size, (len(slots), length + 1)),
                strict=True,
            )
        ]
        started_s = time.perf_counter()
        verifier.verify(requests)
        times_s.append(time.perf_counter() - started_s)
    return times_s[2:]


def table(measured: dict[str, dict[str, Any]]) -> Table:
    """Return a row per pass."""
    drawn = Table("model", "sessions × drafted", "ms a pass (quartiles)", "floor ms", "over floor")
    for name, found in measured.items():
        for shape, ms in found["passes"].items():
            spread_ms = f"{ms['median_ms']:.2f} ({ms['q1_ms']:.2f}–{ms['q3_ms']:.2f})"
            drawn.add_row(
                name, shape, spread_ms, f"{ms['floor_ms']:.2f}", f"{ms['over_floor']:.2f}"
            )
    return drawn


if __name__ == "__main__":
    main()
