"""Rows on disk, where a kill at any moment neither loses nor doubles one.

A folder holds, for each process (*rank*) that ever wrote to it,

* `rank-00000.jsonl`, the journal: each row is appended and flushed to the disk as it is made. A
  line that a kill cut short is dropped when the folder is opened again;
* `part-00000.0007.parquet`, what became of a journal that grew long;
* `part-00000.parquet`, all rows of the rank, written at the end.

Parquet files are written under another name and renamed, and what they are made of is deleted
after that. A kill in between leaves rows in two files; whoever opens the folder sees each once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from convad_fx.errors import ArtifactError, ConvadError, PolicyError, Unavailable, first_line
from convad_fx.many.provenance import Provenance
from convad_fx.many.rows import arrow, schema, table

if TYPE_CHECKING:
    import pyarrow

_T = TypeVar("_T")

_JOURNAL = re.compile(r"rank-(\d{5})\.jsonl")
_PART = re.compile(r"part-(\d{5})(?:\.(\d{4,}))?\.parquet")

#: Rows of a journal before they become a part.
LONG = 1000


class Store:
    """The rows that one process writes to a folder, and the pictures that need no more asking.

    >>> import tempfile
    >>> with Store(Path(tempfile.mkdtemp()), Provenance({"seed": 0})) as store:
    ...     store.done
    {}

    Args:
        folder: made if need be.
        run: what the rows depend on; rows of another run are refused.
        resume: go on where an earlier run stopped; without it, rows in the folder are an error.
        rank: the number of this process, from 0.
        world: how many processes there are.
        mine: which keys this process writes: the others may be on the disk already, though
            `resume` is False, because another process of the same run was faster.
        long: rows of a journal before they become a part.

    Raises:
        PolicyError: there are rows already, and `resume` is False; or they are of another run.
        Unavailable: the folder cannot be written, another process writes the same rank, or pyarrow
            is not installed.
        ArtifactError: a part is damaged.
    """

    def __init__(
        self,
        folder: Path,
        run: Provenance,
        *,
        resume: bool = False,
        rank: int = 0,
        world: int = 1,
        mine: Callable[[str], bool] = lambda _: True,
        long: int = LONG,
    ) -> None:
        arrow()  # before the work, not after it
        self.folder, self.run, self.rank, self.world, self.long = folder, run, rank, world, long
        self._locks = contextlib.ExitStack()
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock()
            #: Bytes of each picture's file, by key, of pictures that have a row.
            self.done = self._known(resume, mine)
            self._recover()
            with _writing(folder):
                self._journal: IO[bytes] = self._locks.enter_context(self._path.open("ab"))
        except BaseException:
            self._locks.close()
            raise
        self._length = 0

    @property
    def _path(self) -> Path:
        return self.folder / f"rank-{self.rank:05d}.jsonl"

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        with _writing(self.folder):  # what is left of a journal goes to the disk, if there is room
            self._locks.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a row for good: on return it is on the disk.

        A row of a picture that has one already is dropped: whoever delivers twice does no harm.
        """
        self.append(json.dumps(row, ensure_ascii=True))

    def append(self, line: str) -> None:
        """`add`, of a row as JSON text."""
        row = json.loads(line)
        if row["key"] in self.done:
            return
        with _writing(self.folder):
            self._journal.write(line.encode("ascii") + b"\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
        self.done[row["key"]] = row["sha256"]
        self._length += 1
        if self._length >= self.long:
            self._cut()

    def finish(self) -> int:
        """Make one part of all rows of this rank; returns how many rows the whole folder holds."""
        own = [path for path in _files(self.folder) if _rank(path) % self.world == self.rank]
        final = self.folder / f"part-{self.rank:05d}.parquet"
        if own == [final, self._path] and not self._path.stat().st_size:
            self._journal.close()
            self._path.unlink()
        else:
            self._merge(own, final)
        return len(self.done)

    def failures(self, failed: Mapping[str, str]) -> Path | None:
        """List the pictures without a row, and why, in `not-explained-00000.json`."""
        path = self.folder / f"not-explained-{self.rank:05d}.json"
        with _writing(self.folder):
            # those of ranks whose pictures are this one's now
            for old in self.folder.glob("not-explained-*.json"):
                number = old.stem.rpartition("-")[2]
                if number.isdigit() and int(number) % self.world == self.rank:
                    old.unlink(missing_ok=True)
            if not failed:
                return None
            aside = path.with_name(f".{path.name}.tmp")
            aside.write_text(json.dumps(dict(failed), indent=1) + "\n", encoding="utf-8")
            aside.replace(path)
        return path

    def _cut(self) -> None:
        """The journal becomes the next part."""
        matches = (_PART.fullmatch(path.name) for path in _files(self.folder))
        taken = [int(m[2]) for m in matches if m and m[2] and int(m[1]) == self.rank]
        number = max(taken, default=0) + 1
        self._merge([self._path], self.folder / f"part-{self.rank:05d}.{number:04d}.parquet")
        with _writing(self.folder):
            self._journal = self._locks.enter_context(self._path.open("ab"))
        self._length = 0

    def _merge(self, files: list[Path], into: Path) -> None:
        """The rows of `files`, each once, as the Parquet file `into`; then `files` are deleted."""
        pa = arrow()
        aside = into.with_name(f".{into.name}.tmp")
        with _writing(self.folder):
            self._journal.close()
            seen: set[str] = set()
            with pa.parquet.ParquetWriter(aside, schema(), compression="zstd") as writer:
                for batch in _tables(files):
                    fresh = _unseen(batch, seen)
                    if fresh.num_rows:
                        writer.write_table(fresh)
            with aside.open("rb+") as file:
                os.fsync(file.fileno())
            aside.replace(into)
            for path in files:
                if path != into:
                    path.unlink(missing_ok=True)

    def _known(self, resume: bool, mine: Callable[[str], bool]) -> dict[str, str]:
        """What the folder holds, of all ranks; other processes may be merging meanwhile."""

        def folded() -> tuple[dict[str, str], dict[str, str]]:
            known: dict[str, str] = {}
            runs: dict[str, str] = {}
            for key, digest, run, text in _identities(self.folder):
                known[key] = digest
                runs.setdefault(run, text)
            return known, runs

        known, runs = _settled(folded)
        if not resume and any(map(mine, known)):
            raise PolicyError(
                f"{self.folder} holds {len(known)} rows already",
                hint="pass `--resume` to go on with them, or another `--out`",
            )
        for run, text in runs.items():
            if run != self.run.digest:
                differ = self.run.differences(json.loads(text))
                raise PolicyError(
                    f"{self.folder} holds rows of another run: {'; '.join(differ)}",
                    hint="pass another `--out`, or the options and versions of that run",
                )
        return known

    def _recover(self) -> None:
        """Cut off what a kill left of a line, and delete what it left of a file."""
        with _writing(self.folder):
            for path in self.folder.glob(".part-*.tmp"):
                if int(path.name[6:11]) % self.world == self.rank:
                    path.unlink(missing_ok=True)
            for path in _files(self.folder):
                if _JOURNAL.fullmatch(path.name) and _rank(path) % self.world == self.rank:
                    content = path.read_bytes()
                    whole = content.rfind(b"\n") + 1
                    if whole < len(content):
                        os.truncate(path, whole)

    def _lock(self) -> None:
        """Nobody else may write as this rank, nor as one whose files this rank takes over."""
        try:
            import fcntl
        except ImportError:  # Windows: two runs into one folder are the user's to avoid
            return
        ranks = {_rank(path) for path in _files(self.folder)} | {self.rank}
        for rank in sorted(r for r in ranks if r % self.world == self.rank):
            with _writing(self.folder):
                path = self.folder / f".rank-{rank:05d}.lock"
                file = self._locks.enter_context(path.open("ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Unavailable(
                    f"another run is writing to {self.folder}",
                    hint="wait for it, or pass another `--out`",
                ) from error


def read(folder: Path | str) -> pyarrow.Table:
    """All rows in a folder, of all ranks, each once, by key: of a run that was killed, too.

    >>> import tempfile
    >>> read(tempfile.mkdtemp()).num_rows
    0

    Raises:
        ArtifactError: a part is damaged.
        Unavailable: pyarrow is not installed.
    """
    pa = arrow()

    def tables() -> list[pyarrow.Table]:
        seen: set[str] = set()
        return [_unseen(batch, seen) for batch in _tables(_files(Path(folder)))]

    found = _settled(tables)
    return pa.concat_tables([schema().empty_table(), *found]).sort_by("key")


def _files(folder: Path) -> list[Path]:
    """Parts and journals, by name."""
    names = sorted(folder.iterdir()) if folder.is_dir() else []
    return [p for p in names if _PART.fullmatch(p.name) or _JOURNAL.fullmatch(p.name)]


def _rank(path: Path) -> int:
    match = _PART.fullmatch(path.name) or _JOURNAL.fullmatch(path.name)
    assert match is not None, "only such files are listed"
    return int(match[1])


def _settled(reading: Callable[[], _T]) -> _T:
    """Read again where a file went away meanwhile: its rows are in another, put there before."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            return reading()


def _tables(files: list[Path], columns: list[str] | None = None) -> Iterator[pyarrow.Table]:
    """The rows of files, in bounded pieces."""
    pa = arrow()
    for path in files:
        if _JOURNAL.fullmatch(path.name):
            yield from _journalled(path, columns)
            continue
        try:
            with pa.parquet.ParquetFile(path) as part:
                for batch in part.iter_batches(LONG, columns=columns):
                    yield pa.Table.from_batches([batch])
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise ArtifactError(
                f"{path} is damaged ({first_line(error)})",
                hint="delete it, and its rows are made again",
            ) from error


def _journalled(path: Path, columns: list[str] | None) -> Iterator[pyarrow.Table]:
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:  # cut short by a kill: as if it had not been written
                continue
            rows.append(row)
            if len(rows) == LONG:
                yield _selected(rows, columns)
                rows = []
    if rows:
        yield _selected(rows, columns)


def _selected(rows: list[dict[str, Any]], columns: list[str] | None) -> pyarrow.Table:
    made = table(rows)
    return made if columns is None else made.select(columns)


def _identities(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    names = ["key", "sha256", "run", "provenance"]
    for piece in _tables(_files(folder), names):
        yield from zip(*(piece[name].to_pylist() for name in names), strict=True)


def _unseen(piece: pyarrow.Table, seen: set[str]) -> pyarrow.Table:
    fresh = []
    for key in piece["key"].to_pylist():
        fresh.append(key not in seen)
        seen.add(key)
    return piece if all(fresh) else piece.filter(fresh)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except ConvadError:
        raise
    except OSError as error:
        raise Unavailable(
            f"cannot write to {folder} ({error.strerror})", hint="pass another `--out`"
        ) from error
