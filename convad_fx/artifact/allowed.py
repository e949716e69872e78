"""The functions, methods and layers that a graph in a file may call, by name.

The list is positive: the operations with a row in `SPELLINGS`, the kernels that emitted code calls,
and the few below that compute sizes and constants. Everything else is refused, at saving and at
loading. What is listed computes tensors from tensors and numbers from numbers, and torch checks its
indices; none reads files, loads code, takes a callable, or writes to a tensor (see `arguments`).
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
import torch.overrides
from torch import nn

from convad_fx.compiler.capture.in_place import OUT_OF_PLACE
from convad_fx.compiler.capture.spellings import SPELLINGS, TABLES
from convad_fx.compiler.kernels import EMITTED_FUNCTIONS
from convad_fx.errors import ArtifactError

#: Of sizes: Python's own functions, which torch.fx records as calls.
_BUILTINS: tuple[Callable[..., Any], ...] = (
    abs, bool, float, getattr, int, len, max, min, round, slice, sum, tuple, list,
)  # fmt: skip
_MATH = "ceil floor trunc sqrt prod log log2 log10 exp pow fabs"
_SIZES = "sym_size sym_numel sym_stride"
_SYMBOLIC = "sym_float sym_int sym_ite sym_max sym_min sym_not sym_sum"
#: Of constants: operations without a rule, which are refused only on what depends on the image.
_FACTORIES = "arange as_tensor eye full linspace ones scalar_tensor tensor zeros"
_CONSTANTS = """
    all any atan2 broadcast_tensors broadcast_to count_nonzero cross diag dot embedding hypot
    isclose meshgrid mv numel one_hot outer prod ravel repeat_interleave rot90 std_mean tril triu
    var_mean vdot
"""
_CONSTANT_METHODS = "all any prod ravel repeat_interleave tril triu"
_METHODS_OF_SIZES = """
    size dim ndimension numel nelement get_device is_floating_point is_complex stride is_contiguous
    element_size storage_offset
