"""What the user's hooks hold: tracing runs them on proxies, of which none may stay behind."""

from __future__ import annotations

import copy
import functools
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

_CONTAINERS = (list, dict, set, deque)


class HookState:
    """The containers and attributes that a model's hooks can write to, to restore them.

    >>> import torch
    >>> seen = []
    >>> layer = nn.ReLU()
    >>> handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    >>> before = HookState(layer)
    >>> _ = layer(torch.zeros(1))
    >>> before.restore()
    >>> seen
    []

    Known are the variables of a hook's closure, the globals it names, and the object whose method
    it is: their contents and attributes, one level deep.
    """

    def __init__(self, model: nn.Module) -> None:
        self._restore: list[Callable[[], None]] = []
        self._seen: set[int] = {id(module) for module in model.modules()}
        for module in model.modules():
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
                self._save_function(hook)

    def restore(self) -> None:
        """Set everything back to what it was."""
        for restore in self._restore:
            restore()

    def _save_function(self, hook: Any) -> None:
        if isinstance(hook, functools.partial):
            for value in (*hook.args, *hook.keywords.values()):
                self._save_value(value)
            return self._save_function(hook.func)
        if isinstance(hook, types.MethodType):
            self._save_value(hook.__self__)
        function = getattr(hook, "__func__", hook)
        if not isinstance(function, types.FunctionType):
            return self._save_value(hook)
        for cell in function.__closure__ or ():
            self._save_cell(cell)
        names = function.__code__.co_names
        found = {name: function.__globals__[name] for name in names if name in function.__globals__}
        self._restore.append(functools.partial(function.__globals__.update, found))
        for value in found.values():
            self._save_value(value)
        return None

    def _save_cell(self, cell: types.CellType) -> None:
        try:
            value = cell.cell_contents
        except ValueError:  # a variable that has no value yet
            return
        self._restore.append(lambda: setattr(cell, "cell_contents", value))
        self._save_value(value)

    def _save_value(self, value: Any) -> None:
        for target in _targets(value):
            if id(target) not in self._seen:
                self._seen.add(id(target))
                self._restore.append(functools.partial(_refill, target, copy.copy(target)))


def _targets(value: Any) -> Iterator[Any]:
    """Containers of a value: itself, its attributes, and containers among either."""
    attributes = getattr(value, "__dict__", None)
    if isinstance(value, type | types.ModuleType | types.FunctionType | nn.Module):
        return
    for target in (value, attributes):
        if isinstance(target, _CONTAINERS):
            yield target
            inner = target.values() if isinstance(target, dict) else target
            yield from (each for each in inner if isinstance(each, _CONTAINERS))


def _refill(target: Any, content: Any) -> None:
    """Make a container hold what its copy holds."""
    if isinstance(target, list):
        target[:] = content
        return
    target.clear()
    (target.extend if isinstance(target, deque) else target.update)(content)
