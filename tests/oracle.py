"""What an operation reads, asked of the operation itself, and what follows from docs/meaning.md.

    python -m tests.oracle max_pool        # verdicts on that kind's cases; no name: on all

Every cell of an operand is changed in turn (to NaN, to 0, by little and by much); the output cells
that change with it read it. Neither plan nor rules are asked. From these read sets `demanded` says
which output cells have to be active, and `judge` compares that with what the compiler computes,
over all masks of a tiny image:

* unsound: an active cell is read, the rule says inactive; loose: the reverse;
* leaks: what is hidden under the mask changes the answer;
* values: an active cell is not what the operation gives for the gated operand.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.fx
from torch import Tensor, nn

from convad_fx.compiler.analysis.plan import Plan, Tracked
from convad_fx.compiler.analysis.propagate import plan
from convad_fx.compiler.capture.node_facts import facts
from convad_fx.compiler.capture.op_schema import op_view
from convad_fx.compiler.capture.trace import Trace, trace
from convad_fx.compiler.passes.insert_gates import rewrite
from convad_fx.compiler.passes.node_roles import inserted, is_original, role_of
from convad_fx.compiler.passes.simplify import simplify
from convad_fx.compiler.policy import Policy
from tests.cases import CASES, Case, Sample

Node = torch.fx.Node


@dataclass(frozen=True)
class Failure:
    """One cell that is not as it has to be, for the smallest mask that shows it."""

    what: str
    policy: Policy | None = None
    mask: Tensor | None = None
    cell: tuple[int, ...] = ()
    count: int = 1

    def __str__(self) -> str:
        lines = [self.what]
        if self.policy is not None:
            lines.append(f"  {self.policy}")
        if self.mask is not None:
            shown = ("#" if kept else "." for kept in self.mask.flatten().tolist())
            rows = ["".join(row) for row in itertools.zip_longest(*[shown] * self.mask.shape[-1])]
            lines.append(f"  mask {' '.join(rows)} of grid {tuple(self.mask.shape[1:])}")
            lines.append(f"  output cell {self.cell} (channel first); {self.count} such in all")
        return "\n".join(lines)


@dataclass
class Verdict:
    """What is wrong with one sample; empty lists where nothing is."""

    masks: int = 0
    refusals: list[str] = field(default_factory=list)
    unsound: list[Failure] = field(default_factory=list)
    loose: list[Failure] = field(default_factory=list)
    leaks: list[Failure] = field(default_factory=list)
    values: list[Failure] = field(default_factory=list)

    @property
    def failures(self) -> list[Failure]:
        return [*self.unsound, *self.loose, *self.leaks, *self.values]


# -------------------------------------------------------------------------------- what is read


@dataclass(frozen=True)
class Operation:
    """The operation under test in its graph: operands that the image reaches, and results.

    Where it is handed a tuple of tensors, its operand is the image.
    """

    traced: Trace
    node: Node
    operands: tuple[Node, ...]
    results: tuple[Node, ...]

    @property
    def image(self) -> Node:
        return next(n for n in self.traced.module.graph.nodes if n.op == "placeholder")

    def run(self, x: Tensor, given: dict[Node, Tensor]) -> list[Tensor]:
        """The real operation alone, on the model's own values or on those given. -> results"""
        if not set(self.operands) <= set(self.node.all_input_nodes):  # with all that leads to it
            run = _run(self.traced.module, None, given.get(self.image, x))
            return [run.env[node] for node in self.results]
        run = _run(self.traced.module, None, x)
        run.env |= given
        result = run.run_node(self.node)
        return (
            [result] if self.results == (self.node,) else [result[_place(n)] for n in self.results]
        )


def operation_of(traced: Trace, kind: str) -> Operation:
    """The last operation of this kind."""
    reached: set[Node] = set()
    for node in traced.module.graph.nodes:
        if node.op == "placeholder" or reached.intersection(node.all_input_nodes):
            reached.add(node)
    node = next(
        n
        for n in reversed(traced.module.graph.nodes)
        if n.op.startswith("call")
        and op_view(n, traced.module, lambda n: n in reached).kind == kind
        and not (kind == "getitem" and not facts(n.args[0]).is_tensor)
    )
    operands = tuple(n for n in node.all_input_nodes if n in reached and facts(n).has_tensors)
    if not all(facts(n).is_tensor for n in operands):
        operands = (next(n for n in traced.module.graph.nodes if n.op == "placeholder"),)
    results = (node,) if facts(node).is_tensor else tuple(node.users)
    return Operation(traced, node, operands, results)


