"""Frames of the serial meters: recorded and constructed ones, and every kind of damage."""

from __future__ import annotations

import struct
from functools import reduce
from operator import xor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.energy.interface import MeterNotFoundError
from sdk.energy.meters import atorch, line, lpm01a, ppk2, ruideng
from sdk.energy.meters.serial_port import DeviceClock

# recorded
ATORCH = bytes.fromhex("FF5501030001CD00007F003CC80000554E0009000A00000047300D3C000000000000008F")


def um_frame(
    model: int = 0x09C9, volts: int = 5082, amperes: int = 7213, milliwatts: int = 3665
) -> bytes:
    """Return a frame as a UM25C (or another model) would send it."""
    frame = bytearray(130)
    struct.pack_into(">HHHIHHH", frame, 0, model, volts, amperes, milliwatts, 24, 75, 2)
    for group in range(10):
        struct.pack_into(">II", frame, 16 + 8 * group, 100 * group, 500 * group)
    frame[128:] = b"\xff\xf1"
    if model == 0x0D4C:
        frame[129] = reduce(xor, (frame[at] for at in ruideng._SUMMED))
    return bytes(frame)


UM = um_frame()


# Atorch


def test_the_recorded_atorch_frame() -> None:
    reading = atorch.parse_frame(ATORCH)
    assert reading == atorch.AtorchReading(4.61, 1.27, 155_600, 218_380)
    assert reading.watts == pytest.approx(4.61 * 1.27)


def test_an_atorch_dc_frame() -> None:
    body = bytes.fromhex("FF55010200007B0004D200000000000064") + bytes(18)
    frame = body + bytes([atorch.checksum(body + b"\0")])
    assert atorch.parse_frame(frame) == atorch.AtorchReading(12.3, 1.234, 0, 1000)


def test_an_atorch_ac_frame_is_refused() -> None:
    body = ATORCH[:3] + b"\x01" + ATORCH[4:-1]
    assert atorch.parse_frame(body + bytes([atorch.checksum(body + b"\0")])) is None


@given(st.binary(max_size=80), st.lists(st.integers(1, 40), max_size=12))
def test_atorch_frames_are_found_behind_noise(noise: bytes, cuts: list[int]) -> None:
    stream = noise + ATORCH * 3
    decoder = atorch.AtorchDecoder()
    readings = []
    for cut in cuts:
        readings += decoder.feed(stream[:cut])
        stream = stream[cut:]
    readings += decoder.feed(stream)
    assert readings[-2:] == [atorch.parse_frame(ATORCH)] * 2


@given(st.integers(0, 35), st.integers(1, 255))
def test_a_corrupted_atorch_frame_gives_nothing(at: int, flip: int) -> None:
    damaged = bytearray(ATORCH)
    damaged[at] ^= flip
    assert atorch.AtorchDecoder().feed(bytes(damaged)) == []


@given(st.integers(0, 35))
def test_a_truncated_atorch_frame_gives_nothing_and_the_next_one_counts(length: int) -> None:
    assert atorch.AtorchDecoder().feed(ATORCH[:length]) == []
    if length:
        assert atorch.AtorchDecoder().feed(ATORCH[:length] + ATORCH)[-1:] == [
            atorch.parse_frame(ATORCH)
        ]


@given(st.binary(max_size=400))
def test_atorch_survives_any_bytes(data: bytes) -> None:
    decoder = atorch.AtorchDecoder()
    decoder.feed(data)
    assert len(decoder._buffer) <= 36


# RuiDeng


