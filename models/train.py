"""Make the pair: `python -m models.train`.

Stages: tokenizer, target, samples, drafter, folders; each resumes where it was cut.
Everything unfinished is kept in the work folder; `models/pair/` is written at the end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from models.batches import Batches, held_out_windows
from models.corpus import Module, read_modules, split, tokenize
from models.distill import Mix, sample_text, train_drafter
from models.evaluate import follow
from models.fit import Fit, Plan, pick_device, use_memory_well
from models.pair import CONTEXT, DRAFTER, TARGET, build, load, logits_of, save
from models.prompts import Prompt, choose, find_prompts
from models.registry import PAIR
from models.tokenizer import save_tokenizer, train_tokenizer

__all__ = ["Corpus", "main", "prepare", "train_target"]

SAMPLE_ROWS, SAMPLE_LENGTH = 256, 384
HELD_OUT_ROWS, HELD_OUT_LENGTH = 48, 256


@dataclass(frozen=True, slots=True)
class Corpus:
    """Tokenizer and both halves of the tokenised library."""

    tokenizer: Tokenizer
    training: npt.NDArray[np.uint16]
    held_out: npt.NDArray[np.uint16]


def prepare(work: Path, modules: list[Module]) -> Corpus:
    """Train the tokenizer on the training modules and tokenise both halves, or load them."""
    path = work / "tokens.npz"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        training, held_out = split(modules)
        tokenizer = train_tokenizer(m.text for m in training)
        save_tokenizer(tokenizer, work / "tokenizer", CONTEXT)
        np.savez(
            path, training=tokenize(training, tokenizer), held_out=tokenize(held_out, tokenizer)
        )
        (work / "modules.json").write_text(
            json.dumps(
                {"training": [m.name for m in training], "held_out": [m.name for m in held_out]}
            ),
            "utf-8",
        )
    tokens = np.load(path)
    tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    return Corpus(tokenizer, tokens["training"], tokens["held_out"])


def cross_entropy(model: Any, windows: Tensor) -> Tensor:
    """Return the mean loss in nat per token of windows [batch, length + 1]."""
    logits = logits_of(model, windows[:, :-1])
    return functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


def held_out_loss(model: Any, windows: Tensor, device: torch.device) -> float:
    """Return the loss over held-out windows, four at a time."""
    model.eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        losses = [float(cross_entropy(model, part.to(device))) for part in torch.split(windows, 4)]
    model.train()
    return sum(losses) / len(losses)


def compiled(function: Callable[..., Tensor], enabled: bool) -> Callable[..., Tensor]:
    """Compile a loss where asked to: a quarter faster on the CPU after half a minute."""
    return torch.compile(function, dynamic=False) if enabled else function


def train_target(
    corpus: Corpus, *, work: Path, plan: Plan, batch: int, seed: int, fast: bool
) -> None:
    """Train the target: windows of half the context first, of the whole in the decay."""
    device = pick_device()
    model = build(TARGET, seed=seed).to(device)  # type: ignore[arg-type]
    fit = Fit(model=model, plan=plan, checkpoint=work / "target.pt", name="target")
    short, long = CONTEXT // 2, CONTEXT
    batches = {
        length: Batches(tokens=corpus.training, length=length, batch=batch // length, seed=seed)
        for length in (short, long)
    }
    held_out = {
        length: held_out_windows(corpus.held_out, length=length, count=48 * long // length)
        for length in (short, long)
    }
    step_loss = compiled(cross_entropy, fast)

    def loss(step: int, decay: float) -> Tensor:
        ids = batches[long if decay > 0 else short].at(step).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            return step_loss(model, ids)

    def check() -> float:
        windows = held_out[long if fit.decay_progress() > 0 else short]  # as long as it has seen
        return held_out_loss(model, windows, device)

    fit.run(loss, check, lambda: save(model, corpus.tokenizer, work / "target"))


def held_out_text(
    target: LlamaForCausalLM, tokenizer: Tokenizer, prompts: list[Prompt], path: Path, *, seed: int
) -> Tensor:
    """Let the target continue held-out prompts: ids [rows, length], to check the drafter on."""
    if not path.exists():
        ids = [tokenizer.encode(prompt.text).ids for prompt in choose(prompts, HELD_OUT_ROWS)]
        text = follow(target, ids, temperature=1.0, length=HELD_OUT_LENGTH, seed=seed + 1)
        np.save(path, text.cpu().numpy())
    return torch.from_numpy(np.load(path))


def write_pair(
    corpus: Corpus,
    prompts: list[Prompt],
    target: LlamaForCausalLM,
    drafter: LlamaForCausalLM,
    out: Path,
) -> None:
    """Write both folders and the demo's prompts."""
    save(target, corpus.tokenizer, out / "target")
    save(drafter, corpus.tokenizer, out / "drafter")
    chosen = [prompt.as_dict() for prompt in choose(prompts, 32)]
    (out / "prompts.json").write_text(
        json.dumps(chosen, indent=1, ensure_ascii=False) + "\n", "utf-8"
    )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("work/models"), help="folder for checkpoints and samples"
    )
    parser.add_argument("--out", type=Path, default=PAIR, help="folder of the finished pair")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4096, help="tokens a step")
    parser.add_argument("--target-steps", type=int, default=3000)
    parser.add_argument(
        "--target-minutes", type=float, default=50.0, help="training time, resumed runs included"
    )
    parser.add_argument("--target-rate", type=float, default=4e-3, help="learning rate")
    parser.add_argument(
        "--samples", type=int, default=4096, help="texts of 384 tokens for the target to write"
    )
    parser.add_argument("--drafter-steps", type=int, default=5000)
    parser.add_argument("--drafter-minutes", type=float, default=35.0)
    parser.add_argument("--drafter-rate", type=float, default=6e-3)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument(
        "--no-compile", action="store_true", help="do not compile: no C++ compiler, or tiny runs"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None, modules: list[Module] | None = None) -> None:
    """Run the stages that are not done yet, on the library unless other modules are given."""
    options = _options(arguments)
    work, seed, fast = options.work, options.seed, not options.no_compile
    use_memory_well()
    modules = read_modules() if modules is None else modules
    corpus = prepare(work, modules)
    print(
        f"corpus: {len(corpus.training):,} training, {len(corpus.held_out):,} held-out tokens",
        flush=True,
    )

    plan = Plan(
        steps=options.target_steps,
        minutes=options.target_minutes,
        learning_rate=options.target_rate,
        optimizer=options.optimizer,
    )
    train_target(corpus, work=work, plan=plan, batch=options.batch, seed=seed, fast=fast)
    target = load(work / "target", pick_device())

    samples = sample_text(
        target,
        corpus.training,
        path=work / "samples.npy",
        count=options.samples,
        rows=SAMPLE_ROWS,
        length=SAMPLE_LENGTH,
        seed=seed,
        fast=fast,
    )
    prompts = find_prompts(split(modules)[1], corpus.tokenizer)
    held_out = held_out_text(
        target, corpus.tokenizer, prompts, work / "held_out_text.npy", seed=seed
    )

    drafter = build(DRAFTER, seed=seed + 1).to(pick_device())  # type: ignore[arg-type]
    train_drafter(
        load(work / "target", pick_device()),
        drafter,
        mix=Mix(
            corpus=corpus.training,
            samples=samples,
            tokens=options.batch,
            length=CONTEXT // 2,
            seed=seed,
        ),
        held_out=held_out,
        plan=replace(
            plan,
            steps=options.drafter_steps,
            minutes=options.drafter_minutes,
            learning_rate=options.drafter_rate,
            decay_share=0.45,
        ),
        checkpoint=work / "drafter.pt",
        on_save=lambda: save(drafter, corpus.tokenizer, work / "drafter"),
        fast=fast,
    )
    write_pair(corpus, prompts, target, drafter, options.out)
    print(f"the pair is in {options.out}; measure it with python -m models.evaluate", flush=True)


if __name__ == "__main__":
    main()
