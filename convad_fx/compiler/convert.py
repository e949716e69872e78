"""The way of a model through the compiler: trace, plan, check, rewrite, simplify."""

from __future__ import annotations

from torch import Tensor, nn

from convad_fx.compiler.checker import Report, report_of, untraceable
from convad_fx.compiler.masked import MaskedModule
from convad_fx.compiler.plan import plan
from convad_fx.compiler.policy import Policy
from convad_fx.compiler.rewrite import rewrite
from convad_fx.compiler.simplify import simplify as simplify_graph
from convad_fx.compiler.trace import trace
from convad_fx.errors import PolicyError, UnsupportedModel, UntraceableModel

ON_FINDING = ("raise", "ignore")


def convert(
    model: nn.Module,
    example: Tensor,
    policy: Policy | None = None,
    on_finding: str = "raise",
    *,
    simplify: bool = True,
) -> MaskedModule:
    """Compile a trained network to ``masked(x, mask)``.

    >>> masked = convert(model, torch.zeros(1, 3, 224, 224))
    >>> logits = masked(x, mask)     # x (N, 3, 224, 224), mask bool (N, 1, 224, 224), True = kept
    >>> masked.compile()             # torch.compile, nothing of our own

    Args:
        model: in eval mode. It is not changed; its parameters are shared.
        example: an image batch (N, C, *grid): its shape, dtype and device count, not its values.
            Afterwards any batch works, and other image sizes wherever the model takes them.
        policy: how activity travels; default `Policy()`.
        on_finding: "raise": refuse a model for which Assumption 1 is not shown to hold. "ignore":
            convert all the same, treating the operation as if it kept cells in place. No law is
            proved then: hidden pixels may leak through such an operation.
        simplify: False leaves a gate after every operation: slower, the same results.

    Raises:
        ModelError: not a module in eval mode with one image input.
        ImageError: the model does not take the example.
        UntraceableModel: its forward cannot be captured.
        UnsupportedModel: Assumption 1 is not shown to hold; the message lists every finding.
    """
    policy = Policy() if policy is None else policy
    if not isinstance(policy, Policy):
        raise PolicyError(f"expected a Policy, not {type(policy).__name__}")
    if on_finding not in ON_FINDING:
        raise PolicyError(f"on_finding must be one of {', '.join(ON_FINDING)}, not {on_finding!r}")
    traced = trace(model, example)
    decided = plan(traced, policy, ignore_findings=on_finding == "ignore")
    report = report_of(traced, decided, type(model).__name__)
    if decided.findings and on_finding == "raise":
        raise UnsupportedModel(
            str(report), hint="convad_fx.check(model, example) gives these findings as objects"
        )
    graph = rewrite(traced, decided, policy)
    if simplify:
        simplify_graph(graph, decided)
    return MaskedModule(traced.module, graph, policy, report)


def check(model: nn.Module, example: Tensor, policy: Policy | None = None) -> Report:
    """Is Assumption 1 shown to hold for this model? Never raises for a finding.

    >>> report = check(model, torch.zeros(1, 3, 224, 224))
    >>> report.ok, len(report.findings)
    (True, 0)
    >>> print(report)

    A model that cannot be captured at all is a finding too. What is wrong with the call itself (a
    model in training mode, an example of the wrong shape) raises as in `convert`.
    """
    try:
        traced = trace(model, example)
    except UntraceableModel as error:
        return untraceable(type(model).__name__, error.path, error.what, error.hint)
    return report_of(traced, plan(traced, policy or Policy()), type(model).__name__)
