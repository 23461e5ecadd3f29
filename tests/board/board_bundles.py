"""Bundles for the stand-in board: one without packages, and ones that start badly on purpose."""

from __future__ import annotations

from pathlib import Path

import firmware_tools
from firmware_tools.bundle.build import BundleRecipe, build
from firmware_tools.bundle.manifest import GoldenDraft, release_of
from firmware_tools.bundle.signed import sign
from firmware_tools.keys import KeyStore
from firmware_tools.probe import draft_greedily

__all__ = ["PYTHON", "TEMPLATE", "bare_bundle", "faulty_bundle"]

PYTHON = "3.11"
PROMPT = (1, 2, 3, 5, 8, 13)
TEMPLATE = Path(str(firmware_tools.__file__)).parent / "templates" / "multispin.toml"

# Imported by Python's own site module at every start of the slot's command.
FAULTS = {
    "crashes": "import os, sys\nif 'serve' in sys.orig_argv:\n    os._exit(3)\n",
    "hangs": "import sys, time\nif 'serve' in sys.orig_argv:\n    time.sleep(100000)\n",
}


def bare_bundle(folder: Path, keys: KeyStore) -> Path:
    """Return a signed bundle without packages: the smallest that can be installed."""
    model = folder / "bare-model"
    model.mkdir()
    (model / "model.onnx").write_bytes(b"none")
    (model / "manifest.json").write_text("{}")
    (folder / "none").mkdir()
    recipe = BundleRecipe(
        board="generic-arm64",
        python=PYTHON,
        version="1.0.0",
        release=1,
        model=model,
        config=TEMPLATE,
        packages=folder / "none",
        golden=GoldenDraft(prompt=(1,), tokens=(2,), min_equal=1),
    )
    path = folder / "bare.bundle"
    build(recipe, path)
    sign(path, keys.signing_key("bundle"))
    return path


def faulty_bundle(
    folder: Path,
    keys: KeyStore,
    *,
    version: str,
    model: Path,
    packages: Path,
    fault: str,
) -> Path:
    """Return a signed bundle with these packages; `fault` is one of FAULTS or "lies"."""
    tokens = draft_greedily(model, PROMPT, 8)
    if fault == "lies":
        tokens = tuple(token ^ 1 for token in tokens)
    site = packages / "sitecustomize.py"
    site.write_text(FAULTS.get(fault, ""))
    recipe = BundleRecipe(
        board="pi5",
        python=PYTHON,
        version=version,
        release=release_of(version),
        model=model,
        config=TEMPLATE,
        packages=packages,
        golden=GoldenDraft(prompt=PROMPT, tokens=tokens, min_equal=2),
    )
    path = folder / f"{version}.bundle"
    build(recipe, path)
    sign(path, keys.signing_key("bundle"))
    return path
