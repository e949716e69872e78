"""Windows on patches: without padding, since a patch has what surrounds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
from torch.nn import functional as F

from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.plan import NodePlan, Plan
from convad_fx.compiler.capture.op_schema import OpView, TensorView
from convad_fx.compiler.capture.trace import Trace
from convad_fx.compiler.kernels import patch
from convad_fx.compiler.kernels.gating import gate
from convad_fx.compiler.kernels.padding import same_padding
from convad_fx.compiler.lowering.box import BoxLowering, GridMap, Leaves, Passes

Node = torch.fx.Node
Reach = patch.Reach


@dataclass(frozen=True, slots=True)
class Side:
    """A window along one axis: from the first to the last cell it reads, and padding before it."""

    span: int
    stride: int
    pad: int


def sides(step: steps.Window) -> list[Side]:
    """Of a window that is padded by numbers."""
    rows = zip(step.kernel, step.dilation, step.stride, step.padding, strict=True)
    return [
        Side(dilation * (kernel - 1), stride, 0 if pair is None else pair[0])
        for kernel, dilation, stride, pair in rows
    ]


def read_by(step: steps.Window, reach: Reach) -> Reach:
    """Cells before and after that windows read, for so many cells before and after of theirs."""
    found = []
    for (before, after), side in zip(reach, sides(step), strict=True):
        end = (after - 1) * side.stride - side.pad + side.span + 1
        found.append((before * side.stride + side.pad, end))
    return tuple(found)


class PatchLowering(BoxLowering):
    """A walk over the graph whose windows are given patches, not boxes.

    Explicit padding is nothing on a patch, which has what surrounds it: cells that lie outside the
    grid are zero as soon as they are gated. So it is the window that reads it whose padding is more
    by as much; nothing but windows and further padding may read it.
    """

    def __init__(self, traced: Trace, plan: Plan, graph: torch.fx.Graph) -> None:
        super().__init__(traced, plan, graph)
        self.windows: dict[Node, tuple[steps.Window, OpView]] = {}

    def _through(self, node: Node, decided: NodePlan) -> Passes | None:
        passes = super()._through(node, decided)
        if node in self.windows and node.op == "call_module":
            module = self.traced.module.get_submodule(str(node.target))
            if module._forward_hooks or module._forward_pre_hooks:
                raise Leaves("hooks make its weight, and only a call of it runs them")
        return passes

    def _window(
        self,
        step: steps.Window,
        op: OpView,
        item: TensorView,
        level: GridMap,
        decided: NodePlan,
    ) -> Passes:
        dims = len(step.kernel)
        if level.axes != tuple(range(2, 2 + dims)):
            raise Leaves("its grid is not the image's")
        if step.transposed or step.mode != "constant":
            raise Leaves("no patch is known for transposed convolutions and copying padding")
        if op.kind == "standardised_conv_same":
            raise Leaves("only a call of it makes its weight")
        if op.kind not in ("conv", "conv_same", "max_pool", "max_pool_same", "avg_pool"):
            raise Leaves(f"no patch is known for {op.spelling}")
        if step.reads == "max" and not level.aligned:
            raise Leaves("a maximum over padding is not a maximum over nothing")
        if op.kind == "avg_pool" and (op.get("divisor_override") or self._counts_cells(step, op)):
            raise Leaves("it divides by another number of cells at the border")
        strides = tuple(a * b for a, b in zip(level.strides, step.stride, strict=True))
        if not (step.one_cell and level.aligned and set(step.stride) == {1}):
            assert self.at is not None
            padding = tuple(
                (before + more[0], after + more[1])
                for (before, after), more in zip(
                    self._padding(step, item), level.extra, strict=True
                )
            )
            self.windows[self.at] = replace(step, padding=padding), op
        return Passes(GridMap(level.axes, strides, ((0, 0),) * dims))

    @staticmethod
    def _padding(step: steps.Window, item: TensorView) -> list[tuple[int, int]]:
        """In numbers, "SAME" too, for this grid."""
        rows = zip(
            item.shape[2:], step.kernel, step.stride, step.dilation, step.padding, strict=True
        )
        return [
            same_padding(size, kernel, stride, dilation) if pair is steps.SAME else pair
            for size, kernel, stride, dilation, pair in rows
        ]

    def _pad(self, step: steps.Pad, level: GridMap) -> GridMap:
        padded = super()._pad(step, level)
        if padded.aligned:
            return padded
        assert self.at is not None
        if any(user.target is gate for user in self.at.users):
            raise Leaves("its padding is gated")
        if any(any(pair) for axis, pair in enumerate(step.padding) if axis not in level.axes):
            raise Leaves("it pads more than the grid")
        return padded

    def _is_padding(self, node: Node) -> bool:
        """What is nothing on a patch."""
        level = self.levels.get(node)
        return isinstance(level, GridMap) and not level.aligned and self._pads(node)

    @staticmethod
    def _take(step: steps.Take, level: GridMap) -> GridMap:
        taken = BoxLowering._take(step, level)
        if taken.strides != level.strides:
            raise Leaves("it takes every so many cells")
        return taken

    def _call_window(
        self,
        node: Node,
        z: Node,
        given: Callable[[Node], Node],
    ) -> Node:
        """The window on a patch that has all that it reads.

        Args:
            given: the node of the graph that is written for a parameter that is none of a module's.
        """
        step, op = self.windows[node]

        def parameter(name: str, place: int) -> Node | None:
            if op.get(name) is None:
                return None
            if node.op == "call_module":
                return self.graph.get_attr(f"{node.target}.{name}")
            source = node.args[place] if len(node.args) > place else node.kwargs[name]
            assert isinstance(source, Node)
            return given(source)

        dims = len(step.kernel)
        call: Any
        args: tuple[Any, ...]
        if step.reads == "sum":
            weight, bias = parameter("weight", 1), parameter("bias", 2)
            call = getattr(torch, f"conv{dims}d")
            args = (z, weight, bias, step.stride, 0, step.dilation, step.groups)
        elif step.reads == "max":
            call = getattr(torch, f"max_pool{dims}d")
            args = (z, step.kernel, step.stride, 0, step.dilation)
        else:
            call = getattr(F, f"avg_pool{dims}d")
            args = (z, step.kernel, step.stride)
        return self._call(call, args, node.name)
