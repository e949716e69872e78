"""`convad-fx tune`: what the command line adds to `convad_fx.tune`: files, and true masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from convad_fx import images, tuning
from convad_fx.compiler.policy import Policy
from convad_fx.errors import MaskError, PolicyError, Unavailable
from convad_fx.explain.evaluator import Mask
from convad_fx.images import Preprocess

#: Sets of policies that `--grid` names.
GRIDS = {"few": tuning.FEW, "full": tuning.FULL}


def policies(grid: str | None, texts: Sequence[str]) -> tuple[Policy, ...]:
    """Those written out, or those of a grid ("few" unless named).

    Raises:
        PolicyError: a text that cannot be read, no such grid, or a grid beside texts.
    """
    if texts and grid is not None:
        raise PolicyError(
            "a grid does nothing beside policies that are named",
            hint="pass either `--grid` or `--policy`",
        )
    grid = grid or "few"
    if texts:
        return tuple(map(tuning.parse_policy, texts))
    if grid not in GRIDS:
        raise PolicyError(
            f"grid must be one of {', '.join(GRIDS)}, not {grid!r}",
            hint="or name policies: --policy tau=0.5 --policy paper",
        )
    return GRIDS[grid]


def mask_files(pictures: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """The file of the true mask for each picture that has one: the same name, any ending.

    Raises:
        MaskError: no such folder, none of its masks belongs to a picture, one belongs to none or to
            two, or a picture has two.
    """
    if not folder.is_dir():
        raise MaskError(f"there is no folder {folder}", hint="pass `--masks` a folder of pictures")
    known = set(Image.registered_extensions())
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in known and p.is_file())
    if not files:
        raise MaskError(
            f"there are no masks in {folder}", hint="the mask of cat.jpg is called cat.png"
        )
    by_stem: dict[str, Path] = {}
    for file in files:
        if file.stem in by_stem:
            raise MaskError(
                f"{by_stem[file.stem]} and {file} are masks of the same picture", hint="keep one"
            )
        by_stem[file.stem] = file
    found: dict[Path, Path] = {}
    taken: dict[str, Path] = {}
    for picture in pictures:
        mask = by_stem.get(picture.stem)
        if mask is None:
            continue
        if picture.stem in taken and taken[picture.stem] != picture:
            raise MaskError(
                f"{mask} may belong to {taken[picture.stem]} or to {picture}",
                hint="give the pictures different names",
            )
        taken[picture.stem], found[picture] = picture, mask
    if left := [str(file) for stem, file in by_stem.items() if stem not in taken]:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise MaskError(
            f"there is no picture for the mask {', '.join(left[:3])}{more}",
            hint="the mask of cat.jpg is called cat.png; name every picture, or take the mask out",
        )
    return found


def read_mask(path: Path, picture: Image.Image, preprocess: Preprocess) -> Mask | None:
    """Where the object is in what the network reads, (H, W); None if the crop leaves none of it.

    The object is what is brighter than half of the mask's brightest pixel. The mask takes the
    picture's own way into the network, as a black and white picture.

    Raises:
        ImageError: the file cannot be read.
        MaskError: it is of another size than the picture, or black all over.
    """
    drawn = images.open_image(path)
    if drawn.size != picture.size:
        raise MaskError(
            f"the mask {path} has {drawn.width} x {drawn.height} pixels, its picture "
            f"{picture.width} x {picture.height}",
            hint="draw it at the size of the picture",
        )
    levels = np.asarray(drawn).max(2)
    if not levels.any():
        raise MaskError(
            f"the mask {path} is black all over", hint="draw the object white, or take it out"
        )
    stencil = Image.fromarray((levels > levels.max() / 2).astype(np.uint8) * 255).convert("RGB")
    shown = images.displayable(images.to_input(stencil, preprocess), preprocess)
    mask: Mask = shown[:, :, 0] > 127
    return mask if mask.any() else None


def write(found: tuning.Tuning, about: dict[str, object], path: Path) -> None:
    """All measurements as JSON.

    Raises:
        Unavailable: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**about, **found.to_dict()}, indent=1), encoding="utf-8")
    except OSError as error:
        raise Unavailable(
            f"cannot write to {path} ({error.strerror})", hint="pass another `--out`"
        ) from error
