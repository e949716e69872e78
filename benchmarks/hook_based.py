"""The same masks carried by forward hooks, in eager mode: what a competent user would write.

A hook before every module that mixes positions gates its input, a hook after it computes the
activity of its output. It covers what the networks of these benchmarks consist of, for ``Policy()``
(positional, tau 0), and finds the activity of a tensor from the size of its grid alone. Nothing is
proved: what is not listed is taken to leave cells where they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MIXES = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)

#: Modules right before a pooling that is a function, which no hook sees (DenseNet's last norm).
_BEFORE_FUNCTIONS = ("features.norm5",)


class HookBased:
    """``(x, mask) -> logits`` by hooks on the unmodified model, while the context is open."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.activities: dict[tuple[int, ...], Tensor] = {}  # by the size of the grid
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> HookBased:
        for module in self.model.modules():
            if isinstance(module, _MIXES):
                self.handles.append(module.register_forward_pre_hook(self._before))
                self.handles.append(module.register_forward_hook(self._after))
        for name, module in self.model.named_modules():
            if name in _BEFORE_FUNCTIONS:
                self.handles.append(module.register_forward_hook(self._gated))
        return self

    def __exit__(self, *error: object) -> None:
        while self.handles:
            self.handles.pop().remove()

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        self.activities = {tuple(mask.shape[2:]): mask}
        logits: Tensor = self.model(x.expand(max(len(x), len(mask)), *x.shape[1:]))
        return logits

    def _before(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0]
        activity = self.activities.get(tuple(z.shape[2:]))
        if activity is None or z.shape[2:].numel() == 1:
            return args
        fill = float("-inf") if isinstance(module, nn.MaxPool2d) else 0.0
        return (torch.where(activity, z, fill),)

    def _gated(self, module: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> Tensor:
        return torch.where(self.activities[tuple(z.shape[2:])], z, 0.0)

    def _after(self, module: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
        before, after = tuple(args[0].shape[2:]), tuple(z.shape[2:])
        if before == after or after in self.activities or before not in self.activities:
            return
        active = self.activities[before].float()
        if isinstance(module, nn.AdaptiveAvgPool2d):
            self.activities[after] = F.adaptive_max_pool2d(active, after) > 0
            return
        rows, columns = _pair(module.padding)
        active = F.pad(active, (columns, columns, rows, rows))
        pooled = F.max_pool2d(active, _pair(module.kernel_size), _pair(module.stride))
        self.activities[after] = pooled > 0


def _pair(value: object) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)  # type: ignore[return-value]
