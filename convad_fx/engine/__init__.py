"""Many masks through one network, each by the cheapest execution strategy."""

from convad_fx.engine.engine import Engine, Evaluation
from convad_fx.engine.precision import PrecisionCheck

__all__ = ["Engine", "Evaluation", "PrecisionCheck"]
