"""The corpus and the tokenizer: stable, disjoint, lossless."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.corpus import is_held_out, looks_like_code, read_modules, split, tokenize
from models.prompts import LONGEST, SHORTEST, choose, find_prompts
from models.tokenizer import END, train_tokenizer

CODE = "def add(first, second):\n    '''Return the sum of both.'''\n    return first + second\n\n\n"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "encodings").mkdir()
    (tmp_path / "package").mkdir()
    (tmp_path / "encodings" / "table.py").write_text(CODE * 8)
    (tmp_path / "package" / "__init__.py").write_text(CODE * 8)
    (tmp_path / "package" / "module.py").write_text(CODE * 9)
    (tmp_path / "tiny.py").write_text("x = 1\n")
    (tmp_path / "table.py").write_text("TABLE = [" + "0x1234, 5678,\n" * 60 + "]\n")
    (tmp_path / "latin.py").write_bytes(CODE.encode() * 8 + b"# \xe9\n")
    return tmp_path


def test_tables_and_broken_files_are_left_out(library: Path) -> None:
    assert [module.name for module in read_modules(library)] == ["package", "package.module"]


def test_data_written_as_code_is_told_from_code() -> None:
    assert looks_like_code(CODE * 4)
    assert not looks_like_code(CODE * 4 + '"' + r"\xff" * 400 + '"')
    assert not looks_like_code(CODE * 4 + "#" * 500)


def test_the_split_is_pinned() -> None:
    """A changed split would let a shipped model be measured on what it has seen."""
    assert [is_held_out(name) for name in ("json", "logging", "queue", "operator")] == [True] * 4
    assert [is_held_out(name) for name in ("argparse", "json.decoder", "os", "typing")] == [
        False
    ] * 4


def test_the_split_is_disjoint_complete_and_about_a_twentieth() -> None:
    modules = read_modules()
    training, held_out = split(modules)
    assert not {m.name for m in training} & {m.name for m in held_out}
    assert len(training) + len(held_out) == len(modules)
    assert 0.02 < len(held_out) / len(modules) < 0.08


def test_any_text_round_trips() -> None:
    tokenizer = train_tokenizer([CODE * 3], vocabulary=300)
    for text in (CODE, "naïve — λ\t\r\n\x00 🐍", "    \n\n  x"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_every_module_is_preceded_by_the_end_of_text(library: Path) -> None:
    tokenizer = train_tokenizer([CODE * 3], vocabulary=300)
    modules = read_modules(library)
    ids = tokenize(modules, tokenizer).tolist()
    end = tokenizer.token_to_id(END)
    assert (end, ids[0], ids.count(end)) == (0, 0, len(modules))
    text = "".join(m.text for m in modules)
    assert tokenizer.decode([i for i in ids if i != end]) == text


def test_prompts_end_at_a_line_and_keep_their_limits(library: Path) -> None:
    tokenizer = train_tokenizer([CODE * 3], vocabulary=300)
    modules = read_modules(library)
    prompts = find_prompts(modules, tokenizer)
    assert prompts
    for prompt in prompts:
        assert prompt.text.endswith("\n")
        assert SHORTEST <= len(tokenizer.encode(prompt.text).ids) <= LONGEST
    assert {p.module for p in choose(prompts, 2)} == {"package", "package.module"}
