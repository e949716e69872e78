"""Evaluate many masks: deduplicate, choose strategies, run batches, collect the answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from convad_fx.compiler.lowering.strategies import Strategies
from convad_fx.engine.batch_size import BatchSize, batch_size_for
from convad_fx.engine.batching import BatchRunner
from convad_fx.engine.choose import Chooser
from convad_fx.engine.chunk import Chunk, mask_chunks
from convad_fx.engine.collect import Answers
from convad_fx.engine.dedup import EmptyMaskCache, UniqueMasks
from convad_fx.engine.precision import PRECISIONS, PrecisionCheck, check_precision
from convad_fx.engine.probe import StrategyProbe
from convad_fx.engine.strategy import Group, Parts
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
        pipeline = _Pipeline(self, x, batch_size, precision, on_batch, precision_check)
        with torch.inference_mode():
            for chunk in mask_chunks(masks, x):
                pipeline.add(chunk)
        return pipeline.result()

    def input_kind(self, x: Tensor, precision: str | None) -> tuple[Any, ...]:
        """Inputs that are alike in this have equal batch sizes and answers to the empty mask."""
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        outer = torch.get_autocast_dtype(device) if autocast else None
        return str(x.device), x.dtype, tuple(x.shape[2:]), precision, outer

    def batch_sizes(
        self, x: Tensor, batch_size: int | str, kind: tuple[Any, ...]
    ) -> dict[str, BatchSize]:
        """By strategy; whole images and boxes have one, stages of tiles one each."""
        tiles = math.prod(self.strategies.tile.counts)
        stages = len(self.strategies.tile.stages)
        items = dict.fromkeys(("box", "patch", "tile"), 1)
        items |= {f"tile stage {i}": tiles for i in range(stages)}
        sizes = {name: batch_size_for(x, batch_size, n) for name, n in items.items()}
        if batch_size == "auto":
            return {name: self.sizes.setdefault((*kind, name), n) for name, n in sizes.items()}
        return sizes


class _Pipeline:
    """One call of `evaluate`: the state of its four steps."""

    def __init__(
        self,
        engine: Engine,
        x: Tensor,
        batch_size: int | str,
        precision: str | None,
        on_batch: Callable[[int], Any] | None,
        precision_check: PrecisionCheck | None,
    ) -> None:
        self.engine, self.on_batch = engine, on_batch
        self.kind = engine.input_kind(x, precision)
        self.probe = engine.probes.setdefault(self.kind, StrategyProbe())
        compiled = getattr(engine.network, "_compiled_call_impl", None) is not None
        dtype = None if precision is None else PRECISIONS[precision]
        self.check = PrecisionCheck() if precision_check is None else precision_check
        self.deviation: float | None = None
        self.unique = UniqueMasks(x)
        self.runner = BatchRunner(x.device, compiled, dtype)
        self.chooser = Chooser(
            engine.network,
            engine.strategies,
            engine.parts,
            x,
            engine.batch_sizes(x, batch_size, self.kind),
            self.runner,
            self.probe,
            engine.disabled,
        )
        self.answers = Answers()

    def add(self, masks: Tensor) -> None:
        """Evaluate a chunk of masks (K, 1, *grid)."""
        chunk, empty = self._deduplicate(masks)
        if len(chunk):
            with self.probe.evaluating(len(chunk)):
                for group in self.chooser.choose(chunk):
                    self._run(group)
        if empty:
            cached = self.engine.empty.answers
            if self.kind not in cached:
                cached[self.kind] = self.answers.of(empty.pop(0))
            answer = cached[self.kind]
            self.answers.add(answer.expand(len(empty), *answer.shape[1:]), empty)

    def _deduplicate(self, masks: Tensor) -> tuple[Chunk, list[int]]:
        """Masks to evaluate, and the numbers of new empty ones."""
        chunk = self.unique.new(masks)
        if not len(chunk) or self.engine.reads_hidden:
            return chunk, []
        return self.engine.empty.split(chunk, self.kind, self.engine.network)

    def _run(self, group: Group) -> None:
        """Evaluate a group in batches."""
        strategy, size = group.strategy, group.size
        share, key = strategy.share(size), strategy.key(size)
        prepare = partial(strategy.call, size)
        batches = self.runner.run(
            group.members, prepare, strategy.batch, name=strategy.name, share=share
        )
        for members, output in batches:
            logits = output.clone()  # the next call of a CUDA graph overwrites its output
            if self.runner.dtype is not None and key not in self.check.compared:
                self.check.compared.add(key)
                ends = sorted({0, len(members) - 1})  # neighbouring masks may be alike
                deviation = self.runner.deviation([members[i] for i in ends], prepare, logits[ends])
                self.check.record(deviation)
                self.deviation = max(self.deviation or 0.0, deviation)
            self.answers.add(logits, [strategy.chunk.numbers[k] for k in members])
            self.runner.work.passes += len(members)
            self.runner.work.area += share * len(members)
            if self.on_batch is not None:
                self.on_batch(len(members))

    def result(self) -> Evaluation:
        """The answers in the order of the masks."""
        work = self.runner.work
        area = work.area / work.passes if work.passes else 0.0
        logits = self.answers.rows(self.unique.rows)
        return Evaluation(logits, work.passes, area, work.batches, self.deviation)
