"""A masked network as JSON data and tensors, and back. Reading builds objects and runs nothing.

The whole tree of modules is stored, since its names are the keys of the state dict. Modules that
the graphs call are rebuilt as classes of torch.nn; all others only hold parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from convad_fx.artifact import allowed, arguments
from convad_fx.artifact.dataclass_codec import structure, unstructure
from convad_fx.artifact.graph_codec import (
    Json,
    decode,
    earlier,
    encode,
    graph_from_data,
    graph_to_data,
    identifier,
    path_part,
)
from convad_fx.artifact.timm_layers import without_timm_layers
from convad_fx.compiler.analysis.report import Report
from convad_fx.compiler.capture.module_tree import find
from convad_fx.compiler.lowering.strategies import Strategies
from convad_fx.compiler.policy import Policy
from convad_fx.errors import ArtifactError
from convad_fx.module import MaskedModule


@dataclass(frozen=True, slots=True)
class _TensorEntry:
    """A tensor of the weights: its path there, and what safetensors does not store.

    ``strides``: None where they are the usual ones.
    """

    path: str
    parameter: bool
    requires_grad: bool
    strides: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class _ModuleEntry:
    """A module. Tensors and children are numbers of entries; buffers also say if persistent.

    ``layer``: name of its class; "" for a module that only holds parameters.
    """

    layer: str
    attributes: dict[str, Any]
    parameters: dict[str, int | None]
    buffers: dict[str, tuple[int | None, bool]]
    children: dict[str, int | None]


# ---------------------------------------------------------------------------------------- writing
def to_data(masked: MaskedModule) -> tuple[Json, dict[str, Tensor]]:
    """The network as JSON data, and its tensors by path.

    Raises:
        ArtifactError: it contains a function, layer or value that a file cannot hold.
    """
    originals = {"masked": masked.graph, **masked.strategies.graphs()}
    graphs = {name: without_timm_layers(graph, masked) for name, graph in originals.items()}
    called = {
        str(node.target)
        for graph in graphs.values()
        for node in graph.nodes
        if node.op == "call_module"
    }
    writer = _Writer(_all_paths(masked, called))
    writer.module(masked, "")
    data = {
        "tensors": [unstructure(entry) for entry in writer.tensors],
        "modules": [unstructure(entry) for entry in writer.modules],
        "graphs": {name: graph_to_data(graph) for name, graph in graphs.items()},
        "strategies": unstructure(masked.strategies.with_graphs({})),
    }
    return data, writer.contents


def _all_paths(masked: nn.Module, called: Iterable[str]) -> set[str]:
    """Every path of the called modules: a module is written at whichever path comes first."""
    wanted = {id(find(masked, path)) for path in called}
    return {p for p, m in masked.named_modules(remove_duplicate=False) if id(m) in wanted}


@dataclass
class _Writer:
    """Collects the entries of modules and tensors, each once."""

    called: set[str]
    tensors: list[_TensorEntry] = field(default_factory=list)
    modules: list[_ModuleEntry] = field(default_factory=list)
    contents: dict[str, Tensor] = field(default_factory=dict)
    _numbers: dict[int, int] = field(default_factory=dict)  # id of a tensor or module -> entry
    _addresses: set[int] = field(default_factory=set)  # of the memory in contents

    def tensor(self, t: Tensor | None, path: str) -> int | None:
        """Number of the tensor's entry."""
        if t is None:
            return None
        if id(t) in self._numbers:  # tied parameters stay tied
            return self._numbers[id(t)]
        if t.layout != torch.strided or t.is_quantized or t.is_meta or type(t.data) is not Tensor:
            raise ArtifactError(
                f"a tensor of layout {t.layout} and type {type(t.data).__name__} on {t.device}",
                path=path,
                hint="only plain dense tensors can be saved",
            )
        plain = t.detach().cpu().resolve_conj().resolve_neg()
        dense = torch._prims_common.is_non_overlapping_and_dense_or_false(plain)
        usual = torch._prims_common.make_contiguous_strides_for(plain.shape)
        strides = plain.stride() if dense and plain.stride() != tuple(usual) else None
        plain = plain.contiguous()
        memory = plain.untyped_storage()
        if memory.nbytes() != plain.nbytes or memory.data_ptr() in self._addresses:
            plain = plain.clone()  # safetensors refuses tensors that share memory
        self._addresses.add(plain.untyped_storage().data_ptr())
        self.contents[path] = plain
        self._numbers[id(t)] = len(self.tensors)
        self.tensors.append(
            _TensorEntry(path, isinstance(t, nn.Parameter), t.requires_grad, strides)
        )
        return self._numbers[id(t)]

    def module(self, module: nn.Module, path: str, inside_layer: bool = False) -> int:
        """Number of the module's entry; children come before parents."""
        if id(module) in self._numbers:
            return self._numbers[id(module)]
        called = path in self.called
        inside_layer |= called
        layer = allowed.layer_name(type(module)) if path and inside_layer else ""
        if called:
            _require_layer(module, layer, path)
        prefix = f"{path}." if path else ""
        for name in (*module._parameters, *module._buffers, *module._modules):
            path_part(name, path)
        entry = _ModuleEntry(
            layer,
            _attributes(module, path) if layer else {},
            {name: self.tensor(p, prefix + name) for name, p in module._parameters.items()},
            {
                name: (
                    self.tensor(b, prefix + name),
                    name not in module._non_persistent_buffers_set,
                )
                for name, b in module._buffers.items()
            },
            {
                name: None if m is None else self.module(m, prefix + name, inside_layer)
                for name, m in module._modules.items()
            },
        )
        self._numbers[id(module)] = len(self.modules)
        self.modules.append(entry)
        return self._numbers[id(module)]


