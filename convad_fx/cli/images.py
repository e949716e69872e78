"""Image files named on the command line, and classes named by `--target`."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from convad_fx import images
from convad_fx.cli.output import Failures
from convad_fx.errors import ImageError, PolicyError


def image_files(folder: Path) -> list[Path]:
    """The files in a folder that Pillow may read, by their ending, sorted by name."""
    endings = set(Image.registered_extensions())
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in endings and p.is_file())


def expand_folders(paths: Sequence[Path]) -> list[Path]:
    """The image files named, and those in the folders named; each once.

    Raises:
        ImageError: a folder without images.
    """
    found: list[Path] = []
    for path in paths:
        inside = image_files(path) if path.is_dir() else [path]
        if not inside:
            raise ImageError(f"there are no pictures in {path}", hint="name another folder")
        found += inside
    return list(dict.fromkeys(found))


def readable(paths: Iterable[Path], failures: Failures) -> Iterator[tuple[Path, Image.Image]]:
    """The images that can be read, one after the other; the others are added to `failures`."""
    for path in paths:
        try:
            picture = images.open_image(path)
        except ImageError as error:
            failures.add(path, error)
            continue
        yield path, picture


def class_index(target: str | None, labels: Sequence[str]) -> int | None:
    """A class by its number or by its name, in upper or lower case.

    >>> class_index("Dog", ["cat", "dog"])
    1

    Raises:
        PolicyError: no class has the name, or more than one.
    """
    if target is None:
        return None
    if target.isdecimal():
        return int(target)
    if not labels:
        raise PolicyError(
            f"the classes have no names, so none is called {target!r}",
            hint="pass a number as `--target`, or names with `--labels`",
        )
    lower = [label.lower() for label in labels]
    found = [index for index, label in enumerate(lower) if label == target.lower()]
    if len(found) == 1:
        return found[0]
    if found:
        raise PolicyError(
            f"{len(found)} classes are called {target!r}",
            hint=f"pass one of the numbers {', '.join(map(str, found))} as `--target`",
        )
    close = difflib.get_close_matches(target.lower(), lower, n=3)
    raise PolicyError(
        f"no class is called {target!r}",
        hint=f"did you mean {' or '.join(close)}?" if close else "pass its number",
    )
