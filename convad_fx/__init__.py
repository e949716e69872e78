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

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convad_fx import metrics
    from convad_fx.allocator import keep_memory
    from convad_fx.artifact import load, save
    from convad_fx.compiler.analysis.plan import Finding
    from convad_fx.compiler.analysis.report import Report
    from convad_fx.compiler.policy import Policy
    from convad_fx.convert import check, convert
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

#: Module -> the public names that are imported from it when they are first used.
_EXPORTS = {
    "allocator": "keep_memory",
    "artifact": "load save",
    "compiler.analysis.plan": "Finding",
    "compiler.analysis.report": "Report",
    "compiler.policy": "Policy",
    "convert": "check convert",
    "explain": "Contrast Explanation Search explain explain_disjoint occlusion",
    "exporting": "export export_onnx",
    "module": "MaskedModule",
    "tuning": "Tuning tune",
}
_HOMES = {name: home for home, names in _EXPORTS.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562): most programs use a few of them."""
    if name == "metrics":
        return importlib.import_module("convad_fx.metrics")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"convad_fx.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `convad_fx.explain` and `convad_fx.convert` functions.

    Importing a submodule sets the attribute of that name on its package. Where a public function
    has the same name, the function wins; `from convad_fx.explain import ...` works all the same.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