@pytest.mark.parametrize(
    ("frame", "name", "volts", "amperes", "watts"),
    [
        (UM, "UM25C", 5.082, 0.7213, 3.665),
        (um_frame(0x0963, 508, 721, 3662), "UM24C", 5.08, 0.721, 3.662),
        (um_frame(0x0D4C, 508, 721, 3662), "UM34C", 5.08, 0.721, 3.662),
    ],
    ids=["UM25C", "UM24C", "UM34C"],
)
def test_um_frames(frame: bytes, name: str, volts: float, amperes: float, watts: float) -> None:
    reading = ruideng.parse_frame(frame)
    assert reading is not None
    assert reading.model == name
    assert reading.volts == pytest.approx(volts)
    assert reading.amperes == pytest.approx(amperes)
    assert reading.watts == pytest.approx(watts)
    assert reading.celsius == 24
    assert reading.milliwatt_hours == 1000  # group 2


@given(st.integers(0, 129), st.integers(1, 255))
def test_a_corrupted_um_frame_never_gives_a_wrong_power(at: int, flip: int) -> None:
    damaged = bytearray(UM)
    damaged[at] ^= flip
    reading = ruideng.parse_frame(bytes(damaged))
    assert reading is None or reading.watts == pytest.approx(3.665, abs=0.004)


@given(st.integers(0, 129), st.integers(1, 255))
def test_the_um34c_s_checksum_is_checked(at: int, flip: int) -> None:
    damaged = bytearray(um_frame(0x0D4C, 508, 721, 3662))
    damaged[at] ^= flip
    reading = ruideng.parse_frame(bytes(damaged))
    assert reading is None or reading.watts == pytest.approx(3.662)


@given(st.binary(max_size=200), st.integers(0, 129), st.lists(st.integers(1, 99), max_size=9))
def test_um_frames_are_found_behind_noise(noise: bytes, torn: int, cuts: list[int]) -> None:
    stream = noise + UM[:torn] + UM + UM + UM
    decoder = ruideng.UmDecoder()
    readings = []
    for cut in cuts:
        readings += decoder.feed(stream[:cut])
        stream = stream[cut:]
    readings += decoder.feed(stream)
    assert readings[-1:] == [ruideng.parse_frame(UM)]
    assert all(reading == ruideng.parse_frame(UM) for reading in readings)


@given(st.binary(max_size=600))
def test_um_survives_any_bytes(data: bytes) -> None:
    decoder = ruideng.UmDecoder()
    decoder.feed(data)
    assert len(decoder._buffer) < 130


# our line protocol


def sample_line(
    sequence: int = 7, device_us: int = 1_000_000, microjoules: int = 5_000_000
) -> bytes:
    return line.sealed(f"E1,{sequence},{device_us},5021,801234,{microjoules},1,0")


def test_the_line_protocol_s_checksum_is_crc_16_ccitt_false() -> None:
    assert line.sealed("123456789") == b"123456789*29b1\n"


def test_a_line_and_a_header() -> None:
    assert line.parse_line(sample_line()) == line.LineSample(
        7, 1_000_000, 5021, 801_234, 5_000_000, 1, 0
    )
    header = line.sealed("I1,bench,1.0,ina226,10000,1100,4,100")
    assert line.parse_header(header) == line.DeviceHeader(
        "bench", "1.0", "ina226", 10_000, 1100, 4, 100.0
    )
    assert line.parse_line(header) is None
    assert line.parse_header(sample_line()) is None


@given(st.integers(0, 100), st.integers(1, 255))
def test_a_corrupted_line_gives_nothing(at: int, flip: int) -> None:
    good = sample_line()
    at %= len(good) - 1
    damaged = bytearray(good)
    damaged[at] ^= flip
    crc = slice(good.index(b"*") + 1, -1)
    if bytes(damaged[crc]).lower() == good[crc] and damaged[: crc.start] == good[: crc.start]:
        return  # only the case of a hex digit changed
    found = line.LineDecoder().feed(bytes(damaged))
    assert found in ([], [line.parse_line(good)][: not flip])


