"""One file per family of operations. A rule reads an `OpView` and returns a step; see registry."""

from convad_fx.compiler.analysis.rules import (  # noqa: F401  (importing registers the rules)
    join,
    layout,
    pointwise,
    reduction,
    refused,
    statistic,
    window,
)
from convad_fx.compiler.analysis.rules.registry import REGISTRY, rule, step_of

__all__ = ["REGISTRY", "rule", "step_of"]
