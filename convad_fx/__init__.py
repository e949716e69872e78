"""Explain image classifiers by switching activations off instead of painting pixels.

>>> import torch, torchvision, convad_fx
>>> model = torchvision.models.resnet18().eval()
>>> masked = convad_fx.convert(model, torch.zeros(1, 3, 64, 64))
>>> masked(torch.rand(1, 3, 64, 64), torch.rand(8, 1, 64, 64) > 0.5).shape
torch.Size([8, 1000])
>>> exp = convad_fx.explain(masked, torch.rand(1, 3, 64, 64), seed=0)
>>> exp.mask.shape, exp.sufficient
((64, 64), True)
"""

from convad_fx import metrics
from convad_fx.allocator import keep_memory
from convad_fx.artifact import load, save
from convad_fx.compiler.analysis.plan import Finding
from convad_fx.compiler.analysis.report import Report
from convad_fx.compiler.policy import Policy
from convad_fx.convert import check, convert

# `convad_fx.explain` is the function; the package of that name stays importable from
from convad_fx.explain import (
    Contrast,
    Explanation,
    Search,
    explain,
    explain_disjoint,
    occlusion,
)
from convad_fx.exporting import export, export_onnx
from convad_fx.module import MaskedModule
from convad_fx.tuning import Tuning, tune

__all__ = [
    "Contrast",
    "Explanation",
    "Finding",
    "MaskedModule",
    "Policy",
    "Report",
    "Search",
    "Tuning",
    "check",
    "convert",
    "explain",
    "explain_disjoint",
    "export",
    "export_onnx",
    "keep_memory",
    "load",
    "metrics",
    "occlusion",
    "save",
    "tune",
]
