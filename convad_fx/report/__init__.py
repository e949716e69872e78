"""Explanations made visible: PNG overlays and the files they are saved in."""

from convad_fx.report.overlay import draw, save

__all__ = ["draw", "save"]
