"""Serial meters over real pseudo-terminals: torn begins, unplugging, slow readers, loss."""

from __future__ import annotations

import os
import pty
import select
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from test_energy_frames import ATORCH, UM, ppk_stream, usual

from sdk.energy import EnergyMonitor, Verdict
from sdk.energy.board import BoardState
from sdk.energy.interface import MeterLostError, MeterNotFoundError, Sample, available
from sdk.energy.meters.atorch import AtorchMeter
from sdk.energy.meters.line import LineMeter, sealed
from sdk.energy.meters.lpm01a import LpmMeter
from sdk.energy.meters.ppk2 import Ppk2Decoder, Ppk2Meter
from sdk.energy.meters.ruideng import UmMeter
from sdk.energy.meters.serial_port import SerialPort

pytestmark = pytest.mark.alone


class Device:
    """The meter's side of a pseudo-terminal."""

    def __init__(self) -> None:
        self.descriptor, slave = pty.openpty()
        tty.setraw(slave)
        self.port = os.ttyname(slave)
        self._slave = slave

    def send(self, data: bytes) -> None:
        while data:
            select.select([], [self.descriptor], [], 10)
            data = data[os.write(self.descriptor, data) :]

    def received(self) -> bytes:
        return os.read(self.descriptor, 4096)

    def unplug(self) -> None:
        for descriptor in (self.descriptor, self._slave):
            if descriptor >= 0:
                os.close(descriptor)
        self.descriptor = self._slave = -1


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device()
    yield device
    device.unplug()


@contextmanager
def answering(device: Device, answer: Callable[[bytes], bytes]) -> Iterator[None]:
    """Answer whatever comes, until the block ends."""
    stop = threading.Event()

    def serve() -> None:
        os.set_blocking(device.descriptor, False)
        while not stop.wait(0.01):
            with suppress(OSError):
                device.send(answer(device.received()))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def collect(read: Callable[[], object], count: int, timeout_s: float = 10.0) -> list[Sample]:
    """Read until so many samples came."""
    samples: list[Sample] = []
    deadline_s = time.monotonic() + timeout_s
    while len(samples) < count and time.monotonic() < deadline_s:
        samples += read()  # type: ignore[arg-type]
        time.sleep(0.01)
    return samples


def line(number: int, *, microjoules: int | None = None) -> bytes:
    joules = 50_000 * number if microjoules is None else microjoules
    return sealed(f"E1,{number},{10_000 * number},5000,1000000,{joules},0,0")


def test_a_um25c_answers_when_it_is_asked(device: Device) -> None:
    with answering(device, lambda asked: UM * asked.count(b"\xf0")):
        availability = available(UmMeter(port=device.port))
    assert availability.ok, availability.reason
    assert availability.value == pytest.approx(3.665)


def test_an_atorch_meter_is_joined_in_the_middle_of_a_frame(device: Device) -> None:
    meter = AtorchMeter(port=device.port)
    meter.open()
    device.send(ATORCH[17:] + ATORCH + ATORCH[:20])
    samples = collect(meter.read, 1)
    device.send(ATORCH[20:])
    samples += collect(meter.read, 1)
    assert [sample.value for sample in samples] == pytest.approx([4.61 * 1.27] * 2)
    meter.close()


def test_a_silent_meter_is_not_available(device: Device) -> None:
    availability = available(AtorchMeter(port=device.port), timeout_s=0.3)
    assert not availability.ok
    assert "no value came" in availability.reason


def test_a_partial_first_line_counts_for_nothing(device: Device) -> None:
    meter = LineMeter(port=device.port)
    meter.open()
    device.send(line(1)[9:] + line(2) + line(3))
    samples = collect(meter.read, 2)
    assert [sample.value for sample in samples] == pytest.approx([0.1, 0.15])
    meter.close()


def test_lost_lines_cost_no_energy(device: Device) -> None:
    meter = LineMeter(port=device.port)
    meter.open()
    sent = [line(number) for number in range(1, 101)]
    sent[30:60] = [b"E1,garbage\n"]
    device.send(b"".join(sent))
    samples = collect(meter.read, 70)
    assert len(samples) == 70
    assert samples[-1].value - samples[0].value == pytest.approx(0.05 * 99)
    assert not any(sample.lost for sample in samples)
    meter.close()


def test_a_device_that_restarts_marks_what_is_unknown(device: Device) -> None:
    meter = LineMeter(port=device.port)
    meter.open()
    device.send(line(50) + line(51) + line(1) + line(2))
    samples = collect(meter.read, 4)
    assert [sample.lost for sample in samples] == [0, 0, 1, 0]
    assert [sample.value for sample in samples] == pytest.approx([2.5, 2.55, 2.55, 2.6])
    meter.close()


def test_the_header_is_asked_for_and_used(device: Device) -> None:
    header = sealed("I1,bench,1.0,ina228,10000,1052,16,59")
    with answering(device, lambda asked: header if b"?" in asked else b""):
        meter = LineMeter(port=device.port)
        meter.open()
        collect(lambda: meter.read() and [], 1, timeout_s=0.5)
        assert meter.header is not None
        assert meter.info.rate_hz == 59.0
        assert meter.info.chip_samples == 16
        meter.close()


