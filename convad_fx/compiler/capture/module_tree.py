"""The graph's own modules: shallow copies of the model's, with the same parameter objects.

Their names are the model's: keys of its state dict. Any string without a dot can be one, such as
``graph``, ``code`` or ``class``. So modules and tensors are looked up by name (`find`), not as
attributes, which may be those of a class.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable
from typing import Any

import torch.fx
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
        children = {
            name: None if child is None else copy(child, f"{path}.{name}" if path else name)
            for name, child in module._modules.items()
        }
        twin.__dict__.update(
            _modules=children,
            _parameters=dict(module._parameters),
            _buffers=dict(module._buffers),
            training=False,
        )
        return twin

    return copy(model, "")


def find(root: nn.Module, path: str) -> Any:
    """The module, parameter or buffer at a dotted path; `root` at the empty one.

    Raises:
        AttributeError: there is none.
    """
    found: Any = root
    for name in filter(None, path.split(".")):
        registries = (found._modules, found._parameters, found._buffers)
        registry = next((one for one in registries if name in one), None)
        found = getattr(found, name) if registry is None else registry[name]
    return found


def adopt(module: nn.Module, tree: nn.Module) -> None:
    """Give a module the whole tree of another, so that its state dict has all the model's keys.

    A `torch.fx.GraphModule` by itself keeps only what its graph uses.
    """
    registries = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")
    module.__dict__.update({name: tree.__dict__[name] for name in registries}, training=False)


class TreeCode(torch.fx.graph.CodeGen):
    """Code that reads a module named ``graph`` or ``class`` as ``self.__getattr__('graph')``."""

    def _gen_python_code(self, nodes: Any, root_module: str, namespace: Any, **kwargs: Any) -> Any:
        code = super()._gen_python_code(nodes, root_module, namespace, **kwargs)
        for target in {str(n.target) for n in nodes if n.op in ("call_module", "get_attr")}:
            owner = next(iter(nodes)).graph.owning_module or nn.Module()
            names = target.split(".")
            if not all(_is_readable(name, owner) for name in names):
                written = re.escape(torch.fx.graph._format_target(root_module, target))
                safe = root_module + "".join(f".__getattr__({name!r})" for name in names)
                pattern = rf"(?<= = ){written}(?=[(;\n])"
                code.src = re.sub(pattern, safe.replace("\\", r"\\"), code.src)
        return code


def _is_readable(name: str, owner: nn.Module) -> bool:
    """Whether torch's spelling, ``owner.name``, is valid and reads what is registered."""
    is_plain = re.fullmatch(r"[^\"\\\n]+", name) and not keyword.iskeyword(name)
    return bool(is_plain) and not hasattr(type(owner), name) and name not in vars(owner)


def unreadable_name(model: nn.Module) -> str | None:
    """The path of a module, parameter or buffer that torch's generated code cannot read."""
    graph_module = torch.fx.GraphModule(nn.Module(), torch.fx.Graph())
    for path, module in model.named_modules():
        for name in (*module._modules, *module._parameters, *module._buffers):
            if not _is_readable(name, module if path else graph_module):
                return f"{path}.{name}" if path else name
    return None


class TreeModule(torch.fx.GraphModule):
    """A graph on a tree of modules, whose names may be those of its own attributes."""

    def __init__(
        self, tree: nn.Module, graph: torch.fx.Graph, name: str, code: type[TreeCode] = TreeCode
    ) -> None:
        # torch.fx would assign modules and its own attributes by name, one over the other
        super().__init__(nn.Module(), torch.fx.Graph(), class_name=name)
        graph.set_codegen(code())
        for node in graph.nodes:
            if node.name == "self":  # a parameter of the model called `self`
                node._rename("self_")
        self.graph = graph
        adopt(self, tree)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a module or parameter only where no attribute has this name."""
        if name in self.__dict__ or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def get_submodule(self, target: str) -> nn.Module:
        """The module at a dotted path, also where an attribute has its name."""
        found = find(self, target)
        if not isinstance(found, nn.Module):
            raise AttributeError(f"{target} is not a module")
        return found
