"""Energy per token on the board: meters, windows, phases, records.

    from sdk.energy import EnergyMonitor, PhaseLog, energy_per_token, idle_between, open_meter

    phases = PhaseLog()                                   # session: on_phase=phases.enter
    with EnergyMonitor(meter=open_meter("auto")) as monitor:
        before = monitor.measure(t_idle0_s, t_idle1_s)    # optional: idle, for net figures
        monitor.begin_window("generate")
        ...
        measurement = monitor.end_window("generate")
        record = energy_per_token(
            measurement, phases, drafted=d, accepted=a, emitted=e, idle=idle_between(before, after)
        )
    publish(json.dumps(record.to_json()))

Windows are on the monotonic clock. Nothing here knows of models, of the wire or of the server.
"""

from sdk.energy.interface import (
    Availability,
    EnergyMeter,
    Kind,
    MeterInfo,
    MeterLostError,
    MeterNotFoundError,
    Sample,
    Scope,
    available,
)
from sdk.energy.monitor import EnergyMonitor
from sdk.energy.phases import Phase, PhaseLog, Span
from sdk.energy.record import (
    EnergyRecord,
    Idle,
    Interval,
    energy_per_token,
    idle_between,
    record_schema,
)
from sdk.energy.recording import write_recording
from sdk.energy.registry import Driver, find_meters, open_meter
from sdk.energy.tokens import Tokens
from sdk.energy.window import Measurement, Verdict, WindowError

__all__ = [
    "Availability",
    "Driver",
    "EnergyMeter",
    "EnergyMonitor",
    "EnergyRecord",
    "Idle",
    "Interval",
    "Kind",
    "Measurement",
    "MeterInfo",
    "MeterLostError",
    "MeterNotFoundError",
    "Phase",
    "PhaseLog",
    "Sample",
    "Scope",
    "Span",
    "Tokens",
    "Verdict",
    "WindowError",
    "available",
    "energy_per_token",
    "find_meters",
    "idle_between",
    "open_meter",
    "record_schema",
    "write_recording",
]
