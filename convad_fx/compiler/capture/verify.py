"""Tries what the plan proves: does the masked network compute what the model computes?

The plan is a proof about the graph. That the graph is the model can only be tried: torch.fx drops
without an error whatever Python decides about a proxy (`isinstance`, context managers).
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from convad_fx.compiler.capture.shapes import TreeInterpreter
from convad_fx.compiler.capture.snapshot import Snapshot
from convad_fx.errors import ImageError, first_line

#: Values of hidden pixels that show up wherever they are read.
HIDDEN_VALUES = (float("nan"), 1e30)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A difference between the model and the masked network.

    Attributes:
        path: dotted path of the first module whose output the graph does not compute; "" where
            hidden pixels reach the result.
        what: the difference, in words.
    """

    path: str
    what: str


def compare(
    model: nn.Module,
    captured: torch.fx.GraphModule,
    masked: Callable[..., Any],
    example: Tensor,
    *,
    hides: bool,
) -> Mismatch | None:
    """Compare on random images of the example's kind; None where nothing differs.

    With everything kept, outputs must be equal bit for bit on batches of 1, of 2 and of the
    example's size; and with ``hides``, NaN and 1e30 under a mask must not reach the output. That is
    at most three calls of the model and four of the masked network, most of them on one or two
    images. The model is left as it was, buffers and hooks included.

    Args:
        captured: the graph before it was rewritten, in which the first difference is located.
        masked: ``(x, mask) -> output``.

    Raises:
        ImageError: the model itself does not run on such a batch.
    """
    before = Snapshot(model)
    try:
        with torch.no_grad():
            for batch in sorted({1, 2, len(example)}):
                x = _random_images(example, batch)
                worst = _difference(_expected(model, x), masked(x, None))
                if worst is not None:
                    return _locate(model, captured, x, worst)
            return _hidden_pixels(masked, example) if hides else None
    finally:
        before.restore()


def _expected(model: nn.Module, x: Tensor) -> Any:
    try:
        return model(x)
    except Exception as error:  # whatever the model raises
        raise ImageError(
            f"{type(model).__name__} does not take a batch of shape {tuple(x.shape)}: "
            f"{first_line(error, with_type=True)}",
            hint="pass an example of the size, dtype and device that the model expects",
        ) from error


def _random_images(example: Tensor, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    drawn = torch.rand((batch, *example.shape[1:]), generator=generator)
    return drawn.to(example.device, example.dtype)


def _difference(expected: Any, given: Any) -> str | None:
    """How two outputs differ, in words; None where they are equal bit for bit."""
    ours, theirs = _tensors(given), _tensors(expected)
    if len(ours) != len(theirs):
        return f"{len(ours)} tensors instead of {len(theirs)}"
    pairs = list(zip(theirs, ours, strict=True))
    for a, b in pairs:
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{b.dtype} of shape {tuple(b.shape)} instead of {a.dtype}, {tuple(a.shape)}"
    worst = [float(_apart(a, b)) for a, b in pairs if not _same(a, b)]
    return f"values differ by up to {max(worst):.2g}" if worst else None


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, NaN at the same places included."""
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _apart(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() - b.double()).abs().nan_to_num(float("inf")).max()


def _hidden_pixels(masked: Callable[..., Any], example: Tensor) -> Mismatch | None:
    """One image twice, half of it hidden: under the mask once NaN, once 1e30."""
    x = _random_images(example, 1).repeat(len(HIDDEN_VALUES), *[1] * (example.dim() - 1))
    mask = torch.ones(1, 1, *example.shape[2:], dtype=torch.bool, device=example.device)
    mask[..., : example.shape[-1] // 2 + 1] = False
    largest = torch.finfo(example.dtype).max
    for row, value in zip(x, HIDDEN_VALUES, strict=True):
        row.masked_fill_(~mask[0], min(value, largest) if value == value else value)
    for output in _tensors(masked(x, mask)):
        first, second = output[0].double(), output[1].double()
        # rows of one batch may be rounded differently
        if not torch.allclose(first, second, rtol=1e-2, atol=1e-3 * _scale(second)):
            return Mismatch("", "values of hidden pixels reach the result")
    return None


def _scale(values: Tensor) -> float:
    return float(values.abs().nan_to_num(0.0, 0.0, 0.0).max())


# ------------------------------------------------------------------- the first differing module


def _locate(
    model: nn.Module, captured: torch.fx.GraphModule, x: Tensor, difference: str
) -> Mismatch:
    """The first module, inner ones first, none of whose output tensors the graph computes."""
    computed = _Values(captured)
    computed.run(x)
    outputs: list[tuple[str, nn.Module, list[Tensor]]] = []

    def record(path: str, module: nn.Module) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs.append((path, module, [t.detach().clone() for t in _tensors(output)]))

        return hook

    handles = [
        module.register_forward_hook(record(path, module)) for path, module in model.named_modules()
    ]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    for path, module, tensors in outputs:
        if tensors and not any(map(computed.holds, tensors)):
            where = _source(module)
            name = type(module).__name__
            inside = f"first at the output of {name}{where}"
            return Mismatch(path, f"{difference}, {inside}")
    return Mismatch("", f"{difference}, although every module gives what the graph computes")


def _source(module: nn.Module) -> str:
    """``, file:line`` of its forward; "" where there is no source."""
    forward = inspect.unwrap(type(module).forward)
    try:
        return f", {inspect.getsourcefile(forward)}:{inspect.getsourcelines(forward)[1]}"
    except (OSError, TypeError):
        return ""


class _Values(TreeInterpreter):
    """Runs a captured graph and keeps every tensor that it computes."""

    def __init__(self, captured: torch.fx.GraphModule) -> None:
        super().__init__(captured)
        self.values: dict[Any, list[Tensor]] = defaultdict(list)

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        for value in _tensors(result):
            self.values[value.shape, value.dtype].append(value)
        return result

    def holds(self, tensor: Tensor) -> bool:
        """Some node computes this tensor, bit for bit."""
        alike: Iterable[Tensor] = self.values.get((tensor.shape, tensor.dtype), ())
        return any(_same(tensor, value) for value in alike)
