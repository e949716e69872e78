"""The page of a plan: texts and symbols are on it, in sections one below the other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convad_fx.compiler.analysis.propagate import plan
from convad_fx.compiler.analysis.report import report_of
from convad_fx.compiler.capture.trace import trace
from convad_fx.compiler.policy import Policy
from convad_fx.report.graph_layout import arrange
from convad_fx.report.plan_graph import plan_graph
from convad_fx.report.plan_page import PlanPage


def page_of(model: nn.Module) -> PlanPage:
    traced = trace(model.eval(), torch.zeros(1, 3, 80, 80))
    decided = plan(traced, Policy())
    graph = plan_graph(traced, decided)
    report = report_of(traced, decided, type(model).__name__)
    return PlanPage(graph, arrange(graph, group=str), decided.activities, report)


class Sorted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(x, dim=1)[0].mean((2, 3))


CONVOLUTIONS = nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(30)))


@pytest.mark.parametrize("model", [CONVOLUTIONS, Sorted()], ids=["activities", "findings"])
def test_sections_stand_below_each_other_on_the_page(model: nn.Module) -> None:
    page = page_of(model)
    title, *texts = page.texts
    assert title.text == type(model).__name__
    assert all(0 < text.x < page.width and 0 < text.y < page.height for text in texts)
    bottom = page.top + page.layout.height
    assert all(not page.top <= text.y <= bottom for text in texts)
    legend_y = page.symbols[0][1]
    (activities,) = (text for text in texts if text.text == "Activities")
    reasons = [text for text in texts if text.text.startswith("1  sort")]
    below = [text.y for text in (activities, *reasons)]
    assert bottom < legend_y < below[0] < max(below) + 0.1 <= page.height


def test_a_long_list_of_activities_is_cut() -> None:
    page = page_of(CONVOLUTIONS)
    rows = [symbol for _, _, symbol in page.symbols if isinstance(symbol, int)]
    assert rows == list(range(23))
    assert page.texts[-1].text == "and 8 more"
    assert page.texts[-2].text == "window 3x3 of 21"


def test_the_legend_lists_what_the_picture_contains() -> None:
    legend = [symbol for _, _, symbol in page_of(Sorted()).symbols if isinstance(symbol, str)]
    assert legend == ["layout", "reduction", "activity", "finding", "undecided"]
