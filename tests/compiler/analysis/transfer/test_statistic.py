"""Same-cell steps and normalisations without a graph."""

from __future__ import annotations

import pytest

from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.axis_map import BatchAxis
from convad_fx.compiler.analysis.plan import Tracked
from convad_fx.compiler.analysis.transfer import Refusal, transfer
from tests.compiler.analysis.transfer.bench import Bench


def test_a_same_cell_step_changes_nothing() -> None:
    outcome = Bench().run(steps.SameCell(), 0, image_level=True)
    assert outcome.result == Tracked(0, image_level=True)
    assert outcome.identity is None


@pytest.mark.parametrize(
    ("axes", "identity", "image_level"), [((1,), None, True), ((1, 2, 3), 0.0, False)]
)
def test_only_statistics_over_positions_read_zeros(
    axes: tuple[int, ...], identity: float | None, image_level: bool
) -> None:
    outcome = Bench().run(steps.Statistic(axes), 0, image_level=True)
    assert outcome.result == Tracked(0, image_level)
    assert outcome.identity == identity


def test_a_softmax_over_positions_is_refused() -> None:
    with pytest.raises(Refusal, match="attention"):
        Bench().run(steps.Statistic((3,), refuse_full="it is attention"), 0)


def test_statistics_of_the_batch_are_refused() -> None:
    bench = Bench()
    with pytest.raises(Refusal, match="images"):
        bench.run(steps.Statistic((0,)), 0)
    with pytest.raises(Refusal, match="images"):
        bench.run(steps.Statistic((1,)), bench.add("..xx", BatchAxis(1)))


def test_a_step_without_a_function_is_a_bug_and_no_finding() -> None:
    with pytest.raises(TypeError, match="no transfer function for the step Constant"):
        Bench().run(steps.Constant(), 0)


def test_every_step_has_a_transfer_function() -> None:
    without = [steps.Constant, steps.Refused]  # the walk stops there
    registered = set(transfer.registry) - {object}
    assert registered == set(steps.Step.__args__) - set(without)
