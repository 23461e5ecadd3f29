"""The shipped pair: what is in the package loads, is half precision, and stays within its size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.registry import PAIR, pair_dir, prompts

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

pytestmark = pytest.mark.skipif(not (PAIR / "target").is_dir(), reason="the pair is not made yet")


def test_both_folders_are_whole_and_small_enough() -> None:
    for name in ("target", "drafter"):
        for file in FILES:
            assert (pair_dir(name) / file).is_file(), f"{name}/{file}"
    assert sum(path.stat().st_size for path in PAIR.rglob("*") if path.is_file()) <= 45_000_000


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="drafter"):
        pair_dir("judge")


def test_both_share_one_tokenizer() -> None:
    texts = [(pair_dir(name) / "tokenizer.json").read_bytes() for name in ("target", "drafter")]
    assert texts[0] == texts[1]


def test_the_weights_are_half_precision_and_the_embedding_is_stored_once() -> None:
    for name, layers in (("target", 5), ("drafter", 2)):
        header = _safetensors_header(pair_dir(name) / "model.safetensors")
        assert {entry["dtype"] for key, entry in header.items() if key != "__metadata__"} == {"F16"}
        assert "lm_head.weight" not in header
        assert (
            json.loads((pair_dir(name) / "config.json").read_text())["num_hidden_layers"] == layers
        )


def test_the_demo_prompts_are_held_out_and_short() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(pair_dir("target") / "tokenizer.json"))
    from models.corpus import is_held_out

    assert len(prompts()) == 32
    for prompt in prompts():
        assert is_held_out(prompt["module"])
        assert 40 <= len(tokenizer.encode(prompt["text"]).ids) <= 120
        assert prompt["text"].endswith("\n")


def test_the_drafter_follows_the_target_on_a_demo_prompt() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer

    from models.evaluate import compare, follow
    from models.pair import load

    tokenizer = Tokenizer.from_file(str(pair_dir("target") / "tokenizer.json"))
    encoded = [tokenizer.encode(prompt["text"]).ids for prompt in prompts()[:2]]
    target, drafter = load(pair_dir("target")), load(pair_dir("drafter"))
    ids = follow(target, encoded, temperature=0.0, length=160, seed=1)
    report = compare(target, drafter, ids, [len(e) for e in encoded], 0.0)
    assert report["greedy_agreement"] > 0.4


def _safetensors_header(path: Path) -> dict[str, dict[str, str]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, dict[str, str]] = json.loads(file.read(length))
    return header
