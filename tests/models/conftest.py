"""Without the training extras, only what needs none of them is collected."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

collect_ignore = []
if find_spec("torch") is None or find_spec("transformers") is None:
    collect_ignore.append("test_train.py")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread: on a busy machine, tiny products wait for each other's threads."""
    if collect_ignore:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
