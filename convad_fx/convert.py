"""The pipeline from a model to a masked network: capture, plan, check, rewrite, simplify, lower."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.fx
from torch import Tensor, nn

from convad_fx.compiler.analysis.plan import Finding, Plan
from convad_fx.compiler.analysis.propagate import plan
from convad_fx.compiler.analysis.report import Report, report_of, untraceable
from convad_fx.compiler.capture.requirements import unwrapped
from convad_fx.compiler.capture.threads import TRACING
from convad_fx.compiler.capture.trace import FRONT_ENDS, Trace, trace
from convad_fx.compiler.capture.verify import Mismatch, compare
from convad_fx.compiler.lowering.strategies import Strategies, plan_strategies
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
    verify: bool = True,
) -> MaskedModule:
    """Compile a trained network to ``masked(x, mask)``.

    >>> import torch, torchvision
    >>> model = torchvision.models.squeezenet1_1().eval()
    >>> masked = convert(model, torch.zeros(1, 3, 64, 64))
    >>> x, mask = torch.rand(2, 3, 64, 64), torch.rand(2, 1, 64, 64) > 0.5    # True = kept
    >>> logits = masked(x, mask)
    >>> masked.compile()                  # plain torch.compile

    Args:
        model: in eval mode. It is not changed; its parameters are shared. Wrappers of torch.compile
            and DataParallel are removed.
        example: an image batch (N, C, *grid), of which only shape, dtype and device matter. The
            result takes any batch size, and other image sizes wherever the model takes them.
        policy: how activity propagates; default `Policy()`.
        on_finding: "raise": refuse a model for which Assumption 1 is not shown to hold. "ignore":
            convert it anyway, and treat such operations as if they kept elements in place. No law
            is guaranteed then: hidden pixels may leak through.
        front_end: what captures the model: "symbolic" (torch.fx), "export" (torch.export, for
            control flow on shapes; for the example's image size only), or "auto": symbolic, or
            export where that fails or does not compute what the model computes.
        simplify: False keeps a gate after every operation: slower, the same results.
        verify: run model and result on random images: equal bit for bit with everything kept (on
            batches of 1, of 2 and of the example's size), and hidden values do not arrive. A
            difference is a finding that names the first module that differs. Costs about ten
            forward passes of one image.

    Raises:
        ModelError: not a module in eval mode with one image input.
        ImageError: the model does not take the example.
        UntraceableModel: its forward cannot be captured.
        UnsupportedModel: Assumption 1 is not shown to hold, or the result differs from the model;
            the message lists every finding.
    """
    policy = Policy() if policy is None else policy
    if not isinstance(policy, Policy):
        raise PolicyError(f"expected a Policy, not {type(policy).__name__}")
    _require_choice("on_finding", on_finding, ON_FINDING)
    _require_choice("front_end", front_end, ("auto", *FRONT_ENDS))
    options = _Options(policy, on_finding == "ignore", simplify, verify)
    report, masked = _either_front_end(model, example, front_end, options)
    if masked is None:
        raise UnsupportedModel(
            str(report), hint="convad_fx.check(model, example) returns these findings as objects"
        )
    return masked


def check(
    model: nn.Module,
    example: Tensor,
    policy: Policy | None = None,
    *,
    front_end: str = "auto",
    verify: bool = True,
) -> Report:
    """Report whether Assumption 1 is shown to hold for a model. Never raises for a finding.

    >>> import torch, torchvision
    >>> report = check(torchvision.models.vit_b_16().eval(), torch.zeros(1, 3, 224, 224))
    >>> report.ok, len(report.findings), report.findings[0].path
    (False, 12, 'encoder.layers.encoder_layer_0.self_attention')

    A model that cannot be captured at all is a finding too, and so is one that the conversion would
    not compute exactly: ``verify`` as in `convert`.

    Raises:
        ModelError, ImageError: a model in training mode, an example of the wrong shape ... as in
            `convert`.
    """
    _require_choice("front_end", front_end, ("auto", *FRONT_ENDS))
    try:
        options = _Options(policy or Policy(), verify=verify)
        return _either_front_end(model, example, front_end, options)[0]
    except UntraceableModel as error:
        return untraceable(type(unwrapped(model)).__name__, error.path, error.what, error.hint)


@dataclass(frozen=True, slots=True)
class _Options:
    policy: Policy
    ignore_findings: bool = False
    simplify: bool = True
    verify: bool = True


def _either_front_end(
    model: nn.Module, example: Tensor, front_end: str, options: _Options
) -> tuple[Report, MaskedModule | None]:
    """The report, and the masked network where it has no findings or they are ignored.

    What torch.fx captures and the model does not compute is captured by torch.export instead.
    """
    with TRACING:  # torch.export switches kernels for all threads, which verification would see
        report, masked, mismatch = _attempt(model, example, front_end, options)
        symbolic = report.front_end == FRONT_ENDS["symbolic"]
        if mismatch is None or front_end != "auto" or not symbolic:
            return report, masked
        try:
            second, masked, mismatch = _attempt(model, example, "export", options)
        except UntraceableModel:
            return report, None
    return (second, masked) if mismatch is None else (report, None)


def _attempt(
    model: nn.Module, example: Tensor, front_end: str, options: _Options
) -> tuple[Report, MaskedModule | None, Mismatch | None]:
    traced = trace(model, example, front_end)
    decided = plan(traced, options.policy, ignore_findings=options.ignore_findings)
    report = report_of(traced, decided, type(unwrapped(model)).__name__)
    if decided.findings and not options.ignore_findings:
        return report, None, None
    graph, strategies = _lowered(traced, decided, options.policy, simplify=options.simplify)
    report = replace(report, boxes=str(strategies))
    masked = MaskedModule(traced.module, graph, options.policy, report, strategies)
    if decided.findings or not options.verify:
        return report, masked, None
    hides = options.policy.input != "raw"
    mismatch = compare(unwrapped(model), traced.module, masked, example, hides=hides)
    if mismatch is None:
        return report, masked, None
    finding = Finding(
        mismatch.path or report.model,
        "forward",
        (),
        None,
        f"the converted network does not compute what the model does: {mismatch.what}",
        "write what forward does there without decisions by type(x) or by the number of images, and"
        " without context managers: keep the branch that your images take"
        + (', or pass front_end="auto"' if front_end != "auto" else ""),
    )
    return replace(report, findings=(finding,), boxes=""), None, mismatch


def full_report(traced: Trace, decided: Plan, policy: Policy, name: str) -> Report:
    """The report on a plan; where it has no findings, also on the execution strategies."""
    report = report_of(traced, decided, name)
    if not report.ok:
        return report
    _, strategies = _lowered(traced, decided, policy)
    return replace(report, boxes=str(strategies))


def _lowered(
    traced: Trace, decided: Plan, policy: Policy, *, simplify: bool = True
) -> tuple[torch.fx.Graph, Strategies]:
    """The masked graph of a plan, and what it was lowered to for `evaluate`."""
    graph = rewrite(traced, decided, policy)
    if simplify:
        simplify_graph(graph, decided)
    return graph, plan_strategies(traced, decided, graph)


def _require_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise PolicyError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
