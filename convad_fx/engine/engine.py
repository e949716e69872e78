"""Many masks through one masked network, in bounded batches, each with as little work as it allows.

The way of a mask: met before? nothing kept? else on the box of what it keeps, from the activities
of every level, or on the patches that what it hides can change, whichever is less; boxes of one
size form a batch. If it is less again, masks share tiles of the first layers. What a network allows
was decided on the graph (`region`, `reuse`, `share`). Where looking takes longer than it may save,
masks go on whole images (`looking`).
"""

from __future__ import annotations

import contextlib
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from convad_fx.compiler.lowering.strategies import Strategies
from convad_fx.engine.batch_size import LARGE, LEAST, BatchSize, marked, rows_of
from convad_fx.engine.box import Boxed, Parts
from convad_fx.engine.mask_hash import mask_hashes
from convad_fx.engine.patch import Patched
from convad_fx.engine.probe import StrategyProbe
from convad_fx.engine.tile import Shared
from convad_fx.errors import ImageError, MaskError, ModelError, PolicyError

#: Masks looked at together: enough to fill batches of every size of box, few enough for memory.
CHUNK = 512
#: Whether fewer masks share tiles is not looked at: that takes as long as some of them do.
ENOUGH = 32
#: Masks that are looked at first, to see whether masks share anything.
FEW = 64
#: Many masks share so many times as much as a few, at most.
AT_MOST = 2
#: A call is to take as many tiles as boxes of this share of an image.
OF_TILE = 1 / 8
PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
#: Memory of one image, in values of each of its positions; a batch that does not fit is halved.
VALUES = 400


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `MaskedModule.evaluate` found.

    Attributes:
        logits: (K, ...): one row for each mask, in order.
        passes: masks that went through the network: identical ones once.
        area: the share of a whole image's arithmetic that was done, on average over the passes.
        batches: how many calls it took, of the network or of a part of it.
        deviation: largest difference of logits from float32, where compared: on two masks of
            each size of box, the first and the last of a batch; None where nothing was.
    """

    logits: Tensor
    passes: int
    area: float
    batches: int
    deviation: float | None = None


class Engine:
    """Evaluates masks on a network; remembers what holds from call to call.

    Args:
        network: ``(x, mask) -> logits``, on whole images.
        ways: how the network may run otherwise.
        parts: the code of these ways, by the names of their graphs.
        reads_hidden: the network sees hidden pixels (``input="raw"``): the empty mask's answer is
            then another for each image.
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
        self.lookings: dict[Any, StrategyProbe] = {}
        self.empty: dict[Any, Tensor] = {}
        self.weights: Weights | None = None

    def forget_if_changed(self) -> None:
        """The empty mask's answer is that of the weights it was found with."""
        weights = Weights.of(self.network)
        if self.weights is None or weights != self.weights:
            self.empty.clear()
        self.weights = weights

    @property
    def compiled(self) -> bool:
        """Calls are to be alike: few graphs serve all."""
        return getattr(self.network, "_compiled_call_impl", None) is not None

    def evaluate(
        self,
        x: Tensor,
        masks: Tensor | Iterable[Tensor],
        batch_size: int | str = "auto",
        precision: str | None = None,
        told: Callable[[int], Any] | None = None,
        compared: set[tuple[Any, ...]] | None = None,
    ) -> Evaluation:
        """See `MaskedModule.evaluate`; `compared` are sizes that need it no more, and grows."""
        run = _Run(self, x, batch_size, precision, told, set() if compared is None else compared)
        with torch.inference_mode():
            for chunk in _chunks(masks, x):
                run.add(chunk)
        return run.result()


