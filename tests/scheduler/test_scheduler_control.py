"""Draft control, fed by hand: what it grants, what it remembers and what it does not believe."""

from __future__ import annotations

import numpy as np
import pytest

from edge_server.scheduler.cell import geometric_survival
from edge_server.scheduler.control import DraftControl
from edge_server.scheduler.interface import Mode, VerifyReport
from edge_server.scheduler.modes import RatioMode, rescaled
from tests.fakes.rounds import accepted_of, report_round


def feed(control: DraftControl, *, rounds: int, acceptance: float, pass_s: float) -> None:
    """Report rounds of one session by hand."""
    rng = np.random.default_rng(0)
    for number in range(rounds):
        now_s = float(number)
        grant = control.grant("d", 1, now_s=now_s)
        report_round(
            control,
            drafted=grant.length,
            accepted=accepted_of(grant.length, acceptance=acceptance, rng=rng),
            draft_s=0.03 * grant.length,
            turnaround_s=0.03 * grant.length + 0.05,
            pass_s=pass_s,
            now_s=now_s,
        )


def test_where_the_server_alone_is_faster_it_is_left_alone_but_probed() -> None:
    control = DraftControl(policy="continuous")
    control.opened("d", 1, mode=Mode.GREEDY, now_s=0.0)
    feed(control, rounds=30, acceptance=0.5, pass_s=0.005)
    assert control.grant("d", 1, now_s=31.0).length == 0
    lengths = []
    for number in range(200):
        report_round(
            control,
            drafted=0,
            accepted=0,
            draft_s=0.0,
            turnaround_s=0.0,
            pass_s=0.005,
            now_s=31.0 + number,
        )
        lengths.append(control.grant("d", 1, now_s=31.0 + number).length)
    assert max(lengths) > 0
    assert control.grant("d", 1, now_s=300.0).mode is Mode.GREEDY


def test_ratio_mode_is_chosen_on_a_wide_link_and_not_on_a_narrow_one() -> None:
    for rate_bps, mode in ((200e6, Mode.RATIO), (50e3, Mode.COUPLED)):
        ratio = RatioMode(support=64, bits_per_token=1700.0, acceptance_gain=0.7)
        control = DraftControl(policy="continuous", ratio_modes=(ratio,))
        control.opened("d", 1, mode=Mode.RATIO, now_s=0.0)
        control.observe_link("d", {"uplink_bps": rate_bps}, now_s=0.0)
        feed(control, rounds=12, acceptance=0.7, pass_s=0.3)
        grant = control.grant("d", 1, now_s=60.0)
        assert grant.mode is mode
        assert grant.support == (64 if mode is Mode.RATIO else 0)
    # A greedy session has no distribution to send.
    control.opened("d", 2, mode=Mode.GREEDY, now_s=0.0)
    assert control.grant("d", 2, now_s=90.0).mode is Mode.GREEDY


def test_capacity_and_energy_objectives_grant_something() -> None:
    for options in (
        {"objective": "capacity", "rate_tokens_per_s": 7.0},
        {"objective": "energy"},
        {"objective": "fair"},
    ):
        control = DraftControl(**options)
        control.opened("d", 1, mode=Mode.COUPLED, now_s=0.0)
        control.observe_energy("d", draft_j_per_token=0.05, tx_j_per_bit=1e-7, wait_w=2.0)
        feed(control, rounds=20, acceptance=0.9, pass_s=0.2)
        assert control.plan is not None
        assert control.grant("d", 1, now_s=50.0).length > 0


def test_nonsense_is_refused_or_ignored() -> None:
    with pytest.raises(ValueError, match="policy"):
        DraftControl(policy="lifo")
    with pytest.raises(ValueError, match="objective"):
        DraftControl(objective="speed")
    with pytest.raises(ValueError, match="rate_tokens_per_s"):
        DraftControl(objective="capacity")
    with pytest.raises(ValueError, match="acceptance_gain"):
        RatioMode(support=4, bits_per_token=80.0, acceptance_gain=1.5)
    control = DraftControl()
    control.observe_link("ghost", {"uplink_bps": 1e6}, now_s=0.0)
    control.opened("d", 1, mode=Mode.COUPLED, now_s=0.0)
    for value in ("fast", True, None, float("nan"), float("inf"), -1.0, 1e-300, 1e300):
        control.observe_link("d", {"uplink_bps": value}, now_s=0.0)
    assert control.grant("d", 1, now_s=1.0).length == 4
    assert control.grant("ghost", 9, now_s=1.0).length == 4
    control.closed("d", 1, now_s=2.0)
    control.closed("d", 1, now_s=2.0)
    with pytest.raises(ValueError, match="nothing was measured"):
        control.cell()


