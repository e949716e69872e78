"""What a masked graph was rewritten to, so that `evaluate` computes less than whole images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch.fx

from convad_fx.compiler.plan import Plan
from convad_fx.compiler.region import Region, region_of
from convad_fx.compiler.reuse import Reuse, reuse_of
from convad_fx.compiler.trace import Trace


@dataclass(frozen=True, slots=True)
class Ways:
    """How a network may run: on boxes that hold what is active, on patches that hold what changed.

    Attributes:
        region: on boxes, where a mask keeps little.
        reuse: on patches, where a mask hides little.
    """

    region: Region
    reuse: Reuse

    def graphs(self) -> dict[str, torch.fx.Graph]:
        """Those that there are, by name."""
        found = {
            "boxed": self.region.values,
            "boxed_activities": self.region.activities,
            "patched": self.reuse.values,
            "patched_activities": self.reuse.activities,
            "unmasked": self.reuse.kept,
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
        return Ways(region, reuse)

    def __str__(self) -> str:
        return f"{self.region}, and {self.reuse}"


def ways_of(traced: Trace, plan: Plan, graph: torch.fx.Graph) -> Ways:
    """Decide on the simplified masked graph how it may run."""
    return Ways(region_of(traced, plan, graph), reuse_of(traced, plan, graph))
