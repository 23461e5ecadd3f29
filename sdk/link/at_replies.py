"""A modem's answers to AT commands, made into signals: +CSQ, +CESQ, +QCSQ, +QENG, +CPSI. Pure.

AT has no checksums, so everything that can be checked is: an answer must end in OK, hold nothing
but whole lines of known form, and every field of a line must be of its kind and within its range.
What fails any of that yields nothing. Sources: 3GPP TS 27.007 8.5 and 8.69; the AT manuals of
Quectel and SIMCom; captures of EC25, EP06 and RM520N modems.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from sdk.link.interface import LinkKind
from sdk.link.signal_figures import CellSignal, plausible

__all__ = ["parse_line", "parse_reply"]

_INTEGER: Final = re.compile(r"-?[0-9]{1,12}")
_HEXADECIMAL: Final = re.compile(r"(0x)?[0-9A-Fa-f]{1,10}")
_NAMED: Final = re.compile(r"[+^*$%][A-Z0-9]+(:.*)?")
_UNSOLICITED: Final = frozenset({"RING", "NO CARRIER", "RDY", "SMS Ready", "Call Ready"})
_NOT_VALID: Final = ("-", "-32768")
_LTE_WIDTHS_HZ: Final = (1.4e6, 3e6, 5e6, 10e6, 15e6, 20e6)
_NR_WIDTHS_HZ: Final = tuple(
    mhz * 1e6 for mhz in (5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100, 200, 400)
)
_STATES: Final = ('"SEARCH"', '"LIMSRV"', '"NOCONN"', '"CONNECT"')
_LTE_SYSTEMS: Final = ('"LTE"', '"CAT-M1"', '"eMTC"', '"NBIoT"', '"CAT-NB1"')


class _NotSuchLineError(Exception):
    """Something in a line is not what such a line has."""


def parse_reply(text: str, command: str) -> list[CellSignal]:
    """Return the signals in a whole answer, in its order; none if anything in it is off.

    Args:
        text: what came since the command was sent: echo, unsolicited lines, answer, final OK.
        command: as it was sent, to know its echo.
    """
    *ended, _ = text.split("\n")  # what follows the last line's end is still on its way
    lines = [line.strip("\r") for line in ended]
    lines = [line for line in lines if line and line != command]
    if not lines or lines[-1] != "OK":
        return []
    if not all(_NAMED.fullmatch(line) or line in _UNSOLICITED for line in lines[:-1]):
        return []  # the torn-off rest of a line: then another one is torn as well
    return [signal for line in lines if (signal := parse_line(line)) is not None]


def parse_line(line: str) -> CellSignal | None:
    """Return the signal in one line, or None if it is of no kind known here, or has none."""
    name, colon, values = line.partition(":")
    parser = _PARSERS.get(name)
    if parser is None or not colon:
        return None
    try:
        signal = parser(values.removeprefix(" ").split(","))
    except _NotSuchLineError:
        return None
    return None if signal is None or signal.empty else signal


def _parse_csq(fields: list[str]) -> CellSignal | None:
    """Read `<rssi>,<ber>`; 99 is unknown, and many 5G modules say nothing else."""
    _expect(len(fields) == 2)
    rssi, _ = _step(fields[0], 31, unknown=99), _step(fields[1], 7, unknown=99)
    return None if rssi is None else CellSignal(rssi_dbm=-113.0 + 2.0 * rssi)


def _parse_cesq(fields: list[str]) -> CellSignal | None:
    """Read `rxlev,ber,rscp,ecno,rsrq,rsrp[,ss_rsrq,ss_rsrp,ss_sinr]`; RSRQ stands before RSRP."""
    _expect(len(fields) in (6, 9))
    rxlev, _ = _step(fields[0], 63, unknown=99), _step(fields[1], 7, unknown=99)
    highest = (96, 49, 34, 97, 126, 126, 127)
    steps = [_step(*each, unknown=255) for each in zip(fields[2:], highest, strict=False)]
    rscp, _, rsrq, rsrp, ss_rsrq, ss_rsrp, ss_sinr = (*steps, None, None, None)[:7]
    if ss_rsrp is not None:
        return CellSignal(
            kind=LinkKind.NR,
            rsrp_dbm=-157.0 + ss_rsrp,
            rsrq_db=None if ss_rsrq is None else -43.5 + ss_rsrq / 2,
            sinr_db=None if ss_sinr is None else -23.5 + ss_sinr / 2,
        )
    if rsrp is not None:
        rsrq_db = None if rsrq is None else -20.0 + rsrq / 2
        return CellSignal(kind=LinkKind.LTE, rsrp_dbm=-141.0 + rsrp, rsrq_db=rsrq_db)
    if rscp is not None:
        return CellSignal(rssi_dbm=-121.0 + rscp)
    return None if rxlev is None else CellSignal(rssi_dbm=-111.0 + rxlev)


def _parse_qcsq(fields: list[str]) -> CellSignal | None:
    """Read `"LTE",rssi,rsrp,sinr,rsrq` or `"NR5G-SA",rsrp,sinr,rsrq`: SINR stands before RSRQ."""
    system, figures = fields[0], fields[1:]
    if system == '"NOSERVICE"':
        return None
    if system in ('"GSM"', '"WCDMA"'):
        _expect(len(figures) == (1 if system == '"GSM"' else 3))
        for figure in figures[1:]:
            _integer(figure, -200, 100)
        return CellSignal(rssi_dbm=_decibel("rssi_dbm", figures[0]))
    if system in ('"NR5G-SA"', '"NR5G-NSA"'):
        _expect(len(figures) == 3)
        return _nr(rsrp=figures[0], sinr=figures[1], rsrq=figures[2])
    _expect(system in _LTE_SYSTEMS and len(figures) == 4)
    sinr = _integer(figures[2], 0, 250)  # fifths of a dB from -20 dB
    return CellSignal(
        kind=LinkKind.LTE,
        rssi_dbm=_decibel("rssi_dbm", figures[0]),
        rsrp_dbm=_decibel("rsrp_dbm", figures[1]),
        sinr_db=None if sinr is None else sinr / 5.0 - 20.0,
        rsrq_db=_decibel("rsrq_db", figures[3]),
    )


def _parse_qeng(fields: list[str]) -> CellSignal | None:
    """Read a line about the serving cell on LTE, EN-DC (NSA) or SA.

    The figures' order differs: RSRP, RSRQ, RSSI, SINR on LTE; RSRP, SINR, RSRQ on NSA; RSRP, RSRQ,
    SINR on SA.
    """
    if fields[0] == '"servingcell"':
        _expect(len(fields) >= 2 and fields[1] in _STATES)
        fields = fields[2:]
    if not fields:
        return None
    system, rest = fields[0], fields[1:]
    if system == '"LTE"':
        return _parse_qeng_lte(rest)
    if system == '"NR5G-NSA"':
        return _parse_qeng_nsa(rest)
    _expect(system == '"NR5G-SA"' and len(rest) == 14)
    _expect(rest[0] in ('"TDD"', '"FDD"'))
    _check_cell(rest[1], rest[2], cell=rest[3], pci=rest[4], area=rest[5])
    for field, high in ((rest[6], 3_279_165), (rest[7], 1024), (rest[12], 4), (rest[13], 255)):
        _integer(field, 0, high)
    width_hz = _width(rest[8], _NR_WIDTHS_HZ)
    return _nr(rsrp=rest[9], rsrq=rest[10], sinr=rest[11], width_hz=width_hz)


def _parse_qeng_lte(rest: list[str]) -> CellSignal | None:
    """Read duplex, mcc, mnc, cell, pci, earfcn, band, widths, tac, figures; newer ones add two."""
    _expect(len(rest) in (15, 17) and rest[0] in ('"TDD"', '"FDD"'))
    _check_cell(rest[1], rest[2], cell=rest[3], pci=rest[4], area=rest[9])
    for field, high in ((rest[5], 262_143), (rest[6], 255), (rest[8], 5)):
        _integer(field, 0, high)
    for field in rest[14:]:  # CQI, transmit power, Srxlev
        _integer(field, -500, 1000)
    sinr = _integer(rest[13], -50, 250)  # dB, but some EC25 count fifths of it from -20 dB
    return CellSignal(
        kind=LinkKind.LTE,
        rsrp_dbm=_decibel("rsrp_dbm", rest[10]),
        rsrq_db=_decibel("rsrq_db", rest[11]),
        rssi_dbm=_decibel("rssi_dbm", rest[12]),
        sinr_db=plausible("sinr_db", None if sinr is None else float(sinr)),
        bw_hz=_width(rest[7], _LTE_WIDTHS_HZ),
    )


def _parse_qeng_nsa(rest: list[str]) -> CellSignal | None:
    """Read mcc, mnc, pci, figures, arfcn, band, width, spacing; without ARFCN no cell is in use."""
    _expect(len(rest) == 10)
    for field, high in ((rest[0], 999), (rest[1], 999), (rest[2], 1007)):
        _integer(field, 0, high)
    for field, high in ((rest[7], 1024), (rest[9], 4)):
        _integer(field, 0, high)
    signal = _nr(rsrp=rest[3], sinr=rest[4], rsrq=rest[5], width_hz=_width(rest[8], _NR_WIDTHS_HZ))
    return None if _integer(rest[6], 0, 3_279_165) is None else signal


def _parse_cpsi(fields: list[str]) -> CellSignal | None:
    """Read SIMCom's LTE line; RSRQ, RSRP and RSSI are in tenths, SINR in whole dB."""
    if fields[0] != "LTE" or fields[1:2] != ["Online"]:
        return None
    _expect(len(fields) == 14 and bool(re.fullmatch(r"[0-9]{3}-[0-9]{2,3}", fields[2])))
    _expect(bool(_HEXADECIMAL.fullmatch(fields[3])))
    _expect(bool(re.fullmatch(r"EUTRAN-BAND[0-9]{1,3}", fields[6])))
    for field, high in ((fields[4], 2**28), (fields[5], 503), (fields[7], 262_143), (fields[8], 5)):
        _integer(field, 0, high)
    return CellSignal(
        kind=LinkKind.LTE,
        rsrq_db=_decibel("rsrq_db", fields[10], scale=0.1),
        rsrp_dbm=_decibel("rsrp_dbm", fields[11], scale=0.1),
        rssi_dbm=_decibel("rssi_dbm", fields[12], scale=0.1),
        sinr_db=_decibel("sinr_db", fields[13]),
        bw_hz=_width(fields[9], _LTE_WIDTHS_HZ),
    )


