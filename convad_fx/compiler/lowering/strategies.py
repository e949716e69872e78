"""How a masked network may run with less arithmetic than on whole images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch.fx

from convad_fx.compiler.analysis.plan import Plan
from convad_fx.compiler.capture.trace import Trace
from convad_fx.compiler.lowering.box import BoxPlan, plan_boxes
from convad_fx.compiler.lowering.grid_map import Geometry
from convad_fx.compiler.lowering.patch import PatchPlan, plan_patches
from convad_fx.compiler.lowering.tile import TilePlan, plan_tiles


@dataclass(frozen=True, slots=True)
class Strategies:
    """How a network may run: on boxes of what a mask keeps, patches of what it hides, or tiles."""

    box: BoxPlan
    patch: PatchPlan
    tile: TilePlan

    def graphs(self) -> dict[str, torch.fx.Graph]:
        """The emitted graphs by name."""
        known = {
            "box": self.box.values,
            "box_activities": self.box.activities,
            "patch": self.patch.values,
            "patch_activities": self.patch.activities,
            "patch_base": self.patch.kept,
            "tile_rest": self.tile.rest,
            **{f"tile_stage_{i}": stage.values for i, stage in enumerate(self.tile.stages)},
        }
        return {name: graph for name, graph in known.items() if graph is not None}

    def with_graphs(self, graphs: Mapping[str, torch.fx.Graph]) -> Strategies:
        """The same plans with these graphs."""
        get = graphs.get
        box = replace(self.box, values=get("box"), activities=get("box_activities"))
        patch = replace(
            self.patch,
            values=get("patch"),
            activities=get("patch_activities"),
            kept=get("patch_base"),
        )
        stages = tuple(
            replace(stage, values=get(f"tile_stage_{i}"))
            for i, stage in enumerate(self.tile.stages)
        )
        return Strategies(box, patch, replace(self.tile, stages=stages, rest=get("tile_rest")))

    def __str__(self) -> str:
        shared = f"; {self.tile}" if self.tile.ok else ""
        return f"{self.box}, and {self.patch}{shared}"


def plan_strategies(traced: Trace, plan: Plan, graph: torch.fx.Graph) -> Strategies:
    """Decide on the simplified masked graph how it may run."""
    geometry = Geometry(traced, plan, graph)
    box, boxes = plan_boxes(geometry)
    return Strategies(box, plan_patches(geometry), plan_tiles(geometry, boxes, box))
