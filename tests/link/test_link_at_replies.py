"""Recorded answers of modems, and what must come of them when something is wrong with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.link.at_replies import parse_line, parse_reply
from sdk.link.interface import LinkKind
from sdk.link.signal_figures import CellSignal, spectral_efficiency

LTE, NR = LinkKind.LTE, LinkKind.NR

QENG = (
    '+QENG: "servingcell","NOCONN","LTE","FDD",310,260,1452808,315,5035,12,2,2,3AFD,'
    "-104,-11,-78,12,20"
)

# line, (kind, rsrp, rsrq, sinr, rssi, bandwidth)
RECORDED = [
    ("+CSQ: 20,99", (None, None, None, None, -73.0, None)),
    ("+CSQ: 0,0", (None, None, None, None, -113.0, None)),
    ("+CSQ: 31,7", (None, None, None, None, -51.0, None)),
    ("+CESQ: 99,99,255,255,20,80", (LTE, -61.0, -10.0, None, None, None)),
    ("+CESQ: 99,99,255,255,255,255,65,70,77", (NR, -87.0, -11.0, 15.0, None, None)),
    ("+CESQ:10,6,255,255,255,255", (None, None, None, None, -101.0, None)),
    ("+CESQ: 99,99,30,10,255,255", (None, None, None, None, -91.0, None)),
    ('+QCSQ: "LTE",-52,-81,195,-10', (LTE, -81.0, -10.0, 19.0, -52.0, None)),
    ('+QCSQ: "CAT-M1",-76,-108,55,-14', (LTE, -108.0, -14.0, -9.0, -76.0, None)),
    ('+QCSQ: "NR5G-SA",-80,20,-11', (NR, -80.0, -11.0, 20.0, None, None)),
    ('+QCSQ: "GSM",-70', (None, None, None, None, -70.0, None)),
    ('+QCSQ: "WCDMA",-75,-83,-8', (None, None, None, None, -75.0, None)),
    (
        QENG,
        (LTE, -104.0, -11.0, 12.0, -78.0, 5e6),
    ),
    (
        '+QENG: "servingcell","NOCONN","LTE","FDD",460,01,5F1EA15,12,1650,3,5,5,DE10,'
        "-100,-12,-68,11,0,-32768,27",
        (LTE, -100.0, -12.0, 11.0, -68.0, 20e6),
    ),
    (
        '+QENG: "LTE","FDD",460,01,5F1EA15,12,1650,3,5,5,DE10,-99,-12,-67,11,9,230,-',
        (LTE, -99.0, -12.0, 11.0, -67.0, 20e6),
    ),
    (
        '+QENG: "NR5G-NSA",460,01,747,-71,33,-11,627264,78,12,1',
        (NR, -71.0, -11.0, 33.0, None, 100e6),
    ),
    (
        '+QENG: "servingcell","NOCONN","NR5G-SA","TDD",460,01,19013B004,299,690E0F,633984,78,12,'
        "-107,-13,2,1,-",
        (NR, -107.0, -13.0, 2.0, None, 100e6),
    ),
    (
        "+CPSI: LTE,Online,460-00,0x230A,175499523,318,EUTRAN-BAND3,1650,5,5,-94,-850,-545,15",
        (LTE, -85.0, -9.4, 15.0, -54.5, 20e6),
    ),
]

WITHOUT_SIGNAL = [
    "",
    "+CSQ: 99,99",
    "+CESQ: 99,99,255,255,255,255",
    "+CESQ: 99,99,255,255,255,255,255,255,255",
    '+QCSQ: "NOSERVICE"',
    '+QENG: "servingcell","NOCONN"',
    '+QENG: "servingcell","SEARCH"',
    '+QENG: "NR5G-NSA",240,01,123,-95,20,-11,-,78,8,1',
    "+CPSI: NO SERVICE,Online",
    "+QIND: SMS DONE",
    # wrong arity, order, range or kind of field
    "+CSQ: 20",
    "+CSQ: 32,99",
    "+CSQ: 20,8",
    "+CSQ 20,99",
    "+CESQ: 99,99,255,255,35,80",
    "+CESQ: 99,99,255,255,20,98",
    "+CESQ: 99,99,255,255,20,80,255",
    '+QCSQ: "LTE",-52,-81,-10,195',
    '+QCSQ: "LTE",-52,-81,251,-10',
    QENG.replace("NOCONN", "ASLEEP"),
    QENG.removesuffix(",20"),
    QENG.replace("-104", "104"),
    QENG.replace("-11", "-1.1"),
    QENG.replace(",315,", ",9999,"),
    QENG.replace('"FDD"', "FDD"),
]


@pytest.mark.parametrize(("line", "expected"), RECORDED)
def test_recorded_lines(line: str, expected: tuple[object, ...]) -> None:
    signal = parse_line(line)
    assert signal is not None
    assert (
        signal.kind,
        signal.rsrp_dbm,
        signal.rsrq_db,
        signal.sinr_db,
        signal.rssi_dbm,
        signal.bw_hz,
    ) == expected


@pytest.mark.parametrize("line", WITHOUT_SIGNAL)
def test_lines_without_a_signal(line: str) -> None:
    assert parse_line(line) is None


def test_a_dash_leaves_out_one_figure() -> None:
    signal = parse_line(
        '+QENG: "LTE","FDD",460,01,5F1EA15,12,1650,3,5,5,DE10,-99,-,-67,-32768,9,230,-'
    )
    assert signal == CellSignal(kind=LTE, rsrp_dbm=-99.0, rssi_dbm=-67.0, bw_hz=20e6)


def test_negative_zero_is_zero() -> None:
    signal = parse_line('+QCSQ: "NR5G-SA",-80,-0,-11')
    assert signal is not None
    assert str(signal.sinr_db) == "0.0"


def reply(line: str) -> str:
    return f"\r\n{line}\r\n\r\nOK\r\n"


@pytest.mark.parametrize("line", [line for line, _ in RECORDED])
def test_a_whole_answer_with_echo_and_unsolicited_lines(line: str) -> None:
    expected = parse_line(line)
    text = f"AT+X\r\r\n+QIND: PB DONE\r\nRING\r\n{line}\r\n+CREG: 1\r\n\r\nOK\r\n"
    assert parse_reply(text, "AT+X") == [expected]


def test_dual_connectivity_gives_both_cells() -> None:
    lines = '+QENG: "servingcell","NOCONN"', RECORDED[14][0], RECORDED[15][0]
    signals = parse_reply(reply("\r\n".join(lines)), 'AT+QENG="servingcell"')
    assert [signal.kind for signal in signals] == [LTE, NR]


recorded_lines = st.sampled_from([line for line, _ in RECORDED])
UNSOLICITED = ("\r\n+CREG: 5\r\n", "\r\nRING\r\n", "\r\n+QIND: PB DONE\r\n")


@given(recorded_lines, st.data())
def test_a_truncated_answer_yields_nothing(line: str, data: st.DataObject) -> None:
    text = reply(line)
    assert parse_reply(text[: data.draw(st.integers(0, len(text) - 1))], "AT") == []


@given(recorded_lines, st.data())
def test_an_answer_without_its_start_yields_nothing_false(line: str, data: st.DataObject) -> None:
    text = reply(line)
    kept = parse_reply(text[data.draw(st.integers(0, len(text) - 1)) :], "AT")
    assert kept in ([], [parse_line(line)])


@given(recorded_lines, st.sampled_from(UNSOLICITED), st.data())
def test_a_line_torn_by_an_unsolicited_one_yields_nothing_false(
    line: str, unsolicited: str, data: st.DataObject
) -> None:
    at = data.draw(st.integers(1, len(line) - 1))
    torn = reply(line[:at] + unsolicited + line[at:])
    assert parse_reply(torn, "AT") == []


@given(recorded_lines, st.data())
def test_a_corrupted_character_yields_nothing(line: str, data: st.DataObject) -> None:
    """A digit for a digit cannot be told without a checksum; nothing else gets through."""
    at = data.draw(st.integers(0, len(line) - 1))
    junk = data.draw(
        st.characters(codec="utf-8").filter(lambda c: c not in "0123456789ABCDEFabcdef-")
    )
    corrupted = line[:at] + junk + line[at + 1 :]
    if corrupted == line or (line[at] == " " and junk in "\t\r\n"):
        return
    assert parse_reply(reply(corrupted), "AT") in ([], [parse_line(line)])
    if line[at].isdigit():
        assert parse_reply(reply(corrupted), "AT") == []


@given(recorded_lines, recorded_lines, st.data())
def test_two_answers_mixed_yield_nothing_false(one: str, other: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(one) - 1))
    mixed = one[:at] + other + one[at:]
    kept = parse_reply(reply(mixed), "AT")
    assert kept == []


@given(st.text(max_size=300))
def test_any_text_is_survived(text: str) -> None:
    parse_reply(text, "AT")
    parse_line(text)


@given(
    st.sampled_from(["+CSQ", "+CESQ", "+QCSQ", "+QENG", "+CPSI"]),
    st.lists(
        st.sampled_from(['"LTE"', '"NR5G-SA"', '"servingcell"', "-", "99", "255", "-90", "x"])
    ),
)
def test_any_fields_are_survived(name: str, fields: list[str]) -> None:
    parse_line(f"{name}: {','.join(fields)}")


def test_spectral_efficiency_is_capped_and_monotone() -> None:
    values = [spectral_efficiency(sinr_db) for sinr_db in range(-30, 41)]
    assert values == sorted(values)
    assert values[0] == 0.0
    assert values[-1] == 2.0
    assert spectral_efficiency(0.0) == pytest.approx(0.4)
