"""One file per family of steps. A transfer function propagates activities through a step."""

from convad_fx.compiler.analysis.transfer import (  # noqa: F401  (importing registers them)
    join,
    layout,
    reduction,
    statistic,
    window,
)
from convad_fx.compiler.analysis.transfer.table import (
    ActivityTable,
    Context,
    Operand,
    Outcome,
    Refusal,
    transfer,
)

__all__ = ["ActivityTable", "Context", "Operand", "Outcome", "Refusal", "transfer"]