def _require_layer(module: nn.Module, layer: str, path: str) -> None:
    kind = type(module)
    if not layer:
        raise ArtifactError(
            f"is a {kind.__module__}.{kind.__qualname__}, whose source would be needed to load it",
            path=path,
            hint="remove it with torch.nn.utils.parametrize.remove_parametrizations, and convert"
            " again"
            if kind.__module__.startswith("torch.nn.utils.parametri")
            else "replace it by layers of torch.nn, or convert with front_end='export', which"
            " captures the operations inside",
        )
    if module._forward_hooks or module._forward_pre_hooks:
        raise ArtifactError(
            "has forward hooks, which a file cannot hold",
            path=path,
            hint="remove the hooks, or fold weight normalisation into the weights, and convert"
            " again",
        )


def _attributes(module: nn.Module, path: str) -> dict[str, Json]:
    names = [name for name in module.__dict__ if name not in allowed.MODULE_ATTRIBUTES]
    for name in names:
        identifier(allowed.check_attribute(type(module), name))
    return {name: encode(module.__dict__[name], f"{path}.{name}") for name in names}


# ---------------------------------------------------------------------------------------- reading
def from_data(
    data: Json, contents: dict[str, Tensor], policy: Policy, report: Report, device: torch.device
) -> MaskedModule:
    """The network that `to_data` wrote, on `device`.

    Raises:
        ArtifactError, KeyError, ValueError, TypeError ...: the data is not what `to_data` writes.
    """
    tensors = [_tensor(structure(row, _TensorEntry), contents, device) for row in data["tensors"]]
    modules: list[nn.Module] = []
    for row in data["modules"]:
        modules.append(_module(structure(row, _ModuleEntry), tensors, modules, device))
    tree = modules[-1]
    graphs = {name: graph_from_data(rows, tree, device) for name, rows in data["graphs"].items()}
    masked = graphs.pop("masked")
    strategies = structure(data["strategies"], Strategies).with_graphs(graphs)
    return MaskedModule(tree, masked, policy, report, strategies)


def _tensor(entry: _TensorEntry, contents: dict[str, Tensor], device: torch.device) -> Tensor:
    stored = contents[entry.path]
    if entry.strides is None:
        t = stored.to(device, copy=True)
    else:
        _require_dense(entry.strides, stored)
        t = torch.empty_strided(stored.shape, entry.strides, dtype=stored.dtype, device=device)
        t.copy_(stored)
    return nn.Parameter(t, requires_grad=entry.requires_grad) if entry.parameter else t


def _require_dense(strides: tuple[int, ...], stored: Tensor) -> None:
    """Strides must be a permutation of dense memory: others could ask for any amount of it."""
    expected = 1
    for stride, size in sorted(zip(strides, stored.shape, strict=True)):
        is_dense = stride == expected or size == 1
        if not is_dense or not 0 <= stride <= max(1, stored.numel()):
            raise ValueError(f"strides {strides} of a tensor of shape {tuple(stored.shape)}")
        expected *= size


def _module(
    entry: _ModuleEntry, tensors: list[Tensor], modules: list[nn.Module], device: torch.device
) -> nn.Module:
    kind = allowed.layer_of(entry.layer) if entry.layer else nn.Module
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    module.training = False
    if not entry.layer and entry.attributes:
        raise ValueError("a module that only holds parameters has no attributes")
    attributes = {
        allowed.check_attribute(kind, identifier(name)): decode(value, device)
        for name, value in entry.attributes.items()
    }
    arguments.check_layer(kind, attributes)
    module.__dict__.update(attributes)
    for name, number in entry.parameters.items():
        parameter = earlier(tensors, number)
        if not isinstance(parameter, nn.Parameter | None):
            raise ValueError(f"{name} is not a parameter")
        module._parameters[path_part(name)] = parameter
    for name, (number, persistent) in entry.buffers.items():
        module._buffers[path_part(name)] = earlier(tensors, number)
        if not persistent:
            module._non_persistent_buffers_set.add(name)
    for name, number in entry.children.items():
        module._modules[path_part(name)] = earlier(modules, number)
    return module