def _place(node: Node) -> int:
    if node.target is operator.getitem:
        return int(node.args[1])  # type: ignore[arg-type]
    return ("values", "indices").index(str(node.args[1]))


def _run(module: nn.Module, graph: torch.fx.Graph | None, *args: Tensor) -> torch.fx.Interpreter:
    run = torch.fx.Interpreter(module, garbage_collect_values=False, graph=graph)
    with torch.no_grad():
        run.run(*args)
    return run


def _answers(run: torch.fx.Interpreter) -> tuple[Tensor, ...]:
    answer = next(run.env[n] for n in reversed(run.graph.nodes) if n.op == "output")
    return answer if isinstance(answer, tuple) else (answer,)


def probed(value: Tensor, *, nan: bool) -> Tensor:
    """(1, ...) -> (1 + probes, ...): the value, then each of its cells changed in several ways."""
    cells = value[0].numel()
    if value.dtype == torch.bool:
        changes = [~value]
    elif not value.is_floating_point():
        changes = [value + 1, value - 1, torch.zeros_like(value)]
    else:
        by = (0.05, -0.05, 0.5, -0.5, 10.0, -10.0, 1000.0)
        changes = [torch.zeros_like(value)] + [value + step for step in by]
        if nan:
            changes += [torch.full_like(value, v) for v in (math.nan, math.inf)]
    here = torch.eye(cells, dtype=torch.bool).reshape(cells, *value.shape[1:])
    return torch.cat([value, *(torch.where(here, change, value) for change in changes)])


def changed(answers: Tensor, cells: int) -> Tensor:
    """(1 + probes, ...) -> (output cells, probed cells): which differ from the first answer."""
    base, others = answers[:1].double(), answers[1:].double()
    same = (others - base).abs() <= 1e-11 * base.abs().clamp(min=1)
    same |= (others == base) | (others.isnan() & base.isnan())
    return (~same).reshape(-1, cells, base.numel()).any(0).T


def read_sets(operation: Operation, x: Tensor, *, nan: bool) -> list[list[Tensor]]:
    """For each result and operand: (output cells, operand cells), True where one reads the other.

    Cells are counted within a sample; the batch is what probes are laid out along.
    """
    sets: list[list[Tensor]] = [[] for _ in operation.results]
    start = _run(operation.traced.module, None, x).env
    for operand in operation.operands:
        values = probed(start[operand], nan=nan)
        batch = x.expand(len(values), *x.shape[1:])
        for found, answers in zip(sets, operation.run(batch, {operand: values}), strict=True):
            found.append(changed(answers, values[0].numel()))
    return sets


def existing(operation: Operation, x: Tensor) -> list[Tensor]:
    """For each operand: which of its cells the image reaches. The others do not exist for Phi."""
    env = _run(operation.traced.module, None, probed(x, nan=True)).env
    return [changed(env[operand], x[0].numel()).any(1) for operand in operation.operands]


# ------------------------------------------------------------------------------ what it demands


@dataclass(frozen=True)
class Operands:
    """What is known of the operands before the operation: activities (as stored), existence."""

    shapes: tuple[tuple[int, ...], ...]
    active: tuple[Tensor, ...]
    exist: tuple[Tensor, ...]

    def cells(self, i: int) -> Tensor:
        """(masks, cells): the activity of one operand, cell by cell."""
        return _cells(self.active[i], self.shapes[i])


