"""Keys and values in 8 bits: every family, what the scales cover, what is said and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("optimum.exporters.onnx", reason="needs the extra 'export'")

import onnx
from export_families import FAMILIES, save_checkpoint

from sdk.cli import main
from sdk.errors import ExportError
from sdk.export import parity
from sdk.export.exporter import export_model
from sdk.export.kv import calibrated_scales, pair_lengths, scales_of, store_kv_int8
from sdk.model.decoder import Decoder
from sdk.model.manifest import Manifest


@pytest.fixture(autouse=True)
def short_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "TOKENS", 24)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_rounds_what_it_would_have_kept(family: str, tmp_path: Path) -> None:
    source = save_checkpoint(family, tmp_path / "source")
    export_model(source, tmp_path / "single", context_length=256)
    single = Decoder.load(tmp_path / "single", threads=1)
    text = np.random.default_rng(3).integers(0, single.vocabulary_size, 150)
    scales = calibrated_scales(single, [text[:64]])
    graph = onnx.load(tmp_path / "single" / "model.onnx")
    store_kv_int8(graph, scales)
    folder = tmp_path / "eight"
    folder.mkdir()
    onnx.save(graph, folder / "model.onnx")
    replace(single.manifest, kv_type="int8", files={}).write(folder)
    eight = Decoder.load(folder, threads=1)

    wide, narrow = single.new_cache(), eight.new_cache()
    expected, rows = single.run(wide, text), eight.run(narrow, text)
    for part in ("key", "value"):  # of the first layer, into which no rounding went
        scale = scales[0, part][0]
        levels = narrow.buffers[0, part].numpy()[0, :, :150]
        kept = np.clip(wide.buffers[0, part].numpy()[0, :, :150], -128 * scale, 127 * scale)
        assert (np.abs(levels * scale - kept) <= 0.501 * scale).all()
        assert np.mean(np.abs(levels) >= 127) < 0.02
    assert np.abs(rows - expected).mean() < 0.12 * np.abs(expected).mean()

    narrow.rollback(40)  # then catch up in pieces, past the windows of those that have one
    pieces = [text[40:41], text[41:47], text[47:]]
    again = np.concatenate([eight.run(narrow, piece) for piece in pieces])
    assert np.array_equal(again, rows[40:])


def test_scales_cover_a_key_wherever_it_is_rotated_to() -> None:
    random = np.random.default_rng(0)
    key = random.normal(size=(1, 2, 1, 16))
    reached = pair_lengths(key.astype(np.float32))
    for angle in np.linspace(0.0, 2 * np.pi, 50):
        first, second = np.split(key, 2, axis=-1)
        turned = np.concatenate(
            [
                first * np.cos(angle) - second * np.sin(angle),
                second * np.cos(angle) + first * np.sin(angle),
            ],
            axis=-1,
        )
        assert (np.abs(turned) <= reached * 1.0001).all()


def test_silent_channels_get_a_scale() -> None:
    reached = np.array([0.0, 127.0], np.float32)
    np.testing.assert_allclose(scales_of(reached), [1e-3, 1.0])
    np.testing.assert_allclose(scales_of(np.zeros(2, np.float32)), [1 / 127, 1 / 127])


def test_quality_and_scales_are_in_the_manifest_and_a_fall_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_checkpoint("smollm", tmp_path / "source")
    export_model(source, tmp_path / "target")
    options = ["--out", str(tmp_path / "out"), "--kv", "int8", "--weights", "int4-128"]
    target = ["--target", str(tmp_path / "target")]
    assert main(["model", "export", "--model", str(source), *options, *target]) == 0
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.kv_type == "int8"
    assert {part: len(scales) for part, scales in manifest.kv_scales.items()} == {
        "key": 2,
        "value": 2,
    }
    assert min(min(scales) for scales in manifest.kv_scales.values()) > 0
    assert manifest.quality["kv_calibration_tokens"] == 4 * 32
    assert manifest.quality["coupled_acceptance_after"] < 0.97
    printed = capsys.readouterr()
    assert "int4-128 weights and int8 keys and values lower this drafter" in printed.err
    assert "and so may --kv float" in printed.err
    assert "key scales" in printed.out


def test_impossible_types_are_refused(tmp_path: Path) -> None:
    for weights, kv, message in (
        ("fp32", "int3", "kv 'int3' is not one of float, int8"),
        ("fp16", "int8", "leave out --kv int8"),
    ):
        with pytest.raises(ExportError, match=message):
            export_model(tmp_path, tmp_path / "out", weights=weights, kv=kv)