_PARSERS: Final[dict[str, Callable[[list[str]], CellSignal | None]]] = {
    "+CSQ": _parse_csq,
    "+CESQ": _parse_cesq,
    "+QCSQ": _parse_qcsq,
    "+QENG": _parse_qeng,
    "+CPSI": _parse_cpsi,
}


def _nr(*, rsrp: str, sinr: str, rsrq: str, width_hz: float | None = None) -> CellSignal:
    return CellSignal(
        kind=LinkKind.NR,
        rsrp_dbm=_decibel("rsrp_dbm", rsrp),
        sinr_db=_decibel("sinr_db", sinr),
        rsrq_db=_decibel("rsrq_db", rsrq),
        bw_hz=width_hz,
    )


def _expect(condition: bool) -> None:
    if not condition:
        raise _NotSuchLineError


def _integer(text: str, low: int, high: int) -> int | None:
    """Return a number within its range, or None where the modem says that it has none."""
    if text in _NOT_VALID:
        return None
    _expect(bool(_INTEGER.fullmatch(text)))
    _expect(low <= int(text) <= high)
    return int(text)


def _step(text: str, highest: int, *, unknown: int) -> int | None:
    value = _integer(text, 0, unknown)
    _expect(value is not None and (value <= highest or value == unknown))
    return None if value == unknown else value


def _decibel(name: str, text: str, *, scale: float = 1.0) -> float | None:
    value = _integer(text, -10_000, 10_000)
    if value is None:
        return None
    _expect(plausible(name, value * scale) is not None)
    return round(value * scale, 1)


def _width(code: str, widths_hz: tuple[float, ...]) -> float | None:
    index = _integer(code, 0, len(widths_hz) - 1)
    return None if index is None else widths_hz[index]


def _check_cell(mcc: str, mnc: str, *, cell: str, pci: str, area: str) -> None:
    """Check who and where the cell is; cell and area code are hexadecimal."""
    for field in (mcc, mnc):
        _integer(field, 0, 999)
    _integer(pci, 0, 1007)
    for field in (cell, area):
        _expect(field == "-" or bool(_HEXADECIMAL.fullmatch(field)))
