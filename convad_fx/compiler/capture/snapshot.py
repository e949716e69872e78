"""Capturing must leave the model unchanged: its attributes and buffers are restored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convad_fx.compiler.capture.hook_state import HookState


@dataclass(frozen=True, slots=True)
class Changes:
    """What running forward changed in a model, before it was restored.

    Attributes:
        constants: new tensor attributes of the model, in which torch.fx keeps constants.
        buffers: names of the buffers that were written to.
    """

    constants: dict[str, Tensor]
    buffers: list[str]


class Snapshot:
    """The attributes and buffers of a model and what its hooks hold, before its forward runs."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.attributes = {module: dict(vars(module)) for module in model.modules()}
        self.buffers = {
            name: (buffer, _version(buffer), buffer.detach().clone())
            for name, buffer in model.named_buffers()
        }
        self.hooks = HookState(model)

    def restore(self) -> Changes:
        """Set the model back to the snapshot, and return what had changed."""
        constants = {
            name: value
            for name, value in vars(self.model).items()
            if name not in self.attributes[self.model] and isinstance(value, Tensor)
        }
        for module, before in self.attributes.items():
            for name in set(vars(module)) - set(before):
                del module.__dict__[name]
            module.__dict__.update(before)
        self.hooks.restore()
        changed = []
        for name, (buffer, version, value) in self.buffers.items():
            if _is_changed(buffer, version, value):
                changed.append(name)
                with torch.inference_mode(version is None), torch.no_grad():
                    buffer.copy_(value)
        return Changes(constants, changed)


def _version(buffer: Tensor) -> int | None:
    """How often the buffer was written to; None in inference mode, where torch does not count."""
    return None if buffer.is_inference() else buffer._version


def _is_changed(buffer: Tensor, version: int | None, value: Tensor) -> bool:
    if version is not None:
        return buffer._version != version
    equal = (buffer == value) | ((buffer != buffer) & (value != value))  # NaN equals NaN here
    return not bool(equal.all())
