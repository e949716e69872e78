"""The functions, methods and layers that a graph in a file may call, by name.

Everything else is refused, at saving and at loading. The functions listed here compute tensors from
tensors and numbers from numbers; none reads or writes files or loads code. A file may not choose a
callback either (the ``key`` of ``max``), nor replace a method of a layer.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
import torch.overrides
from torch import nn

from convad_fx.compiler.capture.spellings import SPELLINGS
from convad_fx.compiler.kernels import EMITTED_FUNCTIONS
from convad_fx.errors import ArtifactError

_OPERATORS = """
    add sub mul truediv floordiv mod pow matmul neg pos abs invert and_ or_ xor lshift rshift
    eq ne lt le gt ge not_ is_ is_not truth index getitem setitem concat contains
    iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor ilshift irshift
"""
_BUILTINS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (abs, bool, float, int, len, max, min, round, slice, sum, tuple, list)
}  # fmt: skip
#: Functions of torch that take no tensors.
_FACTORIES = """
    arange as_tensor empty empty_strided eye full linspace logspace ones scalar_tensor tensor zeros
    ones_like zeros_like full_like empty_like broadcast_shapes
    sym_float sym_int sym_ite sym_max sym_min sym_not sym_sum
"""
_PRIVATE_ATEN = """
    _softmax _log_softmax _to_copy _unsafe_view _native_batch_norm_legit_no_training
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_lanczos2d_aa
"""
#: Names of functions and methods that access a tensor's memory, or take a callable.
_DENIED = re.compile(
    r"^_|storage|hook|^set_$|^set_data$|^apply_$|^map2?_$|^resize|^share_memory|^module_load$|^data_ptr"
    r"|^numpy$|^backward$|^record_stream$|^from_file|^dlpack|_file$|^retain_grad$|^requires_grad_$"
)
_BINARY = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"
_OTHER = "eq ne lt le gt ge neg pos abs invert getitem"
_DUNDERS = frozenset(f"__{side}{name}__" for name in _BINARY.split() for side in ("", "r", "i")) | {
    f"__{name}__" for name in _OTHER.split()
}

#: Attributes of tensors that `getattr` may read in a graph.
ATTRIBUTES = frozenset(
    ["shape", "dtype", "device", "ndim", "layout", "T", "H", "mT", "mH", "real", "imag", "data"]
)

_NN_DENIED = {"DataParallel", "Module", "Container"}
#: Attributes that every module has: its parameters, children, hooks.
MODULE_ATTRIBUTES = frozenset(nn.Module().__dict__)


@functools.cache
def _functions() -> dict[str, Callable[..., Any]]:
    """Name -> function. Of several names of a function, files use the first."""
    table = {f"{f.__module__}.{f.__name__}": f for f in EMITTED_FUNCTIONS}
    table |= {f"operator.{name}": getattr(operator, name) for name in _OPERATORS.split()}
    table |= {f"builtins.{name}": function for name, function in _BUILTINS.items()}
    table |= {f"math.{name}": f for name, f in vars(math).items() if callable(f) and name[0] != "_"}
    table |= {
        f"torch.{name}": getattr(torch, name) for name in _FACTORIES.split() if hasattr(torch, name)
    }
    takes_tensors = torch.overrides.get_overridable_functions()
    known = {f for fs in takes_tensors.values() for f in fs if _hashable(f)}
    for home, prefix in (
        (torch, "torch"),
        (F, "torch.nn.functional"),
        (torch.linalg, "torch.linalg"),
        (torch.special, "torch.special"),
        (torch.fft, "torch.fft"),
    ):
        for name, function in vars(home).items():
            if _DENIED.search(name) or not callable(function):
                continue
            # max_pool2d and similar functions dispatch on an argument; torch does not list them
            dispatches = home is F and getattr(function, "__name__", "") == "fn"
            if dispatches or (_hashable(function) and function in known):
                table.setdefault(f"{prefix}.{name}", function)
    for name in ("hardswish", "hardsigmoid"):  # torch does not list these either
        table.setdefault(f"torch.nn.functional.{name}", getattr(F, name))
    table["builtins.getattr"] = getattr
    return table


@functools.cache
def _names() -> dict[Callable[..., Any], str]:
    names: dict[Callable[..., Any], str] = {}
    for name, function in _functions().items():
        names.setdefault(function, name)
    return names


@functools.cache
def _methods() -> frozenset[str]:
    of_tensors = torch.overrides.get_overridable_functions()[torch.Tensor]
    names = {getattr(f, "__name__", "") for f in of_tensors}
    known = {name for row in SPELLINGS for name in row.methods.split()}
    return frozenset(n for n in names if n and not _DENIED.search(n)) | _DUNDERS | known


def _hashable(value: Any) -> bool:
    return getattr(type(value), "__hash__", None) is not None


#: torchvision's only function that a file may call. torchvision is imported for it alone.
_STOCHASTIC_DEPTH = "torchvision.ops.stochastic_depth"


def name_of(function: Any, where: str) -> str:
    """The name under which a file calls `function`.

    Raises:
        ArtifactError: it is not allowed; the message names `where`, the node or layer.
    """
    if isinstance(function, torch._ops.OpOverload):
        name = f"torch.ops.{function.namespace}.{function._schema.name.partition('::')[2]}"
        name = f"{name}.{function._overloadname}"
        if _aten(name) is function:
            return name
    elif _hashable(function) and function in _names():
        return _names()[function]
    elif (
        getattr(function, "__module__", "") == _STOCHASTIC_DEPTH  # before it is imported
        and function_of(_STOCHASTIC_DEPTH) is function
    ):
        return _STOCHASTIC_DEPTH
    raise ArtifactError(
        f"calls {torch.overrides.resolve_name(function) or function}, which is not allowed",
        path=where,
        hint="build the network from functions of torch, or pickle `masked` with torch.save",
    )


def function_of(name: str) -> Callable[..., Any]:
    """The function that a file calls by `name`; `ArtifactError` unless it is allowed."""
    if name == _STOCHASTIC_DEPTH:
        from torchvision.ops import stochastic_depth

        return cast("Callable[..., Any]", stochastic_depth)
    function = _functions().get(name) or _aten(name)
    if function is None:
        raise ArtifactError(
            f"the file calls {name!r}, which is not allowed",
            hint="save the network again with this version; trust no such file from others",
        )
    return function


def check_call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse calls of an allowed function that could do more than compute its result.

    >>> check_call("builtins.max", [1, 2], {})
    >>> check_call("builtins.getattr", ["a tensor", "shape"], {})
    >>> check_call("builtins.max", [["code"]], {"key": "a node"})
    Traceback (most recent call last):
    convad_fx.errors.ArtifactError: the graph passes key to builtins.max, which is not allowed...
    """
    if name == "builtins.getattr" and (
        len(args) != 2 or not isinstance(args[1], str) or args[1] not in ATTRIBUTES
    ):
        raise ArtifactError(
            f"the graph reads the attribute {args[1:]} of a value, which is not allowed",
            hint=f"allowed are {', '.join(sorted(ATTRIBUTES))} of tensors",
        )
    if name.startswith("builtins.") and kwargs:
        raise ArtifactError(
            f"the graph passes {', '.join(kwargs)} to {name}, which is not allowed",
            hint="pass the arguments of built-in functions by position, and no function among them",
        )