@given(st.binary(max_size=300), st.lists(st.integers(1, 60), max_size=20))
def test_lines_are_found_behind_noise_however_they_are_cut(noise: bytes, cuts: list[int]) -> None:
    good = [sample_line(number, 1000 * number, 10 * number) for number in range(5)]
    stream = noise + b"\n" + b"".join(good)
    decoder = line.LineDecoder()
    found = []
    for cut in cuts:
        found += decoder.feed(stream[:cut])
        stream = stream[cut:]
    found += decoder.feed(stream)
    assert found == [line.parse_line(text) for text in good]


@given(st.integers(1, 60), st.integers(1, 60))
def test_interleaved_lines_give_nothing_false(a: int, b: int) -> None:
    first, second = sample_line(1, 10, 10), sample_line(2, 20, 20)
    mixed = first[:a] + second[:b] + first[a:] + second[b:]
    known = [line.parse_line(first), line.parse_line(second)]
    assert all(item in known for item in line.LineDecoder().feed(mixed))


@given(st.text(alphabet="E1,*0123456789abcdef-\n٣²", max_size=200))
def test_lines_survive_any_text(text: str) -> None:
    line.LineDecoder().feed(text.encode())
    line.parse_line(line.sealed("E1," + text.encode("ascii", "ignore").decode().replace("\n", "")))


# LPM01A


def test_lpm_tokens() -> None:
    assert lpm01a.parse_joules(b"6409-07") == pytest.approx(6409e-7)
    assert lpm01a.parse_joules(b"0000+00") == 0.0
    assert lpm01a.parse_time_ms(b"TimeStamp: 001s 500ms, buff 00%") == 1500
    for text in (b"6409-0", b"409-07", b"event 01 ris", b"6409-07 1", b"", b"9999+09"):
        assert lpm01a.parse_joules(text) is None


def test_lpm_samples_lost_between_time_stamps_are_counted() -> None:
    decoder = lpm01a.LpmDecoder()
    lines = [b"torn", b"TimeStamp: 000s 000ms, buff 00%"]
    lines += [b"0100-08"] * 990 + [b"TimeStamp: 001s 000ms, buff 00%"] + [b"0100-08"] * 5
    samples = decoder.feed(b"\r\n".join(lines) + b"\r\n")
    assert len(samples) == 995
    assert sum(sample.lost for sample in samples) == 10
    assert samples[990].lost == 10
    assert samples[-1].device_s == pytest.approx(1.005)


@given(st.binary(max_size=300))
def test_lpm_survives_any_bytes(data: bytes) -> None:
    for sample in lpm01a.LpmDecoder().feed(data):
        assert 0 <= sample.joules <= 1e-3


# PPK2


def ppk_stream(count: int, *, adc: int = 1000, scale: int = 2, first: int = 0) -> bytes:
    numbers = (first + np.arange(count)) & 63
    words = adc | (scale << 14) | (numbers.astype(np.uint32) << 18)
    return words.astype("<u4").tobytes()


def one_ampere(adc: int, scale: int) -> float:
    return adc * 4 * 1.8 / 163840 / (1031.64, 101.65, 10.15, 0.94, 0.043)[scale]


@pytest.mark.parametrize(
    ("millivolts", "data"), [(5000, (19, 136)), (3300, (12, 228)), (800, (3, 32))]
)
def test_ppk_voltages(millivolts: int, data: tuple[int, int]) -> None:
    assert ppk2.voltage_bytes(millivolts) == bytes((0x0D, *data))


def test_ppk_refuses_voltages_it_cannot_make() -> None:
    with pytest.raises(MeterNotFoundError, match="5001 mV"):
        ppk2.voltage_bytes(5001)


def test_ppk_metadata() -> None:
    text = (
        "Calibrated: 1\r\nR0: 1003.35\r\nR4: 0.05\r\nGS2: 1.02\nO1: -3.5\nUG3: 0.99\nHW: 9173\nEND"
    )
    scales = ppk2.parse_metadata(text)
    assert scales.r == (1003.35, 101.65, 10.15, 0.94, 0.05)
    assert scales.gs[2] == 1.02
    assert scales.o[1] == -3.5
    assert scales.ug[3] == 0.99
    assert ppk2.parse_metadata("R0: 0") == ppk2.Scales()


