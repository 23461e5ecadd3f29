"""Verification without a barrier: a model of it, and lengths and shares for it.

Every device goes round by itself: it drafts and uploads (A_k), waits for the pass in progress to
end (W_k), and is verified with whatever else has arrived (D). A pass is as long as its batch, the
batch as large as the load: a fixed point. `predict` solves it for given lengths and shares;
`continuous` chooses them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_server.scheduler.cell import Cell, Floats, Ints, Plan
from edge_server.scheduler.deadline import latency, message_bits
from edge_server.scheduler.heterogeneous import common_lengths, goodput_of, plan_of

__all__ = ["Load", "continuous", "continuous_plan", "predict"]

STEPS = 200
PHASE_LOSS = 0.5  # a pass; fitted to event simulation, flat between 0.25 and 2
CHOICE_STEPS = 24
POLISH_DEVICES = 32
POLISH_ROUNDS = 8
GLANCE_STEPS = 6
MANY_DEVICES = 500  # from here on fewer prices
PRICES = (0.0, 0.1, 0.25, 0.45, 0.7, 0.85)  # of server time, as parts of goodput
PRICES_MANY = (0.3, 0.7)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Load:
    """What lengths and shares come to; [...] over plans.

    Attributes:
        cycle_s: time from one verdict of a device to its next; [..., K].
        pass_s: mean time of a pass, D.
        every_s: mean time from the start of one pass to the start of the next, C.
        batch: mean number of requests a pass.
    """

    cycle_s: Floats
    pass_s: Floats
    every_s: Floats
    batch: Floats


def predict(cell: Cell, lengths: Ints, bandwidth_hz: Floats) -> Load:
    """Return the steady state of given lengths and bands, both [..., K]."""
    away_s = latency(cell, lengths, bandwidth_hz)  # A_k
    load = idle_load(cell, lengths, away_s)
    for _ in range(STEPS):
        before = load.every_s
        load = advance(cell, lengths, away_s, load)
        if np.all(np.abs(load.every_s - before) < 1e-8 * before):
            break
    return load


def idle_load(cell: Cell, lengths: Ints, away_s: Floats) -> Load:
    """Return where the fixed point starts: everybody in every pass, nobody waits."""
    pass_s = cell.verify_s(lengths)
    return Load(
        cycle_s=away_s + pass_s[..., None],
        pass_s=pass_s,
        every_s=pass_s,
        batch=np.full_like(pass_s, float(cell.count)),
    )


def advance(cell: Cell, lengths: Ints, away_s: Floats, load: Load) -> Load:
    """Return one damped step of the fixed point."""
    cost, pass_s = cell.verify, load.pass_s
    wait_s = waiting(away_s, pass_s[..., None], busy(load))
    cycle_s = away_s + wait_s + pass_s[..., None]
    # Seen from the passes: the part of them that device k is in, at most every one.
    part = np.minimum(load.every_s[..., None] / cycle_s, 1.0)
    together = part.sum(axis=-1)
    batch = np.maximum(together, 1.0)
    new_pass_s = (
        cost.fixed_s
        + cost.per_request_s * batch
        + cost.per_row_s * (part * (lengths + 1.0)).sum(axis=-1) * batch / together
    )
    if cost.per_padded_row_s > 0.0:
        new_pass_s = new_pass_s + cost.per_padded_row_s * batch * longest(lengths, part)
    new_every_s = new_pass_s + idle(away_s, part, new_pass_s[..., None])
    return Load(
        cycle_s=cycle_s,
        pass_s=0.5 * (pass_s + new_pass_s),
        every_s=0.5 * (load.every_s + new_every_s),
        batch=batch,
    )


def busy(load: Load) -> Floats:
    """Return the part of the time that a pass with others in it runs; [..., K]."""
    often = 1.0 / load.cycle_s
    others = load.pass_s[..., None] * (often.sum(axis=-1, keepdims=True) - often)
    running: Floats = np.minimum((load.pass_s / load.every_s)[..., None], others)
    return running


def waiting(away_s: Floats, pass_s: Floats, busy_part: Floats) -> Floats:
    """Return the mean wait for the pass in progress to end, W_k.

    One that is back before the next pass ends waits for exactly the rest of it; after many passes
    all phases are equally likely and the wait is half a pass. In between, the first fades.
    """
    ratio = away_s / pass_s
    rest = np.ceil(ratio) - ratio
    level = 0.5 + (rest - 0.5) * np.exp(-PHASE_LOSS * ratio)
    wait_s: Floats = busy_part * pass_s * level
    return wait_s


def idle(away_s: Floats, part: Floats, pass_s: Floats) -> Floats:
    """Return the mean idle time of the server between two passes."""
    there = np.maximum(away_s, 1e-12)
    arrives = (1.0 - part) * np.minimum(1.0, pass_s / there)
    nobody = np.prod(1.0 - arrives, axis=-1) * (away_s.min(axis=-1) > 0.0)
    idle_s: Floats = nobody / (1.0 / there).sum(axis=-1)
    return idle_s


def longest(lengths: Ints, part: Floats) -> Floats:
    """Return the mean number of rows of the longest draft in a pass."""
    levels = range(int(lengths.max()) + 1)
    none = [np.prod(np.where(lengths >= level, 1.0 - part, 1.0), axis=-1) for level in levels]
    rows: Floats = len(none) - np.sum(none, axis=0)
    return rows


def continuous_plan(cell: Cell, lengths: Ints, bandwidth_hz: Floats, bound: float = np.inf) -> Plan:
    """Return the plan of given lengths and bands without a barrier."""
    load = predict(cell, lengths, bandwidth_hz)
    rates = cell.tokens()[np.arange(cell.count), lengths] / load.cycle_s
    return Plan(
        policy="continuous",
        lengths=lengths,
        bandwidth_hz=bandwidth_hz,
        round_s=float(cell.count / (1.0 / load.cycle_s).sum()),
        rates=rates,
        weight=cell.weight,
        bound_tokens_per_s=bound,
    )


def continuous(cell: Cell, *, fair: bool = False, polish: bool = True) -> Plan:
    """Return lengths and shares for verification without a barrier.

    Maximises Σ w_k rate_k, or Σ w_k log(rate_k) if `fair`, in the model of `predict`: for several
    prices of server time, every device's best length and band at a common price of band, iterated
    with the load that they cause; the best of these and of server-only is kept, and improved by
    local moves unless `polish` is off, which takes a few times as long.
    """
    chooser = Chooser(cell, fair=fair)
    plans = [*chooser.candidates(), barrier_plan(cell)]
    if cell.min_length == 0:
        alone = np.zeros((1, cell.count))
        plans.append((alone.astype(np.int64), alone))
    lengths = np.concatenate([plan[0] for plan in plans])
    bands = np.concatenate([plan[1] for plan in plans])
    best = int(np.argmax(chooser.score(lengths, bands)))
    found, band = lengths[best], bands[best]
    if polish:
        found, band = chooser.polish(found, band)
    return continuous_plan(cell, found, band)


def barrier_plan(cell: Cell) -> tuple[Ints, Floats]:
    """Return the best common length with the band of (20), as a start that is never silly."""
    plan = plan_of(cell, "", common_lengths(cell, goodput_of(cell)))
    return plan.lengths[None], plan.bandwidth_hz[None]


class Chooser:
    """Tables and iteration of the choice of lengths and bands."""

    def __init__(self, cell: Cell, *, fair: bool) -> None:
        self.cell, self.fair = cell, fair
        self.lengths = np.arange(cell.min_length, cell.max_length + 1)
        every = np.broadcast_to(self.lengths[:, None], (len(self.lengths), cell.count))
        self.tokens = cell.tokens()[:, cell.min_length :]  # [K, lengths]
        bits = message_bits(cell, every) / cell.efficiency
        self.need = np.ascontiguousarray(bits.T)  # Hz × s at each length
        drafting_s = every * cell.draft_s + np.where(every > 0, cell.delay_s, 0.0)
        self.drafting_s = np.ascontiguousarray(drafting_s.T)
        cost = cell.verify
        # Seconds of server time that a visit takes beyond the fixed part of its pass.
        self.visit_s = cost.per_request_s + (cost.per_row_s + cost.per_padded_row_s) * (
            self.lengths + 1.0
        )

    def score(self, lengths: Ints, bands: Floats) -> Floats:
        """Return the objective of plans [M, K]."""
        cycle_s = predict(self.cell, lengths, bands).cycle_s
        rates = self.cell.tokens()[np.arange(self.cell.count), lengths] / cycle_s
        score: Floats = (np.log(rates) if self.fair else rates) @ self.cell.weight
        return score

    def candidates(self) -> list[tuple[Ints, Floats]]:
        """Return the last plans for every price of server time; [M, K] each."""
        cell = self.cell
        many = cell.count >= MANY_DEVICES
        prices = PRICES_MANY if many else PRICES
        count = len(prices)
        start = np.full((count, cell.count), max(cell.min_length, min(4, cell.max_length)))
        bands = np.full((count, cell.count), cell.bandwidth_hz / cell.count)
        load = predict(cell, start, bands)
        reference = self.reference(start, load)
        price = np.array(prices)[:, None, None] * reference
        band_price = np.full((count, 1, 1), reference / cell.bandwidth_hz)
        found = []
        for _ in range(CHOICE_STEPS // 2 if many else CHOICE_STEPS):
            lengths, bands = self.choose(load, price, band_price)
            total = bands.sum(axis=1)
            factor = np.clip(total / cell.bandwidth_hz, 1e-4, 1e4) ** 1.5
            band_price = band_price * factor[:, None, None]
            bands = self.fit(bands)
            load = advance(cell, lengths, latency(cell, lengths, bands), load)
            found.append((lengths, bands))
        return found[-1:] if many else found[-2:]

    def reference(self, lengths: Ints, load: Load) -> float:
        """Return the scale of a second's worth: goodput, or the weights' rate of visits."""
        if self.fair:
            return float((self.cell.weight / load.cycle_s[0]).sum())
        tokens = self.cell.tokens()[np.arange(self.cell.count), lengths[0]]
        return float((self.cell.weight * tokens / load.cycle_s[0]).sum())

    def fit(self, bands: Floats) -> Floats:
        """Scale bands [M, K] so that they use the band up; zeros stay."""
        total = bands.sum(axis=1, keepdims=True)
        return bands * np.where(
            total > 0.0, self.cell.bandwidth_hz / np.maximum(total, 1e-300), 0.0
        )

    def choose(self, load: Load, price: Floats, band_price: Floats) -> tuple[Ints, Floats]:
        """Return every device's best length and band at given prices; [M, K] each."""
        wait_s = self.at_server_s(load)[..., None]  # [M, K, 1]
        bands, value = self.best_band(wait_s, price, band_price)
        at = np.argmax(value, axis=2)[..., None]
        lengths: Ints = self.lengths[at[..., 0]]
        return lengths, np.take_along_axis(bands, at, axis=2)[..., 0]

    def at_server_s(self, load: Load) -> Floats:
        """Return the time that a device expects between arrival and verdict; [M, K]."""
        return load.pass_s[:, None] * (1.0 + 0.5 * busy(load))

    def best_band(self, wait_s: Floats, price: Floats, band_price: Floats) -> tuple[Floats, Floats]:
        """Return the best band at every length and its value; [M, K, lengths] each."""
        if not self.cell.overlap:
            return self.branch(self.drafting_s + wait_s, self.need, price, band_price)
        cell = self.cell
        one = ((cell.overhead_bits + cell.payload_bits) / cell.efficiency)[:, None]
        edge = one / np.maximum(cell.draft_s, 1e-12)[:, None]  # band at which u_k = T_k
        some = self.lengths > 0
        hidden = self.branch(
            self.drafting_s + wait_s, one * some, price, band_price, least=edge * some
        )
        drafting_s = np.where(some, (cell.draft_s + cell.delay_s)[:, None], 0.0)
        open_ = self.branch(drafting_s + wait_s, self.need, price, band_price, most=edge)
        better = hidden[1] >= open_[1]
        return np.where(better, hidden[0], open_[0]), np.where(better, hidden[1], open_[1])

    def branch(
        self,
        fixed_s: Floats,
        need: Floats,
        price: Floats,
        band_price: Floats,
        *,
        least: Floats | float = 0.0,
        most: Floats | float = np.inf,
    ) -> tuple[Floats, Floats]:
        """Return the best band where a cycle takes `fixed_s + need / band`, and its value."""
        weight = self.cell.weight[:, None]
        charge = price * self.visit_s
        if self.fair:
            root = np.sqrt(need**2 + 4.0 * fixed_s * weight * need / band_price)
            band = (root - need) / (2.0 * fixed_s)
        else:
            worth = np.maximum(weight * self.tokens - charge, 1e-12)
            band = (np.sqrt(worth * need / band_price) - need) / fixed_s
        band = np.clip(band, least, most)
        with np.errstate(divide="ignore", invalid="ignore"):
            cycle_s = fixed_s + np.where(need > 0.0, need / band, 0.0)
        if self.fair:
            gain = weight * np.log(self.tokens / cycle_s) - charge / cycle_s
        else:
            gain = (weight * self.tokens - charge) / cycle_s
        usable = (need == 0.0) | (band > 0.0)
        return band, np.where(usable, gain - band_price * band, -np.inf)

    def polish(self, lengths: Ints, bands: Floats) -> tuple[Ints, Floats]:
        """Return the plan after single steps of length or band, while they help (small K)."""
        if self.cell.count > POLISH_DEVICES:
            return lengths, bands
        score = float(self.score(lengths[None], bands[None])[0])
        for _ in range(POLISH_ROUNDS):
            near, near_bands = self.neighbours(lengths, bands)
            at = int(np.argmax(self.glance(lengths, bands, near, near_bands)))
            found = float(self.score(near[at][None], near_bands[at][None])[0])
            if found <= score + 1e-6 * abs(score):
                break
            lengths, bands, score = near[at], near_bands[at], found
        return lengths, bands

    def neighbours(self, lengths: Ints, bands: Floats) -> tuple[Ints, Floats]:
        """Return plans one step away: a token or a part of its band more or less for one device."""
        cell, eye = self.cell, np.eye(self.cell.count)
        steps = np.concatenate((eye, -eye)).astype(np.int64)
        longer = np.clip(lengths + steps, cell.min_length, cell.max_length)
        per_token = bands / np.maximum(lengths, 1)
        start = np.where(lengths > 0, per_token, cell.bandwidth_hz / cell.count)
        same = np.broadcast_to(lengths, (4 * cell.count, cell.count))
        factors = np.concatenate([1.0 + eye * step for step in (1.0, 0.25, -0.2, -0.5)])
        all_bands = np.concatenate((longer * start, bands * factors))
        return np.concatenate((longer, same)), self.fit(all_bands)

    def glance(self, lengths: Ints, bands: Floats, near: Ints, near_bands: Floats) -> Floats:
        """Return the neighbours' objective after a few steps of the load from where it is."""
        load = predict(self.cell, lengths[None], bands[None])
        away_s = latency(self.cell, near, near_bands)
        for _ in range(GLANCE_STEPS):
            load = advance(self.cell, near, away_s, load)
        rates = self.cell.tokens()[np.arange(self.cell.count), near] / load.cycle_s
        score: Floats = (np.log(rates) if self.fair else rates) @ self.cell.weight
        return score
