"""The benchmark of large targets runs on any machine, so that it is sound when a GPU is at hand."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("torchao", reason="needs the extra 'torchao'")

from benchmarks import verify_large


@pytest.mark.parametrize("weights", ["stored", "int8"])
def test_it_prints_passes_floors_and_the_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], weights: str
) -> None:
    words = ["--shapes", "tiny", "--weights", weights, "--sessions", "1", "3", "--context", "24"]
    monkeypatch.setattr(sys, "argv", ["verify_large", *words, "--runs", "2", "--device", "cpu"])
    monkeypatch.setattr(verify_large, "COPIED_BYTES", 1 << 20)
    verify_large.main()
    line = json.loads(capsys.readouterr().out)
    found = line["models"]["tiny"]
    assert set(found["passes"]) == {"1x4", "1x8", "3x4", "3x8"}
    assert all(one["floor_ms"] > 0.0 for one in found["passes"].values())
    assert set(found["verify"]) == {"fixed_s", "per_request_s", "per_row_s"}
    halves = {"stored": 2, "int8": 1}  # bytes a weight of the layers
    layers = 2 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512)
    head = 2 * 4096 * 256
    assert 1e9 * found["weight_gb"] == pytest.approx(halves[weights] * layers + head, rel=0.02)
