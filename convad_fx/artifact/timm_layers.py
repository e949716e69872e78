"""Layers of timm that stay calls in a graph are replaced by the functions of torch that they call.

So a file needs no class of timm. Each such layer is traced once more, this time into its forward:
the result is torch's functions on its parameters, called with the very arguments that the layer
would pass, and results stay equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from convad_fx.compiler.capture.module_tree import find
from convad_fx.compiler.capture.torch_fx import WHOLE_MODULES
from convad_fx.compiler.kernels.padding import same_padded
from convad_fx.errors import ArtifactError, first_line

#: Functions of timm that depend on sizes -> ours that computes the same.
_REPLACEMENTS: dict[str, Callable[..., Any]] = {"timm.layers.padding.pad_same": same_padded}


def without_timm_layers(graph: torch.fx.Graph, tree: nn.Module) -> torch.fx.Graph:
    """A copy of the graph without calls of timm's layers; the graph itself if it has none.

    Raises:
        ArtifactError: a layer does more than call functions.
    """
    calls = {
        node for node in graph.nodes
        if node.op == "call_module" and _is_timm_layer(find(tree, str(node.target)))
    }  # fmt: skip
    if not calls:
        return graph
    result = torch.fx.Graph()
    copies: dict[torch.fx.Node, Any] = {}
    for node in graph.nodes:
        if node in calls:
            copies[node] = _inlined(result, node, tree, copies)
        elif node.op == "output":
            result.output(torch.fx.map_arg(node.args[0], copies.__getitem__))
        else:
            copies[node] = result.node_copy(node, copies.__getitem__)
    result.lint()
    return result


def _is_timm_layer(module: nn.Module) -> bool:
    hooked = module._forward_hooks or module._forward_pre_hooks  # reported by network_codec
    return _qualified(type(module)) in WHOLE_MODULES and not hooked


def _inlined(
    graph: torch.fx.Graph, call: torch.fx.Node, tree: nn.Module, copies: dict[torch.fx.Node, Any]
) -> Any:
    """Write what a layer computes into `graph`, and return its result."""
    path = str(call.target)
    layer = find(tree, path)
    (operand,) = (*call.args, *call.kwargs.values())
    values: dict[torch.fx.Node, Any] = {}
    for node in _traced(path, layer).nodes:
        if node.op == "placeholder":
            values[node] = torch.fx.map_arg(operand, copies.__getitem__)
        elif node.op == "output":
            return torch.fx.map_arg(node.args[0], values.__getitem__)
        elif node.op == "get_attr":
            name = str(node.target).replace("layer", path, 1)
            owner, _, last = name.rpartition(".")
            holder = find(tree, owner)
            if last not in holder._parameters and last not in holder._buffers:
                raise _refusal(path, layer, f"makes a tensor of its own, {last}")
            values[node] = graph.get_attr(name)
        else:
            values[node] = graph.create_node(
                node.op,
                _REPLACEMENTS.get(_qualified(node.target), node.target),
                torch.fx.map_arg(node.args, values.__getitem__),
                torch.fx.map_arg(node.kwargs, values.__getitem__),
                name=f"{call.name}__{node.name}",
            )
    raise AssertionError("a graph without an output")


class _Caller(nn.Module):
    """Calls a layer, as a graph does."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, z: Any) -> Any:
        return self.layer(z)


class _DeepTracer(torch.fx.Tracer):
    """Traces into every module, and records buffers by name, as parameters."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return False

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if isinstance(attr_val, Tensor) and not isinstance(attr_val, nn.Parameter):
            for name, buffer in self.root.named_buffers():
                if buffer is attr_val:
                    return self.create_proxy("get_attr", name, (), {})
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def _traced(path: str, layer: nn.Module) -> torch.fx.Graph:
    wrapped = tuple(f for module in layer.modules() for f in _replaceable(module))
    tracer = _DeepTracer(autowrap_functions=wrapped, param_shapes_constant=True)
    try:
        graph = tracer.trace(_Caller(layer).eval())
    except Exception as error:  # whatever a layer's own code raises on a proxy
        reason = first_line(error, with_type=True)
        raise _refusal(path, layer, f"cannot be traced ({reason})") from error
    for node in reversed(list(graph.nodes)):
        if node.target is torch._assert and not node.users:
            graph.erase_node(node)  # of the input's rank, which capture has checked
    graph.eliminate_dead_code()
    return graph


def _replaceable(layer: nn.Module) -> Iterator[Callable[..., Any]]:
    """The functions in `_REPLACEMENTS` that a layer's forward can call."""
    names = getattr(type(layer).forward, "__globals__", {})
    yield from (f for f in names.values() if callable(f) and _qualified(f) in _REPLACEMENTS)


def _qualified(target: Any) -> str:
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"


def _refusal(path: str, layer: nn.Module, why: str) -> ArtifactError:
    return ArtifactError(
        f"is a {_qualified(type(layer))}, which {why}",
        path=path,
        hint="replace it by layers of torch.nn, or convert with front_end='export', which captures"
        " the operations inside",
    )
