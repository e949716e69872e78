"""The list of functions that emitted code may call."""

from __future__ import annotations

import pytest
import torch

import convad_fx
from convad_fx.artifact import allowed
from convad_fx.compiler.kernels import EMITTED_FUNCTIONS, cut_activity_box, cut_activity_patch, gate
from convad_fx.compiler.lowering.patch import PatchWriter
from tests.compiler.patches import last_end
from tests.compiler.toys import ExplicitPadding, Residual, SqueezeExcite


def test_each_has_one_name_and_may_be_in_a_file() -> None:
    names = [function.__name__ for function in EMITTED_FUNCTIONS]
    assert len(set(names)) == len(names)
    for function in EMITTED_FUNCTIONS:
        assert allowed.function_of(allowed.name_of(function, "")) is function
    assert {"gate", "window_activity", "checked_mask", "cut_box", "cut_patch"} <= set(names)


def test_every_kernel_that_a_graph_calls_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PatchWriter, "best_end", last_end)  # patches as far as they go
    called = set()
    for toy in (Residual, SqueezeExcite, ExplicitPadding):
        masked = convad_fx.convert(toy().eval(), torch.zeros(1, 3, 64, 64))
        for graph in (masked.graph, *masked.strategies.graphs().values()):
            called |= {node.target for node in graph.nodes}
    kernels = {f for f in called if getattr(f, "__module__", "").startswith("convad_fx.")}
    assert {gate, cut_activity_box, cut_activity_patch} <= kernels <= set(EMITTED_FUNCTIONS)
