"""Patches as far as they go, in place of `PatchWriter.best_end`."""

from __future__ import annotations

import torch.fx

from convad_fx.compiler.lowering.patch import PatchWriter


def last_end(writer: PatchWriter) -> torch.fx.Node | None:
    """The output, if anything before it is on patches and anything at all multiplies."""
    on_patches = len(writer.parts) > 1 and writer.costs  # more than the image's
    return writer.geometry.graph.output_node() if on_patches else None
