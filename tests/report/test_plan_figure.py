"""The plan's picture: every operation, gate, change of activity and finding stands in it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import networkx as nx
import pytest
import torch
import torchvision
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import nn

import convad_fx
from convad_fx.compiler.analysis.plan import Plan
from convad_fx.compiler.analysis.propagate import plan
from convad_fx.compiler.analysis.report import report_of
from convad_fx.compiler.capture.trace import Trace, trace
from convad_fx.compiler.policy import Policy
from convad_fx.errors import ConvadError, ModelError, PolicyError, Unavailable
from convad_fx.report import draw_plan, save_plan
from convad_fx.report.graph_layout import BOX_HEIGHT, BOX_WIDTH
from convad_fx.report.plan_graph import IMAGE, OUTPUT, merge_blocks, paths_to_findings, plan_graph
from convad_fx.report.plan_page import RED
from convad_fx.report.plan_renderer import FILLS

SIGNATURES = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}


class Findings(nn.Module):
    """A roll beside the main way, and a sort behind a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.stem(x))
        rolled = torch.roll(y, 1, 2)
        ordered = torch.sort(self.body(y) + y, dim=1)[0]
        return self.head((ordered + rolled).mean((2, 3)))


class Twice(nn.Module):
    """A module of many operations that is called twice, with another one in between."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(80)]
        self.block, self.between = nn.Sequential(*convolutions), nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.between(self.block(x))).mean((2, 3))


class Undecided(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def decided(model: nn.Module, size: int = 64) -> tuple[Trace, Plan]:
    traced = trace(model.eval(), torch.zeros(1, 3, size, size))
    return traced, plan(traced, Policy())


def drawn(model: nn.Module, size: int = 64) -> Figure:
    traced, what = decided(model, size)
    return draw_plan(traced, what, report_of(traced, what, type(model).__name__))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return torchvision.models.resnet18().eval()


# ------------------------------------------------------------------------------------------ graph
def test_the_graph_is_the_plan(resnet: nn.Module) -> None:
    traced, what = decided(resnet)
    graph = plan_graph(traced, what)
    boxes = {box.path: box for _, box in graph.nodes(data="box")}
    assert len(graph) == len(boxes) == len(what.nodes) + 2
    for node in what.nodes.values():
        box = boxes[node.path]
        assert box.activity == node.result.row  # type: ignore[union-attr]
        assert box.gated == bool(node.reads)
    gates = nx.get_edge_attributes(graph, "gated")
    assert sum(gates.values()) == sum(len(node.reads) for node in what.nodes.values())
    assert nx.is_directed_acyclic_graph(graph)
    assert next(iter(nx.topological_sort(graph))) == IMAGE
    assert graph.out_degree(OUTPUT) == 0
    assert boxes["layer2.0.conv1"].is_new
    assert not boxes["layer2.0.conv2"].is_new
    assert boxes["layer2.0.conv1"].kind == "conv 3x3 /2"
    assert dict(boxes["layer2.0.add"].families) == {"join": 1}


def test_an_output_with_a_grid_is_gated() -> None:
    graph = plan_graph(*decided(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())))
    assert [box.gated for _, box in graph.nodes(data="box")] == [0, 1, 0, 1]


def test_findings_are_numbered_as_in_the_report_and_have_a_way_from_the_image() -> None:
    traced, what = decided(Findings())
    graph = plan_graph(traced, what)
    found = {n: box for n, box in graph.nodes(data="box") if box.findings}
    assert [(b.path, b.findings) for b in found.values()] == [("roll", (1,)), ("sort", (2,))]
    assert [finding.path for finding in what.findings] == ["roll", "sort"]
    ways = nx.DiGraph(list(paths_to_findings(graph)))
    assert all(nx.has_path(ways, IMAGE, node) for node in found)
    # relu -> add is shorter than relu -> body -> add.
    paths = {graph.nodes[node]["box"].path for node in ways}
    assert paths == {"image", "stem", "relu", "roll", "add", "sort"}


# ----------------------------------------------------------------------------------------- blocks
def test_small_networks_are_not_merged(resnet: nn.Module) -> None:
    graph = plan_graph(*decided(resnet))
    assert merge_blocks(graph) is graph


@pytest.mark.parametrize(
    ("name", "block", "operations"),
    [("mobilenet_v3_small", "features.4", 14), ("resnet50", "layer3.4", 10)],
)
def test_large_networks_come_in_blocks(name: str, block: str, operations: int) -> None:
    traced, what = decided(torchvision.models.get_model(name))
    graph = merge_blocks(plan_graph(traced, what))
    boxes = {box.path: box for _, box in graph.nodes(data="box")}
    assert nx.is_directed_acyclic_graph(graph)
    assert boxes[block].operations == operations
    assert sum(box.operations for box in boxes.values()) == len(what.nodes)
    gated = sum(bool(node.reads) for node in what.nodes.values())
    assert sum(box.gated for box in boxes.values()) == gated
    figure = draw_plan(traced, what, report_of(traced, what, name))
    assert block in texts(figure)
    assert any(text.startswith(f"{operations} operations, ") for text in texts(figure))


def test_blocks_have_no_cycle_where_a_module_is_called_twice() -> None:
    graph = merge_blocks(plan_graph(*decided(Twice(), 16)))
    assert nx.is_directed_acyclic_graph(graph)
    paths = [box.path for _, box in graph.nodes(data="box")]
    assert paths == ["image", "block", "between", "block (2)", "mean", "output"]


def test_blocks_keep_their_findings() -> None:
    traced, what = decided(torchvision.models.vit_b_16(), 224)
    graph = merge_blocks(plan_graph(traced, what))
    boxes = {box.path: box for _, box in graph.nodes(data="box")}
    assert boxes["encoder.layers.encoder_layer_3"].findings == (4,)
    assert boxes["encoder.ln"].activity is None
    assert len(paths_to_findings(graph)) >= 12


# ---------------------------------------------------------------------------------------- picture
def test_every_operation_of_resnet18_can_be_read(resnet: nn.Module) -> None:
    _, what = decided(resnet)
    figure = drawn(resnet)
    seen = texts(figure)
    for node in what.nodes.values():
        assert node.path in seen
    assert "69 operations, 14 activities, 22 operations with gated input" in "\n".join(seen)
    for word in ("window", "pointwise", "join", "layout", "reduction"):
        assert word in seen, "the legend names the families"
    assert "statistic" not in seen, "and only those that there are"
    assert "sum of 3, 4" in seen
    width, height = figure.get_size_inches()
    assert 0.8 < width / height < 1.8


@pytest.mark.parametrize(
    "build", [torchvision.models.resnet18, torchvision.models.shufflenet_v2_x0_5, Findings]
)
def test_texts_stay_on_the_page_and_paths_in_their_boxes(build: type[nn.Module]) -> None:
    figure = drawn(build())
    renderer = FigureCanvasAgg(figure).get_renderer()
    axes = figure.axes[0]
    page = figure.bbox
    inside = axes.transData.inverted()
    frames = [p for p in axes.patches if isinstance(p, FancyBboxPatch)]
    boxes = [f for f in frames if f.get_width() == BOX_WIDTH and f.get_height() == BOX_HEIGHT]
    assert len(boxes) > 10
    for text in axes.texts:
        extent = text.get_window_extent(renderer)
        assert page.x0 <= extent.x0 < extent.x1 <= page.x1, text.get_text()
        assert page.y0 <= extent.y0 < extent.y1 <= page.y1, text.get_text()
        (x0, _), (x1, _) = inside.transform(extent)
        x, y = text.get_position()
        for box in boxes:
            left, top = box.get_x(), box.get_y()
            if left <= x <= left + BOX_WIDTH and top <= y <= top + BOX_HEIGHT:
                assert left - 0.1 <= x0 < x1 <= left + BOX_WIDTH, text.get_text()


def test_findings_are_red_and_what_follows_is_left_open() -> None:
    figure = drawn(Findings())
    seen = texts(figure)
    assert "Assumption 1 is not shown to hold: 2 findings." in seen
    assert seen.count("?") == 6, "getitem, add, mean, head, output, and the legend"
    assert any(re.match(r"1  roll \(torch.roll, .*", text) for text in seen)
    assert any(re.match(r"2  sort \(torch.sort, .*", text) for text in seen)
    red = [line for line in figure.axes[0].lines if to_hex(line.get_color()) == RED]
    assert len(red) == 5 + 1, "five edges lead to the two findings; one is in the legend"


def test_the_colours_of_families_differ() -> None:
    assert len(set(FILLS.values())) == len(FILLS)
    assert RED not in FILLS.values()


def test_it_fits_into_axes_of_ones_own(resnet: nn.Module) -> None:
    traced, what = decided(resnet)
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots(1, 2)
    same = draw_plan(traced, what, report_of(traced, what, "ResNet"), axes[1])
    assert same is figure
    assert not axes[0].texts
    sizes = {text.get_fontsize() for text in axes[1].texts}
    assert max(sizes) < 5, "texts shrink with the room"


def test_global_state_of_matplotlib_is_not_touched() -> None:
    drawn(Findings())
    pyplot = sys.modules.get("matplotlib.pyplot")  # another test may have imported it
    assert pyplot is None or not pyplot.get_fignums()


# ------------------------------------------------------------------------------------------ files
@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf", ".PNG"])
def test_the_ending_says_what_is_written(tmp_path: Path, suffix: str) -> None:
    model, example = Findings().eval(), torch.zeros(1, 3, 32, 32)
    file = tmp_path / f"plan{suffix}"
    answer = save_plan(model, example, file)
    assert answer == convad_fx.check(model, example)
    assert file.read_bytes().startswith(SIGNATURES[suffix.lower()])


def test_the_same_plan_gives_the_same_file(tmp_path: Path) -> None:
    model, example = Findings().eval(), torch.zeros(1, 3, 32, 32)
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    save_plan(model, example, first)
    save_plan(model, example, second)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.filterwarnings("ignore")  # torch.export's own
def test_what_cannot_be_captured_is_drawn_as_a_finding(tmp_path: Path) -> None:
    model, example = Undecided().eval(), torch.zeros(1, 3, 8, 8)
    answer = save_plan(model, example, tmp_path / "plan.svg")
    assert not answer.ok
    assert answer == convad_fx.check(model, example)
    assert (tmp_path / "plan.svg").stat().st_size > 1000


@pytest.mark.parametrize("name", ["plan.jpg", "plan", "plan.svg.gz"])
def test_other_endings_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PolicyError, match=r"\.svg, \.png or \.pdf, not .*; write plan"):
        save_plan(Findings().eval(), torch.zeros(1, 3, 32, 32), tmp_path / name)


def test_folders_that_do_not_exist_are_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"there is no folder .*gone; make the folder"):
        save_plan(Findings().eval(), torch.zeros(1, 3, 32, 32), tmp_path / "gone" / "plan.svg")
    (tmp_path / "plan.png").mkdir()
    with pytest.raises(ConvadError, match="it is a folder"):
        save_plan(Findings().eval(), torch.zeros(1, 3, 32, 32), tmp_path / "plan.png")


def test_wrong_calls_raise_as_in_check(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="training mode"):
        save_plan(Findings(), torch.zeros(1, 3, 32, 32), tmp_path / "plan.svg")
    assert not list(tmp_path.iterdir())
