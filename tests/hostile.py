"""Calls of everything that a file may call, with hostile arguments, for `test_artifact_forged`.

    python tests/hostile.py LOG SEED CALLS FIRST STEP

tries CALLS calls of every STEP-th operation from the FIRST on. A call may raise anything. It may
not write to a tensor it is given; and if it ends the process, LOG holds what was called.
"""

from __future__ import annotations

import random
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.fx

from convad_fx.artifact import allowed, arguments
from convad_fx.compiler.capture.spellings import TABLES
from convad_fx.errors import ArtifactError

MOST = 2**31 - 1
INTEGERS: tuple[int, ...] = (0, 1, 1, 1, 2, 2, 3, 4, 6, 7, -1, -2, 100, 2**16, 2**20, MOST, -MOST)
#: A graph can compute these, but not contain them.
HUGE = (2**40, 2**62, -(2**63), sys.maxsize)
INTEGERS += HUGE
NUMBERS = (0.0, 1.0, 0.5, 2.0, -1.0, 1e-5, 1e-30, 1e-300, 1e30, float("nan"), float("inf"))
STRINGS = tuple(
    "nearest bilinear bicubic trilinear linear area nearest-exact same valid constant reflect"  # noqa: SIM905
    " replicate circular sum mean fro nuc none tanh floor trunc border zeros ij,jk->ik i-> cpu"
    " torch.sparse.FloatTensor amax left right".split()
)
SIZES = frozenset(
    "stride padding dilation kernel_size output_size kernel size shape dims dim"  # noqa: SIM905
    " normalized_shape sizes repeats output_padding pad axes grid wanted reach strides".split()
)
TENSORS = frozenset(
    "input other third weight bias running_mean running_var grid index indices"  # noqa: SIM905
    " query key value self x activity z source like a b mask whole box exists tensor".split()
)
#: What may stand for a tensor, none of it larger than a few kilobytes.
MAKERS: tuple[Callable[[], torch.Tensor], ...] = (
    lambda: torch.rand(1, 4, 6, 6),
    lambda: torch.rand(2, 4, 6, 6),
    lambda: torch.rand(4, 4, 3, 3),
    lambda: torch.rand(4),
    lambda: torch.rand(4, 6),
    lambda: torch.rand(1, 4, 6),
    lambda: torch.rand(1, 4, 6, 6, 6),
    lambda: torch.rand(()),
    lambda: torch.empty(0),
    lambda: torch.empty(1, 4, 0, 6),
    lambda: torch.randint(-3, 5, (1, 4, 6, 6)),
    lambda: torch.zeros(4, dtype=torch.int64),
    lambda: torch.zeros(1, 4, 6, 6, dtype=torch.int64),
    lambda: torch.tensor([2**30, -(2**40), 2**62, -1]),
    lambda: torch.tensor(-(2**63)),
    lambda: torch.full((1, 4, 6, 6), 2**40),
    lambda: torch.full((1, 4, 6, 6), -(2**63)),
    lambda: torch.full((2, 2), -(2**31), dtype=torch.int32),
    lambda: torch.full((1, 6, 6, 2), 1e30),
    lambda: torch.full((1, 6, 6, 2), float("nan")),
    lambda: torch.rand(1, 4, 6, 6) > 0.5,
    lambda: torch.rand(1, 4, 6, 6).double(),
    lambda: torch.rand(1, 4, 6, 6).half(),
    lambda: torch.rand(1, 4, 6, 6) + 0j,
    lambda: torch.rand(1, 4, 6, 6)[..., ::2],
    lambda: torch.rand(1, 4, 1, 1).expand(1, 4, 6, 6),
    lambda: torch.rand(1, 4, 6, 6).permute(3, 1, 0, 2),
    lambda: torch.empty(1, 4, 6, 6, device="meta"),
)


