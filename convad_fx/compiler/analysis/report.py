"""Reads a plan and says whether Assumption 1 (the paper, section 4) is shown to hold.

Assumption 1: dimensions change only through parametric operations (windows with a known kernel,
stride, padding, dilation) or explicit steps that add, remove or relabel cells.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from convad_fx.compiler.analysis.plan import Finding, Plan
from convad_fx.compiler.capture.trace import Trace


@dataclass(frozen=True, slots=True)
class Report:
    """The checker's answer for one model.

    >>> import convad_fx, torchvision, torch
    >>> report = convad_fx.check(torchvision.models.resnet18().eval(), torch.zeros(1, 3, 64, 64))
    >>> report.ok
    True

    Attributes:
        model: its class name.
        front_end: what captured the graph.
        operations: how many operations of each kind the image reaches.
        activities: how many different activities there are, the mask among them.
        gated: operations that read gated input.
        size_bound: path of the operation that holds for the example's image size only, or "".
        findings: every place where the assumption is not shown to hold.
        boxes: whether masks run on the boxes that hold them, or why not; "" where not asked.
    """

    model: str
    front_end: str
    operations: tuple[tuple[str, int], ...]
    activities: int
    gated: int
    size_bound: str
    findings: tuple[Finding, ...]
    boxes: str = ""

    @property
    def ok(self) -> bool:
        """No findings: the model can be converted, and the laws hold for it."""
        return not self.findings

    def __str__(self) -> str:
        total = sum(count for _, count in self.operations)
        head = (
            f"{self.model}: {total} operations captured by {self.front_end};"
            f" {self.activities} different activities, {self.gated} operations read gated input"
        )
        if self.ok:
            lines = [head, "Assumption 1 holds: every operation has a known reach."]
        else:
            count = len(self.findings)
            lines = [head, f"Assumption 1 is not shown to hold: {count} finding{'s'[: count > 1]}"]
            lines += [f"  {i}. {finding}" for i, finding in enumerate(self.findings, 1)]
        if self.boxes:
            lines.append(f"It {self.boxes}.")
        if self.size_bound:
            lines.append(f"Holds for the example's image size only, because of {self.size_bound}.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "ok": self.ok,
            "front_end": self.front_end,
            "operations": dict(self.operations),
            "activities": self.activities,
            "gated": self.gated,
            "size_bound": self.size_bound,
            "findings": [asdict(finding) for finding in self.findings],
            "boxes": self.boxes,
        }


def report_of(traced: Trace, plan: Plan, model: str) -> Report:
    """What a plan says about Assumption 1."""
    kinds = Counter(node.kind for node in plan.nodes.values())
    return Report(
        model,
        traced.front_end,
        tuple(sorted(kinds.items())),
        len(plan.decided_rows()),
        sum(bool(node.reads) for node in plan.nodes.values()),
        plan.size_bound,
        plan.findings,
    )


def untraceable(model: str, path: str, why: str, hint: str) -> Report:
    """The report on a model that no front end could capture."""
    finding = Finding(path or model, "forward", (), None, why, hint)
    return Report(model, "none", (), 0, 0, "", (finding,))
