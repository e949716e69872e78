"""What was found, made visible: explanations as overlays and side by side, plans as pictures."""

from convad_fx.report.compare import Compared, compare, draw_comparison, save_comparison
from convad_fx.report.overlay import draw, save, show_kept, show_responsibility
from convad_fx.report.page import ComparedPicture, means, save_page
from convad_fx.report.plan_figure import draw_plan, save_plan, writable_picture

__all__ = [
    "Compared",
    "ComparedPicture",
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
