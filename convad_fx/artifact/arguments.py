"""What a graph in a file may pass to an allowed function, method or layer.

Values are tensors of the graph, numbers, strings, dtypes, and tuples, lists and slices of them,
never functions. No argument makes an operation write to a tensor it is given, and sizes of windows,
which torch does not always check, are in bounds.
"""

from __future__ import annotations

import functools
import inspect
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch import nn

from convad_fx.artifact.allowed import ATTRIBUTES
from convad_fx.compiler.capture.spellings import TABLES, Signature, aten
from convad_fx.errors import ArtifactError

#: No size, count or index in a graph is larger, except the open end of a slice.
MAX_INTEGER = 2**31 - 1
#: Kernels loop over windows.
MAX_WINDOW = 2**16

_DTYPES = frozenset(
    getattr(torch, name)
    for name in "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool "  # noqa: SIM905
    "complex64 complex128".split()
)
_CONSTANTS = ("dtype", "layout", "memory_format", "device")
_SIZES = tuple(aten("sym_size"))
_PLAIN = (bool, float, complex, str, torch.device, torch.memory_format)


def check_call(
    function: Callable[..., Any] | str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Refuse a call of an allowed function, or method by name, that could do more than compute.

    >>> check_call(torch.relu, [torch.fx.Graph().placeholder("x")], {})
    >>> check_call(max, [["code"]], {"key": len})
    Traceback (most recent call last):
    convad_fx.errors.ArtifactError: the graph passes key to max, which is not allowed...
    """
    name = _name(function)
    if function is getattr and (len(args) != 2 or args[1] not in sorted(ATTRIBUTES)):
        raise ArtifactError(
            f"the graph reads the attribute {args[1:]} of a value, which is not allowed",
            hint=f"allowed are {', '.join(sorted(ATTRIBUTES))} of tensors",
        )
    if getattr(function, "__module__", "") in ("builtins", "math") and kwargs:
        raise _refusal(name, ", ".join(kwargs), "pass the arguments of it by position")
    bound = _bound(function, args, kwargs)
    for parameter, value in bound.items():
        expected = _expected(parameter, value)
        if expected:
            raise _refusal(name, f"{parameter}={_text(value)}", f"it must be {expected}")
    if "max_pool1d" in name and not _all_sizes(bound.get("kernel_size")):
        raise _refusal(
            name, "a computed kernel_size", "it must be a number, or the size of a tensor"
        )
    if bound.get("running_mean") is not None or bound.get("running_var") is not None:
        for flag in ("training", "use_input_stats"):
            if flag in bound and bound[flag] is not False:
                raise _refusal(name, f"{flag}=True", "it would write the statistics")


def check_layer(kind: type[nn.Module], attributes: Mapping[str, Any]) -> None:
    """Refuse attributes of a layer that torch would not check.

    >>> check_layer(nn.Conv2d, {"stride": (1, 0)})
    Traceback (most recent call last):
    convad_fx.errors.ArtifactError: the file passes stride=(1, 0) to torch.nn.Conv2d, which is ...
    """
    dropout = issubclass(kind, nn.modules.dropout._DropoutNd)  # does nothing in eval mode
    for name, value in attributes.items():
        expected = "" if name == "inplace" and dropout else _expected(name, value)
        if expected:
            given = f"{name}={_text(value)}"
            raise _refusal(f"torch.nn.{kind.__name__}", given, f"it must be {expected}", "file")


def _refusal(function: str, given: str, hint: str, who: str = "graph") -> ArtifactError:
    return ArtifactError(f"the {who} passes {given} to {function}, which is not allowed", hint=hint)


def _name(function: Callable[..., Any] | str) -> str:
    return function if isinstance(function, str) else str(getattr(function, "__name__", function))


def _text(value: Any) -> str:
    text = repr(value)
    return text[:80] + "..." * (len(text) > 80)


# ----------------------------------------------------------------------------------------- names
def _bound(
    function: Callable[..., Any] | str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments by the names of their parameters, as far as they have any."""
    if isinstance(function, torch._ops.OpOverload):
        names = [argument.name for argument in function._schema.arguments]
        return dict(zip(names, args, strict=False)) | dict(kwargs)
    signature = None if isinstance(function, str) else _signature(function)
    if signature is not None:
        try:
            return dict(signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise ArtifactError(
                f"the graph calls {_name(function)} with other arguments than it has ({error})",
                hint="save the network again with this version",
            ) from error
    table: Mapping[Any, Any] = TABLES.methods if isinstance(function, str) else TABLES.functions
    row = table.get(function)
    if row is not None:
        return Signature.parse(row.signature).bind(tuple(args), kwargs)
    return {str(place): value for place, value in enumerate(args)} | dict(kwargs)


@functools.cache
def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """The signature of a function written in Python, if it names its parameters."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    unnamed = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return None if kinds == unnamed else signature


# ---------------------------------------------------------------------------------------- values
_Check = Callable[[Any], bool]


def _all(value: Any, check: _Check) -> bool:
    """Whether a value, or all items of a tuple or list, are nodes or pass the check."""
    if isinstance(value, tuple | list):
        return all(_all(item, check) for item in value)
    return isinstance(value, torch.fx.Node) or check(value)


def _integer(least: int, most: int = MAX_INTEGER) -> _Check:
    return lambda value: type(value) is int and least <= value <= most


def _all_sizes(value: Any) -> bool:
    """Whether no number in a value is computed, other than as the size of a tensor.

    torch 2.14 ends the process for kernels near 2**63.
    """
    if isinstance(value, tuple | list):
        return all(map(_all_sizes, value))
    if not isinstance(value, torch.fx.Node):
        return True
    reads = value.op == "call_method" and value.target == "size"
    if value.target in (operator.getitem, operator.floordiv):
        return _all_sizes(value.args[0])
    return reads or value.target is getattr or value.target in _SIZES


def _or_none(check: _Check) -> _Check:
    return lambda value: value is None or check(value)


def _is_plain(value: Any) -> bool:
    """A number, string or constant that any function may be given."""
    if type(value) is int:
        return abs(value) <= MAX_INTEGER
    if isinstance(value, slice):
        return _all([value.start, value.stop, value.step], _or_none(_open_end))
    if isinstance(value, torch.dtype):
        return _is_dtype(value)
    constants = (None, Ellipsis, torch.strided)
    return any(value is each for each in constants) or isinstance(value, _PLAIN)


def _is_dtype(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value in _DTYPES


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def _open_end(value: Any) -> bool:
    return type(value) is int and (abs(value) <= MAX_INTEGER or value == sys.maxsize)


def _named(names: str, check: _Check, expected: str) -> dict[str, tuple[_Check, str]]:
    return dict.fromkeys(names.split(), (check, expected))


#: Parameter -> the check of its value, and what it must be. All others are plain.
_PARAMETERS: dict[str, tuple[_Check, str]] = {
    **_named("weight bias running_mean running_var", _or_none(_is_number), "a tensor"),
    **_named("dtype", _or_none(_is_dtype), "a dtype of plain numbers"),
    **_named("layout", lambda value: value in (None, torch.strided), "torch.strided"),
    **_named("device", _or_none(lambda v: isinstance(v, torch.device | str)), "a device"),
    **_named(
        "memory_format", _or_none(lambda v: isinstance(v, torch.memory_format)), "a memory format"
    ),
    **_named(
        "kernel_size stride dilation kernel", _or_none(_integer(1, MAX_WINDOW)),
        f"positive, at most {MAX_WINDOW}",
    ),
    **_named("groups", _integer(0), "an integer from 0"),  # of kernels: 0 combines no channels
    **_named("num_groups upscale_factor downscale_factor chunks", _integer(1), "positive"),
    **_named("end", _or_none(_open_end), "an integer"),
}  # fmt: skip
#: Parameters that may not be computed by the graph either, and the only values they may have.
_LITERALS: dict[str, tuple[Any, ...]] = {
    # `max_norm` renormalises the weight of an embedding in place
    **dict.fromkeys(("out", "generator", "max_norm"), (None,)),
    "inplace": (None, False),
}


def _expected(name: str, value: Any) -> str:
    """What the parameter must be instead of the value; "" if the value is right."""
    if name in _LITERALS:
        return "" if any(value is each for each in _LITERALS[name]) else str(_LITERALS[name][-1])
    if name == "kwargs" and isinstance(value, Mapping):
        return next(filter(None, (_expected(str(key), each) for key, each in value.items())), "")
    if name in _CONSTANTS and isinstance(value, torch.fx.Node):
        # torch.ops takes numbers for these, which it does not check
        return "" if value.target is getattr else "that of a tensor, or a constant"
    check, expected = _PARAMETERS.get(name, (_is_plain, "a number, string or tensor"))
    return "" if _all(value, check) else expected