def value_of(name: str) -> Callable[..., Any]:
    """The function of torch that is an argument, or an attribute of a layer."""
    if not name.startswith("torch.") or name.removeprefix("torch.") in _FACTORIES.split():
        raise ArtifactError(
            f"the file passes {name!r} as a callback, which is not allowed",
            hint="only functions of torch on tensors, such as activations, may be values",
        )
    return function_of(name)


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


def _aten(name: str) -> Callable[..., Any] | None:
    match = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", name)
    if match is None:
        return None
    packet = getattr(torch.ops.aten, match[1], None)
    overload = getattr(packet, match[2], None)
    if not isinstance(overload, torch._ops.OpOverload):
        return None
    if match[1] in _PRIVATE_ATEN.split() or match[1] in _FACTORIES.split():
        return overload
    takes_tensor = any("Tensor" in str(a.type) for a in overload._schema.arguments)
    takes_memory = any("Storage" in str(a.type) for a in overload._schema.arguments)
    if _DENIED.search(match[1]) or takes_memory or not takes_tensor:
        return None
    return overload


def method_of(name: str) -> str:
    """`name`, if it is a method of tensors that a graph may call."""
    if name not in _methods():
        raise ArtifactError(
            f"the graph calls the method {name!r}, which is not allowed",
            hint="build the network from methods of torch.Tensor that compute tensors",
        )
    return name


def layer_name(kind: type[nn.Module]) -> str:
    """The name of a class of torch.nn that files may use; "" for any other class."""
    if getattr(nn, kind.__name__, None) is kind and kind.__name__ not in _NN_DENIED:
        return f"torch.nn.{kind.__name__}"
    if kind is nn.modules.linear.NonDynamicallyQuantizableLinear:
        return "torch.nn.Linear"  # inside attention, for its weights alone
    return ""


def layer_of(name: str) -> type[nn.Module]:
    """The class of torch.nn called `name`; `ArtifactError` unless it is allowed."""
    kind: Any = None
    if re.fullmatch(r"torch\.nn\.\w+", name):
        kind = getattr(nn, name.rpartition(".")[2], None)
    if not isinstance(kind, type) or not issubclass(kind, nn.Module) or layer_name(kind) != name:
        raise ArtifactError(
            f"the file has a layer {name!r}, which is not allowed",
            hint="save the network again with this version; trust no such file from others",
        )
    return kind
