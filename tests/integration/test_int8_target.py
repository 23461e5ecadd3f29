"""A target in 8 bits, exported and served as the documents say: what arrives is its own text."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("optimum.exporters.onnx", reason="needs the extra 'export'")

from edge_server.broker import BrokerProcess
from edge_server.processes import DeviceRequest, start_device, start_server
from edge_server.reference import decode_alone
from sdk.export.exporter import export_model
from sdk.model.decoder import Decoder
from sdk.model.sampling import SamplingParameters
from sdk.model.tokenizer import Tokenizer

PROMPTS = ("import os\n\n\ndef main(argv):\n    ", "class Simple(")


def test_an_int8_target_just_runs(mosquitto: BrokerProcess, drafter: Path, tmp_path: Path) -> None:
    """Two boards at once, so that passes are shared; the small model stands in for a large one."""
    target = tmp_path / "target"
    export_model(drafter, target, weights="int8")
    with ExitStack() as stack:
        start_server(stack, model=target, broker=mosquitto.config, options=("--threads", "1"))
        requests = [
            DeviceRequest(
                id=f"int8-{seed}", prompt=prompt, max_tokens=64, temperature=1.0, seed=seed
            )
            for seed, prompt in enumerate(PROMPTS)
        ]
        devices = [
            start_device(stack, request, model=drafter, broker=mosquitto.config)
            for request in requests
        ]
        for device in devices:
            assert device.done.wait(60)
            device.check()
    tokenizer = Tokenizer(target)
    decoder = Decoder.load(target, threads=1, batch_invariant=True)
    for request, device in zip(requests, devices, strict=True):
        assert device.summary["accepted"] > 0
        assert device.token_ids == list(
            decode_alone(
                decoder,
                tokenizer.encode(request.prompt),
                parameters=SamplingParameters(temperature=1.0, seed=request.seed),
                max_tokens=request.max_tokens,
                stop_ids=tokenizer.stop_ids,
            )
        )
