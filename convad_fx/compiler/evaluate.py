"""Many masks through one masked network, in bounded batches, each with as little work as it allows.

The way of a mask: met before? nothing kept? else on the box of what it keeps, from the activities
of every level, or on the patches that what it hides can change, whichever is less; boxes of one
size form a batch. Those on boxes share tiles of the first layers, if that is less again. What a
network allows was decided on the graph (`region`, `reuse`, `share`).
"""

from __future__ import annotations

import contextlib
import math
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convad_fx.compiler.batches import LARGE, LEAST, BatchSize, marked
from convad_fx.compiler.region import Level, Region
from convad_fx.compiler.tiles import Tiles
from convad_fx.compiler.ways import Ways
from convad_fx.compiler.work import Sizes
from convad_fx.errors import ImageError, MaskError, ModelError, PolicyError

#: Masks looked at together: enough to fill batches of every size of box, few enough for memory.
CHUNK = 512
#: Sizes of box among which groups are sought: pairs of them are compared.
GROUPS = 64
#: What boxes of these sizes cost, as shares of an image, (K,).
Shares = Callable[[Sizes], NDArray[np.float64]]
#: Further than any cell.
FAR = 1 << 40
#: Arithmetic on patches costs so much more than on whole grids, for what is copied.
COPYING = 1.2
#: Work on tiles costs so much more than on boxes.
SHARING = 1.2
#: Masks that are looked at first, to see whether masks share anything.
FEW = 64
#: Many masks share so many times as much as a few, at most.
AT_MOST = 2
#: A call is to take as many tiles as boxes of this share of an image.
OF_TILE = 1 / 8
#: Less than any share of an image that takes time.
LITTLE = 1e-3
#: Masks of each size of box whose answers in lower precision are held against float32's.
COMPARED = 2
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
        batches: how many calls of the network it took.
        deviation: largest difference of logits from float32, where compared: on the first two
            masks of each size of box; None where nothing was.
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
        ways: Ways,
        parts: Mapping[str, Callable[..., Any]],
        *,
        reads_hidden: bool,
    ) -> None:
        self.network, self.ways, self.parts = network, ways, parts
        self.reads_hidden = reads_hidden
        self.sizes: dict[Any, BatchSize] = {}
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
        self.size = self._batch_size(batch_size, "whole images and boxes")
        self.patch_size = self._batch_size(batch_size, "patches")
        self.rest_size = self._batch_size(batch_size, "after tiles")
        share = engine.ways.share
        self.tile_sizes = [
            self._batch_size(batch_size, f"tiles {i}", math.prod(share.counts))
            for i in range(len(share.stages))
        ]
        self.seen: dict[bytes, int] = {}
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
        packed = np.packbits(masks.flatten(1).cpu().numpy(), axis=1)
        for i, bits in enumerate(packed):
            own = i.to_bytes(8, "little") if self.x.shape[0] > 1 else b""
            key = blake2b(own + bits.tobytes(), digest_size=16).digest()
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
        region = self.engine.ways.region
        if tuple(x.shape[2:]) != region.canvas:
            self._whole(x, masks, owners, list(range(len(masks))))
            return
        ways = self._ways(x, masks)
        if ways is None:  # no memory for the activities of so many
            for some in torch.arange(len(masks)).tensor_split(2):
                own = [owners[i] for i in some.tolist()]
                self._by_way(x if x.shape[0] == 1 else x[some], masks[some], own)
            return
        boxed, patched, shared = ways
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
            boxed = Boxed(self.engine, x, masks)
            patched = Patched(self.engine, x, masks, boxed.costs, self.size.call)
            rest = sorted(set(range(len(masks))) - patched.members)
            return boxed, patched, self._shared(boxed, rest)
        except (RuntimeError, MemoryError) as error:
            if len(masks) == 1 or not is_out_of_memory(error):
                raise
        _release(self.x)
        return None

    def _shared(self, boxed: Boxed, members: list[int]) -> Shared | None:
        """The tiles that these masks share, computed, if that is less work than their boxes."""
        able = "rest" in self.engine.parts and boxed.x.shape[0] == 1 and self.lower is None
        if not (able and members) or self.nothing_shared:
            return None
        if len(members) >= 2 * FEW:  # looking at all takes longer
            few = Shared(self.engine, boxed, members[:FEW])
            self.nothing_shared = few.saves < few.cost / AT_MOST
        if not self.nothing_shared:
            shared = Shared(self.engine, boxed, members)
            self.nothing_shared = not self._worthwhile(shared) or not self._computed(shared)
        if self.nothing_shared:  # nor will there be in the masks that follow
            _release(self.x)
            return None
        return shared

    def _worthwhile(self, shared: Shared) -> bool:
        """It is less work, and there is memory for it."""
        numbers = zip(shared.tiles.numbers, self.tile_sizes, strict=True)
        calls = sum(-(-number // size.of(OF_TILE, number)) for number, size in numbers)
        call = self.size.call / (1 + len(self.tile_sizes))  # of a part of the network
        fits = shared.tiles.held * self.x.element_size() < _free(self.x) / 2
        return fits and shared.saves > shared.cost + calls * call

    def _computed(self, shared: Shared) -> bool:
        """Whether there was memory for all tiles."""
        try:
            for i, (number, size) in enumerate(
                zip(shared.tiles.numbers, self.tile_sizes, strict=True)
            ):
                ask = shared.tiles.asks(i, self.x, self.engine.parts[f"tiles_{i}"])
                every = list(range(number))
                for some, tiles in self._answers(every, OF_TILE, ask, (f"tiles {i}",), size):
                    shared.tiles.keep(i, some, tiles)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _whole(self, x: Tensor, masks: Tensor, owners: list[int], members: list[int]) -> None:
        def ask(chosen: list[int]) -> tuple[Any, ...]:
            return self.engine.network, _rows(x, chosen), marked(masks[chosen])

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
        for chosen, answer in self._answers(members, share, ask, kind, batch):
            if self.lower is not None and kind not in self.compared:
                self.compared.add(kind)
                self._compare(ask, chosen[:COMPARED], answer[:COMPARED])
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
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Some of these, masks or tiles, and the answer to them, until all have been asked."""
        done = 0
        while left := len(members) - done:
            # as even as can be: no small rest
            chosen = members[done : done + -(-left // -(-left // batch.of(share, left)))]
            began = time.perf_counter()
            answer = self._tried(ask, chosen)
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
        self, ask: Callable[[list[int]], tuple[Any, ...]], chosen: list[int], *, exact: bool = False
    ) -> Tensor | None:
        """The answers to some masks; None where there is no memory for so many."""
        # see LEAST
        doubled = self.engine.compiled and len(chosen) == 1
        try:
            answer = self._ask(*ask(chosen * LEAST if doubled else chosen), exact=exact)
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
        self.found.append(answer.clone())  # CUDA graphs write what they answer next over it
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


class Boxed:
    """Masks on the boxes that hold their active cells."""

    def __init__(self, engine: Engine, x: Tensor, masks: Tensor) -> None:
        self.engine, self.x, self.masks = engine, x, masks
        self.region = engine.ways.region
        self.ok = "boxed" in engine.parts
        self.activities: tuple[Tensor, ...] = ()
        if self.ok:
            self.activities = engine.parts["boxed_activities"](x[:1], masks)
        self.whole = self.region.canvas
        self.first, self.sizes = torch.zeros(len(masks), 0), [self.whole] * len(masks)
        if self.ok:
            self.whole = extent(self.region, self.activities)
            self.first, self.sizes = boxes(self.region, self.activities, self.whole)

    def share(self, size: tuple[int, ...]) -> float:
        """Of the whole image's arithmetic."""
        return self.region.work.share(size)

    def in_tiles(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """How many tiles a box has, the last perhaps in part."""
        return tuple(-(-n // tile) for n, tile in zip(size, self.region.tile, strict=True))

    @property
    def costs(self) -> list[float]:
        """What each mask would cost, in images."""
        found: list[float] = self.region.work.shares(np.array(self.sizes)).tolist()
        return found

    def groups(self, members: list[int], batch: BatchSize) -> dict[tuple[int, ...], list[int]]:
        """Size of box -> the masks that run on it."""
        shares = self.region.work.shares
        return grouped(members, self.sizes, shares, batch.call, self.region.grain)

    def asks(self, size: tuple[int, ...]) -> Callable[[list[int]], tuple[Any, ...]]:
        """What to call for some masks, and with what."""

        def ask(chosen: list[int]) -> tuple[Any, ...]:
            cells = _cells(self.first[chosen], size, self.region, self.x.device)
            cut = [a if len(a) == 1 else marked(a[chosen]) for a in self.activities]
            return self.engine.parts["boxed"], _rows(self.x, chosen), *cells, *cut

        return ask


class Patched:
    """Those masks of one image that hide so little that recomputing what changes costs less.

    Args:
        otherwise: what each mask would cost, in images.
        call: what a call costs, in images.
    """

    def __init__(
        self, engine: Engine, x: Tensor, masks: Tensor, otherwise: list[float], call: float
    ) -> None:
        self.engine, self.x, self.masks = engine, x, masks
        self.reuse = engine.ways.reuse
        self.members: set[int] = set()
        self.sizes: list[tuple[int, ...]] = []  # of the hidden boxes, where patches are possible
        self.kept: tuple[Tensor, ...] = ()
        if "patched" not in engine.parts or x.shape[0] > 1:
            return
        tile = torch.tensor(self.reuse.tile)
        tiles = -(-torch.tensor(self.reuse.canvas) // tile)
        hidden = Level(tuple(range(2, x.dim())), (1,) * (x.dim() - 2), ((0, 0),) * (x.dim() - 2))
        low, high = torch.zeros(2, len(masks), x.dim() - 2, dtype=torch.long)
        for i, first, end in _spans(~masks, hidden):
            low[:, i], high[:, i] = first, end
        low = torch.minimum(low // tile, tiles - 1)  # nothing hidden: any tile
        size = torch.minimum((-(-high // tile) - low).clamp(min=LEAST), tiles)
        self.tiles, self.tile, self.start = tiles, tile, low
        self.sizes = [tuple(row) for row in (size * tile).tolist()]
        costs = self.reuse.work.shares(np.array(self.sizes)).tolist()
        gains = {k: o - COPYING * c for k, (o, c) in enumerate(zip(otherwise, costs, strict=True))}
        better = {k: gain for k, gain in gains.items() if gain > 0}
        # without a mask the network has to run once more; a call of its own for each
        if sum(better.values()) > 1 + 2 * call:
            self.members = set(better)
            self.kept = engine.parts["unmasked"](x, None)
            self.activities = engine.parts["patched_activities"](x, masks)

    def share(self, size: tuple[int, ...]) -> float:
        """Of the whole image's arithmetic."""
        return self.reuse.work.share(size)

    def groups(self, batch: BatchSize) -> dict[tuple[int, ...], list[int]]:
        """Size of hidden box -> the masks that run on its patches."""
        members = sorted(self.members)
        return grouped(members, self.sizes, self.reuse.work.shares, batch.call, self.reuse.tile)

    def asks(self, size: tuple[int, ...]) -> Callable[[list[int]], tuple[Any, ...]]:
        """What to call for some masks, and with what."""
        most = self.tiles - torch.tensor(size) // self.tile
        first = torch.minimum(self.start, most) * self.tile

        def ask(chosen: list[int]) -> tuple[Any, ...]:
            places = _places(first[chosen], size, self.reuse.tile, self.x.device)
            cut = [a if len(a) == 1 else marked(a[chosen]) for a in self.activities]
            return self.engine.parts["patched"], self.x, *places, *cut, *self.kept

        return ask


class Shared:
    """Masks on boxes of a tensor amid the network, put together from tiles that they share."""

    def __init__(self, engine: Engine, boxed: Boxed, members: list[int]) -> None:
        self.engine, self.boxed, self.members = engine, boxed, members
        self.way = engine.ways.share
        self.first = boxed.first[members]
        end = self.first + torch.tensor([boxed.sizes[k] for k in members])
        self.tiles = Tiles(self.way, boxed.activities, members, self.first, end)
        self.place = {k: i for i, k in enumerate(members)}

    @property
    def saves(self) -> float:
        """What their boxes would cost more than what follows the tiles, in images."""
        sizes = np.array([self.boxed.sizes[k] for k in self.members])
        work = self.boxed.region.work.shares(sizes) - self.way.work.shares(sizes)
        return float(work.sum())

    @property
    def cost(self) -> float:
        """What all tiles cost, in images."""
        return SHARING * self.tiles.cost / self.way.work.total

    @property
    def done(self) -> float:
        """What all tiles multiply, in images."""
        return self.tiles.work / self.way.work.total

    def share(self, size: tuple[int, ...]) -> float:
        """Of the whole image's arithmetic, after the tiles; never nothing, so that it is timed."""
        return max(self.way.work.share(size), LITTLE)

    def groups(self, batch: BatchSize) -> dict[tuple[int, ...], list[int]]:
        """Size of box -> the masks that run on it."""
        shares, grain = self.way.work.shares, self.boxed.region.grain
        return grouped(self.members, self.boxed.sizes, shares, batch.call, grain)

    def asks(self, size: tuple[int, ...]) -> Callable[[list[int]], tuple[Any, ...]]:
        """What to call for some masks, and with what."""
        boxed = self.boxed

        def ask(chosen: list[int]) -> tuple[Any, ...]:
            first = boxed.first[chosen]
            cells = _cells(first, size, boxed.region, boxed.x.device)
            cut = [a if len(a) == 1 else marked(a[chosen]) for a in boxed.activities]
            owner = torch.tensor([self.place[k] for k in chosen])
            box = marked(self.tiles.boxes(owner, first, size))
            return self.engine.parts["rest"], box, *cells, *cut

        return ask


def _cells(
    first: Tensor, size: tuple[int, ...], region: Region, device: torch.device
) -> list[Tensor]:
    """For each grid axis and stride the cells of boxes that start at these positions, (N, n)."""
    found = []
    for axis, stride in region.cells:
        steps = torch.arange(-(-size[axis] // stride))
        found.append(marked((first[:, axis, None] // stride + steps).to(device), axes=2))
    return found


def _places(
    first: Tensor, size: tuple[int, ...], tile: tuple[int, ...], device: torch.device
) -> list[Tensor]:
    """For each grid axis the image positions of hidden boxes, (N, tiles, size of a tile)."""
    found = []
    for axis, (n, t) in enumerate(zip(size, tile, strict=True)):
        steps = torch.arange(n).reshape(n // t, t)
        found.append(marked((first[:, axis, None, None] + steps).to(device), axes=2))
    return found


def extent(region: Region, activities: tuple[Tensor, ...]) -> tuple[int, ...]:
    """The smallest box that holds every level's whole grid: some convolutions make it larger."""
    most = list(region.canvas)
    for activity, level in zip(activities, region.levels, strict=True):
        if level is not None:
            for i, axis in enumerate(level.axes):
                cells = activity.shape[axis] - sum(level.extra[i])
                most[i] = max(most[i], (cells - 1) * level.strides[i] + 1)
    return tuple(-(-n // g) * g for n, g in zip(most, region.grain, strict=True))


def boxes(
    region: Region, activities: tuple[Tensor, ...], whole: tuple[int, ...]
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """The smallest box for each mask that holds its active cells on every level.

    Returns:
        Where they start (K, axes) and their sizes, in image positions. A box may end beyond the
        image; it is never larger than ``whole``.
    """
    masks = max(len(activity) for activity in activities)
    tile, grain, most = (torch.tensor(each) for each in (region.tile, region.grain, whole))
    first, end = (most - 1).repeat(masks, 1), torch.zeros(masks, len(whole), dtype=torch.long)
    for activity, level in zip(activities, region.levels, strict=True):
        if level is None:
            continue
        for axis, low, high in _spans(activity, level):
            stride = level.strides[axis]
            first[:, axis] = torch.minimum(first[:, axis], low * stride)
            # the last cell's first position: a box that ends there has that cell
            end[:, axis] = torch.maximum(end[:, axis], (high - 1) * stride + 1)
    first = first // tile * tile
    least = (LEAST - 1) * tile + 1  # so many cells at the coarsest level
    size = -(-torch.maximum(torch.minimum(end, most) - first, least) // grain) * grain
    return first, [tuple(row) for row in torch.minimum(size, most).tolist()]


def _spans(activity: Tensor, level: Level) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each grid axis: the first active cell and the one after the last, (K,) each.

    Cells that padding has added are active but zero, as is everything around a box: left out. Where
    nothing is active, the span starts at the end and ends at the start.
    """
    for axis, (before, after) in zip(level.axes, level.extra, strict=True):
        if activity.shape[axis] > 1:
            activity = activity.narrow(axis, before, activity.shape[axis] - before - after)
    for i, axis in enumerate(level.axes):
        n = activity.shape[axis]
        others = tuple(other for other in range(1, activity.dim()) if other != axis)
        if activity.device.type == "cpu":  # numpy's is several times faster there
            lines = torch.from_numpy(activity.numpy().any(others))
        else:
            lines = activity.view(torch.uint8).amax(others).cpu() > 0
        if n == 1:  # activity is not known along this axis: it may be anywhere
            yield i, torch.zeros(len(lines), dtype=torch.long), torch.full((len(lines),), FAR)
            continue
        some = lines.any(1)
        low = lines.int().argmax(1)
        high = n - lines.flip(1).int().argmax(1)
        yield i, torch.where(some, low, FAR), torch.where(some, high, 0)


def grouped(
    members: list[int],
    sizes: list[tuple[int, ...]],
    shares: Shares,
    call: float,
    unit: tuple[int, ...],
) -> dict[tuple[int, ...], list[int]]:
    """Size of box -> those of these masks that run on it, of which `sizes` has the boxes of all.

    Sizes are multiples of ``unit``, and remain so.
    """
    found = merged(rounded([sizes[k] for k in members], GROUPS, unit), shares, call)
    return {size: [members[i] for i in chosen] for size, chosen in found.items()}


def merged(
    sizes: list[tuple[int, ...]], shares: Shares, call: float
) -> dict[tuple[int, ...], list[int]]:
    """Size of box -> the masks that run on it. Small groups go on larger boxes, if that is cheaper.

    A mask costs its box's share of an image, and a call ``call`` images, whatever its size.

    >>> merged([(2, 2), (9, 10), (10, 10)], lambda sizes: sizes.prod(1) / 100, call=0.2)
    {(2, 2): [0], (10, 10): [1, 2]}
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, size in enumerate(sizes):
        groups[size].append(i)
    if len(groups) < 2:
        return dict(groups)
    members, box = list(groups.values()), np.array(list(groups))
    count, share = np.array([len(some) for some in members]), shares(box)
    largest = box.max(0, keepdims=True)
    if count @ (shares(largest) - share) <= call:  # no second call could save as much
        return {tuple(largest[0].tolist()): list(range(len(sizes)))}
    first, second = np.triu_indices(len(box), 1)
    more = np.full((len(box), len(box)), np.inf)  # what a box that holds both costs more
    both = shares(np.maximum(box[first], box[second]))
    more[first, second] = count[first] * (both - share[first])
    more[first, second] += count[second] * (both - share[second])
    more = np.minimum(more, more.T)
    alive = np.ones(len(box), bool)
    while True:
        a, b = divmod(int(more.argmin()), len(box))
        if more[a, b] >= call:
            break
        box[a], members[a] = np.maximum(box[a], box[b]), members[a] + members[b]
        share[a], count[a], alive[b] = shares(box[a : a + 1])[0], count[a] + count[b], False
        both = shares(np.maximum(box[a], box))
        row = count[a] * (both - share[a]) + count * (both - share)
        more[a] = more[:, a] = np.where(alive & (np.arange(len(box)) != a), row, np.inf)
        more[b] = more[:, b] = np.inf
    found: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for a in np.flatnonzero(alive).tolist():
        found[tuple(box[a].tolist())] += members[a]
    return {size: sorted(some) for size, some in found.items()}


def rounded(
    sizes: list[tuple[int, ...]], most: int, unit: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """At most so many sizes: of more, sides are rounded up, but never past the largest.

    >>> rounded([(1, 3), (2, 3), (3, 3), (5, 3)], most=3, unit=(1, 3))
    [(2, 3), (2, 3), (4, 3), (5, 3)]
    """
    step = 1
    largest = tuple(map(max, *sizes)) if len(sizes) > 1 else sizes[0] if sizes else ()
    found = sizes
    while len(set(found)) > most:
        step *= 2
        found = [
            tuple(
                min(-(-n // (step * u)) * step * u, m)
                for n, m, u in zip(size, largest, unit, strict=True)
            )
            for size in sizes
        ]
    return found


def _rows(x: Tensor, chosen: list[int]) -> Tensor:
    return x if x.shape[0] == 1 else marked(x[chosen])


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