def test_a_port_belongs_to_one_reader(device: Device) -> None:
    first = AtorchMeter(port=device.port)
    first.open()
    with pytest.raises(MeterNotFoundError, match="dialout"):
        AtorchMeter(port=device.port).open()
    first.close()
    with pytest.raises(MeterNotFoundError):
        AtorchMeter(port="/dev/no-such-port").open()


def test_what_came_before_the_unplugging_is_still_given(device: Device) -> None:
    meter = LineMeter(port=device.port)
    meter.open()
    meter.read()  # asks for the header
    device.send(line(1) + line(2))
    time.sleep(0.3)
    device.unplug()
    time.sleep(0.3)
    assert len(meter.read()) == 2
    with pytest.raises(MeterLostError):
        meter.read()
    meter.close()
    meter.close()


def test_unplugging_in_a_window_is_a_gap_and_said(device: Device) -> None:
    stop = threading.Event()

    def stream() -> None:
        number = 0
        while not stop.wait(0.02) and device.descriptor >= 0:
            number += 2
            device.send(line(number))

    thread = threading.Thread(target=stream, daemon=True)
    thread.start()
    with EnergyMonitor(meter=LineMeter(port=device.port), board=BoardState) as monitor:
        monitor.begin_window("w")
        time.sleep(0.5)
        stop.set()
        thread.join()
        device.unplug()
        time.sleep(0.7)
        measurement = monitor.end_window("w")
    assert measurement.verdict is not Verdict.OK
    assert measurement.sampling.gap_s > 0.3
    assert any(reason.startswith("meter: ") for reason in measurement.reasons)


def test_a_slow_reader_loses_nothing_within_the_queue(device: Device) -> None:
    port = SerialPort(port=device.port, baud=9600)
    port.open()
    data = ppk_stream(50_000)  # half a second's worth
    writer = threading.Thread(target=device.send, args=(data,), daemon=True)
    writer.start()
    writer.join(timeout=30)
    time.sleep(0.5)
    chunks, dropped = port.take()
    assert not dropped
    assert b"".join(chunk.data for chunk in chunks) == data
    port.close()


def test_a_reader_slower_than_the_queue_is_told_and_the_decoder_recovers(device: Device) -> None:
    port = SerialPort(port=device.port, baud=9600, queue_bytes=20_001)
    port.open()
    writer = threading.Thread(target=device.send, args=(ppk_stream(20_000),), daemon=True)
    writer.start()
    writer.join(timeout=30)
    time.sleep(0.5)
    chunks, dropped = port.take()
    assert dropped
    decoder = Ppk2Decoder(scales=usual(), supply_mv=3300)
    decoder.restart()
    blocks = [block for chunk in chunks for block in decoder.feed(chunk.data)]
    assert len(blocks) > 10
    assert np.ptp([block.amperes for block in blocks]) == pytest.approx(0.0, abs=1e-12)
    port.close()


def test_a_ppk2_from_its_metadata_to_watts(device: Device) -> None:
    started = threading.Event()

    def answer(asked: bytes) -> bytes:
        if b"\x19" in asked:
            return b"Calibrated: 1\r\nGS2: 0\r\nR2: 10.0\r\nEND"
        if b"\x06" in asked and not started.is_set():
            started.set()
            return ppk_stream(3000, adc=2000, scale=2)
        return b""

    with answering(device, answer):
        meter = Ppk2Meter(port=device.port, supply_mv=3300)
        meter.open()
        samples = collect(meter.read, 30)
        meter.close()
    amperes = 2000 * 4 * 1.8 / 163840 / 10.0
    assert [sample.value for sample in samples] == pytest.approx([amperes * 3.3] * 30)
    steps_s = np.diff([sample.time_s for sample in samples])
    assert float(np.median(steps_s)) == pytest.approx(0.001, abs=1e-4)


def test_a_ppk2_that_does_not_answer_is_refused(device: Device) -> None:
    availability = available(Ppk2Meter(port=device.port, supply_mv=3300))
    assert not availability.ok
    assert "does not state its constants" in availability.reason


def test_an_lpm01a_is_configured_and_read(device: Device) -> None:
    heard = bytearray()

    def answer(asked: bytes) -> bytes:
        heard.extend(asked)
        if b"start\r\n" in heard and b"stop" not in heard:
            return b"ack\r\n" + b"0123-07\r\n" * 20
        return b""

    with answering(device, answer):
        meter = LpmMeter(port=device.port)
        meter.open()
        samples = collect(meter.read, 20)
        meter.close()
        time.sleep(0.1)
    assert b"output energy\r\n" in heard
    assert b"volt 3300m\r\n" in heard
    assert b"stop\r\n" in heard
    assert [sample.value for sample in samples] == pytest.approx([123e-7] * 20)
