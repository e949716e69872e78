"""Rows on disk, such that a kill at any moment neither loses nor duplicates a row.

For each process (*rank*), a folder holds `rank-00000.jsonl`, the journal;
`part-00000.0007.parquet`, a journal that reached its maximum length; and `part-00000.parquet`, all
rows, written at the end. A kill may leave an incomplete last line or the same rows in two files,
which every reader drops.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from convad_fx.errors import ArtifactError, PolicyError, Unavailable, first_line, writing_to
from convad_fx.many.provenance import Provenance
from convad_fx.many.rows import arrow, schema, table

if TYPE_CHECKING:
    import pyarrow

_T = TypeVar("_T")

_FILE = re.compile(r"rank-\d{5}\.jsonl|part-\d{5}(\.\d{4,})?\.parquet")

#: Rows of a journal before it becomes a part.
ROWS_PER_PART = 1000


class Store:
    """The rows that one process writes to a folder, and the pictures that already have a row.

    >>> import tempfile
    >>> with Store(Path(tempfile.mkdtemp()), Provenance({"seed": 0})) as store:
    ...     store.stored
    {}

    Args:
        folder: created if it does not exist.
        run: what the rows depend on; rows of another run are refused.
        resume: continue an earlier run; without it, existing rows are an error.
        rank: the number of this process, from 0.
        world: the number of processes.
        owns: whether this process writes the row of a key: other rows may exist although `resume`
            is False, because another process of the same run was faster.
        rows_per_part: rows of a journal before it becomes a part.

    Attributes:
        stored: key -> SHA-256 of the picture's file, of all pictures that have a row.

    Raises:
        PolicyError: the folder has rows and `resume` is False, or rows of another run.
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
        owns: Callable[[str], bool] = lambda _: True,
        rows_per_part: int = ROWS_PER_PART,
    ) -> None:
        arrow()  # raises now rather than after the first row
        self.folder, self.run, self.rank, self.world = folder, run, rank, world
        self._rows_per_part = rows_per_part
        self._journal_rows = 0
        self._path = folder / f"rank-{rank:05d}.jsonl"
        self._resources = contextlib.ExitStack()
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock()
            self.stored = self._read_stored(resume, owns)
            self._recover()
            self._open_journal()
        except BaseException:
            self._resources.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        with writing_to(self.folder):  # closing flushes the journal, for which disk may run out
            self._resources.close()

    def add(self, row: Mapping[str, Any]) -> bool:
        """Write a row to disk; False: the picture has one already, and this one is dropped."""
        if row["key"] in self.stored:
            return False
        with writing_to(self.folder):
            self._journal.write(json.dumps(row, ensure_ascii=True).encode("ascii") + b"\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
        self.stored[row["key"]] = row["sha256"]
        self._journal_rows += 1
        if self._journal_rows >= self._rows_per_part:
            self._rotate_journal()
        return True

    def finish(self) -> int:
        """Merge all files of this rank into one part; returns the number of rows in the folder."""
        own = self._own_files()
        final = self.folder / f"part-{self.rank:05d}.parquet"
        if own == [final, self._path] and not self._path.stat().st_size:
            self._journal.close()
            self._path.unlink()
        else:
            self._merge(own, final)
        return len(self.stored)

    def write_failures(self, failed: Mapping[str, str]) -> Path | None:
        """Write key -> error message to `not-explained-00000.json`; no failures, no file."""
        path = self.folder / f"not-explained-{self.rank:05d}.json"
        with writing_to(self.folder):
            # including files of ranks that existed only in a run with more processes
            for old in self.folder.glob("not-explained-*.json"):
                number = old.stem.rpartition("-")[2]
                if number.isdigit() and int(number) % self.world == self.rank:
                    old.unlink(missing_ok=True)
            if not failed:
                return None
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_text(json.dumps(dict(failed), indent=1) + "\n", encoding="utf-8")
            temporary.replace(path)
        return path

    def _own_files(self) -> list[Path]:
        """Files of this rank, and of ranks that existed only in a run with more processes."""
        return [path for path in _files(self.folder) if _rank(path) % self.world == self.rank]

    def _open_journal(self) -> None:
        with writing_to(self.folder):
            self._journal: IO[bytes] = self._resources.enter_context(self._path.open("ab"))
        self._journal_rows = 0

    def _rotate_journal(self) -> None:
        """The journal becomes the next numbered part, and a new one begins."""
        parts = self.folder.glob(f"part-{self.rank:05d}.*.parquet")
        number = 1 + max((int(path.name.split(".")[1]) for path in parts), default=0)
        self._merge([self._path], self.folder / f"part-{self.rank:05d}.{number:04d}.parquet")
        self._open_journal()

    def _merge(self, files: list[Path], target: Path) -> None:
        """Write the distinct rows of `files` to the Parquet file `target`, then delete `files`."""
        pa = arrow()
        temporary = target.with_name(f".{target.name}.tmp")
        with writing_to(self.folder):
            self._journal.close()
            seen: set[str] = set()
            with pa.parquet.ParquetWriter(temporary, schema(), compression="zstd") as writer:
                for batch in _read_files(files):
                    fresh = _drop_seen(batch, seen)
                    if fresh.num_rows:
                        writer.write_table(fresh)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
            for path in files:
                if path != target:
                    path.unlink(missing_ok=True)

    def _read_stored(self, resume: bool, owns: Callable[[str], bool]) -> dict[str, str]:
        """Key -> digest of the rows of all ranks; checks that they are rows of this run."""

        def scan() -> tuple[dict[str, str], dict[str, str]]:
            stored: dict[str, str] = {}
            runs: dict[str, str] = {}
            columns = ["key", "sha256", "run", "provenance"]
            for batch in _read_files(_files(self.folder), columns):
                values = (batch[name].to_pylist() for name in columns)
                for key, digest, run, provenance in zip(*values, strict=True):
                    stored[key] = digest
                    runs.setdefault(run, provenance)
            return stored, runs

        stored, runs = _retry_while_merging(scan)
        if not resume and any(map(owns, stored)):
            raise PolicyError(
                f"{self.folder} holds {len(stored)} rows already",
                hint="pass `--resume` to continue with them, or another `--out`",
            )
        for run, provenance in runs.items():
            if run != self.run.digest:
                differences = "; ".join(self.run.differences(json.loads(provenance)))
                raise PolicyError(
                    f"{self.folder} holds rows of another run: {differences}",
                    hint="pass another `--out`, or the options and versions of that run",
                )
        return stored

    def _recover(self) -> None:
        """Delete temporary files and the incomplete last line that a kill may have left."""
        with writing_to(self.folder):
            for path in self.folder.glob(".part-*.tmp"):
                if _rank(path.with_name(path.name[1:])) % self.world == self.rank:
                    path.unlink(missing_ok=True)
            for path in self._own_files():
                if path.suffix == ".jsonl":
                    content = path.read_bytes()
                    complete = content.rfind(b"\n") + 1
                    if complete < len(content):
                        os.truncate(path, complete)

    def _lock(self) -> None:
        """Lock this rank, and the ranks of all other files that this process takes over."""
        try:
            import fcntl
        except ImportError:  # Windows: concurrent runs in one folder are not detected
            return
        for rank in sorted({self.rank, *map(_rank, self._own_files())}):
            with writing_to(self.folder):
                path = self.folder / f".rank-{rank:05d}.lock"
                file = self._resources.enter_context(path.open("ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Unavailable(
                    f"another run is writing to {self.folder}",
                    hint="wait for it, or pass another `--out`",
                ) from error


def read(folder: Path | str) -> pyarrow.Table:
    """All distinct rows in a folder, of all ranks, sorted by key; also of an unfinished run.

    >>> import tempfile
    >>> read(tempfile.mkdtemp()).num_rows
    0

    Raises:
        ArtifactError: a part is damaged.
        Unavailable: pyarrow is not installed.
    """
    pa = arrow()

    def scan() -> list[pyarrow.Table]:
        seen: set[str] = set()
        return [_drop_seen(batch, seen) for batch in _read_files(_files(Path(folder)))]

    batches = _retry_while_merging(scan)
    return pa.concat_tables([schema().empty_table(), *batches]).sort_by("key")


def _files(folder: Path) -> list[Path]:
    """Parts and journals, by name."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if _FILE.fullmatch(path.name)]


def _rank(path: Path) -> int:
    """The rank in the name of a part or journal: five digits after "part-" or "rank-"."""
    return int(path.name[5:10])


def _retry_while_merging(scan: Callable[[], _T]) -> _T:
    """Repeat a scan if a file was deleted meanwhile: another process has merged its rows."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            return scan()


def _read_files(files: list[Path], columns: list[str] | None = None) -> Iterator[pyarrow.Table]:
    """The rows of parts and journals, in tables of bounded size."""
    pa = arrow()
    for path in files:
        if path.suffix == ".jsonl":
            rows = table(_read_journal(path))
            yield rows.select(columns) if columns else rows
            continue
        try:
            with pa.parquet.ParquetFile(path) as part:
                for batch in part.iter_batches(ROWS_PER_PART, columns=columns):
                    yield pa.Table.from_batches([batch])
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise ArtifactError(
                f"{path} is damaged ({first_line(error)})",
                hint="delete it, and its rows are made again",
            ) from error


def _read_journal(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):  # an incomplete line does not count as a row
            rows.append(json.loads(line))
    return rows


def _drop_seen(batch: pyarrow.Table, seen: set[str]) -> pyarrow.Table:
    """The rows whose key is not in `seen`; adds their keys to it."""
    fresh = []
    for key in batch["key"].to_pylist():
        fresh.append(key not in seen)
        seen.add(key)
    return batch if all(fresh) else batch.filter(fresh)
