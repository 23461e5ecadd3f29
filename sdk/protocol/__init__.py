"""The wire between board and edge server: topics, frames, and what makes them valid.

numpy and the standard library only; no I/O. `docs/wire.md` is normative.
"""

from __future__ import annotations

from sdk.protocol.control import (
    Close,
    Open,
    Opened,
    Reject,
    RejectCode,
    decode_control,
    encode_control,
)
from sdk.protocol.frames import (
    MAX_DRAFT_TOKENS,
    MAX_VERDICT_TOKENS,
    VERSION,
    Draft,
    End,
    Mode,
    Verdict,
    decode_draft,
    decode_verdict,
    encode_draft,
    encode_verdict,
)
from sdk.protocol.ids import bits_per_id, pack_ids, unpack_ids
from sdk.protocol.topics import (
    UP_FILTER,
    check_device_id,
    down,
    parse_up,
    status,
    up,
)

__all__ = [
    "MAX_DRAFT_TOKENS",
    "MAX_VERDICT_TOKENS",
    "UP_FILTER",
    "VERSION",
    "Close",
    "Draft",
    "End",
    "Mode",
    "Open",
    "Opened",
    "Reject",
    "RejectCode",
    "Verdict",
    "bits_per_id",
    "check_device_id",
    "decode_control",
    "decode_draft",
    "decode_verdict",
    "down",
    "encode_control",
    "encode_draft",
    "encode_verdict",
    "pack_ids",
    "parse_up",
    "status",
    "unpack_ids",
    "up",
]
