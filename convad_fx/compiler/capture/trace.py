"""From a trained module to a graph in eval form: human paths, shapes, nothing in place.

The model is never changed: the graph's modules are shallow copies that share its parameters.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import logging
import operator
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx._symbolic_trace import _assert_is_none
from torch.fx.node import map_aggregate

from convad_fx.errors import ImageError, ModelError, UntraceableModel

#: The one key under which this package keeps what it knows of a node.
META = "convad"

#: Batch of the shape propagation: a prime that no layer's width is likely to be, so that an axis
#: into which the batch was merged is seen.
BATCH = 13


#: Modules of other packages that stay whole, because their forward computes its padding from the
#: image's size, or mixes a norm with an activation and keeps keys that tracing into it would not
#: call. They are entries of timm's own no-trace list; each has a row in `ops.SPELLINGS`.
WHOLE_MODULES = frozenset(
    f"timm.layers.{name}"
    for name in (
        "norm_act.BatchNormAct2d",
        "norm_act.SyncBatchNormAct",
        "norm_act.FrozenBatchNormAct2d",
        "conv2d_same.Conv2dSame",
        "std_conv.StdConv2dSame",
        "std_conv.ScaledStdConv2dSame",
        "pool2d_same.MaxPool2dSame",
        "pool2d_same.AvgPool2dSame",
    )
)

#: What can capture a model, as an option and as reports say it.
FRONT_ENDS = {"symbolic": "torch.fx symbolic tracing", "export": "torch.export"}


@dataclass(frozen=True, slots=True)
class TensorFact:
    """Shape and dtype of a tensor in the graph, for a batch of `BATCH`."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Facts:
    """What tracing knows of a node.

    Attributes:
        path: where it stands in the model, as a person would type it: ``layer1.0.add``.
        value: `TensorFact`, a tuple of them, or the plain value (a size, a number) for the example.
        name: of a copy in another graph, the name of the model's node, which a plan goes by. Its
            own may differ: a model may have a module called ``mask``.
    """

    path: str
    value: Any
    name: str = ""

    @property
    def is_tensor(self) -> bool:
        """One tensor."""
        return isinstance(self.value, TensorFact)

    @property
    def has_tensors(self) -> bool:
        """A tensor, or something that holds one."""
        return any(isinstance(item, TensorFact) for item in _flat(self.value))

    @property
    def shape(self) -> Any:
        """A shape, a tuple of shapes, or None."""
        if isinstance(self.value, TensorFact):
            return self.value.shape
        if self.has_tensors:
            return tuple(
                item.shape if isinstance(item, TensorFact) else None for item in _flat(self.value)
            )
        return None


def facts(node: torch.fx.Node) -> Facts:
    """What tracing knows of this node."""
    known: Facts = node.meta[META]
    return known


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value


@dataclass(frozen=True, slots=True)
class Problem:
    """Something tracing saw that no single operation's rule can see."""

    node: str
    path: str
    why: str
    hint: str


@dataclass(frozen=True, slots=True)
class Trace:
    """A captured model.

    Attributes:
        module: graph and modules, in eval form; every node carries `Facts`.
        front_end: what captured it.
        channels, grid: of the example image.
        like: a parameter that has the example's dtype, by name; "" where none has.
        problems: what the checker must report beside what the rules say.
    """

    module: torch.fx.GraphModule
    front_end: str
    channels: int
    grid: tuple[int, ...]
    like: str = ""
    problems: tuple[Problem, ...] = ()

    @property
    def any_size(self) -> bool:
        """The graph takes other image sizes than the example's, as far as the model does."""
        return self.front_end == FRONT_ENDS["symbolic"]


#: ``y += 1`` and its like, and what gives the same as a new tensor.
_OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
}


class InPlaceProxy(torch.fx.Proxy):
    """Records ``y += 1`` as what it is; torch.fx takes it for ``y = y + 1``, a new tensor."""

    def __getattr__(self, name: str) -> Any:
        """``x.mT`` where it is written; torch.fx records it where it is used, maybe elsewhere."""
        if inspect.isdatadescriptor(getattr(Tensor, name, None)):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)


def _recorded(function: Any) -> Callable[[InPlaceProxy, Any], Any]:
    return lambda self, other: self.tracer.create_proxy(
        "call_function", function, (self, other), {}
    )


