"""docs/operations.md, from the registry, the spellings and what rules say of the case samples."""

from __future__ import annotations

from pathlib import Path

from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.rules import REGISTRY
from convad_fx.compiler.capture.paths import function_name
from convad_fx.compiler.capture.spellings import SPELLINGS, Spelling
from tests.cases import BATCH, CASES, FIRST, Case
from tests.oracle import operation_of, planned

PAGE = Path(__file__).parents[1] / "docs" / "operations.md"

#: What each step does to the activity, as docs/meaning.md has it.
SAYS: dict[type, str] = {
    steps.SameCell: "unchanged",
    steps.Constant: "none: it does not depend on the image's values",
    steps.Join: "unchanged, if one operand depends on the image; if two do, ",
    steps.Window: "`Phi > tau` over the window, or in place (positional)",
    steps.AdaptivePool: "`Phi > tau` over the elements pooled",
    steps.Resize: "`Phi > tau` over the elements of non-zero weight",
    steps.Statistic: "unchanged",
    steps.Reduce: "over all full axes: any; over some: `Phi > tau`; over others: unchanged",
    steps.Reshape: "the same reshape",
    steps.Rearrange: "the same order of axes",
    steps.Expand: "unchanged: no position is repeated",
    steps.Take: "the same slice",
    steps.Pieces: "the same slices",
    steps.Flip: "the same flip",
    steps.Pad: "added elements are active and do not exist, or copy (reflect, replicate, circular)",
    steps.Concat: "the same concatenation",
    steps.PixelShuffle: "the same shuffle",
    steps.ChannelShuffle: "the same shuffle, where it differs between channels",
    steps.Refused: "always refused",
}

JOINED = {
    "sum": "`Phi > tau` over the two elements",
    "product": "active where both are",
    "max": "`Phi > tau` over the two elements",
    "min": "`Phi > tau` over the two elements",
}

HEAD = """\
# Operations

What the compiler knows: one line for each kind of operation, with what happens to the
[activity](meaning.md) and for which reasons a use of it is refused. Anything that is not here is
refused as unknown; [how to add it](add-a-rule.md). *Reads gated*: whether inactive elements are set
to zero (in a maximum: never win) before it; *if mixed*: only where it combines elements that may
differ in activity. The last column leaves out what holds for all: an operation that combines,
slices or reorders the batch, that returns it on another axis than 0, reads a single sample without
a batch, or has a parameter computed from the image is refused. Every line is checked against the
real operation by `pytest tests/test_oracle.py`, which also writes this page (`--refresh`).

| kind | spelled | activity of the result | reads gated | refused |
|---|---|---|---|---|
"""
SHOWN = 7

#: Reasons that hold for every kind, so that no line repeats them.
GENERAL = (BATCH, FIRST, "computed from the image", "no rule says")

#: How Python writes them; the names are those of its own module.
OPERATORS = {
    "getitem": "x[...]", "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//",
    "mod": "%", "pow": "**", "matmul": "@", "and_": "&", "or_": "|", "xor": "^", "invert": "~",
    "gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!=",
}  # fmt: skip


def page() -> str:
    """The whole of docs/operations.md."""
    cases = {case.kind: case for case in CASES}
    assert set(cases) == set(REGISTRY)
    return HEAD + "".join(_line(row, cases[row.kind]) for row in SPELLINGS)


def kinds_of(text: str) -> list[str]:
    """The first column."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [line.split("`")[1] for line in lines]


def _line(row: Spelling, case: Case) -> str:
    does, gated, reasons = _found(case)
    fields = (f"`{row.kind}`", _spelled(row), "; ".join(does), gated, "; ".join(reasons))
    return "| " + " | ".join(field.replace("|", "\\|") for field in fields) + " |\n"


def _found(case: Case) -> tuple[list[str], str, list[str]]:
    """What the rule says of the samples: steps, whether they read gated, reasons of refusal."""
    does: dict[str, None] = {}
    reasons: dict[str, str] = {}
    gates: set[bool] = set()
    for sample in case.samples:
        if sample.broken or (case.kind == "elementwise" and does):
            continue
        traced, decided, _ = planned(sample)
        if sample.refused:
            for node in decided.nodes.values():  # a step, but its result must not be returned
                if node.finding and node.step and node.kind == case.kind:
                    does[SAYS[type(node.step)]] = None
            if sample.refused not in GENERAL:
                whys = (f.why for f in decided.findings if sample.refused in f.why)
                reasons.setdefault(sample.refused, next(whys, ""))
            continue
        known = decided.nodes.get(operation_of(traced, case.kind).node.name)
        step = (known and known.step) or steps.Constant()
        joined = JOINED[step.reads] if isinstance(step, steps.Join) else ""
        does[SAYS[type(step)] + joined] = None
        gates.add(bool(known and known.reads))
    says = list(does) or [SAYS[steps.Refused]]
    reads = {(True,): "yes", (False,): "no", (False, True): "if mixed"}.get(tuple(sorted(gates)))
    return says, reads or "", list(reasons.values())


def _spelled(row: Spelling) -> str:
    """Modules, functions, methods and operators; the first few where there are many."""
    names = [name.replace("#d", "{1,2,3}d") for name in row.modules.split()]
    names += [name.rpartition(".")[2] for name in row.foreign.split()]
    names += [f"{name.replace('#d', '{1,2,3}d')}()" for name in row.functions.split()]
    foreign = (name.removesuffix(".default") for name in row.foreign_functions.split())
    names += [f"{name.rpartition('.')[2]}()" for name in foreign]
    for other in row.others:
        name = str(getattr(other, "overloadpacket", other).__name__)
        if (public := function_name(other)).startswith("torch."):
            name = public.removeprefix("torch.")
        at = 0 if name in OPERATORS else len(names)
        names.insert(at, OPERATORS.get(name, f"{name}()"))
    names += [f".{name}()" for name in row.methods.split()]
    names += [f".{name}" for name in row.attributes.split()]
    names = [name for name in dict.fromkeys(names) if not name.strip(".").startswith("_")]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN + 1 else ""
    return ", ".join(f"`{name}`" for name in (names[:SHOWN] if more else names)) + more
