"""The way of a model through the compiler: trace, plan, check, rewrite, simplify."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from convad_fx.compiler.analysis.plan import Plan
from convad_fx.compiler.analysis.propagate import plan
from convad_fx.compiler.analysis.report import Report, report_of, untraceable
from convad_fx.compiler.capture.requirements import unwrapped
from convad_fx.compiler.capture.trace import FRONT_ENDS, Trace, trace
from convad_fx.compiler.lowering.strategies import plan_strategies
from convad_fx.compiler.passes.insert_gates import rewrite
from convad_fx.compiler.passes.simplify import simplify as simplify_graph
from convad_fx.compiler.policy import Policy
from convad_fx.errors import PolicyError, UnsupportedModel, UntraceableModel
from convad_fx.module import MaskedModule

ON_FINDING = ("raise", "ignore")


def convert(
    model: nn.Module,
    example: Tensor,
    policy: Policy | None = None,
    on_finding: str = "raise",
    *,
    front_end: str = "auto",
    simplify: bool = True,
) -> MaskedModule:
    """Compile a trained network to ``masked(x, mask)``.

    >>> import torch, torchvision
    >>> model = torchvision.models.squeezenet1_1().eval()
    >>> masked = convert(model, torch.zeros(1, 3, 64, 64))
    >>> x, mask = torch.rand(2, 3, 64, 64), torch.rand(2, 1, 64, 64) > 0.5    # True = kept
    >>> logits = masked(x, mask)
    >>> masked.compile()                  # torch.compile, nothing of our own

    Args:
        model: in eval mode. It is not changed; its parameters are shared. What torch.compile or
            DataParallel put around it is taken off.
        example: an image batch (N, C, *grid): its shape, dtype and device count, not its values.
            Afterwards any batch works, and other image sizes wherever the model takes them.
        policy: how activity travels; default `Policy()`.
        on_finding: "raise": refuse a model for which Assumption 1 is not shown to hold. "ignore":
            convert all the same, treating the operation as if it kept cells in place. No law is
            proved then: hidden pixels may leak through such an operation.
        front_end: what captures the model: "symbolic" (torch.fx), "export" (torch.export, for
            control flow on shapes; then for the example's image size only), or "auto": the first,
            and where it fails the second.
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
    _choice("on_finding", on_finding, ON_FINDING)
    _choice("front_end", front_end, ("auto", *FRONT_ENDS))
    traced = trace(model, example, front_end)
    decided = plan(traced, policy, ignore_findings=on_finding == "ignore")
    report = report_of(traced, decided, type(unwrapped(model)).__name__)
    if decided.findings and on_finding == "raise":
        raise UnsupportedModel(
            str(report), hint="convad_fx.check(model, example) gives these findings as objects"
        )
    graph = rewrite(traced, decided, policy)
    if simplify:
        simplify_graph(graph, decided)
    strategies = plan_strategies(traced, decided, graph)
    report = replace(report, boxes=str(strategies))
    return MaskedModule(traced.module, graph, policy, report, strategies)


def check(
    model: nn.Module, example: Tensor, policy: Policy | None = None, *, front_end: str = "auto"
) -> Report:
    """Is Assumption 1 shown to hold for this model? Never raises for a finding.

    >>> import torch, torchvision
    >>> report = check(torchvision.models.vit_b_16().eval(), torch.zeros(1, 3, 224, 224))
    >>> report.ok, len(report.findings), report.findings[0].path
    (False, 12, 'encoder.layers.encoder_layer_0.self_attention')

    A model that cannot be captured at all is a finding too. What is wrong with the call itself (a
    model in training mode, an example of the wrong shape) raises as in `convert`.
    """
    _choice("front_end", front_end, ("auto", *FRONT_ENDS))
    try:
        traced = trace(model, example, front_end)
    except UntraceableModel as error:
        return untraceable(type(unwrapped(model)).__name__, error.path, error.what, error.hint)
    policy = policy or Policy()
    return full_report(traced, plan(traced, policy), policy, type(unwrapped(model)).__name__)


def full_report(traced: Trace, decided: Plan, policy: Policy, name: str) -> Report:
    """What a plan says about Assumption 1 and, where it holds, whether masks run on boxes."""
    report = report_of(traced, decided, name)
    if not report.ok:
        return report
    graph = rewrite(traced, decided, policy)
    simplify_graph(graph, decided)
    return replace(report, boxes=str(plan_strategies(traced, decided, graph)))


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise PolicyError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