def test_ppk_currents_by_the_formula() -> None:
    words = np.frombuffer(ppk_stream(1, adc=5000, scale=3), "<u4")
    scales = ppk2.Scales(gs=(1, 1, 1, 0.5, 1), gi=(1, 1, 1, 2, 1), s=(0, 0, 0, 1e-3, 0))
    r = (5000 * 4) * (1.8 / 163840 / 0.94)
    expected = r * (0.5 * r + 2) + 1e-3 * 3.3
    assert scales.amperes(words, 3300)[0] == pytest.approx(expected)


def usual(gs: float = 0.0) -> ppk2.Scales:
    return ppk2.Scales(gs=(gs,) * 5)


@given(st.lists(st.integers(1, 700), max_size=30), st.integers(0, 3))
def test_ppk_blocks_do_not_depend_on_how_bytes_arrive(cuts: list[int], slip: int) -> None:
    stream = b"\xff\xff\xff"[:slip] + ppk_stream(1000)
    decoder = ppk2.Ppk2Decoder(scales=usual(), supply_mv=3300)
    blocks = []
    for cut in cuts:
        blocks += decoder.feed(stream[:cut])
        stream = stream[cut:]
    blocks += decoder.feed(stream)
    assert len(blocks) == 10
    assert [block.amperes for block in blocks] == pytest.approx([one_ampere(1000, 2)] * 10)
    assert sum(block.lost for block in blocks) == 0


def test_ppk_counts_lost_samples() -> None:
    decoder = ppk2.Ppk2Decoder(scales=usual(), supply_mv=3300)
    blocks = decoder.feed(ppk_stream(500) + ppk_stream(500, first=500 + 20))
    assert sum(block.lost for block in blocks) == 22  # and the two before, which are in doubt
    assert blocks[-1].last == 922
    assert len(blocks) == 9


@given(st.integers(1, 3), st.integers(30, 60))
def test_ppk_finds_its_step_again_after_lost_bytes(missing: int, at: int) -> None:
    stream = ppk_stream(2000)
    damaged = stream[: 4 * at] + stream[4 * at + missing :]
    decoder = ppk2.Ppk2Decoder(scales=usual(), supply_mv=3300)
    blocks = decoder.feed(damaged)
    assert len(blocks) == 19
    assert sum(block.lost for block in blocks) == 3  # it and the two before
    for block in blocks:  # never the 9e8 mA of a slipped stream
        assert block.amperes == pytest.approx(one_ampere(1000, 2))


@given(st.binary(max_size=3000))
def test_ppk_survives_any_bytes(data: bytes) -> None:
    assert all(
        block.amperes >= 0 for block in ppk2.Ppk2Decoder(scales=usual(), supply_mv=3300).feed(data)
    )


def test_ppk_spikes_behind_a_change_of_range_are_calmed() -> None:
    calm = np.frombuffer(ppk_stream(97), "<u4")
    spike = np.frombuffer(ppk_stream(3, adc=16000, scale=4, first=97), "<u4")
    decoder = ppk2.Ppk2Decoder(scales=usual(), supply_mv=3300)
    (block,) = decoder.feed(calm.tobytes() + spike.tobytes())
    assert block.amperes == pytest.approx(one_ampere(1000, 2), rel=1e-6)


# the meters' clocks


def test_waiting_in_buffers_does_not_move_samples() -> None:
    clock = DeviceClock()
    random = np.random.default_rng(3)
    errors_s = []
    for number in range(2000):
        device_s = 0.01 * number * (1 + 50e-6)  # a crystal that is 50 ppm fast
        received_s = 100 + 0.01 * number + 0.002 + random.exponential(0.01)
        clock.observe(device_s, received_s)
        errors_s.append(clock.to_host_s(device_s) - (100.002 + 0.01 * number))
    assert max(map(abs, errors_s[100:])) < 0.004
