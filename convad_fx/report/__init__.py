"""What was found, made visible: explanations as overlays, plans as pictures."""

from convad_fx.report.overlay import draw, save
from convad_fx.report.plan_picture import draw_plan, save_plan, writable_picture

__all__ = ["draw", "draw_plan", "save", "save_plan", "writable_picture"]
