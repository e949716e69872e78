"""In-place operations of a graph are replaced by operations that return a new tensor."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from convad_fx.compiler.capture.module_tree import find
from convad_fx.compiler.capture.node_facts import Problem, facts

Node = torch.fx.Node

#: In-place operators such as ``y += 1`` -> the operator that returns the same as a new tensor.
OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
}


def remove_in_place(
    graph: torch.fx.Graph, storages: dict[Node, Any], model: nn.Module
) -> tuple[Problem, ...]:
    """Rewrite in-place operations; later readers of the changed operand read the result instead.

    Where the operand shares memory with another tensor that is read afterwards, that tensor would
    have changed too. This is returned as a problem, and reported with the findings.

    Args:
        storages: an identifier of the memory of each node's tensor; equal for views.
        model: the original, whose modules still have their ``inplace`` flags.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    problems = []
    for node in list(graph.nodes):
        operand = _replace_by_out_of_place(node, model)
        if operand is None:
            if _writes_to_tensor(node):
                problems.append(
                    Problem(
                        node.name,
                        facts(node).path,
                        "changes a tensor in place, and no operation returns the same as a new"
                        " tensor",
                        "compute the tensor instead of writing into one",
                    )
                )
            continue
        for other, storage in storages.items():
            shares = storage == storages.get(operand) and other is not operand
            if not shares or order[other] >= order[node]:
                continue
            # reachability last: it searches the whole graph
            if any(order[user] > order[node] for user in other.users) and (
                _reaches(other, operand) or _reaches(operand, other)
            ):
                problems.append(
                    Problem(
                        node.name,
                        facts(node).path,
                        f"changes {facts(operand).path} in place, and {facts(other).path},"
                        " which shares its memory, is read afterwards",
                        "use the operation that returns a new tensor",
                    )
                )
        for user in list(operand.users):
            if user is not node and order[user] > order[node]:
                user.replace_input_with(operand, node)
    return tuple(problems)


def _replace_by_out_of_place(node: Node, model: nn.Module) -> Node | None:
    """Make one operation out of place. Returns the operand it changed, None if it changed none."""
    operand = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(operand, Node) or not facts(operand).is_tensor:
        return None
    target = node.target
    if node.op == "call_module":
        # the flag is cleared in the graph's own copies of the modules
        module = find(model, str(target))
        is_dropout = isinstance(module, nn.modules.dropout._DropoutNd)  # identity in eval mode
        return operand if getattr(module, "inplace", False) is True and not is_dropout else None
    twin = None
    if isinstance(target, torch._ops.OpOverload):
        packet = target.overloadpacket.__name__
        if _has_in_place_name(target, packet):
            packet_twin = getattr(torch.ops.aten, packet[:-1], None)
            twin = getattr(packet_twin, target._overloadname, None)
    elif node.op == "call_method":
        if _has_in_place_name(target, str(target)) and hasattr(Tensor, str(target)[:-1]):
            twin = str(target)[:-1]
    elif node.op == "call_function":
        twin = OUT_OF_PLACE.get(target)
        name = getattr(target, "__name__", "")
        if twin is None and _has_in_place_name(target, name):
            twin = getattr(torch, name[:-1], None) or getattr(nn.functional, name[:-1], None)
        if twin is None:
            return operand if _clear_inplace_argument(node) else None
    if twin is None:
        return None
    node.target = twin
    return operand


def _clear_inplace_argument(node: Node) -> bool:
    """Set an argument ``inplace=True`` to False. Returns whether there was one."""
    try:
        signature = inspect.signature(node.target)  # type: ignore[arg-type]
        bound = signature.bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # builtins have no signature, and no inplace argument
        return False
    if bound.arguments.get("inplace") is not True:
        return False
    bound.arguments["inplace"] = False
    node.args, node.kwargs = bound.args, bound.kwargs
    return True


def _writes_to_tensor(node: Node) -> bool:
    """The operation is still in place, such as ``z.copy_(x)``, or has an ``out=`` argument."""
    if node.kwargs.get("out") is not None:
        return True
    if isinstance(node.target, torch._ops.OpOverload):
        name = node.target.overloadpacket.__name__
    else:
        name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    in_place = _has_in_place_name(node.target, str(name)) and name != "requires_grad_"
    return node.op in ("call_method", "call_function") and in_place


def _has_in_place_name(target: Any, name: str) -> bool:
    """True for ``relu_``, False for ``__and__`` and for ``operator.and_``."""
    is_operator = getattr(target, "__module__", "") == operator.and_.__module__
    return name.endswith("_") and not name.endswith("__") and not is_operator


def _reaches(source: Node, target: Node) -> bool:
    """There is a path of uses from source to target."""
    seen, queue = {source}, [source]
    while queue:
        node = queue.pop()
        if node is target:
            return True
        fresh = [user for user in node.users if user not in seen]
        seen.update(fresh)
        queue += fresh
    return False
