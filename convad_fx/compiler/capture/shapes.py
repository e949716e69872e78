"""Shape propagation: the graph is run on fake tensors, and every node learns shape and dtype."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.node import map_aggregate

from convad_fx.compiler.capture.module_tree import find
from convad_fx.compiler.capture.node_facts import BATCH, META, Facts, TensorFact, facts
from convad_fx.errors import ImageError, UntraceableModel, first_line


def propagate_shapes(
    captured: torch.fx.GraphModule, example: Tensor, model_name: str
) -> dict[torch.fx.Node, Any]:
    """Set `Facts.value` of every node, for a batch of `BATCH` images like the example.

    Returns:
        An identifier of the memory of each node's tensor; views of one another have the same.

    Raises:
        ImageError: the model does not take such a batch.
        UntraceableModel: shapes depend on the values of tensors.
    """
    recorder = _Recorder(captured)
    shape = (BATCH, *example.shape[1:])
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        image = torch.empty(shape, dtype=example.dtype, device=example.device)
        try:
            recorder.run(image)
        except Exception as error:  # whatever an operation raises
            dtype = str(example.dtype).removeprefix("torch.")
            batch = f"{model_name} does not take a batch of shape {shape} {dtype}"
            raise _explained(error, captured.graph, batch) from error
    return recorder.storages


class TreeInterpreter(torch.fx.Interpreter):
    """Runs a graph on a tree of modules with any names."""

    def fetch_attr(self, target: str) -> Any:
        """The module, parameter or buffer at this path."""
        return find(self.module, target)


class ShapeInterpreter(TreeInterpreter):
    """Runs a graph on fake tensors; skips batch norms, whose decomposition would take longest."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module, or return a tensor of the shape that a batch norm keeps."""
        if isinstance(self.fetch_attr(target), nn.modules.batchnorm._NormBase):
            return torch.empty_like(args[0] if args else kwargs["input"])
        return super().call_module(target, args, kwargs)


class _Recorder(ShapeInterpreter):
    def __init__(self, captured: torch.fx.GraphModule) -> None:
        super().__init__(captured)
        self.storages: dict[torch.fx.Node, Any] = {}

    def run_node(self, node: torch.fx.Node) -> Any:
        result = super().run_node(node)
        node.meta[META] = Facts(facts(node).path, map_aggregate(result, _fact))
        if isinstance(result, FakeTensor):
            self.storages[node] = result.untyped_storage()._cdata
        return result


def _fact(value: Any) -> Any:
    return TensorFact(tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


def _explained(
    error: Exception, graph: torch.fx.Graph, batch: str
) -> ImageError | UntraceableModel:
    """Why the run failed: the image does not fit, or values of tensors decide on shapes."""
    failed = next(
        (n for n in graph.nodes if n.op != "placeholder" and facts(n).value is None), None
    )
    path = facts(failed).path if failed is not None else ""
    if "DataDependent" in type(error).__name__ or "DynamicOutputShape" in type(error).__name__:
        return UntraceableModel(
            "the values of a tensor decide on shapes or on control flow",
            hint="Assumption 1 needs sizes that do not depend on pixels",
            path=path,
        )
    return ImageError(
        f"{batch}: {first_line(error, with_type=True)}",
        hint="pass an example of the size, dtype and device the model expects;"
        " any batch size must work",
        path=path,
    )
