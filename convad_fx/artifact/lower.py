"""Layers of timm that stay whole in a graph, as the functions of torch that they call.

So a file needs no class of timm. Each such layer is traced once more, this time into its forward;
what is left are torch's functions on its parameters, called with the very arguments that the layer
would have passed: results stay equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from convad_fx.compiler.capture.symbolic import WHOLE_MODULES
from convad_fx.compiler.kernels.activity import same_padded
from convad_fx.errors import ArtifactError, first_line

#: A function of timm that asks for sizes, and ours that does the same.
_OURS: dict[str, Callable[..., Any]] = {"timm.layers.padding.pad_same": same_padded}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def lowered(graph: torch.fx.Graph, tree: nn.Module) -> torch.fx.Graph:
    """The same graph, in which timm's whole layers are functions; itself where there are none.

    Raises:
        ArtifactError: a layer does more than call functions.
    """
    whole = {
        node for node in graph.nodes
        if node.op == "call_module" and _is_whole(tree.get_submodule(str(node.target)))
    }  # fmt: skip
    if not whole:
        return graph
    result = torch.fx.Graph()
    copies: dict[torch.fx.Node, Any] = {}
    for node in graph.nodes:
        if node in whole:
            copies[node] = _written(result, node, tree, copies)
        elif node.op == "output":
            result.output(torch.fx.map_arg(node.args[0], copies.__getitem__))
        else:
            copies[node] = result.node_copy(node, copies.__getitem__)
    result.lint()
    return result


def _is_whole(module: nn.Module) -> bool:
    hooked = any(getattr(module, hooks) for hooks in _HOOKS)  # the codec says so
    return _qualified(type(module)) in WHOLE_MODULES and not hooked


def _written(
    graph: torch.fx.Graph, call: torch.fx.Node, tree: nn.Module, copies: dict[torch.fx.Node, Any]
) -> Any:
    """What a call of a layer is, written into `graph`."""
    path = str(call.target)
    layer = tree.get_submodule(path)
    (given,) = (*call.args, *call.kwargs.values())
    inside: dict[torch.fx.Node, Any] = {}
    for node in _traced(path, layer).nodes:
        if node.op == "placeholder":
            inside[node] = torch.fx.map_arg(given, copies.__getitem__)
        elif node.op == "output":
            return torch.fx.map_arg(node.args[0], inside.__getitem__)
        elif node.op == "get_attr":
            name = str(node.target).replace("layer", path, 1)
            owner, _, last = name.rpartition(".")
            holder = tree.get_submodule(owner)
            if last not in holder._parameters and last not in holder._buffers:
                raise _no_functions(path, layer, f"makes a tensor of its own, {last}")
            inside[node] = graph.get_attr(name)
        else:
            inside[node] = graph.create_node(
                node.op,
                _OURS.get(_qualified(node.target), node.target),
                torch.fx.map_arg(node.args, inside.__getitem__),
                torch.fx.map_arg(node.kwargs, inside.__getitem__),
                name=f"{call.name}__{node.name}",
            )
    raise AssertionError("a graph without an output")


class _Caller(nn.Module):
    """Calls a layer as a graph does."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, z: Any) -> Any:
        return self.layer(z)


class _Into(torch.fx.Tracer):
    """Traces into every module, and reads buffers by name, as parameters."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return False

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if isinstance(attr_val, Tensor) and not isinstance(attr_val, nn.Parameter):
            for name, buffer in self.root.named_buffers():
                if buffer is attr_val:
                    return self.create_proxy("get_attr", name, (), {})
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def _traced(path: str, layer: nn.Module) -> torch.fx.Graph:
    wrapped = tuple(f for module in layer.modules() for f in _sized(module))
    try:
        graph = _Into(autowrap_functions=wrapped, param_shapes_constant=True).trace(
            _Caller(layer).eval()
        )
    except Exception as error:  # whatever a layer's own code raises on a proxy
        reason = first_line(error, with_type=True)
        raise _no_functions(path, layer, f"cannot be traced ({reason})") from error
    for node in reversed(list(graph.nodes)):
        if node.target is torch._assert and not node.users:
            graph.erase_node(node)  # of the input's rank, which is settled
    graph.eliminate_dead_code()
    return graph


def _sized(layer: nn.Module) -> Iterator[Callable[..., Any]]:
    """The functions with an equal of ours that a layer's forward sees."""
    home = getattr(type(layer).forward, "__globals__", {})
    yield from (f for f in home.values() if callable(f) and _qualified(f) in _OURS)


def _qualified(target: Any) -> str:
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"


def _no_functions(path: str, layer: nn.Module, why: str) -> ArtifactError:
    return ArtifactError(
        f"is a {_qualified(type(layer))}, which {why}",
        path=path,
        hint="replace it by layers of torch.nn, or convert with front_end='export', which sees"
        " inside",
    )


__all__ = ["lowered"]
