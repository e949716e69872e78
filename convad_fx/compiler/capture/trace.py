"""Capture a module as a graph in eval form, with paths and shapes.

The model is never changed: the graph's modules are shallow copies that share its parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.fx
from torch import Tensor, nn

from convad_fx.compiler.capture.in_place import remove_in_place
from convad_fx.compiler.capture.module_tree import TreeModule
from convad_fx.compiler.capture.node_facts import Problem
from convad_fx.compiler.capture.paths import name_paths
from convad_fx.compiler.capture.randomness import random_numbers
from convad_fx.compiler.capture.requirements import (
    image_parameter,
    require_eval,
    require_image,
    unwrapped,
)
from convad_fx.compiler.capture.shapes import propagate_shapes
from convad_fx.compiler.capture.snapshot import Snapshot
from convad_fx.compiler.capture.torch_export import capture_by_export
from convad_fx.compiler.capture.torch_fx import capture_symbolically
from convad_fx.errors import ImageError, UntraceableModel

#: Option -> what captures the model, as reports name it.
FRONT_ENDS = {"symbolic": "torch.fx symbolic tracing", "export": "torch.export"}


@dataclass(frozen=True, slots=True)
class Trace:
    """A captured model.

    Attributes:
        module: graph and modules, in eval form; every node carries `Facts`.
        front_end: what captured it.
        channels, grid: of the example image.
        like: name of a parameter that has the example's dtype, or "".
        problems: what the checker must report beside the findings of the rules.
    """

    module: torch.fx.GraphModule
    front_end: str
    channels: int
    grid: tuple[int, ...]
    like: str = ""
    problems: tuple[Problem, ...] = ()

    @property
    def any_size(self) -> bool:
        """The graph takes every image size that the model takes, not the example's alone."""
        return self.front_end == FRONT_ENDS["symbolic"]


def trace(model: nn.Module, example: Tensor, front_end: str = "auto") -> Trace:
    """Capture a model in eval mode for an example image batch (N, C, *grid).

    Args:
        front_end: "symbolic": torch.fx symbolic tracing, which keeps modules and takes any image
            size the model takes. "export": torch.export, which follows control flow on shapes and
            holds for the example's image size. "auto": symbolic, or export where that fails.

    Raises:
        ModelError: not a module, in training mode, or with more than one input.
        ImageError: the example is not an image batch, or the model does not take it.
        UntraceableModel: forward has control flow that depends on the image.
    """
    model = unwrapped(model)
    require_eval(model)
    image_parameter(model)
    require_image(example)
    before = Snapshot(model)
    try:
        if front_end == "auto":
            return _capture_by_either(model, example)
        return _capture(model, example, front_end)
    finally:
        before.restore()


def _capture_by_either(model: nn.Module, example: Tensor) -> Trace:
    try:
        return _capture(model, example, "symbolic")
    # sizes do not fit where torch.fx has lost a step
    except (UntraceableModel, ImageError) as error:
        try:
            return _capture(model, example, "export")
        except UntraceableModel as second:
            if second.what == error.what or isinstance(error, ImageError):
                raise error from second
            raise UntraceableModel(
                f"{error.what}; {second.what}", hint=error.hint, path=error.path
            ) from second


def _capture(model: nn.Module, example: Tensor, front_end: str) -> Trace:
    """Capture with one front end; then the same for both: paths, shapes, nothing in place."""
    name = type(model).__name__
    graph, tree = (
        capture_by_export(model, example) if front_end == "export" else capture_symbolically(model)
    )
    captured = TreeModule(tree, graph, name)
    name_paths(graph)
    storages = propagate_shapes(captured, example, name)
    problems = (*remove_in_place(graph, storages, model), *random_numbers(graph))
    graph.owning_module = None  # in which torch.fx would look up modules as attributes
    graph.eliminate_dead_code(lambda node: node.op != "call_module" and node.is_impure())
    graph.lint()
    captured.graph = graph
    named = captured.named_parameters()
    like = next((name for name, value in named if value.dtype == example.dtype), "")
    grid = tuple(example.shape[2:])
    return Trace(captured, FRONT_ENDS[front_end], example.shape[1], grid, like, problems)
