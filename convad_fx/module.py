"""The result: a GraphModule ``masked(x, mask)`` that shares the model's parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from convad_fx.compiler.analysis.report import Report
from convad_fx.compiler.capture.module_tree import adopt
from convad_fx.compiler.kernels import EMITTED_FUNCTIONS
from convad_fx.compiler.lowering.strategies import Strategies
from convad_fx.compiler.policy import Policy
from convad_fx.engine import Engine, Evaluation, PrecisionCheck
from convad_fx.errors import ModelError


class EmittedTracer(torch.fx.Tracer):
    """Traces emitted code back into its graph when unpickling; kernels are not traced into."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=EMITTED_FUNCTIONS)


class EmittedCode(torch.fx.graph.CodeGen):
    """Code that calls kernels by their plain names: ``gate(relu, conv1_activity)``."""

    def _gen_python_code(self, nodes: Any, root_module: str, namespace: Any, **kwargs: Any) -> Any:
        for function in EMITTED_FUNCTIONS:
            namespace.create_name(function.__name__, function)
        return super()._gen_python_code(nodes, root_module, namespace, **kwargs)


class Emitted(torch.fx.GraphModule):
    """A graph that shares the modules and parameters of `tree`."""

    def __init__(self, tree: nn.Module, graph: torch.fx.Graph, name: str) -> None:
        graph.set_codegen(EmittedCode())
        super().__init__(tree, graph, class_name=name)
        adopt(self, tree)
        self._tracer_cls = EmittedTracer


