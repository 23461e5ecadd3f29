"""The shipped pair, and a drafter of random weights that speaks the same vocabulary."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from models.registry import PAIR

# Another pair's folder, with the same layout, in place of the shipped one.
PAIR_FOLDER = Path(os.environ.get("MULTISPIN_TEST_PAIR", PAIR))


@pytest.fixture(scope="session")
def target() -> Path:
    return PAIR_FOLDER / "target"


@pytest.fixture(scope="session")
def drafter() -> Path:
    return PAIR_FOLDER / "drafter"


@pytest.fixture(scope="session")
def random_drafter(drafter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drafter that knows nothing: next to none of its tokens are accepted."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from sdk.export.exporter import export_model

    source = tmp_path_factory.mktemp("random-source")
    for file in drafter.glob("*.json"):
        if file.name != "manifest.json":
            shutil.copy(file, source)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source)).save_pretrained(source)
    folder = tmp_path_factory.mktemp("random") / "drafter"
    export_model(source, folder)
    return folder
