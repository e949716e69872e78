"""Every rule against the operation it speaks for; and every kind has its rule, row and line.

What is judged, and how, stands in `oracle.py`; ``python -m tests.oracle KIND`` says it
for one kind.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.rules import REGISTRY
from convad_fx.compiler.capture.spellings import SPELLINGS
from convad_fx.compiler.capture.trace import trace
from convad_fx.compiler.policy import Policy
from tests import oracle
from tests.cases import CASES, Case, Of, Sample
from tests.operations_table import PAGE, SAYS, kinds_of, page


def _rows(*, refused: bool) -> list[Any]:
    return [
        pytest.param(
            case,
            sample,
            id=f"{case.kind}-{sample.name}",
            marks=pytest.mark.xfail(reason=sample.broken) if sample.broken else (),
        )
        for case in CASES
        for sample in case.samples
        if bool(sample.refused) == refused
    ]


@pytest.mark.parametrize(("case", "sample"), _rows(refused=False))
def test_the_rule_agrees_with_the_operation(case: Case, sample: Sample) -> None:
    if sample.needs:
        pytest.importorskip(sample.needs)
    verdict = oracle.judge(case.kind, sample)
    assert verdict.refusals == []
    assert _lines(verdict.unsound) == ""
    assert _lines(verdict.loose) == ""
    assert _lines(verdict.leaks) == ""
    assert _lines(verdict.values) == ""


@pytest.mark.parametrize(("case", "sample"), _rows(refused=True))
def test_what_must_be_refused_is_refused(case: Case, sample: Sample) -> None:
    if sample.needs:
        pytest.importorskip(sample.needs)
    reasons = oracle.judge(case.kind, sample).refusals
    assert any(sample.refused in why for why in reasons), reasons


def _lines(failures: list[oracle.Failure]) -> str:
    return "\n".join(map(str, failures))


# ------------------------------------------------------------------------------- completeness


def test_the_page_is_up_to_date(request: pytest.FixtureRequest) -> None:
    pytest.importorskip("timm")  # of which some rows tell
    if request.config.getoption("--refresh"):
        PAGE.write_text(page())
    assert PAGE.read_text() == page(), "run with --refresh, and read the diff"


def test_every_kind_has_one_rule_one_row_and_one_line() -> None:
    kinds = sorted(row.kind for row in SPELLINGS)
    assert sorted(REGISTRY) == kinds
    assert sorted(case.kind for case in CASES) == kinds
    assert sorted(kinds_of(PAGE.read_text())) == kinds


def test_a_sample_has_a_name_of_its_own_and_a_reason_to_differ() -> None:
    names = [f"{case.kind}-{sample.name}" for case in CASES for sample in case.samples]
    assert [name for name, group in itertools.groupby(sorted(names)) if len(list(group)) > 1] == []
    odd = [s for case in CASES for s in case.samples if bool(s.why) != (s.demand != "reads")]
    assert odd == []


def test_every_step_is_described() -> None:
    assert set(SAYS) == set(steps.Step.__args__)


# ------------------------------------------------------------------------- the oracle's own test


def _reads(function: Any, kind: str, shape: tuple[int, ...] = (1, 1, 3)) -> Tensor:
    model = Of(function).eval()
    x = torch.rand(1, *shape, dtype=torch.double)
    operation = oracle.operation_of(trace(model, x), kind)
    return oracle.read_sets(operation, x, nan=True)[0][0].int()


def test_the_oracle_finds_what_is_read() -> None:
    step = _reads(lambda x: x[..., ::2], "getitem")
    assert step.tolist() == [[1, 0, 0], [0, 0, 1]]
    swallowed = _reads(lambda x: torch.clamp(x, 0.2, 0.8), "elementwise")
    assert swallowed.tolist() == torch.eye(3).int().tolist()
    window = _reads(lambda x: nn.functional.max_pool2d(x, (1, 2), 1), "max_pool")
    assert window.tolist() == [[1, 1, 0], [0, 1, 1]]
    assert _reads(lambda x: torch.zeros_like(x), "constant_like").sum() == 0


@pytest.mark.parametrize(
    ("lie", "complaint"),
    [
        (
            steps.Window((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), channels=1, reads="max"),
            "unsound",
        ),
        (steps.Window((1, 5), (1, 1), ((0, 0), (2, 2)), (1, 1), channels=1, reads="max"), "loose"),
        (steps.Window((1, 3), (1, 1), ((0, 0), (1, 1)), (1, 1), channels=1, reads="sum"), "values"),
        (steps.SameCell(), "leaks"),
    ],
)
def test_a_rule_that_lies_is_found(
    lie: steps.Step, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A maximum over three cells, said to be over one, over five, a sum, and no window at all."""
    sample = Sample(
        "window", lambda: nn.MaxPool2d((1, 3), 1, (0, 1)), (1, 1, 6), fill=float("-inf")
    )
    assert oracle.judge("max_pool", sample).failures == []
    oracle.planned.cache_clear()
    monkeypatch.setitem(REGISTRY, "max_pool", lambda op: lie)
    assert getattr(oracle.judge("max_pool", sample), complaint)
    oracle.planned.cache_clear()


def test_policies_are_told_apart_where_they_matter() -> None:
    plain, window = Sample("plain", nn.ReLU), Sample("window", nn.ReLU, window=True)
    assert list(oracle.policies_of(plain)) == [
        Policy(attribution="receptive"),
        Policy(attribution="receptive", tau=0.5),
    ]
    assert Policy(input="strict") in list(oracle.policies_of(window))
