"""Parts of graphs, and the sizes of their tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from convad_fx.compiler.capture.trace import trace
from convad_fx.compiler.lowering.subgraph import NoPlan, extract, shapes_of


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, 2)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = self.first(x)
        return self.second(z).relu() + y, z.sin()


def test_a_part_has_what_its_outputs_need_in_the_same_order_and_every_input() -> None:
    module = torch.fx.symbolic_trace(Joined())
    nodes = {node.name: node for node in module.graph.nodes}
    part, copies = extract(module.graph, (nodes["second"], nodes["first"]))
    assert [node.name for node in part.nodes] == ["x", "y", "first", "second", "output"]
    assert copies[nodes["second"]].name == "second"
    assert len(module.graph.nodes) == 8  # as it was
    x = torch.rand(1, 3, 9, 9)
    second, first = torch.fx.GraphModule(module, part)(x, None)
    assert torch.equal(second, module.second(first))


def test_a_part_that_starts_at_a_tensor_takes_that_instead_of_the_image() -> None:
    module = torch.fx.symbolic_trace(Joined())
    nodes = {node.name: node for node in module.graph.nodes}
    outputs = module.graph.output_node().args[0]
    part, _ = extract(module.graph, outputs, start=nodes["first"])
    names = [node.name for node in part.nodes]
    assert names == ["shared", "y", "second", "relu", "add", "sin", "output"]
    x, y = torch.rand(1, 3, 9, 9), torch.rand(1, 5, 3, 3)
    rest = torch.fx.GraphModule(module, part)(module.first(x), y)
    for given, expected in zip(rest, module(x, y), strict=True):
        assert torch.equal(given, expected)


def test_sizes_without_values_or_why_it_does_not_run() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).eval()
    traced = trace(model, torch.zeros(1, 3, 8, 8))
    graph = traced.module.graph
    shapes = shapes_of(traced, graph, lambda x: [x.expand(2, -1, -1, -1)])
    known = [shapes[node] for node in graph.nodes if node.op == "call_module"]
    assert known == [(2, 4, 6, 6), (2, 4, 6, 6), (2, 144)]
    with pytest.raises(NoPlan, match="another size than the example's"):
        shapes_of(traced, graph, lambda x: [x[:, :2]])