class Hostile:
    """Draws arguments: mostly of the right type, of any value."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)

    def tensor(self) -> torch.Tensor:
        return self.random.choice(MAKERS)()

    def integers(self) -> list[int]:
        usual = self.random.random() < 0.4
        count = self.random.choice([0, 1, 2, 2, 2, 3, 3, 4, 6])
        return [self.random.choice((1, 2, 3, 0, -1) if usual else INTEGERS) for _ in range(count)]

    def anything(self) -> Any:
        choose = self.random.choice
        kinds: tuple[Callable[[], Any], ...] = (
            self.tensor, self.tensor, lambda: choose(INTEGERS), lambda: choose(INTEGERS),
            self.integers, lambda: tuple(self.integers()), lambda: choose(NUMBERS),
            lambda: choose([True, False, None]), lambda: choose(STRINGS),
            lambda: [self.tensor() for _ in range(choose([1, 2, 3]))],
            lambda: choose([torch.float32, torch.int64, torch.bool, torch.quint8]),
            lambda: slice(*(choose([None, choose(INTEGERS)]) for _ in range(3))),
            lambda: ((choose(INTEGERS), choose(INTEGERS)), (1, 1)),
        )  # fmt: skip
        return choose(kinds)()

    def of(self, kind: str) -> Any:
        """For a type in a schema, or the name of a parameter."""
        choose = self.random.choice
        if self.random.random() < 0.05:
            return self.anything()
        if kind.startswith("Optional["):
            return None if self.random.random() < 0.4 else self.of(kind[9:-1])
        if kind == "Tensor" or kind in TENSORS:
            return self.tensor()
        if kind.startswith("List[") and "Tensor" in kind:
            return [self.tensor() for _ in range(choose([1, 2, 3]))]
        if kind in ("List[int]", "List[SymInt]"):
            return self.integers()
        if kind in SIZES:
            return choose([choose(INTEGERS), self.integers(), tuple(self.integers())])
        if kind in ("int", "SymInt"):
            return choose(INTEGERS)
        if kind in ("number", "float"):
            return choose((*NUMBERS, *INTEGERS))
        return self.anything()

    def call(self, function: Any) -> tuple[list[Any], dict[str, Any]]:
        """Arguments for a function, an overload, or the name of a method."""
        if isinstance(function, torch._ops.OpOverload):
            given = [a for a in function._schema.arguments if self.wanted(a.has_default_value())]
            cut = next((i for i, a in enumerate(function._schema.arguments) if a not in given), 99)
            place = [self.of(str(a.type)) for a in function._schema.arguments[:cut]
                     if not a.kwarg_only]  # fmt: skip
            named = {a.name: self.of(str(a.type)) for a in given if a.kwarg_only}
            return place, named
        signature = None if isinstance(function, str) else arguments._signature(function)
        if signature is not None:
            parameters = signature.parameters.values()
            named = {p.name: self.of(p.name) for p in parameters
                     if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
                     and self.wanted(p.default is not p.empty)}  # fmt: skip
            return [self.of(p.name) for p in parameters if p.kind is p.POSITIONAL_ONLY], named
        table = TABLES.methods if isinstance(function, str) else TABLES.functions
        row = table.get(function)
        words = row.signature.split() if row else ["input", "*more"]
        place = []
        for word in words:
            name, _, default = word.partition("=")
            if default and not self.wanted(True):
                break
            if name.startswith("*"):
                place += [self.anything() for _ in range(self.random.choice([0, 1, 1, 2, 3]))]
            else:
                place.append(self.of(name))
        return place, {}

    def wanted(self, optional: bool) -> bool:
        return not optional or self.random.random() < 0.5


def operations() -> list[tuple[str, Any]]:
    """Everything that a file may call, and the names of methods."""
    methods = [(f".{name}", name) for name in sorted(allowed.methods())]
    return [*allowed.functions().items(), *methods]


def allows(function: Any, args: list[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a graph may make this call; tensors are nodes there, and so are huge numbers."""
    node = torch.fx.Graph().placeholder("x")

    def as_node(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(as_node, value))
        computed = isinstance(value, torch.Tensor) or (type(value) is int and value in HUGE)
        return node if computed else value

    try:
        named = {key: as_node(value) for key, value in kwargs.items()}
        arguments.check_call(function, [as_node(value) for value in args], named)
    except ArtifactError:
        return False
    return True


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        values = value.tolist() if value.numel() < 5 and not value.is_meta else ""
        return f"{value.dtype}{tuple(value.shape)}{value.device}{values}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return repr(value)


def attempt(function: Any, args: list[Any], kwargs: dict[str, Any]) -> bool:
    """Make a call and read its result. Whether it returned, and wrote to no tensor it was given."""
    given = [(t, t._version) for t in tensors([args, list(kwargs.values())])]
    try:
        with torch.no_grad():
            method = isinstance(function, str)
            call = getattr(args[0], function) if method else function
            result = call(*args[method:], **kwargs)
            for t in tensors(result):
                if not t.is_meta and t.numel() < 10**6:
                    t.clone().sum()
    except Exception:  # noqa: BLE001
        return False
    finally:
        changed = [t for t, version in given if t._version != version]
        assert not changed, f"{function} writes to {shown(changed)}"
    return True


def main(log: str, seed: str, calls: int, first: int, step: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    returned = 0
    for name, function in operations()[first::step]:
        for number in range(calls):
            torch.manual_seed(number)
            args, kwargs = Hostile(f"{name}{seed}{number}").call(function)
            if allows(function, args, kwargs):
                Path(log).write_text(f"{name}({shown(args)}, {shown(list(kwargs.items()))})")
                signal.setitimer(signal.ITIMER_REAL, 20)  # which ends the process
                returned += attempt(function, args, kwargs)
                signal.setitimer(signal.ITIMER_REAL, 0)
    print(returned)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