for _function in _OUT_OF_PLACE:
    setattr(InPlaceProxy, f"__{_function.__name__}__", _recorded(_function))


class ModelTracer(torch.fx.Tracer):
    """Symbolic tracing that keeps torch.nn modules as leaves and sees in-place operators."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """torch.nn, and what is kept whole; not where something was attached to the instance."""
        if _is_altered(m):
            return False
        kind = type(m)
        if f"{kind.__module__}.{kind.__qualname__}" in WHOLE_MODULES:
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        """Proxies that record in-place operators."""
        return InPlaceProxy(node, self)


def _is_altered(module: nn.Module) -> bool:
    """It does more than its class says: a forward of its own, or hooks (torch's own excepted)."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    ours = (getattr(hook, "__module__", type(hook).__module__) or "" for hook in hooks)
    return "forward" in vars(module) or any(not home.startswith("torch.nn.utils") for home in ours)


def trace(model: nn.Module, example: Tensor, front_end: str = "auto") -> Trace:
    """Capture a model in eval mode for an example image batch (N, C, *grid).

    Args:
        front_end: "symbolic": torch.fx symbolic tracing, which keeps modules and takes any image
            size the model takes. "export": torch.export, which follows control flow on shapes and
            holds for the example's image size. "auto": the first, and where it fails the second.

    Raises:
        ModelError: not a module, or in training mode.
        ImageError: the example is no image batch, or the model does not take it.
        UntraceableModel: its forward has control flow that depends on the image.
    """
    model = unwrapped(model)
    _require_eval(model)
    _require_image(example)
    before = _Snapshot(model)
    try:
        return _trace(model, example, front_end)
    finally:
        before.restore()


def _trace(model: nn.Module, example: Tensor, front_end: str) -> Trace:
    if front_end == "export":
        return _finish(model, example, *_exported(model, example), "export")
    try:
        return _finish(model, example, *_symbolic(model), "symbolic")
    except UntraceableModel as error:
        if front_end == "symbolic":
            raise
        try:
            return _finish(model, example, *_exported(model, example), "export")
        except UntraceableModel as second:
            if second.what == error.what:
                raise error from second
            raise UntraceableModel(
                f"{error.what}; {second.what}", hint=error.hint, path=error.path
            ) from second


def _finish(
    model: nn.Module, example: Tensor, graph: torch.fx.Graph, tree: nn.Module, front_end: str
) -> Trace:
    """What both front ends leave to do: paths, shapes, nothing in place."""
    traced = torch.fx.GraphModule(tree, graph, class_name=type(model).__name__)
    adopt(traced, tree)
    _name_paths(graph)
    storages = _propagate(traced, example, model)
    problems = (*_out_of_place(traced, storages, model), *_random_numbers(graph))
    graph.eliminate_dead_code()
    graph.lint()
    traced.recompile()
    named = traced.named_parameters()
    like = next((name for name, value in named if value.dtype == example.dtype), "")
    grid = tuple(example.shape[2:])
    return Trace(traced, FRONT_ENDS[front_end], example.shape[1], grid, like, problems)


def _symbolic(model: nn.Module) -> tuple[torch.fx.Graph, nn.Module]:
    if _is_altered(model):
        raise UntraceableModel(
            f"{type(model).__name__} has hooks or a forward of its own, which torch.fx passes by",
            hint="put what they do into a module around it",
        )
    tracer = ModelTracer()
    before = _Snapshot(model)
    try:
        graph = tracer.trace(model, concrete_args=_defaults(model))
    except Exception as error:  # whatever the model's own code raises on a proxy
        raise UntraceableModel(
            f"torch.fx cannot trace {type(model).__name__}: {_first_line(error)}",
            hint="its forward decides by values or shapes at run time; "
            "move that out of forward, or make the module that does it a torch.nn leaf",
            path=_innermost_path(tracer),
        ) from error
    finally:
        constants, written = before.restore()
    if written:
        raise UntraceableModel(
            f"forward changes the buffer {written[0]}, so no two calls are alike",
            hint="make what it keeps count of an output, or remove it for explaining",
        )
    if constants:
        _require_same_constants(model, constants)
    _drop_defaults(graph, model)
    tree = _own_tree(model, tracer.is_leaf_module)
    for name, constant in constants.items():
        tree.register_buffer(name, constant, persistent=False)
    return graph, tree


def _require_same_constants(model: nn.Module, constants: dict[str, Tensor]) -> None:
    """Tensors that forward makes from nothing are constants, if they are the same every time."""
    before = _Snapshot(model)
    try:
        ModelTracer().trace(model, concrete_args=_defaults(model))
    finally:
        again, _ = before.restore()
    for name, constant in constants.items():
        if name not in again or not torch.equal(constant, again[name]):
            raise UntraceableModel(
                f"{type(model).__name__}.forward makes a tensor that differs from call to call",
                hint="draw random numbers once, outside forward",
            )


def _exported(model: nn.Module, example: Tensor) -> tuple[torch.fx.Graph, nn.Module]:
    """The graph of aten operations that torch.export captures, for any batch."""
    pair = example.detach().expand(2, *example.shape[1:]) if example.shape[0] == 1 else example
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                model, (pair,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
            )
            captured = program.module(check_guards=False)
    except Exception as error:  # torch.export raises what it meets
        raise UntraceableModel(
            f"torch.export cannot capture {type(model).__name__} for any batch size:"
            f" {_first_line(error)}",
            hint="its forward decides by values at run time",
        ) from error
    graph = captured.graph
    tree = _own_tree(model, lambda *_: False)
    for node in graph.nodes:
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.op == "get_attr" and not _has(tree, str(node.target)):
            name = str(node.target).replace(".", "_")
            tree.register_buffer(name, _get(captured, str(node.target)), persistent=False)
            node.target = name
        elif node.op == "output" and len(node.args[0]) == 1:
            node.args = (node.args[0][0],)  # torch.export lists its outputs
    graph.set_codegen(torch.fx.graph.CodeGen())
    return graph, tree


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters print graphs and log guesses where they fail; the error says what we need."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")  # about torch's own deprecations
            yield
    finally:
        logging.disable(before)