@dataclass(frozen=True, slots=True)
class Weights:
    """Which tensors a network has, where they lie, and how often they were written to.

    Equal as long as nothing was assigned, loaded or changed in place; but torch does not count what
    is written through ``tensor.data``.
    """

    tensors: tuple[weakref.ref[Tensor], ...]
    written: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, network: Callable[..., Any]) -> Weights | None:
        """None where this cannot be known: tensors of inference mode do not count."""
        if not isinstance(network, nn.Module):
            return cls((), ())
        tensors = [*network.parameters(), *network.buffers()]
        if any(tensor.is_inference() for tensor in tensors):
            return None
        return cls(
            tuple(map(weakref.ref, tensors)), tuple((t.data_ptr(), t._version) for t in tensors)
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Weights)
            and self.written == other.written
            and all(a() is b() for a, b in zip(self.tensors, other.tensors, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]


class _Run:
    """One call of `evaluate`."""

    def __init__(
        self,
        engine: Engine,
        x: Tensor,
        batch_size: int | str,
        precision: str | None,
        told: Callable[[int], Any] | None,
        compared: set[tuple[Any, ...]],
    ) -> None:
        check_precision(precision, x.dtype)
        if x.dim() < 3:
            raise ImageError("the image is not a tensor (N, C, ...)", hint="see x[None]")
        self.engine, self.x, self.told = engine, x, told
        self.lower = None if precision is None else PRECISIONS[precision]
        kind = x.device.type
        outer = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        self.key = (str(x.device), x.dtype, tuple(x.shape[2:]), precision, outer)
        self.looking = engine.lookings.setdefault(self.key, StrategyProbe())
        self.size = self._batch_size(batch_size, "whole images and boxes")
        self.patch_size = self._batch_size(batch_size, "patches")
        self.rest_size = self._batch_size(batch_size, "after tiles")
        share = engine.strategies.tile
        self.tile_sizes = [
            self._batch_size(batch_size, f"tiles {i}", math.prod(share.counts))
            for i in range(len(share.stages))
        ]
        self.seen: dict[tuple[int, ...], int] = {}
        self.rows: list[int] = []
        self.found: list[Tensor] = []  # answers, in the order they came
        self.places: list[int] = []  # which of the different masks they belong to
        self.passes = self.batches = 0
        self.area = 0.0
        self.deviation: float | None = None
        self.compared = compared
        self.nothing_shared = False

    def _batch_size(self, asked: int | str, way: str, each: int = 1) -> BatchSize:
        """Found out from call to call, or so many masks, each of which may count several times."""
        if asked == "auto":
            return self.engine.sizes.setdefault((*self.key, way), _batch_size_on(self.x))
        if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
            raise PolicyError(
                f"batch_size must be a positive whole number or 'auto', not {asked!r}",
                hint="'auto' tries a few sizes and keeps the fastest",
            )
        return replace(_batch_size_on(self.x), most=asked * each, fixed=asked * each)

    # --------------------------------------------------------------------------- which masks

    def add(self, masks: Tensor) -> None:
        """Answer a chunk of masks (K, 1, *grid)."""
        if self.x.shape[0] not in (1, len(masks)) or (self.x.shape[0] > 1 and self.rows):
            raise MaskError(
                f"{len(masks)} masks for {self.x.shape[0]} images",
                hint=f"one image, or as many as masks (at most {CHUNK})",
            )
        fresh, owners = [], []
        for i, numbers in enumerate(mask_hashes(masks)):
            key = numbers if self.x.shape[0] == 1 else (i, *numbers)
            if key not in self.seen:
                self.seen[key] = len(self.seen)
                fresh.append(i)
                owners.append(self.seen[key])
            self.rows.append(self.seen[key])
        if not fresh:
            return
        x = self.x
        if len(fresh) < len(masks):
            masks, x = masks[fresh], x if x.shape[0] == 1 else x[fresh]
        kept = masks.view(torch.uint8).flatten(1).amax(1) > 0  # several times faster than any()
        asked, told = None, []  # owners of masks that keep nothing
        if not kept.all() and not self.engine.reads_hidden:
            # Where nothing is kept the network has the same answer for every image: asked once.
            places = (~kept).nonzero().flatten().tolist()
            self.engine.forget_if_changed()
            if self.key not in self.engine.empty:
                asked = owners[places[0]]
                kept[places.pop(0)] = True
            told = [owners[i] for i in places]
            left = kept.nonzero().flatten()
            masks, x = masks[left], x if x.shape[0] == 1 else x[left]
            owners = [owners[i] for i in left.tolist()]
        if len(masks):
            with self.looking.answering(len(masks)):
                self._by_way(x, masks, owners)
        if asked is not None:
            self.engine.empty[self.key] = self._answer(asked)
        if told:
            answer = self.engine.empty[self.key]
            self._keep(answer.expand(len(told), *answer.shape[1:]), told)

    def _answer(self, owner: int) -> Tensor:
        """What has just been found for a mask, (1, ...)."""
        place = self.places.index(owner)
        for answer in self.found:
            if place < len(answer):
                return answer[place : place + 1]
            place -= len(answer)
        raise AssertionError(f"mask {owner} has no answer yet")

    # ---------------------------------------------------------------------------- which way

    def _by_way(self, x: Tensor, masks: Tensor, owners: list[int]) -> None:
        region = self.engine.strategies.box
        if tuple(x.shape[2:]) != region.image_size or not self.looking.pays("boxes", len(masks)):
            self._whole(x, masks, owners, list(range(len(masks))))
            return
        strategies = self._ways(x, masks)
        if strategies is None:  # no memory for the activities of so many
            for some in torch.arange(len(masks)).tensor_split(2):
                own = [owners[i] for i in some.tolist()]
                self._by_way(x if x.shape[0] == 1 else x[some], masks[some], own)
            return
        boxed, patched, shared = strategies
        for size, members in patched.groups(self.patch_size).items():
            ask, share = patched.asks(size), patched.share(size)
            self._batches(members, owners, share, ask, ("patches", *size), self.patch_size)
        rest = sorted(set(range(len(masks))) - patched.members)
        if shared is not None:
            self.area += shared.done
            for size, members in shared.groups(self.rest_size).items():
                kind = ("shared", *boxed.in_tiles(size))
                share, ask = shared.share(size), shared.asks(size)
                self._batches(members, owners, share, ask, kind, self.rest_size)
            return
        for size, members in boxed.groups(rest, self.size).items():
            if size == boxed.whole:
                self._whole(x, masks, owners, members)
            else:
                kind = ("boxes", *boxed.in_tiles(size))
                share, ask = boxed.share(size), boxed.asks(size)
                self._batches(members, owners, share, ask, kind, self.size)

    def _ways(self, x: Tensor, masks: Tensor) -> tuple[Boxed, Patched, Shared | None] | None:
        """Which way each mask may go; None where there is no memory to look at so many."""
        try:
            return self._looked_at(x, masks)
        except (RuntimeError, MemoryError) as error:
            if len(masks) == 1 or not is_out_of_memory(error):
                raise
        # not before: what was raised holds the tensors that did fit
        _release(self.x)
        return None

    def _looked_at(self, x: Tensor, masks: Tensor) -> tuple[Boxed, Patched, Shared | None]:
        strategies, parts = self.engine.strategies, self.engine.parts
        with self.looking.at("boxes", len(masks)):
            boxed = Boxed(strategies.box, parts, x, masks)
            patched = Patched(strategies.patch, parts, x, masks, boxed.costs, self.size.call)
        shared = self._shared(boxed, patched)
        patched.prepare([] if shared is None else shared.members)
        return boxed, patched, shared

    def _shared(self, boxed: Boxed, patched: Patched) -> Shared | None:
        """The tiles that masks share, computed, if that is less work than boxes and patches.

        All of the masks; or else those that do not go on patches.
        """
        able = "tile_rest" in self.engine.parts and len(boxed.x) == len(self.x) == 1
        if not able or self.lower is not None or self.nothing_shared:
            return None
        every = list(range(len(boxed.sizes)))
        rest = [k for k in every if k not in patched.members]
        for members in (every, rest) if patched.members else (every,):
            if len(members) < ENOUGH or not self.looking.pays("tiles", len(members)):
                return None
            try:
                shared = self._if_worthwhile(boxed, patched.costs, members)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                shared = None
            if shared is not None:
                return shared
            _release(self.x)
        self.nothing_shared = True  # nor will there be in the masks that follow
        return None

    def _if_worthwhile(
        self, boxed: Boxed, otherwise: list[float], members: list[int]
    ) -> Shared | None:
        way, parts = self.engine.strategies.tile, self.engine.parts
        with self.looking.at("tiles", len(members)):
            if len(members) >= 2 * FEW:  # looking at all takes longer
                few = Shared(way, parts, boxed, otherwise, members[:FEW])
                if few.saves < few.cost / AT_MOST:
                    return None
            shared = Shared(way, parts, boxed, otherwise, members)
            if not self._worthwhile(shared):
                return None
        for i, (number, size) in enumerate(zip(shared.tiles.numbers, self.tile_sizes, strict=True)):
            every, kind = list(range(number)), (f"tiles {i}",)
            ask = shared.tiles.asks(i, self.x, parts[f"tile_stage_{i}"])
            for some, tiles in self._answers(every, OF_TILE, ask, kind, size, LARGE):
                shared.tiles.keep(i, some, tiles)
        return shared

    def _worthwhile(self, shared: Shared) -> bool:
        """It is less work, and there is memory for it."""
        numbers = zip(shared.tiles.numbers, self.tile_sizes, strict=True)
        calls = sum(-(-number // size.most_of(OF_TILE)) for number, size in numbers)
        # of a part of the network; what calls for boxes were timed to cost says little of it
        call = self.size.usual / (1 + len(self.tile_sizes))
        fits = shared.tiles.held * self.x.element_size() < _free(self.x) / 2
        return fits and shared.saves > shared.cost + calls * call

    def _whole(self, x: Tensor, masks: Tensor, owners: list[int], members: list[int]) -> None:
        def ask(chosen: list[int]) -> tuple[Any, ...]:
            return self.engine.network, rows_of(x, chosen), marked(masks[chosen])

        self._batches(members, owners, 1.0, ask, ("whole",), self.size)

    def _batches(
        self,
        members: list[int],
        owners: list[int],
        share: float,
        ask: Callable[[list[int]], tuple[Any, ...]],
        kind: tuple[Any, ...],
        batch: BatchSize,
    ) -> None:
        """Ask for these masks. Their kind is the way they go and their size in tiles."""
        for chosen, written in self._answers(members, share, ask, kind, batch):
            answer = written.clone()  # CUDA graphs write what they answer next over it
            if self.lower is not None and kind not in self.compared:
                self.compared.add(kind)
                ends = sorted({0, len(chosen) - 1})  # masks beside each other may be alike
                self._compare(ask, [chosen[i] for i in ends], answer[ends])
            self._keep(answer, [owners[i] for i in chosen])
            self.passes += len(chosen)
            self.area += share * len(chosen)
            if self.told is not None:
                self.told(len(chosen))

    def _answers(
        self,
        members: list[int],
        share: float,
        ask: Callable[[list[int]], tuple[Any, ...]],
        kind: tuple[Any, ...],
        batch: BatchSize,
        least: int = LEAST,
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Some of these, masks or tiles, and the answer to them, until all have been asked.

        Compiled code is never asked for fewer than ``least``: of tiles, which cost little, one
        version will do.
        """
        done = 0
        while left := len(members) - done:
            # as even as can be: no small rest
            chosen = members[done : done + -(-left // -(-left // batch.of(share, left)))]
            began = time.perf_counter()
            answer = self._tried(ask, chosen, least)
            if answer is None:
                batch.halve(share, len(chosen))
                continue
            seconds = time.perf_counter() - began
            version = kind[0], len(chosen) >= LARGE
            if version in batch.met:  # the first may have compiled
                batch.record(len(chosen) * share, seconds)
            batch.met.add(version)
            done, self.batches = done + len(chosen), self.batches + 1
            yield chosen, answer

    def _tried(
        self,
        ask: Callable[[list[int]], tuple[Any, ...]],
        chosen: list[int],
        least: int = LEAST,
        *,
        exact: bool = False,
    ) -> Tensor | None:
        """The answers to some masks or tiles; None where there is no memory for so many."""
        asked = chosen
        if self.engine.compiled and len(chosen) < least:
            asked = [chosen[i % len(chosen)] for i in range(least)]
        try:
            answer = self._ask(*ask(asked), exact=exact)
            return answer[: len(chosen)]
        except (RuntimeError, MemoryError) as error:
            if len(chosen) == 1 or not is_out_of_memory(error):
                raise
        # not before: what was raised holds the tensors that did fit
        _release(self.x)
        return None

    def _compare(
        self, ask: Callable[[list[int]], tuple[Any, ...]], chosen: list[int], answer: Tensor
    ) -> None:
        """How far these answers are from float32's, of which there may be memory for fewer."""
        some = len(chosen)
        while (exact := self._tried(ask, chosen[:some], exact=True)) is None:
            some //= 2
        worst = float((exact.double() - answer[:some].double()).abs().max())
        self.deviation = max(self.deviation or 0.0, worst)

    def _ask(
        self, network: Callable[..., Any], x: Tensor, *args: Tensor, exact: bool = False
    ) -> Tensor:
        lower = None if exact else self.lower
        precision: Any = contextlib.nullcontext()
        if self.lower is not None:
            precision = torch.autocast(x.device.type, lower, enabled=lower is not None)
        with precision:
            answer = network(x, *args)
        if not isinstance(answer, Tensor):
            raise ModelError(
                f"the network returns a {type(answer).__name__}, not one tensor",
                hint="wrap the model so that it returns its logits alone, and convert that",
            )
        if answer.is_cuda:
            torch.cuda.synchronize(answer.device)  # so that what is timed has been done
        return answer.float() if lower is not None else answer

    # ------------------------------------------------------------------------------ the answer

    def _keep(self, answer: Tensor, owners: list[int]) -> None:
        self.found.append(answer)
        self.places += owners

    def result(self) -> Evaluation:
        """All rows in order."""
        if not self.found:
            raise MaskError("no masks were given", hint="pass a tensor (K, 1, H, W) with K >= 1")
        order = torch.empty(len(self.places), dtype=torch.long)
        order[torch.tensor(self.places)] = torch.arange(len(self.places))
        logits = torch.cat(self.found)[order[torch.tensor(self.rows)].to(self.x.device)]
        area = self.area / self.passes if self.passes else 0.0
        return Evaluation(logits, self.passes, area, self.batches, self.deviation)


def _chunks(masks: Tensor | Iterable[Tensor], x: Tensor) -> Iterator[Tensor]:
    """Masks (1, *grid) or (*grid) -> some of them, (K, 1, *grid), on the image's device."""
    whole = (1, *x.shape[2:])
    if isinstance(masks, Tensor) and masks.dim() > 0:
        if not len(masks):
            return
        _check(masks[0], x)
        for chunk in torch.split(masks, CHUNK):
            yield chunk.reshape(-1, *whole).to(x.device)
        return
    stream = iter(masks)
    while some := [torch.as_tensor(mask) for mask in islice(stream, CHUNK)]:
        for mask in some:
            _check(mask, x)
        yield torch.stack([mask.reshape(whole) for mask in some]).to(x.device)


def _check(mask: Tensor, x: Tensor) -> None:
    """Refuses what is no mask for this image."""
    rank = x.dim() - 2
    expected = f"expected bool of shape (1, {', '.join(map(str, x.shape[2:]))}) each"
    if mask.dtype != torch.bool:
        raise MaskError(
            f"a mask has dtype {mask.dtype}; {expected}, True = kept", hint="pass `mask > 0.5`"
        )
    if tuple(mask.shape[-rank:]) != tuple(x.shape[2:]) or mask.numel() != x[0, 0].numel():
        raise MaskError(
            f"a mask has shape {tuple(mask.shape)}; {expected}",
            hint="masks are (K, 1, H, W) in all, of the image's size",
        )


def _batch_size_on(x: Tensor) -> BatchSize:
    """What is to be found out on the image's device, as far as half of its free memory allows."""
    each = VALUES * x[0, 0].numel() * x.element_size()
    most = max(1, min(CHUNK, _free(x) // 2 // max(each, 1)))
    return BatchSize.on_gpu(most) if x.is_cuda else BatchSize(most)


def _free(x: Tensor) -> int:
    """Bytes of memory on the image's device."""
    if x.is_cuda:
        return int(torch.cuda.mem_get_info(x.device)[0])
    return int(psutil.virtual_memory().available)


def check_precision(precision: str | None, own: torch.dtype = torch.float32) -> None:
    """Refuses what autocast does not do."""
    if precision is None:
        return
    if precision not in tuple(PRECISIONS):  # whatever was passed: it need not be hashable
        raise PolicyError(
            f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}",
            hint="pass its name as text, or leave it out for the network's own",
        )
    if own != torch.float32:
        raise PolicyError(
            f"precision lowers float32 to {precision}, and this image is {own}",
            hint="leave it out, or convert the network and the image by .float()",
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch had no memory for what it was asked.

    >>> try:
    ...     torch.empty(1 << 60)
    ... except RuntimeError as error:  # of no class of its own on a CPU
    ...     is_out_of_memory(error)
    True
    """
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "can't allocate memory" in str(error)


def _release(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.empty_cache()
