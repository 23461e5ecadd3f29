"""The default rule, driven by a modelled device and server."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from edge_server.scheduler.adaptive import PROBE_FIRST_ROUNDS, AdaptiveLength
from edge_server.scheduler.interface import Mode
from tests.fakes.rounds import accepted_of, report_round


@dataclass
class World:
    """One device and one server, true values known."""

    acceptance: float
    draft_s: float
    link_s: float
    fixed_s: float
    per_row_s: float = 0.0
    says_draft_time: bool = True

    def best(self, longest: int) -> int:
        def goodput(length: int) -> float:
            tokens = sum(self.acceptance**position for position in range(length + 1))
            away_s = self.link_s + length * self.draft_s if length else 0.0
            return tokens / (away_s + self.fixed_s + self.per_row_s * (length + 1))

        return max(range(longest + 1), key=goodput)

    def run(self, control: AdaptiveLength, *, rounds: int, seed: int = 0) -> list[int]:
        rng = np.random.default_rng(seed)
        now_s, lengths = 0.0, []
        grant = control.grant("d", 1, now_s=now_s)
        for _ in range(rounds):
            lengths.append(grant.length)
            drafting_s = grant.length * self.draft_s
            turnaround_s = drafting_s + self.link_s if grant.length else 0.0
            pass_s = self.fixed_s + self.per_row_s * (grant.length + 1)
            now_s += turnaround_s + pass_s
            report_round(
                control,
                drafted=grant.length,
                accepted=accepted_of(grant.length, acceptance=self.acceptance, rng=rng),
                draft_s=drafting_s if self.says_draft_time else 0.0,
                turnaround_s=turnaround_s,
                pass_s=pass_s,
                now_s=now_s,
            )
            grant = control.grant("d", 1, now_s=now_s)
        return lengths


def opened(**options: int) -> AdaptiveLength:
    control = AdaptiveLength(**options)
    grant = control.opened("d", 1, mode=Mode.COUPLED, now_s=0.0)
    assert grant.mode is Mode.COUPLED
    return control


@pytest.mark.parametrize(
    "world",
    [
        World(acceptance=0.9, draft_s=0.005, link_s=0.03, fixed_s=0.1),
        World(acceptance=0.8, draft_s=0.02, link_s=0.01, fixed_s=0.15, per_row_s=0.01),
        World(acceptance=0.5, draft_s=0.01, link_s=0.02, fixed_s=0.08),
    ],
)
def test_length_reaches_the_best_within_one_token(world: World) -> None:
    lengths = world.run(opened(), rounds=300)
    late = lengths[150:]
    assert abs(float(np.median(late)) - world.best(8)) <= 1.0
    assert world.best(8) > 0
    assert min(late) > 0


def test_length_starts_at_four_and_goes_to_zero_where_drafting_loses() -> None:
    world = World(acceptance=0.5, draft_s=0.05, link_s=0.1, fixed_s=0.01)
    lengths = world.run(opened(), rounds=400)
    assert lengths[0] == 4
    assert world.best(8) == 0
    begun = [n for n in range(1, 400) if lengths[n] > 0 and lengths[n - 1] == 0]
    # 24 rounds alone, then 48, 96, 192: few probes of four drafts, and they grow apart.
    assert 3 <= len(begun) <= 4
    gaps = np.diff(begun)
    assert list(gaps) == sorted(gaps)
    assert gaps[0] > PROBE_FIRST_ROUNDS
    assert sum(length > 0 for length in lengths[40:]) <= 4 * len(begun)


def test_drafting_comes_back_when_it_pays_again() -> None:
    control = opened()
    slow = World(acceptance=0.6, draft_s=0.05, link_s=0.1, fixed_s=0.01)
    assert slow.run(control, rounds=20)[-1] == 0
    fast = World(acceptance=0.9, draft_s=0.002, link_s=0.005, fixed_s=0.1)
    assert min(fast.run(control, rounds=200)[-30:]) >= 5


def test_a_device_that_does_not_say_its_draft_time_is_still_served() -> None:
    world = World(acceptance=0.9, draft_s=0.002, link_s=0.01, fixed_s=0.2, says_draft_time=False)
    assert min(world.run(opened(), rounds=100)[50:]) >= 4


def test_bounds_hold_and_sessions_are_forgotten() -> None:
    world = World(acceptance=0.3, draft_s=0.05, link_s=0.1, fixed_s=0.01)
    control = opened(min_length=2, max_length=3, start_length=3)
    assert set(world.run(control, rounds=60)) <= {2, 3}
    control.closed("d", 1, now_s=9.0)
    assert control.grant("d", 1, now_s=9.0).length == 3
    assert opened(min_length=0, max_length=0, start_length=0).grant("d", 1, now_s=0).length == 0
    with pytest.raises(ValueError, match="min_length"):
        AdaptiveLength(min_length=3, start_length=2)