def _get(module: nn.Module, target: str) -> Any:
    return functools.reduce(getattr, target.split("."), module)


def _has(module: nn.Module, target: str) -> bool:
    try:
        _get(module, target)
    except AttributeError:
        return False
    return True


# ------------------------------------------------------------------------ what we are given


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, out of torch.compile's and DataParallel's modules around it."""
    # torch._dynamo is slow to import; who compiled the model has imported it.
    dynamo: Any = sys.modules.get("torch._dynamo.eval_frame")
    compiled: tuple[type[nn.Module], ...] = (dynamo.OptimizedModule,) if dynamo else ()
    while isinstance(model, compiled + _PARALLEL):
        inner = model._orig_mod if isinstance(model, compiled) else model.module
        assert isinstance(inner, nn.Module)
        model = inner
    return model


_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def _require_eval(model: object) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "a TorchScript module has no Python code left to capture",
            hint="pass the torch.nn.Module it was scripted or traced from",
        )
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"expected a torch.nn.Module, not {type(model).__name__}",
            hint="functions can be wrapped in a Module",
        )
    training = next((name for name, m in model.named_modules() if m.training), None)
    if training is not None:
        raise ModelError(
            f"{type(model).__name__} is in training mode: dropout and batch statistics would change"
            " its answers",
            hint="call model.eval()",
            path=training,
        )


def _require_image(example: object) -> None:
    if not isinstance(example, Tensor) or not 3 <= example.dim() <= 5:
        came = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ImageError(
            f"the example is {came}; expected an image batch (N, C, H, W), or with one or three"
            " grid axes",
            hint="for example torch.zeros(1, 3, 224, 224)",
        )
    if not example.is_floating_point():
        raise ImageError(
            f"the example has dtype {example.dtype}; expected a floating point image batch",
            hint="normalise the image as the model expects",
        )


class _Snapshot:
    """The model's attributes and buffers before its forward runs on proxies, to restore them."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.attributes = {module: dict(vars(module)) for module in model.modules()}
        self.buffers = {
            name: (buffer, _version(buffer), buffer.detach().clone())
            for name, buffer in model.named_buffers()
        }

    def restore(self) -> tuple[dict[str, Tensor], list[str]]:
        """-> tensor constants that torch.fx left on the model; buffers that forward wrote to."""
        constants = {
            name: value
            for name, value in vars(self.model).items()
            if name not in self.attributes[self.model] and isinstance(value, Tensor)
        }
        for module, before in self.attributes.items():
            for name in set(vars(module)) - set(before):
                del module.__dict__[name]
            module.__dict__.update(before)
        written = []
        for name, (buffer, version, value) in self.buffers.items():
            if version is None:  # made in inference mode: nobody has counted
                alike = (buffer == value) | ((buffer != buffer) & (value != value))  # NaN
                changed = not bool(alike.all())
            else:
                changed = buffer._version != version
            if changed:
                written.append(name)
                with torch.inference_mode(version is None), torch.no_grad():
                    buffer.copy_(value)
        return constants, written


