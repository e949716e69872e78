"""Upper bounds on what masks of one call can share: the cells whose values are equal.

    python -m benchmarks.sharing [--kit DIR] [--models NAME ...] [--masks 1200] [--json FILE]

A cell depends on the mask only within its receptive field, so masks that are equal there have the
same value in it. Counts the multiplications of convolutions, by grid and in all, as a share of
those on whole images, for the masks of `benchmarks.search`, call by call. Nothing is timed. "active
cells" are those that some gate of the grid reads as active, for each mask by itself (as in
`benchmarks.limits`); "different", those of them that differ from the same cell of all masks before;
"in tiles", the same for squares of 32 pixels with any active cell. "at most" is the inverse of "in
tiles": a bound, since a method that shares also computes or copies what windows read around a tile,
and assembles tiles. After an operation that leaves the grid (squeeze-and-excitation, the head) or
is not supported here (transposed convolutions, windows that are not square), masks share nothing.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.fx
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import convad_fx
from benchmarks import limits, measure
from benchmarks.search import FAMILIES, Searches, masks_of, recorded
from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.propagate import plan
from convad_fx.compiler.capture.node_facts import facts
from convad_fx.compiler.capture.trace import trace

TILE = 32
#: Hash of a cell that is not computed.
NONE = -(1 << 62)


@dataclass(frozen=True, slots=True)
class Field:
    """Which image positions cell i of a grid depends on: from stride * i - before to + after."""

    stride: int = 1
    before: int = 0
    after: int = 0

    def through(self, kernel: int, stride: int, padding: int, dilation: int) -> Field:
        """The field of a cell of the result of a window."""
        before = self.before + padding * self.stride
        after = self.after + (dilation * (kernel - 1) - padding) * self.stride
        return Field(self.stride * stride, before, after)


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution: cells of its result along an axis, what they depend on, its work's share."""

    side: int
    field: Field | None
    work: float


def layers_of(model: nn.Module, x: Tensor) -> list[Layer]:
    """Convolutions of a network, in order; their work adds up to 1."""
    traced = trace(model, x)
    decided = plan(traced, convad_fx.Policy())
    fields: dict[torch.fx.Node, Field | None] = {}
    layers = []
    for node in traced.module.graph.nodes:
        if node.op == "placeholder":
            fields[node] = Field()
        elif node.name in decided.nodes:
            known = [fields[operand] for operand in node.all_input_nodes if operand in fields]
            fields[node] = _field(decided.nodes[node.name].step, known)
        module = traced.module.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d):
            shape = facts(node).shape
            layers.append(Layer(shape[-1], fields[node], limits.multiplications(module, shape)))
    total = sum(layer.work for layer in layers)
    return [replace(layer, work=layer.work / total) for layer in layers]


def _field(step: steps.Step | None, known: list[Field | None]) -> Field | None:
    """The field of an operation's result, from those of its operands; None where unsupported."""
    fields = [field for field in known if field is not None]
    if len(fields) < len(known) or not fields or len({field.stride for field in fields}) > 1:
        return None
    field = Field(fields[0].stride, max(f.before for f in fields), max(f.after for f in fields))
    match step:
        case (
            steps.SameCell()
            | steps.Join()
            | steps.ChannelShuffle()
            | steps.Concat(axis=1, new=False)
        ):
            return field
        case steps.Window(transposed=False):
            sides = (step.kernel, step.stride, step.padding, step.dilation)
            square = [side[0] for side in sides if len(set(side)) == 1]
            if len(square) == len(sides) and square[2] is not steps.SAME:
                kernel, stride, (padding, _), dilation = square
                return field.through(kernel, stride, padding, dilation)
    return None


def kept_sums(masks: Tensor) -> Tensor:
    """Masks (K, 1, H, W) -> cumulative sums (K, H + 1, W + 1) of random numbers of kept positions.

    Modulo 2^64: sums over two different sets are equal with probability 2^-64.
    """
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-(1 << 63), (1 << 63) - 1, masks.shape[-2:], generator=generator)
    return F.pad((masks[:, 0] * numbers).cumsum(1).cumsum(2), (1, 0, 1, 0))


