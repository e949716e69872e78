"""Which pixels suffice for a network's answer?

>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)).eval()
>>> why = explain(occlusion(model), torch.rand(1, 8, 8))
>>> why.sufficient
True

Any class may be the target, and the `score` that is kept may be chosen. All functions take any
callable `(x, mask) -> logits` (a `Masker`): a network that switches regions off and one whose input
is painted over are explained by the same code.
"""

from convad_fx.explain.encoding import DamagedExplanation
from convad_fx.explain.evaluator import Evaluator
from convad_fx.explain.explainer import explain, explain_disjoint
from convad_fx.explain.explanation import Contrast, Explanation
from convad_fx.explain.masker import PAINTS, Masker, Occlusion, occlusion
from convad_fx.explain.options import Search
from convad_fx.explain.scores import SCORES, Scores

__all__ = [
    "PAINTS",
    "SCORES",
    "Contrast",
    "DamagedExplanation",
    "Evaluator",
    "Explanation",
    "Masker",
    "Occlusion",
    "Scores",
    "Search",
    "explain",
    "explain_disjoint",
    "occlusion",
]