"""

#: Attributes of tensors that `getattr` may read in a graph.
ATTRIBUTES = frozenset(
    ["shape", "dtype", "device", "ndim", "layout", "T", "H", "mT", "mH", "real", "imag", "data"]
)
#: Attributes that every module has: its parameters, children, hooks.
MODULE_ATTRIBUTES = frozenset(nn.Module().__dict__)

#: torchvision's only function that a file may call. torchvision is imported for it alone.
_STOCHASTIC_DEPTH = "torchvision.ops.stochastic_depth"
_HOMES = {
    "torch": torch,
    "torch.nn.functional": F,
    "torch.linalg": torch.linalg,
    "torch.special": torch.special,
    "torch.fft": torch.fft,
}


@functools.cache
def functions() -> dict[str, Callable[..., Any]]:
    """Name -> function. Of several names of a function, files use the first."""
    table = {f"{f.__module__}.{f.__name__}": f for f in EMITTED_FUNCTIONS}
    table |= {f"builtins.{f.__name__}": f for f in _BUILTINS}
    table |= {f"math.{name}": getattr(math, name) for name in _MATH.split()}
    known = set(TABLES.functions)
    for name in f"{_FACTORIES} {_CONSTANTS} {_SYMBOLIC}".split():
        known |= {getattr(home, name) for home in (torch, F) if hasattr(home, name)}
    for prefix, home in {"operator": operator, **_HOMES}.items():
        for name, function in vars(home).items():
            public = name[0] != "_" and callable(function) and _hashable(function)
            if public and function in known:
                table.setdefault(f"{prefix}.{name}", function)
    table["torch._assert"] = torch._assert
    for packet in sorted(_packets()):
        for overload in _overloads(packet):
            table[f"torch.ops.aten.{packet}.{overload._overloadname}"] = overload
    return table


def _packets() -> set[str]:
    """The aten operations among which overloads are allowed."""
    known = {f.overloadpacket.__name__ for f in TABLES.functions if isinstance(f, _Overload)}
    return known | set(f"{_FACTORIES} {_CONSTANTS} {_SIZES}".split())


_Overload = torch._ops.OpOverload


def _overloads(packet: str) -> list[torch._ops.OpOverload]:
    """Those that take tensors, write to none, and take no generator, storage or names."""
    operation = getattr(torch.ops.aten, packet, None)
    found = []
    for name in operation.overloads() if operation else ():
        overload = getattr(operation, name)
        types = [str(argument.type) for argument in overload._schema.arguments]
        tensors = packet in _FACTORIES.split() or any("Tensor" in kind for kind in types)
        foreign = any(re.search("Generator|Storage|Dimname|str\\[\\]", kind) for kind in types)
        if tensors and not foreign and not overload._schema.is_mutable:
            found.append(overload)
    return found


@functools.cache
def _names() -> dict[Callable[..., Any], str]:
    names: dict[Callable[..., Any], str] = {}
    for name, function in functions().items():
        names.setdefault(function, name)
    return names


@functools.cache
def methods() -> frozenset[str]:
    """The methods of tensors that a graph may call."""
    known = {name for row in SPELLINGS for name in row.methods.split()}
    return frozenset(known.union(_METHODS_OF_SIZES.split(), _CONSTANT_METHODS.split()))


def _hashable(value: Any) -> bool:
    return getattr(type(value), "__hash__", None) is not None


def name_of(function: Any, where: str) -> str:
    """The name under which a file calls `function`.

    Raises:
        ArtifactError: it is not allowed; the message names `where`, the node or layer.
    """
    if _hashable(function):
        # capture leaves these on sizes alone, where they return a new number
        function = OUT_OF_PLACE.get(function, function)
        if function in _names():
            return _names()[function]
    if (
        getattr(function, "__module__", "") == _STOCHASTIC_DEPTH  # before it is imported
        and function_of(_STOCHASTIC_DEPTH) is function
    ):
        return _STOCHASTIC_DEPTH
    raise ArtifactError(
        f"calls {torch.overrides.resolve_name(function) or function}, which is not allowed",
        path=where,
        hint="a file may call the operations of docs/operations.md; compute constants outside"
        " forward, or pickle `masked` with torch.save",
    )


def function_of(name: str) -> Callable[..., Any]:
    """The function that a file calls by `name`; `ArtifactError` unless it is allowed."""
    if name == _STOCHASTIC_DEPTH:
        from torchvision.ops import stochastic_depth

        return cast("Callable[..., Any]", stochastic_depth)
    function = functions().get(name)
    if function is None:
        raise ArtifactError(
            f"the file calls {name!r}, which is not allowed",
            hint="save the network again with this version; trust no such file from others",
        )
    return function


def method_of(name: str) -> str:
    """`name`, if it is a method of tensors that a graph may call."""
    if name not in methods():
        raise ArtifactError(
            f"the graph calls the method {name!r}, which is not allowed",
            hint="build the network from methods of torch.Tensor that compute tensors",
        )
    return name


def check_attribute(kind: type[nn.Module], name: str) -> str:
    """`name`, if an instance of the layer may have such an attribute: its class must not.

    >>> check_attribute(nn.Conv2d, "stride")
    'stride'
    >>> check_attribute(nn.Identity, "forward")
    Traceback (most recent call last):
    convad_fx.errors.ArtifactError: the attribute 'forward' of a torch.nn.Identity would replace...
    """
    if hasattr(kind, name) or name in MODULE_ATTRIBUTES:
        raise ArtifactError(
            f"the attribute {name!r} of a torch.nn.{kind.__name__} would replace its class's, which"
            " is not allowed",
            hint="convert with front_end='export', which captures the operations inside the layer",
        )
    return name


@functools.cache
def layers() -> dict[str, type[nn.Module]]:
    """Name -> class of torch.nn, of those with a row in `SPELLINGS`."""
    return {f"torch.nn.{kind.__name__}": kind for kind in TABLES.modules}


def layer_name(kind: type[nn.Module]) -> str:
    """The name of a class of torch.nn that files may use; "" for any other class."""
    if kind is nn.modules.linear.NonDynamicallyQuantizableLinear:
        return "torch.nn.Linear"  # inside attention, for its weights alone
    name = f"torch.nn.{kind.__name__}"
    return name if layers().get(name) is kind else ""


def layer_of(name: str) -> type[nn.Module]:
    """The class of torch.nn called `name`; `ArtifactError` unless it is allowed."""
    kind = layers().get(name)
    if kind is None:
        raise ArtifactError(
            f"the file has a layer {name!r}, which is not allowed",
            hint="save the network again with this version; trust no such file from others",
        )
    return kind