def _cells(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(masks, cells) of a tensor, or an activity, that is stored with size 1 where it can be."""
    return t.expand(len(t), *shape[1:]).reshape(len(t), -1)


def demanded(
    sample: Sample, policy: Policy, operands: Operands, reads: list[Tensor], shape: tuple[int, ...]
) -> Tensor:
    """(masks, output cells): what docs/meaning.md says of the output's activity."""
    if sample.demand in ("place", "both", "grid"):  # by position, whatever is read
        stored = list(operands.active)
        if sample.demand == "place":
            stored = stored[:1]
        elif sample.demand == "grid":
            stored = [max(stored, key=lambda active: active[0].numel())]
        return torch.stack([_cells(active, shape) for active in stored]).all(0)
    here = sample.keeps_grid and policy.attribution == "positional" and policy.input != "strict"
    active = existing = torch.zeros(1)
    for i, read in enumerate(reads):
        cells = read & _same_place(shape, operands.shapes[i]) if here else read
        weights = (cells & operands.exist[i]).float()  # whole numbers
        active = active + operands.cells(i).float() @ weights.T
        existing = existing + weights.sum(1)
    if sample.window and policy.input == "strict":
        return active == existing
    tau = 0.0 if sample.demand == "any" else policy.tau
    return (active > tau * existing) | (existing == 0)


def _same_place(after: tuple[int, ...], before: tuple[int, ...]) -> Tensor:
    """(output cells, input cells): the same position of the grid, in whatever channel."""
    assert after[2:] == before[2:], "positional attribution needs a grid that stays"
    place = torch.eye(math.prod(after[2:]), dtype=torch.bool)
    return place.repeat(after[1], before[1])


def masks_of(grid: tuple[int, ...]) -> Tensor:
    """(masks, 1, *grid): all of them where there are at most 512, else a seeded sample."""
    cells = math.prod(grid)
    if cells <= 9:
        rows = torch.tensor(list(itertools.product([False, True], repeat=cells)))
    else:
        noise = torch.rand(64, cells, generator=torch.Generator().manual_seed(0))
        share = torch.linspace(0.1, 0.9, 64)[:, None]
        ends = torch.tensor([[False], [True]]).expand(2, cells)
        rows = torch.cat([ends, torch.eye(cells, dtype=torch.bool), noise < share])
    return rows.reshape(-1, 1, *grid)


# --------------------------------------------------------------------------------- the verdict


def policies_of(sample: Sample) -> Iterator[Policy]:
    """Those between which the operation can tell a difference."""
    taus = (0.0,) if sample.only_tau_0 else (0.0, 0.5)
    attributions = ("receptive", "positional") if sample.keeps_grid else ("receptive",)
    for attribution, tau in itertools.product(attributions, taus):
        yield Policy(tau=tau, attribution=attribution)
    if sample.window:
        yield Policy(input="strict")


@functools.cache
def planned(sample: Sample) -> tuple[Trace, Plan, Tensor]:
    """A sample captured, its plan by default, and an image for it."""
    torch.manual_seed(0)
    model = sample.build().eval().double()
    generator = torch.Generator().manual_seed(1)
    x = 0.1 + 0.8 * torch.rand(1, *sample.shape, dtype=torch.double, generator=generator)
    if sample.fill == -math.inf:
        x = x - 1  # where all is above zero, a hidden zero never wins
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about parameters we choose on purpose
        traced = trace(model, x)
    return traced, plan(traced, Policy()), x


def judge(kind: str, sample: Sample) -> Verdict:
    """Compare the compiler with the operation, over all masks and policies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False):  # its kernels smear a NaN
            return _judge(kind, sample)


def _judge(kind: str, sample: Sample) -> Verdict:
    traced, decided, x = planned(sample)
    verdict = Verdict(refusals=[finding.why for finding in decided.findings])
    if decided.findings or sample.refused:
        return verdict
    operation = operation_of(traced, kind)
    masks = masks_of(sample.shape[1:])
    verdict.masks = len(masks)
    reads = read_sets(operation, x, nan=sample.nan)
    exist = existing(operation, x)
    for policy in policies_of(sample):
        _judge_policy(verdict, sample, policy, operation, x, masks, reads, exist)
    return verdict


def _judge_policy(
    verdict: Verdict,
    sample: Sample,
    policy: Policy,
    operation: Operation,
    x: Tensor,
    masks: Tensor,
    reads: list[list[Tensor]],
    exist: list[Tensor],
) -> None:
    traced = operation.traced
    decided = plan(traced, policy)
    known = activities(traced, decided, policy, x, masks)

    def active(node: Node) -> Tensor:
        every = torch.ones(len(masks), *(1,) * (len(facts(node).shape) - 1), dtype=torch.bool)
        return known.get(node.name, every)  # where no activity is tracked, nothing is hidden

    def is_global(node: Node) -> bool:
        known = decided.nodes.get(node.name)
        result = known.result if known is not None else None
        return isinstance(result, Tracked) and decided.activities[result.row].is_global

    operands = Operands(
        tuple(facts(n).shape for n in operation.operands),
        tuple(active(n) for n in operation.operands),
        tuple(exist),
    )

    def add(failures: list[Failure], what: str, wrong: Tensor, shape: tuple[int, ...]) -> None:
        if not wrong.any():
            return
        order = masks.flatten(1).sum(1) * len(masks) + torch.arange(len(masks))
        mask = int(torch.where(wrong.any(1), order, order.max() + 1).argmin())
        at = int(wrong[mask].int().argmax())
        place = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), shape[1:]))
        failures.append(Failure(what, policy, masks[mask], place, int(wrong.sum())))

    # values: the masked network as it is run, with NaN and with numbers under the mask
    graph = rewrite(traced, decided, policy)
    simplify(graph, decided)
    batch = x.expand(len(masks), *x.shape[1:])
    run = _run(traced.module, graph, torch.where(masks, batch, math.nan), masks)
    again = _run(traced.module, graph, torch.where(masks, batch, 0.3 - batch), masks)
    own = {facts(n).name: n for n in graph.nodes if is_original(n)}
    given = {}
    for node, stored in zip(operation.operands, operands.active, strict=True):
        value = run.env[own[node.name]].expand(len(masks), *facts(node).shape[1:])
        given[node] = value if is_global(node) else _filled(value, stored, sample.fill)
    expected = operation.run(batch, given)

    for i, node in enumerate(operation.results):
        shape = facts(node).shape
        stored = active(node)
        rule = _cells(stored, shape)
        must = demanded(sample, policy, operands, reads[i], shape)
        add(
            verdict.unsound,
            "unsound: has to be active, the rule says inactive",
            must & ~rule,
            shape,
        )
        add(verdict.loose, "loose: has to be inactive, the rule says active", rule & ~must, shape)
        shown, other = (_answers(r)[i].expand(len(masks), *shape[1:]) for r in (run, again))
        add(verdict.leaks, "leaks: what is hidden changes it", _differ(shown, other), shape)
        answer = expected[i].double()
        compared = rule
        if is_global(node):  # not gated, so inactive cells are compared as well
            compared = torch.ones_like(rule)
            if math.isinf(sample.fill):  # but an extremum of nothing is 0
                answer = torch.where(stored, answer, 0.0)
        wrong = compared & _differ(shown, answer)
        add(verdict.values, "value: not what the operation gives on gated operands", wrong, shape)


def _filled(value: Tensor, active: Tensor, fill: float) -> Tensor:
    if value.dtype == torch.bool:
        return value & active
    return torch.where(
        active, value, torch.full_like(value, fill) if value.is_floating_point() else 0
    )


def _differ(a: Tensor, b: Tensor) -> Tensor:
    close = torch.isclose(a.double(), b.double(), rtol=1e-9, atol=1e-9, equal_nan=True)
    return ~close.reshape(len(close), -1)


def activities(
    traced: Trace, decided: Plan, policy: Policy, x: Tensor, masks: Tensor
) -> dict[str, Tensor]:
    """Node name -> its activity as the emitted graph computes it, stored as docs/meaning.md says.

    Activities of global tensors are computed only where something asks for them; so a gate is asked
    for everywhere.
    """
    asked = {
        name: replace(node, refill=True) if isinstance(node.result, Tracked) else node
        for name, node in decided.nodes.items()
    }
    graph = rewrite(traced, replace(decided, nodes=asked), policy)
    env = _run(traced.module, graph, x, masks).env
    image = next(n.name for n in traced.module.graph.nodes if n.op == "placeholder")
    found = {image: masks}
    for node in graph.nodes:
        if role_of(node) == "refill":
            found[inserted(node).source] = env[node.args[1]]
    return found


# ------------------------------------------------------------------------------- the command


def complaints(kind: str, sample: Sample) -> list[str]:
    """Everything wrong with one sample, ready to print."""
    verdict = judge(kind, sample)
    if sample.refused:
        if any(sample.refused in why for why in verdict.refusals):
            return []
        return [f"has to be refused ({sample.refused}); found: {verdict.refusals or 'nothing'}"]
    if verdict.refusals:
        return [f"is refused: {why}" for why in verdict.refusals]
    return [str(failure) for failure in verdict.failures]


def main(kinds: list[str]) -> int:
    unknown = sorted(set(kinds) - {case.kind for case in CASES})
    if unknown:
        print(f"no such kind: {', '.join(unknown)}; kinds: {' '.join(c.kind for c in CASES)}")
        return 2
    chosen: list[Case] = [case for case in CASES if not kinds or case.kind in kinds]
    wrong = 0
    for case in chosen:
        for sample in case.samples:
            found = complaints(case.kind, sample)
            wrong += bool(found)
            says = "refused, as it has to be" if sample.refused else "sound and tight"
            print(f"{case.kind}-{sample.name}: {says if not found else ''}".rstrip())
            for complaint in found:
                print("  " + complaint.replace("\n", "\n  "))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
