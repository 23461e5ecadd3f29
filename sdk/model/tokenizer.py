"""Text to token ids and back; tokens stream out as text as soon as they make whole characters."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer as _Tokenizer
from tokenizers.decoders import DecodeStream

from sdk.errors import ModelLoadError

__all__ = ["TextStream", "Tokenizer"]


class TextStream:
    """Turn one sequence of token ids into text, piece by piece."""

    def __init__(self, tokenizer: _Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def step(self, token_id: int) -> str:
        """Return the text that this token completes; "" while a character is still unfinished."""
        return self._stream.step(self._tokenizer, token_id) or ""


class Tokenizer:
    """The tokenizer in a model folder."""

    def __init__(self, folder: Path) -> None:
        """Load tokenizer.json and the stop ids of config.json.

        Raises:
            ModelLoadError: if either file is missing or broken.
        """
        try:
            self._tokenizer = _Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.stop_ids = _stop_ids(folder)
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelLoadError(
                f"load tokenizer: {folder} has no usable tokenizer.json and config.json ({error}); "
                "export the model again with 'multispin model export'"
            ) from error

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of `text`, without added special tokens."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: tuple[int, ...] | list[int]) -> str:
        """Return the text of a whole sequence, special tokens left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def stream(self) -> TextStream:
        """Return a fresh stream of text."""
        return TextStream(self._tokenizer)


def _stop_ids(folder: Path) -> tuple[int, ...]:
    """Return the end-of-sequence ids, from generation_config.json where there is one."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.exists():
            stop = json.loads(path.read_text()).get("eos_token_id")
            if stop is not None:
                return tuple(stop) if isinstance(stop, list) else (int(stop),)
    return ()