def kept_in(sums: Tensor, field: Field, side: int, cells: int) -> Tensor:
    """Hashes of the kept positions in the fields of squares of `cells` cells a side, (K, n, n)."""
    start = torch.arange(0, side, cells) * field.stride
    most = sums.shape[-1] - 1
    low = (start - field.before).clamp(0, most)
    high = (start + (cells - 1) * field.stride + field.after + 1).clamp(0, most)

    def at(rows: Tensor, columns: Tensor) -> Tensor:
        return sums[:, rows][:, :, columns]

    return at(high, high) - at(low, high) - at(high, low) + at(low, low)


def different(keys: Tensor, asked: Tensor) -> float:
    """The share of cells (K, n, n) that differ from the same cell of all masks before."""
    ordered = torch.where(asked, keys, NONE).flatten(1).sort(0).values
    new = torch.cat([torch.ones_like(ordered[:1], dtype=torch.bool), ordered[1:] != ordered[:-1]])
    return float((new & (ordered != NONE)).sum()) / ordered.numel()


def shares(layers: list[Layer], cells: dict[int, Tensor], masks: Tensor) -> NDArray[np.float64]:
    """For each layer: active cells, those that differ, and those in tiles that do."""
    sums, known, found = kept_sums(masks), dict[Any, Any](), []
    for layer in layers:
        key = layer.side, layer.field
        if key not in known:
            active = cells.get(layer.side)
            alone = 1.0 if active is None else float(active.float().mean())
            known[key] = (alone,) * 3
            if layer.field is not None and active is not None:
                n = max(1, TILE // layer.field.stride)
                tiles = F.max_pool2d(active.float(), n, ceil_mode=True)[:, 0] > 0
                each = kept_in(sums, layer.field, layer.side, 1)
                together = kept_in(sums, layer.field, layer.side, n)
                known[key] = alone, different(each, active[:, 0]), different(together, tiles)
        found.append(known[key])
    return np.array(found)


def rows_of(asked: argparse.Namespace) -> list[measure.Row]:
    rows = []
    known = recorded(asked)
    for name, model, x, masked in limits.networks(asked):
        layers = layers_of(model, x)
        searches = known or Searches.by(masked, [x])
        for family in FAMILIES:
            calls = masks_of(family, searches, asked.masks)
            rows += rows_by_grid({"model": name, "masks": family}, masked, x, layers, calls)
    return rows


def rows_by_grid(
    about: measure.Row,
    masked: convad_fx.MaskedModule,
    x: Tensor,
    layers: list[Layer],
    calls: list[Tensor],
) -> list[measure.Row]:
    """One for each grid, and one for all."""
    each = []
    for masks in calls:
        with torch.inference_mode():
            activities = masked.engine.parts["box_activities"](x, masks)
        each.append(shares(layers, limits.active_cells(masked.strategies.box, activities), masks))
    mean = np.average(each, axis=0, weights=[len(masks) for masks in calls])
    by_grid = defaultdict(list)
    for k, layer in enumerate(layers):
        by_grid[layer.side].append(k)
    rows = []
    for side, chosen in [*by_grid.items(), ("all", range(len(layers)))]:
        work = np.array([layers[k].work for k in chosen])
        active, cells, tiles = work @ mean[list(chosen)] / work.sum()
        row = {**about, "number": sum(map(len, calls)), "grid": side, "work": float(work.sum())}
        row |= {"active cells": active, "different": cells, "in tiles": tiles}
        rows.append({**row, "at most": 1 / tiles})
    return rows


def main() -> None:
    asked = limits.parser(__doc__).parse_args()
    measure.show(rows_of(asked), asked.json)


if __name__ == "__main__":
    main()
