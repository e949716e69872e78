"""What a masked graph was rewritten to, so that `evaluate` computes less than whole images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch.fx

from convad_fx.compiler.analysis.plan import Plan
from convad_fx.compiler.capture.trace import Trace
from convad_fx.compiler.lowering.box import Builder, Region
from convad_fx.compiler.lowering.patch import Reuse, reuse_of
from convad_fx.compiler.lowering.tile import Share, share_of


@dataclass(frozen=True, slots=True)
class Ways:
    """How a network may run: on boxes of what is active, patches of what changed, shared tiles.

    Attributes:
        region: on boxes, where a mask keeps little.
        reuse: on patches, where a mask hides little.
        share: on tiles, which masks share that keep the same there.
    """

    region: Region
    reuse: Reuse
    share: Share

    def graphs(self) -> dict[str, torch.fx.Graph]:
        """Those that there are, by name."""
        found = {
            "boxed": self.region.values,
            "boxed_activities": self.region.activities,
            "patched": self.reuse.values,
            "patched_activities": self.reuse.activities,
            "unmasked": self.reuse.kept,
            "rest": self.share.rest,
            **{f"tiles_{i}": stage.values for i, stage in enumerate(self.share.stages)},
        }
        return {name: graph for name, graph in found.items() if graph is not None}

    def with_graphs(self, graphs: Mapping[str, torch.fx.Graph]) -> Ways:
        """The same with these graphs."""
        region = replace(
            self.region, values=graphs.get("boxed"), activities=graphs.get("boxed_activities")
        )
        reuse = replace(
            self.reuse,
            values=graphs.get("patched"),
            activities=graphs.get("patched_activities"),
            kept=graphs.get("unmasked"),
        )
        stages = tuple(
            replace(stage, values=graphs.get(f"tiles_{i}"))
            for i, stage in enumerate(self.share.stages)
        )
        return Ways(region, reuse, replace(self.share, stages=stages, rest=graphs.get("rest")))

    def __str__(self) -> str:
        shared = f"; {self.share}" if self.share.ok else ""
        return f"{self.region}, and {self.reuse}{shared}"


def ways_of(traced: Trace, plan: Plan, graph: torch.fx.Graph) -> Ways:
    """Decide on the simplified masked graph how it may run."""
    boxes = Builder(traced, plan, graph)
    region = boxes.build()
    share = share_of(traced, plan, graph, boxes, region)
    return Ways(region, reuse_of(traced, plan, graph), share)
