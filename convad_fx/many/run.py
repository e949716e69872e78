"""A run over many pictures: in one process, or as one of several that share the work."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convad_fx.errors import ImageError, PolicyError
from convad_fx.many.question import Explainer
from convad_fx.many.sources import Item, stream
from convad_fx.many.store import Store


@dataclass(frozen=True, slots=True)
class Shard:
    """Which of several processes this is.

    >>> halves = Shard(0, 2), Shard(1, 2)
    >>> [half.has("cat.jpg") for half in halves]
    [True, False]

    Args:
        rank: from 0.
        world: how many there are.
        local: the rank among those of this machine, for choosing a GPU.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Shard:
        """As `torchrun` says in RANK, WORLD_SIZE and LOCAL_RANK; without them, the only one.

        >>> Shard.from_environment({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"})
        Shard(rank=1, world=2, local=1)

        Raises:
            PolicyError: they are no numbers, or do not fit together.
        """
        text = [environment.get(name, default) for name, default in _VARIABLES]
        try:
            rank, world, local = map(int, text)
        except ValueError:
            rank, world, local = -1, 0, 0
        if not 0 <= rank < world:
            raise PolicyError(
                "RANK={}, WORLD_SIZE={}, LOCAL_RANK={} make no sense together".format(*text),
                hint="start with torchrun, or unset them",
            )
        return cls(rank, world, local)

    def has(self, key: str) -> bool:
        """Whether the picture `key` is this process's: by its name's hash, the same everywhere."""
        number = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8]
        return int.from_bytes(number, "big") % self.world == self.rank


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one picture: a row, or why there is none."""

    key: str
    row: Mapping[str, Any] | None
    error: str = ""


@dataclass(slots=True)
class Summary:
    """What became of all, as far as this process had to do with it.

    Args:
        explained: rows made now.
        skipped: pictures that had one already.
        failed: why the others have none, by key.
        rows: in the folder, in the end, as far as this process knows.
        seconds: load, search, draw and write, and the whole.
    """

    explained: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "explained_now": self.explained,
            "explained_before": self.skipped,
            "rows": self.rows,
            "failed": [{"image": key, "error": why} for key, why in self.failed.items()],
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


def explain_many(
    explainer: Explainer,
    paths: Sequence[str | Path],
    out: Path | str,
    *,
    resume: bool = False,
    shard: Shard = Shard(),
    notify: Callable[[Outcome], None] = lambda _: None,
) -> Summary:
    """Make a row of every picture in `paths` that has none in `out` yet.

    >>> import tempfile
    >>> from PIL import Image
    >>> from convad_fx.demo import scenes
    >>> from convad_fx.explain import Search
    >>> from convad_fx.many import Question, Recipe
    >>> photos = Path(tempfile.mkdtemp(), "photos")
    >>> photos.mkdir()
    >>> Image.fromarray(scenes.held_out(1)[0].image).save(photos / "1.png")
    >>> explainer = Explainer(Recipe("demo").classifier(), Question(search=Search(partitions=1)))
    >>> explain_many(explainer, [photos], photos.parent / "out").rows
    1

    Args:
        explainer: what is asked, of which network.
        paths: folders, tar files and pictures; see `sources`.
        out: the folder of rows; see `store`.
        resume: go on with the rows that are there.
        shard: which of the pictures are this process's.
        notify: called with each picture's outcome, of those not skipped.

    Raises:
        ImageError: there are no pictures.
        PolicyError: rows of another run, or rows without `resume`.
        Unavailable: `out` cannot be written.
    """
    began = time.perf_counter()
    found = Summary()
    times = dict.fromkeys(("load", "search", "write"), 0.0)
    items = stream(paths)
    first = next(items)  # no pictures: before anything is written
    with Store(
        Path(out),
        explainer.provenance,
        resume=resume,
        rank=shard.rank,
        world=shard.world,
        mine=shard.has,
    ) as store:
        for item in pending(_chained(first, items), store.done, found, shard, notify):
            try:
                row = explainer(item)
            # A picture that cannot be read, or whose answer is not the target: the next may do.
            except (ImageError, PolicyError) as error:
                _failed(found, item.key, failure(error, item), notify)
                continue
            writing = time.perf_counter()
            store.add(row)
            times["write"] += time.perf_counter() - writing
            times["load"] += row["seconds_load"]
            times["search"] += row["seconds_search"]
            found.explained += 1
            notify(Outcome(item.key, row))
        writing = time.perf_counter()
        store.failures(found.failed)
        found.rows = store.finish()
        times["write"] += time.perf_counter() - writing
    found.seconds = {**times, "draw": explainer.drawing, "all": time.perf_counter() - began}
    return found


def pending(
    items: Iterator[Item],
    done: Mapping[str, str],
    found: Summary,
    shard: Shard,
    notify: Callable[[Outcome], None],
) -> Iterator[Item]:
    """The items of this shard without a row; counts the others, and lists those that changed.

    Those with a row are read again: that is little beside explaining them.
    """
    for item in items:
        if not shard.has(item.key):
            continue
        shown = item.key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if shown != item.key:
            _failed(found, shown, f"{shown} is no name in UTF-8, as tables want; rename it", notify)
        elif item.key not in done:
            yield item
        elif _digest(item) not in (None, done[item.key]):
            message = f"{item.where} is another picture than the one explained before"
            _failed(found, item.key, f"{message}; rename it, or pass another `--out`", notify)
        else:
            found.skipped += 1


def _digest(item: Item) -> str | None:
    """None where it can no longer be read; its row stands."""
    try:
        return hashlib.sha256(item.read()).hexdigest()
    except ImageError:
        return None


def _failed(found: Summary, key: str, why: str, notify: Callable[[Outcome], None]) -> None:
    found.failed[key] = why
    notify(Outcome(key, None, why))


def failure(error: Exception, item: Item) -> str:
    """Why a picture has no row; always with its name."""
    return str(error) if item.where in str(error) else f"{item.where}: {error}"


def _chained(first: Item, rest: Iterator[Item]) -> Iterator[Item]:
    yield first
    yield from rest
