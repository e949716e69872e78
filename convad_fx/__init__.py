"""Explain image classifiers by switching activations off instead of painting pixels.

>>> import torch, torchvision, convad_fx
>>> model = torchvision.models.resnet18().eval()
>>> masked = convad_fx.convert(model, torch.zeros(1, 3, 64, 64))
>>> masked(torch.rand(1, 3, 64, 64), torch.rand(8, 1, 64, 64) > 0.5).shape
torch.Size([8, 1000])
"""

from convad_fx.compiler import Finding, MaskedModule, Policy, Report, check, convert

__all__ = ["Finding", "MaskedModule", "Policy", "Report", "check", "convert"]
