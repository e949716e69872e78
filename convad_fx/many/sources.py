"""Stream pictures from folders, tar files (WebDataset) and single files."""

from __future__ import annotations

import functools
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from PIL import Image

from convad_fx.errors import ImageError

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True, slots=True)
class Item:
    """One picture that has not been read yet.

    Args:
        key: its name, the same on every machine: the source's name, then the path inside the
            source, with slashes.
        where: the path of its file, for messages.
        read: returns the file's bytes. In a tar file, valid only until the next item is requested.
    """

    key: str
    where: str
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Source:
    """A folder, a tar file or a picture, and the prefix of its keys.

    >>> Source.of("photos/day-1.tar").name
    'day-1.tar'
    """

    path: Path
    name: str

    @classmethod
    def of(cls, path: str | Path) -> Source:
        """A source named like the last part of `path`; "." is named like the working folder."""
        return cls(Path(path), Path(path).name or Path(path).resolve().name)

    def files(self) -> Iterator[Source]:
        """The pictures and tar files below a folder, sorted by name; of a file: itself."""
        if not self.path.is_dir():
            yield self
            return
        for path in sorted(self.path.rglob("*")):
            if (is_tar(path) or is_picture(path.name)) and path.is_file():
                yield Source(path, f"{self.name}/{path.relative_to(self.path).as_posix()}")

    def items(self) -> Iterator[Item]:
        """The pictures in a tar file; of another file: itself."""
        if is_tar(self.path):
            yield from _members(self)
        else:
            yield Item(self.name, str(self.path), lambda: _read_file(self.path))


def sources(paths: Sequence[str | Path]) -> list[Source]:
    """Each path as a source; their names must differ, so that keys are unique.

    Raises:
        ImageError: two sources have the same name, or one does not exist.
    """
    by_name: dict[str, Source] = {}
    for path in paths:
        source = Source.of(path)
        if not source.path.exists():
            raise ImageError(f"{path}: no such file or folder", hint="check the path")
        if source.name in by_name:
            raise ImageError(
                f"{by_name[source.name].path} and {path} are both called {source.name}",
                hint="rename one, or name the folder that holds both",
            )
        by_name[source.name] = source
    return list(by_name.values())


def stream(paths: Sequence[str | Path]) -> Iterator[Item]:
    """The pictures of all sources, in an order that depends on their names alone.

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp(), "photos")
    >>> folder.mkdir()
    >>> Image.new("RGB", (4, 4)).save(folder / "a.png")
    >>> [item.key for item in stream([folder])]
    ['photos/a.png']

    Only the current picture is in memory. Files without the suffix of an image format are skipped.

    Raises:
        ImageError: a path does not exist, two have the same name, or there are no pictures.
    """
    empty = True
    for source in sources(paths):
        for file in source.files():
            for item in file.items():
                empty = False
                yield item
    if empty:
        listed = ", ".join(str(path) for path in paths)
        raise ImageError(f"there are no pictures in {listed}", hint="name another folder")


def is_tar(path: Path) -> bool:
    """Whether a file has the suffix of a tar file.

    >>> is_tar(Path("shard-000.tar")), is_tar(Path("cat.jpg"))
    (True, False)
    """
    return path.name.lower().endswith(_TARS)


def is_picture(name: str) -> bool:
    """Whether Pillow reads files with this suffix.

    >>> is_picture("a/cat.JPG"), is_picture("cat.cls")
    (True, False)
    """
    return PurePosixPath(name).suffix.lower() in Image.registered_extensions()


def _members(source: Source) -> Iterator[Item]:
    """The pictures in a tar file in order; a damaged file ends with an item that fails to read."""
    seen: Counter[str] = Counter()
    try:
        with tarfile.open(source.path, "r|*") as tar:
            for member in tar:
                if not (member.isfile() and is_picture(member.name)):
                    continue
                key = f"{source.name}/{member.name.removeprefix('./')}"
                seen[key] += 1
                if seen[key] > 1:  # a tar file may contain a name twice: both are pictures
                    key += f"#{seen[key]}"
                where = f"{source.path}: {member.name}"
                yield Item(key, where, functools.partial(_read_member, tar, member, where))
    except (tarfile.TarError, OSError, EOFError) as error:
        message = f"{source.path} is damaged, truncated or not a tar file ({error})"

        def fail() -> NoReturn:
            raise ImageError(message, hint="the pictures before it were read; download it again")

        yield Item(f"{source.name}/", str(source.path), fail)


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes:
    try:
        file = tar.extractfile(member)
        assert file is not None, "only plain files are read"
        return file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ImageError(f"{where} is truncated ({error})", hint="download it again") from error


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(
            f"{path} cannot be read ({error.strerror})", hint="check the path"
        ) from error
