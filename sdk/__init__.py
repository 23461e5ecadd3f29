"""Multi-SPIN SDK: a board drafts, the edge server verifies, losslessly.

`Device` is the way in; everything else is a part of it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# From 1.29 on, ONNX Runtime's Linux wheels report models and machines to their maker unless told
# otherwise before they are imported. A board of ours reports to its owner only.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from sdk.device import Device, Token
    from sdk.session_options import Offline, SessionOptions

__all__ = ["Device", "Offline", "SessionOptions", "Token"]

_HOMES = {
    "Device": "sdk.device",
    "Offline": "sdk.session_options",
    "SessionOptions": "sdk.session_options",
    "Token": "sdk.device",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import sdk.protocol` stays free of ONNX Runtime and MQTT."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sdk' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