def test_one_device_that_lies_spoils_no_plan() -> None:
    control = DraftControl(policy="auto")
    for device in ("honest", "liar"):
        control.opened(device, 1, mode=Mode.GREEDY, now_s=0.0)
    for number in range(30):
        now_s = float(number)
        for device, draft_s in (("honest", 0.04), ("liar", 1e300)):
            control.observe_link(device, {"uplink_bps": 1e300}, now_s=now_s)
            report_round(
                control,
                device=device,
                drafted=4,
                accepted=4,
                draft_s=draft_s,
                turnaround_s=0.06,
                pass_s=0.1,
                now_s=now_s,
            )
            grant = control.grant(device, 1, now_s=now_s)
            assert 0 <= grant.length <= 8
            assert 0.0 < grant.share <= 1.0
    assert control.plan is not None
    assert np.isfinite(control.plan.rates).all()
    assert control.grant("honest", 1, now_s=31.0).length > 0


def test_rescaled_survival() -> None:
    curve = geometric_survival(np.array([0.8]), 4)[0]
    np.testing.assert_allclose(rescaled(curve, 0.5), 0.9 ** np.arange(1, 5))


def test_tokens_drafted_while_waiting_hide_neither_draft_time_nor_round_trip() -> None:
    """Behind a draft accepted whole, two of four tokens were drafted before the verdict came."""
    control = DraftControl()
    control.opened("d", 1, mode=Mode.GREEDY, now_s=0.0)
    control.observe_link("d", {"uplink_bps": 1e9}, now_s=0.0)
    for number in range(20):
        now_s = 1.0 + number
        whole = number % 2 == 0
        turnaround_s = 0.08 + 0.03 if whole else 0.04 + 0.03
        report_round(
            control,
            drafted=4,
            accepted=4 if whole else 1,
            draft_s=0.08,
            turnaround_s=turnaround_s,
            pass_s=0.1,
            now_s=now_s,
            uplink_bytes=0,
        )
    cell = control.cell()
    assert cell.draft_s[0] == pytest.approx(0.02)
    assert cell.delay_s[0] == pytest.approx(0.03)


def test_a_device_that_comes_back_is_known() -> None:
    control = DraftControl(policy="continuous")
    control.opened("d", 1, mode=Mode.GREEDY, now_s=0.0)
    control.observe_link("d", {"uplink_bps": 3e6}, now_s=0.0)
    feed(control, rounds=60, acceptance=0.2, pass_s=0.1)
    before, length = control.cell(), control.grant("d", 1, now_s=60.0).length
    control.closed("d", 1, now_s=61.0)
    assert control.opened("d", 2, mode=Mode.GREEDY, now_s=62.0).length == length
    after = control.cell()
    assert after.draft_s == before.draft_s
    assert after.efficiency == before.efficiency == pytest.approx(3e6)
    assert after.survival[0, 0] == pytest.approx(before.survival[0, 0], abs=0.1)
    assert control.opened("stranger", 3, mode=Mode.GREEDY, now_s=63.0).length == 4


def test_devices_that_left_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_server.scheduler.control.DEVICES_KEPT", 3)
    control = DraftControl()
    control.opened("stays", 0, mode=Mode.GREEDY, now_s=0.0)
    for number in range(1, 10):
        control.opened(f"d{number}", number, mode=Mode.GREEDY, now_s=0.0)
        control.closed(f"d{number}", number, now_s=0.0)
    assert list(control._devices) == ["stays", "d8", "d9"]


def test_a_link_report_that_repeats_itself_teaches_nothing() -> None:
    def after(reports: list[dict[str, object]]) -> float:
        control = DraftControl()
        control.opened("d", 1, mode=Mode.GREEDY, now_s=0.0)
        control.observe_verify(
            VerifyReport(requests=1, rows=5, context_tokens=5, duration_s=0.1, now_s=0.0)
        )
        control.observe_link("d", {"uplink_bps": 1e6, "n": 1}, now_s=0.0)
        for number, report in enumerate(reports):
            control.observe_link("d", report, now_s=1.0 + number)
        return float(control.cell().efficiency[0])

    vague: dict[str, object] = {"uplink_bps": 1.5e6, "uplink_sd_bps": 0.75e6}
    once = after([vague | {"n": 2}])
    assert after([vague | {"n": 2}] * 20) == once
    assert 1.5e6 > after([vague | {"n": 2 + number} for number in range(20)]) > once
    sure = after([vague | {"n": 2, "uplink_sd_bps": 0.03e6}])
    assert sure > once > 1e6
