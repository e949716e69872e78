"""The table of rules: one per kind of operation, and no default."""

from __future__ import annotations

from collections.abc import Callable

from convad_fx.compiler.analysis.steps import Refused, Step
from convad_fx.compiler.capture.op_schema import OpView

Rule = Callable[[OpView], Step]

#: kind -> rule. Filled by `rule` when the rule files are imported, and only then.
REGISTRY: dict[str, Rule] = {}


def rule(*kinds: str) -> Callable[[Rule], Rule]:
    """Register the rule of one or more kinds (rows of `spellings.SPELLINGS`).

    >>> @rule("my_kind")
    ... def my_rule(op):
    ...     return SameCell()

    Raises:
        ValueError: the kind has a rule already.
    """

    def register(function: Rule) -> Rule:
        for kind in kinds:
            if kind in REGISTRY:
                raise ValueError(f"{kind} already has a rule: {REGISTRY[kind].__name__}")
            REGISTRY[kind] = function
        return function

    return register


def step_of(op: OpView) -> Step:
    """What the rule of this operation says; a finding where there is none."""
    if op.kind not in REGISTRY:
        return Refused(
            f"no rule says what {op.spelling} does to the activity",
            "write a rule for it (docs/add-a-rule.md), or replace it by operations that have one",
        )
    return REGISTRY[op.kind](op)
