"""What commands print and write: JSON, names of files, failures and the exit code."""

import itertools
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import typer

from convad_fx.cli.command import FAILED, FOUND
from convad_fx.errors import ConvadError, writing_to
from convad_fx.models import Classifier


class Failures:
    """Images without a result, and why. They do not stop the others, but set the exit code."""

    def __init__(self) -> None:
        self._errors: list[tuple[Path, ConvadError]] = []

    def add(self, path: Path, error: ConvadError) -> None:
        """Remember why there is no result for the image."""
        self._errors.append((path, error))

    @property
    def messages(self) -> list[str]:
        """One line per failure."""
        return [str(error) for _, error in self._errors]

    def to_list(self) -> list[dict[str, str]]:
        """For JSON."""
        return [{"image": str(path), "error": str(error)} for path, error in self._errors]

    def exit(self, verb: str, succeeded: object) -> None:
        """Print the failures to stderr and end the command, if there are any.

        Args:
            verb: what was not done to the images, as in "not explained".
            succeeded: truthy if there is a result for any other image.
        """
        exit_with_failures(self.messages, verb, succeeded)


def exit_with_failures(messages: Sequence[str], verb: str, succeeded: object) -> None:
    """As `Failures.exit`, for messages that were collected elsewhere."""
    for message in messages:
        typer.echo(f"convad-fx: not {verb}: {message}", err=True)
    if messages:
        raise typer.Exit(FOUND if succeeded else FAILED)


def results_json(
    classifier: Classifier, device: torch.device, failures: Failures, **results: Any
) -> dict[str, Any]:
    """Results as JSON values, with the network, the device and the failures."""
    return {
        "model": classifier.name,
        "weights": classifier.weights,
        "device": str(device),
        **results,
        "failed": failures.to_list(),
    }


def print_json(content: object) -> None:
    """Indented JSON on stdout."""
    typer.echo(json.dumps(content, indent=1, ensure_ascii=False))


def show_progress(option: bool | None) -> bool:
    """Whether to show a progress bar: by default in a terminal only."""
    return sys.stderr.isatty() if option is None else option


def make_folder(path: Path) -> Path:
    """Create a folder, before the work that fills it; returns `path`."""
    with writing_to(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def file_stems(paths: Sequence[Path], folder: Path, explanations: int = 1) -> list[str]:
    """A file name without ending for each image, unique even for `a/1.png`, `b/1.png`, `b/1.jpg`.

    Images that lie in the output folder themselves are not overwritten.
    """
    stems: list[str] = []
    here = folder.resolve()
    taken = {path.stem for path in paths if path.parent.resolve() == here}
    for path in paths:
        plain = re.sub(r"[\\/\0]", "_", path.stem) or "picture"
        names = (plain if n == 1 else f"{plain}-{n}" for n in itertools.count(1))
        for name in names:
            files = {numbered_stem(name, number) for number in range(explanations)}
            if not files & taken:
                break
        stems.append(name)
        taken |= files
    return stems


def numbered_stem(stem: str, number: int) -> str:
    """The file name of explanation `number` (from 0) of an image.

    >>> numbered_stem("cat", 0), numbered_stem("cat", 1)
    ('cat', 'cat-reason-2')
    """
    return f"{stem}-reason-{number + 1}" if number else stem
