"""One normal form for every spelling of an operation.

A rule sees an `OpView` with named parameters and never ``args[3]``, whether the operation was
written as a module, a function, a method or an aten overload (see `spellings`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx
from torch import nn

from convad_fx.compiler.capture.node_facts import facts
from convad_fx.compiler.capture.paths import function_name
from convad_fx.compiler.capture.spellings import TABLES, Signature, aten


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor parameter of an operation, as a rule sees it.

    Attributes:
        shape: for a batch of `BATCH`.
        masked: it depends on the image, so it has an activity.
        node: name of the node in the graph.
        item: its index in the result of that node, if the node returns several tensors.
    """

    shape: tuple[int, ...]
    masked: bool = False
    node: str = ""
    item: int | None = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)


@dataclass(frozen=True, slots=True)
class OpView:
    """One operation in normal form: ``op.stride``, ``op.input.shape``, in every spelling.

    Attributes:
        kind: the row of `SPELLINGS`; also the name of its rule.
        path: dotted path in the model.
        spelling: as the model's author wrote it: ``Conv2d``, ``torch.flatten``, ``.view()``.
        params: parameters by name; tensors are `TensorView`.
        output: the output's shape, or a tuple of shapes; None if it is not a tensor.
        node: name of the node in the graph.
        sized: names of the parameters whose values were computed from the example's sizes.
    """

    kind: str
    path: str
    spelling: str
    params: Mapping[str, Any]
    output: Any = None
    node: str = ""
    sized: frozenset[str] = field(default=frozenset())

    def __getattr__(self, name: str) -> Any:
        try:
            return self.params[name]
        except KeyError:
            raise AttributeError(f"{self.kind} has no parameter {name!r}") from None

    def get(self, name: str, default: Any = None) -> Any:
        """A parameter, or the default if this spelling does not have it or it is None."""
        value = self.params.get(name)
        return default if value is None else value

    def masked(self) -> Iterator[tuple[str, TensorView]]:
        """Names and tensors of the parameters that depend on the image; items of lists singly."""
        for name, value in self.params.items():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, TensorView) and item.masked:
                    yield name, item


#: Attributes, methods and functions of tensors that do not depend on their values.
_PLAIN_ATTRIBUTES = """
    shape device dtype ndim is_cuda is_mps layout requires_grad is_sparse is_quantized names
    itemsize nbytes is_meta is_leaf
""".split()  # noqa: SIM905  (a list of words reads better)
_PLAIN_METHODS = """
    size dim ndimension numel nelement get_device is_floating_point is_complex stride is_contiguous
    element_size storage_offset
""".split()  # noqa: SIM905
_PLAIN_FUNCTIONS = (
    len,
    isinstance,
    torch._assert,
    torch.numel,
    torch.is_tensor,
    torch.is_floating_point,
    *aten("sym_size"),
    *aten("sym_numel"),
    *aten("sym_stride"),
)


def reads_no_values(node: torch.fx.Node) -> bool:
    """The operation reads only the shape, dtype or device of a tensor."""
    if node.op == "call_method":
        return node.target in _PLAIN_METHODS
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in _PLAIN_ATTRIBUTES
    return node.target in _PLAIN_FUNCTIONS


def op_view(
    node: torch.fx.Node, root: nn.Module, is_masked: Callable[[torch.fx.Node], bool]
) -> OpView:
    """The normal form of a node. An operation without a row gets the kind ``unknown``.

    Args:
        root: has the modules that the graph calls.
        is_masked: whether a node's tensors depend on the image.
    """
    kind, spelling, arguments = _parsed(node, root)
    sized: set[str] = set()

    def resolve(value: Any, name: str) -> Any:
        if isinstance(value, torch.fx.Node):
            known = facts(value)
            if known.is_tensor:
                return TensorView(known.shape, is_masked(value), value.name)
            if known.has_tensors:  # such as the result of chunk
                return tuple(
                    TensorView(shape, is_masked(value), value.name, i)
                    for i, shape in enumerate(known.shape)
                )
            sized.add(name)
            return known.value
        if isinstance(value, tuple | list):
            return tuple(resolve(item, name) for item in value)
        if isinstance(value, slice):
            return slice(*(resolve(v, name) for v in (value.start, value.stop, value.step)))
        return value

    params = {name: resolve(value, name) for name, value in arguments.items()}
    fact = facts(node)
    return OpView(kind, fact.path, spelling, params, fact.shape, node.name, frozenset(sized))


def _parsed(node: torch.fx.Node, root: nn.Module) -> tuple[str, str, Mapping[str, Any]]:
    """Kind, spelling and arguments by name, which may be nodes."""
    module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    if module is not None:
        row, spelling = TABLES.of_module(module), type(module).__name__
    elif node.target is getattr:
        row, spelling = TABLES.attributes.get(str(node.args[1])), f".{node.args[1]}"
    elif node.op == "call_method":
        row, spelling = TABLES.methods.get(str(node.target)), f".{node.target}()"
    else:
        row, spelling = TABLES.of_function(node.target), function_name(node.target)
    if row is None:
        return "unknown", spelling, {"inputs": (*node.args, *node.kwargs.values())}
    signature = Signature.parse(row.signature)
    if module is None:
        args = node.args[:1] if node.target is getattr else node.args
        return row.kind, spelling, signature.bind(args, node.kwargs)
    arguments = {"input": node.args[0] if node.args else next(iter(node.kwargs.values()))}
    arguments |= {name: _attribute(module, name) for name in signature.names[1:]}
    if row.kind == "conv":
        arguments["padding_mode"] = getattr(module, "padding_mode", "zeros")
    if len(node.args) > 1:
        arguments["more"] = tuple(node.args[1:])
    return row.kind, spelling, arguments


def _attribute(module: nn.Module, name: str) -> Any:
    value = getattr(module, name.lstrip("*"), None)
    return TensorView(tuple(value.shape)) if isinstance(value, torch.Tensor) else value
