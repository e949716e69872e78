"""The errors this package raises: what is wrong, where, and what to do next.

All are `ConvadError`, and each is also the builtin that a caller would expect:

>>> try:
...     raise MaskError("the mask is float32", hint="pass `mask > 0.5`")
... except ValueError as error:
...     print(error)
the mask is float32; pass `mask > 0.5`
"""

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path


class ConvadError(Exception):
    """Base class of all errors of this package.

    Args:
        what: what is wrong: what was expected, and what was given.
        hint: what to do next.
        path: the dotted path of the operation in the model, if the error is about one.
    """

    def __init__(self, what: str, *, hint: str = "", path: str = "") -> None:
        self.what, self.hint, self.path = what, hint, path
        where = f"{path}: " if path else ""
        super().__init__(where + what + (f"; {hint}" if hint else ""))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.hint, self.path)


def _rebuild(kind: type[ConvadError], what: str, hint: str, path: str) -> ConvadError:
    return kind(what, hint=hint, path=path)


def first_line(error: BaseException, *, with_type: bool = False) -> str:
    r"""The first line of an error's message; the name of its type where the message is empty.

    >>> first_line(ValueError("no such size\n... 40 lines of context"))
    'no such size'
    >>> first_line(ValueError("no such size"), with_type=True)
    'ValueError: no such size'
    """
    kind, lines = type(error).__name__, str(error).strip().splitlines()
    if not lines:
        return kind
    return f"{kind}: {lines[0].strip()}" if with_type else lines[0].strip()


def last_line(text: str) -> str:
    r"""The last line of a text: of a printed traceback, the error and its message.

    >>> last_line("Traceback (most recent call last):\n...\nValueError: no such size\n")
    'ValueError: no such size'
    """
    return text.strip().rpartition("\n")[2]


class ModelError(ConvadError, ValueError):
    """The model cannot be used as it is: not a module, in training mode, several inputs ..."""


class UntraceableModel(ConvadError, RuntimeError):
    """The model's forward cannot be captured as a graph."""


class UnsupportedModel(ConvadError, NotImplementedError):
    """Assumption 1 is not shown to hold; the message lists every finding."""


class MaskError(ConvadError, ValueError):
    """A mask of the wrong rank, size, dtype or device."""


class ArtifactError(ConvadError, ValueError):
    """A file is not an artifact, is damaged or too new; or a network cannot be saved as one."""


class UntrustedArtifact(ArtifactError, PermissionError):
    """A file contains machine code, and was not loaded as trusted."""


class ImageError(ConvadError, ValueError):
    """An image of the wrong shape, dtype or device, or a file that cannot be read as an image."""


class PolicyError(ConvadError, ValueError):
    """A policy or an option is out of its range."""


class Unavailable(ConvadError, RuntimeError):
    """Something outside this package is missing: weights, a package, a device, a connection."""


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn system errors into `Unavailable`, which names `path` and `--out`."""
    try:
        yield
    except ConvadError:  # some are system errors as well
        raise
    except OSError as error:
        raise Unavailable(
            f"cannot write to {path} ({error.strerror})", hint="pass another `--out`"
        ) from error


_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def kind_of_special(path: Path) -> str:
    """What is at a path if it is not a regular file; "" for a file, and where nothing is.

    >>> kind_of_special(Path("/"))
    'a directory'

    Nothing is opened: opening a named pipe waits for its other end.

    Raises:
        OSError: the system does not say, as of links that form a loop.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return ""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "not a regular file")


def require_regular_place(path: Path, error: type[ConvadError]) -> None:
    """Raise `error` unless a file may be written at a path: nothing is there, or a regular file."""
    try:
        special = kind_of_special(path)
    except OSError as cause:
        raise error(
            f"{path} cannot be written ({cause.strerror or cause})", hint="pass another path"
        ) from cause
    if special:
        raise error(
            f"{path} is {special}, which a file would replace", hint="pass the path of a file"
        )
