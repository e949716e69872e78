"""When `evaluate` looks which way masks may go, by a clock that the test sets."""

from __future__ import annotations

import pytest

from convad_fx.engine import probe
from convad_fx.engine.probe import RETRY_SHARE, StrategyProbe


class Clock:
    """A call of `evaluate` on so many masks takes what is said here."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(probe, "MAX_SELECTION_SHARE", 1 / 4)
    monkeypatch.setattr(probe, "time", clock)
    return clock


def call(known: StrategyProbe, clock: Clock, masks: int, look: float, answer: float) -> bool:
    """Whether it was looked; a look takes so long in all, an answer so long for each mask."""
    pays = known.pays("boxes", masks)
    with known.evaluating(masks):
        if pays:
            with known.selecting("boxes", masks):
                clock.now += look
        clock.now += answer * masks
    return pays


def test_what_takes_longer_than_answering_is_left_and_tried_again(clock: Clock) -> None:
    known = StrategyProbe()
    looked = [call(known, clock, 256, look=0.08, answer=0.0001) for _ in range(1000)]
    assert looked[:5] == [True, True, True, False, False]
    assert sum(looked[3:]) >= 5
    spent = 0.08 * sum(looked[3:])
    assert spent < 1.1 * RETRY_SHARE * 0.0256 * 997
    assert known.selection_seconds == pytest.approx(0.08 * sum(looked))
    assert known.evaluation_seconds == pytest.approx(0.0256 * 1000)


def test_what_takes_less_is_done_every_time(clock: Clock) -> None:
    known = StrategyProbe()
    assert all(call(known, clock, 256, look=0.08, answer=0.004) for _ in range(50))


def test_one_slow_look_does_not_end_it(clock: Clock) -> None:
    known = StrategyProbe()
    for look in (5.0, 0.08, 0.08, 5.0, 0.08, 0.08):
        assert call(known, clock, 256, look=look, answer=0.004)


def test_single_masks_do_not_end_it_for_many(clock: Clock) -> None:
    known = StrategyProbe()
    for _ in range(20):
        call(known, clock, 1, look=0.005, answer=0.007)
    assert known.selection_times == {}
    assert all(call(known, clock, 256, look=0.08, answer=0.004) for _ in range(5))
    assert call(known, clock, 1, look=0.005, answer=0.007)


def test_other_masks_and_another_machine_are_noticed(clock: Clock) -> None:
    known = StrategyProbe()
    for _ in range(10):
        call(known, clock, 256, look=0.08, answer=0.0001)
    assert not known.pays("boxes", 256)
    for _ in range(3):  # moved to where answering takes longer
        call(known, clock, 256, look=0.08, answer=0.01)
    assert known.pays("boxes", 256)
    assert known.pays("tiles", 256)
