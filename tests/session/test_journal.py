"""The journal: what was delivered survives a cut at any byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdk.errors import ConfigError
from sdk.journal import Journal
from sdk.model.sampling import SamplingParameters
from sdk.protocol import Mode, Open


def opening(session: int = 5, prompt: tuple[int, ...] = (1, 2, 3)) -> Open:
    return Open(
        session=session,
        prompt=prompt,
        sampling=SamplingParameters(temperature=1.0, seed=4),
        mode=Mode.COUPLED,
        max_tokens=20,
        tokenizer="abc",
        vocabulary_size=97,
    )


def test_a_fresh_journal_keeps_the_request(tmp_path: Path) -> None:
    with Journal(path=tmp_path / "j", opening=opening()) as journal:
        assert journal.opening == opening()
    assert (tmp_path / "j").stat().st_mode & 0o777 == 0o600


def test_a_resumed_journal_gives_back_session_and_tokens(tmp_path: Path) -> None:
    with Journal(path=tmp_path / "j", opening=opening(session=5)) as journal:
        journal.deliver((10, 11))
        journal.deliver((12,))
    with Journal(path=tmp_path / "j", opening=opening(session=6)) as journal:
        assert journal.opening.session == 5
        assert journal.opening.committed == (10, 11, 12)


def test_a_cut_at_any_byte_loses_at_most_the_unfinished_line(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path=path, opening=opening()) as journal:
        for token in (10, 11, 12):
            journal.deliver((token,))
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        with Journal(path=path, opening=opening()) as journal:
            committed = journal.opening.committed
            assert committed == (10, 11, 12)[: len(committed)]
            assert len(committed) == max(whole[:length].count(b"\n") - 1, 0)
            journal.deliver((90,))
        with Journal(path=path, opening=opening()) as journal:
            assert journal.opening.committed == (*committed, 90)


def test_another_requests_journal_is_refused(tmp_path: Path) -> None:
    with Journal(path=tmp_path / "j", opening=opening()):
        pass
    with pytest.raises(ConfigError, match="another request"):
        Journal(path=tmp_path / "j", opening=opening(prompt=(1, 2)))
    (tmp_path / "text").write_text("not a journal\n")
    with pytest.raises(ConfigError, match="not a session journal"):
        Journal(path=tmp_path / "text", opening=opening())
