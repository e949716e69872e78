"""The result: a GraphModule ``masked(x, mask)`` that shares the model's parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from convad_fx.compiler import activity
from convad_fx.compiler.checker import Report
from convad_fx.compiler.policy import Policy
from convad_fx.compiler.trace import adopt
from convad_fx.errors import ModelError

_EMITTED: tuple[Callable[..., Any], ...] = tuple(
    f for name, f in vars(activity).items()
    if callable(f) and getattr(f, "__module__", "") == activity.__name__ and name[0] != "_"
)  # fmt: skip


class EmittedTracer(torch.fx.Tracer):
    """Traces emitted code back into its graph (unpickling): the functions it calls stay calls."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=_EMITTED)


class EmittedCode(torch.fx.graph.CodeGen):
    """Emitted code calls our functions by their plain names: ``gate(relu, conv1_activity)``."""

    def _gen_python_code(self, nodes: Any, root_module: str, namespace: Any, **kwargs: Any) -> Any:
        for function in _EMITTED:
            namespace.create_name(function.__name__, function)
        return super()._gen_python_code(nodes, root_module, namespace, **kwargs)


class MaskedModule(torch.fx.GraphModule):
    """A trained network that takes a mask: ``masked(x, mask)``.

    >>> import torch, torchvision, convad_fx
    >>> model = torchvision.models.resnet18().eval()
    >>> masked = convad_fx.convert(model, torch.zeros(1, 3, 64, 64))
    >>> x = torch.rand(1, 3, 64, 64)
    >>> masks = torch.rand(5, 1, 64, 64) > 0.5      # True = kept
    >>> masked(x, masks).shape                       # one image, five masks
    torch.Size([5, 1000])
    >>> torch.equal(masked(x), model(x))             # no mask: all kept, bit for bit the model
    True

    x is (N, C, H, W), the mask bool (N, 1, H, W); either batch may be 1. One or three grid axes
    instead of two work likewise. Parameters are the model's own until `.to(...)` copies them.

    Attributes:
        policy: what the conversion was asked for.
        report: what the checker said.

    Raises (when called):
        ImageError, MaskError: an input of the wrong rank, size, dtype or device.
    """

    policy: Policy
    report: Report

    def __init__(
        self, tree: nn.Module, graph: torch.fx.Graph, policy: Policy, report: Report
    ) -> None:
        graph.set_codegen(EmittedCode())
        super().__init__(tree, graph, class_name="Masked" + report.model)
        adopt(self, tree)
        self.policy, self.report = policy, report
        self._tracer_cls = EmittedTracer

    def train(self, mode: bool = True) -> MaskedModule:
        """Refuses training mode: dropout and batch statistics would break every law."""
        if mode:
            raise ModelError(
                "a masked network has no training mode",
                hint="train the model it was converted from; parameters are shared until .to()",
            )
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskedModule:
        """`.to()`, `.double()`, `.cuda()`: on parameters of our own; the model keeps its."""
        fresh: dict[int, nn.Parameter] = {}  # tied parameters stay tied
        for module in self.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    own = fresh.setdefault(
                        id(parameter),
                        nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad),
                    )
                    module._parameters[name] = own
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskedModule:
        tree = nn.Module()
        tree._modules = copy.deepcopy(self._modules, memo)
        tree._parameters = copy.deepcopy(self._parameters, memo)
        tree._buffers = copy.deepcopy(self._buffers, memo)
        tree._non_persistent_buffers_set = set(self._non_persistent_buffers_set)
        tree.training = False
        return MaskedModule(tree, copy.deepcopy(self.graph), self.policy, self.report)

    def __reduce__(self) -> tuple[Any, ...]:
        # GraphModule pickles its code and traces it again, which yields a plain GraphModule
        rebuild, args = super().__reduce__()
        return _unpickle, (rebuild, args, self.policy, self.report)


def _unpickle(
    rebuild: Callable[..., torch.fx.GraphModule],
    args: tuple[Any, ...],
    policy: Policy,
    report: Report,
) -> MaskedModule:
    body = args[0]
    registries = {
        key: body[key]
        for key in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")
    }
    plain = rebuild(*args)
    tree = nn.Module()
    tree.__dict__.update(registries)
    return MaskedModule(tree, plain.graph, policy, report)
