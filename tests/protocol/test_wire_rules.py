"""docs/wire.md against the tests that cite it, and its examples and tables against the code."""

from __future__ import annotations

import re
from pathlib import Path

from sdk.model.noise import CoupledNoise, Stream, gumbel, uniform
from sdk.protocol import (
    MAX_DRAFT_TOKENS,
    MAX_VERDICT_TOKENS,
    End,
    Mode,
    RejectCode,
    decode_draft,
    decode_verdict,
    down,
    status,
    up,
)

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")
RULE = re.compile(r"W-[A-Z]+-[0-9]+")
STATED = set(re.findall(r"^\*\*(W-[A-Z]+-[0-9]+)\.\*\*", DOCUMENT, re.MULTILINE))

# Rules of behaviour, proven where device, server and transport are tested.
BEHAVIOUR = {"W-TOPIC-4", "W-TOPIC-5", "W-TOPIC-6", "W-STATUS-1", "W-SAMPLE-5"}


def cited_in(*folders: str) -> set[str]:
    texts = (
        path.read_text(encoding="utf-8")
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if path.name != Path(__file__).name
    )
    return {rule for text in texts for rule in RULE.findall(text)}


def test_no_one_cites_a_rule_that_is_not_stated() -> None:
    assert cited_in("sdk", "edge_server", "tests") - STATED == set()
    assert set(RULE.findall(DOCUMENT)) - STATED == set()


def test_every_rule_of_wire_and_maths_is_cited_by_a_test() -> None:
    expected = {rule for rule in STATED if not rule.startswith("W-SESSION")} - BEHAVIOUR
    assert expected - cited_in("tests/protocol", "tests/model") == set()


def example_frames() -> list[bytes]:
    return [bytes.fromhex(line) for line in re.findall(r"^(01[0-9a-f]{40,})$", DOCUMENT, re.M)]


def test_the_example_frames_are_real() -> None:
    """W-DRAFT-1, W-VERDICT-1: the documented bytes, read by the code."""
    draft, credit = (decode_draft(frame) for frame in example_frames()[:2])
    verdict, stream = (decode_verdict(frame) for frame in example_frames()[2:])
    assert (draft.round, draft.position, draft.token_ids) == (7, 1000, (1, 4095, 2748))
    assert (credit.round, credit.position, credit.credit, credit.retry) == (8, 1004, 32, True)
    assert (verdict.accepted, verdict.token_ids, verdict.grant_length) == (2, (99,), 5)
    assert (stream.position, stream.token_ids, stream.end) == (1003, (5, 6), End.STOP_TOKEN)
    assert stream.stream
    assert not verdict.stream


def rows(first_cell: str) -> list[list[str]]:
    """Return the rows of the table whose header begins with `first_cell`, and of its namesakes."""
    found: list[list[str]] = []
    inside = False
    for line in DOCUMENT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line[:1] == "|" else []
        inside = bool(cells) and (inside or cells[0] == first_cell)
        if inside and cells[0] != first_cell and not cells[0].startswith("--"):
            found.append(cells)
    return found


def test_the_byte_tables_have_no_gaps() -> None:
    """W-DRAFT-1, W-VERDICT-1: offsets add up to the header sizes of the code."""
    sizes, end = [], 0
    for offset, size, *_ in rows("offset"):
        if offset == "0" and end:
            sizes.append(end)
            end = 0
        assert int(offset) == end
        end += int(size)
    headers = [frame[2] for frame in example_frames()]
    assert [*sizes, end] == [headers[0], headers[2]]


def test_the_stated_limits_and_codes_are_those_of_the_code() -> None:
    """W-DRAFT-1, W-VERDICT-1, W-CONTROL-5."""
    assert f"ids: 0–{MAX_DRAFT_TOKENS}; credit: 1–{MAX_VERDICT_TOKENS}" in DOCUMENT
    assert {code.strip("`") for code, *_ in rows("code")} == {code.value for code in RejectCode}
    modes = ", ".join(f"{mode.value} {mode.name.lower()}" for mode in Mode)
    assert f"grant: mode: {modes}" in DOCUMENT
    ends = ", ".join(f"{end.value} {end.name.lower()}" for end in End)
    assert f"end: {ends}" in DOCUMENT


def test_the_stated_topics_are_those_of_the_code() -> None:
    """W-TOPIC-2."""
    stated = set(re.findall(r"sd/1/\{device\}/[a-z/]+", DOCUMENT))
    built = {up("d", leaf) for leaf in ("open", "draft", "report", "energy", "probe")}
    built |= {down("d", "verdict"), down("d", "control"), status("d")}
    assert stated == {topic.replace("/d/", "/{device}/") for topic in built}


def test_the_noise_examples_are_real() -> None:
    """W-NOISE-1, W-NOISE-2, W-NOISE-3, W-NOISE-4, W-NOISE-6."""
    powers = {"2⁶⁴−1": 2**64 - 1, "2³²−1": 2**32 - 1}
    examples = rows("seed")
    assert len(examples) == 3
    for seed_text, position_text, stream_text, bits_text, variate, number in examples:
        seed = powers.get(seed_text) or int(seed_text)
        position = powers.get(position_text) or int(position_text)
        stream = Stream(int(stream_text))
        bits = CoupledNoise(vocabulary_size=70_000, seed=seed, stream=stream).bits(position)
        assert " ".join(f"{bits[token]:08x}" for token in (0, 1, 2, 69_999)) == bits_text.strip("`")
        assert float(gumbel(bits[:1])[0]).hex() == variate.strip("`")
        assert uniform(seed, position, stream).hex() == number.strip("`")
