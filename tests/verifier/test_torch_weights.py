"""Weights in 8 bits: smaller, near to the model's own, and verified as exactly as others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torchao", reason="needs the extra 'torchao'")

import torch
from torch_checkpoints import VOCABULARY, plain_logits, save_checkpoint

from edge_server.verifier.interface import VerifyOutcome, VerifyRequest
from edge_server.verifier.torch_backend import TorchVerifier
from edge_server.verifier.torch_model import TorchModel
from edge_server.verifier.torch_segments import Span
from sdk.errors import ConfigError
from sdk.model.sampling import SamplingParameters

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
IDS = np.random.default_rng(20).integers(0, VOCABULARY, 24).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("weights", "most_off"), [("int8", 0.03), ("fp8", 0.2)])
def test_they_are_near_and_small(folder: Path, device: str, weights: str, most_off: float) -> None:
    model = TorchModel.load(folder, device=device, dtype="fp32", weights=weights, kv_memory_mib=4)
    logits = model.run([Span(0, 0, len(IDS))], IDS, range(len(IDS)))
    exact = plain_logits(folder, IDS)
    off = np.abs(logits - exact).mean() / np.abs(exact).mean()
    assert 0.0 < off < most_off
    inner = model.decoder.model.layers[0].mlp.up_proj.weight
    assert inner.qdata.element_size() == 1
    assert type(model.decoder.lm_head.weight) is torch.nn.Parameter  # left as it is


def test_what_is_verified_is_the_quantised_model_s_own_text(folder: Path) -> None:
    """Token by token without drafts, then with a right draft, beside another session."""
    verifier = TorchVerifier.load(folder, device="cpu", weights="int8", kv_memory_mib=4)
    greedy = SamplingParameters()
    slot = verifier.open(parameters=greedy, max_tokens=40)
    text = list(IDS)
    pending = tuple(text)
    for _ in range(4):
        (outcome,) = verifier.verify([VerifyRequest(slot=slot, pending=pending)])
        text.append(outcome.token)
        pending = (outcome.token,)
    requests = [
        VerifyRequest(
            slot=verifier.open(parameters=greedy, max_tokens=40),
            pending=tuple(IDS),
            draft=tuple(text[len(IDS) : -1]),
        ),
        VerifyRequest(
            slot=verifier.open(parameters=greedy, max_tokens=40), pending=tuple(reversed(IDS))
        ),
    ]
    assert verifier.verify(requests)[0] == VerifyOutcome(accepted=3, token=text[-1])


def test_other_weights_are_refused_by_name(folder: Path) -> None:
    with pytest.raises(ConfigError, match="weights 'int3'"):
        TorchModel.load(folder, device="cpu", weights="int3", kv_memory_mib=4)
