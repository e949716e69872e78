"""Figures and pages: explanations, comparisons of maskers, and plans."""

from convad_fx.report.comparison import MaskerResult, compare
from convad_fx.report.comparison_figure import draw_comparison, save_comparison
from convad_fx.report.comparison_page import PictureComparison, means, save_page
from convad_fx.report.explanation_figure import draw, save, show_kept, show_responsibility
from convad_fx.report.plan_figure import draw_plan, save_plan, writable_picture

__all__ = [
    "MaskerResult",
    "PictureComparison",
    "compare",
    "draw",
    "draw_comparison",
    "draw_plan",
    "means",
    "save",
    "save_comparison",
    "save_page",
    "save_plan",
    "show_kept",
    "show_responsibility",
    "writable_picture",
]
