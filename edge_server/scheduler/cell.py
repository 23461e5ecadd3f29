"""One cell in the paper's terms: devices, band, verification time; and a solved plan for it.

Arrays are over devices k = 0..K-1; lengths L are integers. It knows no solver and no file format.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sdk.errors import ConfigError

__all__ = ["Cell", "CellError", "Floats", "Ints", "Plan", "VerifyCost", "geometric_survival"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class CellError(ConfigError):
    """A cell that cannot be solved; the message names the field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyCost:
    """Verification time of one pass, seconds: equation (7), with rows where rows cost.

    A pass takes `fixed_s + per_request_s K + per_row_s Σ(L_k+1) + per_padded_row_s K (max L + 1)`.
    """

    fixed_s: float = 0.0
    per_request_s: float = 0.0
    per_row_s: float = 0.0
    per_padded_row_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("fixed_s", "per_request_s", "per_row_s", "per_padded_row_s"):
            if not 0.0 <= getattr(self, name) < np.inf:
                raise CellError(f"verify.{name} must be at least 0, got {getattr(self, name)}")
        if self.fixed_s + self.per_request_s + self.per_row_s + self.per_padded_row_s == 0.0:
            raise CellError("verify: a pass that takes no time at all cannot be planned for")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cell:
    """Everything a solver needs to know.

    Attributes:
        bandwidth_hz: the band that devices share, B.
        payload_bits: bits per drafted token, Q.
        overhead_bits: bits that every message costs besides.
        verify: the cost of a verification pass.
        draft_s: seconds per drafted token, T_k; at least 0.
        efficiency: bit/s per Hz of granted band, r_k; above 0.
        survival: S_k(l) for l = 1..max_length; [K, max_length], not increasing along l.
        weight: what one token of each device is worth; above 0.
        min_length, max_length: bounds of every L_k.
        delay_s: what a drafted round waits besides drafting and upload (round trip); 0 at length 0.
        overlap: each token is uploaded while the next is drafted, a message a token.
        ids: a name per device.
        draft_j: joules per drafted token.
        tx_j_per_bit: joules per uploaded bit.
        wait_w: watts while a device is not drafting.
        energy_cap_w: most average power of any device; None for no cap.
        min_rate: least tokens/s of every device that objective `energy` may leave it with.
    """

    bandwidth_hz: float
    payload_bits: float
    verify: VerifyCost
    draft_s: Floats
    efficiency: Floats
    survival: Floats
    weight: Floats = field(default_factory=lambda: np.empty(0))
    delay_s: Floats = field(default_factory=lambda: np.empty(0))
    overhead_bits: float = 0.0
    min_length: int = 0
    max_length: int = 25
    overlap: bool = False
    ids: tuple[str, ...] = ()
    draft_j: Floats = field(default_factory=lambda: np.empty(0))
    tx_j_per_bit: Floats = field(default_factory=lambda: np.empty(0))
    wait_w: Floats = field(default_factory=lambda: np.empty(0))
    energy_cap_w: float | None = None
    min_rate: float = 0.0

    def __post_init__(self) -> None:
        count = len(self.draft_s)
        if count == 0:
            raise CellError("devices: a cell needs at least one")
        for name in ("weight", "delay_s", "draft_j", "tx_j_per_bit", "wait_w"):
            if len(getattr(self, name)) == 0:
                object.__setattr__(self, name, np.full(count, float(name == "weight")))
        if not self.ids:
            object.__setattr__(self, "ids", tuple(f"d{k}" for k in range(count)))
        self._check_scalars()
        self._check_arrays(count)

    def _check_scalars(self) -> None:
        if not 0.0 < self.bandwidth_hz < np.inf:
            raise CellError(f"bandwidth_hz must be above 0, got {self.bandwidth_hz}")
        for name, value in (
            ("payload_bits_per_token", self.payload_bits),
            ("message_overhead_bits", self.overhead_bits),
            ("min_rate_tokens_per_s", self.min_rate),
        ):
            if not 0.0 <= value < np.inf:
                raise CellError(f"{name} must be at least 0, got {value}")
        if self.payload_bits + self.overhead_bits == 0.0:
            raise CellError("payload_bits_per_token and message_overhead_bits cannot both be 0")
        if not 0 <= self.min_length <= self.max_length:
            raise CellError(
                f"min_draft_length must be in [0, max_draft_length], got {self.min_length}"
                f" with max_draft_length {self.max_length}"
            )
        if self.energy_cap_w is not None and not self.energy_cap_w > 0.0:
            raise CellError(f"energy_cap_w must be above 0, got {self.energy_cap_w}")

    def _check_arrays(self, count: int) -> None:
        for name, least_open in (
            ("draft_s", False),
            ("efficiency", True),
            ("weight", True),
            ("delay_s", False),
            ("draft_j", False),
            ("tx_j_per_bit", False),
            ("wait_w", False),
        ):
            array = getattr(self, name)
            good = np.isfinite(array) & (array > 0.0 if least_open else array >= 0.0)
            if array.shape != (count,) or not good.all():
                raise CellError(f"devices: {name} must be {count} finite numbers of 0 or more")
        if len(self.ids) != count or len(set(self.ids)) != count:
            raise CellError("devices: every device needs an id of its own")
        curve = self.survival
        if curve.shape != (count, self.max_length):
            raise CellError(f"devices: survival must be {count} x {self.max_length}")
        falling = np.diff(curve, axis=1, prepend=1.0) <= 0.0
        if not (falling.all() and (curve >= 0.0).all()):
            raise CellError("devices: survival must fall from at most 1 to at least 0")

    @property
    def count(self) -> int:
        """K, the number of devices."""
        return len(self.draft_s)

    def tokens(self) -> Floats:
        """Return N_k(l) = 1 + Σ_{i≤l} S_k(i), equation (12) for any curve; [K, max_length + 1]."""
        ones = np.ones((self.count, 1))
        return np.cumsum(np.concatenate((ones, self.survival), axis=1), axis=1)

    def verify_s(self, lengths: Ints) -> Floats:
        """Return the time of a pass over everyone; lengths [..., K] -> [...]."""
        cost, count = self.verify, self.count
        rows = lengths.sum(axis=-1) + count
        padded = count * (lengths.max(axis=-1) + 1)
        fixed_s = cost.fixed_s + cost.per_request_s * count
        time_s: Floats = fixed_s + cost.per_row_s * rows + cost.per_padded_row_s * padded
        return time_s

    def subset(self, chosen: Ints) -> Cell:
        """Return the same cell with only some of its devices."""
        return replace(
            self,
            ids=tuple(self.ids[k] for k in chosen),
            draft_s=self.draft_s[chosen],
            efficiency=self.efficiency[chosen],
            survival=self.survival[chosen],
            weight=self.weight[chosen],
            delay_s=self.delay_s[chosen],
            draft_j=self.draft_j[chosen],
            tx_j_per_bit=self.tx_j_per_bit[chosen],
            wait_w=self.wait_w[chosen],
        )

    def acceptance(self) -> Floats:
        """Return one acceptance per device, a_k: tokens accepted over tokens reached; [K].

        Equal to a where S(l) = a^l. Kept within [1e-4, 1 - 1e-4], so that its logarithm is safe.
        """
        accepted = self.survival.sum(axis=1)
        reached = 1.0 + self.survival[:, :-1].sum(axis=1)
        acceptance: Floats = np.clip(accepted / reached, 1e-4, 1.0 - 1e-4)
        return acceptance


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A solved cell.

    Attributes:
        policy: the solver that made it.
        lengths: L_k.
        bandwidth_hz: B_k.
        round_s: time from one verdict to the next; where there is no common round, its mean.
        rates: tokens/s of every device.
        bound_tokens_per_s: what no plan of this kind can exceed (weighted); inf where unknown.
        groups: in ping-pong, the group of every device; else empty.
        joules_per_token: all devices' energy over all devices' tokens.
    """

    policy: str
    lengths: Ints
    bandwidth_hz: Floats
    round_s: float
    rates: Floats
    weight: Floats
    bound_tokens_per_s: float = np.inf
    groups: tuple[int, ...] = ()
    joules_per_token: float = 0.0

    @property
    def goodput_tokens_per_s(self) -> float:
        """Sum of the devices' rates."""
        return float(self.rates.sum())

    @property
    def weighted_goodput(self) -> float:
        """Sum of the devices' rates, each times its weight: what was maximised."""
        return float(self.rates @ self.weight)


def geometric_survival(acceptance: Floats, max_length: int) -> Floats:
    """Return S_k(l) = a_k^l, the paper's model (11); acceptance in [0, 1)."""
    curve: Floats = acceptance[:, None] ** np.arange(1, max_length + 1)
    return curve
