"""Trained model -> MaskedModule: trace -> ops -> rules -> plan -> check -> rewrite -> simplify."""

from convad_fx.compiler.checker import Report
from convad_fx.compiler.convert import check, convert
from convad_fx.compiler.masked import MaskedModule
from convad_fx.compiler.plan import Finding
from convad_fx.compiler.policy import Policy

__all__ = ["Finding", "MaskedModule", "Policy", "Report", "check", "convert"]
