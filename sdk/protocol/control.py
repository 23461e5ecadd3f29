"""Control frames, as JSON: open, opened, close, reject (wire rules W-CONTROL-*).

They are rare, so they are readable. Whatever does not fit is a MalformedFrameError that names the
field.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from sdk.errors import MalformedFrameError
from sdk.model.sampling import SamplingParameters
from sdk.protocol.frames import VERSION, Mode
from sdk.protocol.ids import bits_per_id, pack_ids, packed_bytes, unpack_ids

__all__ = ["Close", "Open", "Opened", "Reject", "RejectCode", "decode_control", "encode_control"]

_MAX_STOP_IDS: Final = 16
_MAX_TOKENS: Final = 1 << 20
_MAX_HASH_CHARACTERS: Final = 128


class RejectCode(str, Enum):
    """Why the server refused a frame."""

    MALFORMED = "malformed"
    VERSION = "version"
    UNKNOWN_SESSION = "unknown_session"
    POSITION = "position"
    VOCABULARY = "vocabulary"
    TOKENIZER = "tokenizer"
    MODE = "mode"
    CONTEXT = "context"
    CAPACITY = "capacity"
    BUSY = "busy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Begin a session, or take it up again after either side restarted.

    Attributes:
        session: random 64-bit id.
        prompt: token ids; at least one.
        committed: token ids already delivered behind the prompt; empty in a fresh session.
        sampling: how the target's tokens are drawn.
        mode: GREEDY at temperature 0, else COUPLED or RATIO.
        max_tokens: tokens to generate at most, committed ones included.
        stop_ids: ids that end the sequence.
        tokenizer: the tokenizer's hash, hexadecimal; printable ASCII, at most 128 characters.
        vocabulary_size: of the drafter.
        boot: the device's boot counter.
    """

    session: int
    prompt: tuple[int, ...]
    committed: tuple[int, ...] = ()
    sampling: SamplingParameters
    mode: Mode
    max_tokens: int
    stop_ids: tuple[int, ...] = ()
    tokenizer: str
    vocabulary_size: int
    boot: int = 0

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("prompt must have at least one token")
        if not 1 <= self.max_tokens <= _MAX_TOKENS:
            raise ValueError(f"max_tokens must be in [1, {_MAX_TOKENS}], got {self.max_tokens}")
        if len(self.committed) > self.max_tokens or len(self.stop_ids) > _MAX_STOP_IDS:
            raise ValueError("more committed tokens or stop ids than allowed")
        if self.sampling.greedy != (self.mode is Mode.GREEDY):
            raise ValueError(f"mode {self.mode.name} does not fit the temperature")
        if max((*self.prompt, *self.committed, *self.stop_ids)) >= self.vocabulary_size:
            raise ValueError("a token id is beyond the vocabulary")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The server took the session and is prefilling it; the first verdict follows.

    Attributes:
        context_length: the most tokens, prompt included, that the session can hold.
        target: hash of the target's weights, hexadecimal; as `Open.tokenizer`.
    """

    session: int
    context_length: int
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """The device needs nothing more of this session."""

    session: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """The server refused a frame, or a session; `round` is 0 where no draft was refused."""

    session: int
    round: int = 0
    code: RejectCode
    reason: str


Control = Open | Opened | Close | Reject


def encode_control(frame: Control) -> bytes:
    """Return a control frame as compact JSON."""
    fields: dict[str, Any] = {"v": VERSION, "kind": type(frame).__name__.lower()}
    fields["session"] = f"{frame.session:016x}"
    if isinstance(frame, Open):
        bits = bits_per_id(frame.vocabulary_size)
        sampling = frame.sampling
        fields |= {
            "prompt": _pack(frame.prompt, bits),
            "prompt_tokens": len(frame.prompt),
            "committed": _pack(frame.committed, bits),
            "committed_tokens": len(frame.committed),
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "seed": f"{sampling.seed:016x}",
            "mode": int(frame.mode),
            "max_tokens": frame.max_tokens,
            "stop_ids": list(frame.stop_ids),
            "tokenizer": frame.tokenizer,
            "vocabulary_size": frame.vocabulary_size,
            "boot": frame.boot,
        }
    elif isinstance(frame, Opened):
        fields |= {"context_length": frame.context_length, "target": frame.target}
    elif isinstance(frame, Reject):
        fields |= {"round": frame.round, "code": frame.code.value, "reason": frame.reason}
    return json.dumps(fields, separators=(",", ":")).encode()


def decode_control(payload: bytes) -> Control:
    """Return the control frame in a payload.

    Raises:
        MalformedFrameError: naming the field that is missing or wrong.
    """
    try:
        fields = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise MalformedFrameError("control frame is not JSON") from error
    if not isinstance(fields, dict):
        raise MalformedFrameError("control frame is not a JSON object")
    if type(fields.get("v")) is not int or fields["v"] != VERSION:
        raise MalformedFrameError(f"control frame of version {fields.get('v')!r} is not known")
    decoder = _DECODERS.get(str(fields.get("kind")))
    if decoder is None:
        raise MalformedFrameError(f"control frame of kind {fields.get('kind')!r} is not known")
    try:
        return decoder(fields)
    except (ValueError, OverflowError) as error:
        raise MalformedFrameError(f"control frame: {error}") from error


def _decode_open(fields: dict[str, Any]) -> Open:
    vocabulary_size = _integer(fields, "vocabulary_size", 1, 1 << 24)
    bits = bits_per_id(vocabulary_size)
    stop_ids = fields.get("stop_ids")
    if not isinstance(stop_ids, list) or not all(type(token) is int for token in stop_ids):
        raise MalformedFrameError("control frame: stop_ids must be a list of integers")
    if any(token < 0 for token in stop_ids):
        raise MalformedFrameError("control frame: stop_ids must not be negative")
    return Open(
        session=_hexadecimal(fields, "session"),
        prompt=_unpack(fields, "prompt", bits),
        committed=_unpack(fields, "committed", bits),
        sampling=SamplingParameters(
            temperature=_number(fields, "temperature"),
            top_k=_integer(fields, "top_k", 0, 1 << 24),
            top_p=_number(fields, "top_p"),
            min_p=_number(fields, "min_p"),
            seed=_hexadecimal(fields, "seed"),
        ),
        mode=Mode(_integer(fields, "mode", 0, max(Mode))),
        max_tokens=_integer(fields, "max_tokens", 1, _MAX_TOKENS),
        stop_ids=tuple(stop_ids),
        tokenizer=_hash(fields, "tokenizer"),
        vocabulary_size=vocabulary_size,
        boot=_integer(fields, "boot", 0, 2**63),
    )


def _decode_opened(fields: dict[str, Any]) -> Opened:
    return Opened(
        session=_hexadecimal(fields, "session"),
        context_length=_integer(fields, "context_length", 1, 1 << 31),
        target=_hash(fields, "target"),
    )


def _decode_close(fields: dict[str, Any]) -> Close:
    return Close(session=_hexadecimal(fields, "session"))


def _decode_reject(fields: dict[str, Any]) -> Reject:
    return Reject(
        session=_hexadecimal(fields, "session"),
        round=_integer(fields, "round", 0, 2**32 - 1),
        code=RejectCode(_text(fields, "code")),
        reason=_text(fields, "reason"),
    )


_DECODERS: Final[dict[str, Callable[[dict[str, Any]], Control]]] = {
    "open": _decode_open,
    "opened": _decode_opened,
    "close": _decode_close,
    "reject": _decode_reject,
}


def _pack(ids: tuple[int, ...], bits: int) -> str:
    return base64.b64encode(pack_ids(ids, bits)).decode()


def _unpack(fields: dict[str, Any], name: str, bits: int) -> tuple[int, ...]:
    count = _integer(fields, f"{name}_tokens", 0, _MAX_TOKENS)
    text = _text(fields, name)
    try:
        packed = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise MalformedFrameError(f"control frame: {name} is not base64") from error
    if len(packed) != packed_bytes(count, bits):
        raise MalformedFrameError(f"control frame: {name} does not hold {count} ids")
    return unpack_ids(packed, count, bits)


def _integer(fields: dict[str, Any], name: str, low: int, high: int) -> int:
    value = fields.get(name)
    if type(value) is not int or not low <= value <= high:
        raise MalformedFrameError(f"control frame: {name} must be an integer in [{low}, {high}]")
    return value


def _number(fields: dict[str, Any], name: str) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MalformedFrameError(f"control frame: {name} must be a number")
    return float(value)


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise MalformedFrameError(f"control frame: {name} must be a string")
    return value


def _hash(fields: dict[str, Any], name: str) -> str:
    """Return a short word that is safe to print: it ends up in logs and error lines."""
    text = _text(fields, name)
    if not (text.isascii() and text.isprintable() and 1 <= len(text) <= _MAX_HASH_CHARACTERS):
        raise MalformedFrameError(
            f"control frame: {name} must be 1 to {_MAX_HASH_CHARACTERS} printable characters"
        )
    return text


def _hexadecimal(fields: dict[str, Any], name: str) -> int:
    text = _text(fields, name)
    if len(text) != 16 or any(digit not in "0123456789abcdef" for digit in text):
        raise MalformedFrameError(f"control frame: {name} must be 16 hexadecimal digits")
    return int(text, 16)
