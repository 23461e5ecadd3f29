"""Training: a resumed run equals an uninterrupted one; the whole recipe on a tiny corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import distill, pair, train
from models.batches import Batches, held_out_windows
from models.corpus import Module
from models.evaluate import coupled_acceptance
from models.fit import Fit, Plan
from models.sample import Sampler

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
TOKENS = np.random.default_rng(0).integers(0, 64, 4000).astype(np.uint16)


def tiny(seed: int = 0) -> Any:
    return pair.build(SHAPE, seed=seed, vocabulary=64)


def fit_for(checkpoint: Path, stop_after: int | None = None, seed: int = 0) -> Fit:
    model = tiny(seed)
    batches = Batches(tokens=TOKENS, length=32, batch=2, seed=1)
    plan = Plan(steps=12, warmup=3, evaluate_every=4)
    fit = Fit(model=model, plan=plan, checkpoint=checkpoint, name="tiny")
    fit.run(
        lambda step, _decay: train.cross_entropy(model, batches.at(step)),
        lambda: 1.0 / (1 + fit.state.step),
        stop_after=stop_after,
    )
    return fit


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = fit_for(tmp_path / "whole.pt")
    assert fit_for(tmp_path / "cut.pt", stop_after=5).state.step == 5
    resumed = fit_for(tmp_path / "cut.pt", seed=9)
    assert resumed.state.step == whole.state.step == whole.state.end
    for (name, a), b in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_the_decay_begins_when_the_held_out_loss_stops_falling(tmp_path: Path) -> None:
    model = tiny()
    batches = Batches(tokens=TOKENS, length=32, batch=2, seed=1)
    plan = Plan(steps=10_000, warmup=3, evaluate_every=2, patience=2)
    fit = Fit(model=model, plan=plan, checkpoint=tmp_path / "x.pt", name="tiny")
    state = fit.run(lambda step, _: train.cross_entropy(model, batches.at(step)), lambda: 1.0)
    assert state.decay_from == 6
    assert state.step == state.end < 12


def test_every_window_comes_once_an_epoch() -> None:
    batches = Batches(tokens=TOKENS, length=32, batch=2, seed=1)
    steps = range(batches.steps_per_epoch)
    first = np.concatenate([batches.at(step)[:, :-1].numpy() for step in steps])
    assert len(np.unique(first, axis=0)) == len(first)
    again = Batches(tokens=TOKENS, length=32, batch=2, seed=1)
    assert torch.equal(again.at(7), batches.at(7))
    assert held_out_windows(TOKENS, length=100, count=5).shape == (5, 101)


def test_sampling_with_a_cache_equals_whole_passes() -> None:
    model = tiny().eval()
    sampler = Sampler(model=model, rows=3, length=24, dtype=torch.float32, fast=False)
    prompts = torch.from_numpy(TOKENS[:30].astype(np.int64)).view(3, 10)
    lengths = torch.tensor([10, 4, 7])
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):  # the second time over a used cache
        ids = sampler.continue_from(prompts, lengths, torch.zeros(3), generator)
        greedy = pair.logits_of(model, ids).argmax(-1)
        for row, start in enumerate(lengths.tolist()):
            assert torch.equal(ids[row, :start], prompts[row, :start])
            assert torch.equal(ids[row, start:], greedy[row, start - 1 : -1])


def test_coupled_acceptance_is_the_chance_that_both_pick_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    p = (torch.randn(4, 40, generator=generator) * 2).softmax(-1)
    q = (torch.randn(4, 40, generator=generator) + p.log()).softmax(-1)
    draws = 40_000
    noise = -torch.log(-torch.log(torch.rand(draws, 4, 40, generator=generator)))
    same = ((p.log() + noise).argmax(-1) == (q.log() + noise).argmax(-1)).double().mean(0)
    exact = coupled_acceptance(p, q)
    assert (same - exact).abs().max() < 5 * 0.5 / draws**0.5
    assert torch.allclose(coupled_acceptance(p, p), torch.ones(4).double())


def test_the_divergence_of_a_model_from_itself_is_zero() -> None:
    model = tiny().eval()
    ids = torch.from_numpy(TOKENS[:64].astype(np.int64)).view(2, 32)
    with torch.no_grad():
        wanted = pair.logits_of(model, ids)
        loss, variation = distill.divergence(model, ids, wanted, torch.tensor(0.5))
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert float(variation) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_the_recipe_makes_a_pair_from_a_tiny_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "TARGET", SHAPE)
    monkeypatch.setattr(train, "DRAFTER", SHAPE)
    body = "".join(
        f"def f{i}(x):\n    return x + {i}  # a comment to learn\n\n" for i in range(200)
    )
    modules = [Module("argparse", body * 4), Module("json", body)]
    arguments = [
        *("--work", str(tmp_path / "work"), "--out", str(tmp_path / "pair"), "--no-compile"),
        *("--target-steps", "4", "--drafter-steps", "4", "--samples", "1", "--batch", "1024"),
    ]
    for name, few in {
        "SAMPLE_ROWS": 4,
        "SAMPLE_LENGTH": 160,  # a prompt has up to 128
        "HELD_OUT_ROWS": 4,
        "HELD_OUT_LENGTH": 160,
    }.items():
        monkeypatch.setattr(train, name, few)
    train.main(arguments, modules)
    train.main(arguments, modules)  # everything is done: nothing is trained again
    for name in ("target", "drafter"):
        assert pair.load(tmp_path / "pair" / name).num_parameters() > 0
    prompts = json.loads((tmp_path / "pair" / "prompts.json").read_text())
    assert {prompt["module"] for prompt in prompts} == {"json"}  # the held-out one
    assert len(prompts) == 32
