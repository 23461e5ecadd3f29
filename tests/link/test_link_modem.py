"""The modem probes over a real pseudo-terminal and a real child process."""

from __future__ import annotations

import os
import pty
import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.link.cellular import CellularProbe, ModemNotFoundError, merge_signals
from sdk.link.interface import LinkKind, Method
from sdk.link.modem_manager import ModemManagerProbe, parse_signal_json
from sdk.link.signal_figures import CellSignal

QUECTEL = {
    "AT": "OK",
    "ATE0": "OK",
    "AT+CMEE=1": "OK",
    "AT+QCSQ": '+QCSQ: "LTE",-78,-104,160,-11\r\n\r\nOK',
    'AT+QENG="servingcell"': (
        '+QENG: "servingcell","NOCONN","LTE","FDD",310,260,1452808,315,5035,12,2,2,3AFD,'
        "-104,-11,-78,160,20\r\n\r\nOK"
    ),
    "AT+CESQ": "+CESQ: 99,99,255,255,18,37\r\n\r\nOK",
    "AT+CSQ": "+CSQ: 17,99\r\n\r\nOK",
}


class Modem:
    """The far end of a pseudo-terminal: echoes, answers, and lets others speak in between."""

    def __init__(self, answers: dict[str, str], *, before: str = "") -> None:
        self._near, far = pty.openpty()
        self.port = os.ttyname(far)
        os.close(far)
        self.asked: list[str] = []
        self._answers = answers
        self._before = before
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def unplug(self) -> None:
        self._closing.set()
        self._thread.join(5)
        if self._near >= 0:
            os.close(self._near)
            self._near = -1

    def _run(self) -> None:
        waiting = b""
        while not self._closing.is_set():
            if not select.select([self._near], [], [], 0.02)[0]:
                continue
            try:
                waiting += os.read(self._near, 256)
            except OSError:  # nobody has the far end open just now
                self._closing.wait(0.02)
                continue
            while b"\r" in waiting:
                line, _, waiting = waiting.partition(b"\r")
                self._answer(line.decode().strip())

    def _answer(self, question: str) -> None:
        self.asked.append(question)
        answer = self._answers.get(question, "ERROR")
        text = f"{question}\r\r\n{self._before}{answer}\r\n"
        for start in range(0, len(text), 7):  # in pieces, as a UART does
            os.write(self._near, text[start : start + 7].encode())


@pytest.fixture
def plug() -> Iterator[Callable[..., Modem]]:
    modems: list[Modem] = []

    def make(answers: dict[str, str], *, before: str = "") -> Modem:
        modems.append(Modem(answers, before=before))
        return modems[-1]

    yield make
    for modem in modems:
        modem.unplug()


def test_a_modem_with_echo_and_unsolicited_lines(plug: Callable[..., Modem]) -> None:
    modem = plug(QUECTEL, before="+QIND: PB DONE\r\n\r\n+CREG: 1\r\n")
    probe = CellularProbe(port=modem.port)
    reading = probe.read(3.0)
    assert reading is not None
    assert (reading.kind, reading.rsrp_dbm, reading.rsrq_db) == (LinkKind.LTE, -104.0, -11.0)
    # The scale of QENG's SINR differs by firmware; QCSQ's does not: 160/5 - 20.
    assert reading.sinr_db == 12.0
    assert (reading.rssi_dbm, reading.bw_hz) == (-78.0, 5e6)
    assert reading.method is Method.SINR
    assert reading.rate_bps == pytest.approx(5e6 * 1.630, rel=1e-3)
    probe.close()


def test_questions_that_a_modem_does_not_know_are_asked_once(plug: Callable[..., Modem]) -> None:
    modem = plug({"AT": "OK", "ATE0": "OK", "AT+CSQ": "+CSQ: 17,99\r\n\r\nOK"})
    probe = CellularProbe(port=modem.port)
    readings = [probe.read(now_s) for now_s in (1.0, 2.0, 3.0)]
    assert [reading and reading.rssi_dbm for reading in readings] == [-79.0] * 3
    assert modem.asked.count("AT+QCSQ") == 1
    assert modem.asked.count("AT+CSQ") == 3
    probe.close()


