"""A plan as a figure: activities, gates and findings of all operations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from convad_fx.compiler.analysis.plan import Activity, Plan
from convad_fx.compiler.analysis.propagate import plan
from convad_fx.compiler.analysis.report import Report, untraceable
from convad_fx.compiler.capture.requirements import unwrapped
from convad_fx.compiler.capture.trace import Trace, trace
from convad_fx.compiler.policy import Policy
from convad_fx.convert import full_report
from convad_fx.errors import PolicyError, Unavailable, UntraceableModel
from convad_fx.report.graph_layout import arrange
from convad_fx.report.plan_graph import Box, merge_blocks, plan_graph, uncaptured_graph
from convad_fx.report.plan_page import PlanPage
from convad_fx.report.plan_renderer import PlanRenderer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Suffix -> the metadata that would make files of equal plans differ.
_VARIABLE_METADATA = {".svg": "Date", ".png": "Software", ".pdf": "CreationDate"}


def save_plan(
    model: nn.Module,
    example: Tensor,
    file: Path | str,
    policy: Policy | None = None,
    *,
    front_end: str = "auto",
) -> Report:
    """Check a model as `convad_fx.check` does, and draw the plan to a file.

    >>> import tempfile, torch, torchvision
    >>> model = torchvision.models.squeezenet1_1().eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_plan(model, torch.zeros(1, 3, 64, 64), Path(folder) / "squeezenet.svg").ok
    True

    `draw_plan` describes the drawing. For a model that cannot be captured it shows the finding.

    Args:
        model, example, policy, front_end: as for `convad_fx.check`.
        file: with the suffix .svg, .png or .pdf; replaced if it exists.

    Returns:
        The report that `convad_fx.check` gives.

    Raises:
        PolicyError: another suffix.
        Unavailable: the file cannot be written; its folder must exist.
        ModelError, ImageError: as in `convad_fx.check`.
    """
    target = writable_picture(file)
    name = type(unwrapped(model)).__name__
    try:
        traced = trace(model, example, front_end)
    except UntraceableModel as error:
        report = untraceable(name, error.path, error.what, error.hint)
        figure = _draw(uncaptured_graph(report), (), report, None)
    else:
        policy = policy or Policy()
        decided = plan(traced, policy)
        report = full_report(traced, decided, policy, name)
        figure = draw_plan(traced, decided, report)
    metadata = {_VARIABLE_METADATA[target.suffix.lower()]: None}
    try:
        figure.savefig(target, dpi=150, metadata=metadata)
    except OSError as error:
        raise _not_writable(target, error.strerror or str(error)) from error
    return report


def writable_picture(file: Path | str) -> Path:
    """The path, if a plan can be drawn there; call it before expensive work.

    Raises:
        PolicyError: the suffix is not .svg, .png or .pdf.
        Unavailable: the folder does not exist, or the path is a folder.
    """
    path = Path(file)
    if path.suffix.lower() not in _VARIABLE_METADATA:
        raise PolicyError(
            "a drawing of the plan is .svg, .png or .pdf,"
            f" not {path.suffix or 'a file without suffix'} ({path})",
            hint=f"write {path.stem or 'plan'}.svg",
        )
    if not path.parent.is_dir():
        raise _not_writable(path, f"there is no folder {path.parent}")
    if path.is_dir():
        raise _not_writable(path, "it is a folder")
    return path


def _not_writable(path: Path, why: str) -> Unavailable:
    return Unavailable(f"cannot write {path}: {why}", hint="make the folder, or pass another file")


def draw_plan(traced: Trace, plan: Plan, report: Report, axes: Axes | None = None) -> Figure:
    """Draw all operations, or the blocks of a large network, in the order of the data flow.

    >>> import torch, torchvision
    >>> from convad_fx.compiler.analysis.propagate import plan
    >>> model = torchvision.models.squeezenet1_1().eval()
    >>> traced = trace(model, torch.zeros(1, 3, 64, 64))
    >>> decided = plan(traced, Policy())
    >>> report = full_report(traced, decided, Policy(), "SqueezeNet")
    >>> figure = draw_plan(traced, decided, report)
    >>> len(figure.axes)
    1

    docs/cli.md describes the drawing.

    Args:
        traced, plan, report: of the same model.
        axes: where to draw; text shrinks with the axes. None makes a figure that is as large as the
            network requires.

    Returns:
        The figure; no display is needed, and matplotlib's global state is not touched.
    """
    return _draw(plan_graph(traced, plan), plan.activities, report, axes)


def _draw(
    graph: nx.DiGraph, activities: tuple[Activity, ...], report: Report, axes: Axes | None
) -> Figure:
    shown = merge_blocks(graph)
    layout = arrange(shown, group=lambda node: _stage(shown.nodes[node]["box"]))
    page = PlanPage(shown, layout, activities, report)
    if axes is None:
        figure = Figure(figsize=(page.width, page.height), facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    PlanRenderer(axes, page).draw()
    root = axes.get_figure(root=True)
    assert root is not None, "checked by the renderer"
    return root


def _stage(box: Box) -> str:
    """The path without its last two parts, but at least its first; columns preferably end there."""
    parts = box.path.split(".")
    return ".".join(parts[: max(1, len(parts) - 2)])
