"""The power figures in the lines of NVIDIA's `tegrastats`, where the sensors' files cannot be read.

The first number of a rail is the power now, the second an average since the program began, which is
not used. Knows the text, and the rails' meaning from `jetson`.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence

from sdk.energy.interface import Kind, MeterInfo, MeterLostError, MeterNotFoundError, Sample, Scope
from sdk.energy.meters.jetson import is_jetson, total_rails
from sdk.energy.registry import Driver

__all__ = ["DRIVER", "TegrastatsMeter", "parse_rails", "parse_total_w"]

_RATE_HZ = 10.0
_MAX_LINE = 4096
_MAX_RAIL_MW = 200_000
# RAM, SWAP and IRAM carry MB or kB and do not fit.
_RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]+) (\d{1,7})(mW)?/(\d{1,7})(mW)?(?=\s|$)")


def parse_rails(line: str) -> dict[str, int]:
    """Return milliwatts by rail; empty for anything that is not a whole line of tegrastats.

    A rail that is named twice means that lines were torn and mixed.
    """
    rails: dict[str, int] = {}
    for name, now, unit, _average, average_unit in _RAIL.findall(line[:_MAX_LINE]):
        if name in rails or unit != average_unit or int(now) > _MAX_RAIL_MW:
            return {}
        rails[name] = int(now)
    return rails if line.count("RAM ") - line.count("IRAM ") == 1 else {}


def parse_total_w(line: str) -> float | None:
    """Return the module's power in watts, or None where the line does not hold all of it."""
    rails = parse_rails(line)
    total = total_rails(rails)
    return sum(rails[name] for name in total) * 1e-3 if total else None


class TegrastatsMeter:
    """A running tegrastats."""

    def __init__(
        self,
        *,
        command: Sequence[str] = ("tegrastats",),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; `command` is what to run, the interval is appended."""
        self._command = tuple(command)
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._partial = b""
        self.info = MeterInfo(
            driver="tegrastats",
            label=self._command[0],
            kind=Kind.INSTANT,
            scope=Scope.MODULE,
            rate_hz=_RATE_HZ,
            quantum=0.04,  # 40 mW, one step of the current at the module's 5 V input
            gain_rel=0.02,
            sync_err_s=0.02,
            leaves_out="carrier board, what hangs on it, supply losses",
        )

    def open(self) -> None:
        """Start the program; raise MeterNotFoundError where it is not installed."""
        self._partial = b""
        try:
            self._process = subprocess.Popen(
                [*self._command, "--interval", str(int(1000 / _RATE_HZ))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise MeterNotFoundError(f"start tegrastats: {error.strerror}") from error
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def read(self) -> Sequence[Sample]:
        """Return the lines that came; each is dated when it is read."""
        assert self._process is not None, "opened before"
        assert self._process.stdout is not None
        data = self._process.stdout.read(65536)
        now_s = self._clock()
        if data == b"" and self._process.poll() is not None:
            raise MeterLostError(f"read tegrastats: it ended with {self._process.returncode}")
        *lines, self._partial = (self._partial + (data or b"")).split(b"\n")
        self._partial = self._partial[-_MAX_LINE:]
        totals_w = [parse_total_w(line.decode("ascii", errors="replace")) for line in lines]
        known_w = [total_w for total_w in totals_w if total_w is not None]
        # Several lines at once mean that we were late; only the last one is of now.
        return [Sample(now_s, known_w[-1])] if known_w else []

    def close(self) -> None:
        """Stop the program; may be called twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


DRIVER = Driver(
    name="tegrastats",
    summary="NVIDIA's tegrastats, where the sensors' files cannot be read",
    open=lambda _target: TegrastatsMeter(),
    targets=lambda: [""] if is_jetson() else [],
    hint="this is no Jetson",
    automatic=True,
)
