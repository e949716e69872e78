"""The geometry of every operation, without writing any graph."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convad_fx
from convad_fx.compiler.analysis.propagate import plan
from convad_fx.compiler.analysis.steps import Window
from convad_fx.compiler.capture.trace import trace
from convad_fx.compiler.lowering.grid_map import Geometry, GridMap, Grids, GridStep, WindowMap
from convad_fx.compiler.passes.insert_gates import rewrite
from convad_fx.compiler.passes.node_roles import is_original, role_of
from convad_fx.compiler.passes.simplify import simplify

GRID = (16, 12)
PLAIN = ((0, 0), (0, 0))


def records(body: nn.Module, policy: convad_fx.Policy | None = None) -> list[GridStep]:
    """Of all operations on the grid in their order, no part of a grid left out."""
    policy = policy or convad_fx.Policy()
    traced = trace(body.eval(), torch.zeros(1, 3, *GRID))
    decided = plan(traced, policy)
    graph = rewrite(traced, decided, policy)
    simplify(graph, decided)
    geometry = Geometry(traced, decided, graph)
    grids: dict[Any, Grids] = {geometry.image: GridMap.of_image(2)}
    found = []
    for node in graph.nodes:
        if role_of(node) in ("gate", "per_mask"):
            grids[node] = grids[node.args[0]]
        elif node is not geometry.image and geometry.is_value(node):
            record = geometry.at(node, grids)
            assert geometry.at(node, grids) is record  # computed once
            if record is not None:
                grids[node] = record.grid
                found.append(record)
    return found


class Sliced(nn.Module):
    def __init__(self, *index: Any) -> None:
        super().__init__()
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        return x[self.index]


class Permuted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


EVERY_SECOND = (slice(None), slice(None), slice(None, None, 2), slice(None, None, 2))


@pytest.mark.parametrize(("body", "grid"), [
    (nn.Conv2d(3, 4, 3, 2, 1), GridMap((2, 3), (2, 2), PLAIN)),
    (nn.Conv2d(3, 4, (3, 1), (1, 3)), GridMap((2, 3), (1, 3), PLAIN)),
    (nn.MaxPool2d(3, 2, 1), GridMap((2, 3), (2, 2), PLAIN)),
    (nn.ZeroPad2d((1, 2, 3, 4)), GridMap((2, 3), (1, 1), ((3, 4), (1, 2)))),
    (nn.ReLU(), GridMap((2, 3), (1, 1), PLAIN)),
    (Permuted(), GridMap((1, 2), (1, 1), PLAIN)),
    (Sliced(*EVERY_SECOND), GridMap((2, 3), (2, 2), PLAIN)),
    (nn.AdaptiveAvgPool2d(1), None),
    (nn.Upsample(scale_factor=2), None),
])  # fmt: skip
def test_where_the_grid_of_a_result_lies(body: nn.Module, grid: GridMap | None) -> None:
    (record,) = records(body)
    assert record.grid == grid


@pytest.mark.parametrize(("layers", "no_box", "no_patch", "no_tile"), [
    ([nn.Conv2d(3, 4, 3)], "", "", ""),
    ([nn.AvgPool2d(3, 2, 1, count_include_pad=False)], "cells at the border",
     "cells at the border", "cells at the border"),
    ([nn.LPPool2d(2, 2, ceil_mode=True)], "cells at the border", "no patch is known",
     "no patch is known"),
    ([nn.Conv2d(3, 4, 12)], "", "", ""),
    ([nn.Conv2d(3, 4, (1, 13), padding=(0, 6))], "as large as the grid", "", ""),
    ([nn.ConvTranspose2d(3, 4, 2, 2)], "transposed", "transposed", "transposed"),
    ([nn.GroupNorm(1, 3)], "whole grid", "whole grid", "whole grid"),
    ([Sliced(*EVERY_SECOND)], "", "strided slice", "strided slice"),
    ([nn.ZeroPad2d(1), nn.MaxPool2d(3)], "explicit padding", "explicit padding",
     "explicit padding"),
    ([nn.ZeroPad2d(1), nn.Sigmoid()], "further padding", "further padding", "further padding"),
])  # fmt: skip
def test_why_an_operation_runs_on_no_part(
    layers: list[nn.Module], no_box: str, no_patch: str, no_tile: str
) -> None:
    record = records(nn.Sequential(*layers))[-1]
    for why, expected in (
        (record.no_box, no_box),
        (record.no_patch, no_patch),
        (record.no_tile, no_tile),
    ):
        assert expected in why
        assert bool(expected) == bool(why)


def test_what_reads_ungated_cells_is_for_no_tile_and_for_no_box() -> None:
    raw = records(nn.Conv2d(3, 4, 3), convad_fx.Policy(input="raw"))[0]
    assert "not gated" in raw.ungated
    assert "not gated" in raw.no_tile
    assert not raw.no_box  # as long as what it reads is no box
    assert not raw.no_patch  # which has what surrounds it


@pytest.mark.parametrize(("layer", "append", "crop", "granularity"), [
    (nn.Conv2d(3, 4, 3, 1, 1), (0, 0), False, (1, 1)),
    (nn.Conv2d(3, 4, 3, 2, 1), (0, 0), True, (1, 1)),
    (nn.Conv2d(3, 4, 3), (2, 2), False, (1, 1)),
    (nn.Conv2d(3, 4, 3, 2), (1, 1), True, (2, 2)),
    (nn.Conv2d(3, 4, 2, 1, 1), (0, 0), True, (1, 1)),
])  # fmt: skip
def test_what_a_window_needs_on_a_box(
    layer: nn.Module, append: tuple[int, ...], crop: bool, granularity: tuple[int, ...]
) -> None:
    (record,) = records(layer)
    assert (record.append, record.crop, record.granularity) == (append, crop, granularity)


def test_explicit_padding_belongs_to_the_window_that_reads_it() -> None:
    window = records(nn.Sequential(nn.ZeroPad2d((1, 2, 3, 4)), nn.Conv2d(3, 4, 3, 2, 1)))[-1].window
    assert window is not None
    assert window.step.padding == ((4, 5), (2, 3))
    assert (window.span, window.pad) == ((2, 2), (4, 2))


@pytest.mark.parametrize(("kernel", "stride", "dilation", "pad"), [
    (3, 1, 1, 1), (3, 2, 1, 1), (5, 2, 1, 2), (3, 3, 2, 0), (2, 2, 1, 0), (7, 4, 1, 3),
])  # fmt: skip
def test_reads_and_changes_against_every_window(
    kernel: int, stride: int, dilation: int, pad: int
) -> None:
    """Windows of a line of cells, one by one."""
    step = Window((kernel,), (stride,), ((pad, pad),), (dilation,))
    window = WindowMap(step, None, (dilation * (kernel - 1),), (pad,))  # type: ignore[arg-type]

    def cells_of(i: int) -> list[int]:
        return [i * stride - pad + k * dilation for k in range(kernel)]

    first, n = 4, 3  # a part of n results and n * stride cells, from these on
    for before, after in ((0, 0), (1, 2), (2, 0)):
        read = [c for i in range(first - before, first + n + after) for c in cells_of(i)]
        low, high = first * stride - min(read), max(read) + 1 - (first + n) * stride
        assert window.reads(((before, after),)) == ((low, high),)
        changed = range(first * stride - before, (first + n) * stride + after)
        # from the first cell to the last that it reads, though dilation skips some
        hit = [
            i for i in range(-9, 30)
            if cells_of(i)[0] < changed.stop and cells_of(i)[-1] >= changed.start
        ]  # fmt: skip
        expected = (first - hit[0], hit[-1] + 1 - first - n)
        assert window.changes(((before, after),)) == (expected,)


def test_operations_that_no_mask_reaches_multiply_nothing() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Conv2d(5, 6, 3))
    counts = {}
    for policy in (convad_fx.Policy(), convad_fx.Policy(input="raw")):
        traced = trace(body.eval(), torch.zeros(1, 3, *GRID))
        decided = plan(traced, policy)
        graph = rewrite(traced, decided, policy)
        simplify(graph, decided)
        geometry = Geometry(traced, decided, graph)
        nodes = [n for n in graph.nodes if is_original(n) and n.op == "call_module"]
        counts[policy.input] = [geometry.work(n) for n in nodes]
    exact = [14 * 10 * 9 * 12, 12 * 8 * 9 * 20, 10 * 6 * 9 * 30]
    assert counts["gate"] == exact
    assert counts["raw"] == [0, *exact[1:]]


def test_records_are_frozen() -> None:
    (record,) = records(nn.Conv2d(3, 4, 3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.grid = None  # type: ignore[misc]
