"""The graph's own modules: shallow copies of the model's, with the same parameter objects."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def copy_tree(model: nn.Module, is_leaf: Callable[[nn.Module, str], bool]) -> nn.Module:
    """Copy the model's modules shallowly: same parameter objects, separate registries.

    So `masked.to(...)` and `masked.eval()` never touch the model, and the ``inplace`` flags of
    activations can be cleared for the graph alone.

    Args:
        is_leaf: called with a module and its path: whether the graph calls it as it is. All others
            only hold parameters, and are copied as plain `nn.Module`.
    """
    copies: dict[int, nn.Module] = {}

    def copy(module: nn.Module, path: str) -> nn.Module:
        if id(module) in copies:
            return copies[id(module)]
        if path and is_leaf(module, path):
            # copy.copy() refuses parametrized modules; this is all it would do
            twin = object.__new__(type(module))
            twin.__dict__.update(module.__dict__)
            if getattr(twin, "inplace", False) is True:
                twin.inplace = False  # type: ignore[assignment]
        else:
            twin = nn.Module()
            twin._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
        copies[id(module)] = twin
        twin.training = False
        twin._parameters = dict(module._parameters)
        twin._buffers = dict(module._buffers)
        twin._modules = {
            name: None if child is None else copy(child, f"{path}.{name}" if path else name)
            for name, child in module._modules.items()
        }
        return twin

    return copy(model, "")


def adopt(module: nn.Module, tree: nn.Module) -> None:
    """Give a graph module the whole tree, so that its state dict has all the model's keys.

    A `torch.fx.GraphModule` by itself keeps only what its graph uses.
    """
    module._modules = tree._modules
    module._parameters = tree._parameters
    module._buffers = tree._buffers
    module._non_persistent_buffers_set = tree._non_persistent_buffers_set
    module.training = False
