"""A run over many pictures, in one process or in several that share the work."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convad_fx.errors import ImageError, PolicyError
from convad_fx.many.explainer import Explainer
from convad_fx.many.sources import Item, stream
from convad_fx.many.store import Store


@dataclass(frozen=True, slots=True)
class Shard:
    """The share of the pictures that one of several processes explains.

    >>> halves = Shard(0, 2), Shard(1, 2)
    >>> [half.has("cat.jpg") for half in halves]
    [True, False]

    Args:
        rank: number of this process, from 0.
        world: number of processes.
        local: rank among the processes of this machine, which selects the GPU.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Shard:
        """Read RANK, WORLD_SIZE and LOCAL_RANK as `torchrun` sets them; by default rank 0 of 1.

        >>> Shard.from_environment({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"})
        Shard(rank=1, world=2, local=1)

        Raises:
            PolicyError: not integers, or RANK is not below WORLD_SIZE.
        """
        defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        values = {name: environment.get(name, default) for name, default in defaults.items()}
        try:
            rank, world, local = map(int, values.values())
        except ValueError:
            rank, world, local = -1, 0, 0
        if not 0 <= rank < world:
            shown = ", ".join(f"{name}={value}" for name, value in values.items())
            raise PolicyError(
                f"{shown} do not fit together", hint="start with torchrun, or unset them"
            )
        return cls(rank, world, local)

    def has(self, key: str) -> bool:
        """Whether the picture `key` is in this shard, by the hash of its name."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.world == self.rank


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for one picture: a row, or the reason why there is none."""

    key: str
    row: Mapping[str, Any] | None
    error: str = ""


@dataclass(slots=True)
class Summary:
    """The result of a run, as far as this process took part in it.

    Args:
        explained: number of rows made in this run.
        skipped: number of pictures that already had a row.
        failed: key -> error message, of pictures without a row.
        rows: number of rows in the folder at the end, as far as this process knows.
        seconds: load, search, write, draw, and all for the whole run.
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
    on_outcome: Callable[[Outcome], None] = lambda _: None,
) -> Summary:
    """Make a row of every picture in `paths` that has none in `out` yet.

    >>> import tempfile
    >>> from PIL import Image
    >>> from convad_fx.demo import scenes
    >>> from convad_fx.explain import Search
    >>> from convad_fx.many import ClassifierSpec, ExplainOptions
    >>> photos = Path(tempfile.mkdtemp(), "photos")
    >>> photos.mkdir()
    >>> Image.fromarray(scenes.held_out(1)[0].image).save(photos / "1.png")
    >>> options = ExplainOptions(search=Search(partitions=1))
    >>> explainer = Explainer(ClassifierSpec("demo").load(), options)
    >>> explain_many(explainer, [photos], photos.parent / "out").rows
    1

    Args:
        explainer: the network, and how each picture is explained.
        paths: folders, tar files and pictures; see `sources`.
        out: the folder of rows; see `store`.
        resume: continue with the rows that are in `out`.
        shard: the share of the pictures that this process explains.
        on_outcome: called after each picture that was explained or failed.

    Raises:
        ImageError: there are no pictures.
        PolicyError: `out` has rows of another run, or any rows without `resume`.
        Unavailable: `out` cannot be written.
    """
    start = time.perf_counter()
    items = stream(paths)
    first = next(items)  # raises before anything is written
    store = Store(
        Path(out),
        explainer.provenance,
        resume=resume,
        rank=shard.rank,
        world=shard.world,
        owns=shard.has,
    )
    with store:
        recorder = Recorder(store, start, shard, on_outcome)
        for item in recorder.pending(itertools.chain([first], items)):
            try:
                row = explainer(item)
            # Unreadable, or not classified as `target`: the next picture may succeed.
            except (ImageError, PolicyError) as error:
                recorder.fail(item.key, failure(error, item))
                continue
            recorder.add(row, explainer.seconds_draw)
        return recorder.finish()


class Recorder:
    """Stores the rows of a run, with its counts, timings and callbacks.

    `start` is `time.perf_counter()` at the start of the run.
    """

    def __init__(
        self, store: Store, start: float, shard: Shard, on_outcome: Callable[[Outcome], None]
    ) -> None:
        self._store, self._start, self._shard, self._on_outcome = store, start, shard, on_outcome
        self._summary = Summary(
            seconds=dict.fromkeys(("load", "search", "write", "draw", "all"), 0.0)
        )

    def pending(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items of this shard without a row; the others are counted, changed files fail.

        Files of pictures with a row are read again, which is fast compared to explaining them.
        """
        for item in items:
            if not self._shard.has(item.key):
                continue
            shown = item.key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            if shown != item.key:
                self.fail(shown, f"{shown} is not UTF-8, as tables require; rename it")
            elif item.key not in self._store.stored:
                yield item
            elif _digest(item) not in (None, self._store.stored[item.key]):
                message = f"{item.where} has changed since it was explained"
                self.fail(item.key, f"{message}; rename it, or pass another `--out`")
            else:
                self._summary.skipped += 1

    def add(self, row: Mapping[str, Any], seconds_draw: float) -> None:
        """Store a row; a second row of the same picture is dropped."""
        seconds = self._summary.seconds
        start = time.perf_counter()
        if not self._store.add(row):
            return
        seconds["write"] += time.perf_counter() - start
        seconds["load"] += row["seconds_load"]
        seconds["search"] += row["seconds_search"]
        seconds["draw"] += seconds_draw
        self._summary.explained += 1
        self._on_outcome(Outcome(row["key"], row))

    def fail(self, key: str, error: str) -> None:
        """Record that a picture has no row, and why."""
        self._summary.failed[key] = error
        self._on_outcome(Outcome(key, None, error))

    def finish(self) -> Summary:
        """Write the list of failures and the final part."""
        start = time.perf_counter()
        self._store.write_failures(self._summary.failed)
        self._summary.rows = self._store.finish()
        end = time.perf_counter()
        self._summary.seconds["write"] += end - start
        self._summary.seconds["all"] = end - self._start
        return self._summary


def _digest(item: Item) -> str | None:
    """SHA-256 of the picture's file; None if it is no longer readable, which keeps its row."""
    try:
        return hashlib.sha256(item.read()).hexdigest()
    except ImageError:
        return None


def failure(error: Exception, item: Item) -> str:
    """The error message of a picture; always contains its name."""
    return str(error) if item.where in str(error) else f"{item.where}: {error}"
