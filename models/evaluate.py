"""Measure the pair on held-out modules, weights as shipped: `python -m models.evaluate`.

Acceptance is measured where it counts, on text that the target itself continues: prompts from
held-out modules, the continuation sampled from the target at the temperature in question, then
both models' distributions compared at every position of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from models.batches import held_out_windows
from models.corpus import is_held_out, read_modules, tokenize
from models.pair import CONTEXT, load, logits_of
from models.prompts import choose, find_prompts
from models.registry import PAIR
from models.sample import Sampler

__all__ = ["coupled_acceptance", "evaluate", "follow", "main"]

LENGTH = 320


def coupled_acceptance(p: Tensor, q: Tensor) -> Tensor:
    """Return the probability that argmax(log p + G) = argmax(log q + G) for one Gumbel noise G.

    p, q [rows, vocabulary] are the target's and the drafter's probabilities. Both pick i with
    probability 1 / sum_j max(p_j / p_i, q_j / q_i), the minimum of exponentials with the rates of
    both races. Sorted by p_j / q_j, that maximum is p's up to i and q's after it, so one pass of
    cumulative sums gives the sum for every i.
    """
    p, q = p.double().clamp_min(1e-300), q.double().clamp_min(1e-300)
    order = (p / q).argsort(-1, descending=True)
    p, q = p.gather(-1, order), q.gather(-1, order)
    p_before = p.cumsum(-1)  # sum of p_j over p_j / q_j >= p_i / q_i
    q_after = q.flip(-1).cumsum(-1).flip(-1) - q
    return (1 / (p_before / p + q_after / q)).sum(-1)


def follow(
    target: LlamaForCausalLM,
    prompts: list[list[int]],
    *,
    temperature: float,
    length: int,
    seed: int,
) -> Tensor:
    """Let the target continue every prompt; returns ids [prompts, length]."""
    width = max(map(len, prompts))
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in prompts], device=target.device)
    lengths = torch.tensor([len(ids) for ids in prompts], device=target.device)
    sampler = Sampler(
        model=target, rows=len(prompts), length=length, dtype=torch.float32, fast=False
    )
    generator = torch.Generator(target.device).manual_seed(seed)
    return sampler.continue_from(
        padded, lengths, torch.full((len(prompts),), temperature, device=target.device), generator
    )


@torch.no_grad()
def compare(
    target: LlamaForCausalLM,
    drafter: LlamaForCausalLM,
    ids: Tensor,
    lengths: list[int],
    temperature: float,
) -> dict[str, float]:
    """Compare both models after every prefix of the continued text; errors are over prompts."""
    rows: list[tuple[float, float, float]] = []
    for row, start in zip(ids, lengths, strict=True):
        t, d = (logits_of(model, row[None])[0, start - 1 : -1] for model in (target, drafter))
        agree = (t.argmax(-1) == d.argmax(-1)).double().mean()
        if temperature == 0:
            rows.append((float(agree), float(agree), float(agree)))
            continue
        p, q = ((logits / temperature).double().softmax(-1) for logits in (t, d))
        bound = 1 - (p - q).abs().sum(-1).mean() / 2
        rows.append((float(agree), float(coupled_acceptance(p, q).mean()), float(bound)))
    mean, error = np.mean(rows, axis=0), np.std(rows, axis=0) / np.sqrt(len(rows))
    return {
        "temperature": temperature,
        "greedy_agreement": float(mean[0]),
        "coupled_acceptance": float(mean[1]),
        "coupled_error": float(error[1]),
        "acceptance_bound": float(mean[2]),
        "positions": float(sum(ids.shape[1] - start for start in lengths)),
    }


@torch.no_grad()
def loss(model: LlamaForCausalLM, windows: Tensor) -> float:
    """Return the loss in nat per token over windows [count, length + 1]."""
    losses = [
        float(
            functional.cross_entropy(
                logits_of(model, part[:, :-1]).flatten(0, 1), part[:, 1:].flatten()
            )
        )
        for part in torch.split(windows.to(model.device), 1)
    ]
    return sum(losses) / len(losses)


def evaluate(
    pair: Path, *, prompts: int, temperatures: list[float], seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure the pair in `pair` and return the report; `say` is told what is being done."""
    target, drafter = load(pair / "target"), load(pair / "drafter")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(pair / "target" / "tokenizer.json"))
    modules = [module for module in read_modules() if is_held_out(module.name)]
    say(f"loss on {len(modules)} held-out modules")
    windows = held_out_windows(tokenize(modules, tokenizer), length=CONTEXT, count=10**9)
    report: dict[str, Any] = {
        "held_out_tokens": windows.shape[0] * CONTEXT,
        "target_loss": loss(target, windows),
        "drafter_loss": loss(drafter, windows),
        "target_parameters": target.num_parameters(),
        "drafter_parameters": drafter.num_parameters(),
        "prompts": prompts,
        "on_target_text": [],
    }
    texts = [p.text for p in choose(find_prompts(modules, tokenizer), prompts)]
    encoded = [tokenizer.encode(text).ids for text in texts]
    for temperature in temperatures:
        say(f"{len(encoded)} prompts continued by the target at temperature {temperature}")
        ids = follow(target, encoded, temperature=temperature, length=LENGTH, seed=seed)
        report["on_target_text"].append(
            compare(target, drafter, ids, [len(e) for e in encoded], temperature)
        )
    return report


def show(report: dict[str, Any]) -> str:
    """Lay the report out as the table in models/README.md."""
    target, drafter = report["target_loss"], report["drafter_loss"]
    lines = [
        f"held-out loss, nat per token, over {report['held_out_tokens']:,} tokens:",
        f"target {target:.3f} ({report['target_parameters']:,} parameters), "
        f"drafter {drafter:.3f} ({report['drafter_parameters']:,}), gap {drafter - target:.3f}",
        "",
        "| temperature | greedy agreement | coupled acceptance | bound 1 - TV | positions |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['temperature']:g} | {row['greedy_agreement']:.3f} "
        f"| {row['coupled_acceptance']:.3f} ± {row['coupled_error']:.3f} "
        f"| {row['acceptance_bound']:.3f} | {row['positions']:,.0f} |"
        for row in report["on_target_text"]
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Print the report on the shipped pair, or on another."""
    parser = argparse.ArgumentParser(prog="python -m models.evaluate", description=__doc__)
    parser.add_argument(
        "--pair", type=Path, default=PAIR, help="folder that holds target/ and drafter/"
    )
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7, 1.0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the report to this file as well")
    options = parser.parse_args(arguments)
    report = evaluate(
        options.pair,
        prompts=options.prompts,
        temperatures=options.temperatures,
        seed=options.seed,
        say=lambda text: print(text, flush=True),
    )
    print(show(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
