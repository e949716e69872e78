"""Run batches as large as is fastest, halved where they do not fit into memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from convad_fx.engine.batch_size import LARGE_BATCH, MIN_ROWS, BatchSize
from convad_fx.engine.memory import unless_out_of_memory
from convad_fx.engine.precision import PrecisionCheck
from convad_fx.engine.strategy import Group
from convad_fx.errors import ModelError

#: Numbers of masks or tiles -> what to call for them, and its arguments, of which the first is a
#: tensor. The answer has their rows in this order.
PrepareCall: TypeAlias = Callable[[list[int]], tuple[Any, ...]]


@dataclass(slots=True)
class Work:
    """What was done in a call of `evaluate`.

    Attributes:
        passes: masks evaluated.
        area: arithmetic, in whole images.
        batches: calls of the network, or of a part of it.
        deviation: largest difference of a logit from float32, where compared.
    """

    passes: int = 0
    area: float = 0.0
    batches: int = 0
    deviation: float | None = None


@dataclass(frozen=True, slots=True)
class BatchRunner:
    """Runs code of one network in batches.

    Args:
        device: of the image.
        compiled: the code is compiled, so that batches have at least `MIN_ROWS` rows.
        dtype: autocast to this type.
        check: what need not be compared with float32 again.
    """

    device: torch.device
    compiled: bool
    dtype: torch.dtype | None
    check: PrecisionCheck
    work: Work = field(default_factory=Work)

    def evaluate(self, group: Group) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the numbers of the masks of each batch, and their logits."""
        strategy, size = group.strategy, group.size
        share, key = strategy.share(size), strategy.key(size)
        prepare = partial(strategy.call, size)
        batches = self.run(group.members, prepare, strategy.batch, name=strategy.name, share=share)
        for members, output in batches:
            logits = output.clone()  # the next call of a CUDA graph overwrites its output
            if self.dtype is not None and key not in self.check.compared:
                self.check.compared.add(key)
                ends = sorted({0, len(members) - 1})  # neighbouring masks may be alike
                self._compare([members[i] for i in ends], prepare, logits[ends])
            self.work.passes += len(members)
            self.work.area += share * len(members)
            yield [strategy.chunk.numbers[k] for k in members], logits

    def run(
        self,
        items: list[int],
        prepare: PrepareCall,
        batch: BatchSize,
        *,
        name: str,
        share: float,
        min_rows: int = MIN_ROWS,
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the items of each batch and the answer to them, which the next may overwrite.

        Args:
            items: numbers of masks or tiles.
            name: of the strategy, whose code is compiled for small and for large batches.
            share: arithmetic of one item, in whole images.
            min_rows: compiled code is called for no fewer; more than `MIN_ROWS` where rows are so
                cheap that one compiled version will do.
        """
        done = 0
        while left := len(items) - done:
            batches = -(-left // batch.for_boxes(share, left))
            chosen = items[done : done + -(-left // batches)]  # of equal size: no small rest
            began = time.perf_counter()
            answer = self.attempt(chosen, prepare, min_rows)
            if answer is None:
                batch.halve(share, len(chosen))
                continue
            seconds = time.perf_counter() - began
            version = name, len(chosen) >= LARGE_BATCH
            if version in batch.compiled_versions:
                batch.record(len(chosen) * share, seconds)
            batch.compiled_versions.add(version)
            done += len(chosen)
            self.work.batches += 1
            yield chosen, answer

    def attempt(
        self,
        items: list[int],
        prepare: PrepareCall,
        min_rows: int = MIN_ROWS,
        *,
        exact: bool = False,
    ) -> Tensor | None:
        """The answer to one batch; None if there is no memory for so many items.

        Args:
            exact: without autocast.
        """
        padded = items
        if self.compiled and len(items) < min_rows:
            padded = [items[i % len(items)] for i in range(min_rows)]
        answer = unless_out_of_memory(
            lambda: self._call(*prepare(padded), exact=exact), self.device, smallest=len(items) == 1
        )
        return None if answer is None else answer[: len(items)]

    def _compare(self, items: list[int], prepare: PrepareCall, answer: Tensor) -> None:
        """Compare answers with float32, for as many items as fit into memory."""
        compared = len(items)
        while (exact := self.attempt(items[:compared], prepare, exact=True)) is None:
            compared //= 2
        deviation = float((exact.double() - answer[:compared].double()).abs().max())
        self.work.deviation = max(self.work.deviation or 0.0, deviation)
        self.check.deviation = max(self.check.deviation or 0.0, deviation)

    def _call(
        self, network: Callable[..., Any], first: Tensor, *args: Tensor, exact: bool
    ) -> Tensor:
        dtype = None if exact else self.dtype
        precision: Any = contextlib.nullcontext()
        if self.dtype is not None:
            precision = torch.autocast(self.device.type, dtype, enabled=dtype is not None)
        with precision:
            answer = network(first, *args)
        if not isinstance(answer, Tensor):
            raise ModelError(
                f"the network returns a {type(answer).__name__}, not one tensor",
                hint="wrap the model so that it returns its logits alone, and convert that",
            )
        if answer.is_cuda:
            torch.cuda.synchronize(answer.device)  # calls are timed
        return answer.float() if dtype is not None else answer
