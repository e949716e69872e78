"""`convad-fx demo`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from typer import Option

from convad_fx import device as devices
from convad_fx import images, models
from convad_fx.cli import options as opts
from convad_fx.cli.output import make_folder, show_progress
from convad_fx.cli.picture import PictureExplainer
from convad_fx.cli.tables import ExplanationTable
from convad_fx.demo import scenes

EXAMPLES = """Examples:

\b
  convad-fx demo
  convad-fx demo --out demo --no-progress
"""


def command(
    out: Annotated[Path, Option(metavar="DIR", help="Where PNG and JSON files go.")] = Path(
        "convad_fx_demo"
    ),
    seed: opts.Seed = 0,
    device: opts.Device = "auto",
    progress: opts.Progress = None,
) -> None:
    """Check, convert and explain a small network that comes with the package; needs no download.

    Its images are drawn, so the true mask of the object is known, and were not used in training.
    The table shows the share of each explanation, and of the image, that lies on the object.
    """
    folder = make_folder(out)
    classifier = models.resolve("demo")
    chosen = devices.choose(device)
    masked = models.masked_network(classifier, chosen)
    options = {"count": 1, "seed": seed, "progress": show_progress(progress)}
    explainer = PictureExplainer(classifier, masked, chosen, folder, options)
    typer.echo(str(masked.report))

    held_out = scenes.held_out(3)
    pictures = [Image.fromarray(scene.image) for scene in held_out]
    x = torch.cat([images.to_input(p, classifier.preprocess) for p in pictures]).to(chosen)
    with torch.inference_mode():
        same = torch.equal(masked(x), classifier.model(x))
    verdict = "the same as before, bit for bit" if same else "NOT the same as before"
    typer.echo(f"Converted. With everything kept, its answers are {verdict}.\n")

    names = [f"{n}-{scenes.CLASSES[scene.label]}" for n, scene in enumerate(held_out, 1)]
    table = ExplanationTable(names, extra="on the object")
    for scene, picture, name in zip(held_out, pictures, names, strict=True):
        with _one_thread():
            (result,) = explainer.explain(picture, name, name)
        kept = result.explanation.mask
        inside = (kept & scene.mask).sum() / max(1, kept.sum())
        table.add(result, f"{inside:.0%} (fills {scene.mask.mean():.0%})")
    typer.echo(f"\nPictures and JSON are in {folder}.")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """For networks so small that threads save little, and cost tenfold where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
