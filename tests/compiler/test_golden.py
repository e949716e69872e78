"""Plans and emitted code of the toys, as text that a reader of a change can diff.

``pytest --refresh`` writes them anew.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convad_fx.compiler.analysis.plan import Plan
from convad_fx.compiler.analysis.propagate import plan
from convad_fx.compiler.analysis.steps import Pad
from convad_fx.compiler.capture.node_facts import facts
from convad_fx.compiler.capture.trace import trace
from convad_fx.compiler.passes.insert_gates import rewrite
from convad_fx.compiler.passes.node_roles import is_original, role_of
from convad_fx.compiler.passes.simplify import simplify
from convad_fx.compiler.policy import Policy
from convad_fx.convert import convert
from tests.compiler.toys import SHAPE, TOYS, build

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", TOYS)
def test_plan_and_code(name: str, request: pytest.FixtureRequest) -> None:
    model, example = build(name), torch.zeros(SHAPE)
    # each torch spells these imports and annotations a little differently
    code = re.sub(r";  \w+( = \w+)* = None", "", convert(model, example).code).strip()
    text = f"{plan(trace(model, example), Policy())}\n\n{code}\n"
    file = GOLDEN / f"{name}.txt"
    if request.config.getoption("--refresh"):
        file.write_text(text)
    assert text == file.read_text(), f"run `pytest {__file__} --refresh` and read the diff"


def is_gate(node: torch.fx.Node) -> bool:
    """Before a reader; not one that puts zeros where a maximum had nothing to choose from."""
    return role_of(node) == "gate"


def _step_of(node: torch.fx.Node, decided: Plan) -> Any:
    known = decided.nodes.get(facts(node).name)
    return None if known is None else known.step


def gates_of(graph: torch.fx.Graph) -> int:
    return sum(map(is_gate, graph.nodes))


@pytest.mark.parametrize("name", TOYS)
def test_simplify_only_takes_away_and_is_idempotent(name: str) -> None:
    traced = trace(build(name), torch.zeros(SHAPE))
    decided = plan(traced, Policy())
    graph = rewrite(traced, decided, Policy())
    before = len(graph.nodes)
    naive_gates = gates_of(graph)
    changed = simplify(graph, decided)
    assert len(graph.nodes) <= before - changed["drop_idle_gates"] - changed["drop_unread"]
    gates = gates_of(graph)
    reads = sum(len(node.reads) for node in decided.nodes.values())
    assert gates <= min(reads, naive_gates)
    readers = {name for name, known in decided.nodes.items() if known.reads}
    for node in filter(is_gate, graph.nodes):  # each for a reader; others may share it
        users = [user for user in node.users if is_original(user)]
        # zeros are put around what is gated, not gated themselves
        users += [u for p in users if isinstance(_step_of(p, decided), Pad) for u in p.users]
        assert any(facts(user).name in readers for user in users if is_original(user)), node
        assert not isinstance(_step_of(node.args[0], decided), Pad)
        assert not any(map(is_gate, node.all_input_nodes))
    pairs = [node.args for node in graph.nodes if is_gate(node)]  # value, activity, what else
    assert len(set(pairs)) == len(pairs)
    assert not any(simplify(graph, decided).values())


def test_hoisting_computes_the_first_layer_once_per_image() -> None:
    policy = Policy(input="raw")
    masked = convert(build("Residual"), torch.zeros(SHAPE), policy)
    rows = []
    masked.get_submodule("stem").register_forward_hook(lambda m, i, o: rows.append(o.shape[0]))
    assert masked(torch.rand(1, 3, 8, 8), torch.rand(5, 1, 8, 8) > 0.5).shape[0] == 5
    assert rows == [1]


def test_hoisting_goes_on_through_a_norm_over_channels_that_come_last() -> None:
    class Stem(nn.Module):
        """As ConvNeXt's."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 4, 2, 2), nn.LayerNorm(4)
            self.second = nn.Conv2d(4, 4, 3, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.first(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return self.second(x).mean((2, 3))

    torch.manual_seed(0)
    model, rows = Stem().eval(), []
    masked = convert(model, torch.zeros(SHAPE), Policy(input="raw"))
    model.norm.register_forward_hook(lambda m, i, o: rows.append(o.shape[0]))
    x, masks = torch.rand(1, 3, 8, 8), torch.rand(5, 1, 8, 8) > 0.5
    found = masked(x, masks)
    assert rows == [1]
    torch.testing.assert_close(found, masked(x.expand(5, -1, -1, -1), masks))


def test_a_size_read_before_the_first_gate_is_the_mask_batch() -> None:
    class Late(nn.Module):
        """Reads the batch of the image, and needs it where there is one row per mask."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x)).reshape(x.shape[0], -1)

    torch.manual_seed(0)
    for policy in (Policy(), Policy(input="raw")):
        masked = convert(Late().eval(), torch.zeros(SHAPE), policy)
        x, masks = torch.rand(1, 3, 8, 8), torch.rand(5, 1, 8, 8) > 0.5
        one_by_one = torch.cat([masked(x, m[None]) for m in masks])
        torch.testing.assert_close(masked(x, masks), one_by_one)
