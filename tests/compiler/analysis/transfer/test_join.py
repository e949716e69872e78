"""Joins without a graph."""

from __future__ import annotations

import math

import pytest

from convad_fx import Policy
from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.axis_map import BatchAxis
from convad_fx.compiler.analysis.plan import Tracked
from convad_fx.compiler.analysis.transfer import Refusal
from tests.compiler.analysis.transfer.bench import Bench


@pytest.mark.parametrize(
    ("kind", "how", "identity"),
    [
        ("sum", "sum_activity(tau=0.5)", 0.0),
        ("product", "intersection()", None),
        ("max", "sum_activity(tau=0.5)", -math.inf),
        ("min", "sum_activity(tau=0.5)", math.inf),
    ],
)
def test_two_grids(kind: str, how: str, identity: float | None) -> None:
    bench = Bench(Policy(tau=0.5))
    outcome = bench.run(steps.Join(kind), bench.add("..xx"), 0)
    assert isinstance(outcome.result, Tracked)
    activity = bench.table[outcome.result.row]
    assert (str(activity.how), activity.of) == (how, (0, 1))
    assert outcome.identity == identity


def test_the_same_activity_twice_is_that_activity() -> None:
    assert Bench().run(steps.Join("sum"), 0, 0).result == Tracked(0)


def test_a_grid_and_one_value_per_sample_have_the_activity_of_the_grid() -> None:
    bench = Bench()
    one = bench.add("....")
    assert bench.run(steps.Join("sum"), one, 0).result == Tracked(0)
    assert bench.run(steps.Join("product"), 0, one).result == Tracked(0)


def test_two_values_per_sample_are_joined_without_tau() -> None:
    bench = Bench(Policy(tau=0.5))
    outcome = bench.run(steps.Join("sum"), bench.add("...."), bench.add("...."))
    assert outcome.identity is None
    assert str(bench.table[3].how) == "sum_activity()"


def test_elements_exist_unless_they_exist_in_neither() -> None:
    bench = Bench()
    padded = bench.add("..xx", padded=True)
    assert not bench.result(steps.Join("sum"), 0, padded).padded
    assert bench.result(steps.Join("sum"), padded, bench.add("..xx", padded=True)).padded


def test_a_constant_must_not_repeat_positions() -> None:
    assert Bench().run(steps.Join("sum"), 0, output=(13, 16, 10, 12)).result == Tracked(0)
    with pytest.raises(Refusal, match="repeats a position"):
        Bench().run(steps.Join("sum"), 0, shape=(13, 8, 1, 12), output=(13, 8, 10, 12))


def test_ranks_must_agree() -> None:
    with pytest.raises(Refusal, match="different ranks"):
        Bench().run(steps.Join("sum"), 0, output=(5, 13, 8, 10, 12))


def test_the_batch_must_be_on_the_same_axis() -> None:
    bench = Bench()
    with pytest.raises(Refusal, match="images"):
        bench.run(steps.Join("sum"), bench.add("..xx"), bench.add("x..x", BatchAxis(2)))
