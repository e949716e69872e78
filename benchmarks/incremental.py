"""What reusing the whole image's activations could save, at most, for masks that hide little.

    python -m benchmarks.incremental [--models NAME ...] [--hidden 32] [--json FILE]

A square of --hidden pixels is hidden in the middle; what it changes grows from layer to layer by
the reach of the windows. Each operation of the plain network is timed, in eager mode and on --batch
images, on its whole input and on the part that it would have to read to recompute what has changed.
Finding, cutting out and putting back these parts is not counted: the ratio is a bound, not a
forecast. "until" stops reusing where that is best: from there on everything runs on whole grids.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from benchmarks import measure

MODELS = ("resnet50", "mobilenet_v2")


class Incremental(torch.fx.Interpreter):
    """Runs a network and times every operation on its whole input and on the changed part."""

    def __init__(self, module: torch.fx.GraphModule, hidden: int, runs: int) -> None:
        super().__init__(module)
        self.hidden, self.runs = hidden, runs
        self.changed: dict[torch.fx.Node, int] = {}
        self.seconds: list[tuple[float, float]] = []  # whole, part

    def run_node(self, n: torch.fx.Node) -> Any:
        answer = super().run_node(n)
        if n.op == "placeholder":
            self.changed[n] = self.hidden
        elif n.op in ("call_module", "call_function", "call_method"):
            self._time(n, answer)
        return answer

    def _time(self, n: torch.fx.Node, answer: Any) -> None:
        before = [self.changed[a] for a in n.all_input_nodes if a in self.changed]
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        call = getattr(self, n.op)
        whole = self._seconds(lambda: call(n.target, args, kwargs))
        module = self.submodules.get(n.target) if n.op == "call_module" else None
        if not before or not isinstance(answer, Tensor) or answer.dim() != 4 or _global(answer):
            self.seconds.append((whole, whole))
            return
        kernel, stride, dilation = _window(module)
        read = max(before) + 2 * dilation * (kernel - 1)  # so that each changed cell is in a window
        grid = min(a.shape[-1] for a in args if isinstance(a, Tensor))
        changed = min(-(-(max(before) + dilation * (kernel - 1)) // stride), answer.shape[-1])
        self.changed[n] = changed
        if changed == answer.shape[-1]:
            self.seconds.append((whole, whole))
            return
        part = [a[..., :read, :read].clone() if isinstance(a, Tensor) else a for a in args]
        assert grid >= changed
        self.seconds.append((whole, self._seconds(lambda: call(n.target, tuple(part), kwargs))))

    def _seconds(self, call: Any) -> float:
        return measure.interleaved({"call": call}, self.runs, warm_up=1).median("call")


def _global(answer: Tensor) -> bool:
    return answer.shape[-1] == 1


def _window(module: nn.Module | None) -> tuple[int, int, int]:
    """Kernel, stride, dilation along an axis."""
    if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        kernel, stride = module.kernel_size, module.stride
        dilation = getattr(module, "dilation", 1)
        return _one(kernel), _one(stride), _one(dilation)
    return 1, 1, 1


def _one(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple) else value)


def rows_of(asked: argparse.Namespace) -> list[measure.Row]:
    rows = []
    for name in asked.models:
        model, x, weights = measure.Network.named(name, asked)
        timed = Incremental(torch.fx.symbolic_trace(model), asked.hidden, asked.runs)
        with torch.inference_mode():
            timed.run(torch.randn(asked.batch, *x.shape[1:], device=asked.device))
        whole = [seconds for seconds, _ in timed.seconds]
        # the first k operations on parts, the others on whole grids
        costs = [
            sum(part for _, part in timed.seconds[:k]) + sum(whole[k:])
            for k in range(len(whole) + 1)
        ]
        best = min(range(len(costs)), key=costs.__getitem__)
        rows.append(
            {
                "model": name,
                "weights": weights,
                "hidden": asked.hidden,
                "whole ms": 1000 * sum(whole),
                "parts ms": 1000 * costs[best],
                "at most": sum(whole) / costs[best],
                "until": f"{best} of {len(whole)}",
            }
        )
        measure.table(rows[-1:])
    return rows


def main() -> None:
    parser = measure.parser(__doc__, MODELS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=32, help="side of the square, in pixels")
    measure.run(parser.parse_args(), rows_of)


if __name__ == "__main__":
    main()
