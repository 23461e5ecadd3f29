"""The runtimes that are compared: how each is installed, given the weights, and measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
INSTALL_TIMEOUT_S = 3600.0
PREPARE_TIMEOUT_S = 1800.0
RUN_TIMEOUT_S = 600.0


class PeerError(Exception):
    """A peer that did not install, convert or run; one line."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A runtime.

    `precisions` maps ours to the peer's name for the same; `prepare` is a command that writes the
    model, `measure` one that prints the figures. Both are formatted with python, checkpoint, out
    and precision, `measure` with context, tokens and threads too.
    """

    name: str
    packages: Sequence[str]
    precisions: dict[str, str]
    prepare: Sequence[str]
    measure: Sequence[str]
    suffix: str = ""


OURS = Peer(
    name="multispin",
    packages=(),
    precisions={
        **{weights: weights for weights in ("fp32", "int8", "int4", "int4-all")},
        **{f"{w}-kv8": f"{w} --kv int8" for w in ("fp32", "int8", "int4", "int4-all")},
    },
    prepare=(
        *("{python}", "-m", "sdk.cli", "model", "export"),
        *("--model", "{checkpoint}", "--out", "{out}", "--weights", "{precision}"),
    ),
    measure=(
        *("{python}", "-m", "sdk.cli", "bench", "draft", "--model", "{out}", "--json"),
        *("--context", "{context}", "--tokens", "{tokens}", "--threads", "{threads}"),
    ),
)
TORCH = "torch==2.13.0"  # as ours; a newer one would bring gigabytes of CUDA
PEERS = (
    Peer(
        name="onnxruntime-genai",
        packages=("onnxruntime-genai==0.18.0", "transformers>=5,<6", TORCH, "onnx", "onnx-ir"),
        precisions={"fp32": "fp32", "int4-all": "int4"},
        prepare=(
            *("{python}", "-m", "onnxruntime_genai.models.builder"),
            *("-m", "{checkpoint}", "-o", "{out}", "-p", "{precision}", "-e", "cpu"),
            *("--extra_options", "int4_block_size=32", "int4_accuracy_level=4"),
        ),
        measure=(
            "{python}",
            str(HERE / "run_genai.py"),
            "{out}",
            "{context}",
            "{tokens}",
            "{threads}",
        ),
    ),
    Peer(
        name="llama.cpp",
        packages=("llama-cpp-python", "gguf", "safetensors"),
        precisions={"fp32": "f32", "int8": "q8_0", "int4": "q4_0"},
        prepare=("{python}", str(HERE / "write_gguf.py"), "{checkpoint}", "{out}", "{precision}"),
        measure=(
            *("{python}", str(HERE / "run_llama_cpp.py")),
            *("{out}", "{context}", "{tokens}", "{threads}"),
        ),
        suffix=".gguf",
    ),
    Peer(
        name="openvino-genai",
        packages=(
            "openvino-genai",
            "openvino-tokenizers",
            "optimum-intel[openvino]",
            "nncf",
            TORCH,
        ),
        precisions={"fp32": "fp32", "int8": "int8", "int4": "int4 --group-size 64"},
        prepare=(
            *("{python}", "-m", "optimum.commands.optimum_cli", "export", "openvino"),
            *("--model", "{checkpoint}", "--task", "text-generation-with-past"),
            *("--weight-format", "{precision}", "{out}"),
        ),
        measure=(
            *("{python}", str(HERE / "run_openvino.py")),
            *("{out}", "{context}", "{tokens}", "{threads}"),
        ),
    ),
)


def interpreter(peer: Peer, folder: Path) -> Path:
    """Return the interpreter of a peer's environment, made and filled where it is not yet."""
    if not peer.packages:
        return Path(sys.executable)
    environment = folder / peer.name
    python, done = environment / "bin" / "python", environment / ".installed"
    if not done.exists():
        call([sys.executable, "-m", "venv", str(environment)], INSTALL_TIMEOUT_S)
        call([str(python), "-m", "pip", "install", "--quiet", *peer.packages], INSTALL_TIMEOUT_S)
        done.touch()
    return python


def prepared(
    peer: Peer, python: Path, precision: str, checkpoint: Path, folder: Path
) -> Path | PeerError:
    """Return the model in the peer's format, written where it is not yet, or why there is none."""
    out = folder / f"{checkpoint.name}-{peer.name}-{precision}{peer.suffix}"
    arguments = command(peer.prepare, python, checkpoint, out, peer.precisions[precision])
    try:
        if not out.exists():
            call(arguments, PREPARE_TIMEOUT_S)
    except PeerError as error:
        return error
    return out


def command(
    template: Sequence[str], python: Path, checkpoint: Path, out: Path, precision: str
) -> list[str]:
    """Fill a template; a precision of several words becomes several arguments."""
    fields = {"python": python, "checkpoint": checkpoint, "out": out}
    names = {"context": "{context}", "tokens": "{tokens}", "threads": "{threads}"}
    filled: list[str] = []
    for part in template:
        whole = part == "{precision}"
        filled.extend(precision.split() if whole else [part.format(**fields, **names)])
    return filled


def measured(
    peer: Peer, python: Path, out: Path, *, context: int, tokens: int, threads: int
) -> dict[str, float] | PeerError:
    """Run one measurement and return its figures, or why there are none."""
    template = command(peer.measure, python, Path(), out, "")
    numbers = {"context": context, "tokens": tokens, "threads": threads}
    try:
        printed = call([part.format(**numbers) for part in template], RUN_TIMEOUT_S)
        figures: dict[str, float] = json.loads(printed.splitlines()[-1])
    except PeerError as error:
        return error
    except (ValueError, IndexError):
        return PeerError("it printed no figures")
    return figures


def call(arguments: Sequence[str], timeout_s: float) -> str:
    """Run a program and return what it printed; raise PeerError with its last line of complaint."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{Path(arguments[0]).name}: {error}") from error
    if done.returncode != 0:
        complaint = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise PeerError(f"exit code {done.returncode}: {complaint[-1][:200]}")
    return done.stdout.strip()
