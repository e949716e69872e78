"""Where pictures come from: folders, tar files (WebDataset), single files; one after the other."""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from PIL import Image

from convad_fx.errors import ImageError

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True, slots=True)
class Item:
    """One picture, not yet read.

    Args:
        key: its name, the same on every machine: the source's own name, then the way to the picture
            inside it, with slashes.
        where: the file it is in, for people.
        read: gives the file's bytes. Of a tar file only until the next item is asked for.
    """

    key: str
    where: str
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Source:
    """A folder, a tar file or a picture, and the name its keys begin with.

    >>> Source.of("photos/day-1.tar").name
    'day-1.tar'
    """

    path: Path
    name: str

    @classmethod
    def of(cls, path: str | Path) -> Source:
        """`path` under its own name; "." under that of the working folder."""
        return cls(Path(path), Path(path).name or Path(path).resolve().name)

    def files(self) -> Iterator[Source]:
        """The pictures and tar files in a folder and its folders, by name; a file: itself."""
        if not self.path.is_dir():
            yield self
            return
        for path in sorted(self.path.rglob("*")):
            if (is_tar(path) or is_picture(path.name)) and path.is_file():
                yield Source(path, f"{self.name}/{path.relative_to(self.path).as_posix()}")

    def items(self) -> Iterator[Item]:
        """The pictures in a file: itself, or those in the tar."""
        if is_tar(self.path):
            yield from _members(self)
        else:
            yield Item(self.name, str(self.path), lambda: _bytes(self.path))


def sources(paths: Sequence[str | Path]) -> list[Source]:
    """Each path as a source; their names must differ, or keys would meet.

    Raises:
        ImageError: two have the same name, or one is missing.
    """
    found: dict[str, Source] = {}
    for path in paths:
        source = Source.of(path)
        if not source.path.exists():
            raise ImageError(f"{path}: no such file or folder", hint="check the path")
        if source.name in found:
            raise ImageError(
                f"{found[source.name].path} and {path} are both called {source.name}",
                hint="rename one, or name the folder that holds both",
            )
        found[source.name] = source
    return list(found.values())


def stream(paths: Sequence[str | Path]) -> Iterator[Item]:
    """The pictures of all sources, in an order that depends on names alone.

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp(), "photos")
    >>> folder.mkdir()
    >>> Image.new("RGB", (4, 4)).save(folder / "a.png")
    >>> [item.key for item in stream([folder])]
    ['photos/a.png']

    Nothing is held but the current picture, so sources may be of any size. Files that are no
    pictures by their ending are passed over.

    Raises:
        ImageError: a path is missing, two have the same name, or there is no picture in any.
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
    """Whether a file is a tar by its ending.

    >>> is_tar(Path("shard-000.tar")), is_tar(Path("cat.jpg"))
    (True, False)
    """
    return path.name.lower().endswith(_TARS)


def is_picture(name: str) -> bool:
    """Whether Pillow reads files of this ending.

    >>> is_picture("a/cat.JPG"), is_picture("cat.cls")
    (True, False)
    """
    return PurePosixPath(name).suffix.lower() in Image.registered_extensions()


def _members(source: Source) -> Iterator[Item]:
    """The pictures in a tar, front to back; where it is damaged, one item that cannot be read."""
    seen: dict[str, int] = {}
    try:
        with tarfile.open(source.path, "r|*") as tar:
            for member in tar:
                if not (member.isfile() and is_picture(member.name)):
                    continue
                key = f"{source.name}/{member.name.removeprefix('./')}"
                seen[key] = seen.get(key, 0) + 1
                if seen[key] > 1:  # a tar may hold a name twice: both are pictures
                    key += f"#{seen[key]}"

                where = f"{source.path}: {member.name}"
                read = functools.partial(_member, tar, member, where)
                yield Item(key, where, read)
    except (tarfile.TarError, OSError, EOFError) as error:
        message = f"{source.path} is damaged or cut short, or no tar file ({error})"

        def fail() -> NoReturn:
            raise ImageError(message, hint="what came before it was read; fetch it again")

        yield Item(f"{source.name}/", str(source.path), fail)


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes:
    try:
        file = tar.extractfile(member)
        assert file is not None, "only plain files are asked for"
        return file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ImageError(f"{where} is cut short ({error})", hint="fetch it again") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(
            f"{path} cannot be read ({error.strerror})", hint="check the path"
        ) from error
