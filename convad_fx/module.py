"""The result: a GraphModule ``masked(x, mask)`` that shares the model's parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from convad_fx.compiler.analysis.report import Report
from convad_fx.compiler.capture.graph_rows import Rows, graph_of, rows_of
from convad_fx.compiler.capture.module_tree import TreeCode, TreeModule, adopt, copy_tree
from convad_fx.compiler.kernels import EMITTED_FUNCTIONS
from convad_fx.compiler.lowering.strategies import Strategies
from convad_fx.compiler.policy import Policy
from convad_fx.engine import Engine, Evaluation, PrecisionCheck
from convad_fx.errors import ModelError


class EmittedCode(TreeCode):
    """Code that calls kernels by their plain names: ``gate(relu, conv1_activity)``."""

    def _gen_python_code(self, nodes: Any, root_module: str, namespace: Any, **kwargs: Any) -> Any:
        for function in EMITTED_FUNCTIONS:
            namespace.create_name(function.__name__, function)
        return super()._gen_python_code(nodes, root_module, namespace, **kwargs)


@dataclass(slots=True)
class _Own:
    """What a masked network has beside graph and tensors.

    Attributes:
        compiled_as: arguments of `compile`, if it was called.
    """

    policy: Policy
    report: Report
    strategies: Strategies
    engine: Engine
    compiled_as: tuple[tuple[Any, ...], dict[str, Any]] | None = None


class MaskedModule(TreeModule):
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

    Raises (when called):
        ImageError, MaskError: an input of the wrong rank, size, dtype or device.
    """

    #: Everything of ours is in here: all other names may be those of the model's modules.
    _convad: _Own = None  # type: ignore[assignment]

    def __init__(
        self,
        tree: nn.Module,
        graph: torch.fx.Graph,
        policy: Policy,
        report: Report,
        strategies: Strategies,
    ) -> None:
        super().__init__(tree, graph, "Masked" + report.model, EmittedCode)
        self._convad = _Own(
            policy, report, strategies, self._new_engine(policy, report, strategies)
        )

    def _new_engine(self, policy: Policy, report: Report, strategies: Strategies) -> Engine:
        """An engine without results and timings, whose code shares this network's tensors."""
        parts = {
            name: TreeModule(
                self, graph, f"{name.title().replace('_', '')}{report.model}", EmittedCode
            )
            for name, graph in strategies.graphs().items()
        }
        return Engine(self, strategies, parts, reads_hidden=policy.input == "raw")

    @property
    def policy(self) -> Policy:
        """The policy of the conversion."""
        return self._convad.policy

    @property
    def report(self) -> Report:
        """The checker's report on the model."""
        return self._convad.report

    @property
    def strategies(self) -> Strategies:
        """How `evaluate` may run with less work."""
        return self._convad.strategies

    @property
    def engine(self) -> Engine:
        """What `evaluate` runs on, with the results and timings that it keeps."""
        return self._convad.engine

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
        return self.engine.evaluate(x, masks, batch_size, precision, on_batch, precision_check)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """`torch.compile`, with its arguments, of this network and all its strategies.

        Nothing is compiled until the first call.
        """
        super().compile(*args, **kwargs)
        self._convad.compiled_as = args, kwargs
        self._compile_parts()

    def _compile_parts(self) -> None:
        """Compile the strategies if the network is compiled."""
        if self._convad.compiled_as is None:
            return
        args, kwargs = self._convad.compiled_as
        parts: Mapping[str, Any] = self.engine.parts
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
        self._convad.engine = self._new_engine(self.policy, self.report, self.strategies)
        self._compile_parts()
        return self

    def _with_tree(self, tree: nn.Module) -> MaskedModule:
        """The same network on other tensors, not compiled, without results and timings."""
        graphs = {name: copy.deepcopy(graph) for name, graph in self.strategies.graphs().items()}
        strategies = self.strategies.with_graphs(graphs)
        return MaskedModule(tree, copy.deepcopy(self.graph), self.policy, self.report, strategies)

    def __copy__(self) -> MaskedModule:
        """Shares the parameters, until `.to()`, as this network shares the model's."""
        return self._with_tree(copy_tree(self, lambda module, _: type(module) is not nn.Module))

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskedModule:
        tree = nn.Module()
        adopt(tree, self)
        twin = memo[id(self)] = self._with_tree(copy.deepcopy(tree, memo))
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        # torch.fx would pickle code and trace it again, which yields a plain GraphModule
        tree = nn.Module()
        adopt(tree, self)
        graphs = {name: rows_of(graph) for name, graph in self.strategies.graphs().items()}
        plans = self.strategies.with_graphs({})
        return _unpickled, (tree, rows_of(self.graph), self.policy, self.report, plans, graphs)


def _unpickled(
    tree: nn.Module,
    rows: Rows,
    policy: Policy,
    report: Report,
    plans: Strategies,
    graphs: dict[str, Rows],
) -> MaskedModule:
    strategies = plans.with_graphs({name: graph_of(rows) for name, rows in graphs.items()})
    return MaskedModule(tree, graph_of(rows), policy, report, strategies)
