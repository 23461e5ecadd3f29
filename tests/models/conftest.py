"""Without the training extras, only what needs none of them is collected."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = []
if find_spec("torch") is None or find_spec("transformers") is None:
    collect_ignore.append("test_train.py")
