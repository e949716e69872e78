"""Names for people: the dotted path of each operation, and the public name of a function."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.fx

from convad_fx.compiler.capture.in_place import OUT_OF_PLACE
from convad_fx.compiler.capture.node_facts import META, Facts


def name_paths(graph: torch.fx.Graph) -> None:
    """Give every node its path: ``layer1.0.add_1`` is the second addition in ``layer1.0``."""
    counts: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op in ("call_module", "placeholder", "output", "get_attr"):
            path = str(node.target)
        else:
            stack = node.meta.get("nn_module_stack") or {}
            module = next(reversed(stack.values()))[0] if stack else ""
            name = _operation_name(node)
            path = f"{module}.{name}" if module else name
        count = counts[path]
        counts[path] += 1
        node.meta[META] = Facts(f"{path}_{count}" if count else path, None)


def _operation_name(node: torch.fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    if node.target is getattr:
        return str(node.args[1])
    target = OUT_OF_PLACE.get(node.target, node.target)
    if isinstance(target, torch._ops.OpOverload):
        return str(target.__name__)
    return function_name(target).rpartition(".")[2].strip("_")


def function_name(target: Any) -> str:
    """A function's public name: ``torch.cat``, ``torch.fft.fft2``, ``functional.relu``."""
    name = str(getattr(target, "__name__", target))
    namespace, _, rest = name.partition("_")  # the __name__ of torch.fft.fft2 is fft_fft2
    if getattr(getattr(torch, namespace, None), rest, None) is target:
        return f"torch.{namespace}.{rest}"
    home = (getattr(target, "__module__", "") or "").removeprefix("torch.nn.")
    return f"{home}.{name}" if home and not home.startswith(("_", "torch._")) else name