def _version(buffer: Tensor) -> int | None:
    """How often it was written to; tensors of inference mode do not know."""
    return None if buffer.is_inference() else buffer._version


def _defaults(model: nn.Module) -> dict[str, Any]:
    """Every parameter of forward but the first, at its default: we call it with an image only."""
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _drop_defaults(graph: torch.fx.Graph, model: nn.Module) -> None:
    """Take out the other parameters, with what torch.fx put in to assert their defaults."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node in inputs[1:]:
        behind = [node]
        for known in behind:
            behind += [user for user in known.users if user not in behind]
        ends = [user for user in behind if not user.users]
        if all(user is node or user.target in (torch._assert, _assert_is_none) for user in ends):
            for user in sorted(behind, reverse=True):
                graph.erase_node(user)
    left = [node.name for node in graph.nodes if node.op == "placeholder"]
    if len(left) != 1:
        raise ModelError(
            f"{type(model).__name__}.forward takes {len(left)} inputs ({', '.join(left)});"
            " expected one image batch",
            hint="wrap it in a module that fixes the others",
        )


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


def _innermost_path(tracer: torch.fx.Tracer) -> str:
    stack = getattr(tracer, "module_stack", None)
    return next(reversed(stack.values()))[0] if stack else ""


# ------------------------------------------------------------------------------ the modules


def _own_tree(model: nn.Module, is_leaf: Callable[[nn.Module, str], bool]) -> nn.Module:
    """The model's modules, copied shallowly: same parameter objects, own registries.

    So `masked.to(...)` and `masked.eval()` never touch the model, and in-place activations can be
    made out of place for the graph alone.
    """
    memo: dict[int, nn.Module] = {}

    def own(module: nn.Module, path: str) -> nn.Module:
        if id(module) in memo:
            return memo[id(module)]
        if path and is_leaf(module, path):
            # copy.copy() refuses parametrized modules; this is all it would do
            twin = object.__new__(type(module))
            twin.__dict__.update(module.__dict__)
            if getattr(twin, "inplace", False) is True:
                twin.inplace = False  # type: ignore[assignment]
        else:
            twin = nn.Module()
            twin._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
        memo[id(module)] = twin
        twin.training = False
        twin._parameters = dict(module._parameters)
        twin._buffers = dict(module._buffers)
        twin._modules = {
            name: None if child is None else own(child, f"{path}.{name}" if path else name)
            for name, child in module._modules.items()
        }
        return twin

    return own(model, "")


def adopt(traced: nn.Module, tree: nn.Module) -> None:
    """Give a graph module the whole tree, also what its graph does not call: the model's keys."""
    traced._modules = tree._modules
    traced._parameters = tree._parameters
    traced._buffers = tree._buffers
    traced._non_persistent_buffers_set = tree._non_persistent_buffers_set
    traced.training = False


# --------------------------------------------------------------------------- paths and shapes


def _name_paths(graph: torch.fx.Graph) -> None:
    """``layer1.0.add_1``: the module's path, then the operation, numbered within the module."""
    seen: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op in ("call_module", "placeholder", "output", "get_attr"):
            path = str(node.target)
        else:
            stack = node.meta.get("nn_module_stack") or {}
            module = next(reversed(stack.values()))[0] if stack else ""
            name = _bare_name(node)
            path = f"{module}.{name}" if module else str(name)
        count = seen[path]
        seen[path] += 1
        node.meta[META] = Facts(f"{path}_{count}" if count else path, None)


