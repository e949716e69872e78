"""A torch.fx graph as plain data that can be pickled: functions by name, operands by number."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch.fx
from torch.fx.node import _get_qualified_name

#: One row (op, name, target, args, kwargs) for each node.
Rows: TypeAlias = list[tuple[str, str, Any, Any, Any]]


@dataclass(frozen=True, slots=True)
class _Operand:
    """Stands for the node of an earlier row."""

    row: int


def rows_of(graph: torch.fx.Graph) -> Rows:
    """The nodes of a graph, without their meta data."""
    numbers = {node: number for number, node in enumerate(graph.nodes)}

    def operand(value: Any) -> Any:
        return _Operand(numbers[value]) if isinstance(value, torch.fx.Node) else value

    return [
        (
            node.op,
            node.name,
            _get_qualified_name(node.target) if callable(node.target) else node.target,
            torch.fx.node.map_aggregate(node.args, operand),
            torch.fx.node.map_aggregate(node.kwargs, operand),
        )
        for node in graph.nodes
    ]


def graph_of(rows: Rows) -> torch.fx.Graph:
    """The graph that `rows_of` wrote; functions are imported by name."""
    graph, nodes = torch.fx.Graph(), list[torch.fx.Node]()

    def node(value: Any) -> Any:
        return nodes[value.row] if isinstance(value, _Operand) else value

    for op, name, target, args, kwargs in rows:
        function = _function_of(target) if op == "call_function" else target
        args, kwargs = (torch.fx.node.map_aggregate(given, node) for given in (args, kwargs))
        nodes.append(graph.create_node(op, function, args, kwargs, name))
    return graph


def _function_of(name: str) -> Any:
    return pkgutil.resolve_name(name if "." in name else f"builtins.{name}")
