"""When strategies are selected, on a clock that the test sets."""

from __future__ import annotations

import pytest

from convad_fx.engine import probe
from convad_fx.engine.probe import RETRY_SHARE, StrategyProbe


class Clock:
    """Time as the test sets it."""

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


def call(known: StrategyProbe, clock: Clock, masks: int, select: float, evaluate: float) -> bool:
    """Whether strategies were selected, which takes `select` seconds; evaluation, per mask."""
    pays = known.pays("box", masks)
    with known.evaluating(masks):
        if pays:
            with known.selecting("box", masks):
                clock.now += select
        clock.now += evaluate * masks
    return pays


def test_slow_selection_is_skipped_and_retried(clock: Clock) -> None:
    known = StrategyProbe()
    selected = [call(known, clock, 256, select=0.08, evaluate=0.0001) for _ in range(1000)]
    assert selected[:5] == [True, True, True, False, False]
    assert sum(selected[3:]) >= 5
    spent = 0.08 * sum(selected[3:])
    assert spent < 1.1 * RETRY_SHARE * 0.0256 * 997
    assert known.selection_seconds == pytest.approx(0.08 * sum(selected))
    assert known.evaluation_seconds == pytest.approx(0.0256 * 1000)


def test_fast_selection_is_never_skipped(clock: Clock) -> None:
    known = StrategyProbe()
    assert all(call(known, clock, 256, select=0.08, evaluate=0.004) for _ in range(50))


def test_single_slow_selections_are_tolerated(clock: Clock) -> None:
    known = StrategyProbe()
    for seconds in (5.0, 0.08, 0.08, 5.0, 0.08, 0.08):
        assert call(known, clock, 256, select=seconds, evaluate=0.004)


def test_timings_of_single_masks_are_ignored(clock: Clock) -> None:
    known = StrategyProbe()
    for _ in range(20):
        call(known, clock, 1, select=0.005, evaluate=0.007)
    assert known.selection_times == {}
    assert all(call(known, clock, 256, select=0.08, evaluate=0.004) for _ in range(5))
    assert call(known, clock, 1, select=0.005, evaluate=0.007)


def test_slower_evaluation_enables_selection_again(clock: Clock) -> None:
    known = StrategyProbe()
    for _ in range(10):
        call(known, clock, 256, select=0.08, evaluate=0.0001)
    assert not known.pays("box", 256)
    for _ in range(3):  # moved to a slower device
        call(known, clock, 256, select=0.08, evaluate=0.01)
    assert known.pays("box", 256)
    assert known.pays("tile", 256)