def _bare_name(node: torch.fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    if node.target is getattr:
        return str(node.args[1])
    target = _OUT_OF_PLACE.get(node.target, node.target)  # the path of what it becomes
    if isinstance(target, torch._ops.OpOverload):
        return str(target.__name__)
    return function_name(target).rpartition(".")[2].strip("_")


def function_name(target: Any) -> str:
    """As a person would write it: ``torch.cat``, ``torch.fft.fft2``, ``functional.relu``."""
    name = str(getattr(target, "__name__", target))
    space, _, rest = name.partition("_")  # torch.fft.fft2 calls itself fft_fft2
    if getattr(getattr(torch, space, None), rest, None) is target:
        return f"torch.{space}.{rest}"
    home = (getattr(target, "__module__", "") or "").removeprefix("torch.nn.")
    return f"{home}.{name}" if home and not home.startswith(("_", "torch._")) else name


def _propagate(
    traced: torch.fx.GraphModule, example: Tensor, model: nn.Module
) -> dict[torch.fx.Node, Any]:
    """Run the graph on fake tensors; facts get their values. -> node -> storage, for aliases."""
    storages: dict[torch.fx.Node, Any] = {}

    class Recorder(torch.fx.Interpreter):
        def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if isinstance(self.module.get_submodule(target), nn.modules.batchnorm._NormBase):
                return torch.empty_like(args[0])  # decomposing it takes most of the time otherwise
            return super().call_module(target, args, kwargs)

        def run_node(self, node: torch.fx.Node) -> Any:
            result = super().run_node(node)
            value = map_aggregate(result, _fact)
            node.meta[META] = Facts(facts(node).path, value)
            if isinstance(result, FakeTensor):
                storages[node] = result.untyped_storage()._cdata
            return result

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad():
        image = torch.empty((BATCH, *example.shape[1:]), dtype=example.dtype, device=example.device)
        try:
            Recorder(traced).run(image)
        except Exception as error:
            raise _refusal_of_run(error, traced, example, model) from error
    return storages


def _refusal_of_run(
    error: Exception, traced: torch.fx.GraphModule, example: Tensor, model: nn.Module
) -> Exception:
    """Why the shapes could not be followed: the image does not fit, or values decide."""
    failed = next(
        (n for n in traced.graph.nodes if n.op != "placeholder" and facts(n).value is None), None
    )
    path = facts(failed).path if failed is not None else ""
    if "DataDependent" in type(error).__name__ or "DynamicOutputShape" in type(error).__name__:
        return UntraceableModel(
            "what it computes decides the shape of tensors or the course of the program",
            hint="Assumption 1 needs sizes that do not depend on pixels",
            path=path,
        )
    return ImageError(
        f"{type(model).__name__} does not take a batch of shape"
        f" {(BATCH, *example.shape[1:])} {str(example.dtype).removeprefix('torch.')}:"
        f" {_first_line(error)}",
        hint="pass an example of the size, dtype and device the model expects;"
        " any batch size must work",
        path=path,
    )


def _fact(value: Any) -> Any:
    if isinstance(value, Tensor):
        return TensorFact(tuple(value.shape), value.dtype)
    return value


# ---------------------------------------------------------------------------- out of place


def _out_of_place(
    traced: torch.fx.GraphModule, storages: dict[torch.fx.Node, Any], model: nn.Module
) -> tuple[Problem, ...]:
    """Rewrite in-place operations out of place: later readers of the operand read the result.

    Where the operand is a view of something that is read again, that something would have changed
    too: a problem, reported with the findings.
    """
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    problems = []
    for node in list(traced.graph.nodes):
        operand = _changed_in_place(node, model)
        if operand is None:
            if _changes_without_twin(node):
                problems.append(
                    Problem(
                        node.name,
                        facts(node).path,
                        "changes a tensor in place, and no operation returns the same as a new"
                        " tensor",
                        "compute the tensor instead of writing into one",
                    )
                )
            continue
        for other, storage in storages.items():
            shares = storage == storages.get(operand) and other is not operand
            if not shares or order[other] >= order[node]:
                continue
            # the paths last: they are searched for in the whole graph
            if any(order[user] > order[node] for user in other.users) and (
                _reaches(other, operand) or _reaches(operand, other)
            ):
                problems.append(
                    Problem(
                        node.name,
                        facts(node).path,
                        f"changes {facts(operand).path} in place, and {facts(other).path},"
                        " which shares its memory, is read afterwards",
                        "use the operation that returns a new tensor",
                    )
                )
        for user in list(operand.users):
            if user is not node and order[user] > order[node]:
                user.replace_input_with(operand, node)
    return tuple(problems)


def _changed_in_place(node: torch.fx.Node, model: nn.Module) -> torch.fx.Node | None:
    """The operand that this node changes, after the node itself was made out of place."""
    operand = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(operand, torch.fx.Node) or not facts(operand).is_tensor:
        return None
    if node.op == "call_module":
        # the flag is cleared in the graph's own modules; the model's still say what was meant
        module = model.get_submodule(str(node.target))
        nothing = isinstance(module, nn.modules.dropout._DropoutNd)  # what it does in eval mode
        return operand if getattr(module, "inplace", False) is True and not nothing else None
    if isinstance(node.target, torch._ops.OpOverload):
        packet, overload = node.target.overloadpacket.__name__, node.target._overloadname
        twin = getattr(torch.ops.aten, packet[:-1], None)
        if not packet.endswith("_") or packet.endswith("__") or not hasattr(twin, overload):
            return None
        node.target = getattr(twin, overload)
        return operand
    if node.op == "call_function":
        if node.target in _OUT_OF_PLACE:
            node.target = _OUT_OF_PLACE[node.target]
            return operand
        name = getattr(node.target, "__name__", "")
        if _says_in_place(node.target, name):
            plain = getattr(torch, name[:-1], None) or getattr(nn.functional, name[:-1], None)
            if plain is not None:
                node.target = plain
                return operand
        return operand if _clear_inplace_argument(node) else None
    if node.op == "call_method":
        name = str(node.target)
        if _says_in_place(node.target, name) and hasattr(Tensor, name[:-1]):
            node.target = name[:-1]
            return operand
    return None


def _changes_without_twin(node: torch.fx.Node) -> bool:
    """Such as ``z.copy_(x)``, or an ``out=`` argument."""
    if "out" in node.kwargs and node.kwargs["out"] is not None:
        return True
    if isinstance(node.target, torch._ops.OpOverload):
        name = node.target.overloadpacket.__name__
    else:
        name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    in_place = _says_in_place(node.target, str(name)) and name != "requires_grad_"
    return node.op in ("call_method", "call_function") and in_place


def _says_in_place(target: Any, name: str) -> bool:
    """``relu_`` does; ``__and__`` and ``operator.and_`` only look like it."""
    keyword = getattr(target, "__module__", "") == operator.and_.__module__
    return name.endswith("_") and not name.endswith("__") and not keyword


_RANDOM = (
    "rand",
    "randn",
    "randint",
    "randperm",
    "normal",
    "bernoulli",
    "multinomial",
    "poisson",
    "rand_like",
    "randn_like",
    "randint_like",
    "uniform",
    "exponential",
    "geometric",
    "log_normal",
    "cauchy",
    "random",
)


def _random_numbers(graph: torch.fx.Graph) -> tuple[Problem, ...]:
    """Operations that give something else at every call, whether the image reaches them or not."""
    targets: set[Any] = {getattr(torch, name) for name in _RANDOM if hasattr(torch, name)}
    methods = {name for plain in _RANDOM for name in (plain, f"{plain}_")}
    return tuple(
        Problem(
            node.name,
            facts(node).path,
            "draws random numbers, so no two answers are alike",
            "draw them once, outside forward",
        )
        for node in graph.nodes
        if node.target in targets
        or (node.op == "call_method" and node.target in methods)
        or (
            isinstance(node.target, torch._ops.OpOverload)
            and node.target.overloadpacket.__name__ in methods
        )
    )


def _clear_inplace_argument(node: torch.fx.Node) -> bool:
    try:
        signature = inspect.signature(node.target)  # type: ignore[arg-type]
        bound = signature.bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # builtins have no signature, and no inplace argument
        return False
    if bound.arguments.get("inplace") is not True:
        return False
    bound.arguments["inplace"] = False
    node.args, node.kwargs = bound.args, bound.kwargs
    return True


def _reaches(source: torch.fx.Node, target: torch.fx.Node) -> bool:
    """Is there a path of uses from source to target?"""
    seen, queue = {source}, [source]
    while queue:
        node = queue.pop()
        if node is target:
            return True
        fresh = [user for user in node.users if user not in seen]
        seen.update(fresh)
        queue += fresh
    return False
