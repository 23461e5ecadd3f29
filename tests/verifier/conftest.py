"""Where there is no GPU, Triton's kernels run in its interpreter; it is chosen when they load."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
