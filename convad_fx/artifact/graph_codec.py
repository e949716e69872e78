"""A torch.fx graph, and the values in it, as JSON data, and back.

torch.fx turns graphs to Python source, so every name that gets there is checked to be a name, and
every function and method to be one that `allowed` lists.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from torch import nn

from convad_fx.artifact import allowed, arguments
from convad_fx.compiler.capture.module_tree import find
from convad_fx.errors import ArtifactError

Json = Any
_OPERATIONS = ("placeholder", "get_attr", "call_function", "call_method", "call_module", "output")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH_PART = re.compile(r"[A-Za-z0-9_-]+")  # torch.fx writes paths between quotes


def graph_to_data(graph: torch.fx.Graph) -> list[Json]:
    """Each node as [op, name, target, args, kwargs]; operands are numbers of earlier nodes."""
    numbers: dict[torch.fx.Node, int] = {}
    rows: list[Json] = []
    for node in graph.nodes:
        target: Any = node.target
        if node.op == "call_function":
            target = allowed.name_of(target, node.name)
            arguments.check_call(allowed.function_of(target), node.args, node.kwargs)
        elif node.op == "call_method":
            arguments.check_call(allowed.method_of(target), node.args, node.kwargs)
        row = [node.op, node.name, target, [encode(a, node.name, numbers) for a in node.args]]
        if node.kwargs:
            row.append({key: encode(a, node.name, numbers) for key, a in node.kwargs.items()})
        numbers[node] = len(rows)
        rows.append(row)
    return rows


def graph_from_data(rows: list[Json], tree: nn.Module, device: torch.device) -> torch.fx.Graph:
    """The graph on the modules of `tree`, whose factories make tensors on `device`.

    Raises:
        ArtifactError, ValueError: something in it may not be in a file.
    """
    graph = torch.fx.Graph()
    nodes: list[torch.fx.Node] = []
    for op, name, target, args, *more in rows:
        if op not in _OPERATIONS or not isinstance(target, str):
            raise ValueError(f"operation {op!r}")
        decoded = tuple(decode(a, device, nodes) for a in args)
        kwargs = {
            identifier(key): decode(a, device, nodes)
            for key, a in (more[0] if more else {}).items()
        }
        function: str | Callable[..., Any] = target
        if op == "call_function":
            function = allowed.function_of(target)
        else:
            _check_target(op, target, tree)
        if op in ("call_function", "call_method"):
            arguments.check_call(function, decoded, kwargs)
        if op == "placeholder":
            _check_input(target, decoded, nodes)
        nodes.append(graph.create_node(op, function, decoded, kwargs, name=identifier(name)))
    graph.lint()
    return graph


def _check_target(op: str, target: str, tree: nn.Module) -> None:
    if op == "call_method":
        allowed.method_of(target)
    elif op in ("placeholder", "output"):
        identifier(target)
    else:
        owner, _, last = target.rpartition(".")
        for part in target.split("."):
            path_part(part)
        if op == "call_module" and type(find(tree, target)) is nn.Module:
            raise ValueError(f"{target} is not a layer")
        if op == "get_attr":
            holder = find(tree, owner)
            if last not in holder._parameters and last not in holder._buffers:
                raise ValueError(f"{target} is not a tensor")


def _check_input(name: str, default: tuple[Any, ...], before: list[torch.fx.Node]) -> None:
    """Inputs become parameters of a method: distinct, those without default first."""
    if default not in ((), (None,)):
        raise ArtifactError(f"the input {name!r} has the default {default}; it can only be None")
    inputs = [node for node in before if node.op == "placeholder"]
    if name == "self" or name in [node.target for node in inputs]:
        raise ArtifactError(f"a file may not use {name!r} as the name of an input, or twice")
    if not default and any(node.args for node in inputs):
        raise ArtifactError(f"the input {name!r} without a default comes after one with a default")


def encode(value: Any, where: str, numbers: dict[torch.fx.Node, int] | None = None) -> Json:
    """A value as JSON; what JSON does not have becomes {kind: content}.

    Args:
        where: path or name for the error message.
        numbers: of the nodes that may occur in it.

    Raises:
        ArtifactError: the value is not plain data.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, torch.fx.Node):
        return {"node": (numbers or {})[value]}
    kind = type(value)
    if kind is int or (kind is float and math.isfinite(value)):
        return value
    if kind is float:
        return {"float": str(value)}
    if kind is tuple or kind is torch.Size:
        return {"tuple": [encode(v, where, numbers) for v in value]}
    if isinstance(value, list):
        return [encode(v, where, numbers) for v in value]
    if kind is slice:
        parts = (value.start, value.stop, value.step)
        return {"slice": [encode(v, where, numbers) for v in parts]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if kind is torch.device:
        return {"device": str(value)}
    if kind in (torch.dtype, torch.memory_format, torch.layout):
        return {"torch": str(value).removeprefix("torch.")}
    raise ArtifactError(
        f"a {kind.__module__}.{kind.__qualname__} cannot be written to a file",
        path=where,
        hint="only numbers, strings, and tuples and lists of them can",
    )


def decode(value: Json, device: torch.device, nodes: Sequence[torch.fx.Node] = ()) -> Any:
    """The value that `encode` turned into JSON; devices become `device`.

    Raises:
        ArtifactError, ValueError: not something that `encode` writes.
    """
    if value is None or isinstance(value, bool | str | int | float):
        return value
    if isinstance(value, list):
        return [decode(v, device, nodes) for v in value]
    ((kind, content),) = value.items()
    match kind:
        case "node":
            return earlier(nodes, content)
        case "tuple":
            return tuple(decode(v, device, nodes) for v in content)
        case "slice":
            start, stop, step = (decode(v, device, nodes) for v in content)
            return slice(start, stop, step)
        case "float":
            return float(content)
        case "ellipsis":
            return Ellipsis
        case "device":
            return device if torch.device(content).type != "meta" else torch.device("meta")
        case "torch":
            constant = getattr(torch, identifier(content))
            if not isinstance(constant, torch.dtype | torch.memory_format | torch.layout):
                raise ValueError(f"torch.{content}")
            return constant
        case _:
            raise ValueError(f"a value of kind {kind!r}")


def earlier(entries: Sequence[Any], number: int | None) -> Any:
    """An earlier entry of a list, None for None. Later entries, or its own, would form a cycle."""
    if number is None:
        return None
    if type(number) is not int or not 0 <= number < len(entries):
        raise ValueError(f"entry {number} of {len(entries)}")
    return entries[number]


def identifier(name: Any) -> str:
    """`name`, if it is a Python identifier and not a keyword."""
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name) or keyword.iskeyword(name):
        raise ArtifactError(f"a file may not use {name!r} as a name")
    return name


def path_part(name: Any, path: str = "") -> str:
    """`name`, if it may stand between the dots of a module's path."""
    if not isinstance(name, str) or not _PATH_PART.fullmatch(name):
        raise ArtifactError(
            f"a file may not use {name!r} as a name",
            path=path,
            hint="use letters, digits, _ and - in the names of modules and parameters",
        )
    return name
