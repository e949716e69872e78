"""A masked network as JSON data and tensors, and back. Reading it builds objects, and runs nothing.

The tree of modules is kept in whole, since its names are the keys of the state dict. Modules that
the graphs call are rebuilt as the classes of torch.nn that they are; all others are only places
that hold parameters. torch.fx turns graphs to Python source, so every name that gets there is
checked to be a name.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from convad_fx.artifact import allowed
from convad_fx.artifact.lower import lowered
from convad_fx.compiler.analysis.plan import Finding
from convad_fx.compiler.analysis.report import Report
from convad_fx.compiler.lowering.box import BoxPlan
from convad_fx.compiler.lowering.cost_model import CostModel, OpCost
from convad_fx.compiler.lowering.grid_map import GridMap
from convad_fx.compiler.lowering.patch import PatchPlan
from convad_fx.compiler.lowering.strategies import Strategies
from convad_fx.compiler.lowering.tile import TilePlan, TileRead, TileStage
from convad_fx.compiler.policy import Policy
from convad_fx.errors import ArtifactError
from convad_fx.module import MaskedModule

Json = Any
_OPS = ("placeholder", "get_attr", "call_function", "call_method", "call_module", "output")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STEP = re.compile(r"[A-Za-z0-9_-]+")  # of a dotted path; fx writes it between quotes
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


# ---------------------------------------------------------------------------------------- writing
@dataclass
class _Writer:
    masked: MaskedModule
    called: frozenset[str]
    tensors: list[Json] = field(default_factory=list)
    contents: dict[str, Tensor] = field(default_factory=dict)
    modules: list[Json] = field(default_factory=list)
    _seen: dict[int, int] = field(default_factory=dict)
    _memory: set[int] = field(default_factory=set)

    def tensor(self, t: Tensor | None, path: str) -> int | None:
        if t is None:
            return None
        if id(t) in self._seen:  # tied parameters stay tied
            return self._seen[id(t)]
        if t.layout != torch.strided or t.is_quantized or t.is_meta or type(t.data) is not Tensor:
            raise ArtifactError(
                f"a tensor of layout {t.layout} and type {type(t.data).__name__} on {t.device}",
                path=path,
                hint="only plain dense tensors can be saved",
            )
        plain = t.detach().cpu().resolve_conj().resolve_neg()
        dense = torch._prims_common.is_non_overlapping_and_dense_or_false(plain)
        strides = plain.stride() if dense and plain.stride() != _usual(plain.shape) else None
        plain = plain.contiguous()
        memory = plain.untyped_storage()
        if memory.nbytes() != plain.nbytes or memory.data_ptr() in self._memory:
            plain = plain.clone()  # safetensors takes no memory that several share
        self._memory.add(plain.untyped_storage().data_ptr())
        self._seen[id(t)] = len(self.tensors)
        self.contents[path] = plain
        self.tensors.append(
            {
                "path": path,
                "parameter": isinstance(t, nn.Parameter),
                "requires_grad": t.requires_grad,
                "strides": None if strides is None else list(strides),
            }
        )
        return self._seen[id(t)]

    def module(self, module: nn.Module, path: str, inside: bool = False) -> int:
        """Its number; children come before parents."""
        if id(module) in self._seen:
            return self._seen[id(module)]
        called = path in self.called
        layer = allowed.layer_name(type(module)) if path and (called or inside) else ""
        if called and not layer:
            raise ArtifactError(
                f"is a {type(module).__module__}.{type(module).__qualname__}, whose source would be"
                " needed to load it",
                path=path,
                hint=_hint(type(module)),
            )
        if called and any(getattr(module, hooks) for hooks in _HOOKS):
            raise ArtifactError(
                "has forward hooks, which a file cannot hold",
                path=path,
                hint="remove the hooks, or fold weight normalisation into the weights, and convert"
                " again",
            )
        kept = module._non_persistent_buffers_set
        prefix = f"{path}." if path else ""
        for name in (*module._parameters, *module._buffers, *module._modules):
            _checked_step(name, path)
        entry = {
            "layer": layer,
            "attributes": self._attributes(module, path) if layer else {},
            "parameters": {
                name: self.tensor(p, prefix + name) for name, p in module._parameters.items()
            },
            "buffers": {
                name: [self.tensor(b, prefix + name), name not in kept]
                for name, b in module._buffers.items()
            },
            "children": {
                name: None if m is None else self.module(m, prefix + name, called or inside)
                for name, m in module._modules.items()
            },
        }
        self._seen[id(module)] = len(self.modules)
        self.modules.append({key: value for key, value in entry.items() if value})
        return self._seen[id(module)]

    def _attributes(self, module: nn.Module, path: str) -> Json:
        found = {}
        for name, value in module.__dict__.items():
            if name not in allowed.BARE:
                allowed.check_attribute(type(module), name)
                found[_checked_name(name)] = encode(value, {}, f"{path}.{name}")
        return found


def _usual(shape: torch.Size) -> tuple[int, ...]:
    return tuple(torch._prims_common.make_contiguous_strides_for(shape))


def _hint(kind: type[nn.Module]) -> str:
    if kind.__module__.startswith("torch.nn.utils.parametri"):
        return "take it off with torch.nn.utils.parametrize.remove_parametrizations, convert again"
    return "replace it by layers of torch.nn, or convert with front_end='export', which sees inside"


def to_data(masked: MaskedModule) -> tuple[Json, dict[str, Tensor]]:
    """The network as JSON data, and its tensors by path."""
    found = {"masked": masked.graph, **masked.strategies.graphs()}
    graphs = {name: lowered(graph, masked) for name, graph in found.items()}
    called = {
        str(node.target)
        for graph in graphs.values()
        for node in graph.nodes
        if node.op == "call_module"
    }
    writer = _Writer(masked, frozenset(_all_paths(masked, called)))
    writer.module(masked, "")
    region, reuse, share = masked.strategies.box, masked.strategies.patch, masked.strategies.tile
    data = {
        "tensors": writer.tensors,
        "modules": writer.modules,
        "graphs": {name: _graph_to_data(graph) for name, graph in graphs.items()},
        "region": {
            "levels": [
                None if one is None else [one.axes, one.strides, one.extra] for one in region.levels
            ],
            "cells": region.cells,
            "tile": region.tile,
            "grain": region.granularity,
            "canvas": region.image_size,
            "work": _work_to_data(region.work),
            "leaves": region.leaves,
            "why": region.why,
        },
        "reuse": {
            "tile": reuse.tile,
            "canvas": reuse.image_size,
            "work": _work_to_data(reuse.work),
            "until": reuse.until,
            "why": reuse.why,
        },
        "share": {
            "stages": [_stage_to_data(stage) for stage in share.stages],
            "tile": share.tile,
            "canvas": share.image_size,
            "work": _work_to_data(share.work),
            "until": share.until,
            "why": share.why,
        },
    }  # fmt: skip
    return data, writer.contents


def _stage_to_data(stage: TileStage) -> Json:
    return {
        name: value
        for name, value in asdict(replace(stage, values=None)).items()
        if name != "values"
    }


def _stage(about: Json) -> TileStage:
    return TileStage(
        values=None,
        strides=as_tuples(about["strides"]),
        grid=as_tuples(about["grid"]),
        reach=as_tuples(about["reach"]),
        cuts=tuple(map(_read, about["cuts"])),
        depends=tuple(map(_read, about["depends"])),
        result=as_tuples(about["result"]),
        cells=as_tuples(about["cells"]),
        channels=int(about["channels"]),
        copied=int(about["copied"]),
        work=float(about["work"]),
    )


def _read(about: Json) -> TileRead:
    shape = (as_tuples(about[key]) for key in ("axes", "grid", "strides", "reach"))
    return TileRead(int(about["activity"]), *shape)


def _work_to_data(work: CostModel) -> Json:
    costs = [[cost.each, cost.strides, cost.reach] for cost in work.costs]
    return {"costs": costs, "tile_rest": work.rest, "total": work.total}


def _graph_to_data(graph: torch.fx.Graph) -> list[Json]:
    """Each node as [op, name, target, args, kwargs]; operands are numbers of earlier nodes."""
    numbers: dict[torch.fx.Node, int] = {}
    rows: list[Json] = []
    for node in graph.nodes:
        target: Any = node.target
        if node.op == "call_function":
            target = allowed.name_of(target, node.name)
            allowed.check_call(target, node.args, node.kwargs)
        elif node.op == "call_method":
            allowed.method_of(target)
        row = [node.op, node.name, target, [encode(a, numbers, node.name) for a in node.args]]
        if node.kwargs:
            row.append({key: encode(a, numbers, node.name) for key, a in node.kwargs.items()})
        numbers[node] = len(rows)
        rows.append(row)
    return rows


def encode(value: Any, numbers: dict[torch.fx.Node, int], where: str) -> Json:
    """A value as JSON; what JSON does not have is {kind: content}."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, torch.fx.Node):
        return {"node": numbers[value]}
    kind = type(value)
    if kind is int or (kind is float and math.isfinite(value)):
        return value
    if kind is float:
        return {"float": str(value)}
    if kind is tuple or kind is torch.Size:
        return {"tuple": [encode(v, numbers, where) for v in value]}
    if isinstance(value, list):
        return [encode(v, numbers, where) for v in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: encode(v, numbers, where) for key, v in value.items()}}
    if kind is slice:
        parts = (value.start, value.stop, value.step)
        return {"slice": [encode(v, numbers, where) for v in parts]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if kind is torch.device:
        return {"device": str(value)}
    if kind in (torch.dtype, torch.memory_format, torch.layout):
        return {"torch": str(value).removeprefix("torch.")}
    if callable(value):
        name = allowed.name_of(value, where)
        allowed.value_of(name)
        return {"function": name}
    raise ArtifactError(
        f"a {kind.__module__}.{kind.__qualname__} cannot be written to a file",
        path=where,
        hint="only numbers, texts, and tuples, lists and dicts of them can",
    )


# ---------------------------------------------------------------------------------------- reading
def from_data(
    data: Json, contents: dict[str, Tensor], policy: Policy, report: Report, device: torch.device
) -> MaskedModule:
    """The network that `to_data` wrote, on `device`."""
    tensors = [_tensor(row, contents, device) for row in data["tensors"]]
    modules: list[nn.Module] = []
    for entry in data["modules"]:
        modules.append(_module(entry, tensors, modules, device))
    tree = modules[-1]
    graphs = {name: _graph(rows, tree, device) for name, rows in data["graphs"].items()}
    masked = graphs.pop("masked")
    about = data["region"]
    region = BoxPlan(
        values=None,
        activities=None,
        levels=tuple(
            None if one is None else GridMap(*(as_tuples(part) for part in one))
            for one in about["levels"]
        ),
        cells=as_tuples(about["cells"]),
        tile=as_tuples(about["tile"]),
        granularity=as_tuples(about["grain"]),
        image_size=as_tuples(about["canvas"]),
        work=_work(about["work"]),
        leaves=as_tuples(about["leaves"]),
        why=str(about["why"]),
    )
    about = data["reuse"]
    reuse = PatchPlan(
        values=None,
        activities=None,
        kept=None,
        tile=as_tuples(about["tile"]),
        image_size=as_tuples(about["canvas"]),
        work=_work(about["work"]),
        until=str(about["until"]),
        why=str(about["why"]),
    )
    about = data["share"]
    share = TilePlan(
        stages=tuple(_stage(one) for one in about["stages"]),
        rest=None,
        tile=as_tuples(about["tile"]),
        image_size=as_tuples(about["canvas"]),
        work=_work(about["work"]),
        until=str(about["until"]),
        why=str(about["why"]),
    )
    strategies = Strategies(region, reuse, share).with_graphs(graphs)
    return MaskedModule(tree, masked, policy, report, strategies)


def _work(about: Json) -> CostModel:
    costs = (
        OpCost(float(each), as_tuples(strides), as_tuples(reach))
        for each, strides, reach in about["costs"]
    )
    return CostModel(tuple(costs), float(about["tile_rest"]), float(about["total"]))


def _tensor(row: Json, contents: dict[str, Tensor], device: torch.device) -> Tensor:
    stored = contents[row["path"]]
    if row["strides"] is None:
        t = stored.to(device, copy=True)
    else:
        strides = [int(n) for n in row["strides"]]
        order = sorted(zip(strides, stored.shape, strict=True))
        expected = 1
        for stride, size in order:  # a permutation of dense memory, not any view of any size
            if size != 1 and stride != expected:
                raise ValueError(f"strides {strides} of {row['path']}")
            expected *= size
            if not 0 <= stride <= max(1, stored.numel()):
                raise ValueError(f"strides {strides} of {row['path']}")
        t = torch.empty_strided(stored.shape, strides, dtype=stored.dtype, device=device)
        t.copy_(stored)
    return nn.Parameter(t, requires_grad=bool(row["requires_grad"])) if row["parameter"] else t


def _module(
    entry: Json, tensors: list[Tensor], modules: list[nn.Module], device: torch.device
) -> nn.Module:
    kind = allowed.layer_of(entry["layer"]) if entry.get("layer") else nn.Module
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    module.training = False
    for name, value in entry.get("attributes", {}).items():
        name = allowed.check_attribute(kind, _checked_name(name))
        module.__dict__[name] = decode(value, [], device)
    for name, number in entry.get("parameters", {}).items():
        module.register_parameter(_checked_step(name), _at(tensors, number))
    for name, (number, persistent) in entry.get("buffers", {}).items():
        module.register_buffer(_checked_step(name), _at(tensors, number), bool(persistent))
    for name, number in entry.get("children", {}).items():
        module.add_module(_checked_step(name), _at(modules, number))
    return module


def _at(table: list[Any], number: int | None) -> Any:
    """An earlier entry: what comes later, or itself, would make a circle."""
    if number is not None and not 0 <= number < len(table):
        raise ValueError(f"entry {number} of {len(table)}")
    return None if number is None else table[number]


def _graph(rows: list[Json], tree: nn.Module, device: torch.device) -> torch.fx.Graph:
    graph = torch.fx.Graph()
    nodes: list[torch.fx.Node] = []
    for op, name, written, args, *more in rows:
        if op not in _OPS or not isinstance(written, str):
            raise ValueError(f"operation {op!r}")
        given = tuple(decode(a, nodes, device) for a in args)
        kwargs = {
            _checked_name(key): decode(a, nodes, device)
            for key, a in (more[0] if more else {}).items()
        }
        target: str | Callable[..., Any] = written
        if op == "call_function":
            target = allowed.function_of(written)
            allowed.check_call(written, given, kwargs)
        elif op == "call_method":
            allowed.method_of(written)
        elif op in ("placeholder", "output"):
            _checked_name(written)
        else:
            for step in written.split("."):
                _checked_step(step)
            if op == "call_module" and type(tree.get_submodule(written)) is nn.Module:
                raise ValueError(f"{written} is no layer")
            if op == "get_attr":
                owner, _, last = written.rpartition(".")
                holder = tree.get_submodule(owner)
                if last not in holder._parameters and last not in holder._buffers:
                    raise ValueError(f"{written} is no tensor")
        nodes.append(graph.create_node(op, target, given, kwargs, name=_checked_name(name)))
    graph.lint()
    return graph


def decode(value: Json, nodes: list[torch.fx.Node], device: torch.device) -> Any:
    """What `encode` wrote."""
    if value is None or isinstance(value, bool | str | int | float):
        return value
    if isinstance(value, list):
        return [decode(v, nodes, device) for v in value]
    ((kind, content),) = value.items()
    match kind:
        case "node":
            return _at(nodes, int(content))
        case "tuple":
            return tuple(decode(v, nodes, device) for v in content)
        case "dict":
            return {str(key): decode(v, nodes, device) for key, v in content.items()}
        case "slice":
            start, stop, step = (decode(v, nodes, device) for v in content)
            return slice(start, stop, step)
        case "float":
            return float(content)
        case "ellipsis":
            return Ellipsis
        case "device":
            return device if torch.device(content).type != "meta" else torch.device("meta")
        case "torch":
            found = getattr(torch, _checked_name(content))
            if not isinstance(found, torch.dtype | torch.memory_format | torch.layout):
                raise ValueError(f"torch.{content}")
            return found
        case "function":
            return allowed.value_of(content)
        case _:
            raise ValueError(f"a value of kind {kind!r}")


# ---------------------------------------------------------------------------------------- checking
def report_of(about: Json) -> Report:
    """What `Report.to_dict` wrote."""
    findings = tuple(
        Finding(
            one["path"],
            one["op"],
            as_tuples(one["shapes_in"]),
            as_tuples(one["shape_out"]),
            one["why"],
            one["hint"],
        )
        for one in about["findings"]
    )
    return Report(
        _checked_name(about["model"]),
        str(about["front_end"]),
        tuple((str(kind), int(count)) for kind, count in about["operations"].items()),
        int(about["activities"]),
        int(about["gated"]),
        str(about["size_bound"]),
        findings,
        str(about["boxes"]),
    )


def as_tuples(value: Json) -> Any:
    """Lists, to any depth, as the tuples that they were."""
    return tuple(as_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ArtifactError(f"{name!r} is no name that a file may give")
    return name


def _checked_step(name: Any, path: str = "") -> str:
    if not isinstance(name, str) or not _STEP.fullmatch(name):
        raise ArtifactError(
            f"{name!r} is no name that a file may give",
            path=path,
            hint="use letters, digits, _ and - in the names of modules and parameters",
        )
    return name


def _all_paths(masked: nn.Module, called: Iterable[str]) -> set[str]:
    """Every path of the modules that are called: each is written where it is first met."""
    wanted = {id(masked.get_submodule(path)) for path in called}
    return {p for p, m in masked.named_modules(remove_duplicate=False) if id(m) in wanted}
