"""Evaluate many masks: deduplicate, choose strategies, run batches, collect the answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from convad_fx.compiler.lowering.strategies import Strategies
from convad_fx.engine.batch_size import BatchSize, batch_size_for
from convad_fx.engine.batching import BatchRunner, Work
from convad_fx.engine.choose import Chooser
from convad_fx.engine.chunk import mask_chunks
from convad_fx.engine.collect import Answers
from convad_fx.engine.dedup import EmptyMaskCache, UniqueMasks
from convad_fx.engine.precision import PRECISIONS, PrecisionCheck, check_precision
from convad_fx.engine.probe import StrategyProbe
from convad_fx.engine.strategy import Parts
from convad_fx.errors import ImageError


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of `MaskedModule.evaluate`.

    Attributes:
        logits: (K, ...): one row for each mask, in order.
        passes: masks that went through the network; identical ones count once.
        area: arithmetic per pass, as a share of a whole image's.
        batches: calls of the network, or of a part of it.
        deviation: largest difference of a logit from float32 in this call, on two masks of each
            size of box, the first and the last of a batch; None where nothing was compared.
    """

    logits: Tensor
    passes: int
    area: float
    batches: int
    deviation: float | None = None

    @classmethod
    def of(cls, logits: Tensor, work: Work) -> Evaluation:
        """Logits, and the work that was done for them."""
        area = work.area / work.passes if work.passes else 0.0
        return cls(logits, work.passes, area, work.batches, work.deviation)


class Engine:
    """Evaluates masks on a network, and keeps what later calls can use.

    Args:
        network: ``(x, mask) -> logits``, on whole images.
        strategies: how the network may run otherwise.
        parts: the code of the strategies, by the names of their graphs.
        reads_hidden: the network sees hidden pixels (``input="raw"``), so that the answer to the
            empty mask depends on the image.

    Attributes:
        sizes: batch sizes, by kind of input and strategy.
        probes: timings of strategy selection, by kind of input.
        empty: answers to the empty mask.
        disabled: names of strategies not to use, for measurements.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        strategies: Strategies,
        parts: Parts,
        *,
        reads_hidden: bool,
    ) -> None:
        self.network, self.strategies, self.parts = network, strategies, parts
        self.reads_hidden = reads_hidden
        self.sizes: dict[Any, BatchSize] = {}
        self.probes: dict[Any, StrategyProbe] = {}
        self.empty = EmptyMaskCache()
        self.disabled: frozenset[str] = frozenset()

    def evaluate(
        self,
        x: Tensor,
        masks: Tensor | Iterable[Tensor],
        batch_size: int | str = "auto",
        precision: str | None = None,
        on_batch: Callable[[int], Any] | None = None,
        precision_check: PrecisionCheck | None = None,
    ) -> Evaluation:
        """See `MaskedModule.evaluate`."""
        check_precision(precision, x.dtype)
        if x.dim() < 3:
            raise ImageError("the image is not a tensor (N, C, ...)", hint="see x[None]")
        kind = _input_kind(x, precision)
        probe = self.probes.setdefault(kind, StrategyProbe())
        compiled = getattr(self.network, "_compiled_call_impl", None) is not None
        dtype = None if precision is None else PRECISIONS[precision]
        runner = BatchRunner(x.device, compiled, dtype, precision_check or PrecisionCheck())
        sizes = self._batch_sizes(x, batch_size, kind)
        parts = self.network, self.strategies, self.parts
        chooser = Chooser(*parts, x, sizes, runner, probe, self.disabled)
        unique, answers = UniqueMasks(x), Answers()
        with torch.inference_mode():
            for given in mask_chunks(masks, x):
                chunk, empty = unique.new(given), list[int]()
                if not self.reads_hidden:
                    chunk, empty = self.empty.split(chunk, kind, self.network)
                if len(chunk):
                    with probe.evaluating(len(chunk)):
                        # no variable holds a group, and so its tensors, when the next is chosen
                        batches = map(runner.evaluate, chooser.choose(chunk))
                        for numbers, logits in chain.from_iterable(batches):
                            answers.add(logits, numbers)
                            if on_batch is not None:
                                on_batch(len(numbers))
                if empty:
                    self.empty.answer(empty, kind, answers)
        return Evaluation.of(answers.rows(unique.rows), runner.work)

    def _batch_sizes(
        self, x: Tensor, batch_size: int | str, kind: tuple[Any, ...]
    ) -> dict[str, BatchSize]:
        """By strategy; whole images and boxes have one, stages of tiles one each."""
        tiles = math.prod(self.strategies.tile.counts)
        items = dict.fromkeys(("box", "patch", "tile"), 1)
        items |= {f"tile stage {i}": tiles for i in range(len(self.strategies.tile.stages))}
        sizes = {name: batch_size_for(x, batch_size, n) for name, n in items.items()}
        if batch_size == "auto":
            return {name: self.sizes.setdefault((*kind, name), n) for name, n in sizes.items()}
        return sizes


def _input_kind(x: Tensor, precision: str | None) -> tuple[Any, ...]:
    """Inputs of one kind share batch sizes, timings and the answer to the empty mask."""
    device = x.device.type
    outer = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return str(x.device), x.dtype, tuple(x.shape[2:]), precision, outer
