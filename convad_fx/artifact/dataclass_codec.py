"""Plans, reports and policies as JSON data, and back. Nothing is converted and nothing is run.

>>> from convad_fx.compiler.policy import Policy
>>> data = unstructure(Policy(tau=0.5))
>>> data["tau"], structure(data, Policy) == Policy(tau=0.5)
(0.5, True)
>>> structure({**data, "tau": "0.5"}, Policy)
Traceback (most recent call last):
convad_fx.errors.ArtifactError: expected a finite number, not '0.5' @ Policy.tau; save it again
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import cattrs
import torch.fx
from cattrs.gen import make_dict_structure_fn, override

from convad_fx.errors import ArtifactError

T = TypeVar("T")

#: No size, count or index in a plan is larger.
MAX_INTEGER = 2**31 - 1


def unstructure(value: Any) -> Any:
    """A dataclass of plain values as dicts, tuples, numbers and strings."""
    return _CONVERTER.unstructure(value)


def structure(data: Any, kind: type[T]) -> T:
    """The value of type `kind` that `unstructure` turned into `data`.

    Raises:
        ArtifactError: a key is missing or unknown, or a value has another type than declared: a
            string for a number, a bool for an integer, NaN, a size that is not positive.
    """
    try:
        return _CONVERTER.structure(data, kind)
    except (cattrs.BaseValidationError, ValueError, TypeError) as error:
        first = cattrs.transform_error(error, kind.__name__, lambda e, _: str(e))[0]
        raise ArtifactError(first, hint="save it again") from error


def _expect(condition: bool, expected: str, value: Any) -> None:
    if not condition:
        text = repr(value)
        raise ValueError(f"expected {expected}, not {text[:80]}{'...' * (len(text) > 80)}")


def _boolean(value: Any, _: Any) -> bool:
    _expect(type(value) is bool, "true or false", value)
    return value  # type: ignore[no-any-return]


def _integer(value: Any, _: Any) -> int:
    valid = type(value) is int and abs(value) <= MAX_INTEGER
    _expect(valid, f"an integer up to {MAX_INTEGER}", value)
    return value  # type: ignore[no-any-return]


def _number(value: Any, _: Any) -> float:
    valid = type(value) in (int, float) and math.isfinite(value)
    _expect(valid, "a finite number", value)
    return value  # type: ignore[no-any-return]


def _string(value: Any, _: Any) -> str:
    _expect(type(value) is str, "a string", value)
    return value  # type: ignore[no-any-return]


def _no_graph(value: Any, _: Any) -> None:
    _expect(False, "no graph, which is stored elsewhere", value)


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _tuple(value: Any, kind: Any) -> tuple[Any, ...]:
    _expect(isinstance(value, list), "a list", value)
    kinds = get_args(kind)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    _expect(len(kinds) == len(value), f"a list of {len(kinds)}", value)
    return tuple(_CONVERTER.structure(item, of) for item, of in zip(value, kinds, strict=True))


def _positive(value: Any, kind: Any) -> tuple[int, ...]:
    sizes = _tuple(value, kind)
    _expect(all(size > 0 for size in sizes), "positive integers", value)
    return sizes


def _shape(value: Any, _: Any) -> Any:
    """A shape, shapes in any nesting, or None."""
    if isinstance(value, list):
        return tuple(_shape(item, None) for item in value)
    return None if value is None else _integer(value, None)


#: (field, its type) in any dataclass -> a stricter hook than that of the type.
_HOOKS: dict[tuple[str, Any], Callable[[Any, Any], Any]] = {
    **{(name, tuple[int, ...]): _positive
       for name in ("tile", "image_size", "granularity", "strides")},
    ("shapes_in", tuple[tuple[int, ...], ...]): _shape,
    ("shape_out", Any): _shape,
}  # fmt: skip


def _dataclass(kind: type, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    types = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    hooks: dict[str, Any] = {
        name: override(struct_hook=_HOOKS[name, types[name]])
        for name in names
        if (name, types[name]) in _HOOKS
    }
    build: Callable[[Any, Any], Any] = make_dict_structure_fn(kind, converter, **hooks)

    def structured(value: Any, _: Any) -> Any:
        _expect(isinstance(value, dict), "an object", value)
        _expect(sorted(value) == sorted(names), f"the fields {', '.join(names)}", list(value))
        return build(value, kind)

    return structured


def _strict_converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    converter.register_structure_hook(bool, _boolean)
    converter.register_structure_hook(int, _integer)
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(str, _string)
    converter.register_structure_hook(torch.fx.Graph, _no_graph)
    converter.register_structure_hook_func(_is_tuple, _tuple)
    converter.register_structure_hook_factory(is_dataclass, _dataclass)
    return converter


_CONVERTER = _strict_converter()