def test_a_passing_error_does_not_end_a_question(plug: Callable[..., Modem]) -> None:
    answers = {"AT": "OK", "AT+CSQ": "+CME ERROR: 10"}
    modem = plug(answers)
    probe = CellularProbe(port=modem.port)
    assert probe.read(1.0) is None
    answers["AT+CSQ"] = "+CSQ: 17,99\r\n\r\nOK"
    reading = probe.read(2.0)
    assert reading is not None
    assert reading.rssi_dbm == -79.0
    probe.close()


def test_unplugging_yields_none_and_is_not_an_error(plug: Callable[..., Modem]) -> None:
    modem = plug(QUECTEL)
    probe = CellularProbe(port=modem.port)
    assert probe.read(1.0) is not None
    modem.unplug()
    assert [probe.read(now_s) for now_s in (2.0, 3.0, 30.0, 31.0)] == [None] * 4
    probe.close()


def test_a_port_without_a_modem_is_one_line(tmp_path: Path, plug: Callable[..., Modem]) -> None:
    with pytest.raises(ModemNotFoundError, match="nothing"):
        CellularProbe(port=str(tmp_path / "nothing"))
    silent = plug({"AT": "+CREG: 1"})
    with pytest.raises(ModemNotFoundError, match="no modem answers"):
        CellularProbe(port=silent.port)


def test_new_radio_beats_lte_and_keeps_its_own_figures() -> None:
    lte = CellSignal(kind=LinkKind.LTE, rsrp_dbm=-99.0, bw_hz=20e6)
    nr = CellSignal(kind=LinkKind.NR, rsrp_dbm=-71.0)
    rssi = CellSignal(rssi_dbm=-60.0)
    assert merge_signals([lte, nr, rssi]) == CellSignal(
        kind=LinkKind.NR, rsrp_dbm=-71.0, rssi_dbm=-60.0
    )
    assert merge_signals([]) is None


SIGNAL_JSON = (
    '{"modem":{"signal":{"5g":{"rsrp":"--","rsrq":"--","snr":"--"},'
    '"cdma1x":{"ecio":"--","rssi":"--"},"gsm":{"rssi":"--"},'
    '"lte":{"rsrp":"-99.00","rsrq":"-12.00","rssi":"-67.00","snr":"11.40"},'
    '"refresh":{"rate":"5"},"umts":{"ecio":"--","rscp":"--","rssi":"--"}}}}'
)


def test_modem_manager_json() -> None:
    assert parse_signal_json(SIGNAL_JSON) == CellSignal(
        kind=LinkKind.LTE, rsrp_dbm=-99.0, rsrq_db=-12.0, rssi_dbm=-67.0, sinr_db=11.4
    )
    nr = SIGNAL_JSON.replace('"5g":{"rsrp":"--"', '"5g":{"rsrp":"-80.00"')
    assert parse_signal_json(nr) == CellSignal(kind=LinkKind.NR, rsrp_dbm=-80.0)


@pytest.mark.parametrize("figure", ["--", "", "nan", "inf", "-400.0", "x", "1e999"])
def test_figures_that_cannot_be_are_left_out(figure: str) -> None:
    signal = parse_signal_json(SIGNAL_JSON.replace('"-99.00"', f'"{figure}"'))
    assert signal is not None
    assert signal.rsrp_dbm is None


@given(st.integers(0, len(SIGNAL_JSON) - 1), st.text(max_size=3))
def test_truncated_and_mangled_json_yields_nothing_false(cut: int, junk: str) -> None:
    assert parse_signal_json(SIGNAL_JSON[:cut]) is None
    parse_signal_json(SIGNAL_JSON[:cut] + junk + SIGNAL_JSON[cut:])


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=4),
        lambda inner: (
            st.dictionaries(st.sampled_from(["modem", "signal", "5g", "lte", "rsrp"]), inner)
            | st.lists(inner, max_size=3)
        ),
    )
)
def test_any_json_is_survived(value: object) -> None:
    import json

    parse_signal_json(json.dumps(value))


def test_mmcli_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mmcli"
    program.write_text(
        f"#!/bin/sh\n[ \"$3\" = --signal-setup=5 ] && exit 0\necho '{SIGNAL_JSON}'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    probe = ModemManagerProbe()
    assert probe.available()
    reading = probe.read(1.0)
    assert reading is not None
    assert reading.rsrp_dbm == -99.0
    program.write_text("#!/bin/sh\necho 'error: no modems' >&2\nexit 1\n")
    assert not probe.available()
    assert probe.read(2.0) is None
    probe.close()