class MaskedModule(Emitted):
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
    instead of two work too. Parameters are the model's own until `.to(...)` copies them.

    Attributes:
        policy: of the conversion.
        report: of the checker.
        strategies: how `evaluate` may run with less work.

    Raises (when called):
        ImageError, MaskError: an input of the wrong rank, size, dtype or device.
    """

    policy: Policy
    report: Report
    strategies: Strategies
    _compiled_as: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __init__(
        self,
        tree: nn.Module,
        graph: torch.fx.Graph,
        policy: Policy,
        report: Report,
        strategies: Strategies,
    ) -> None:
        super().__init__(tree, graph, "Masked" + report.model)
        self.policy, self.report, self.strategies = policy, report, strategies
        self._fresh_engine()

    def _fresh_engine(self) -> None:
        """Make an engine without the results and timings of other parameters."""
        parts = {
            name: Emitted(self, graph, f"{name.title().replace('_', '')}{self.report.model}")
            for name, graph in self.strategies.graphs().items()
        }
        # not registered as a child of this nn.Module, whose modules it shares
        self.__dict__["engine"] = Engine(
            self, self.strategies, parts, reads_hidden=self.policy.input == "raw"
        )
        self._compile_parts()

    def evaluate(
        self,
        x: Tensor,
        masks: Tensor | Iterable[Tensor],
        *,
        batch_size: int | str = "auto",
        precision: str | None = None,
        on_batch: Callable[[int], Any] | None = None,
        precision_check: PrecisionCheck | None = None,
    ) -> Evaluation:
        """Evaluate many masks in bounded batches, each with as little work as the graph allows.

        >>> import torch, torchvision, convad_fx
        >>> model = torchvision.models.resnet18().eval()
        >>> masked = convad_fx.convert(model, torch.zeros(1, 3, 128, 128))
        >>> x, masks = torch.rand(1, 3, 128, 128), torch.zeros(40, 1, 128, 128, dtype=torch.bool)
        >>> masks[:, :, 40:90, 30:80] = torch.rand(40, 1, 50, 50) > 0.5
        >>> found = masked.evaluate(x, masks)
        >>> torch.allclose(found.logits, masked(x, masks), atol=1e-4)
        True
        >>> round(found.area, 2)                      # of the arithmetic of whole images
        0.53

        Equal to ``masked(x, masks)`` up to rounding. Identical masks are evaluated once, and the
        empty mask once while the weights stay the same (after writing to weights through ``.data``,
        which cannot be detected, convert again). Where the graph allows it (see
        ``masked.strategies`` or `convad_fx.check`), masks that keep little run on boxes, masks
        that hide little recompute only what that changes, and masks of one image share tiles of
        the first layers. Where choosing takes longer than it can save, as on a large GPU, all run
        on whole images. Gradients are not recorded.

        Args:
            x: one image (1, C, *grid), or one for each mask (at most 512 then).
            masks: bool (K, 1, *grid), True = kept; or an iterable of masks (1, *grid) or (*grid),
                of which only a few hundred are held at a time.
            batch_size: masks at once, or "auto": boxes that make up the number of whole images
                that was fastest in a few trials. Results differ between sizes by rounding.
            precision: "bfloat16" or "float16": autocast of a float32 network; ``deviation`` is then
                the largest difference from float32, on two masks of each size of box. Default: the
                network's own precision.
            on_batch: called with the number of masks after every batch.
            precision_check: remembers which sizes of box were compared with float32, so that later
                calls do not compare them again.

        Raises:
            ImageError, MaskError: an input of the wrong rank, size, dtype or device.
            PolicyError: an unknown batch size or precision, or one for another dtype than float32.
            ModelError: the network returns something other than one tensor.
        """
        engine: Engine = self.__dict__["engine"]
        return engine.evaluate(x, masks, batch_size, precision, on_batch, precision_check)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """`torch.compile`, with its arguments, of this network and all its strategies.

        Nothing is compiled until the first call.
        """
        super().compile(*args, **kwargs)
        self._compiled_as = args, kwargs
        self._compile_parts()

    def _compile_parts(self) -> None:
        """Compile the strategies if the network is compiled."""
        if self._compiled_as is None:
            return
        args, kwargs = self._compiled_as
        parts: dict[str, Any] = self.__dict__["engine"].parts
        for name, part in parts.items():
            # not what runs once per image or chunk
            if name != "patch_base" and not name.endswith("_activities"):
                part.compile(*args, **kwargs)  # axes that vary are marked as dynamic

    def train(self, mode: bool = True) -> MaskedModule:
        """Refuse training mode, in which dropout and batch statistics would break every law."""
        if mode:
            raise ModelError(
                "a masked network has no training mode",
                hint="train the model it was converted from; parameters are shared until .to()",
            )
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskedModule:
        """Apply `.to()`, `.double()` or `.cuda()` to copies of the model's parameters."""
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
        self._fresh_engine()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskedModule:
        tree = nn.Module()
        tree._modules = copy.deepcopy(self._modules, memo)
        tree._parameters = copy.deepcopy(self._parameters, memo)
        tree._buffers = copy.deepcopy(self._buffers, memo)
        tree._non_persistent_buffers_set = set(self._non_persistent_buffers_set)
        tree.training = False
        return MaskedModule(
            tree,
            copy.deepcopy(self.graph),
            self.policy,
            self.report,
            copy.deepcopy(self.strategies),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # GraphModule pickles its code and traces it again, which yields a plain GraphModule
        engine: Engine = self.__dict__["engine"]
        own: Any = super().__reduce__()
        parts: dict[str, Any] = {name: part.__reduce__() for name, part in engine.parts.items()}
        for _, (body, *_), *_ in (own, *parts.values()):
            # results and timings are not kept, nor is compiled code; parts hold the graphs
            for name in ("engine", "strategies", "_compiled_as", "_compiled_call_impl"):
                body.pop(name, None)
        return _unpickle, (own, parts, self.policy, self.report, self.strategies.with_graphs({}))


def _unpickle(
    own: tuple[Callable[..., torch.fx.GraphModule], tuple[Any, ...]],
    parts: dict[str, tuple[Callable[..., torch.fx.GraphModule], tuple[Any, ...]]],
    policy: Policy,
    report: Report,
    strategies: Strategies,
) -> MaskedModule:
    body = own[1][0]
    registries = {
        key: body[key]
        for key in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")
    }
    graph = own[0](*own[1]).graph
    graphs = {name: rebuild(*args).graph for name, (rebuild, args) in parts.items()}
    tree = nn.Module()
    tree.__dict__.update(registries)
    return MaskedModule(tree, graph, policy, report, strategies.with_graphs(graphs))
