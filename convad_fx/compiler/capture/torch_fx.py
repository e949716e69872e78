"""Capture by torch.fx symbolic tracing: modules stay calls, and any image size stays possible."""

from __future__ import annotations

import builtins
import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from convad_fx.compiler.capture.in_place import OUT_OF_PLACE
from convad_fx.compiler.capture.module_tree import copy_tree
from convad_fx.compiler.capture.op_schema import reads_no_values
from convad_fx.compiler.capture.requirements import autocast_region, image_parameter
from convad_fx.compiler.capture.snapshot import Snapshot
from convad_fx.compiler.capture.threads import TRACING
from convad_fx.errors import UntraceableModel, first_line

#: Modules of timm that stay calls, because their forward computes padding from the image's size, or
#: mixes a norm with an activation and keeps state that tracing into it would not call. They are
#: entries of timm's own no-trace list; each has a row in `spellings.SPELLINGS`.
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


class InPlaceProxy(torch.fx.Proxy):
    """Records ``y += 1`` as in place; torch.fx records ``y = y + 1``, a new tensor."""

    def __getattr__(self, name: str) -> Any:
        """Records ``x.mT`` where it is read; torch.fx records it where the result is first used."""
        if inspect.isdatadescriptor(getattr(Tensor, name, None)):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)


def _recording(function: Any) -> Callable[[InPlaceProxy, Any], Any]:
    return lambda self, other: self.tracer.create_proxy(
        "call_function", function, (self, other), {}
    )


for _function in OUT_OF_PLACE:
    setattr(InPlaceProxy, f"__{_function.__name__}__", _recording(_function))


class ModelTracer(torch.fx.Tracer):
    """Symbolic tracing that keeps torch.nn modules as leaves and records in-place operators."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """torch.nn and `WHOLE_MODULES`, unless the instance has hooks or a forward of its own."""
        if _is_altered(m):
            return False
        kind = type(m)
        if f"{kind.__module__}.{kind.__qualname__}" in WHOLE_MODULES:
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def __init__(self) -> None:
        super().__init__()
        self._tensors: set[torch.fx.Node] = set()
        self._thread = threading.get_ident()

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """One placeholder, for the image: Python gives other parameters their default values."""
        assert is_module
        assert concrete_args is None
        name = image_parameter(self.root)
        return root_fn, [self.root, self.create_proxy("placeholder", name, (), {})]

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Record a call; other threads' modules run as ever, although torch.fx patches them too."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A proxy of a parameter; in other threads, the parameter."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        """Proxies that record in-place operators."""
        is_call = node.op in ("call_function", "call_method")
        of_tensors = not self._tensors.isdisjoint(node.all_input_nodes)
        if not is_call or (of_tensors and not reads_no_values(node)):
            self._tensors.add(node)
        return InPlaceProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """The node of a proxy; torch.fx asks first whether it is a tensor (`truthful`)."""
        return a.node if issubclass(type(a), torch.fx.Proxy) else super().create_arg(a)

    def stands_for_tensor(self, proxy: torch.fx.Proxy) -> bool:
        """Whether a proxy stands for a tensor, and not for a size or a number made of sizes."""
        return proxy.node in self._tensors

    @contextlib.contextmanager
    def truthful(self) -> Iterator[None]:
        """Inside, proxies of tensors are tensors to `isinstance`, and autocast regions raise.

        torch.fx would trace ``if isinstance(x, Tensor): x = normalise(x)`` without the
        normalisation, and a region as if it were not there. Proxies do not claim to be tensors by
        ``__class__``: torch's C++ code would believe it, and read memory that is not a tensor's.
        """
        plain = builtins.isinstance
        enter: Any = torch.autocast.__enter__

        def is_instance(obj: Any, kinds: Any, /) -> bool:
            if plain(obj, kinds):
                return True
            is_proxy = issubclass(type(obj), InPlaceProxy)
            return is_proxy and plain(_TENSOR, kinds) and self.stands_for_tensor(obj)

        def refuse(region: torch.autocast) -> Any:
            if region._enabled:
                raise autocast_region(region.device, region.fast_dtype)
            return enter(region)

        builtins.isinstance = is_instance
        torch.autocast.__enter__ = refuse  # type: ignore[method-assign]
        try:
            yield
        finally:
            builtins.isinstance = plain
            torch.autocast.__enter__ = enter  # type: ignore[method-assign]


#: Stands for the tensor of a proxy where `isinstance` asks for its type.
_TENSOR = torch.empty(0)


def _is_altered(module: nn.Module) -> bool:
    """The instance has a forward of its own, or hooks other than torch.nn.utils'."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    homes = (getattr(hook, "__module__", type(hook).__module__) or "" for hook in hooks)
    return "forward" in vars(module) or any(not home.startswith("torch.nn.utils") for home in homes)


def capture_symbolically(model: nn.Module) -> tuple[torch.fx.Graph, nn.Module]:
    """The model's graph, and the tree of modules that it calls.

    Raises:
        UntraceableModel: forward depends on values or shapes, or gives something else each time.
    """
    if _is_altered(model):
        raise UntraceableModel(
            f"{type(model).__name__} has hooks or a forward of its own, which torch.fx ignores",
            hint="move what they do into a module around it",
        )
    tracer = ModelTracer()
    before = Snapshot(model)
    try:
        with TRACING, tracer.truthful():
            graph = tracer.trace(model)
    except UntraceableModel as error:
        path = _innermost_path(tracer)
        raise UntraceableModel(error.what, hint=error.hint, path=path) from error
    except Exception as error:  # whatever the model's own code raises on a proxy
        raise UntraceableModel(
            f"torch.fx cannot trace {type(model).__name__}: {first_line(error, with_type=True)}",
            hint="its forward branches on values or shapes at run time; "
            "move that out of forward, or make the module that does it a torch.nn leaf",
            path=_innermost_path(tracer),
        ) from error
    finally:
        changes = before.restore()
    if changes.buffers:
        raise UntraceableModel(
            f"forward changes the buffer {changes.buffers[0]}, so results may differ from call to"
            " call",
            hint="return what it keeps as an output, or remove it for explaining",
        )
    if changes.constants:
        _require_same_constants(model, changes.constants)
    tree = copy_tree(model, tracer.is_leaf_module)
    for name, constant in changes.constants.items():
        tree.register_buffer(name, constant, persistent=False)
    return graph, tree


def _require_same_constants(model: nn.Module, constants: dict[str, Tensor]) -> None:
    """Trace again: tensors that forward creates are constants only if they are equal each time."""
    before = Snapshot(model)
    try:
        tracer = ModelTracer()
        with TRACING, tracer.truthful():
            tracer.trace(model)
    finally:
        again = before.restore().constants
    for name, constant in constants.items():
        if name not in again or not torch.equal(constant, again[name]):
            raise UntraceableModel(
                f"{type(model).__name__}.forward makes a tensor that differs from call to call",
                hint="draw random numbers once, outside forward",
            )


def _innermost_path(tracer: torch.fx.Tracer) -> str:
    stack = getattr(tracer, "module_stack", None)
    return next(reversed(stack.values()))[0] if stack else ""
